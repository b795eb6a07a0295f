//! What a socket is in from its first moment, and what changes while it lives.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::Path;
use axum::middleware;
use axum::response::Response;
use axum::{Router, routing::any};
use axum_cluster::testing::App;
use axum_cluster::{
    Close, Cluster, ClusterSocket, DescriptionErrorKind, Move, RoomId, SendErrorKind, Socket,
};
use futures::{FutureExt, StreamExt};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::support::client::{Client, Event, text};
use crate::support::node::{authenticate, serve};
use crate::support::proxy::Proxy;
use crate::support::{Lab, TestNode, soon, until};

on_every_bus! {
    a_room_is_heard_from_the_first_moment
    others_move_a_socket_and_its_handler_is_told
    a_socket_is_described_anew
    all_nodes_see_when_an_identity_ends
    what_need_not_wait_closes_nobody_who_is_slow
    the_nodes_themselves_are_told
}

/// At `/ws/{room}` a socket is in the room, and says hello when its handler begins.
fn rooms(cluster: &Cluster) -> Router {
    async fn ws(Path(room): Path<String>, socket: ClusterSocket) -> Response {
        let socket = socket.join(room.as_str()).join("everywhere");
        socket.on_upgrade(|mut socket| async move {
            let _ = socket.send("hello").await;
            while socket.recv().await.is_some() {}
        })
    }
    let app = Router::new().route("/ws/{room}", any(ws));
    app.layer(cluster.layer())
}

async fn serve_rooms(cluster: &Cluster) -> (SocketAddr, JoinHandle<()>) {
    serve(rooms(cluster).layer(middleware::from_fn(authenticate))).await
}

async fn enter(addr: SocketAddr, room: &str) -> Client {
    let path = format!("/ws/{room}");
    let client = Client::try_connect(addr, &path, &[("x-user", "alice")]).await;
    client.unwrap()
}

async fn a_room_is_heard_from_the_first_moment(mut lab: Lab) {
    let b = lab.node().await;
    // Whatever it asks of Redis takes a while.
    let link = match &lab.redis {
        Some(redis) => Some(Proxy::slow(redis.port(), Duration::from_millis(20)).await),
        None => None,
    };
    let builder = match &link {
        Some(link) => lab.builder().redis(link.url()),
        None => lab.builder(),
    };
    let cluster = builder.start();
    cluster.ready().await.unwrap();
    let (addr, _server) = serve_rooms(&cluster).await;
    for n in 0..5 {
        let room = format!("team-{n}");
        let mut client = enter(addr, &room).await;
        assert_eq!(client.event().await, text("hello"));
        let sent = b.broadcaster.to_room(room.as_str()).send("team").await;
        assert_eq!(sent.unwrap().nodes(), Some(1), "{room}");
        assert_eq!(client.event().await, text("team"));
        let both = b.broadcaster.to_room("everywhere").send("all").await;
        assert_eq!(both.unwrap().nodes(), Some(1));
        assert_eq!(client.event().await, text("all"));
        let roster = b
            .broadcaster
            .to_room(room.as_str())
            .sockets()
            .await
            .unwrap();
        let mut rooms = roster.sockets()[0].rooms.clone();
        rooms.sort_unstable();
        assert_eq!(rooms, ["everywhere", room.as_str()]);
    }
    drop(link);
    if lab.redis.is_some() {
        // Nobody waits for a Redis that is gone.
        lab.server().kill();
        let mut client = enter(addr, "alone").await;
        assert_eq!(client.event().await, text("hello"));
    }
    until("they left", async || cluster.stats().sockets <= 1).await;
}

#[tokio::test]
async fn a_room_that_cannot_be_is_refused_before_the_upgrade() {
    let cluster = Cluster::builder().start();
    let app = App::new(rooms(&cluster));
    let before = cluster.stats();
    let long = format!("/ws/{}", "x".repeat(257));
    let refused = app.socket(long).user("alice").await;
    let refused = refused.expect_err("the name is too long");
    assert_eq!(refused.status(), 400);
    assert!(refused.body().starts_with("room: "), "{refused}");
    let after = cluster.stats();
    assert_eq!(after.ids_refused, before.ids_refused + 1);
    assert_eq!((after.sockets, after.rooms), (0, 0));
}

/// What a handler was asked to tell.
type Told = mpsc::UnboundedReceiver<(Socket, mpsc::UnboundedSender<()>)>;

