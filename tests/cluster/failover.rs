//! No connection of a node outlives a change of the primary, and none is given up while it opens (A2, A3, H5).

use std::time::{Duration, SystemTime};

use axum_cluster::{Health, OverLimit};
use futures::StreamExt;

use crate::gaps::replica_of;
use crate::seats::{attempt, enter, is_refused, until_free};
use crate::support::client::text;
use crate::support::node::NEVER;
use crate::support::proxy::Proxy;
use crate::support::redis::redis_cluster::RedisCluster;
use crate::support::redis::sentinels::Sentinels;
use crate::support::{Lab, RedisServer, TestNode, soon, until};

/// Two servers under one name.
struct Pair {
    old: RedisServer,
    new: RedisServer,
    name: Proxy,
}

impl Pair {
    async fn start() -> Self {
        let old = RedisServer::start();
        let new = replica_of(&old);
        let name = Proxy::to(old.port()).await;
        Self { old, new, name }
    }

    /// The replica becomes the primary and the primary its replica. Nobody is cut off.
    async fn fail_over(&self) {
        until_replicated(&self.new).await;
        assert_eq!(self.new.cli(&["REPLICAOF", "NO", "ONE"]), "OK");
        let port = self.new.port().to_string();
        let connections = self.old.connections();
        assert_eq!(self.old.cli(&["REPLICAOF", "127.0.0.1", &port]), "OK");
        self.name.lead_to(self.new.port());
        assert!(self.old.cli(&["ROLE"]).starts_with("slave"), "control");
        assert!(connections > 0, "control");
        until_replicated(&self.old).await;
    }
}

async fn until_replicated(replica: &RedisServer) {
    until("replication", async || {
        let state = replica.cli(&["INFO", "replication"]);
        state.contains("master_link_status:up")
    })
    .await;
}

/// Waits until these users are heard on the new primary, and nothing is degraded.
async fn until_moved(new: &RedisServer, nodes: &[TestNode], users: &[&str], heard: &str) {
    for user in users {
        until("the subscribers moved", async || {
            let channel = format!("cluster:u:{user}");
            new.cli(&["PUBSUB", "NUMSUB", &channel]).ends_with(heard)
        })
        .await;
    }
    for node in nodes {
        until("up", async || node.cluster.health() == Health::Up).await;
    }
}

/// A2: the links on which questions are asked stay open, on a server that hears nobody by now.
#[tokio::test(flavor = "multi_thread")]
async fn questions_are_asked_of_the_new_primary() {
    let pair = Pair::start().await;
    let lab = Lab::memory();
    let builder = lab.builder().redis(pair.name.url());
    let nodes = [(); 2].map(|()| builder.clone().start());
    let [a, b] = nodes;
    let nodes = [TestNode::start(a).await, TestNode::start(b).await];
    let [a, b] = &nodes;
    for node in &nodes {
        node.cluster.ready().await.unwrap();
    }
    let _alice = b.client("alice").await;
    until("control: both links of the pool are open", async || {
        let asked = (0..8).map(|_| a.broadcaster.is_online("alice"));
        let answers = futures::future::join_all(asked).await;
        assert!(answers.into_iter().all(|online| online.unwrap()));
        let clients = pair.old.cli(&["CLIENT", "LIST"]);
        // Redis 7 says `pubsub|numsub`.
        clients.matches("cmd=pubsub").count() == 2
    })
    .await;

    pair.fail_over().await;
    until_moved(&pair.new, &nodes, &["alice"], "1").await;
    for _ in 0..8 {
        assert!(a.broadcaster.is_online("alice").await.unwrap());
        assert!(!a.broadcaster.is_online("bob").await.unwrap());
    }
    assert_eq!(
        pair.old.cli(&["PUBSUB", "NUMSUB", "cluster:u:alice"]),
        "cluster:u:alice\n0",
        "control: the old one would have said no"
    );
}

/// Who still stands on the old primary sends into the void, and learns it first: the others are told.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_on_the_old_primary_is_a_gap_of_those_who_moved() {
    a_send_is_lost_on_the_old_primary(|_| {}).await;
}

/// It finds out by its own publications, which reach the new primary before its subscriptions do.
#[tokio::test(flavor = "multi_thread")]
async fn nor_is_it_silent_if_the_publisher_moves_first() {
    a_send_is_lost_on_the_old_primary(|old| {
        let killed = old.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        assert_ne!(killed, "0", "control: its publisher was connected");
    })
    .await;
}

