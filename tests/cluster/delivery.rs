//! Who gets what, and how often (rows D1 to D10).

use std::error::Error;
use std::pin::pin;
use std::time::Duration;

use axum_cluster::{Close, InvalidId, QueryErrorKind, SendError, SendErrorKind};
use futures::FutureExt;
use futures::future::join_all;

use crate::support::client::{Event, text};
use crate::support::node::{NEVER, id_of};
use crate::support::proxy::Proxy;
use crate::support::{Lab, TestNode};

on_every_bus! {
    every_socket_of_the_user_on_every_node_once
    a_socket_matched_several_ways_gets_one_copy
    many_rooms_in_one_audience_are_one_copy
    text_stays_text_and_binary_binary
    ten_thousand_messages_arrive_in_order
    odd_ids_work_and_never_meet
    unusable_ids_are_refused_where_they_are_used
    local_reaches_only_this_node
    an_audience_nobody_is_in_is_fine
    a_send_right_after_the_upgrade_arrives
    a_close_comes_after_the_message_before_it
    a_close_of_very_many_comes_after_the_message_before_it
    commands_keep_their_place_among_sends
    exceptions_are_respected_everywhere
    one_socket_is_reached_from_anywhere
    rooms_are_joined_and_left
    presence_is_known_everywhere
}

on_every_topology! {
    a_union_of_topics_anywhere_is_one_copy
    one_sender_s_messages_to_one_audience_come_in_order
    rooms_are_joined_and_left
    presence_is_known_everywhere
}

/// The same, where everything is kept.
mod kept {
    macro_rules! on_every_bus {
        ($($name:ident)*) => {
            mod memory {
                $(#[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    super::super::$name(crate::support::Lab::memory().keeping()).await;
                })*
            }

            mod redis {
                $(#[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    super::super::$name(crate::support::Lab::redis().keeping()).await;
                })*
            }
        };
    }

    on_every_bus! {
        every_socket_of_the_user_on_every_node_once
        a_socket_matched_several_ways_gets_one_copy
        many_rooms_in_one_audience_are_one_copy
        text_stays_text_and_binary_binary
        ten_thousand_messages_arrive_in_order
        odd_ids_work_and_never_meet
        local_reaches_only_this_node
        an_audience_nobody_is_in_is_fine
        a_send_right_after_the_upgrade_arrives
        a_close_comes_after_the_message_before_it
        a_close_of_very_many_comes_after_the_message_before_it
        commands_keep_their_place_among_sends
        exceptions_are_respected_everywhere
        one_socket_is_reached_from_anywhere
        rooms_are_joined_and_left
    }
}

/// D1, with its control: the fence would show a second copy, and a stranger's message.
async fn every_socket_of_the_user_on_every_node_once(lab: Lab) {
    let [a, b, c] = lab.nodes().await;
    let strangers = ["alic", "alicee", "Alice", "lice", "alice "];
    let (mut alices, mut others) = (Vec::new(), Vec::new());
    for node in [&a, &b, &c] {
        alices.push(node.client("alice").await);
        alices.push(node.client("alice").await);
        for stranger in strangers {
            others.push(node.client(stranger).await);
        }
    }
    let delivery = a.broadcaster.to_user("alice").send("hello").await.unwrap();
    assert_eq!((delivery.local(), delivery.nodes()), (2, Some(2)));
    let everybody = a.broadcaster.to_all().send("fence").await.unwrap();
    assert_eq!((everybody.local(), everybody.nodes()), (7, Some(2)));
    for alice in &mut alices {
        assert_eq!(alice.before("fence").await, [text("hello")]);
    }
    for other in &mut others {
        assert_eq!(other.before("fence").await, []);
    }
}

/// D2.
async fn a_socket_matched_several_ways_gets_one_copy(lab: Lab) {
    let [a, b] = lab.nodes().await;
    let mut clients = [a.client("alice").await, b.client("alice").await];
    for client in &mut clients {
        assert_eq!(client.ask("join x").await, "joined");
        assert_eq!(client.ask("join y").await, "joined");
    }
    let mut bystander = b.client("bob").await;
    assert_eq!(bystander.ask("join y").await, "joined");
    let id = id_of(&mut clients[1]).await;
    let audience = a
        .broadcaster
        .to_user("alice")
        .to_room("x")
        .to_room("y")
        .to_socket(id);
    let delivery = audience.to_user("alice").send("once").await.unwrap();
    assert_eq!((delivery.local(), delivery.nodes()), (1, None));
    let users = a.broadcaster.to_users(["alice", "bob", "alice", "nobody"]);
    assert_eq!(users.send("users").await.unwrap().local(), 1);
    a.broadcaster
        .to_all()
        .to_user("alice")
        .to_room("x")
        .send("fence")
        .await
        .unwrap();
    for client in clients.iter_mut().chain([&mut bystander]) {
        assert_eq!(client.before("fence").await, [text("once"), text("users")]);
    }
}

