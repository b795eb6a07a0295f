//! How sockets begin and end (rows L1 to L7).

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::extract::ws::WebSocketUpgrade;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::{Router, middleware, routing::any};
use axum_cluster::testing::App;
use axum_cluster::{
    Broadcaster, Close, Cluster, ClusterSocket, Health, SendError, Unauthenticated,
};
use futures::StreamExt;
use futures::future::join3;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::support::client::{Event, text};
use crate::support::node::{authenticate, serve};
use crate::support::{Client, Lab, TestNode, soon, until};

on_every_bus! {
    one_of_two_tabs_closes
    the_last_socket_leaves_nothing
    a_new_socket_meets_the_last_ones_end_and_is_never_deaf
    every_kind_of_end_unregisters_and_the_node_lives
    a_client_lost_during_the_handshake_is_unregistered
    a_hanging_handler_does_not_keep_its_socket_registered
    what_is_read_of_a_node_ends_with_its_shutdown
}

/// L1.
async fn one_of_two_tabs_closes(lab: Lab) {
    let [a, b] = lab.nodes().await;
    let (mut one, mut two) = (a.client("alice").await, a.client("alice").await);
    one.close(1000).await;
    until("one socket is left", async || {
        a.cluster.stats().sockets == 1
    })
    .await;
    assert_eq!(
        a.broadcaster
            .to_user("alice")
            .send("here")
            .await
            .unwrap()
            .local(),
        1
    );
    assert_eq!(
        b.broadcaster
            .to_user("alice")
            .send("there")
            .await
            .unwrap()
            .nodes(),
        Some(1)
    );
    assert_eq!(two.event().await, text("here"));
    assert_eq!(two.event().await, text("there"));
}

/// L2. The subscription outlives the socket for the linger, and no longer.
async fn the_last_socket_leaves_nothing(mut lab: Lab) {
    let [a, b] = lab.nodes().await;
    let mut client = a.client("alice").await;
    assert_eq!(client.ask("join lobby").await, "joined");
    assert_eq!(
        b.broadcaster
            .to_user("alice")
            .send("x")
            .await
            .unwrap()
            .nodes(),
        Some(1)
    );
    client.close(1000).await;
    a.until_empty().await;
    let stats = a.cluster.stats();
    assert_eq!((stats.sockets, stats.users, stats.rooms), (0, 0, 0));
    for audience in [
        b.broadcaster.to_user("alice"),
        b.broadcaster.to_room("lobby"),
        b.broadcaster.to_all(),
    ] {
        until("nobody listens", async || {
            audience.clone().send("x").await.unwrap().nodes() == Some(0)
        })
        .await;
    }
    if lab.redis.is_some() {
        let channels = lab.server().cli(&["PUBSUB", "CHANNELS"]);
        let left: Vec<&str> = channels
            .lines()
            .filter(|channel| !channel.contains(":n:") && !channel.ends_with(":nodes"))
            .collect();
        assert_eq!(left, [""; 0], "only the nodes' own channels are left");
    }
}

/// L4: the race of the last socket's end with a new one's beginning, with no linger to hide it.
async fn a_new_socket_meets_the_last_ones_end_and_is_never_deaf(lab: Lab) {
    let a = TestNode::start(lab.builder().linger(Duration::ZERO).start()).await;
    let b = TestNode::start(lab.builder().linger(Duration::ZERO).start()).await;
    for node in [&a, &b] {
        node.cluster.ready().await.unwrap();
    }
    let churn = |task: u32| {
        let (addr, broadcaster) = (a.addr, b.broadcaster.clone());
        async move {
            let user = format!("user-{task}");
            let mut last = Client::connect(addr, &user).await;
            for n in 0..250 {
                let ((), mut next) = tokio::join!(last.close(1000), Client::connect(addr, &user));
                let delivery = broadcaster
                    .to_user(&user)
                    .send(n.to_string())
                    .await
                    .unwrap();
                assert_eq!(delivery.nodes(), Some(1), "registered but deaf");
                assert_eq!(next.event().await, text(&n.to_string()));
                last = next;
            }
        }
    };
    futures::future::join_all((0..4).map(churn)).await;
}

/// L5, with the reason each ending gives.
async fn every_kind_of_end_unregisters_and_the_node_lives(lab: Lab) {
    let [mut a] = lab.nodes().await;
    let cases = [
        ("return", Event::Closed(1000, String::new())),
        ("panic", Event::Closed(1011, "the handler panicked".into())),
        ("close 4000", Event::Closed(4000, "asked".into())),
    ];
    for (command, expected) in cases {
        let mut client = a.client("alice").await;
        client.send(command).await;
        assert_eq!(client.event().await, expected, "{command}");
        a.until_empty().await;
    }
    let mut leaving = a.client("bob").await;
    leaving.close(4321).await;
    let close = Some(Close::new(4321, "bye"));
    assert_eq!(end_of(&mut a, "bob").await, close);

    drop(a.client("carol").await);
    let close = end_of(&mut a, "carol").await;
    assert_eq!(close.map(|close| close.code.as_u16()), Some(1006));
    a.until_empty().await;

    let mut client = a.client("alice").await;
    assert_eq!(client.ask("still there?").await, "still there?");
}