/// Hands the socket to the test, and waits until that is done with it.
fn handing(cluster: &Cluster) -> (Router, Told) {
    let (hand, handed) = mpsc::unbounded_channel();
    let ws = async move |socket: ClusterSocket| {
        let hand = hand.clone();
        socket.on_upgrade(move |socket| async move {
            let (done, mut until_done) = mpsc::unbounded_channel();
            let _ = hand.send((socket, done));
            until_done.recv().await;
        })
    };
    let app = Router::new().route("/ws", any(ws));
    (app.layer(cluster.layer()), handed)
}

async fn handed(cluster: &Cluster) -> (SocketAddr, JoinHandle<()>, Told) {
    let (app, handed) = handing(cluster);
    let (addr, server) = serve(app.layer(middleware::from_fn(authenticate))).await;
    (addr, server, handed)
}

async fn others_move_a_socket_and_its_handler_is_told(lab: Lab) {
    let b = lab.node().await;
    let cluster = lab.builder().start();
    cluster.ready().await.unwrap();
    let (addr, _server, mut handed) = handed(&cluster).await;
    let mut client = Client::connect(addr, "alice").await;
    let (socket, _done) = soon("the socket", handed.recv()).await.unwrap();
    let mut moves = socket.moves();
    socket.join("own").await.unwrap();
    let to_alice = || b.broadcaster.to_user("alice");
    for _ in 0..2 {
        assert_eq!(to_alice().join("party").await.unwrap().unanswered(), 0);
    }
    to_alice().leave("own").await.unwrap();
    to_alice().leave("nowhere").await.unwrap();
    socket.leave("party");
    let own = socket.broadcaster();
    own.to_user("alice").join("home").await.unwrap();
    let by = b.cluster.id();
    let joined = |room: &str, by| Move::Joined {
        room: room.into(),
        by,
    };
    let left = Move::Left {
        room: "own".into(),
        by,
    };
    for expected in [joined("party", by), left, joined("home", cluster.id())] {
        assert_eq!(soon("a move", moves.next()).await, Some(expected));
    }
    assert_eq!(moves.next().now_or_never(), None, "its own are not told");
    assert_eq!(socket.rooms(), [RoomId::from("home")]);

    to_alice().close(Close::new(4001, "out")).await.unwrap();
    assert_eq!(client.event().await, Event::Closed(4001, "out".into()));
    assert_eq!(soon("the end", moves.next()).await, None);
    assert_eq!(socket.rooms(), [RoomId::from("home")], "as it was");
    assert_eq!(soon("nothing", socket.moves().next()).await, None);
    until("gone", async || cluster.stats().sockets == 0).await;
    assert_eq!(cluster.stats().rooms, 0);
}

#[tokio::test]
async fn who_lags_behind_its_moves_misses_the_oldest() {
    let cluster = Cluster::builder().start();
    let (app, mut handed) = handing(&cluster);
    let app = App::new(app);
    let _client = app.socket("/ws").user("alice").await.unwrap();
    let (socket, _done) = soon("the socket", handed.recv()).await.unwrap();
    let moves = socket.moves();
    for n in 0..100 {
        let alice = cluster.broadcaster().to_user("alice");
        alice.join(n).await.unwrap();
    }
    let read: Vec<Move> = moves.take(64).collect().await;
    assert_eq!(
        read,
        Vec::from_iter((36..100).map(|n| Move::Joined {
            room: n.into(),
            by: cluster.id(),
        }))
    );
    assert_eq!(socket.rooms().len(), 100);
}

#[tokio::test(start_paused = true)]
async fn an_identity_is_renewed_or_ends_at_once() {
    let cluster = Cluster::builder().start();
    let ws = async |socket: ClusterSocket| {
        let soon = SystemTime::now() + Duration::from_secs(60);
        socket.expires_at(soon).on_upgrade(|mut socket| async move {
            while let Some(message) = socket.recv().await {
                let left = message.as_text().and_then(|text| text.parse().ok());
                socket.expires_at(SystemTime::now() + Duration::from_secs(left.unwrap_or(0)));
                let _ = socket.send("renewed").await;
            }
        })
    };
    let app = App::new(Router::new().route("/ws", any(ws)).layer(cluster.layer()));
    let mut renewed = app.socket("/ws").user("alice").await.unwrap();
    renewed.send_text("3600").await;
    assert_eq!(renewed.recv_text().await, "renewed");
    let mut control = app.socket("/ws").user("bob").await.unwrap();
    control.expect_silence(Duration::from_secs(55)).await;
    control.closed_with(4401).await;
    renewed.send_text("3600").await;
    let answer = renewed.recv_text().await;
    assert_eq!(answer, "renewed", "it outlived the other");
    renewed.send_text("now").await;
    let answer = renewed.recv().await;
    assert_eq!(answer.as_text(), Some("renewed"));
    renewed.closed_with(4401).await;
    assert_eq!(cluster.stats().sockets, 0);
    assert_eq!(cluster.stats().closed_expired, 2);
}