/// A union too large to travel once per topic.
async fn many_rooms_in_one_audience_are_one_copy(lab: Lab) {
    let [a, b] = lab.nodes().await;
    let mut clients = [a.client("alice").await, b.client("bob").await];
    for client in &mut clients {
        for room in ["3", "30"] {
            assert_eq!(client.ask(&format!("join {room}")).await, "joined");
        }
    }
    let first = a.broadcaster.to_room("0");
    let audience = (1..40).fold(first, |audience, n| audience.to_room(n.to_string()));
    assert_eq!(audience.send("once").await.unwrap().local(), 1);
    a.broadcaster.to_all().send("fence").await.unwrap();
    for client in &mut clients {
        assert_eq!(client.before("fence").await, [text("once")]);
    }
}

/// Its topics are at several primaries, where there are any: each has a fence of its own, behind the copies that went there.
async fn a_union_of_topics_anywhere_is_one_copy(lab: Lab) {
    const ROOMS: usize = 12;
    let [a, b] = lab.nodes().await;
    let mut clients = [a.client("alice").await, b.client("alice").await];
    for client in &mut clients {
        for room in 0..ROOMS {
            assert_eq!(client.ask(&format!("join {room}")).await, "joined");
        }
    }
    let alice = a.broadcaster.to_user("alice");
    let union = (0..ROOMS).fold(alice, |union, room| union.to_room(room.to_string()));
    let delivery = union.send("once").await.unwrap();
    assert_eq!(delivery.local(), 1);
    a.broadcaster.to_user("alice").send("fence").await.unwrap();
    for room in 0..ROOMS {
        let room = a.broadcaster.to_room(room.to_string());
        room.send("fence").await.unwrap();
    }
    for client in &mut clients {
        let mut copies = 0;
        for _ in 0..ROOMS + 2 {
            match client.event().await {
                event if event == text("once") => copies += 1,
                event => assert_eq!(event, text("fence")),
            }
        }
        assert_eq!(copies, 1);
    }
}

async fn one_sender_s_messages_to_one_audience_come_in_order(lab: Lab) {
    let [a, b] = lab.nodes().await;
    let mut client = b.client("alice").await;
    for n in 0..200 {
        a.broadcaster
            .to_user("alice")
            .send(format!("{n}"))
            .await
            .unwrap();
    }
    for n in 0..200 {
        assert_eq!(client.event().await, text(&format!("{n}")));
    }
}

/// D3.
async fn text_stays_text_and_binary_binary(lab: Lab) {
    let [a, b] = lab.nodes().await;
    let mut clients = [a.client("alice").await, b.client("alice").await];
    let big: Vec<u8> = (0..1024 * 1024).map(|n: u32| (n % 251) as u8).collect();
    let big_text = "é\0\r\n{".repeat(200_000);
    for bytes in [
        vec![],
        vec![0xff, 0xfe, 0],
        b"{\"text\":\"no\"}".to_vec(),
        big,
    ] {
        a.broadcaster
            .to_user("alice")
            .send(bytes.clone())
            .await
            .unwrap();
        for client in &mut clients {
            assert!(
                client.event().await == Event::Binary(bytes.clone()),
                "{} bytes",
                bytes.len()
            );
        }
    }
    for words in ["", "héllo 🦀", "{\"text\":\"no\"}", &big_text] {
        a.broadcaster.to_user("alice").send(words).await.unwrap();
        for client in &mut clients {
            assert!(client.event().await == text(words), "{} bytes", words.len());
        }
    }
}

/// D4: one after the other, and all at once.
async fn ten_thousand_messages_arrive_in_order(lab: Lab) {
    let a = crate::support::TestNode::start(lab.builder().outbox_messages(20_000).start()).await;
    let b = crate::support::TestNode::start(lab.builder().outbox_messages(20_000).start()).await;
    for node in [&a, &b] {
        node.cluster.ready().await.unwrap();
    }
    let mut clients = [a.client("alice").await, b.client("alice").await];
    for n in 0..2_000 {
        a.broadcaster
            .to_user("alice")
            .send(n.to_string())
            .await
            .unwrap();
    }
    let send = |n: u32| a.broadcaster.to_user("alice").send(n.to_string());
    for result in join_all((2_000..10_000).map(send)).await {
        assert_eq!(result.unwrap().nodes(), Some(1));
    }
    for client in &mut clients {
        for n in 0..10_000 {
            assert_eq!(client.event().await, text(&n.to_string()));
        }
    }
}

