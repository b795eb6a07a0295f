//! Who comes online and goes offline, with faults.

use std::collections::HashSet;
use std::sync::mpsc::{self, TryRecvError};
use std::time::Duration;

use axum_cluster::{ClusterBuilder, Health, Presence, PresenceChange};
use futures::{FutureExt, StreamExt};
use serde_json::{Value, json};

use crate::support::node::NEVER;
use crate::support::program::ticker;
use crate::support::proxy::Proxy;
use crate::support::redis::free_port;
use crate::support::{Client, Lab, TestNode, soon, until};

on_every_bus! {
    everybody_is_told_once_wherever_it_happens
    a_reconnect_within_the_grace_period_is_no_change
    some_users_or_a_room_can_be_followed
    what_devices_are_is_told_to_who_asks_for_it
    a_node_that_leaves_takes_its_users_along
    readers_come_and_go_and_leave_nothing
}

on_every_topology! {
    everybody_is_told_once_wherever_it_happens
    a_reconnect_within_the_grace_period_is_no_change
    some_users_or_a_room_can_be_followed
    a_node_that_leaves_takes_its_users_along
}

fn online(user: &str) -> PresenceChange {
    PresenceChange::Online(user.into())
}

fn offline(user: &str) -> PresenceChange {
    PresenceChange::Offline(user.into())
}

/// A node on which nobody lingers: a change is told as soon as it is known.
fn quick(builder: ClusterBuilder) -> ClusterBuilder {
    builder.presence_grace(Duration::ZERO)
}

async fn start(builder: ClusterBuilder) -> TestNode {
    let node = TestNode::start(builder.start()).await;
    node.until_up().await;
    node
}

/// Waits until a node knows so many others.
async fn acquainted(nodes: &[TestNode]) {
    for node in nodes {
        until("the nodes know each other", async || {
            node.cluster.stats().nodes == nodes.len() as u64
        })
        .await;
    }
}

async fn next(presence: &mut Presence) -> PresenceChange {
    let change = soon("a change", presence.next()).await;
    change.expect("the node lives")
}

/// The changes up to this user's coming, which proves that nothing else happened.
async fn before(presence: &mut Presence, fence: &str) -> Vec<PresenceChange> {
    let mut changes = Vec::new();
    loop {
        match next(presence).await {
            change if change == online(fence) => return changes,
            change => changes.push(change),
        }
    }
}

async fn everybody_is_told_once_wherever_it_happens(lab: Lab) {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(start(quick(lab.builder())).await);
    }
    acquainted(&nodes).await;
    let alice = nodes[0].client("alice").await;
    let mut readers: Vec<_> = nodes.iter().map(|n| n.broadcaster.presence()).collect();
    for reader in &mut readers {
        assert_eq!(next(reader).await, online("alice"), "who is there already");
    }
    let bob = nodes[1].client("bob").await;
    for reader in &mut readers {
        assert_eq!(next(reader).await, online("bob"));
    }
    let second_alice = nodes[2].client("alice").await;
    let _mark = nodes[2].client("mark").await;
    for reader in &mut readers {
        assert_eq!(next(reader).await, online("mark"));
    }
    drop(alice);
    nodes[0].until_empty().await;
    drop(bob);
    for reader in &mut readers {
        assert_eq!(next(reader).await, offline("bob"), "alice has another");
    }
    drop(second_alice);
    for reader in &mut readers {
        assert_eq!(next(reader).await, offline("alice"));
    }
    let _fence = nodes[2].client("fence").await;
    for reader in &mut readers {
        assert_eq!(before(reader, "fence").await, []);
    }
}

async fn a_reconnect_within_the_grace_period_is_no_change(lab: Lab) {
    let [a, b] = [
        start(lab.builder().presence_grace(NEVER)).await,
        start(quick(lab.builder())).await,
    ];
    let mut patient = a.broadcaster.presence();
    let mut strict = b.broadcaster.presence();
    for _ in 0..5 {
        for node in [&a, &b] {
            let client = node.client("alice").await;
            assert_eq!(next(&mut strict).await, online("alice"), "control");
            drop(client);
            assert_eq!(next(&mut strict).await, offline("alice"), "control");
        }
    }
    let _fence = b.client("fence").await;
    assert_eq!(before(&mut patient, "fence").await, [online("alice")]);
}

