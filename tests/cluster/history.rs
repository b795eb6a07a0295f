//! What is kept of what is sent, and who gets it (rows H12 to H18, H21, H22, H29).

use std::time::Duration;

use axum_cluster::{Broadcaster, Close, History, QueryErrorKind, SendErrorKind};

use crate::support::client::{Event, text};
use crate::support::node::id_of;
use crate::support::proxy::Proxy;
use crate::support::{Lab, RedisServer, TestNode, keeping, until};

async fn nodes<const N: usize>(lab: &Lab) -> [TestNode; N] {
    let mut nodes = Vec::new();
    for _ in 0..N {
        let node = TestNode::start(keeping(lab.builder()).start()).await;
        node.cluster.ready().await.unwrap();
        nodes.push(node);
    }
    nodes.try_into().unwrap()
}

async fn texts(broadcaster: &Broadcaster, user: &str) -> Vec<String> {
    let kept = broadcaster.to_user(user).history().await.unwrap();
    let texts = kept.messages.iter().filter_map(|message| message.as_text());
    texts.map(str::to_owned).collect()
}

on_every_bus! {
    what_is_kept_reaches_every_socket_once
    whoever_is_excepted_gets_nothing_of_what_is_kept
    all_sockets_get_what_is_kept_in_one_order
    the_history_of_an_audience_is_what_was_sent_to_it
    what_is_not_kept_is_in_no_history
    a_sender_that_does_not_keep_is_counted
    two_namespaces_keep_apart
    a_close_ends_every_socket_once_and_is_no_message
    a_large_union_comes_once_and_is_in_the_history_of_each_room
}

/// The same, where several Redises share the topics.
mod several {
    use axum_cluster::Backend;

    use crate::support::redis::redis_cluster::RedisCluster;
    use crate::support::{Lab, RedisServer};

    macro_rules! on_several {
        ($($name:ident)*) => {
            mod cluster {
                $(#[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    let cluster = super::RedisCluster::start(3, 0);
                    let backend = super::Backend::redis(cluster.url()).unwrap();
                    super::super::$name(super::lab(backend)).await;
                })*
            }

            mod shards {
                $(#[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    let servers = [(); 3].map(|()| super::RedisServer::start());
                    let urls = servers.each_ref().map(super::RedisServer::url);
                    let backend = super::Backend::shards(urls).unwrap();
                    super::super::$name(super::lab(backend)).await;
                })*
            }
        };
    }

    fn lab(backend: Backend) -> Lab {
        Lab::on(backend, "cluster")
    }

    on_several! {
        all_sockets_get_what_is_kept_in_one_order
        the_history_of_an_audience_is_what_was_sent_to_it
        a_sender_that_does_not_keep_is_counted
        two_namespaces_keep_apart
        a_close_ends_every_socket_once_and_is_no_message
        a_union_over_several_redises_comes_once
        a_large_union_comes_once_and_is_in_the_history_of_each_room
    }
}

