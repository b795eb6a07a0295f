//! What a hub does to its nodes.

use std::time::SystemTime;

use axum_cluster::testing::{App, MemoryHub};
use axum_cluster::{Cluster, ClusterBuilder, Health, History, OverLimit};
use futures::{FutureExt, StreamExt};
use tokio::time::{Duration, Instant, sleep, timeout};

use crate::echo;

const SECOND: Duration = Duration::from_secs(1);

fn on(hub: &MemoryHub) -> ClusterBuilder {
    Cluster::builder().backend(hub.backend())
}

fn two(hub: &MemoryHub) -> [(App, Cluster); 2] {
    [(); 2].map(|()| echo(on(hub)))
}

#[tokio::test(start_paused = true)]
async fn a_partition_is_one_gap_from_its_beginning_to_its_end() {
    let hub = MemoryHub::new();
    let [(app_a, a), (_, b)] = two(&hub);
    let mut alice = app_a.socket("/ws").user("alice").await.unwrap();
    let (to_alice, mut gaps) = (b.broadcaster().to_user("alice"), a.gaps());
    sleep(10 * SECOND).await;
    to_alice.clone().send("before").await.unwrap();
    hub.partition(a.id());
    hub.partition(a.id());
    let Health::Degraded { reason, .. } = a.health() else {
        panic!("{}", a.health())
    };
    assert!(reason.contains("partition"), "{reason}");
    assert_eq!(b.health(), Health::Up);
    assert_eq!(
        to_alice.clone().send("lost").await.unwrap().nodes(),
        Some(0)
    );
    let cut_off = a
        .broadcaster()
        .to_user("alice")
        .send("local")
        .await
        .unwrap_err();
    assert_eq!((cut_off.local(), cut_off.maybe_sent()), (1, false));
    sleep(60 * SECOND).await;
    assert!(gaps.next().now_or_never().is_none(), "it is not over");
    hub.heal();
    let gap = gaps.next().await.unwrap();
    assert_eq!(gap.span(), 60 * SECOND);
    assert!(gap.until <= SystemTime::now());
    assert_eq!(a.health(), Health::Up);
    to_alice.send("after").await.unwrap();
    for text in ["before", "local", "after"] {
        assert_eq!(alice.recv_text().await, text);
    }
    let stats = a.stats();
    assert_eq!((stats.bus_gaps, stats.bus_reconnects), (1, 1));
    assert_eq!(b.stats().bus_gaps, 0);
}