async fn some_users_or_a_room_can_be_followed(lab: Lab) {
    let [a, b] = [
        start(quick(lab.builder())).await,
        start(quick(lab.builder())).await,
    ];
    let mut friends = a.broadcaster.presence_of(["alice", "carol", ""]);
    let mut room = a.broadcaster.presence_in("lobby");
    let mut nowhere = a.broadcaster.presence_in("");
    assert_eq!(soon("its end", nowhere.next()).await, None);
    let _bob = b.client("bob").await;
    let mut alice = b.client("alice").await;
    let mut second = b.client("alice").await;
    assert_eq!(next(&mut friends).await, online("alice"));
    for client in [&mut alice, &mut second] {
        assert_eq!(client.ask("join lobby").await, "joined");
    }
    assert_eq!(next(&mut room).await, online("alice"));
    assert_eq!(alice.ask("leave lobby").await, "left");
    let mut local = a.client("dave").await;
    assert_eq!(local.ask("join lobby").await, "joined");
    assert_eq!(next(&mut room).await, online("dave"));
    assert_eq!(second.ask("leave lobby").await, "left");
    assert_eq!(next(&mut room).await, offline("alice"), "by the last one");
    drop(local);
    assert_eq!(next(&mut room).await, offline("dave"));
    b.broadcaster.to_user("bob").join("lobby").await.unwrap();
    assert_eq!(next(&mut room).await, online("bob"), "by a command");
    let _carol = a.client("carol").await;
    assert_eq!(before(&mut friends, "carol").await, []);
}

async fn what_devices_are_is_told_to_who_asks_for_it(lab: Lab) {
    let grace = Duration::from_millis(300);
    let [a, b] = [
        start(lab.builder().presence_grace(grace)).await,
        start(lab.builder().presence_grace(grace)).await,
    ];
    let nodes = [a, b];
    acquainted(&nodes).await;
    let [a, b] = nodes;
    let (away, phone) = (
        |away: bool| json!({ "away": away }),
        json!({ "device": "phone" }),
    );
    let is =
        |all: &[Value]| json!({ "described": { "user": "alice", "descriptions": all.to_vec() } });
    let mut plain = b.broadcaster.presence_in("desk");
    let mut asking = b.broadcaster.presence_in("desk").described();
    let mut told = async || json!(next(&mut asking).await);
    let first = a.broadcaster.subscribe("alice").await.unwrap();
    first.describe(away(false)).unwrap();
    first.join("desk").await.unwrap();
    let online = PresenceChange::Online("alice".into());
    assert_eq!(told().await, json!(online));
    assert_eq!(next(&mut plain).await, online);
    assert_eq!(told().await, is(&[away(false)]));
    first.describe(away(true)).unwrap();
    assert_eq!(told().await, is(&[away(true)]));
    let second = b.broadcaster.subscribe("alice").await.unwrap();
    second.describe(&phone).unwrap();
    second.join("desk").await.unwrap();
    assert_eq!(told().await, is(&[away(true), phone.clone()]));
    first.leave("desk");
    assert_eq!(told().await, is(std::slice::from_ref(&phone)));
    // Who comes later is told what holds; the same elsewhere, who knows of no device here.
    for node in [&a, &b] {
        let mut late = node.broadcaster.presence_in("desk").described();
        assert_eq!(json!(next(&mut late).await), json!({ "online": "alice" }));
        assert_eq!(
            json!(next(&mut late).await),
            is(std::slice::from_ref(&phone))
        );
    }
    drop(second);
    let offline = PresenceChange::Offline("alice".into());
    assert_eq!(told().await, json!(offline));
    assert_eq!(next(&mut plain).await, offline, "and nothing before");
}