/// D4: several write to more sockets than one task writes to, and each socket hears both senders in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_hear_in_order_whoever_writes() {
    const SOCKETS: usize = 1_200;
    const ROUNDS: usize = 10;
    let [a, b] = Lab::memory().nodes().await;
    let mut clients = Vec::new();
    for _ in 0..SOCKETS / 100 {
        clients.extend(join_all((0..100).map(|_| a.client("alice"))).await);
    }
    let (near, far) = (a.broadcaster.to_all(), b.broadcaster.to_all());
    let send_near = async {
        for n in 0..ROUNDS {
            let sent = near.clone().send(format!("near {n}")).await.unwrap();
            assert_eq!(sent.local(), SOCKETS);
        }
    };
    let send_far = async {
        for n in 0..ROUNDS {
            far.clone().send(format!("far {n}")).await.unwrap();
        }
    };
    tokio::join!(send_near, send_far);
    for client in &mut clients {
        let mut next = [0; 2];
        for _ in 0..2 * ROUNDS {
            let Event::Text(heard) = client.event().await else {
                panic!("a text");
            };
            let (from, n) = heard.split_once(' ').unwrap();
            let next = &mut next[usize::from(from == "far")];
            assert_eq!(n, next.to_string(), "{from}");
            *next += 1;
        }
    }
}

/// D5: each id gets exactly its own message, on the same node and on another.
async fn odd_ids_work_and_never_meet(lab: Lab) {
    let [a, b] = lab.nodes().await;
    let long = "x".repeat(256);
    let ids = [
        "*",
        "?",
        "[x]",
        "{tag}",
        "a:b",
        "a",
        "b",
        "constructor",
        "__proto__",
        " ",
        "a b",
        "\r\n",
        "\0",
        "🦀",
        "\u{e9}",
        "e\u{301}",
        "%2A",
        "all",
        "u:a",
        "../x",
        "\\",
        &long,
    ];
    let mut clients = Vec::new();
    for id in ids {
        clients.push((id, a.client(id).await));
        clients.push((id, b.client(id).await));
    }
    for id in ids {
        let delivery = a
            .broadcaster
            .to_user(id)
            .send(format!("for {id}"))
            .await
            .unwrap();
        assert_eq!((delivery.local(), delivery.nodes()), (1, Some(1)), "{id:?}");
    }
    a.broadcaster.to_all().send("fence").await.unwrap();
    for (id, client) in &mut clients {
        assert_eq!(client.before("fence").await, [text(&format!("for {id}"))]);
    }
}

async fn unusable_ids_are_refused_where_they_are_used(lab: Lab) {
    let [a] = lab.nodes().await;
    let long = "x".repeat(257);
    let (to, usable) = (&a.broadcaster, || a.broadcaster.to_user("a"));
    let refused = |error: SendError, part: &str| {
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!((error.local(), error.maybe_sent()), (0, false));
        error.kind()
    };
    for (sent, part) in [
        (to.to_user("").send("x").await, "empty"),
        (to.to_room(&long).to_user("a").send("x").await, "257"),
        (to.to_rooms(["a", ""]).send("x").await, "empty"),
        (to.to_users(["a", &long]).local().send("x").await, "257"),
        (usable().except_user("").send_json("x").await, "empty"),
    ] {
        let error = sent.unwrap_err();
        let source = error.source().unwrap();
        assert!(source.is::<InvalidId>() && source.to_string().contains(part));
        assert_eq!(refused(error, part), SendErrorKind::InvalidId);
    }
    for (done, part) in [
        (usable().join("").await, "empty"),
        (usable().leave(&long).await, "257"),
        (to.to_room("").close(Close::new(4000, "")).await, "empty"),
    ] {
        assert_eq!(refused(done.unwrap_err(), part), SendErrorKind::InvalidId);
    }
    let unsendable = usable().close(Close::new(1006, "")).await.unwrap_err();
    assert_eq!(refused(unsendable, "1006"), SendErrorKind::InvalidClose);
    for error in [
        to.is_online("").await.unwrap_err(),
        to.which_online(["a", &long]).await.unwrap_err(),
        to.to_room("").sockets().await.unwrap_err(),
        usable().except_user(&long).count().await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), QueryErrorKind::InvalidId);
        assert!(error.source().unwrap().is::<InvalidId>());
    }
    for (user, part) in [("", "empty"), (long.as_str(), "257")] {
        let header = crate::support::client::user_header(user);
        let refusal =
            crate::support::Client::try_connect(a.addr, "/ws", &[("x-user", &header)]).await;
        let (status, body) = refusal.unwrap_err();
        assert_eq!(status, 400);
        assert!(body.contains(part), "{body}");
    }
    let mut client = a.client("alice").await;
    assert!(client.ask(&format!("join {long}")).await.contains("257"));
    assert!(client.ask("join ").await.contains("empty"));
    assert_eq!(a.cluster.stats().sockets, 1);
}

