//! Faults under traffic (rows B2, B4, B10, C2 and D9): who was told what, who heard it, and what it cost.

use std::time::{Duration, Instant};

use axum_cluster::{Broadcaster, Health};
use tokio_util::sync::CancellationToken;

use crate::bus::Watch;
use crate::support::client::{Event, text};
use crate::support::figures::Figures;
use crate::support::node::NEVER;
use crate::support::program::ticker;
use crate::support::proxy::Proxy;
use crate::support::redis::free_port;
use crate::support::traffic::Traffic;
use crate::support::{Client, Lab, TestNode, soon, until};

/// B2: outages of different length in a row, while sockets come and go.
#[tokio::test(flavor = "multi_thread")]
async fn every_outage_of_a_row_is_noticed_survived_and_one_gap() {
    let mut lab = Lab::redis();
    let publish_timeout = Duration::from_secs(20);
    let builder = lab.builder().publish_timeout(publish_timeout);
    let a = TestNode::start(builder.clone().start()).await;
    let b = TestNode::start(builder.start()).await;
    let mut watches = [Watch::new(&a), Watch::new(&b)];
    for watch in &mut watches {
        watch.until_up().await;
    }
    let mut client = a.client("alice").await;
    let stop = CancellationToken::new();
    let (addr, stopped) = (a.addr, stop.clone());
    let churn = tokio::spawn(async move {
        let mut visits = 0;
        while !stopped.is_cancelled() {
            let mut visitor = Client::connect(addr, "visitor").await;
            visitor.send("join lobby").await;
            visitor.before("joined").await;
            visitor.close(1000).await;
            visits += 1;
        }
        visits
    });
    let gaps = a.cluster.gaps();
    let traffic = Traffic::start(&b.broadcaster, "alice");
    let mut faults = Vec::new();
    for (n, milliseconds) in [0, 300, 1000, 3000].into_iter().enumerate() {
        traffic.passes(20).await;
        let mut figures = Figures::of("B2");
        lab.server().kill();
        for watch in &mut watches {
            watch.until_degraded().await;
        }
        figures.noticed();
        let end = Instant::now() + Duration::from_millis(milliseconds);
        let mut slowest = Duration::ZERO;
        loop {
            let begun = Instant::now();
            let lost = b.broadcaster.to_user("nobody").send("lost").await;
            assert!(lost.is_err(), "control: the bus is gone");
            slowest = slowest.max(begun.elapsed());
            if Instant::now() >= end {
                break;
            }
        }
        assert!(
            slowest < publish_timeout / 4,
            "a send failed only after {slowest:?}"
        );
        lab.server().restart();
        figures.repaired();
        for watch in &mut watches {
            watch.until_up().await;
        }
        figures.healed();
        faults.push(figures);
        for node in [&a, &b] {
            assert_eq!(node.cluster.stats().bus_gaps, n as u64 + 1, "one gap each");
        }
    }
    traffic.passes(20).await;
    stop.cancel();
    assert!(churn.await.unwrap() > 4, "control: visitors came and went");
    let heard = async || heard_until_fence(&b.broadcaster, &mut client).await;
    traffic.judge(heard, gaps, faults).await;
    for audience in [
        b.broadcaster.to_user("visitor"),
        b.broadcaster.to_room("lobby"),
    ] {
        until("nobody listens for who has left", async || {
            audience.clone().send("x").await.unwrap().nodes() == Some(0)
        })
        .await;
    }
}

/// B4: only the subscribers die, again and again, while messages flow.
#[tokio::test(flavor = "multi_thread")]
async fn killed_subscribers_lose_nothing_outside_the_gap() {
    let mut lab = Lab::redis();
    let [a, b] = lab.nodes().await;
    let (mut watch, mut other) = (Watch::new(&a), Watch::new(&b));
    watch.until_up().await;
    other.until_up().await;
    let mut client = a.client("alice").await;
    let connections = lab.server().connections();
    assert_eq!(connections, 4, "control: two of each node");
    let gaps = a.cluster.gaps();
    let traffic = Traffic::start(&b.broadcaster, "alice");
    let mut faults = Vec::new();
    for _ in 0..10 {
        traffic.passes(20).await;
        let mut figures = Figures::of("B4 subscriber");
        let killed = lab.server().cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        assert_eq!(killed, "2", "control: both were connected");
        watch.until_degraded().await;
        figures.noticed();
        watch.until_up().await;
        figures.healed();
        faults.push(figures);
        other.until_degraded().await;
        other.until_up().await;
    }
    traffic.passes(20).await;
    let heard = async || heard_until_fence(&b.broadcaster, &mut client).await;
    traffic.judge(heard, gaps, faults).await;
    assert_eq!(a.cluster.stats().bus_gaps, 10);
    until("no connection is left over", async || {
        lab.server().connections() == connections
    })
    .await;
}