async fn a_send_is_lost_on_the_old_primary(then: impl Fn(&RedisServer)) {
    let pair = Pair::start().await;
    let lab = Lab::memory();
    // Between two hellos, which tell it as well.
    let quick = lab.builder().redis(pair.name.url()).lease(NEVER);
    let slow = lab.builder().redis(pair.name.url()).probe_interval(NEVER);
    let moved = TestNode::start(quick.start()).await;
    let stays = TestNode::start(slow.start()).await;
    for node in [&moved, &stays] {
        node.cluster.ready().await.unwrap();
    }
    let mut alice = moved.client("alice").await;
    let mut gaps = moved.broadcaster.gaps();
    let send = async |text: &str| {
        let sent = stays.broadcaster.to_user("alice").send(text.to_owned());
        sent.await.unwrap().nodes()
    };
    assert!(!stays.broadcaster.is_online("nobody").await.unwrap());
    assert_eq!(send("control").await, Some(1));
    assert_eq!(alice.event().await, text("control"));

    let failed_at = SystemTime::now();
    pair.fail_over().await;
    until_moved(&pair.new, std::slice::from_ref(&moved), &["alice"], "1").await;
    until("nobody is left there", async || {
        pair.old.cli(&["PUBSUB", "NUMSUB", "cluster:u:alice"]) == "cluster:u:alice\n0"
    })
    .await;
    let own = loop {
        let gap = soon("its own gap", gaps.next()).await.unwrap();
        if gap.until >= failed_at {
            break gap;
        }
    };
    let counted = moved.cluster.stats().bus_gaps;
    let sent_at = SystemTime::now();
    assert_eq!(
        send("lost").await,
        Some(0),
        "nobody is there any more, and no error"
    );
    assert!(own.until < sent_at, "control: {own:?} does not tell of it");
    then(&pair.old);
    // It finds out where it stands.
    assert!(!stays.broadcaster.is_online("nobody").await.unwrap());
    loop {
        let told = soon("the gap of the other", gaps.next()).await.unwrap();
        if told.from <= sent_at && sent_at <= told.until {
            break;
        }
    }
    until("both moved", async || stays.cluster.health() == Health::Up).await;
    assert_eq!(send("found").await, Some(1));
    assert_eq!(alice.event().await, text("found"), "control: it was lost");
    assert!(moved.cluster.stats().bus_gaps > counted);
}

/// The name leads to another primary and the old one lives on, so that nothing ends what stands there.
#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_left_behind_on_another_primary_follows_the_subscriber() {
    let (old, new) = (RedisServer::start(), RedisServer::start());
    let name = Proxy::to(old.port()).await;
    let builder = Lab::memory().builder().redis(name.url());
    let [a, b] = [(); 2].map(|()| builder.clone().start());
    let nodes = [TestNode::start(a).await, TestNode::start(b).await];
    let [a, b] = &nodes;
    for node in &nodes {
        node.cluster.ready().await.unwrap();
    }
    let mut alice = b.client("alice").await;

    name.lead_to(new.port());
    assert_eq!(old.connections(), 4, "control: with the publishers");
    let killed = old.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    assert_eq!(killed, "2", "control: those that listen, and nobody else");
    until_moved(&new, &nodes, &["alice"], "1").await;
    assert!(old.cli(&["ROLE"]).starts_with("master"), "control");
    let sent = a.broadcaster.to_user("alice").send("found").await;
    assert_eq!(sent.unwrap().nodes(), Some(1));
    assert_eq!(alice.event().await, text("found"));
    until("nobody is left there", async || old.connections() == 0).await;
}