/// D6. That no Redis command is sent is shown in `bus`.
async fn local_reaches_only_this_node(lab: Lab) {
    let [a, b] = lab.nodes().await;
    let (mut here, mut there) = (a.client("alice").await, b.client("alice").await);
    let delivery = a
        .broadcaster
        .to_user("alice")
        .local()
        .send("near")
        .await
        .unwrap();
    assert_eq!((delivery.local(), delivery.nodes()), (1, None));
    a.broadcaster.to_user("alice").send("fence").await.unwrap();
    assert_eq!(here.before("fence").await, [text("near")]);
    assert_eq!(there.before("fence").await, []);
}

/// D7.
async fn an_audience_nobody_is_in_is_fine(lab: Lab) {
    let [a, b] = lab.nodes().await;
    let mut client = b.client("alice").await;
    let id = id_of(&mut client).await;
    client.close(1000).await;
    b.until_empty().await;
    for audience in [
        a.broadcaster.to_user("nobody"),
        a.broadcaster.to_room("nowhere"),
    ] {
        let delivery = audience.send("x").await.unwrap();
        assert_eq!((delivery.local(), delivery.nodes()), (0, Some(0)));
    }
    assert_eq!(
        a.broadcaster.to_socket(id).send("x").await.unwrap().local(),
        0
    );
    assert_eq!(
        b.broadcaster.to_socket(id).send("x").await.unwrap().nodes(),
        Some(0)
    );
    let strange = "0123456789abcdef-1".parse().unwrap();
    let delivery = a.broadcaster.to_socket(strange).send("x").await.unwrap();
    assert_eq!((delivery.local(), delivery.nodes()), (0, Some(0)));
    let none: [&str; 0] = [];
    assert_eq!(
        a.broadcaster
            .to_users(none)
            .send("x")
            .await
            .unwrap()
            .local(),
        0
    );
}

/// D9: no sleep, no retry, five hundred times.
async fn a_send_right_after_the_upgrade_arrives(lab: Lab) {
    let [a, b] = lab.nodes().await;
    for n in 0..500 {
        let user = format!("user-{n}");
        let mut client = a.client(&user).await;
        let delivery = b.broadcaster.to_user(user).send("at once").await.unwrap();
        assert_eq!(delivery.nodes(), Some(1));
        assert_eq!(client.event().await, text("at once"));
    }
}

/// D10.
async fn a_close_comes_after_the_message_before_it(lab: Lab) {
    let [a, mut b] = lab.nodes().await;
    for n in 0..50 {
        let user = format!("user-{n}");
        let mut clients = [a.client(&user).await, b.client(&user).await];
        a.broadcaster.to_user(&user).send("first").await.unwrap();
        let delivery = a
            .broadcaster
            .to_user(&user)
            .close(Close::new(4001, "logged out"))
            .await;
        assert_eq!(delivery.unwrap().local(), 1);
        for client in &mut clients {
            assert_eq!(client.event().await, text("first"));
            assert_eq!(
                client.event().await,
                Event::Closed(4001, "logged out".into())
            );
        }
        assert_eq!(
            b.next_end().await.close,
            Some(Close::new(4001, "logged out"))
        );
    }
}

async fn exceptions_are_respected_everywhere(lab: Lab) {
    let [a, b] = lab.nodes().await;
    let mut spared = b.client("alice").await;
    let mut also_spared = b.client("bob").await;
    let mut meant = [
        a.client("alice").await,
        b.client("alice").await,
        a.client("carol").await,
    ];
    let id = id_of(&mut spared).await;
    a.broadcaster
        .to_all()
        .except(id)
        .except_user("bob")
        .send("not you")
        .await
        .unwrap();
    a.broadcaster.to_all().send("fence").await.unwrap();
    for client in &mut meant {
        assert_eq!(client.before("fence").await, [text("not you")]);
    }
    for client in [&mut spared, &mut also_spared] {
        assert_eq!(client.before("fence").await, []);
    }
}

