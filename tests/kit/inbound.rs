//! What a client may send in a second. Time is paused, so every number is exact.

use axum_cluster::testing::Client;
use axum_cluster::{Cluster, ClusterBuilder, Stats};
use tokio::time::{Duration, sleep};

use crate::{app_of, echo};

const SECOND: Duration = Duration::from_secs(1);

fn limited(messages: usize, bytes: usize) -> ClusterBuilder {
    Cluster::builder().inbound_limit(messages, bytes)
}

async fn echoes(client: &mut Client, count: usize) {
    for n in 0..count {
        client.send_text(n.to_string()).await;
    }
    for n in 0..count {
        assert_eq!(client.recv_text().await, n.to_string());
    }
}

fn closed(stats: Stats) -> (u64, u64) {
    (stats.inbound_closed, stats.closed_policy)
}

#[tokio::test(start_paused = true)]
async fn a_second_s_worth_of_messages_comes_at_once_and_one_more_is_the_end() {
    let (app, cluster) = echo(limited(10, 1_000_000));
    let mut alice = app.socket("/ws").user("alice").await.unwrap();
    for _ in 0..3 {
        echoes(&mut alice, 10).await;
        sleep(SECOND).await;
    }
    for _ in 0..30 {
        echoes(&mut alice, 1).await;
        sleep(SECOND / 10).await;
    }
    assert_eq!(closed(cluster.stats()), (0, 0), "it keeps to the limit");
    sleep(SECOND).await;
    echoes(&mut alice, 10).await;
    alice.send_text("one more").await;
    let close = alice.closed_with(1008).await;
    assert!(close.reason.contains("more slowly"), "{close}");
    assert_eq!(closed(cluster.stats()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_there_is_none() {
    let (app, cluster) = echo(Cluster::builder());
    let mut alice = app.socket("/ws").user("alice").await.unwrap();
    for _ in 0..20 {
        echoes(&mut alice, 100).await;
    }
    assert_eq!(closed(cluster.stats()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn bytes_are_limited_too_and_the_largest_message_always_fits() {
    let (app, cluster) = echo(limited(1000, 2_000).max_message_size(10_000));
    let mut alice = app.socket("/ws").user("alice").await.unwrap();
    for _ in 0..3 {
        alice.send_binary(vec![0; 10_000]).await;
        alice.recv().await;
        sleep(6 * SECOND).await;
    }
    assert_eq!(
        closed(cluster.stats()),
        (0, 0),
        "2,000 a second are allowed"
    );
    alice.send_binary(vec![0; 10_000]).await;
    alice.recv().await;
    alice.send_binary(vec![0; 4_000]).await;
    alice.closed_with(1008).await;
    assert_eq!(closed(cluster.stats()), (1, 1));
}

/// The client keeps to the limit, and what it sent is read at once much later.
#[tokio::test(start_paused = true)]
async fn what_waits_for_a_busy_handler_is_not_held_against_its_client() {
    let cluster = limited(10, 1_000_000).start();
    let app = app_of(&cluster, |mut socket| async move {
        sleep(60 * SECOND).await;
        while let Some(message) = socket.recv().await {
            let _ = socket.send(message).await;
        }
    });
    let mut alice = app.socket("/ws").user("alice").await.unwrap();
    for n in 0..300 {
        alice.send_text(n.to_string()).await;
        sleep(SECOND / 5).await;
    }
    for n in 0..300 {
        assert_eq!(alice.recv_text().await, n.to_string());
    }
    assert_eq!(closed(cluster.stats()), (0, 0));
    sleep(SECOND).await;
    echoes(&mut alice, 10).await;
    alice.send_text("control: it is watched again").await;
    alice.closed_with(1008).await;
    assert_eq!(closed(cluster.stats()), (1, 1));
}

#[test]
fn a_limit_of_nothing_is_refused() {
    for (builder, part) in [(limited(0, 1), "messages"), (limited(1, 0), "bytes")] {
        let error = builder.try_start().unwrap_err().to_string();
        assert!(
            error.contains(&format!("inbound_limit in {part} is zero")),
            "{error}"
        );
    }
}
