//! Nothing secret is ever logged or shown by `Debug`, and every refusal is logged with its reason. A binary of
//! its own, since it takes the logs of the whole process.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod capture;
#[cfg(feature = "dashboard")]
mod dashboard;
mod refusals;
mod spans;
#[path = "../support/mod.rs"]
mod support;

use std::time::{Duration, SystemTime};

use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::{Router, middleware};
use axum_cluster::{
    Backend, Close, Cluster, ClusterLayer, ClusterRejection, ClusterSocket, Health, Message, Redis,
};

use capture::{Log, leaks, show};
use support::client::{Event, text};
use support::node::{authenticate, serve};
use support::redis::sentinels::{SERVICE, watching};
use support::{Client, RedisServer, until};

const PASSWORD: &str = "s3cret-password";

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_neither_logged_nor_shown() {
    let (log, _alone) = Log::capture();
    the_search_finds_what_was_logged_on_purpose(&log);
    let mut expected = a_busy_day().await;
    expected.extend(wrong_passwords().await);
    expected.extend(a_redis_that_quotes_what_it_refuses().await);
    let log = log.take();
    assert_eq!(leaks(&log), Vec::<&str>::new());
    let forged = log.lines().find(|line| line.starts_with("lines"));
    assert_eq!(forged, None, "an id cannot begin a line of its own");
    for line in expected {
        assert!(log.contains(line), "control: {line:?} is not in {log}");
    }
}

fn the_search_finds_what_was_logged_on_purpose(log: &Log) {
    tracing::trace!(password = PASSWORD, "logged on purpose");
    tracing::info!("{:?}", PASSWORD.as_bytes());
    show("something else", &"nothing");
    let log = log.take();
    assert!(log.contains("TRACE"), "{log}");
    assert_eq!(leaks(&log).len(), 2, "{log}");
}