async fn one_socket_is_reached_from_anywhere(lab: Lab) {
    let [a, b] = lab.nodes().await;
    let (mut one, mut other) = (b.client("alice").await, b.client("alice").await);
    let (id, other_id) = (id_of(&mut one).await, id_of(&mut other).await);
    let from_afar = a.broadcaster.to_socket(id).send("from afar").await.unwrap();
    assert_eq!((from_afar.local(), from_afar.nodes()), (0, Some(1)));
    let from_near = b.broadcaster.to_socket(id).send("from near").await.unwrap();
    assert_eq!((from_near.local(), from_near.nodes()), (1, Some(0)));
    a.broadcaster
        .to_socket(id)
        .to_socket(other_id)
        .send("both")
        .await
        .unwrap();
    a.broadcaster.to_all().send("fence").await.unwrap();
    let mut heard = one.before("fence").await;
    heard.sort_by_key(|event| format!("{event:?}"));
    assert_eq!(heard, [text("both"), text("from afar"), text("from near")]);
    assert_eq!(other.before("fence").await, [text("both")]);
}

async fn rooms_are_joined_and_left(lab: Lab) {
    let [a, b] = lab.nodes().await;
    let (mut here, mut there) = (a.client("alice").await, b.client("bob").await);
    for client in [&mut here, &mut there] {
        assert_eq!(client.ask("join lobby").await, "joined");
        assert_eq!(client.ask("join lobby").await, "joined");
    }
    assert_eq!((a.cluster.stats().rooms, b.cluster.stats().rooms), (1, 1));
    let delivery = a.broadcaster.to_room("lobby").send("hi").await.unwrap();
    assert_eq!((delivery.local(), delivery.nodes()), (1, Some(1)));
    assert_eq!(here.event().await, text("hi"));
    assert_eq!(there.event().await, text("hi"));
    assert_eq!(there.ask("leave lobby").await, "left");
    assert_eq!(there.ask("leave lobby").await, "left");
    assert_eq!(b.cluster.stats().rooms, 0);
    a.broadcaster.to_room("lobby").send("again").await.unwrap();
    a.broadcaster.to_all().send("fence").await.unwrap();
    assert_eq!(here.before("fence").await, [text("again")]);
    assert_eq!(there.before("fence").await, []);
}

async fn presence_is_known_everywhere(lab: Lab) {
    let [a, b] = lab.nodes().await;
    assert!(!a.broadcaster.is_online("alice").await.unwrap());
    let mut client = b.client("alice").await;
    assert!(a.broadcaster.is_online("alice").await.unwrap());
    assert!(b.broadcaster.is_online("alice").await.unwrap());
    assert!(!a.broadcaster.is_online("alic").await.unwrap());
    client.close(1000).await;
    crate::support::until("offline after the linger", async || {
        !a.broadcaster.is_online("alice").await.unwrap()
    })
    .await;
}

/// D8: pub/sub ignores database numbers, so only namespaces separate.
#[tokio::test(flavor = "multi_thread")]
async fn namespaces_on_one_redis_never_meet() {
    let mut lab = Lab::redis();
    let url = lab.server().url();
    let mut nodes = Vec::new();
    for (namespace, database) in [("prod", 0), ("prod", 1), ("staging", 0), ("prod-2", 1)] {
        let cluster = lab
            .builder()
            .redis(format!("{url}/{database}"))
            .namespace(namespace)
            .start();
        cluster.ready().await.unwrap();
        nodes.push(crate::support::TestNode::start(cluster).await);
    }
    let mut clients = Vec::new();
    for node in &nodes {
        clients.push(node.client("alice").await);
    }
    for (n, node) in nodes.iter().enumerate() {
        node.broadcaster
            .to_user("alice")
            .send(format!("from {n}"))
            .await
            .unwrap();
    }
    for (n, node) in nodes.iter().enumerate() {
        node.broadcaster
            .to_all()
            .send(format!("fence {n}"))
            .await
            .unwrap();
    }
    let mut heard = clients[0].before("fence 1").await;
    heard.retain(|event| *event != text("fence 0"));
    assert_eq!(
        heard,
        [text("from 0"), text("from 1")],
        "one namespace, two database numbers"
    );
    assert_eq!(clients[2].before("fence 2").await, [text("from 2")]);
    assert_eq!(clients[3].before("fence 3").await, [text("from 3")]);
}

