//! What the kit says of a test that fails, and of clients that nobody attends to.

use std::fmt::Debug;

use axum::extract::ws::WebSocketUpgrade;
use axum::{Router, routing::any, routing::get};
use axum_cluster::testing::{App, Client, Handshake, MemoryHub, Refused, Request, Response};
use axum_cluster::{Close, Cluster};
use futures::future::join_all;
use tokio::time::{Duration, Instant, sleep};

use crate::{app_of, echo};

/// What the types of the kit are.
#[test]
fn its_types_go_wherever_a_test_goes() {
    const fn shared<T: Send + Sync + Unpin + Debug + 'static>() {}
    const fn sent<T: Send + Unpin + Debug + 'static>() {}
    const fn cloned<T: Clone>() {}
    shared::<(App, Client, MemoryHub, Refused, Response)>();
    sent::<(Handshake, Request)>();
    cloned::<(App, MemoryHub, Refused, Response)>();
    fn moves<F: Future + Send>(_: F) {}
    let _never = |mut client: Client, app: App| {
        moves(client.send("text"));
        moves(client.send_json(&[1]));
        moves(client.recv());
        moves(client.recv_json::<String>());
        moves(client.expect_silence(Duration::ZERO));
        moves(client.closed_with(1000));
        moves(client.close());
        moves(app.socket("/").into_future());
        moves(app.get("/").into_future());
    };
}

/// The text with which a test fails.
async fn failure(test: impl Future<Output = ()> + Send + 'static) -> String {
    let panic = tokio::spawn(test).await.unwrap_err().into_panic();
    *panic.downcast::<String>().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_failure_names_the_line_and_what_came_instead() {
    let (app, _cluster) = echo(Cluster::builder());
    let connect = async || app.socket("/ws").user("alice").await.unwrap();

    let mut alice = connect().await;
    let line = line!() + 3;
    let text = failure(async move {
        alice.send_text("hello").await;
        alice.closed_with(4401).await;
    });
    assert_eq!(
        text.await,
        format!(
            r#"{}:{line}:15: waited for the end with 4401, and got the text "hello""#,
            file!()
        )
    );

    let mut alice = connect().await;
    let start = Instant::now();
    let silent = failure(async move { drop(alice.recv_text().await) }).await;
    assert!(
        silent.ends_with("waited 10s for a text, and nothing came"),
        "{silent}"
    );

    assert_eq!(start.elapsed(), Duration::from_secs(10));

    let mut alice = connect().await;
    let noisy = failure(async move {
        alice.send_binary(vec![1, 2]).await;
        alice.expect_silence(Duration::from_secs(1)).await;
    });
    let noisy = noisy.await;
    assert!(
        noisy.contains("1s of silence, and got 2 bytes of binary"),
        "{noisy}"
    );

    let mut alice = connect().await;
    let untyped = failure(async move {
        alice.send_text("[1]").await;
        alice.recv_json::<u8>().await;
    });
    let untyped = untyped.await;
    assert!(
        untyped.contains(r#"waited for u8, and got the text "[1]" ("#),
        "{untyped}"
    );
}

#[tokio::test]
async fn the_end_is_what_whoever_waits_for_more_is_told_again_and_again() {
    let cluster = Cluster::builder().start();
    let app = app_of(&cluster, |mut socket| async move {
        let _ = socket.send("last words").await;
        socket.close(Close::new(4001, "out")).await;
    });
    let mut alice = app.socket("/ws").user("alice").await.unwrap();
    assert_eq!(alice.recv_text().await, "last words");
    for _ in 0..2 {
        assert_eq!(alice.closed_with(4001).await, Close::new(4001, "out"));
    }
    let text = failure(async move { alice.send_text("too late").await }).await;
    assert!(text.contains("and got the end: 4001 out"), "{text}");
}

#[tokio::test]
async fn an_app_that_panics_is_told_so() {
    async fn broken() -> &'static str {
        panic!("on purpose")
    }
    let app = App::new(Router::new().route("/", get(broken)));
    let asked = app.clone();
    let text = failure(async move { drop(asked.get("/").await) }).await;
    assert!(
        text.contains("the answer to GET / did not come, did the app panic?"),
        "{text}"
    );
    let refused = app.socket("/nowhere").await.unwrap_err();
    assert!(
        refused.to_string().contains("refused with 404"),
        "{refused}"
    );
}

#[tokio::test(start_paused = true)]
async fn clients_answer_pings_whatever_the_test_does_and_time_costs_nothing() {
    let (app, cluster) = echo(Cluster::builder());
    let mut alice = app.socket("/ws").user("alice").await.unwrap();
    let start = std::time::Instant::now();
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(cluster.stats().closed_abnormal, 0);
    alice.send_text("still here").await;
    assert_eq!(alice.recv_text().await, "still here");
    assert!(
        start.elapsed() < Duration::from_secs(600),
        "an hour is not waited for"
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_says_goodbye_or_vanishes_and_keeps_nobody_waiting() {
    let (app, cluster) = echo(Cluster::builder());
    let mut alice = app.socket("/ws").user("alice").await.unwrap();
    assert_eq!(alice.close().await.code, 1000);
    let mut bob = app.socket("/ws").user("bob").await.unwrap();
    assert_eq!(bob.close_with(Close::new(4002, "bye")).await.code, 4002);
    drop(app.socket("/ws").user("alice").await.unwrap());
    let start = Instant::now();
    cluster.shutdown(Duration::ZERO).await;
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "nobody is awaited"
    );
    let stats = cluster.stats();
    assert_eq!((stats.closed_normal, stats.closed_other), (1, 1));
    assert_eq!(
        (stats.closed_abnormal + stats.closed_restart, stats.sockets),
        (1, 0)
    );
}

#[tokio::test]
async fn a_client_whose_test_does_not_read_is_a_slow_consumer() {
    let (app, cluster) = echo(Cluster::builder());
    let mut alice = app.socket("/ws").user("alice").await.unwrap();
    let to_alice = cluster.broadcaster().to_user("alice");
    let text = "x".repeat(1000);
    for _ in 0..4000 {
        to_alice.clone().send(text.clone()).await.unwrap();
    }
    assert_eq!(cluster.stats().slow_closed, 1);
    for _ in 0..1024 {
        assert_eq!(alice.recv().await.len(), 1000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_on_many_threads_are_served_at_once() {
    let (app, cluster) = echo(Cluster::builder());
    let clients = (0..200).map(|n| {
        let connecting = app.socket("/ws").user(n);
        tokio::spawn(async move {
            let mut client = connecting.await.unwrap();
            for round in 0..20 {
                let text = format!("{n} {round}");
                client.send_text(text.clone()).await;
                assert_eq!(client.recv_text().await, text);
            }
            client.close().await;
        })
    });
    for client in join_all(clients).await {
        client.unwrap();
    }
    assert_eq!(cluster.stats().closed_normal, 200);
}

/// It tells the app's own WebSockets no less well.
#[tokio::test]
async fn sockets_of_axum_itself_work_as_well() {
    async fn ws(upgrade: WebSocketUpgrade) -> axum::response::Response {
        upgrade.on_upgrade(async |mut socket| {
            while let Some(Ok(message)) = socket.recv().await {
                let _ = socket.send(message).await;
            }
        })
    }
    let app = App::new(Router::new().route("/ws", any(ws)));
    let mut client = app.socket("/ws").await.unwrap();
    for length in [0, 125, 126, 65_535, 65_536] {
        client.send_text("x".repeat(length)).await;
        assert_eq!(client.recv_text().await.len(), length);
    }
    client.close().await;
}