async fn a_node_that_leaves_takes_its_users_along(lab: Lab) {
    let [a, b] = [
        start(quick(lab.builder())).await,
        start(quick(lab.builder())).await,
    ];
    let _alices = [a.client("alice").await, b.client("alice").await];
    let _bob = b.client("bob").await;
    let mut reader = a.broadcaster.presence();
    let both = HashSet::from([next(&mut reader).await, next(&mut reader).await]);
    assert_eq!(both, HashSet::from([online("alice"), online("bob")]));
    let mut leaving = b.broadcaster.presence();
    b.cluster.shutdown(Duration::ZERO).await;
    assert_eq!(next(&mut reader).await, offline("bob"));
    let rest: Vec<_> = soon("the stream ends", leaving.by_ref().collect::<Vec<_>>()).await;
    assert!(rest.len() <= 4, "{rest:?}");
    let mut late = b.broadcaster.presence();
    assert_eq!(soon("the end", late.next()).await, None);
}

async fn readers_come_and_go_and_leave_nothing(lab: Lab) {
    let [a, b] = [
        start(quick(lab.builder())).await,
        start(quick(lab.builder())).await,
    ];
    let mut client = b.client("alice").await;
    assert_eq!(client.ask("join lobby").await, "joined");
    let is_watched = || {
        let channels = lab
            .redis
            .as_ref()
            .map(|redis| redis.cli(&["PUBSUB", "CHANNELS"]));
        channels.is_some_and(|channels| channels.contains(":p:"))
    };
    for _ in 0..3 {
        let mut readers = [
            a.broadcaster.presence(),
            a.broadcaster.presence(),
            a.broadcaster.presence_in("lobby"),
        ];
        for reader in &mut readers {
            assert_eq!(next(reader).await, online("alice"));
        }
        assert_eq!(is_watched(), lab.redis.is_some(), "control");
        let [first, mut last, room] = readers;
        drop((first, room));
        let bob = a.client("bob").await;
        assert_eq!(next(&mut last).await, online("bob"));
        drop(bob);
        assert_eq!(next(&mut last).await, offline("bob"));
        drop(last);
        until("nobody watches", async || !is_watched()).await;
    }
    if let Some(redis) = &lab.redis {
        assert_eq!(redis.cli(&["DBSIZE"]), "0");
        // Nobody watches: who comes and goes is told to nobody.
        until("a quiet moment", async || {
            let before = redis.calls("publish");
            for _ in 0..20 {
                drop(b.client("carol").await);
            }
            b.until_empty_of("carol").await;
            redis.calls("publish") - before < 10
        })
        .await;
    }
}

/// Before its task had a chance to look, and after its end.
#[tokio::test]
async fn a_stream_ends_with_its_node_however_short_that_lived() {
    let broadcaster = Lab::memory().builder().start().broadcaster();
    let mut presence = broadcaster.presence();
    drop(broadcaster);
    assert_eq!(soon("the end", presence.next()).await, None);

    let cluster = Lab::memory().builder().start();
    cluster.shutdown(Duration::MAX).await;
    let mut presence = cluster.broadcaster().presence();
    assert_eq!(soon("the end", presence.next()).await, None);
}