/// The copies of a union come over a slow link, and between them thousands of messages of another node.
#[tokio::test(flavor = "multi_thread")]
async fn a_union_comes_once_whatever_others_send_meanwhile() {
    const ROOMS: usize = 16;
    /// Far more messages than a node could remember one by one.
    const ENOUGH: usize = 10_000;
    let mut lab = Lab::redis();
    let link = Proxy::slow(lab.server().port(), Duration::from_millis(100)).await;
    let slow = lab.builder().redis(link.url()).publish_timeout(NEVER);
    let a = TestNode::start(slow.start()).await;
    let b = lab.node().await;
    let roomy = lab.builder().outbox_messages(1 << 20).outbox_bytes(1 << 30);
    let c = TestNode::start(roomy.start()).await;
    for node in [&a, &c] {
        node.cluster.ready().await.unwrap();
    }
    let mut client = c.client("alice").await;
    for room in 0..ROOMS {
        assert_eq!(client.ask(&format!("join {room}")).await, "joined");
    }
    let socket = id_of(&mut client).await;
    // Read as it comes, so that nothing waits for the client.
    let reading = tokio::spawn(async move {
        let events = client.before("fence").await;
        let unions = events
            .iter()
            .filter(|event| matches!(event, Event::Text(text) if text.len() > 1000));
        (unions.count(), events.len())
    });

    let rooms = (0..ROOMS).fold(a.broadcaster.to_room("0"), |audience, room| {
        audience.to_room(room.to_string())
    });
    let union = rooms.send("x".repeat(200 * 1024));
    let mut union = pin!(union);
    let mut between = 0;
    let sent = loop {
        let batch = (0..256).map(|_| b.broadcaster.to_socket(socket).send("small"));
        tokio::select! {
            sent = &mut union => break sent,
            small = join_all(batch) => between += small.into_iter().map(Result::unwrap).count(),
        }
    };
    sent.unwrap();
    assert!(
        between >= ENOUGH,
        "control: only {between} came between the copies"
    );
    b.broadcaster.to_socket(socket).send("fence").await.unwrap();
    let (unions, events) = reading.await.unwrap();
    assert_eq!(unions, 1);
    assert!(events > between, "{events}");
}

/// The union is large enough to travel in parts, the close travels at once.
async fn a_close_of_very_many_comes_after_the_message_before_it(lab: Lab) {
    let patient = lab.builder().probe_interval(NEVER);
    let [a, b] = [
        TestNode::start(patient.clone().start()).await,
        TestNode::start(patient.start()).await,
    ];
    for node in [&a, &b] {
        node.cluster.ready().await.unwrap();
    }
    let mut client = b.client("last").await;
    let users = (0..5000).map(|user| user.to_string());
    let audience = a.broadcaster.to_users(users.chain(["last".to_owned()]));
    let close = audience.clone().close(Close::new(4001, "bye"));
    let (mut sent, mut closed) = (Box::pin(audience.send("hello")), Box::pin(close));
    // Else the message is out, in its three turns, before anything of the close is queued.
    if let Some(server) = &lab.redis {
        server.freeze();
        assert!((&mut sent).now_or_never().is_none(), "control: it waits");
        assert!((&mut closed).now_or_never().is_none(), "control: it waits");
        server.thaw();
    }
    let (sent, closed) = tokio::join!(sent, closed);
    sent.unwrap();
    assert_eq!(closed.unwrap().nodes(), Some(1));
    assert_eq!(client.event().await, text("hello"));
    assert_eq!(client.event().await, Event::Closed(4001, "bye".into()));
}

/// All are polled at once: what is polled first happens first.
async fn commands_keep_their_place_among_sends(lab: Lab) {
    let [a, b] = lab.nodes().await;
    let mut clients = [a.client("alice").await, b.client("alice").await];
    for round in 0..50 {
        for client in &mut clients {
            assert_eq!(client.ask("join room").await, "joined");
        }
        let room = || a.broadcaster.to_room("room");
        let (member, left, stranger) = tokio::join!(
            room().send("member"),
            room().leave("room"),
            room().send("stranger")
        );
        assert_eq!(left.unwrap().nodes(), Some(1));
        member.unwrap();
        stranger.unwrap();
        a.broadcaster.to_user("alice").send("fence").await.unwrap();
        for client in &mut clients {
            assert_eq!(client.before("fence").await, [text("member")], "{round}");
        }
    }
}