#[tokio::test(start_paused = true)]
async fn whoever_is_cut_off_for_longer_than_a_lease_is_gone_and_comes_back() {
    let hub = MemoryHub::new();
    let [(app_a, a), (_, b)] = two(&hub);
    sleep(SECOND).await;
    let _alice = app_a.socket("/ws").user("alice").await.unwrap();
    assert_eq!(
        b.broadcaster()
            .to_user("alice")
            .count()
            .await
            .unwrap()
            .sockets(),
        1
    );
    assert_eq!(b.nodes().await.unwrap().len(), 2);
    hub.partition(a.id());
    sleep(60 * SECOND).await;
    assert_eq!(
        b.broadcaster()
            .to_user("alice")
            .count()
            .await
            .unwrap()
            .sockets(),
        0
    );
    assert_eq!(b.nodes().await.unwrap().len(), 1);
    hub.heal();
    sleep(SECOND).await;
    assert_eq!(
        b.broadcaster()
            .to_user("alice")
            .count()
            .await
            .unwrap()
            .sockets(),
        1
    );
    assert_eq!(b.nodes().await.unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn presence_follows_a_node_that_is_cut_off_and_comes_back() {
    let hub = MemoryHub::new();
    let [(app_a, a), (_, b)] = two(&hub);
    let _alice = app_a.socket("/ws").user("alice").await.unwrap();
    let mut presence = b.broadcaster().presence();
    let mut change = async || {
        let change = timeout(60 * SECOND, presence.next()).await;
        change.unwrap().unwrap().is_online()
    };
    assert!(change().await, "control");
    hub.partition(a.id());
    assert!(!change().await);
    hub.heal();
    assert!(change().await);
}

#[tokio::test(start_paused = true)]
async fn a_delay_is_as_long_as_it_is_said_and_keeps_the_order() {
    let hub = MemoryHub::new();
    let [(app_a, _a), (_, b)] = two(&hub);
    let mut alice = app_a.socket("/ws").user("alice").await.unwrap();
    let to_alice = b.broadcaster().to_user("alice");
    let mut sends = Vec::new();
    let start = Instant::now();
    for (n, millis) in [500, 100, 0, 300].into_iter().enumerate() {
        hub.delay(Duration::from_millis(millis));
        let sending = to_alice.clone().send(n.to_string());
        sends.push(tokio::spawn(sending));
        tokio::task::yield_now().await;
    }
    assert_eq!(alice.recv_text().await, "0");
    assert_eq!(start.elapsed(), Duration::from_millis(500));
    for n in 1..4 {
        assert_eq!(alice.recv_text().await, n.to_string());
    }
    assert_eq!(
        start.elapsed(),
        Duration::from_millis(500),
        "they waited behind it"
    );
    for send in sends {
        assert_eq!(send.await.unwrap().unwrap().nodes(), Some(1));
    }
    hub.delay(5 * SECOND);
    let late = to_alice.send("late").await.unwrap_err();
    assert!(
        late.maybe_sent() && late.to_string().contains("publish_timeout"),
        "{late}"
    );
    assert_eq!(alice.recv_text().await, "late");
}

#[tokio::test(start_paused = true)]
async fn what_is_on_its_way_to_a_node_that_is_cut_off_is_lost_within_its_gap() {
    let hub = MemoryHub::new();
    let [(app_a, a), (_, b)] = two(&hub);
    let mut alice = app_a.socket("/ws").user("alice").await.unwrap();
    hub.delay(SECOND);
    let mut gaps = a.gaps();
    let sent = tokio::spawn(b.broadcaster().to_user("alice").send("on its way"));
    sleep(SECOND / 2).await;
    hub.partition(a.id());
    assert_eq!(sent.await.unwrap().unwrap().nodes(), Some(0));
    alice.expect_silence(10 * SECOND).await;
    hub.heal();
    let gap = gaps.next().await.unwrap();
    assert!(
        gap.span() >= 11 * SECOND,
        "it begins before what was on its way: {gap:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn cut_off_a_node_limits_its_own_sockets() {
    let hub = MemoryHub::new();
    let limited = || echo(on(&hub).max_sockets_per_user_in_cluster(1, OverLimit::Refuse));
    let [(app_a, a), (app_b, _b)] = [limited(), limited()];
    let _first = app_b.socket("/ws").user("alice").await.unwrap();
    let refused = app_a.socket("/ws").user("alice").await.unwrap_err();
    assert_eq!(refused.status(), 429);
    hub.partition(a.id());
    let _second = app_a.socket("/ws").user("alice").await.unwrap();
    assert_eq!(a.stats().limits_unchecked, 1);
    assert_eq!(
        app_a
            .socket("/ws")
            .user("alice")
            .await
            .unwrap_err()
            .status(),
        429
    );
}

#[tokio::test]
#[should_panic(expected = "is on this hub: start its cluster with")]
async fn a_node_of_another_hub_cannot_be_cut_off() {
    MemoryHub::new().partition(Cluster::builder().start().id());
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_comes_when_the_partition_is_over() {
    let hub = MemoryHub::new();
    let [(app_a, a), (_, b)] = [(); 2].map(|()| echo(on(&hub).user_history(History::default())));
    a.ready().await.unwrap();
    b.ready().await.unwrap();
    let mut alice = app_a.socket("/ws").user("alice").await.unwrap();
    let mut gaps = a.gaps();
    let to_alice = || b.broadcaster().to_user("alice");
    to_alice().send("before").await.unwrap();
    hub.partition(a.id());
    for text in ["first", "second"] {
        to_alice().send(text).await.unwrap();
    }
    to_alice().ephemeral().send("typing").await.unwrap();
    hub.heal();
    // What comes before that would be read with the rest, and count as it does.
    let gap = gaps.next().await.unwrap();
    assert!(!gap.concerns_user(&"alice".into()), "{gap:?}");
    assert!(gap.concerns_room(&"lobby".into()), "rooms are not kept");
    to_alice().send("after").await.unwrap();
    for text in ["before", "first", "second", "after"] {
        assert_eq!(alice.recv_text().await, text);
    }
    assert_eq!(a.stats().history_repaired, 2);
}
