//! Who is there, and commands that reach across the cluster.

use std::collections::HashSet;
use std::time::Duration;

use ::redis::AsyncCommands;
use axum_cluster::{Close, NodeId, Roster, SocketId};
use futures::future::join_all;

use crate::support::client::{Event, text};
use crate::support::node::{NEVER, id_of};
use crate::support::proxy::Proxy;
use crate::support::{Client, Lab, PATIENCE, TestNode, soon, until};

on_every_bus! {
    a_roster_lists_every_device
    any_audience_can_be_listed_and_counted
    a_room_is_joined_and_left_on_every_node
    commands_and_sends_of_one_sender_take_effect_in_order
    a_close_says_how_many_nodes_carried_it_out
    every_node_is_known_until_it_leaves
    many_users_are_looked_up_at_once
}

on_every_topology! {
    a_roster_lists_every_device
    any_audience_can_be_listed_and_counted
    a_room_is_joined_and_left_on_every_node
    a_close_says_how_many_nodes_carried_it_out
    every_node_is_known_until_it_leaves
    many_users_are_looked_up_at_once
}

fn ids(roster: &Roster) -> HashSet<SocketId> {
    roster.sockets().iter().map(|socket| socket.id).collect()
}

/// A socket of the user on each of these nodes.
async fn everywhere(nodes: &[TestNode], user: &str) -> (Vec<Client>, HashSet<SocketId>) {
    let (mut clients, mut ids) = (Vec::new(), HashSet::new());
    for node in nodes {
        let mut client = node.client(user).await;
        ids.insert(id_of(&mut client).await);
        clients.push(client);
    }
    (clients, ids)
}

/// Together they are more than travels in one envelope.
#[tokio::test(flavor = "multi_thread")]
async fn sockets_in_thousands_of_rooms_are_told_in_parts() {
    const SOCKETS: usize = 18;
    const ROOMS: usize = 4000;
    let lab = Lab::redis();
    let builder = lab.builder().publish_timeout(NEVER);
    let a = TestNode::start(builder.clone().start()).await;
    let b = TestNode::start(builder.start()).await;
    for node in [&a, &b] {
        node.cluster.ready().await.unwrap();
    }
    let mut clients = Vec::new();
    for n in 0..SOCKETS {
        clients.push(a.client(&format!("user-{n}")).await);
    }
    let rooms = (0..ROOMS).map(|n| format!("{n:0>250}"));
    let joins = rooms.map(|room| a.broadcaster.to_all().local().join(room));
    for joined in join_all(joins).await {
        assert_eq!(joined.unwrap().local(), SOCKETS);
    }
    let roster = soon("the roster", b.broadcaster.to_all().sockets()).await;
    let roster = roster.unwrap();
    assert!(roster.is_complete());
    let rooms: Vec<usize> = roster
        .into_iter()
        .map(|socket| socket.rooms.len())
        .collect();
    assert_eq!(rooms, [ROOMS; SOCKETS]);
}

async fn a_roster_lists_every_device(lab: Lab) {
    let nodes = lab.nodes::<3>().await;
    let (mut clients, expected) = everywhere(&nodes, "alice").await;
    let _bob = nodes[1].client("bob").await;
    assert_eq!(clients[2].ask("join a room").await, "joined");
    for node in &nodes {
        let roster = node.broadcaster.to_user("alice").sockets().await.unwrap();
        assert_eq!(ids(&roster), expected);
        assert!(roster.is_complete());
        let homes: HashSet<NodeId> = roster.sockets().iter().map(|s| s.node()).collect();
        assert_eq!(homes.len(), 3);
        assert!(
            roster
                .sockets()
                .is_sorted_by_key(|socket| socket.connected_at)
        );
        for socket in roster {
            assert_eq!(socket.user.as_str(), "alice");
            assert_eq!(socket.description.as_ref().unwrap()["device"], "test");
            let in_the_room = socket.node() == nodes[2].id();
            let rooms: &[&str] = if in_the_room { &["a room"] } else { &[] };
            assert_eq!(socket.rooms, rooms);
        }
    }
}

