//! What a refused client is told, what the log says of it, and what is counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::extract::ws::WebSocketUpgrade;
use axum::response::Response;
use axum::routing::any;
use axum::{Extension, Router, middleware};
use axum_cluster::testing::{App, Handshake};
use axum_cluster::{
    Backend, Broadcaster, Cluster, ClusterSocket, History, QueryError, SendError, Stats, UserId,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;

use crate::capture::Log;
use crate::support::node::{authenticate, serve};
use crate::support::{Client, RedisServer, until};

async fn ws(socket: ClusterSocket) -> Response {
    socket.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
}

async fn taken(_: WebSocketUpgrade, socket: ClusterSocket) -> Response {
    ws(socket).await
}

fn app(cluster: &Cluster) -> Router {
    let app = Router::new()
        .route("/ws", any(ws))
        .route("/taken", any(taken));
    app.layer(cluster.layer())
}

async fn serve_app(cluster: &Cluster) -> SocketAddr {
    serve(app(cluster).layer(middleware::from_fn(authenticate)))
        .await
        .0
}

/// The lines that tell of a refusal.
fn refusals(log: &str) -> Vec<&str> {
    log.lines()
        .filter(|line| line.contains("refused"))
        .collect()
}

/// What the server answers to these bytes.
async fn answer(addr: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let mut end = async || {
        while !String::from_utf8_lossy(&answer).contains("\r\n\r\n") {
            if stream.read_buf(&mut answer).await.unwrap() == 0 {
                break;
            }
        }
        // The server may have ended it already.
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut answer).await;
    };
    crate::support::soon("an answer", end()).await;
    String::from_utf8(answer).unwrap()
}

const HANDSHAKE: &str = "Host: app.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[tokio::test]
async fn a_user_of_another_type_is_named_at_warn_once_then_at_debug() {
    #[derive(Clone)]
    struct CurrentUser(u64);
    let (log, _guard) = Log::capture_here();
    let cluster = Cluster::builder()
        .identify(|user: &CurrentUser| (user.0 != 0).then(|| UserId::from(user.0)))
        .start();
    let route = Router::new().route("/ws", any(ws)).layer(cluster.layer());
    let app = App::new(route);
    let wrong = || app.socket("/ws").extension(Arc::new(CurrentUser(1)));
    let nobody = app.socket("/ws").extension(CurrentUser(0));
    for (handshake, level, reason) in [
        (nobody, "DEBUG", "saw no user in the request's"),
        (
            wrong(),
            "WARN",
            "that it inserts (harmless where nobody had logged in;",
        ),
        (wrong(), "DEBUG", "is another"),
    ] {
        log.take();
        handshake.await.unwrap().closed_with(4403).await;
        let log = log.take();
        let [line] = refusals(&log)[..] else {
            panic!("{log}")
        };
        for part in [level, "::CurrentUser`", "close=4403", reason] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }
    assert_eq!(cluster.stats().unauthenticated, 3);
    let right = app.socket("/ws").extension(CurrentUser(1));
    let _admitted = right.await.unwrap();
    assert_eq!(refusals(&log.take()), [""; 0], "control");
}

/// It says whose they are, and not that the bus is down.
#[tokio::test]
async fn refused_channels_are_named_once_at_warn() {
    let server = RedisServer::start();
    let rules = "ACL SETUSER app on >pass resetchannels &cluster:n:* &cluster:nodes &cluster:all +subscribe \
        +unsubscribe +publish +pubsub";
    assert_eq!(server.cli(&rules.split(' ').collect::<Vec<_>>()), "OK");
    let (log, _guard) = Log::capture_here();
    let url = format!("redis://app:pass@127.0.0.1:{}", server.port());
    let cluster = Cluster::builder().redis(url).start();
    cluster.ready().await.unwrap();
    let addr = serve_app(&cluster).await;
    let mut clients = Vec::new();
    for (user, count) in [("alice", 1), ("bob", 2)] {
        clients.push(Client::connect(addr, user).await);
        until("redis refuses", async || {
            cluster.stats().subscriptions_refused >= count
        })
        .await;
    }
    let log = log.take();
    let warned = |line: &&str| line.contains("WARN") && line.contains("channels are refused");
    let [line] = log.lines().filter(warned).collect::<Vec<_>>()[..] else {
        panic!("{log}")
    };
    for part in ["users", "NOPERM", "grant it: ACL SETUSER app", "gap=true"] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert!(!log.contains("the bus is down"), "{log}");
}