/// A node that falls silent is gone with its lease; not before, and not for long when it heals.
#[tokio::test(flavor = "multi_thread")]
async fn a_netsplit_of_one_node_ends_in_the_truth() {
    let lab = Lab::redis();
    let proxy = Proxy::to(lab.redis.as_ref().unwrap().port()).await;
    let lease = Duration::from_secs(3);
    let a = start(quick(lab.builder()).lease(lease)).await;
    let split = quick(lab.builder()).redis(proxy.url()).lease(lease);
    let b = start(split).await;
    acquainted_pair(&a, &b).await;
    let mut reader = a.broadcaster.presence();
    let mut over_there = b.broadcaster.presence();
    let stays = b.client("stays").await;
    let goes = b.client("goes").await;
    let here = a.client("here").await;
    for reader in [&mut reader, &mut over_there] {
        let three = [next(reader).await, next(reader).await, next(reader).await];
        assert_eq!(HashSet::from(three).len(), 3);
    }

    proxy.cut();
    until("b is cut off", async || {
        matches!(b.cluster.health(), Health::Degraded { .. })
    })
    .await;
    assert_eq!(
        a.cluster.stats().nodes,
        2,
        "control: its lease has not ended"
    );
    let gone = HashSet::from([next(&mut reader).await, next(&mut reader).await]);
    assert_eq!(gone, HashSet::from([offline("stays"), offline("goes")]));
    assert_eq!(a.cluster.stats().nodes, 1);
    // What is told on the other side is only what is certain there.
    drop(goes);
    assert_eq!(next(&mut over_there).await, offline("goes"));
    let _comes = b.client("comes").await;
    assert_eq!(next(&mut over_there).await, online("comes"));
    drop(here);

    proxy.heal();
    let mut told = HashSet::new();
    for _ in 0..3 {
        told.insert(next(&mut reader).await);
    }
    let expected = [online("stays"), online("comes"), offline("here")];
    assert_eq!(told, HashSet::from(expected));
    assert_eq!(next(&mut over_there).await, offline("here"));
    let _fence = b.client("fence").await;
    for reader in [&mut reader, &mut over_there] {
        assert_eq!(before(reader, "fence").await, []);
    }
    drop(stays);
}

async fn acquainted_pair(a: &TestNode, b: &TestNode) {
    for node in [a, b] {
        until("both are known", async || node.cluster.stats().nodes == 2).await;
    }
}

/// A node that hears nothing, and has not noticed it yet, knows nothing new of anybody.
#[tokio::test(flavor = "multi_thread")]
async fn time_in_which_a_node_was_deaf_costs_nobody_the_lease() {
    let lab = Lab::redis();
    let proxy = Proxy::to(lab.redis.as_ref().unwrap().port()).await;
    let short = |builder: ClusterBuilder| quick(builder).lease(Duration::from_secs(1));
    let a = start(short(lab.builder())).await;
    let slow_probe = Duration::from_millis(1500);
    let deaf = lab.builder().redis(proxy.url()).probe_interval(slow_probe);
    let b = start(short(deaf)).await;
    acquainted_pair(&a, &b).await;
    let mut reader = b.broadcaster.presence();
    let _alice = a.client("alice").await;
    assert_eq!(next(&mut reader).await, online("alice"));

    proxy.deafen_subscribers();
    until("b notices", async || {
        matches!(b.cluster.health(), Health::Degraded { .. })
    })
    .await;
    assert_eq!(b.cluster.stats().nodes, 2);
    assert_eq!(reader.next().now_or_never(), None);
    proxy.heal();
    until("b is back", async || b.cluster.health() == Health::Up).await;
    let _fence = a.client("fence").await;
    assert_eq!(before(&mut reader, "fence").await, []);
}

/// While it drains, a node is there for the others, and they for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_draining_nodes_users_are_online_until_their_sockets_close() {
    const USERS: usize = 20;
    let lab = Lab::redis();
    let lease = Duration::from_secs(1);
    let a = start(quick(lab.builder()).lease(lease)).await;
    let b = start(quick(lab.builder()).lease(lease)).await;
    acquainted_pair(&a, &b).await;
    let (mut reader, mut draining) = (b.broadcaster.presence(), a.broadcaster.presence());
    let mut clients = Vec::new();
    for n in 0..USERS {
        let user = format!("user {n}");
        clients.push(a.client(&user).await);
        for reader in [&mut reader, &mut draining] {
            assert_eq!(next(reader).await, online(&user));
        }
    }
    let cluster = a.cluster.clone();
    let shutdown = tokio::spawn(async move { cluster.shutdown(4 * lease).await });
    let mut gone = 0;
    while gone < USERS {
        let change = next(&mut reader).await;
        if change == online("late") {
            continue;
        }
        assert!(!change.is_online(), "{change:?}");
        let here = a.broadcaster.to_user(change.user()).local().count().await;
        // After the last one it is shut down.
        assert_eq!(here.map_or(0, |count| count.sockets()), 0, "{change:?}");
        gone += 1;
        if gone == USERS * 3 / 4 {
            clients.push(b.client("late").await);
            assert_eq!(next_of(&mut draining, "late").await, online("late"));
        }
    }
    soon("the shutdown", shutdown).await.unwrap();
}

