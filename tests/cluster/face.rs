//! The public API as programs use it.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use axum::extract::State;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use axum::{Router, middleware, routing::any};
use axum_cluster::testing::App;
use axum_cluster::{
    Broadcaster, Close, Cluster, ClusterLayer, ClusterSocket, ConnectErrorKind, Health, Message,
    SendError, Socket, Unauthenticated, UserId,
};
use futures::StreamExt;
use tower::{Layer, Service, ServiceExt};

use crate::support::client::{Event, text};
use crate::support::node::{authenticate, id_of, serve};
use crate::support::{Client, Lab, RedisServer, soon, until};

/// Serves one socket handler over TCP, with the test's authentication around it.
async fn serve_handler<F, Fut>(cluster: &Cluster, handler: F) -> std::net::SocketAddr
where
    F: FnOnce(Socket) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let ws = async move |socket: ClusterSocket| socket.on_upgrade(handler);
    let app = Router::new().route("/ws", any(ws));
    serve(
        app.layer(cluster.layer())
            .layer(middleware::from_fn(authenticate)),
    )
    .await
    .0
}

/// An app of one socket handler, without a port.
pub(crate) fn app_of<F, Fut>(cluster: &Cluster, handler: F) -> App
where
    F: FnOnce(Socket) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let ws = async move |socket: ClusterSocket| socket.on_upgrade(handler);
    App::new(Router::new().route("/ws", any(ws)).layer(cluster.layer()))
}

#[tokio::test]
async fn a_socket_is_a_stream_and_a_sink() {
    let app = app_of(&Cluster::builder().start(), |socket| async move {
        let (sink, stream) = socket.split();
        let _ = stream.map(Ok).forward(sink).await;
    });
    let mut client = app.socket("/ws").user("alice").await.unwrap();
    for message in [Message::from("forwarded"), vec![0, 1].into()] {
        client.send(message.clone()).await;
        assert_eq!(client.recv().await, message);
    }
}

/// The handler's own sends wait instead of being closed as a slow consumer: for a kernel that takes no more.
#[tokio::test]
async fn a_handler_that_sends_much_is_slowed_down_to_its_client() {
    let cluster = Cluster::builder()
        .outbox_messages(4)
        .outbox_bytes(100_000)
        .start();
    let addr = serve_handler(&cluster, |mut socket| async move {
        for n in 0..2000 {
            socket
                .send(format!("{n} {}", "x".repeat(10_000)))
                .await
                .expect("room comes");
        }
    })
    .await;
    let mut client = Client::connect(addr, "alice").await;
    for n in 0..2000 {
        let Event::Text(message) = client.event().await else {
            panic!("closed at {n}")
        };
        assert!(message.starts_with(&format!("{n} ")));
    }
    assert_eq!(
        client.event().await,
        Event::Closed(1000, String::new()),
        "nothing queued is lost"
    );
    assert_eq!(cluster.stats().slow_closed, 0);
}

#[tokio::test]
async fn after_the_end_sends_and_joins_say_why() {
    let cluster = Cluster::builder().start();
    let (report, mut reports) = tokio::sync::mpsc::unbounded_channel();
    let app = app_of(&cluster, move |mut socket| async move {
        assert_eq!(socket.close_reason(), None);
        while socket.recv().await.is_some() {}
        let send = socket.send("too late").await.unwrap_err();
        let join = socket.join("lobby").await.unwrap_err();
        report
            .send((send.close().clone(), join.to_string(), socket.recv().await))
            .unwrap();
    });
    let mut client = app.socket("/ws").user("alice").await.unwrap();
    cluster
        .broadcaster()
        .to_user("alice")
        .close(Close::new(4001, "out"))
        .await
        .unwrap();
    assert_eq!(client.closed_with(4001).await.reason, "out");
    let (send, join, recv) = soon("the report", reports.recv()).await.unwrap();
    assert_eq!((send, recv), (Close::new(4001, "out"), None));
    assert!(join.contains("4001"), "{join}");
    assert_eq!(cluster.stats().rooms, 0);
}