/// T22.
#[tokio::test]
async fn a_node_with_another_list_of_redises_is_named_at_warn_with_both_lists() {
    let servers = [(); 3].map(|()| RedisServer::start());
    let urls = servers.each_ref().map(RedisServer::url);
    let (log, _guard) = Log::capture_here();
    let named = "other Redises than this one";
    let start = |urls: &[String]| {
        let backend = Backend::shards(urls).unwrap();
        Cluster::builder().backend(backend).start()
    };
    let same = [start(&urls), start(&urls)];
    for node in &same {
        node.ready().await.unwrap();
        until("they know each other", async || node.stats().nodes == 2).await;
    }
    assert!(!log.has(named), "control");
    // One of both meets them.
    let fewer = [start(&urls[..2]), start(&urls[1..])];
    until("it said hello", async || log.has(named)).await;
    let log = log.take();
    let line = log.lines().find(|line| line.contains(named)).unwrap();
    for part in ["WARN", "ours=", "theirs=", "the same list of shards"] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    for server in &servers {
        let address = format!("127.0.0.1:{}", server.port());
        assert!(line.contains(&address), "{address} is not in {line}");
    }
    drop((same, fewer));
}

/// Whoever sends without keeping what others keep is named, once.
#[tokio::test]
async fn a_node_that_keeps_less_is_named_once_at_warn() {
    let (log, _guard) = Log::capture_here();
    let backend = Backend::memory();
    let node = Cluster::builder()
        .backend(backend.clone())
        .user_history(History::default())
        .start();
    let _alice = node.broadcaster().subscribe("alice").await.unwrap();
    let cron = Broadcaster::builder().backend(backend).name("cron");
    let cron = cron.connect().await.unwrap();
    until("it said hello", async || log.has("keeps other histories")).await;
    for _ in 0..3 {
        cron.to_user("alice").send("hi").await.unwrap();
    }
    assert_eq!(node.stats().history_unkept, 3);
    let log = log.take();
    let lines = |words| log.lines().filter(move |line| line.contains(words));
    let [line] = lines("sends without keeping").collect::<Vec<_>>()[..] else {
        panic!("{log}")
    };
    for part in ["WARN", "name=\"cron\"", "user_history"] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    let differ: Vec<&str> = lines("keeps other histories").collect();
    let named = differ.iter().any(|line| line.contains("user:100/300000"));
    assert!(
        named && differ.len() == 2,
        "each names the other: {differ:?}"
    );
}

/// Said at the start, before anything is lost by it.
#[tokio::test]
async fn a_redis_that_cannot_keep_or_may_evict_is_named_at_the_start() {
    let server =
        RedisServer::with_options(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let rules = "ACL SETUSER app on >pass resetchannels &cluster:* +subscribe +unsubscribe +publish +pubsub";
    assert_eq!(server.cli(&rules.split(' ').collect::<Vec<_>>()), "OK");
    let (log, _guard) = Log::capture_here();
    let refused = format!("redis://app:pass@127.0.0.1:{}", server.port());
    let start = |url: String, history| {
        let builder = Cluster::builder().redis(url);
        match history {
            true => builder.user_history(History::default()).start(),
            false => builder.start(),
        }
    };
    let silent = start(server.url(), false);
    silent.ready().await.unwrap();
    assert!(
        !log.has("WARN"),
        "control: where nothing is kept, nobody minds"
    );
    let evicts = start(server.url(), true);
    until("it is said", async || log.has("may evict")).await;
    let refuses = start(refused, true);
    until("it is said", async || log.has("grant it: ACL SETUSER app")).await;
    refuses.ready().await.unwrap();
    evicts.ready().await.unwrap();
    let sent = refuses.broadcaster().to_user("alice").send("hi").await;
    assert!(!sent.unwrap_err().maybe_sent());
}

/// What is asked for, the status, what the log says, and what counts it.
type Case<'a> = (Handshake, u16, &'a str, fn(Stats) -> u64);