/// A3: the seats are written where nothing can be written any longer.
#[tokio::test(flavor = "multi_thread")]
async fn limits_are_checked_by_the_new_primary() {
    let pair = Pair::start().await;
    let lab = Lab::memory();
    let builder = lab.builder().redis(pair.name.url());
    let builder = builder.max_sockets_per_user_in_cluster(2, OverLimit::Refuse);
    let [a, b] = [(); 2].map(|()| builder.clone().start());
    let nodes = [TestNode::start(a).await, TestNode::start(b).await];
    let [a, b] = &nodes;
    for node in &nodes {
        node.cluster.ready().await.unwrap();
    }
    let clients = (enter(a, "alice").await, enter(b, "alice").await);
    assert!(is_refused(a, "alice").await && is_refused(b, "alice").await);
    let unchecked = || nodes.each_ref().map(|n| n.cluster.stats().limits_unchecked);
    assert_eq!(unchecked(), [0, 0], "control: redis decided");
    assert!(pair.old.calls("evalsha") > 0, "control: the old one did");

    pair.fail_over().await;
    until_moved(&pair.new, &nodes, &["alice"], "2").await;
    until("the limit is exact", async || {
        is_refused(a, "alice").await && is_refused(b, "alice").await
    })
    .await;
    let before = unchecked();
    for node in [a, b, a, b] {
        assert!(is_refused(node, "alice").await);
        attempt(node, "bob").await.unwrap();
    }
    drop(clients);
    until_free(&nodes, "alice", 2).await;
    assert_eq!(unchecked(), before, "all of it was decided by redis");
    assert!(pair.new.calls("evalsha") > 0, "by the new one");
}

/// H5: opening takes two round trips, longer than anybody waits; a question takes one.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_opens_slowly_comes_up_all_the_same() {
    let server = RedisServer::with_options(&["--requirepass", "s3cret"]);
    let link = Proxy::far(server.port(), Duration::from_millis(300)).await;
    let lab = Lab::memory();
    let builder = lab
        .builder()
        .redis(format!("redis://:s3cret@{}", link.addr));
    // Probes have the time they need on such a link.
    let builder = builder.probe_interval(Duration::from_secs(5));
    let node = builder.publish_timeout(Duration::from_millis(900)).start();
    let broadcaster = node.broadcaster();
    let first = soon("an end", broadcaster.is_online("alice")).await;
    let reason = first.expect_err("control: the first does not live to see it");
    assert!(
        reason.to_string().contains("no connection in time"),
        "{reason}"
    );
    until("a question is answered", async || {
        broadcaster.is_online("alice").await.is_ok()
    })
    .await;
}

/// T2: with a limit in the whole cluster.
#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_over_a_graceful_failover() {
    let sentinels = Sentinels::start(1, 3);
    let follows = || {
        let heard = sentinels.servers[1].cli(&["PUBSUB", "NUMSUB", "cluster:nodes"]);
        heard.ends_with('2')
    };
    limit_over(&sentinels.url(), || sentinels.fail_over(), follows).await;
}

/// T12.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_limits_hold_over_a_graceful_failover() {
    let cluster = RedisCluster::start(3, 1);
    // Of the primary that has the seats of this user, or not: of each.
    let fails_over = || (0..3).for_each(|old| cluster.fail_over(old + 3));
    let follows = || {
        let heard = |node: usize| !cluster.heard_at(node, "cluster:").is_empty();
        (3..6).all(heard) && !(0..3).any(heard)
    };
    limit_over(&cluster.url(), fails_over, follows).await;
}

async fn limit_over(url: &str, fails_over: impl FnOnce(), follows: impl Fn() -> bool) {
    let builder = Lab::memory().builder().redis(url).lease(NEVER);
    let builder = builder.max_sockets_per_user_in_cluster(2, OverLimit::Refuse);
    let [a, b] = [(); 2].map(|()| builder.clone().start());
    let nodes = [TestNode::start(a).await, TestNode::start(b).await];
    let [a, b] = &nodes;
    for node in &nodes {
        node.until_up().await;
    }
    let (first, _second) = (enter(a, "alice").await, enter(b, "alice").await);
    assert!(is_refused(a, "alice").await, "control");
    fails_over();
    until("both are at the new primary", async || follows()).await;
    for node in &nodes {
        node.until_up().await;
    }
    // While a node only counts its own, one more may enter: it says so.
    let unchecked = || {
        nodes
            .iter()
            .map(|node| node.cluster.stats().limits_unchecked)
            .sum::<u64>()
    };
    until("it is checked again", async || {
        let before = unchecked();
        let refused = (is_refused(a, "alice").await, is_refused(b, "alice").await);
        refused == (true, true) && unchecked() == before
    })
    .await;
    drop(first);
    let _third = enter(b, "alice").await;
    assert!(is_refused(a, "alice").await && is_refused(b, "alice").await);
}
