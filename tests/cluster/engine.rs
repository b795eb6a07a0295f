//! What the WebSocket engine owes a client whatever the handler does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use axum::{Router, middleware, routing::any};
use axum_cluster::ClusterSocket;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::node::{authenticate, serve};
use crate::support::{Client, Lab, soon, until};

/// A client's empty ping, masked with zeros.
const PING: [u8; 6] = [0x89, 0x80, 0, 0, 0, 0];
const PONG: [u8; 2] = [0x8a, 0x00];

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