/// One line and one counter each.
#[tokio::test]
async fn every_refusal_is_logged_with_its_reason_and_counted() {
    let (log, _guard) = Log::capture_here();
    let cluster = Cluster::builder()
        .max_sockets(2)
        .max_sockets_per_user(1)
        .start();
    let app = App::new(app(&cluster));
    let socket = |path: &str| app.socket(format!("{path}?token=s3cret"));
    let of = |user: &str| socket("/ws").user(user);
    let _alice = of("alice").await.unwrap();
    let foreign = of("alice").header("origin", "https://evil.example");
    let cases: [Case; 5] = [
        (
            foreign,
            403,
            "origin=\"https://evil.example\" host=\"localhost\"",
            |it| it.origins_refused,
        ),
        (of("alice"), 429, "`max_sockets_per_user`", |it| {
            it.limits_refused
        }),
        (of(&"x".repeat(300)), 400, "the id has 300 bytes", |it| {
            it.ids_refused
        }),
        (
            socket("/taken").user("bob"),
            500,
            "extract `ClusterSocket` alone",
            |it| it.upgrades_failed,
        ),
        (socket("/ws"), 101, "no `axum_cluster::UserId`", |it| {
            it.unauthenticated
        }),
    ];
    for (handshake, status, reason, counter) in cases {
        let (before, _) = (counter(cluster.stats()), log.take());
        let answer = handshake.header("cookie", "session=s3cret").await;
        assert_eq!(answer.err().map_or(101, |it| it.status().as_u16()), status);
        check(&log, status, reason);
        assert_eq!(counter(cluster.stats()), before + 1, "{reason}");
    }

    let _bob = of("bob").await.unwrap();
    log.take();
    assert_eq!(of("carol").await.unwrap_err().status(), 503);
    check(&log, 503, "`max_sockets` is reached");
    assert_eq!(cluster.stats().limits_refused, 2);

    cluster.shutdown(Duration::ZERO).await;
    log.take();
    assert_eq!(of("carol").await.unwrap_err().status(), 503);
    check(&log, 503, "shutting down");
    assert_eq!(cluster.stats().drain_refused, 1);
}

#[tokio::test]
async fn what_is_no_handshake_is_told_what_is_missing() {
    let (log, _guard) = Log::capture_here();
    let cluster = Cluster::builder().start();
    let addr = serve_app(&cluster).await;
    let plain = "Host: app.example\r\n\r\n";
    for (line, rest, status, reason) in [
        // What nginx sends without `proxy_http_version 1.1`, and what it makes of the handed on headers.
        ("GET /ws HTTP/1.0", plain, 426, "`proxy_http_version 1.1;`"),
        (
            "GET /ws HTTP/1.0",
            HANDSHAKE,
            426,
            "`proxy_http_version 1.1;`",
        ),
        (
            "GET /ws HTTP/1.1",
            plain,
            426,
            "a proxy in front must hand them on",
        ),
        ("POST /ws HTTP/1.1", HANDSHAKE, 405, "must be a GET"),
    ] {
        log.take();
        let answer = answer(addr, &format!("{line}\r\n{rest}")).await;
        let expected = format!(" {status} ");
        assert!(
            answer.contains(&expected) && answer.contains(reason),
            "{answer}"
        );
        check(&log, status, reason);
    }
    assert_eq!(cluster.stats().handshakes_refused, 4);
}

fn check(log: &Log, status: u16, reason: &str) {
    let log = log.take();
    let [line] = refusals(&log)[..] else {
        panic!("not one line for {reason}: {log}")
    };
    let outcome = match status {
        101 => "close=4403".to_owned(),
        _ => format!("status={status}"),
    };
    for part in [&outcome, reason] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert!(!log.contains("s3cret"), "{log}");
}

#[test]
fn a_lost_runtime_is_for_the_log_and_not_for_clients() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let (log, _guard) = Log::capture_here();
    let (first, second) = (runtime(), runtime());
    let cluster = first.block_on(async { Cluster::builder().start() });
    drop(first);
    second.block_on(async {
        let app = App::new(app(&cluster));
        until("the node knows", async || {
            cluster.health().to_string().contains("runtime")
        })
        .await;
        log.take();
        let refused = app.socket("/ws").user("bob").await.unwrap_err();
        let body = refused.body();
        assert_eq!(refused.status(), 503);
        assert!(body.contains("try again later"), "{body}");
        assert!(!body.contains("runtime"), "{body}");
        check(&log, 503, "the tokio runtime on which");
    });
}