async fn a_socket_is_described_anew(lab: Lab) {
    let b = lab.node().await;
    let cluster = lab.builder().start();
    cluster.ready().await.unwrap();
    let (addr, _server, mut handed) = handed(&cluster).await;
    let client = Client::connect(addr, "alice").await;
    let (socket, _done) = soon("the socket", handed.recv()).await.unwrap();
    let described = async || -> Option<Value> {
        let roster = b.broadcaster.to_user("alice").sockets().await.unwrap();
        assert!(roster.is_complete());
        roster.sockets()[0].description.clone()
    };
    assert_eq!(described().await, None);
    let typing = json!({ "typing": true });
    socket.describe(&typing).unwrap();
    assert_eq!(described().await, Some(typing.clone()));

    let too_long = socket.describe("x".repeat(1023)).unwrap_err();
    assert_eq!(too_long.kind(), DescriptionErrorKind::TooLong);
    let deep = (0..101).fold(json!(1), |inner, _| json!([inner]));
    let too_deep = socket.describe(deep).unwrap_err();
    assert_eq!(too_deep.kind(), DescriptionErrorKind::TooDeep);
    assert_eq!(
        described().await,
        Some(typing),
        "what was said before stays"
    );

    drop(client);
    until("it has ended", async || socket.close_reason().is_some()).await;
    until("off every topic", async || cluster.stats().sockets == 0).await;
    let ended = socket.describe(1).unwrap_err();
    assert_eq!(ended.kind(), DescriptionErrorKind::Closed);
}

async fn all_nodes_see_when_an_identity_ends(lab: Lab) {
    let b = lab.node().await;
    let cluster = lab.builder().start();
    cluster.ready().await.unwrap();
    let (addr, _server, mut handed) = handed(&cluster).await;
    let _client = Client::connect(addr, "alice").await;
    let (socket, _done) = soon("the socket", handed.recv()).await.unwrap();
    let own = cluster.broadcaster();
    let seen = async || {
        let mut seen = Vec::new();
        for broadcaster in [&b.broadcaster, &own] {
            let roster = broadcaster.to_user("alice").sockets().await.unwrap();
            assert!(roster.is_complete());
            seen.push(roster.sockets()[0].expires_at);
        }
        seen
    };
    assert_eq!(seen().await, [None, None], "nothing was said");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    for hours in [1, 2] {
        let end = UNIX_EPOCH + Duration::from_secs(now.as_secs() + hours * 3600);
        socket.expires_at(end);
        assert_eq!(seen().await, [Some(end), Some(end)]);
    }
}

