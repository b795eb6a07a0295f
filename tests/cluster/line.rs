//! A long link, on which several pipelines are under way: order, once, and what becomes of them when it ends or stalls.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use axum_cluster::{Backend, ClusterBuilder, History, SendError};
use futures::future::join_all;
use futures::{FutureExt, StreamExt, stream};

use crate::support::client::{Event, text};
use crate::support::line::Line;
use crate::support::{Lab, PATIENCE, TestNode, until};

const ROUND_TRIP: Duration = Duration::from_millis(40);
/// So rarely that no probe goes alone amid what is under way, and soon enough after one that could not be published.
const RARELY: Duration = Duration::from_secs(10);
/// Most publications of one pipeline.
const PIPELINE: u64 = 256;

/// A node that is far from Redis, and one that is near.
async fn pair(line: &Line, builder: ClusterBuilder) -> [TestNode; 2] {
    let builder = builder
        .probe_interval(RARELY)
        .outbox_messages(100_000)
        .outbox_bytes(1 << 24);
    let far = builder.clone().backend(Backend::redis(line.url()).unwrap());
    let nodes = [
        TestNode::start(far.start()).await,
        TestNode::start(builder.start()).await,
    ];
    for node in &nodes {
        node.until_up().await;
    }
    nodes
}

fn number(event: &Event) -> usize {
    match event {
        Event::Text(text) => text.parse().unwrap(),
        other => panic!("{other:?}"),
    }
}