/// B4: only the publishers die. Nobody is deaf, so nothing may be lost at all.
#[tokio::test(flavor = "multi_thread")]
async fn killed_publishers_lose_nothing_that_was_said_to_be_sent() {
    let mut lab = Lab::redis();
    let [a, b] = patient_nodes(&lab).await;
    let mut client = a.client("alice").await;
    let connections = lab.server().connections();
    assert_eq!(connections, 4, "control: two of each node");
    let gaps = a.cluster.gaps();
    let traffic = Traffic::start(&b.broadcaster, "alice");
    let mut faults = Vec::new();
    for _ in 0..20 {
        traffic.passes(20).await;
        let mut figures = Figures::of("B4 publisher");
        let killed = lab.server().cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        assert!(killed.parse::<u32>().unwrap() >= 1, "control");
        traffic.passes(1).await;
        figures.healed();
        faults.push(figures);
    }
    let heard = async || heard_until_fence(&b.broadcaster, &mut client).await;
    traffic.judge(heard, gaps, faults).await;
    for node in [&a, &b] {
        assert_eq!(node.cluster.stats().bus_gaps, 0, "nobody was deaf");
        // A probe may have been on the connection that was killed.
        until("it is well", async || node.cluster.health() == Health::Up).await;
    }
    until("no connection is left over", async || {
        lab.server().connections() == connections
    })
    .await;
}

/// With the default interval: a probe waits while its publisher pauses, which kills in a row prolong, and a link that
/// listens is given up when one waits for longer than the interval of the other tests.
pub(crate) async fn patient_nodes(lab: &Lab) -> [TestNode; 2] {
    let builder = lab.builder().probe_interval(Duration::from_secs(5));
    let [a, b] = [(); 2].map(|()| builder.clone().start());
    let nodes = [TestNode::start(a).await, TestNode::start(b).await];
    for node in &nodes {
        node.cluster.ready().await.unwrap();
    }
    nodes
}

/// B4: the publish arrives and its answer does not. The sender is told so, and nobody repeats it.
#[tokio::test(flavor = "multi_thread")]
async fn a_publish_without_an_answer_is_perhaps_sent_and_never_repeated() {
    let lab = Lab::redis();
    let a = TestNode::start(lab.builder().lease(NEVER).start()).await;
    a.cluster.ready().await.unwrap();
    let link = Proxy::to(lab.redis.as_ref().unwrap().port()).await;
    // Nothing else is published, for whose answer this would have to wait.
    let builder = lab.builder().redis(link.url()).probe_interval(NEVER);
    let builder = builder.lease(NEVER);
    let b = TestNode::start(builder.publish_timeout(Duration::from_millis(500)).start()).await;
    b.cluster.ready().await.unwrap();
    until("they know each other", async || {
        a.cluster.stats().nodes == 2 && b.cluster.stats().nodes == 2
    })
    .await;
    b.broadcaster.to_user("nobody").send("x").await.unwrap();
    let mut client = a.client("alice").await;
    link.deafen();
    let mut figures = Figures::of("B4 answer lost");
    let error = b.broadcaster.to_user("alice").send("once").await;
    figures.noticed();
    assert!(error.unwrap_err().maybe_sent());
    assert_eq!(client.event().await, text("once"), "control: it was sent");
    link.heal();
    figures.repaired();
    until("the publisher has a new connection", async || {
        b.broadcaster.to_user("nobody").send("x").await.is_ok()
    })
    .await;
    figures.healed();
    b.broadcaster.to_user("alice").send("fence").await.unwrap();
    assert_eq!(client.before("fence").await, [], "not repeated");
}

/// D9, where it hurts: subscriptions take their time, and the send comes from a node with a quick
/// link. Two sockets of one user share the subscription that is under way.
#[tokio::test(flavor = "multi_thread")]
async fn a_send_right_after_the_upgrade_arrives_over_a_slow_link() {
    let lab = Lab::redis();
    let port = lab.redis.as_ref().unwrap().port();
    let link = Proxy::slow(port, Duration::from_millis(20)).await;
    let a = TestNode::start(lab.builder().redis(link.url()).start()).await;
    a.cluster.ready().await.unwrap();
    let b = lab.node().await;
    for n in 0..10 {
        let user = format!("user-{n}");
        let two = async |after: Duration| {
            tokio::time::sleep(after).await;
            let mut client = a.client(&user).await;
            let sent = b.broadcaster.to_user(&user).send("at once").await.unwrap();
            assert_eq!(sent.nodes(), Some(1));
            assert_eq!(client.event().await, text("at once"));
        };
        // The second comes while the first one's subscription is on its way.
        tokio::join!(two(Duration::ZERO), two(Duration::from_millis(10)));
    }
}