/// A process that was killed says nothing any more: Redis knows at once that nobody listens, and its users
/// are gone with its lease of 15 s. Its restart is another node.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_nodes_users_are_gone_with_its_lease() {
    let lab = Lab::redis();
    let url = lab.redis.as_ref().unwrap().url();
    let a = start(quick(lab.builder())).await;
    let mut reader = a.broadcaster.presence();
    let port = free_port();
    let killed = ticker(port, &url).await;
    let token = [("cookie", "token=user1")];
    let addr = ([127, 0, 0, 1], port).into();
    let _client = Client::try_connect(addr, "/", &token).await.unwrap();
    assert_eq!(next(&mut reader).await, online("user1"));
    drop(killed);
    until("nobody listens", async || {
        !a.broadcaster.is_online("user1").await.unwrap()
    })
    .await;
    assert_eq!(a.cluster.stats().nodes, 2, "control: it said no goodbye");
    let _here = a.client("here").await;
    assert_eq!(
        next(&mut reader).await,
        online("here"),
        "and its lease holds"
    );
    let old = a.cluster.nodes().await.unwrap()[1].id;
    let _restarted = ticker(port, &url).await;
    assert_eq!(next(&mut reader).await, offline("user1"));
    until("only the restarted one is left", async || {
        let nodes = a.cluster.nodes().await.unwrap();
        nodes.len() == 2 && nodes[1].id != old
    })
    .await;
}

/// During an outage nobody flaps; afterwards exactly what changed is told.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_redis_is_reconciled() {
    let mut lab = Lab::redis();
    let nodes = [
        start(quick(lab.builder())).await,
        start(quick(lab.builder())).await,
        start(quick(lab.builder())).await,
    ];
    acquainted(&nodes).await;
    let mut readers: Vec<_> = nodes.iter().map(|n| n.broadcaster.presence()).collect();
    let _stays = nodes[1].client("stays").await;
    let goes = nodes[1].client("goes").await;
    for reader in &mut readers {
        let both = HashSet::from([next(reader).await, next(reader).await]);
        assert_eq!(both, HashSet::from([online("stays"), online("goes")]));
    }
    let mut kept: Vec<Client> = Vec::new();
    for outage in 0..2 {
        lab.server().kill();
        for node in &nodes {
            until("the outage is noticed", async || {
                matches!(node.cluster.health(), Health::Degraded { .. })
            })
            .await;
        }
        let comes = format!("comes {outage}");
        kept.push(nodes[2].client(&comes).await);
        assert_eq!(next(&mut readers[2]).await, online(&comes), "control");
        lab.server().restart();
        for reader in &mut readers[..2] {
            assert_eq!(next(reader).await, online(&comes));
        }
        let fence = format!("fence {outage}");
        kept.push(nodes[0].client(&fence).await);
        for reader in &mut readers {
            assert_eq!(before(reader, &fence).await, [], "who stays does not flap");
        }
    }
    lab.server().kill();
    drop(goes);
    assert_eq!(next_of(&mut readers[1], "goes").await, offline("goes"));
    lab.server().restart();
    for reader in [0, 2] {
        assert_eq!(next_of(&mut readers[reader], "goes").await, offline("goes"));
    }
}