/// How this user's handler ends; others may end meanwhile.
async fn end_of(node: &mut TestNode, user: &str) -> Option<Close> {
    loop {
        let end = node.next_end().await;
        if end.user == user {
            return end.close;
        }
    }
}

/// L6: the connection ends before the client has read the answer.
async fn a_client_lost_during_the_handshake_is_unregistered(lab: Lab) {
    let [a] = lab.nodes().await;
    for _ in 0..50 {
        let mut stream = TcpStream::connect(a.addr).await.unwrap();
        stream
            .write_all(&handshake(a.addr.to_string().as_str(), "GET"))
            .await
            .unwrap();
        drop(stream);
    }
    let mut control = a.client("bob").await;
    assert_eq!(control.ask("hello").await, "hello");
    until("only bob is left", async || a.cluster.stats().sockets == 1).await;
    assert_eq!(
        a.broadcaster
            .to_user("alice")
            .send("x")
            .await
            .unwrap()
            .local(),
        0
    );
}

/// L5: the socket sits in a task that is aborted, in a handler that never returns.
#[tokio::test]
async fn a_socket_dropped_in_the_middle_of_an_await_is_closed() {
    async fn ws(socket: ClusterSocket) -> axum::response::Response {
        socket.on_upgrade(|mut socket| async move {
            socket.recv().await;
            let holding = tokio::spawn(async move { socket.recv().await });
            tokio::task::yield_now().await;
            holding.abort();
            std::future::pending().await
        })
    }
    let cluster = Lab::memory().builder().start();
    let app = Router::new().route("/ws", any(ws)).layer(cluster.layer());
    let mut alice = App::new(app).socket("/ws").user("alice").await.unwrap();
    assert_eq!(cluster.stats().sockets, 1, "control");
    alice.send_text("drop it").await;
    alice.closed_with(1000).await;
    assert_eq!(cluster.stats().sockets, 0, "it is unregistered");
}

/// L6: the client is gone before the answer is written, so that there never is a stream.
#[tokio::test]
async fn a_client_that_leaves_before_its_answer_is_unregistered() {
    async fn ws(socket: ClusterSocket) -> axum::response::Response {
        socket.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
    }
    let cluster = Lab::memory().builder().start();
    let gate = Arc::new(Notify::new());
    let held_back = gate.clone();
    let hold_back = move |request: Request, next: Next| {
        let gate = held_back.clone();
        async move {
            let response = next.run(request).await;
            gate.notified().await;
            response
        }
    };
    let app = Router::new()
        .route("/ws", any(ws))
        .layer(cluster.layer())
        .layer(middleware::from_fn(authenticate))
        .layer(middleware::from_fn(hold_back));
    let (addr, _server) = serve(app).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = handshake(&addr.to_string(), "GET");
    stream.write_all(&request).await.unwrap();
    until("control: it is registered", async || {
        cluster.stats().sockets == 1
    })
    .await;
    // Resets the connection.
    stream.set_zero_linger().unwrap();
    drop(stream);
    let dropped = Instant::now();
    until("it is unregistered", async || cluster.stats().sockets == 0).await;
    assert!(
        dropped.elapsed() < Duration::from_secs(4),
        "noticed, and not given up after 5 s"
    );
    gate.notify_one();

    gate.notify_one();
    let mut control = Client::connect(addr, "bob").await;
    control.send("hello").await;
    assert_eq!(cluster.stats().sockets, 1);
}

fn handshake(host: &str, method: &str) -> Vec<u8> {
    format!(
        "{method} /ws HTTP/1.1\r\nHost: {host}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nx-user: alice\r\n\r\n"
    )
    .into_bytes()
}

/// A handler that never comes back holds its own task, but no place and no subscription.
async fn a_hanging_handler_does_not_keep_its_socket_registered(lab: Lab) {
    let [a] = lab.nodes().await;
    let mut client = a.client("alice").await;
    client.send("sleep").await;
    client.close(1000).await;
    a.until_empty().await;
}

/// Whoever reads may hold a handle himself.
async fn what_is_read_of_a_node_ends_with_its_shutdown(lab: Lab) {
    let node = lab.node().await;
    let (cluster, broadcaster) = (&node.cluster, &node.broadcaster);
    let read = || {
        let presence = broadcaster.presence().collect::<Vec<_>>();
        let gaps = cluster.gaps().collect::<Vec<_>>();
        join3(cluster.health_changes().collect(), gaps, presence)
    };
    let early = read();
    cluster.shutdown(Duration::ZERO).await;
    let (health, gaps, presence): (Vec<Health>, _, _) = soon("the end", early).await;
    assert_eq!(health.last(), Some(&Health::Down));
    assert!(gaps.is_empty() && presence.is_empty());
    let (health, gaps, presence) = soon("the end at once", read()).await;
    assert_eq!(health, [Health::Down]);
    assert!(gaps.is_empty() && presence.is_empty());
}