/// Everything that a client hears until the other node's fence.
pub(crate) async fn heard_until_fence(
    broadcaster: &Broadcaster,
    client: &mut Client,
) -> Vec<Event> {
    until("a fence can be sent", async || {
        let sent = broadcaster.to_all().send("fence").await;
        sent.is_ok_and(|sent| sent.nodes() == Some(1))
    })
    .await;
    client.before("fence").await
}

/// B10: a real process, killed without warning.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_is_forgotten_at_once_and_hurts_nobody() {
    let mut lab = Lab::redis();
    let [a, b] = lab.nodes().await;
    assert!(!b.broadcaster.is_online("bob").await.unwrap());
    let connections = lab.server().connections();
    let port = free_port();
    let process = ticker(port, &lab.server().url()).await;
    let addr = ([127, 0, 0, 1], port).into();
    let mut client = a.client("alice").await;
    let mut remote = Client::try_connect(addr, "/ws", &[("cookie", "token=alice")])
        .await
        .unwrap();
    let _alone = Client::try_connect(addr, "/ws", &[("cookie", "token=bob")])
        .await
        .unwrap();
    let both = b.broadcaster.to_user("alice").send("both").await.unwrap();
    assert_eq!(both.nodes(), Some(2), "control: the process is a node");
    assert_eq!(client.event().await, text("both"));
    assert_eq!(remote.event().await, text("both"));
    assert!(b.broadcaster.is_online("bob").await.unwrap(), "control");

    let mut figures = Figures::of("B10");
    drop(process);
    until("its users are offline", async || {
        !b.broadcaster.is_online("bob").await.unwrap()
    })
    .await;
    figures.noticed();
    assert_eq!(remote.event().await, Event::Closed(1006, String::new()));
    let rest = b.broadcaster.to_user("alice").send("rest").await.unwrap();
    assert_eq!(rest.nodes(), Some(1));
    assert_eq!(client.event().await, text("rest"));
    assert!(b.broadcaster.is_online("alice").await.unwrap());
    for node in [&a, &b] {
        assert_eq!(node.cluster.health(), Health::Up);
        assert_eq!(node.cluster.stats().bus_gaps, 0);
    }
    assert_eq!(lab.server().connections(), connections, "nothing is left");
}

/// C2: the client's link swallows everything, and no FIN ever comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanished_without_a_word_is_offline_after_the_heartbeat() {
    let lab = Lab::redis();
    // Long enough for a busy machine to answer a ping.
    let (interval, timeout) = (Duration::from_millis(200), Duration::from_secs(3));
    let builder = lab
        .builder()
        .ping_interval(interval)
        .pong_timeout(timeout)
        .write_timeout(NEVER);
    let mut a = TestNode::start(builder.start()).await;
    a.cluster.ready().await.unwrap();
    let b = lab.node().await;
    let link = Proxy::to(a.addr.port()).await;
    let mut vanishing = Client::connect(link.addr, "vanishing").await;
    assert_eq!(vanishing.ask("hello").await, "hello");
    let mut stays = a.client("stays").await;
    let staying = tokio::spawn(async move { stays.event().await });
    // Reads, so that it answers pings as long as its link carries them.
    let reading = tokio::spawn(async move { vanishing.event().await });
    tokio::time::sleep(interval + timeout).await;
    assert!(
        b.broadcaster.is_online("vanishing").await.unwrap(),
        "control: pings pass the link"
    );

    let mut figures = Figures::of("C2");
    link.black_hole();
    let end = a.next_end().await;
    figures.noticed();
    assert_eq!(
        (
            end.user.as_str(),
            end.close.map(|close| close.code.as_u16())
        ),
        ("vanishing", Some(1006))
    );
    until("it is offline", async || {
        !b.broadcaster.is_online("vanishing").await.unwrap()
    })
    .await;
    assert!(
        !reading.is_finished(),
        "control: the client was told nothing"
    );
    reading.abort();
    b.broadcaster.to_all().send("you live").await.unwrap();
    assert_eq!(soon("the other", staying).await.unwrap(), text("you live"));
}
