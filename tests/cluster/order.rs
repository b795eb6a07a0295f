//! The order of one sender's messages, through a Redis that stands still.

use std::time::Duration;

use futures::future::join_all;

use crate::support::client::Event;
use crate::support::node::NEVER;
use crate::support::{Lab, TestNode};

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
    let [sending, receiving] = [
        TestNode::start(impatient.clone().start()).await,
        TestNode::start(impatient.start()).await,
    ];
    for node in [&sending, &receiving] {
        node.cluster.ready().await.unwrap();
    }
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