async fn any_audience_can_be_listed_and_counted(lab: Lab) {
    let nodes = lab.nodes::<3>().await;
    let (mut alices, alice_ids) = everywhere(&nodes, "alice").await;
    let (mut bobs, bob_ids) = everywhere(&nodes, "bob").await;
    for client in [&mut alices[0], &mut bobs[1]] {
        assert_eq!(client.ask("join lobby").await, "joined");
    }
    let cluster = &nodes[0].broadcaster;
    let everybody: HashSet<_> = alice_ids.union(&bob_ids).copied().collect();
    let one = *bob_ids.iter().next().unwrap();
    for (audience, expected) in [
        (cluster.to_all(), everybody.clone()),
        (cluster.to_users(["alice", "bob"]), everybody.clone()),
        (cluster.to_user("alice").to_room("lobby"), {
            let mut both = alice_ids.clone();
            both.insert(id_of(&mut bobs[1]).await);
            both
        }),
        (cluster.to_all().except_user("bob"), alice_ids.clone()),
        (cluster.to_user("bob").except(one), {
            let mut others = bob_ids.clone();
            others.remove(&one);
            others
        }),
        (cluster.to_socket(one), HashSet::from([one])),
        (cluster.to_user("nobody"), HashSet::new()),
        (cluster.to_room("nowhere"), HashSet::new()),
        (
            cluster.to_all().local(),
            [id_of(&mut alices[0]).await, id_of(&mut bobs[0]).await].into(),
        ),
    ] {
        let roster = audience.clone().sockets().await.unwrap();
        assert_eq!(ids(&roster), expected, "{audience:?}");
        let count = audience.count().await.unwrap();
        assert_eq!(count.sockets(), expected.len());
        assert!(roster.is_complete() && count.is_complete());
    }
    assert!(cluster.to_user("").sockets().await.is_err());
    assert!(cluster.to_user("x".repeat(257)).count().await.is_err());
}

async fn a_room_is_joined_and_left_on_every_node(lab: Lab) {
    let nodes = lab.nodes::<3>().await;
    let (mut alices, _) = everywhere(&nodes, "alice").await;
    let (mut bobs, _) = everywhere(&nodes, "bob").await;
    let cluster = &nodes[0].broadcaster;
    for _ in 0..2 {
        let joined = cluster.to_user("alice").join("vip").await.unwrap();
        assert_eq!((joined.local(), joined.nodes()), (1, Some(2)));
        assert_eq!(joined.unanswered(), 0);
    }
    for node in &nodes {
        node.broadcaster.to_room("vip").send("vip").await.unwrap();
        for client in &mut alices {
            assert_eq!(client.event().await, text("vip"));
        }
    }
    let left = cluster.to_user("alice").leave("vip").await.unwrap();
    assert_eq!((left.local(), left.nodes()), (1, Some(2)));
    cluster.to_user("alice").leave("vip").await.unwrap();
    cluster.to_room("vip").send("too late").await.unwrap();
    cluster.to_all().send("fence").await.unwrap();
    for client in alices.iter_mut().chain(&mut bobs) {
        assert_eq!(client.before("fence").await, []);
    }
    for node in &nodes {
        assert_eq!(node.cluster.stats().rooms, 0);
    }
    for room in ["", &"x".repeat(257)] {
        assert!(cluster.to_all().join(room).await.is_err());
        assert!(cluster.to_all().leave(room).await.is_err());
    }
    let local = cluster.to_user("alice").local().join("near").await.unwrap();
    assert_eq!((local.local(), local.nodes()), (1, None));
}

async fn commands_and_sends_of_one_sender_take_effect_in_order(lab: Lab) {
    let nodes = lab.nodes::<2>().await;
    let mut client = nodes[1].client("alice").await;
    let cluster = &nodes[0].broadcaster;
    for n in 0..50 {
        cluster.to_user("alice").join("x").await.unwrap();
        cluster.to_room("x").send(format!("in {n}")).await.unwrap();
        cluster.to_user("alice").leave("x").await.unwrap();
        cluster.to_room("x").send(format!("out {n}")).await.unwrap();
    }
    cluster.to_user("alice").send("last").await.unwrap();
    cluster
        .to_user("alice")
        .close(Close::new(4001, "bye"))
        .await
        .unwrap();
    for n in 0..50 {
        assert_eq!(client.event().await, text(&format!("in {n}")));
    }
    assert_eq!(client.event().await, text("last"));
    assert_eq!(client.event().await, Event::Closed(4001, "bye".into()));
}