/// A long reason is cut, and a code that may not be sent is not: neither is reported otherwise.
#[tokio::test]
async fn an_ending_is_reported_as_the_client_was_told() {
    let cluster = Cluster::builder().start();
    let (report, mut reports) = tokio::sync::mpsc::unbounded_channel();
    let app = app_of(&cluster, move |mut socket| async move {
        let close = match socket.recv().await.unwrap().as_text() {
            Some("long") => Close::new(4000, "é".repeat(100)),
            _ => Close::new(1006, "not to be sent"),
        };
        socket.close(close).await;
        let error = socket.send("too late").await.unwrap_err();
        report.send((socket.close_reason(), error)).unwrap();
    });
    for (say, code, reason) in [
        ("long", 4000, "é".repeat(61)),
        ("forbidden", 1005, String::new()),
    ] {
        let mut client = app.socket("/ws").user("alice").await.unwrap();
        client.send_text(say).await;
        assert_eq!(client.closed_with(code).await.reason, *reason);
        let (close, error) = soon("the report", reports.recv()).await.unwrap();
        assert_eq!(close, Some(Close::new(code, reason)));
        assert_eq!(Some(error.close()), close.as_ref());
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_identity_closes_with_4401() {
    async fn ws(socket: ClusterSocket) -> Response {
        let soon = SystemTime::now() + Duration::from_secs(3600);
        socket
            .expires_at(soon)
            .on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
    }
    let cluster = Cluster::builder().start();
    let app = App::new(Router::new().route("/ws", any(ws)).layer(cluster.layer()));
    let mut alice = app.socket("/ws").user("alice").await.unwrap();
    alice.expect_silence(Duration::from_secs(3595)).await;
    alice.closed_with(4401).await;
    assert_eq!(cluster.stats().sockets, 0);
}

/// One route for a page and its socket, and a user type of the app's own.
#[tokio::test]
async fn an_optional_socket_and_an_own_user_type() {
    #[derive(Clone)]
    struct CurrentUser {
        id: u64,
    }
    async fn page_or_socket(socket: Option<ClusterSocket>) -> Response {
        match socket {
            None => "a page".into_response(),
            Some(socket) => socket.on_upgrade(|mut socket| async move {
                let user = socket.user().to_string();
                let _ = socket.send(user).await;
            }),
        }
    }
    let cluster = Cluster::builder()
        .identify(|user: &CurrentUser| (user.id != 0).then(|| UserId::from(user.id)))
        .start();
    let app = Router::new()
        .route("/ws", any(page_or_socket))
        .layer(cluster.layer());
    let app = App::new(app);
    let socket = |id| app.socket("/ws").extension(CurrentUser { id });
    assert_eq!(socket(42).await.unwrap().recv_text().await, "42");
    let nobody = socket(0).await.unwrap().closed_with(4403).await;
    assert_eq!(nobody.reason, "authentication required");
    assert_eq!(app.get("/ws").await.text(), "a page");
}

#[tokio::test]
async fn a_broadcaster_works_as_extractor_as_state_and_in_tasks() {
    async fn extracted(cluster: Broadcaster) -> Result<String, SendError> {
        cluster
            .to_user("alice")
            .send("extracted")
            .await
            .map(|sent| sent.local().to_string())
    }
    async fn from_state(State(cluster): State<Broadcaster>) -> Result<String, SendError> {
        cluster
            .to_user("alice")
            .send_json(&["json", "2"])
            .await
            .map(|sent| sent.local().to_string())
    }
    async fn ws(socket: ClusterSocket) -> Response {
        socket.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
    }
    let cluster = Cluster::builder().start();
    let app = Router::new()
        .route("/ws", any(ws))
        .route("/extracted", any(extracted))
        .route("/state", any(from_state))
        .with_state(cluster.broadcaster())
        .layer(cluster.layer());
    let app = App::new(app);
    let mut client = app.socket("/ws").user("alice").await.unwrap();
    assert_eq!(app.get("/extracted").await.text(), "1");
    assert_eq!(app.get("/state").await.text(), "1");
    let broadcaster = cluster.broadcaster();
    let task = tokio::spawn(async move { broadcaster.to_user("alice").send(vec![7]).await });
    assert_eq!(task.await.unwrap().unwrap().local(), 1);
    let said = [
        "extracted".into(),
        r#"["json","2"]"#.into(),
        vec![7u8].into(),
    ];
    for message in said as [Message; 3] {
        assert_eq!(client.recv().await, message);
    }
}

/// The layer fits any tower service and changes none of its types.
#[tokio::test]
async fn the_layer_fits_services_that_know_nothing_of_axum() {
    #[derive(Debug, PartialEq)]
    struct NotAResponse(bool);
    let cluster = Cluster::builder().start();
    #[derive(Clone)]
    struct Inner(u8);
    impl Service<Request<Vec<u8>>> for Inner {
        type Response = NotAResponse;
        type Error = Infallible;
        type Future = Ready<Result<NotAResponse, Infallible>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
            let carried = request.extensions().get::<Broadcaster>().is_some();
            ready(Ok(NotAResponse(carried)))
        }
    }
    let mut service = cluster.layer().layer(Inner(1));
    service.get_mut().0 += 1;
    assert_eq!(
        (service.get_ref().0, service.clone().into_inner().0),
        (2, 2)
    );
    let answer = service
        .ready()
        .await
        .unwrap()
        .call(Request::new(vec![1]))
        .await;
    assert_eq!(answer, Ok(NotAResponse(true)));
}

#[tokio::test]
async fn a_failed_send_is_a_503_that_names_the_problem() {
    let server = RedisServer::absent();
    let cluster = Cluster::builder().redis(server.url()).start();
    async fn notify(cluster: Broadcaster) -> Result<String, SendError> {
        cluster
            .to_user("alice")
            .send("x")
            .await
            .map(|_| "sent".into())
    }
    let app = Router::new()
        .route("/notify", any(notify))
        .layer(cluster.layer());
    let response = App::new(app).get("/notify").await;
    assert_eq!(response.status(), 503);
    let served = "sockets of this node were served; other nodes were not reached";
    assert!(response.text().contains(served), "{response:?}");
    assert!(
        !response.text().contains("refused"),
        "Redis' words are for the log: {response:?}"
    );
}

#[tokio::test]
async fn settings_that_make_no_sense_are_named() {
    let wrong = |builder: axum_cluster::ClusterBuilder, part: &str| {
        let error = builder.clone().try_start().unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        let panic = catch_unwind(AssertUnwindSafe(|| builder.start())).unwrap_err();
        assert!(
            panic
                .downcast_ref::<String>()
                .is_some_and(|text| text.contains(part))
        );
    };
    let builder = Cluster::builder;
    wrong(
        builder().ping_interval(Duration::ZERO),
        "ping_interval is zero",
    );
    wrong(
        builder().publish_timeout(Duration::ZERO),
        "publish_timeout is zero",
    );
    wrong(
        builder().probe_interval(Duration::MAX),
        "probe_interval is longer",
    );
    wrong(builder().linger(Duration::MAX), "linger is longer");
    wrong(
        builder().lease(Duration::from_millis(999)),
        "lease is 999ms: it must be at least 1s",
    );
    wrong(builder().max_message_size(0), "max_message_size is zero");
    wrong(builder().outbox_messages(0), "outbox_messages is zero");
    wrong(builder().outbox_bytes(0), "outbox_bytes is zero");
    wrong(
        builder().max_sockets_per_user(0),
        "max_sockets_per_user is zero",
    );
    wrong(builder().namespace(""), "namespace \"\"");
    wrong(builder().namespace("a:b"), "A-Z a-z 0-9 . _ -");
    wrong(builder().protocols(["chat", "no, token"]), "no, token");
    wrong(builder().allow_origin("shop.example"), "scheme://host");
    wrong(
        builder().allow_origin("https://shop.example/"),
        "scheme://host",
    );
    let unsendable = Unauthenticated::CloseWith(Close::new(1006, "who are you?"));
    wrong(
        builder().unauthenticated(unsendable),
        "unauthenticated: close code 1006 may not be sent: use",
    );
    wrong(builder().allow_origin("*"), "`*` may only stand");
    wrong(builder().allow_origin("https://shop.*"), "allow_origin_if");
    wrong(builder().redis("redis://:s3cret@host:port"), "port");
    let error = ClusterLayer::try_new("http://localhost").unwrap_err();
    assert_eq!(error.kind(), ConnectErrorKind::Url);
    assert!(error.to_string().contains("http"), "{error}");
    let panic = catch_unwind(|| ClusterLayer::new("redis://:s3cret@")).unwrap_err();
    let panic = panic.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(
        panic.contains("redis url") && !panic.contains("s3cret"),
        "{panic}"
    );
    assert!(
        Cluster::builder()
            .linger(Duration::ZERO)
            .try_start()
            .is_ok(),
        "control"
    );
}

#[test]
fn outside_a_runtime_the_fix_is_named() {
    let panic = catch_unwind(|| Cluster::builder().start()).unwrap_err();
    let panic = panic.downcast_ref::<&str>().copied().unwrap_or_default();
    assert!(panic.contains("tokio::main"), "{panic}");
}

/// Upgrades 503, sockets 1012 within the window, tasks awaited, nothing left; the server itself
/// ends gracefully around it.
#[tokio::test(flavor = "multi_thread")]
async fn shutdown_drains_and_leaves_nothing() {
    let lab = Lab::redis();
    let server = lab.redis.as_ref().unwrap();
    let cluster = lab.builder().start();
    cluster.ready().await.unwrap();
    async fn ws(socket: ClusterSocket) -> Response {
        socket.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
    }
    let app = Router::new().route("/ws", any(ws));
    let app = app
        .layer(cluster.layer())
        .layer(middleware::from_fn(authenticate));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let draining = cluster.clone();
    let serving = tokio::spawn(async move {
        let signal = async move {
            let _ = stopped.await;
            draining.shutdown(Duration::from_secs(2)).await;
        };
        axum::serve(listener, app)
            .with_graceful_shutdown(signal)
            .await
    });
    let mut clients = Vec::new();
    for n in 0..20 {
        clients.push(Client::connect(addr, &format!("user-{n}")).await);
    }
    let _unresponsive = Client::connect(addr, "never reads").await;
    let mut watch = Box::pin(cluster.health_changes());
    let start = std::time::Instant::now();
    stop.send(()).unwrap();
    soon("draining", async {
        while watch.next().await != Some(Health::Draining) {}
    })
    .await;
    let refusal = Client::try_connect(addr, "/ws", &[("x-user", "late")])
        .await
        .unwrap_err();
    assert_eq!(refusal.0, 503);
    let mut moments = Vec::new();
    for client in &mut clients {
        assert!(matches!(client.event().await, Event::Closed(1012, _)));
        moments.push(start.elapsed());
    }
    assert!(
        moments.last().unwrap() > &Duration::from_millis(500),
        "spread over the window"
    );
    soon("the server ends", serving).await.unwrap().unwrap();
    assert_eq!(cluster.health(), Health::Down);
    assert_eq!(cluster.stats().sockets, 0);
    assert_eq!(server.cli(&["PUBSUB", "CHANNELS"]), "");
    let error = cluster.broadcaster().to_all().send("x").await.unwrap_err();
    assert!(error.to_string().contains("shut down"), "{error}");
    assert!(cluster.ready().await.is_err());
}

/// The last handle's end is the node's end.
#[tokio::test]
async fn a_dropped_node_leaves_the_bus() {
    let server = RedisServer::start();
    let broadcaster = Broadcaster::connect(server.url()).await.unwrap();
    broadcaster.to_user("alice").send("x").await.unwrap();
    assert!(
        server.cli(&["PUBSUB", "CHANNELS"]).contains("cluster:n:"),
        "control"
    );
    drop(broadcaster);
    until("nothing is left", async || {
        server.cli(&["PUBSUB", "CHANNELS"]).is_empty()
    })
    .await;
}

/// A worker without sockets, in a namespace of its own.
#[tokio::test]
async fn a_publisher_without_sockets_reaches_users() {
    let mut lab = Lab::redis();
    let [node] = lab.nodes().await;
    let mut client = node.client("alice").await;
    let worker = Broadcaster::connect(lab.server().url()).await.unwrap();
    let delivery = worker
        .to_user("alice")
        .send("from the worker")
        .await
        .unwrap();
    assert_eq!((delivery.local(), delivery.nodes()), (0, Some(1)));
    assert!(worker.is_online("alice").await.unwrap());
    assert_eq!(client.event().await, text("from the worker"));
    let id = id_of(&mut client).await;
    worker.to_socket(id).send("you").await.unwrap();
    assert_eq!(client.event().await, text("you"));
}