/// It is kept once for all rooms, of each clock.
async fn a_large_union_comes_once_and_is_in_the_history_of_each_room(lab: Lab) {
    const ROOMS: usize = 600;
    let [a, b] = nodes(&lab).await;
    let mut clients = [a.client("alice").await, b.client("alice").await];
    for client in &mut clients {
        for room in [0, 7, ROOMS - 1] {
            assert_eq!(client.ask(&format!("join {room}")).await, "joined");
        }
    }
    let room = |n: usize| a.broadcaster.to_room(n.to_string());
    room(7).send("before").await.unwrap();
    let rooms = || (0..ROOMS).map(|n| n.to_string());
    let union = a.broadcaster.to_rooms(rooms()).to_user("bob");
    assert_eq!(union.send("union").await.unwrap().local(), 1);
    let union = a.broadcaster.to_rooms(rooms()).except_user("alice");
    assert_eq!(union.send("not alice").await.unwrap().local(), 0);
    room(7).send("after").await.unwrap();
    for client in &mut clients {
        let mut heard = [
            client.event().await,
            client.event().await,
            client.event().await,
        ];
        // Whatever comes twice would come before the answer.
        assert_eq!(client.ask("join last").await, "joined");
        heard.sort_unstable_by_key(|event| format!("{event:?}"));
        assert_eq!(heard, ["after", "before", "union"].map(text));
    }
    let texts = async |room: usize| {
        let kept = b
            .broadcaster
            .to_room(room.to_string())
            .history()
            .await
            .unwrap();
        let texts = kept.messages.iter().filter_map(|message| message.as_text());
        texts.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(texts(7).await, ["before", "union", "not alice", "after"]);
    for room in (0..ROOMS).step_by(20).filter(|room| *room != 7) {
        assert_eq!(texts(room).await, ["union", "not alice"], "{room}");
    }
    assert_eq!(texts(ROOMS).await, [""; 0]);
    assert_eq!(self::texts(&b.broadcaster, "bob").await, ["union"]);
}

/// In one step, in which Redis serves nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn no_union_fills_more_lists_at_once_than_a_small_one() {
    let lab = Lab::redis();
    let redis = lab.redis.as_ref().unwrap();
    let [a, b] = nodes(&lab).await;
    let mut client = b.client("alice").await;
    assert_eq!(client.ask("join 7").await, "joined");
    let filled = || redis.calls("rpush") + redis.calls("rpushx");
    let send = async |rooms: usize, text: String| {
        let before = filled();
        let rooms = (0..rooms).map(|n| n.to_string());
        a.broadcaster.to_rooms(rooms).send(text).await.unwrap();
        filled() - before
    };
    assert_eq!(
        redis.cli(&["CONFIG", "SET", "slowlog-log-slower-than", "2000"]),
        "OK"
    );
    let small = send(60, "small".into()).await;
    assert!(small >= 60, "control: {small}");
    let copied = send(60, "x".repeat(64 * 1024)).await;
    let many = send(2000, "large".into()).await;
    println!(
        "{small}, {copied} and {many} lists; {} slower than 2 ms",
        redis.cli(&["SLOWLOG", "LEN"])
    );
    assert!(
        copied <= 2 && many <= 2,
        "{copied} of 64 KiB, {many} of 2,000"
    );
    for length in [5, 64 * 1024, 5] {
        let Event::Text(heard) = client.event().await else {
            panic!("it ended")
        };
        assert_eq!(heard.len(), length);
    }
    let kept = b.broadcaster.to_room("7").history().await.unwrap();
    assert_eq!(kept.messages.len(), 3);
}

/// Its copies come by several links: none has a place among the others.
async fn a_union_over_several_redises_comes_once(lab: Lab) {
    let [a, b] = nodes(&lab).await;
    let mut clients = [a.client("alice").await, b.client("alice").await];
    for client in &mut clients {
        for room in 0..20 {
            assert_eq!(client.ask(&format!("join {room}")).await, "joined");
        }
    }
    let mut audience = a.broadcaster.to_user("alice");
    for room in 0..20 {
        audience = audience.to_room(room.to_string());
    }
    for n in 0..20 {
        let sent = audience.clone().send(n.to_string()).await.unwrap();
        assert_eq!((sent.local(), sent.position()), (1, None));
    }
    for client in &mut clients {
        let mut heard = Vec::new();
        for _ in 0..20 {
            heard.push(client.event().await);
        }
        // Whatever comes twice would come before the answer.
        assert_eq!(client.ask("join last").await, "joined");
        heard.sort_unstable_by_key(|event| format!("{event:?}"));
        heard.dedup();
        assert_eq!(heard.len(), 20);
    }
    for room in 0..20 {
        let kept = b.broadcaster.to_room(room.to_string()).history().await;
        assert_eq!(kept.unwrap().messages.len(), 20);
    }
}