async fn a_close_says_how_many_nodes_carried_it_out(lab: Lab) {
    let nodes = lab.nodes::<3>().await;
    let (mut alices, _) = everywhere(&nodes[..2], "alice").await;
    let mut bob = nodes[2].client("bob").await;
    let cluster = &nodes[0].broadcaster;
    let bye = || Close::new(4001, "logged out");
    let closed = cluster.to_user("alice").close(bye()).await.unwrap();
    assert_eq!((closed.local(), closed.nodes()), (1, Some(1)));
    // Said to be done is done: nothing of them is reachable any more.
    assert_eq!(cluster.to_user("alice").count().await.unwrap().sockets(), 0);
    for client in &mut alices {
        assert_eq!(
            client.event().await,
            Event::Closed(4001, "logged out".into())
        );
    }
    let nobody = cluster.to_user("carol").close(bye()).await.unwrap();
    assert_eq!((nobody.local(), nobody.nodes()), (0, Some(0)));
    let union = cluster.to_users(["alice", "bob"]).close(bye()).await;
    assert_eq!(union.unwrap().nodes(), Some(2), "both others were asked");
    assert_eq!(bob.event().await, Event::Closed(4001, "logged out".into()));
}

async fn every_node_is_known_until_it_leaves(lab: Lab) {
    let [a, b] = lab.nodes().await;
    let c = TestNode::start(lab.builder().name("third").start()).await;
    c.until_up().await;
    let _clients = [c.client("alice").await, c.client("alice").await];
    for node in [&a, &b, &c] {
        until("three nodes", async || {
            node.cluster.nodes().await.unwrap().len() == 3
        })
        .await;
        let nodes = node.cluster.nodes().await.unwrap();
        assert_eq!(nodes[0].id, node.id(), "this one first");
        let ids: HashSet<_> = nodes.iter().map(|node| node.id).collect();
        assert_eq!(ids, [a.id(), b.id(), c.id()].into());
        let third = nodes.iter().find(|node| node.id == c.id()).unwrap();
        assert_eq!((third.sockets, third.users), (2, 1));
        assert_eq!(
            (third.name.as_str(), third.version.as_str()),
            ("third", env!("CARGO_PKG_VERSION"))
        );
    }
    c.cluster.shutdown(Duration::ZERO).await;
    for node in [&a, &b] {
        let nodes = node.cluster.nodes().await.unwrap();
        assert_eq!(nodes.len(), 2, "{nodes:?}");
    }
    assert!(c.cluster.nodes().await.is_err());
    assert!(c.broadcaster.to_all().count().await.is_err());
}

async fn many_users_are_looked_up_at_once(lab: Lab) {
    let [a, b] = lab.nodes().await;
    let _clients = [a.client("here").await, b.client("there").await];
    let asked = ["there", "nobody", "here", "he", "There"];
    let online = a.broadcaster.which_online(asked).await.unwrap();
    let online: Vec<_> = online.iter().map(|user| user.as_str()).collect();
    assert_eq!(online, ["there", "here"]);
    let none: [&str; 0] = [];
    assert!(a.broadcaster.which_online(none).await.unwrap().is_empty());
    assert!(a.broadcaster.which_online(["here", ""]).await.is_err());
    let many = (0..5000).map(|n| format!("user {n}"));
    assert!(a.broadcaster.which_online(many).await.unwrap().is_empty());
}

/// One question, then one for all that came meanwhile; and each costs one command per node.
#[tokio::test(flavor = "multi_thread")]
async fn identical_questions_share_the_work() {
    let mut lab = Lab::redis();
    let nodes = lab.nodes::<3>().await;
    let (_clients, expected) = everywhere(&nodes, "alice").await;
    let before = lab.server().calls("publish");
    let questions = (0..200).map(|_| nodes[0].broadcaster.to_user("alice").sockets());
    for roster in futures::future::join_all(questions).await {
        assert_eq!(ids(&roster.unwrap()), expected);
    }
    let publishes = lab.server().calls("publish") - before;
    // A few rounds of a question, its census and two answers, instead of 200; probes and hellos beside them.
    assert!(
        (6..100).contains(&publishes),
        "{publishes} commands for 200 rosters"
    );
}