fn is_maybe_sent(sent: &Result<(), SendError>) -> bool {
    sent.as_ref().is_err_and(SendError::maybe_sent)
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_under_way_come_in_order() {
    let mut lab = Lab::redis();
    let line = Line::to(lab.server().port(), ROUND_TRIP);
    let [far, near] = pair(&line, lab.builder().publish_timeout(PATIENCE)).await;
    let mut client = near.client("alice").await;
    let alice = || far.broadcaster.to_user("alice");
    alice().send("first").await.unwrap();
    line.take_most();
    let sends = (0..8_000).map(|n| alice().send(n.to_string()));
    for sent in join_all(sends).await {
        assert_eq!(sent.unwrap().nodes(), Some(1));
    }
    let most = line.take_most();
    assert!(most > 4 * PIPELINE, "control: {most} were under way");
    alice().send("fence").await.unwrap();
    assert_eq!(client.event().await, text("first"));
    let came = client.before("fence").await;
    let came: Vec<usize> = came.iter().map(number).collect();
    assert!(came.into_iter().eq(0..8_000), "each once, in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_when_the_link_ends_may_have_been_sent_and_comes_once_at_most() {
    const ALL: usize = 40_000;
    let mut lab = Lab::redis();
    let line = Line::to(lab.server().port(), ROUND_TRIP);
    let [far, near] = pair(&line, lab.builder().publish_timeout(PATIENCE)).await;
    let mut client = near.client("alice").await;
    let reading = tokio::spawn(async move { client.before("fence").await });
    let alice = || far.broadcaster.to_user("alice");
    alice().send("0").await.unwrap();
    let answered = AtomicUsize::new(0);
    let sends = stream::iter(1..ALL).map(|n| {
        let (sending, answered) = (alice().send(n.to_string()), &answered);
        async move {
            let sent = sending.await.map(drop);
            answered.fetch_add(1, SeqCst);
            (n, sent)
        }
    });
    let sends = sends.buffer_unordered(4_096).collect::<Vec<_>>();
    let cutting = async {
        for cut in 1..4 {
            until("some are answered", async || {
                answered.load(SeqCst) > cut * ALL / 4
            })
            .await;
            until("several pipelines are under way", async || {
                line.under_way() > 2 * PIPELINE
            })
            .await;
            line.cut();
        }
    };
    let (mut sends, ()) = tokio::join!(sends, cutting);
    alice().send("fence").await.unwrap();
    sends.sort_by_key(|(n, _)| *n);
    let lost = sends.iter().filter(|(_, sent)| is_maybe_sent(sent));
    let lost = lost.count() as u64;
    assert!(lost > 2 * PIPELINE, "control: {lost} were under way");
    let came: Vec<usize> = reading.await.unwrap().iter().map(number).collect();
    assert!(came.is_sorted_by(|a, b| a < b), "in order, each once");
    for (n, sent) in &sends {
        let has_come = came.binary_search(n).is_ok();
        assert!(has_come || sent.is_err(), "{n} was sent");
        assert!(
            !has_come || sent.is_ok() || is_maybe_sent(sent),
            "{n}: {sent:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_after_a_link_has_stalled_was_not_sent() {
    let mut lab = Lab::redis();
    let line = Line::to(lab.server().port(), ROUND_TRIP);
    let impatient = lab.builder().publish_timeout(Duration::from_secs(2));
    let [far, near] = pair(&line, impatient).await;
    let mut client = near.client("alice").await;
    let alice = || far.broadcaster.to_user("alice");
    alice().send("0").await.unwrap();
    line.stall();
    let (mut sends, mut next) = (Vec::new(), 1..);
    let mut send = |count| {
        for n in next.by_ref().take(count) {
            let mut sending = Box::pin(alice().send(n.to_string()));
            assert!(sending.as_mut().now_or_never().is_none(), "control");
            sends.push(sending);
        }
        sends.len()
    };
    send(1_000);
    let mut last = 0;
    until(
        "several pipelines are under way, and no other leaves",
        async || {
            let before = line.under_way();
            last = send(1);
            tokio::time::sleep(ROUND_TRIP).await;
            before > 2 * PIPELINE && line.under_way() == before
        },
    )
    .await;
    send(100);
    let sent: Vec<bool> = join_all(sends)
        .await
        .into_iter()
        .map(|sent| sent.expect_err("control: the link stalls").maybe_sent())
        .collect();
    let maybe = sent.iter().filter(|maybe_sent| **maybe_sent).count();
    assert!(
        sent[..maybe].iter().all(|maybe_sent| *maybe_sent),
        "the first"
    );
    assert!(
        maybe > 2 * PIPELINE as usize,
        "control: {maybe} were under way"
    );
    assert!(
        maybe < 1_000 + 16 && maybe <= last,
        "{maybe} of {last}: nothing followed what was late"
    );
    line.go_on();
    while alice().send("fence").await.is_err() {}
    assert_eq!(client.event().await, text("0"));
    let came: Vec<usize> = client.before("fence").await.iter().map(number).collect();
    assert!(came.is_sorted_by(|a, b| a < b), "in order, each once");
    assert!(
        came.iter().all(|n| *n <= maybe),
        "what was not sent does not come"
    );
}

/// What is kept goes alone between what is not, since it is published again.
#[tokio::test(flavor = "multi_thread")]
async fn scripts_that_redis_forgets_change_no_order_over_a_long_link() {
    const ROUNDS: usize = 10;
    let mut lab = Lab::redis();
    let line = Line::to(lab.server().port(), ROUND_TRIP / 2);
    let builder = lab.builder().user_history(History::default());
    let [far, near] = pair(&line, builder.publish_timeout(PATIENCE)).await;
    let mut alice = near.client("alice").await;
    let mut bob = near.client("bob").await;
    bob.ask("join r").await;
    let to_alice = || far.broadcaster.to_user("alice");
    let to_room = || far.broadcaster.to_room("r");
    to_room().send("first").await.unwrap();
    line.take_most();
    let redis = lab.server();
    let flushing = async {
        loop {
            redis.cli(&["SCRIPT", "FLUSH"]);
            // Time for it to be told the script, and to be asked for that, a round trip later.
            tokio::time::sleep(5 * ROUND_TRIP / 2).await;
        }
    };
    let sending = async {
        for round in 0..ROUNDS {
            let plain = |n: usize| to_room().send((round * 2_000 + n).to_string());
            let kept = |n: usize| to_alice().send((round * 50 + n).to_string());
            let sends = (0..1_000).map(plain).chain((0..50).map(kept));
            for sent in join_all(sends.chain((1_000..2_000).map(plain))).await {
                sent.unwrap();
            }
        }
    };
    tokio::select! {
        () = flushing => {}
        () = sending => {}
    }
    let most = line.take_most();
    assert!(most > 2 * PIPELINE, "control: {most} were under way");
    let refused = lab.server().cli(&["INFO", "errorstats"]);
    assert!(refused.contains("NOSCRIPT"), "control: {refused}");
    far.broadcaster.to_all().send("fence").await.unwrap();
    let kept: Vec<usize> = alice.before("fence").await.iter().map(number).collect();
    assert!(kept.into_iter().eq(0..50 * ROUNDS), "each once, in order");
    assert_eq!(bob.event().await, text("first"));
    let plain: Vec<usize> = bob.before("fence").await.iter().map(number).collect();
    assert!(
        plain.into_iter().eq(0..2_000 * ROUNDS),
        "each once, in order"
    );
}