/// Hyper answers 101 and keeps the stream.
#[tokio::test]
async fn a_server_that_does_not_upgrade_is_named_once_at_warn() {
    let (log, _guard) = Log::capture_here();
    let cluster = Cluster::builder().start();
    let app = Router::new()
        .route("/ws", any(ws))
        .layer(cluster.layer())
        .layer(middleware::from_fn(authenticate));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let app = app.clone();
            let service = service_fn(move |request: hyper::Request<_>| {
                app.clone().oneshot(request.map(Body::new))
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    for (user, level) in [
        ("x-user: alice\r\n", "WARN"),
        ("", "DEBUG"),
        ("x-user: alice\r\n", "DEBUG"),
    ] {
        let failed = cluster.stats().upgrades_failed;
        let request = format!("GET /ws HTTP/1.1\r\n{user}{HANDSHAKE}");
        let answered = answer(addr, &request).await;
        assert!(answered.starts_with("HTTP/1.1 101 "), "control: {answered}");
        until("it is counted", async || {
            cluster.stats().upgrades_failed == failed + 1
        })
        .await;
        let log = log.take();
        let line = log.lines().find(|line| line.contains("with_upgrades"));
        assert!(
            line.is_some_and(|line| line.contains(level)),
            "{level}: {log}"
        );
    }
    assert_eq!(cluster.stats().sockets, 0);
    serving.abort();
}

#[tokio::test]
async fn a_request_without_a_server_is_told_so() {
    // Every test of this binary listens: what one logs unheard, `tracing` may take for unheard everywhere.
    let (_log, _guard) = Log::capture_here();
    let cluster = Cluster::builder().start();
    let app = Router::new()
        .route("/ws", any(ws))
        .layer(cluster.layer())
        .layer(Extension(UserId::from("alice")));
    let mut request = Request::get("/ws");
    for header in HANDSHAKE.trim().lines() {
        let (name, value) = header.split_once(": ").unwrap();
        request = request.header(name, value);
    }
    let request = request.body(Body::empty()).unwrap();
    let response = app.oneshot(request).await.unwrap();
    assert_eq!(response.status(), 500);
    let body = to_bytes(response.into_body(), 1000).await.unwrap();
    let body = String::from_utf8_lossy(&body);
    assert!(
        body.contains("axum::serve") && body.contains("testing::App"),
        "{body}"
    );
    assert!(!body.contains("WebSocketUpgrade"), "{body}");
    assert_eq!(cluster.stats().upgrades_failed, 1);
}

/// The caller learns the class of a failure, the log Redis' words.
#[tokio::test]
async fn redis_words_are_for_the_log_and_not_for_callers() {
    async fn send(cluster: Broadcaster) -> Result<(), SendError> {
        cluster.to_user("alice").send("x").await.map(drop)
    }
    async fn ask(cluster: Broadcaster) -> Result<(), QueryError> {
        cluster.is_online("alice").await.map(drop)
    }
    async fn json(cluster: Broadcaster) -> Result<(), SendError> {
        let unusable = std::collections::HashMap::from([((), "s3cret")]);
        cluster
            .to_user("alice")
            .send_json(&unusable)
            .await
            .map(drop)
    }
    let (log, _guard) = Log::capture_here();
    let server = RedisServer::start();
    let rules = [
        "ACL",
        "SETUSER",
        "webshop",
        "on",
        ">pass",
        "resetchannels",
        "&cluster:n:*",
        "+subscribe",
    ];
    assert_eq!(server.cli(&rules), "OK");
    let url = format!("redis://webshop:pass@127.0.0.1:{}", server.port());
    let cluster = Cluster::builder().redis(url).start();
    until("redis refuses", async || {
        cluster.health().to_string().contains("NOPERM")
    })
    .await;
    let app = Router::new()
        .route("/send", any(send))
        .route("/ask", any(ask))
        .route("/json", any(json))
        .layer(cluster.layer());
    let app = App::new(app);
    for (path, status, class, words) in [
        (
            "/send",
            503,
            "the bus is not usable: sockets of this node were served; other nodes were not reached",
            "NOPERM",
        ),
        ("/ask", 503, "no answer from the bus", "NOPERM"),
        (
            "/json",
            500,
            "cannot be written as JSON",
            "key must be a string",
        ),
    ] {
        log.take();
        let answer = app.get(path).await;
        assert_eq!(answer.status(), status, "{answer:?}");
        let answer = answer.text();
        assert!(answer.contains(class), "{answer}");
        for word in [words, "webshop", "cluster:", "ACL"] {
            assert!(!answer.contains(word), "{answer}");
        }
        let log = log.take();
        let lines: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("was answered"))
            .collect();
        assert!(
            matches!(lines[..], [line] if line.contains(words)),
            "control: {log}"
        );
    }
}

/// Where no error can be returned, the log has it.
#[tokio::test]
async fn an_id_that_cannot_be_used_is_told_where_no_error_can_be() {
    let (log, _guard) = Log::capture_here();
    let cluster = Cluster::builder().start();
    let broadcaster = cluster.broadcaster();
    let _somebody = broadcaster.presence_of(["alice", "bob"]);
    let told = |log: String| {
        let lines = log.lines().filter(|line| line.contains("cannot be used"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(told(log.take()), [""; 0], "control");
    let _nobody = (
        broadcaster.presence_of(["alice", ""]),
        broadcaster.presence_in("x".repeat(257)),
    );
    let lines = told(log.take());
    assert!(
        matches!(&lines[..], [of, into]
            if of.contains("presence_of") && of.contains("empty")
            && into.contains("presence_in") && into.contains("257 bytes")),
        "{lines:?}"
    );
}