/// Partial, never all or nothing: a node that hears nothing any more is named.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_is_named_and_the_others_are_listed() {
    let lab = Lab::redis();
    let proxy = Proxy::to(lab.redis.as_ref().unwrap().port()).await;
    let quick = lab.builder().publish_timeout(Duration::from_millis(800));
    let nodes = [
        TestNode::start(quick.start()).await,
        lab.node().await,
        TestNode::start(
            lab.builder()
                .redis(proxy.url())
                .probe_interval(PATIENCE)
                .start(),
        )
        .await,
        // Has nothing to do with it, and says so when it is asked by name.
        lab.node().await,
    ];
    for node in &nodes {
        node.cluster.ready().await.unwrap();
    }
    let (_clients, all) = everywhere(&nodes[..3], "alice").await;
    let cluster = &nodes[0].broadcaster;
    let whole = cluster.to_user("alice").sockets().await.unwrap();
    assert_eq!((ids(&whole), whole.missing()), (all, &[][..]), "control");
    until("everybody is known", async || {
        nodes[0].cluster.nodes().await.unwrap().len() == 4
    })
    .await;

    proxy.black_hole();
    let partial = cluster.to_user("alice").sockets().await.unwrap();
    let homes: HashSet<_> = partial.sockets().iter().map(|s| s.node()).collect();
    assert_eq!(homes, [nodes[0].id(), nodes[1].id()].into());
    assert_eq!(partial.missing(), [nodes[2].id()]);
    let count = cluster.to_user("alice").count().await.unwrap();
    assert_eq!(
        (count.sockets(), count.missing()),
        (2, &[nodes[2].id()][..])
    );
    let joined = cluster.to_user("alice").join("x").await.unwrap();
    assert_eq!((joined.nodes(), joined.unanswered()), (Some(1), 1));
}

/// Slower than the moment at which it is asked by name: who has nothing to answer does not end the
/// question for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_node_is_waited_for() {
    let lab = Lab::redis();
    let slow = Proxy::slow(
        lab.redis.as_ref().unwrap().port(),
        Duration::from_millis(150),
    )
    .await;
    let far = lab.builder().redis(slow.url()).probe_interval(PATIENCE);
    let nodes = [
        lab.node().await,
        TestNode::start(far.start()).await,
        lab.node().await,
    ];
    for node in &nodes {
        node.cluster.ready().await.unwrap();
    }
    let (mut clients, all) = everywhere(&nodes[1..2], "alice").await;
    until("everybody is known", async || {
        nodes[0].cluster.stats().nodes == 3
    })
    .await;
    let asked = tokio::time::Instant::now();
    let joined = nodes[0].broadcaster.to_user("alice").join("x").await;
    let joined = joined.unwrap();
    assert!(
        asked.elapsed() > Duration::from_millis(200),
        "control: it was slow"
    );
    assert_eq!((joined.nodes(), joined.unanswered()), (Some(1), 0));
    nodes[0].broadcaster.to_room("x").send("in").await.unwrap();
    assert_eq!(clients[0].event().await, text("in"));
    let roster = nodes[0].broadcaster.to_user("alice").sockets().await;
    let roster = roster.unwrap();
    assert_eq!((ids(&roster), roster.is_complete()), (all, true));
}

/// With Redis gone the sockets of this node are still listed, and nobody is forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn without_redis_everybody_else_is_missing() {
    let mut lab = Lab::redis();
    let nodes = lab.nodes::<2>().await;
    let _clients = everywhere(&nodes, "alice").await;
    until("both are known", async || {
        nodes[0].cluster.nodes().await.unwrap().len() == 2
    })
    .await;
    lab.server().kill();
    let asked = soon("an answer", nodes[0].broadcaster.to_user("alice").sockets());
    let roster = asked.await.unwrap();
    assert_eq!(roster.sockets().len(), 1);
    assert_eq!(roster.missing(), [nodes[1].id()]);
    assert!(nodes[0].cluster.nodes().await.is_err());
    let error = nodes[0].broadcaster.to_user("alice").join("x").await;
    assert_eq!(error.unwrap_err().local(), 1);
}

/// Nodes of two releases side by side: messages are understood, words of the later one are ignored.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_another_release_are_understood_as_far_as_they_speak_the_same() {
    let lab = Lab::redis();
    let [a] = lab.nodes().await;
    let mut client = a.client("alice").await;
    let mut other = Silent::start(&lab.redis.as_ref().unwrap().url()).await;
    until("it is known", async || a.cluster.stats().nodes == 2).await;
    for unknown in [
        &br#"{"dance":{"steps":3}}"#[..],
        br#"{"ask":{"id":1,"what":"mood"}}"#,
        br#"{"ask":{"id":2,"what":{"paint":{"colour":"red"}}}}"#,
    ] {
        other.say(unknown).await;
    }
    let head = |kind: u8| vec![1, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0xab];
    let unknown_kind = [&head(200)[..], b"whatever"].concat();
    let message = [&head(1)[..], b"from the other release"].concat();
    for envelope in [unknown_kind, message] {
        let sent: Result<usize, _> = other.talk.publish("cluster:u:alice", envelope).await;
        sent.unwrap();
    }
    assert_eq!(client.event().await, text("from the other release"));
    assert_eq!(a.cluster.stats().bus_garbage, 0);
    let broken = [&head(3)[..], b"{"].concat();
    let _: usize = other.talk.publish("cluster:nodes", broken).await.unwrap();
    until("control: nonsense is counted", async || {
        a.cluster.stats().bus_garbage == 1
    })
    .await;
    let nodes = a.cluster.nodes().await.unwrap();
    assert_eq!(nodes[1].name, "old", "listed, though it did not answer");
}