/// The end of a socket is read beside what is done to it.
#[tokio::test(flavor = "multi_thread")]
async fn rooms_are_those_of_the_end_however_it_races() {
    let cluster = Cluster::builder().start();
    let (app, mut handed) = handing(&cluster);
    let app = App::new(app);
    for _ in 0..200 {
        let client = app.socket("/ws").user("alice").await.unwrap();
        let (socket, _done) = soon("the socket", handed.recv()).await.unwrap();
        socket.join("lobby").await.unwrap();
        drop(client);
        loop {
            assert_eq!(socket.rooms(), [RoomId::from("lobby")]);
            if cluster.stats().sockets == 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn one_device_is_logged_out_and_the_others_stay() {
    let cluster = Cluster::builder().start();
    let (app, mut handed) = handing(&cluster);
    let app = App::new(app);
    let mut phone = app.socket("/ws").user("alice").await.unwrap();
    let (socket, _done) = soon("the phone", handed.recv()).await.unwrap();
    let mut laptop = app.socket("/ws").user("alice").await.unwrap();
    let to = cluster.broadcaster();
    let logged_out = Close::new(4401, "logged out");
    to.to_socket(socket.id()).close(logged_out).await.unwrap();
    assert_eq!(phone.closed_with(4401).await.reason, "logged out");
    to.to_user("alice").send("still there").await.unwrap();
    assert_eq!(laptop.recv_text().await, "still there");
}

/// Sent from another node to a client that does not read, and far more than its outbox holds.
async fn what_need_not_wait_closes_nobody_who_is_slow(lab: Lab) {
    const SENDS: usize = 300;
    let b = lab.node().await;
    let cluster = lab.builder().outbox_messages(8).start();
    let a = TestNode::start(cluster).await;
    a.cluster.ready().await.unwrap();
    let mut slow = a.client("alice").await;
    assert_eq!(slow.ask("hi").await, "hi");
    let to_alice = || b.broadcaster.to_user("alice");
    let big = |name: &str, n: usize| format!("{name}:{n}:{}", "x".repeat(100_000));
    for n in 0..SENDS {
        to_alice()
            .volatile()
            .send(big("volatile", n))
            .await
            .unwrap();
        to_alice().latest("one").send(big("one", n)).await.unwrap();
        to_alice().latest("two").send(big("two", n)).await.unwrap();
    }
    until("all came", async || {
        let stats = a.cluster.stats();
        stats.delivered + stats.left_out == 3 * SENDS as u64
    })
    .await;
    let stats = a.cluster.stats();
    assert!(
        stats.left_out > 0 && stats.superseded > 0,
        "control: it is slow"
    );
    assert_eq!((stats.slow_closed, stats.dropped), (0, 0));
    to_alice().send("end").await.unwrap();
    let mut read = Vec::new();
    while let Event::Text(text) = slow.event().await
        && text != "end"
    {
        let (name, rest) = text.split_once(':').unwrap();
        let (n, _) = rest.split_once(':').unwrap();
        read.push((name.to_owned(), n.parse::<usize>().unwrap()));
    }
    for (name, counts) in [("volatile", false), ("one", true), ("two", true)] {
        let of: Vec<usize> = read
            .iter()
            .filter(|(of, _)| of == name)
            .map(|(_, n)| *n)
            .collect();
        assert!(of.is_sorted(), "{name}: {of:?}");
        assert!(of.len() < SENDS, "control: it was not sent all");
        assert!(!counts || of.last() == Some(&(SENDS - 1)), "{name}: {of:?}");
    }
    let long = to_alice()
        .latest("x".repeat(257))
        .send("x")
        .await
        .unwrap_err();
    assert_eq!(long.kind(), SendErrorKind::InvalidId);
}

/// Every process hears it once and in order, workers and the sender too, and no socket does.
async fn the_nodes_themselves_are_told(lab: Lab) {
    let [a, b] = lab.nodes().await;
    let mut socket = b.client("alice").await;
    let mut heard = [&a, &b].map(|node| node.cluster.node_messages());
    for n in 0..20 {
        let sent = a.cluster.to_nodes().send(n.to_string()).await.unwrap();
        assert_eq!((sent.local(), sent.nodes()), (1, Some(1)));
    }
    let sent = b.broadcaster.to_nodes().send_json(&[1, 2]).await.unwrap();
    assert_eq!(sent.local(), 1);
    for messages in &mut heard {
        let mut from_a = Vec::new();
        let mut from_b = Vec::new();
        for _ in 0..21 {
            let said = soon("a message", messages.next()).await.unwrap();
            let text = said.message.as_text().unwrap().to_owned();
            match said.from == Some(a.id()) {
                true => from_a.push(text),
                false => from_b.push((said.from, text)),
            }
        }
        assert_eq!(from_a, Vec::from_iter((0..20).map(|n| n.to_string())));
        assert_eq!(from_b, [(Some(b.id()), "[1,2]".to_owned())]);
        assert_eq!(messages.next().now_or_never(), None, "once");
    }
    assert_eq!(
        socket.ask("nothing before this").await,
        "nothing before this"
    );
    if let Some(redis) = &lab.redis {
        redis.cli(&["PUBLISH", "cluster:nodes", r#"{"text": "from outside"}"#]);
        for messages in &mut heard {
            let said = soon("the foreign one", messages.next()).await.unwrap();
            assert_eq!(
                (said.from, said.message.as_text()),
                (None, Some("from outside"))
            );
        }
    }
    a.cluster.shutdown(Duration::ZERO).await;
    let late = a.cluster.to_nodes().send("late").await.unwrap_err();
    assert_eq!(late.kind(), SendErrorKind::Down);
}

#[tokio::test]
async fn who_lags_behind_the_messages_to_nodes_loses_the_oldest_counted() {
    let cluster = Cluster::builder().start();
    let messages = cluster.node_messages();
    let prompt = cluster.node_messages();
    for n in 0..300 {
        cluster.to_nodes().send(n.to_string()).await.unwrap();
    }
    assert_eq!(cluster.stats().node_messages_lost, 2 * (300 - 256));
    assert_eq!((messages.lost(), prompt.lost()), (300 - 256, 300 - 256));
    let later = cluster.node_messages();
    cluster.to_nodes().send("300").await.unwrap();
    assert_eq!((messages.lost(), later.lost()), (301 - 256, 0), "its own");
    let read: Vec<String> = messages
        .take(256)
        .map(|said| said.message.as_text().unwrap().to_owned())
        .collect()
        .await;
    assert_eq!(read, Vec::from_iter((45..301).map(|n| n.to_string())));
}