/// Everything a cluster does, with secrets wherever a request, a message or a URL can carry one.
async fn a_busy_day() -> Vec<&'static str> {
    let mut server = RedisServer::with_options(&["--requirepass", PASSWORD]);
    let cli = |arguments: &[&str]| {
        let login = ["--no-auth-warning", "-a", PASSWORD];
        server.cli(&[&login, arguments].concat())
    };
    let url = format!("redis://:{PASSWORD}@127.0.0.1:{}", server.port());
    let builder = Cluster::builder().redis(&url).protocols(["chat"]);
    show("builder", &builder);
    let (a, b) = (builder.clone().start(), builder.start());
    let ((a_addr, _a), (b_addr, _b)) = (serve(app(&a)).await, serve(app(&b)).await);
    for node in [&a, &b] {
        node.ready().await.unwrap();
    }

    let path = "/ws?token=s3cret-query";
    let headers = [
        ("x-user", "alice"),
        ("cookie", "session=s3cret-cookie"),
        ("authorization", "Bearer s3cret-bearer"),
        ("sec-websocket-protocol", "chat, bearer, s3cret-protocol"),
    ];
    let mut alice = Client::try_connect(a_addr, path, &headers).await.unwrap();
    alice.send("s3cret-text").await;
    assert_eq!(alice.event().await, text("s3cret-text"));
    alice.send_binary(b"s3cret-binary".to_vec()).await;
    assert_eq!(
        alice.event().await,
        Event::Binary(b"s3cret-binary".to_vec())
    );

    let far = b.broadcaster();
    let audience = far.to_user("alice").to_room("news");
    show("audience", &audience);
    show(
        "delivery",
        &audience.send("s3cret-from-afar").await.unwrap(),
    );
    assert_eq!(alice.event().await, text("s3cret-from-afar"));
    let sent = far.to_all().send_json(&["s3cret-json"]).await;
    show("delivery", &sent.unwrap());
    assert_eq!(alice.event().await, text(r#"["s3cret-json"]"#));
    let channel = "cluster:u:alice";
    for garbage in ["s3cret-garbage", r#"{"text": ["s3cret-garbage"]}"#] {
        assert_eq!(cli(&["PUBLISH", channel, garbage]), "1");
    }
    cli(&["PUBLISH", channel, r#"{"text": "s3cret-foreign"}"#]);
    assert_eq!(alice.event().await, text("s3cret-foreign"));
    assert_eq!(a.stats().bus_garbage, 2);

    let bad = Message::from("[\"s3cret-typo\"]").json::<[u8; 1]>();
    let bad = bad.unwrap_err();
    assert!(bad.to_string().contains("s3cret-typo"), "control: {bad}");
    show("bad message", &bad);
    assert_eq!(bad.into_response().status(), 400);

    alice.send("panic").await;
    assert!(matches!(alice.event().await, Event::Closed(1011, _)));
    let mut forger = Client::connect(a_addr, "two\nlines").await;
    forger.send("panic").await;
    assert!(matches!(forger.event().await, Event::Closed(1011, _)));
    let brief = [&headers[1..], &[("x-user", "brief")]].concat();
    let mut brief = Client::try_connect(a_addr, path, &brief).await.unwrap();
    assert!(matches!(brief.event().await, Event::Closed(4401, _)));
    let mut stranger = Client::try_connect(b_addr, path, &headers[1..]).await;
    let end = stranger.as_mut().unwrap().event().await;
    assert!(matches!(end, Event::Closed(4403, _)));
    let foreign = [&headers[..], &[("origin", "https://evil.example")]].concat();
    let refused = Client::try_connect(a_addr, path, &foreign).await;
    assert_eq!(refused.unwrap_err().0, 403);
    let mut kicked = Client::try_connect(b_addr, path, &headers).await.unwrap();
    let kick = Close::new(4001, "logged out");
    show("close", &a.broadcaster().to_user("alice").close(kick).await);
    assert_eq!(
        kicked.event().await,
        Event::Closed(4001, "logged out".into())
    );

    // An outage, a message into it, and the end.
    server.kill();
    until("it is degraded", async || a.health() != Health::Up).await;
    let failed = a.broadcaster().to_user("bob").send("s3cret-lost").await;
    show("send error", &failed.unwrap_err());
    for node in [&a, &b] {
        show("cluster", node);
        show("layer", &node.layer());
        node.shutdown(Duration::from_millis(100)).await;
        let down = node.broadcaster().to_all().send("s3cret-late").await;
        show("down", &down.unwrap_err());
    }
    vec![
        "node started",
        "the bus is up",
        "socket opened",
        r#"user="two\nlines""#,
        "the handler panicked",
        "socket closed",
        "logged out",
        "the bus is down",
        "draining",
        "node stopped",
        "upgrade refused",
        "what=\"handshake\"",
        "what=\"socket\"",
        "what=\"message\"",
        "what=\"rejection\"",
    ]
}

/// URLs that cannot work, and a password that is wrong.
async fn wrong_passwords() -> Vec<&'static str> {
    let server = RedisServer::with_options(&["--requirepass", PASSWORD]);
    for url in [
        "redis://:s3cret-url@host:99999",
        "redis://user:s3cret-url@/0",
        "http://:s3cret-url@host",
        "rediss://:s3cret-url@host#insecure",
        "s3cret-url@host",
        "redis-sentinel://:s3cret-url@host",
        "redis-cluster://:s3cret-url@host/1",
    ] {
        show("url", &Backend::redis(url).unwrap_err());
        show("url", &ClusterLayer::try_new(url).unwrap_err().to_string());
    }
    let port = server.port();
    for login in [":s3cret-wrong@", "user:s3cret-wrong@", ""] {
        let url = format!("redis://{login}127.0.0.1:{port}");
        let cluster = impatient(url);
        until("redis refuses", async || {
            !cluster.health().to_string().contains("connecting")
        })
        .await;
        show("degraded", &cluster.health());
        show("question", &cluster.broadcaster().is_online("alice").await);
    }
    wrong_passwords_of_sentinels(port).await;
    vec![
        "WRONGPASS",
        "NOAUTH",
        "what=\"url\"",
        "what=\"question\"",
        "this sentinel has no password",
    ]
}

async fn wrong_passwords_of_sentinels(port: u16) {
    let sentinel = RedisServer::sentinel(&watching(port, 1));
    let url = format!(
        "redis-sentinel://user:s3cret-wrong@127.0.0.1:{}/{SERVICE}?sentinelPassword=s3cret-wrong",
        sentinel.port()
    );
    let redis = Redis::at(&url).unwrap();
    let asked = redis.clone();
    show(
        "redis",
        &asked.addresses(|name, port| (name.to_owned(), port)),
    );
    show("backend", &Backend::from(redis));
    let cluster = impatient(url);
    until("the sentinel refuses", async || {
        cluster
            .health()
            .to_string()
            .contains("this sentinel has no password")
    })
    .await;
    show("degraded", &cluster.health());
}

/// Redis answers an unknown command with its arguments: the password, or a message.
async fn a_redis_that_quotes_what_it_refuses() -> Vec<&'static str> {
    for (command, login) in [("AUTH", ":s3cret-password@"), ("PUBLISH", "")] {
        let server = RedisServer::with_options(&["--rename-command", command, ""]);
        let quoted = server.cli(&[command, "s3cret-quoted"]);
        assert!(quoted.contains("s3cret-quoted"), "control: {quoted}");
        let url = format!("redis://{login}127.0.0.1:{}", server.port());
        let cluster = impatient(url);
        until("redis refuses", async || {
            cluster.health().to_string().contains("unknown command")
        })
        .await;
        let sent = cluster.broadcaster().to_user("alice").send("s3cret-sent");
        let error = sent.await.unwrap_err();
        show("refused", &error);
        show("refused", &error.to_string());
        show("question", &cluster.broadcaster().is_online("alice").await);
    }
    vec!["unknown command 'AUTH'", "unknown command 'PUBLISH'"]
}

/// A node that does not wait long for what will not work.
fn impatient(url: String) -> Cluster {
    let patience = Duration::from_millis(500);
    Cluster::builder()
        .redis(url)
        .publish_timeout(patience)
        .start()
}

fn app(cluster: &Cluster) -> Router {
    Router::new()
        .route("/ws", any(ws))
        .layer(cluster.layer())
        .layer(middleware::from_fn(authenticate))
}

async fn ws(socket: Result<ClusterSocket, ClusterRejection>) -> Result<Response, ClusterRejection> {
    let mut socket = socket.inspect_err(|rejection| {
        show("rejection", rejection);
        show("rejection", &rejection.to_string());
    })?;
    if *socket.user() == "brief" {
        socket = socket.expires_at(SystemTime::now() + Duration::from_millis(50));
    }
    show("handshake", &socket);
    Ok(socket.on_upgrade(|mut socket| async move {
        while let Some(message) = socket.recv().await {
            show("message", &message);
            if message.as_text() == Some("panic") {
                panic!("s3cret-panic");
            }
            let _ = socket.send(message).await;
            show("socket", &socket);
        }
        show("end", &socket.close_reason());
    }))
}