/// A question that came is answered or lost: only of one that never came is it said.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_question_that_never_came_is_disowned() {
    let lab = Lab::redis();
    let [a] = lab.nodes().await;
    let mut other = Silent::start(&lab.redis.as_ref().unwrap().url()).await;
    until("it is known", async || a.cluster.stats().nodes == 2).await;
    other.say(br#"{"ask":{"id":7,"what":"node"}}"#).await;
    assert!(other.told().await.contains(r#""node""#));
    for ping in [&br#"{"ping":{"id":7}}"#[..], br#"{"ping":{"id":8}}"#] {
        other.say(ping).await;
    }
    let disowned = r#"{"unasked":{"id":8,"heard":"#;
    assert!(other.told().await.contains(disowned));
}

/// What says it is a node and never answers: the deadline is far away, so only its end can end the wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_meanwhile_is_not_waited_for() {
    let lab = Lab::redis();
    let url = lab.redis.as_ref().unwrap().url();
    let patient = lab.builder().publish_timeout(PATIENCE * 10);
    let a = TestNode::start(patient.start()).await;
    a.cluster.ready().await.unwrap();
    let mut client = a.client("alice").await;
    let client_id = id_of(&mut client).await;
    for how in ["goodbye", "killed"] {
        let mut silent = Silent::start(&url).await;
        until("it is known", async || a.cluster.stats().nodes == 2).await;
        let asking = a.broadcaster.to_user("alice").sockets();
        let asking = tokio::spawn(asking);
        silent.heard_a_question().await;
        assert!(!asking.is_finished(), "control: it is waited for");
        if how == "goodbye" {
            silent.say(br#""bye""#).await;
        }
        let missing = match how {
            "goodbye" => vec![],
            _ => vec![silent.id],
        };
        drop(silent);
        let roster = soon(how, asking).await.unwrap().unwrap();
        assert_eq!(ids(&roster), [client_id].into());
        assert_eq!(roster.missing(), missing, "{how}");
        a.broadcaster.to_all().send("alive").await.unwrap();
        assert_eq!(client.event().await, text("alive"));
    }
}

/// Speaks the envelope of version 1 as written down here: what a node of another release says.
struct Silent {
    id: NodeId,
    heard: ::redis::aio::PubSub,
    talk: ::redis::aio::MultiplexedConnection,
}

impl Silent {
    async fn start(url: &str) -> Self {
        let client = ::redis::Client::open(url).unwrap();
        let mut heard = client.get_async_pubsub().await.unwrap();
        let id: NodeId = "00000000000000ab".parse().unwrap();
        for channel in [
            "cluster:u:alice",
            "cluster:nodes",
            "cluster:n:00000000000000ab",
        ] {
            heard.subscribe(channel).await.unwrap();
        }
        let talk = client.get_multiplexed_async_connection().await.unwrap();
        let mut node = Self { id, heard, talk };
        let hello = br#"{"hello":{"reply":false,"lease":15000,"node":{"id":"00000000000000ab","name":"old","started_at":1,"sockets":0,"users":0,"version":"0.1.0","colour":"red"}}}"#;
        node.say(hello).await;
        node
    }

    async fn say(&mut self, control: &[u8]) {
        let mut envelope = vec![1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0xab];
        envelope.extend(control);
        let _: usize = self.talk.publish("cluster:nodes", envelope).await.unwrap();
    }

    /// The next that it alone is told.
    async fn told(&mut self) -> String {
        use futures::StreamExt;
        let mut messages = self.heard.on_message();
        let told = async {
            loop {
                let message = messages.next().await.unwrap();
                let words = String::from_utf8_lossy(message.get_payload_bytes()).into_owned();
                if message.get_channel_name().contains(":n:") && !words.contains("hello") {
                    return words;
                }
            }
        };
        soon("to be told", told).await
    }

    async fn heard_a_question(&mut self) {
        use futures::StreamExt;
        let mut messages = self.heard.on_message();
        let question = async {
            while messages.next().await.unwrap().get_channel_name() != "cluster:u:alice" {}
        };
        soon("a question", question).await;
    }
}
