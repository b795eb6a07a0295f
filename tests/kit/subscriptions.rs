//! A user of the app who has no WebSocket, beside those who have one.

use axum::response::Response;
use axum::{Router, routing::any};
use axum_cluster::testing::{App, MemoryHub};
use axum_cluster::{Cluster, ClusterSocket};
use futures::{FutureExt, StreamExt};
use tokio::time::{Duration, sleep};

/// Everybody is in the lobby.
fn app(cluster: &Cluster) -> App {
    async fn ws(socket: ClusterSocket) -> Response {
        socket.join("lobby").on_upgrade(|mut socket| async move {
            let to = socket.broadcaster();
            while let Some(message) = socket.recv().await {
                let others = to.to_room("lobby").except(socket.id());
                let _ = others.send(message).await;
            }
        })
    }
    App::new(Router::new().route("/ws", any(ws)).layer(cluster.layer()))
}

#[tokio::test(start_paused = true)]
async fn a_bot_talks_to_clients_on_every_node() {
    let hub = MemoryHub::new();
    let node = || Cluster::builder().backend(hub.backend()).start();
    let (a, b) = (node(), node());
    let to = b.broadcaster();
    let mut bot = to.subscribe("bot").await.unwrap();
    bot.join("lobby").await.unwrap();
    let answering = tokio::spawn(async move {
        while let Some(said) = bot.next().await {
            let answer = format!("you said {}", said.as_text().unwrap_or("nothing"));
            let others = to.to_room("lobby").except(bot.id());
            others.send(answer).await.unwrap();
        }
        bot.close_reason()
    });
    let mut alice = app(&a).socket("/ws").user("alice").await.unwrap();
    alice.send_text("hello").await;
    assert_eq!(alice.recv_text().await, "you said hello");
    // It has no heartbeat that could end.
    sleep(Duration::from_secs(3_600)).await;
    alice.send_text("still there?").await;
    assert_eq!(alice.recv_text().await, "you said still there?");
    b.shutdown(Duration::ZERO).await;
    let close = answering.await.unwrap().unwrap();
    assert_eq!(close.code, 1012);
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_while_its_node_is_cut_off_does_not_come_later() {
    let hub = MemoryHub::new();
    let node = || Cluster::builder().backend(hub.backend()).start();
    let (a, b) = (node(), node());
    let mut bot = b.broadcaster().subscribe("bot").await.unwrap();
    let mut gaps = b.gaps();
    hub.partition(b.id());
    a.broadcaster().to_user("bot").send("lost").await.unwrap();
    b.broadcaster()
        .to_user("bot")
        .local()
        .send("own")
        .await
        .unwrap();
    hub.heal();
    assert!(gaps.next().await.is_some());
    a.broadcaster().to_user("bot").send("again").await.unwrap();
    for expected in ["own", "again"] {
        let message = bot.next().await.unwrap();
        assert_eq!(message.as_text(), Some(expected));
    }
    assert_eq!(bot.next().now_or_never(), None);
}