/// L7: what is missing is named.
#[tokio::test]
async fn a_missing_layer_is_a_500_that_names_it() {
    async fn ws(socket: ClusterSocket) -> axum::response::Response {
        socket.on_upgrade(|_| async {})
    }
    async fn notify(cluster: Broadcaster) -> Result<(), SendError> {
        cluster.to_all().send("x").await.map(|_| ())
    }
    let app = Router::new()
        .route("/ws", any(ws))
        .route("/notify", any(notify));
    let app = App::new(app);
    for path in ["/ws", "/notify"] {
        let refused = app.socket(path).user("alice").await.unwrap_err();
        assert_eq!(refused.status(), 500);
        assert!(refused.body().contains("ClusterLayer"), "{refused}");
    }
}

#[tokio::test]
async fn a_missing_user_is_closed_with_4403_or_refused_with_401() {
    let own = Unauthenticated::CloseWith(Close::new(4000, "who are you?"));
    // A browser that offers protocols sees the close only when one of them is chosen.
    let cases = [
        (Cluster::builder(), Ok((4403, "authentication required"))),
        (
            Cluster::builder().unauthenticated(own),
            Ok((4000, "who are you?")),
        ),
        (
            Cluster::builder().unauthenticated(Unauthenticated::Reject),
            Err(StatusCode::UNAUTHORIZED),
        ),
        (
            Cluster::builder().protocols(["chat"]),
            Ok((4403, "authentication required")),
        ),
    ];
    for (n, (builder, expected)) in cases.into_iter().enumerate() {
        let cluster = builder.start();
        let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
        let ws = async move |socket: ClusterSocket| {
            let begun = begun.clone();
            socket.on_upgrade(async move |socket| begun.send(socket.user().clone()).unwrap())
        };
        let app = App::new(Router::new().route("/ws", any(ws)).layer(cluster.layer()));
        let offered = app.socket("/ws");
        let offered = offered.header("sec-websocket-protocol", "chat, bearer, s3cret");
        let ended = match offered.await {
            Ok(mut client) => {
                let chosen = client.headers().get("sec-websocket-protocol");
                assert_eq!(
                    chosen.map(|it| it.as_bytes()),
                    (n == 3).then_some(&b"chat"[..])
                );
                let close = client.closed().await;
                Ok((close.code.0, close.reason))
            }
            Err(refused) => Err(refused.status()),
        };
        assert_eq!(ended, expected.map(|(code, reason)| (code, reason.into())));
        assert_eq!(cluster.stats().sockets, 0);
        assert!(begins.try_recv().is_err(), "no handler ran");
        let mut control = app.socket("/ws").user("alice").await.unwrap();
        control.closed_with(1000).await;
        assert_eq!(begins.recv().await, Some("alice".into()), "control");
    }
}

#[tokio::test]
async fn two_extractors_of_one_upgrade_are_refused_with_the_fix() {
    async fn ours_second(_: WebSocketUpgrade, socket: ClusterSocket) -> axum::response::Response {
        socket.on_upgrade(|_| async {})
    }
    async fn ours_first(socket: ClusterSocket, _: WebSocketUpgrade) -> axum::response::Response {
        socket.on_upgrade(|_| async {})
    }
    let cluster = Lab::memory().builder().start();
    let app = Router::new()
        .route("/second", any(ours_second))
        .route("/first", any(ours_first));
    let app = App::new(app.layer(cluster.layer()));
    let second = app.socket("/second").user("a").await.unwrap_err();
    assert_eq!(second.status(), 500);
    assert!(
        second.body().contains("WebSocketUpgrade") && second.body().contains("alone"),
        "{second}"
    );
    let first = app.socket("/first").user("a").await.unwrap_err();
    assert!(first.status().as_u16() >= 400);
    assert_eq!(cluster.stats().sockets, 0, "the place was given back");
}

#[tokio::test]
async fn the_order_of_layers_does_not_matter() {
    async fn ws(socket: ClusterSocket) -> axum::response::Response {
        socket.on_upgrade(|mut socket| async move {
            let user = socket.user().to_string();
            let _ = socket.send(user).await;
        })
    }
    let cluster = Lab::memory().builder().start();
    let route = Router::new().route("/ws", any(ws));
    let auth_outside = route
        .clone()
        .layer(cluster.layer())
        .layer(middleware::from_fn(authenticate));
    let auth_inside = route
        .layer(middleware::from_fn(authenticate))
        .layer(cluster.layer());
    for app in [auth_outside, auth_inside] {
        let alice = App::new(app).socket("/ws").header("x-user", "alice");
        assert_eq!(alice.await.unwrap().recv_text().await, "alice");
    }
}
