//! The order of one sender's messages, through a Redis that stands still.

use std::pin::pin;
use std::time::Duration;

use axum_cluster::ClusterBuilder;
use futures::FutureExt;
use futures::future::join_all;

use crate::support::client::{Event, text};
use crate::support::node::NEVER;
use crate::support::{Lab, PATIENCE, TestNode, until};

async fn pair(builder: ClusterBuilder) -> [TestNode; 2] {
    let nodes = [
        TestNode::start(builder.clone().start()).await,
        TestNode::start(builder.start()).await,
    ];
    for node in &nodes {
        node.cluster.ready().await.unwrap();
    }
    nodes
}

/// Redis reads 16 KiB of each connection in turn: of a burst that waits on one connection the end
/// would come after what was sent later on another.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_a_frozen_redis_comes_before_what_is_sent_later() {
    let mut lab = Lab::redis();
    let impatient = lab
        .builder()
        .probe_interval(NEVER)
        .outbox_messages(10_000)
        .outbox_bytes(1 << 24)
        .publish_timeout(Duration::from_millis(200));
    let [sending, receiving] = pair(impatient).await;
    let mut client = receiving.client("alice").await;
    let mut numbers = 0..;
    let mut send = || {
        let text = format!("{:4000}", numbers.next().unwrap());
        sending.broadcaster.to_user("alice").send(text)
    };
    let mut waited = 0;
    for _ in 0..10 {
        send().await.unwrap();
        lab.server().freeze();
        let burst = join_all((0..200).map(|_| send())).await;
        for _ in 0..3 {
            assert!(send().await.is_err(), "control: redis is frozen");
        }
        lab.server().thaw();
        waited += burst
            .iter()
            .filter(|sent| sent.as_ref().is_err_and(|error| error.maybe_sent()))
            .count();
        while send().await.is_err() {}
    }
    assert_ne!(waited, 0, "control: something waited in redis");
    sending
        .broadcaster
        .to_user("alice")
        .send("fence")
        .await
        .unwrap();
    let came = client.before("fence").await;
    let came: Vec<u64> = came
        .iter()
        .map(|event| match event {
            Event::Text(text) => text.trim().parse().unwrap(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(came.len() > 10, "control: something came");
    for pair in came.windows(2) {
        assert!(pair[0] < pair[1], "{} after {}", pair[1], pair[0]);
    }
}

/// With the queue full, each waits for room in the place of its first poll, whoever is polled first afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_room_keeps_its_place() {
    let mut lab = Lab::redis();
    let patient = lab
        .builder()
        .probe_interval(NEVER)
        .publish_timeout(PATIENCE);
    let [sending, receiving] = pair(patient).await;
    let mut client = receiving.client("alice").await;
    let alice = || sending.broadcaster.to_user("alice");
    let queued = || sending.cluster.stats().bus_publish_queue;

    lab.server().freeze();
    let users = (0..64).map(|user| user.to_string());
    let mut crowd = pin!(
        sending
            .broadcaster
            .to_users(users)
            .send("x".repeat(1 << 20))
    );
    assert!(crowd.as_mut().now_or_never().is_none());
    let full = queued();
    let mut waiting = ["first", "gave up", "second"].map(|text| Box::pin(alice().send(text)));
    for send in &mut waiting {
        assert!(send.now_or_never().is_none(), "control: redis is frozen");
    }
    assert_eq!(queued(), full, "control: there is no room for them");
    let [first, gave_up, second] = waiting;
    drop(gave_up);
    lab.server().thaw();
    crowd.await.unwrap();
    until("there is room", async || queued() <= 2).await;
    for sent in join_all([second, first]).await {
        sent.unwrap();
    }
    alice().send("fence").await.unwrap();
    let came = client.before("fence").await;
    assert_eq!(came, [text("first"), text("second")]);
}
