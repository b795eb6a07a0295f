//! What a node says of what it may have missed, and how it notices (rows B2, B5, B6, B7, B9).

use std::time::{Duration, SystemTime};

use axum_cluster::{Gap, Health};
use futures::{FutureExt, Stream, StreamExt};

use crate::support::{Lab, RedisServer, TestNode, soon, until};

async fn next_gap(gaps: &mut (impl Stream<Item = Gap> + Unpin)) -> Gap {
    soon("a gap is told", gaps.next())
        .await
        .expect("the node lives")
}

async fn until_degraded(node: &TestNode) {
    until("the outage is noticed", async || {
        matches!(node.cluster.health(), Health::Degraded { .. })
    })
    .await;
}

/// B2: one gap for each outage, told to all who ask, before it or during it, with its span.
#[tokio::test(flavor = "multi_thread")]
async fn every_outage_is_one_gap_with_its_span() {
    let mut lab = Lab::redis();
    let [a] = lab.nodes().await;
    let mut before = a.cluster.gaps();
    for outage in 1..=3 {
        let last_proof = a.cluster.stats().bus_gap_millis;
        let start = SystemTime::now();
        lab.server().kill();
        until_degraded(&a).await;
        let down = SystemTime::now();
        let mut during = a.broadcaster.gaps();
        assert!(
            before.next().now_or_never().is_none(),
            "it is not over, so its end is not known"
        );
        let restarting = SystemTime::now();
        lab.server().restart();
        let gap = next_gap(&mut before).await;
        assert_eq!(next_gap(&mut during).await, gap);
        assert!(gap.from <= down && gap.until >= restarting, "{gap:?}");
        assert!(
            gap.from + Duration::from_secs(30) > start && gap.until <= SystemTime::now(),
            "{gap:?}"
        );
        let stats = a.cluster.stats();
        assert_eq!(stats.bus_gaps, outage);
        assert_eq!(
            stats.bus_gap_millis - last_proof,
            gap.span().as_millis() as u64
        );
    }
}

/// B1: what was never there was not missed.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_absent_from_the_start_is_no_gap() {
    let mut server = RedisServer::absent();
    let node = TestNode::start(Lab::memory().builder().redis(server.url()).start()).await;
    let mut gaps = node.cluster.gaps();
    let refused = async || match node.cluster.health() {
        Health::Degraded { reason, .. } => reason.contains("refused"),
        _ => false,
    };
    until("control: Redis is absent", refused).await;
    server.restart();
    until("up", async || node.cluster.health() == Health::Up).await;
    // The next outage is the first gap.
    server.kill();
    until_degraded(&node).await;
    server.restart();
    next_gap(&mut gaps).await;
    assert!(gaps.next().now_or_never().is_none());
    assert_eq!(node.cluster.stats().bus_gaps, 1);
}