/// What a node could not say to another is said again, though the bus was up all the time.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_could_not_be_told_is_told_again() {
    let mut lab = Lab::redis();
    let port = lab.server().port();
    let as_user = |name: &str, lab: &mut Lab| {
        let rules = ["on", ">pass", "+@all", "~*", "allchannels"];
        let command = [&["ACL", "SETUSER", name][..], &rules].concat();
        assert_eq!(lab.server().cli(&command), "OK");
        let url = format!("redis://{name}:pass@127.0.0.1:{port}");
        // With a second hello it would be asked anyway.
        quick(lab.builder()).redis(url).lease(NEVER)
    };
    let a = start(as_user("a", &mut lab)).await;
    let b = start(as_user("b", &mut lab)).await;
    acquainted_pair(&a, &b).await;
    let own = format!("&cluster:n:{}", a.id());
    let others = [
        "&cluster:nodes",
        "&cluster:all",
        "&cluster:u:*",
        "&cluster:p:*",
    ];
    let rules = [&["ACL", "SETUSER", "a", "resetchannels", &own][..], &others].concat();
    assert_eq!(lab.server().cli(&rules), "OK");

    // It answers who wants to be told ...
    let _alice = a.client("alice").await;
    let mut there = b.broadcaster.presence();
    assert_eq!(next(&mut there).await, online("alice"));
    drop(there);
    let watched = ["PUBSUB", "CHANNELS", "cluster:p:*"];
    until("nobody watches", async || {
        lab.server().cli(&watched).is_empty()
    })
    .await;
    // ... and asks who is new.
    let mut here = a.broadcaster.presence();
    assert_eq!(next(&mut here).await, online("alice"));
    let _dora = b.client("dora").await;
    assert_eq!(next(&mut here).await, online("dora"), "all have been asked");
    let c = start(quick(lab.builder())).await;
    until("c is known", async || a.cluster.stats().nodes == 3).await;
    let _bob = c.client("bob").await;
    let _fence = a.client("fence").await;
    assert_eq!(
        before(&mut here, "fence").await,
        [],
        "control: c was not asked"
    );
    lab.server().cli(&["ACL", "SETUSER", "a", "allchannels"]);
    assert_eq!(next(&mut here).await, online("bob"));
    for node in [&a, &b] {
        assert_eq!(node.cluster.stats().bus_gaps, 0, "control: it was up");
    }
}

/// After an outage all are asked of every room, and all answer, without end if that is too much to be read.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_rooms_are_followed_through_an_outage() {
    const ROOMS: usize = 2000;
    let mut lab = Lab::redis();
    let a = start(quick(lab.builder())).await;
    let b = start(quick(lab.builder())).await;
    acquainted_pair(&a, &b).await;
    let room = |n: usize| format!("room-{n}");
    let mut readers: Vec<Presence> = (0..ROOMS)
        .map(|n| a.broadcaster.presence_in(room(n)))
        .collect();
    let mut client = b.client("alice").await;
    for n in [0, ROOMS - 1] {
        assert_eq!(client.ask(&format!("join {}", room(n))).await, "joined");
        assert_eq!(next(&mut readers[n]).await, online("alice"));
    }
    lab.server().cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    for node in [&a, &b] {
        until("control: it was deaf", async || {
            node.cluster.stats().bus_reconnects == 1
        })
        .await;
    }
    let server = lab.server();
    let mut said = usize::MAX;
    until("nothing more is said", async || {
        let before = std::mem::replace(&mut said, server.calls("publish") as usize);
        said < before.saturating_add(10) && before < usize::MAX
    })
    .await;
    assert!(
        said < 10 * ROOMS,
        "{said} messages for {ROOMS} rooms and an outage"
    );
    for n in [0, ROOMS - 1] {
        client.ask(&format!("leave {}", room(n))).await;
        assert_eq!(next(&mut readers[n]).await, offline("alice"));
    }
}

/// A node that could not say that it no longer wants to be told is told no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_went_during_an_outage_costs_nothing() {
    let mut lab = Lab::redis();
    let [a, b] = [
        start(quick(lab.builder())).await,
        start(quick(lab.builder())).await,
    ];
    acquainted_pair(&a, &b).await;
    let mut reader = a.broadcaster.presence();
    let _alice = b.client("alice").await;
    assert_eq!(next(&mut reader).await, online("alice"));
    lab.server().kill();
    for node in [&a, &b] {
        until("the outage is noticed", async || {
            matches!(node.cluster.health(), Health::Degraded { .. })
        })
        .await;
    }
    drop(reader);
    lab.server().restart();
    acquainted_pair(&a, &b).await;
    for node in [&a, &b] {
        until("it is back", async || node.cluster.health() == Health::Up).await;
    }
    let mut reader = b.broadcaster.presence();
    assert_eq!(next(&mut reader).await, online("alice"));
    let before = lab.server().calls("publish");
    for _ in 0..20 {
        let carol = b.client("carol").await;
        assert_eq!(next(&mut reader).await, online("carol"));
        drop(carol);
        assert_eq!(next(&mut reader).await, offline("carol"));
    }
    let publishes = lab.server().calls("publish") - before;
    assert!(publishes < 20, "{publishes} for 40 changes");
}

