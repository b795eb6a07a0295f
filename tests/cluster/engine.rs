//! What the WebSocket engine owes a client whatever the handler does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use axum::{Router, middleware, routing::any};
use axum_cluster::ClusterSocket;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::node::{authenticate, serve};
use crate::support::{Client, Lab, TestNode, soon, until};

/// A client's empty ping, masked with zeros.
const PING: [u8; 6] = [0x89, 0x80, 0, 0, 0, 0];
const PONG: [u8; 2] = [0x8a, 0x00];
const SERVERS_PING: [u8; 2] = [0x89, 0x00];

/// A handler that has always something to do uses up what tokio lets a task do in one turn; reading from
/// the client must not be what is left out.
#[tokio::test(flavor = "multi_thread")]
async fn pings_are_answered_while_the_handler_is_always_busy() {
    let cluster = Lab::memory().builder().start();
    let turns = Arc::new(AtomicU64::new(0));
    let counter = turns.clone();
    let busy = async move |socket: ClusterSocket| {
        socket.on_upgrade(|socket| async move {
            while socket.close_reason().is_none() {
                tokio::task::consume_budget().await;
                counter.fetch_add(1, SeqCst);
            }
        })
    };
    let app = Router::new()
        .route("/ws", any(busy))
        .layer(cluster.layer())
        .layer(middleware::from_fn(authenticate));
    let (addr, _server) = serve(app).await;
    let mut client = Client::connect(addr, "alice").await;
    until("the handler is busy", async || turns.load(SeqCst) > 1000).await;

    let stream = client.raw();
    stream.write_all(&PING).await.unwrap();
    let mut answer = [0; 2];
    soon("a pong", stream.read_exact(&mut answer))
        .await
        .unwrap();
    assert_eq!(answer, PONG);
    let still = turns.load(SeqCst);
    until("the handler is still busy", async || {
        turns.load(SeqCst) > still
    })
    .await;
}

/// Nothing is read for a handler that does not read, so neither a pong nor the end of the stream is seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_left_is_noticed_though_the_handler_does_not_read() {
    let builder = Lab::memory()
        .builder()
        .ping_interval(Duration::from_millis(20))
        // Long enough for a busy machine to get as far as not reading.
        .pong_timeout(Duration::from_secs(1));
    let node = TestNode::start(builder.start()).await;
    let mut client = node.client("alice").await;
    client.send("sleep").await;
    for _ in 0..100 {
        client.send("nobody reads this").await;
    }

    for _ in 0..3 {
        let mut ping = [0; 2];
        let read = client.raw().read_exact(&mut ping);
        soon("a ping", read).await.unwrap();
        assert_eq!(
            ping, SERVERS_PING,
            "unanswered, but not its fault: it may stay"
        );
    }
    assert_eq!(node.cluster.stats().sockets, 1);
    drop(client);
    node.until_empty().await;
}