async fn what_is_kept_reaches_every_socket_once(lab: Lab) {
    let [a, b] = nodes(&lab).await;
    let mut clients = Vec::new();
    for node in [&a, &a, &b] {
        let mut client = node.client("alice").await;
        assert_eq!(client.ask("join x").await, "joined");
        clients.push(client);
    }
    let socket = id_of(&mut clients[0]).await;
    let one = a.broadcaster.to_user("alice").send("one").await.unwrap();
    assert_eq!((one.local(), one.nodes()), (2, Some(1)));
    assert!(one.position().is_some());
    let audience = a.broadcaster.to_user("alice").to_room("x").to_all();
    let union = audience.send("all of it").await.unwrap();
    assert_eq!(union.local(), 2);
    let audience = b.broadcaster.to_user("alice").to_room("x").to_room("y");
    assert_eq!(audience.send("union").await.unwrap().local(), 1);
    let audience = a.broadcaster.to_socket(socket).to_room("x");
    assert_eq!(audience.send("socket").await.unwrap().local(), 2);
    let rooms = (0..40).map(|n| n.to_string()).chain(["x".to_owned()]);
    let audience = b.broadcaster.to_rooms(rooms).to_user("alice");
    assert_eq!(audience.send("many rooms").await.unwrap().local(), 1);
    let users = (0..200).map(|n| n.to_string()).chain(["alice".to_owned()]);
    let users = b.broadcaster.to_users(users).send("users").await.unwrap();
    assert_eq!(users.local(), 1);
    b.broadcaster.to_all().send("fence").await.unwrap();
    let expected = ["one", "all of it", "union", "socket", "many rooms", "users"];
    for client in &mut clients {
        assert_eq!(client.before("fence").await, expected.map(text));
    }
    let alice = ["one", "union", "many rooms", "users"];
    assert_eq!(texts(&b.broadcaster, "alice").await, alice);
    assert_eq!(texts(&a.broadcaster, "17").await, ["users"]);
    let room = a.broadcaster.to_room("39").history().await.unwrap();
    assert_eq!(room.messages, ["many rooms".into()]);
}

async fn whoever_is_excepted_gets_nothing_of_what_is_kept(lab: Lab) {
    let [a, b] = nodes(&lab).await;
    let mut clients = [a.client("alice").await, b.client("alice").await];
    let mut bob = a.client("bob").await;
    let speaker = id_of(&mut clients[0]).await;
    let audience = a.broadcaster.to_all();
    let except = audience.clone().except(speaker);
    assert_eq!(except.send("not the speaker").await.unwrap().local(), 1);
    let except = audience.except_user("alice");
    assert_eq!(except.send("not alice").await.unwrap().local(), 1);
    a.broadcaster.to_all().send("fence").await.unwrap();
    assert_eq!(clients[0].before("fence").await, []);
    assert_eq!(clients[1].before("fence").await, [text("not the speaker")]);
    let both = [text("not the speaker"), text("not alice")];
    assert_eq!(bob.before("fence").await, both);
}

async fn all_sockets_get_what_is_kept_in_one_order(lab: Lab) {
    let [a, b] = nodes(&lab).await;
    let mut clients = [a.client("alice").await, b.client("alice").await];
    let sends = (0..100).map(|n| {
        let node = [&a, &b][n % 2];
        let room = node.broadcaster.to_user("alice");
        room.send(n.to_string())
    });
    let sent = futures::future::join_all(sends).await;
    assert!(sent.iter().all(Result::is_ok), "{sent:?}");
    a.broadcaster.to_user("alice").send("fence").await.unwrap();
    let first = clients[0].before("fence").await;
    assert_eq!(first.len(), 100);
    assert_eq!(clients[1].before("fence").await, first);
}