/// Readers of a node whose bus is down are told of its own sockets at once, not when Redis would answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_redis_keeps_no_local_change_back() {
    let lab = Lab::redis();
    let proxy = Proxy::to(lab.redis.as_ref().unwrap().port()).await;
    let a = start(quick(lab.builder())).await;
    let patient = quick(lab.builder()).redis(proxy.url());
    let b = start(patient.publish_timeout(Duration::from_secs(10))).await;
    acquainted_pair(&a, &b).await;
    let _over_there = a.broadcaster.presence();
    let mut reader = b.broadcaster.presence();
    let _alice = b.client("alice").await;
    assert_eq!(next(&mut reader).await, online("alice"));
    proxy.black_hole();
    until("the outage is noticed", async || {
        matches!(b.cluster.health(), Health::Degraded { .. })
    })
    .await;
    let bob = async {
        let _bob = b.client("bob").await;
        assert_eq!(next(&mut reader).await, online("bob"));
    };
    tokio::select! {
        biased;
        sent = b.broadcaster.to_user("nobody").send("x") => panic!("it waited as long: {sent:?}"),
        () = bob => {}
    }
}

/// The next change of this user.
async fn next_of(presence: &mut Presence, user: &str) -> PresenceChange {
    loop {
        let change = next(presence).await;
        if change.user().as_str() == user {
            return change;
        }
    }
}

/// A process that was stopped for longer than its lease: the others took it for gone, and it knows nothing
/// of that.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_stopped_is_told_of_changes_again() {
    let lab = Lab::redis();
    let lease = Duration::from_secs(1);
    let a = start(quick(lab.builder()).lease(lease)).await;
    let mut reader = a.broadcaster.presence();
    let (stop, stopped) = mpsc::channel::<mpsc::Receiver<()>>();
    let (told, mut tidings) = tokio::sync::mpsc::unbounded_channel();
    let builder = quick(lab.builder()).lease(lease);
    // All of its tasks run on one thread.
    let process = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let b = start(builder).await;
            let _bob = b.client("bob").await;
            let mut presence = b.broadcaster.presence();
            loop {
                tokio::select! {
                    change = presence.next() => told.send(change.unwrap()).unwrap(),
                    () = tokio::time::sleep(Duration::from_millis(10)) => match stopped.try_recv() {
                        Ok(thaw) => { let _ = thaw.recv(); }
                        Err(TryRecvError::Empty) => {}
                        Err(TryRecvError::Disconnected) => return,
                    }
                }
            }
        });
    });
    let mut tidings = async || soon("a change there", tidings.recv()).await.unwrap();
    assert_eq!(next(&mut reader).await, online("bob"));
    assert_eq!(tidings().await, online("bob"));
    let alice = a.client("alice").await;
    assert_eq!(next(&mut reader).await, online("alice"));
    assert_eq!(tidings().await, online("alice"));

    let (thaw, frozen) = mpsc::channel();
    stop.send(frozen).unwrap();
    assert_eq!(next(&mut reader).await, offline("bob"), "its lease ends");
    drop(alice);
    assert_eq!(next(&mut reader).await, offline("alice"));
    thaw.send(()).unwrap();
    assert_eq!(next(&mut reader).await, online("bob"));
    assert_eq!(tidings().await, offline("alice"));
    let _carol = a.client("carol").await;
    assert_eq!(tidings().await, online("carol"));
    assert_eq!(next(&mut reader).await, online("carol"));
    drop(stop);
    process.join().unwrap();
}