async fn the_history_of_an_audience_is_what_was_sent_to_it(lab: Lab) {
    let small = History {
        messages: 3,
        ..History::default()
    };
    let builder = lab.builder().room_history(small);
    let node = TestNode::start(builder.start()).await;
    node.cluster.ready().await.unwrap();
    let room = node.broadcaster.to_room("x");
    assert!(room.clone().history().await.unwrap().messages.is_empty());
    for n in 0..10 {
        room.clone().send(n.to_string()).await.unwrap();
    }
    room.clone().send(vec![0, 255]).await.unwrap();
    let kept = room.clone().history().await.unwrap();
    assert_eq!(kept.messages, ["8".into(), "9".into(), vec![0, 255].into()]);
    let before = kept.position;
    assert_ne!(room.clone().history().await.unwrap().position, before);
    for audience in [node.broadcaster.to_user("alice"), room.to_room("y")] {
        let error = audience.history().await.unwrap_err();
        assert_eq!(error.kind(), QueryErrorKind::NotKept, "{error}");
    }
    let alice = node.broadcaster.to_user("alice").send("hi").await.unwrap();
    assert_eq!(alice.position(), None);
}

/// H21, with the control that it was heard.
async fn what_is_not_kept_is_in_no_history(lab: Lab) {
    let [a, b] = nodes(&lab).await;
    let mut clients = [a.client("alice").await, b.client("alice").await];
    let alice = a.broadcaster.to_user("alice");
    let delivery = alice.clone().ephemeral().send("typing").await.unwrap();
    assert_eq!((delivery.local(), delivery.nodes()), (1, Some(1)));
    assert_eq!(delivery.position(), None);
    alice.clone().local().send("here").await.unwrap();
    alice.send("kept").await.unwrap();
    if let Some(redis) = &lab.redis {
        redis.cli(&["PUBLISH", "cluster:u:alice", r#"{"text":"foreign"}"#]);
        assert_eq!(clients[0].before("foreign").await.len(), 3);
        let heard = clients[1].before("foreign").await;
        assert_eq!(heard, [text("typing"), text("kept")]);
    }
    assert_eq!(texts(&b.broadcaster, "alice").await, ["kept"]);
    assert_eq!(b.cluster.stats().history_unkept, 0);
}

/// H22; that its name is in the log is tested where logs are.
async fn a_sender_that_does_not_keep_is_counted(lab: Lab) {
    let [node] = nodes(&lab).await;
    let mut client = node.client("alice").await;
    let sender = lab.node().await;
    let alice = sender.broadcaster.to_user("alice");
    alice.clone().ephemeral().send("typing").await.unwrap();
    alice.clone().send("hello").await.unwrap();
    assert_eq!(client.event().await, text("typing"));
    assert_eq!(client.event().await, text("hello"));
    assert_eq!(node.cluster.stats().history_unkept, 1);
    assert!(texts(&node.broadcaster, "alice").await.is_empty());
}

/// H29.
async fn two_namespaces_keep_apart(lab: Lab) {
    let [a] = nodes(&lab).await;
    let builder = keeping(lab.builder()).namespace("other");
    let other = TestNode::start(builder.start()).await;
    other.cluster.ready().await.unwrap();
    let mut client = other.client("alice").await;
    a.broadcaster.to_user("alice").send("a").await.unwrap();
    other.broadcaster.to_user("alice").send("b").await.unwrap();
    assert_eq!(client.event().await, text("b"));
    assert_eq!(texts(&a.broadcaster, "alice").await, ["a"]);
    assert_eq!(texts(&other.broadcaster, "alice").await, ["b"]);
}

async fn a_close_ends_every_socket_once_and_is_no_message(lab: Lab) {
    let [a, b] = nodes(&lab).await;
    let mut clients = [a.client("alice").await, b.client("alice").await];
    let alice = a.broadcaster.to_user("alice");
    alice.clone().send("last").await.unwrap();
    let outcome = alice.close(Close::new(4001, "logged out")).await.unwrap();
    assert_eq!((outcome.local(), outcome.nodes()), (1, Some(1)));
    for client in &mut clients {
        assert_eq!(client.event().await, text("last"));
        let closed = Event::Closed(4001, "logged out".to_owned());
        assert_eq!(client.event().await, closed);
    }
    assert_eq!(texts(&b.broadcaster, "alice").await, ["last"]);
    let mut newcomer = b.client("alice").await;
    a.broadcaster.to_user("alice").send("new").await.unwrap();
    assert_eq!(newcomer.event().await, text("new"));
}

/// Says that it failed, and certainly was not sent.
async fn refused(node: &TestNode, user: &str, words: &str) {
    let sent = node.broadcaster.to_user(user).send("refused").await;
    let error = sent.unwrap_err();
    assert_eq!(error.kind(), SendErrorKind::Bus);
    assert!(error.to_string().contains(words), "{words}: {error}");
    assert!(!error.maybe_sent(), "{error}");
    assert_eq!(error.local(), 1, "whoever is here has it at once");
}

/// H16: only what is refused fails, its sender's own sockets have it at once, and everything else goes on.
#[tokio::test(flavor = "multi_thread")]
async fn what_redis_does_not_keep_fails_alone() {
    let lab = Lab::redis();
    let redis = lab.redis.as_ref().unwrap();
    let [a, b] = nodes(&lab).await;
    let mut clients = [
        a.client("alice").await,
        a.client("bob").await,
        b.client("alice").await,
    ];
    let kept = async |expected: &[&str]| assert_eq!(texts(&a.broadcaster, "bob").await, expected);

    assert_eq!(redis.cli(&["SET", "cluster:h:u:alice", "not a list"]), "OK");
    refused(&a, "alice", "another program uses a key").await;
    let both = a.broadcaster.to_users(["alice", "bob"]).send("half").await;
    assert!(both.unwrap_err().maybe_sent(), "of two, one is kept");
    kept(&["half"]).await;
    redis.cli(&["DEL", "cluster:h:u:alice"]);

    assert_eq!(redis.cli(&["CONFIG", "SET", "maxmemory", "1"]), "OK");
    refused(&a, "alice", "OOM").await;
    let typing = a
        .broadcaster
        .to_user("bob")
        .ephemeral()
        .send("typing")
        .await;
    assert!(typing.is_ok(), "what is not kept takes no memory");
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);

    redis.cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    refused(&a, "alice", "NOREPLICAS").await;
    redis.cli(&["CONFIG", "SET", "min-replicas-to-write", "0"]);

    redis.cli(&["ACL", "SETUSER", "default", "-rpush", "-rpushx"]);
    refused(&a, "alice", "grant it: ACL SETUSER").await;
    redis.cli(&["ACL", "SETUSER", "default", "-evalsha"]);
    refused(&a, "alice", "+evalsha").await;
    redis.cli(&["ACL", "SETUSER", "default", "+@all"]);

    a.broadcaster.to_user("bob").send("fence").await.unwrap();
    kept(&["half", "fence"]).await;
    assert_eq!(
        clients[1].before("fence").await,
        [text("half"), text("typing")]
    );
    a.broadcaster.to_user("alice").send("fence").await.unwrap();
    let at_once = [
        "refused", "half", "refused", "refused", "refused", "refused",
    ];
    assert_eq!(clients[0].before("fence").await, at_once.map(text));
    assert_eq!(clients[2].before("fence").await, []);
}

/// H17.
#[tokio::test(flavor = "multi_thread")]
async fn scripts_that_redis_forgets_again_and_again_cost_nothing() {
    let lab = Lab::redis();
    let redis = lab.redis.as_ref().unwrap();
    let [a, b] = nodes(&lab).await;
    let mut client = b.client("alice").await;
    // A client that reads nothing for long is closed.
    let reading = tokio::spawn(async move { client.before("fence").await });
    let flushing = async {
        loop {
            redis.cli(&["SCRIPT", "FLUSH"]);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let sending = async {
        for n in 0..2000 {
            a.broadcaster
                .to_user("alice")
                .send(n.to_string())
                .await
                .unwrap();
        }
    };
    tokio::select! {
        () = flushing => {}
        () = sending => {}
    }
    a.broadcaster.to_user("alice").send("fence").await.unwrap();
    let expected: Vec<Event> = (0..2000).map(|n| text(&n.to_string())).collect();
    let heard = reading.await.unwrap();
    assert!(heard == expected, "each once, in order: {}", heard.len());
    let refused = redis.cli(&["INFO", "errorstats"]);
    assert!(refused.contains("NOSCRIPT"), "control: {refused}");
}

/// Without a history there is no trace of it: no other command, no other byte.
#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_is_kept_redis_is_told_what_it_always_was() {
    let server = RedisServer::start();
    let lab = Lab {
        backend: axum_cluster::Backend::redis(server.url()).unwrap(),
        redis: Some(server),
        ..Lab::memory()
    };
    let redis = lab.redis.as_ref().unwrap();
    let [a, b] = lab.nodes().await;
    let mut client = b.client("alice").await;
    a.broadcaster.to_user("alice").send("hello").await.unwrap();
    a.broadcaster
        .to_user("alice")
        .to_room("x")
        .send("union")
        .await
        .unwrap();
    a.broadcaster
        .to_user("alice")
        .close(Close::new(4000, ""))
        .await
        .unwrap();
    assert_eq!(client.event().await, text("hello"));
    assert!(redis.calls("publish") > 0, "control");
    for command in ["evalsha", "eval", "script|load", "hgetall", "rpush"] {
        assert_eq!(redis.calls(command), 0, "{command}");
    }
    assert_eq!(redis.cli(&["KEYS", "*"]), "");
}

/// What the sender alone can know.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_restart_rolls_back_is_counted_by_its_sender() {
    let mut lab = Lab::redis();
    let [a] = nodes(&lab).await;
    for n in 0..5 {
        a.broadcaster
            .to_user("alice")
            .send(n.to_string())
            .await
            .unwrap();
    }
    assert_eq!(lab.server().cli(&["SAVE"]), "OK");
    for n in 5..12 {
        a.broadcaster
            .to_user("alice")
            .send(n.to_string())
            .await
            .unwrap();
    }
    assert_eq!(texts(&a.broadcaster, "alice").await.len(), 12);
    lab.server().kill();
    lab.server().restart();
    until("it is kept again", async || {
        let sent = a.broadcaster.to_user("alice").send("after").await;
        sent.is_ok()
    })
    .await;
    let kept = texts(&a.broadcaster, "alice").await;
    assert_eq!(kept, ["0", "1", "2", "3", "4", "after"], "control");
    assert_eq!(a.cluster.stats().history_rolled_back, 7);
}

/// H14, without what would send it again.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_failover_without_the_last_moments_loses_is_counted_by_its_sender() {
    let (mut old, new) = (RedisServer::start(), RedisServer::start());
    let follows = |port: u16| new.cli(&["REPLICAOF", "127.0.0.1", &port.to_string()]);
    assert_eq!(follows(old.port()), "OK");
    let proxy = Proxy::to(old.port()).await;
    let backend = axum_cluster::Backend::redis(proxy.url()).unwrap();
    let lab = Lab::on(backend, "cluster").keeping();
    let node = lab.node().await;
    let mut client = node.client("alice").await;
    let alice = || node.broadcaster.to_user("alice");
    let length = |server: &RedisServer| server.cli(&["LLEN", "cluster:h:u:alice"]);
    for n in 0..5 {
        alice().send(n.to_string()).await.unwrap();
    }
    until("it is replicated", async || length(&new) == "5").await;
    assert_eq!(follows(1), "OK");
    for n in 5..12 {
        alice().send(n.to_string()).await.unwrap();
    }
    let heard: Vec<Event> = (0..12).map(|n| text(&n.to_string())).collect();
    assert_eq!(
        (length(&old), length(&new)),
        ("12".into(), "5".into()),
        "control"
    );
    old.kill();
    assert_eq!(new.cli(&["REPLICAOF", "NO", "ONE"]), "OK");
    proxy.lead_to(new.port());
    until("it is kept again", async || {
        alice().send("after").await.is_ok()
    })
    .await;
    let kept = texts(&node.broadcaster, "alice").await;
    assert_eq!(kept, ["0", "1", "2", "3", "4", "after"]);
    assert_eq!(node.cluster.stats().history_rolled_back, 7);
    node.until_up().await;
    alice().send("fence").await.unwrap();
    let before = client.before("fence").await;
    assert_eq!(before[..12], heard, "what was lost there was heard");
}
