//! What is kept and sent while Redis is away waits for it, and what a failover loses is kept again (rows H14 and H28).

use std::time::{Duration, SystemTime};

use axum_cluster::{ClusterBuilder, Delivery, History, SendErrorKind};
use futures::StreamExt;
use futures::future::join_all;

use crate::support::client::{Event, text};
use crate::support::proxy::Proxy;
use crate::support::redis::redis_cluster::{RedisCluster, part, prefix_of, slot_of};
use crate::support::{Client, Lab, RedisServer, TestNode, keeping, soon, until};

/// More than any of these tests needs.
const WAIT: Duration = Duration::from_secs(60);
/// So many are sent when the replica is behind.
const LATE: usize = 9;

fn spooling(builder: ClusterBuilder) -> ClusterBuilder {
    keeping(builder).spool(10_000, 1 << 24, WAIT)
}

fn at(url: &str) -> ClusterBuilder {
    Lab::memory().builder().redis(url)
}

async fn start(builder: ClusterBuilder) -> TestNode {
    let node = TestNode::start(builder.start()).await;
    node.until_up().await;
    node
}

async fn send(node: &TestNode, number: usize) -> Delivery {
    let alice = node.broadcaster.to_user("alice");
    alice.send(number.to_string()).await.unwrap()
}

async fn kept(node: &TestNode) -> Vec<String> {
    let kept = node.broadcaster.to_user("alice").history().await.unwrap();
    let texts = kept.messages.iter().filter_map(|message| message.as_text());
    texts.map(str::to_owned).collect()
}

fn numbers(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| number.to_string()).collect()
}

/// Whatever came before the fence, which waits like everything else.
async fn heard(node: &TestNode, clients: impl IntoIterator<Item = Client>) -> Vec<Vec<String>> {
    let alice = node.broadcaster.to_user("alice");
    let fence = alice.send("fence").await.unwrap();
    soon("the fence is sent", fence.settled()).await.unwrap();
    let mut heard = Vec::new();
    for mut client in clients {
        let events = client.before("fence").await;
        let texts = events.into_iter().map(|event| match event {
            Event::Text(text) => text,
            other => panic!("{other:?}"),
        });
        heard.push(texts.collect());
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_while_redis_is_away_leaves_in_order_when_it_is_back() {
    let mut server = RedisServer::start();
    let near = start(spooling(at(&server.url()))).await;
    let far = start(spooling(at(&server.url()))).await;
    let plain = start(keeping(at(&server.url()))).await;
    let clients = [near.client("alice").await, far.client("alice").await];
    for number in 0..3 {
        let delivery = send(&near, number).await;
        assert!(!delivery.spooled() && delivery.position().is_some());
        assert_eq!((delivery.local(), delivery.nodes()), (1, Some(1)));
    }
    assert_eq!(server.cli(&["SAVE"]), "OK");
    server.kill();
    until("the outage is noticed", async || {
        let bob = near.broadcaster.to_user("bob");
        bob.ephemeral().send("typing").await.is_err()
    })
    .await;
    let lost = plain.broadcaster.to_user("bob").send("lost").await;
    assert!(lost.is_err(), "control: without a spool it fails");
    let mut waiting = Vec::new();
    for number in 3..100 {
        let delivery = send(&near, number).await;
        assert!(delivery.spooled());
        assert_eq!((delivery.local(), delivery.nodes()), (0, None));
        assert_eq!(delivery.position(), None);
        waiting.push(delivery);
    }
    let stats = near.cluster.stats();
    assert_eq!((stats.spooled, stats.spool_waiting), (97, 97));
    server.restart();
    for delivery in &waiting {
        let settled = soon("it is sent", delivery.settled()).await.unwrap();
        assert!(!settled.spooled());
        assert!(settled.position().is_some());
    }
    near.until_up().await;
    far.until_up().await;
    let expected = numbers(0..100);
    assert_eq!(kept(&far).await, expected);
    assert_eq!(heard(&near, clients).await, [&expected[..], &expected]);
    let stats = near.cluster.stats();
    assert_eq!((stats.spool_waiting, stats.spool_dropped), (0, 0));
    assert_eq!(stats.history_again, 0, "nothing was lost");
}

async fn found_after_the_thaw(server: &RedisServer, waiting: &[Delivery]) {
    server.thaw();
    until("control: it was looked for", async || {
        server.calls("lrange") > 0
    })
    .await;
    for delivery in waiting {
        soon("it is sent", delivery.settled()).await.unwrap();
    }
}

/// What it has read and not answered is done when it is thawed; what it has not read is not.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_frozen_redis_had_without_an_answer_comes_once() {
    let server = RedisServer::start();
    let builder = |url: &str| at(url).publish_timeout(Duration::from_millis(300));
    let near = start(spooling(builder(&server.url()))).await;
    let far = start(spooling(builder(&server.url()))).await;
    let clients = [near.client("alice").await, far.client("alice").await];
    send(&near, 0).await;
    server.freeze();
    let mut waiting = Vec::new();
    for number in 1..50 {
        waiting.push(send(&near, number).await);
    }
    assert!(waiting.iter().all(Delivery::spooled));
    found_after_the_thaw(&server, &waiting).await;
    near.until_up().await;
    far.until_up().await;
    let expected = numbers(0..50);
    assert_eq!(kept(&far).await, expected);
    assert_eq!(heard(&near, clients).await, [&expected[..], &expected]);
    let length = server.cli(&["LLEN", "cluster:h:u:alice"]);
    assert_eq!(length, "51", "with the fence, each once");
}

/// Much more than is kept of it is on its way to one audience.
#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_left_without_an_answer_than_is_kept() {
    const KEPT: usize = 10;
    const SENDS: usize = 40;
    let server = RedisServer::start();
    let start_with = async |builder: ClusterBuilder| {
        let history = History {
            messages: KEPT,
            ..History::default()
        };
        start(spooling(builder).user_history(history)).await
    };
    let quick = at(&server.url()).publish_timeout(Duration::from_millis(300));
    let near = start_with(quick).await;
    let far = start_with(at(&server.url())).await;
    let clients = [near.client("alice").await, far.client("alice").await];
    send(&near, 0).await;
    server.freeze();
    // Queued by their first polls, so that they leave together.
    let sends = (1..SENDS).map(|number| send(&near, number));
    let waiting = join_all(sends).await;
    assert!(waiting.iter().all(Delivery::spooled));
    found_after_the_thaw(&server, &waiting).await;
    near.until_up().await;
    far.until_up().await;
    let expected = numbers(0..SENDS);
    assert_eq!(heard(&near, clients).await, [&expected[..], &expected]);
}

/// The link breaks again and again while Redis does what it is asked.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_breaks_between_redis_and_a_sender_comes_once_and_in_order() {
    const COUNT: usize = 300;
    let server = RedisServer::start();
    let link = Proxy::far(server.port(), Duration::from_millis(3)).await;
    let near = start(spooling(at(&link.url()))).await;
    let far = start(spooling(at(&server.url()))).await;
    let client = far.client("alice").await;
    let pause = |millis: std::ops::Range<u64>| {
        let millis = fastrand::u64(millis);
        tokio::time::sleep(Duration::from_millis(millis))
    };
    let breaking = async {
        loop {
            pause(30..120).await;
            link.cut();
            pause(1..10).await;
            link.heal();
        }
    };
    let sending = async {
        let mut sent = 0;
        while sent < COUNT || near.cluster.stats().spooled == 0 {
            send(&near, sent).await;
            sent += 1;
        }
        sent
    };
    let sent = tokio::select! {
        () = breaking => unreachable!("it breaks for ever"),
        sent = sending => sent,
    };
    link.heal();
    assert_eq!(heard(&near, [client]).await, [numbers(0..sent)]);
}

/// A primary dies whose replica has not got the last of it. What is kept at the end, and what was heard by whoever heard all of it,
/// by the sender's own sockets, and by whoever was cut off from the old primary; and how much the sender counted.
async fn late_replica(spool: bool) -> (Vec<String>, [Vec<String>; 3], [u64; 2]) {
    let mut old = RedisServer::start();
    let new = crate::gaps::replica_of(&old);
    let (name, other) = (Proxy::to(old.port()).await, Proxy::to(old.port()).await);
    let builder = |url: &str| match spool {
        true => spooling(at(url)),
        false => keeping(at(url)),
    };
    let near = start(builder(&name.url())).await;
    let far = start(builder(&name.url())).await;
    let cut = start(builder(&other.url())).await;
    let clients = [
        far.client("alice").await,
        near.client("alice").await,
        cut.client("alice").await,
    ];
    for number in 0..5 {
        send(&near, number).await;
    }
    let length = || new.cli(&["LLEN", "cluster:h:u:alice"]);
    until("control: replication", async || length() == "5").await;
    until("all is heard", async || cut.cluster.stats().delivered == 5).await;
    new.freeze();
    // What is sent later stays behind this.
    let fill = "for n = 1, 2000 do redis.call('SET', 'fill', string.rep('x', 8192)) end";
    old.cli(&["EVAL", fill, "0"]);
    other.cut();
    for number in 5..5 + LATE {
        assert!(!send(&near, number).await.spooled(), "control: taken");
    }
    until("all is heard", async || {
        far.cluster.stats().delivered == 5 + LATE as u64
    })
    .await;
    old.kill();
    if spool {
        until("the outage is noticed", async || {
            let bob = near.broadcaster.to_user("bob");
            bob.ephemeral().send("typing").await.is_err()
        })
        .await;
        assert!(send(&near, 5 + LATE).await.spooled());
    }
    new.thaw();
    assert_eq!(new.cli(&["REPLICAOF", "NO", "ONE"]), "OK");
    assert_eq!(length(), "5", "control: the last is not there");
    name.lead_to(new.port());
    other.lead_to(new.port());
    other.heal();
    for node in [&near, &far, &cut] {
        node.until_up().await;
    }
    if !spool {
        until("a send", async || {
            let sent = near.broadcaster.to_user("alice").send("14").await;
            sent.is_ok()
        })
        .await;
    }
    send(&near, 6 + LATE).await.settled().await.unwrap();
    let kept = kept(&far).await;
    let heard = heard(&near, clients).await;
    let stats = near.cluster.stats();
    let counted = [stats.history_again, stats.history_rolled_back];
    (kept, heard.try_into().unwrap(), counted)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_late_replica_has_not_got_is_kept_again_and_comes_once() {
    let (kept, heard, counted) = late_replica(true).await;
    assert_eq!(kept, numbers(0..16));
    for heard in heard {
        assert_eq!(heard, numbers(0..16), "each once, in order");
    }
    assert_eq!(counted, [9, 0]);
}

/// The control of the test above.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_spool_what_a_late_replica_has_not_got_is_lost() {
    let (kept, [far, _, cut], counted) = late_replica(false).await;
    let survived: Vec<String> = [numbers(0..5), numbers(14..16)].concat();
    assert_eq!(kept, survived);
    assert_eq!(cut, survived, "whoever was cut off has lost it");
    assert!(far.len() >= 16, "{far:?}");
    assert_eq!(counted, [0, 9]);
}

/// A primary of a Redis Cluster dies whose replica has not got the last of it: the first of that was sent by then. And what is
/// sent next.
async fn late_replica_of_a_cluster(
    redis: &mut RedisCluster,
    [near, far]: [&TestNode; 2],
) -> (SystemTime, usize) {
    let part = part("u:alice");
    let owner = redis.owner(slot_of(part), 0).unwrap();
    let replica = owner + 3;
    for number in 0..5 {
        send(near, number).await;
    }
    until("control: replication", async || {
        let told = redis.nodes[owner].cli(&["INFO", "replication"]);
        let (_, offset) = told.split_once("master_repl_offset:").unwrap();
        let offset = offset.lines().next().unwrap();
        told.contains(&format!("offset={offset},"))
    })
    .await;
    redis.nodes[replica].freeze();
    // What is sent later stays behind this.
    let fill = "for n = 1, 2000 do redis.call('SET', KEYS[1], string.rep('x', 8192)) end";
    let key = format!("{}fill", prefix_of(part));
    redis.nodes[owner].cli(&["EVAL", fill, "1", &key]);
    let mut first = None;
    for number in 5..5 + LATE {
        assert!(!send(near, number).await.spooled(), "control: taken");
        first.get_or_insert_with(SystemTime::now);
    }
    until("all is heard", async || {
        far.cluster.stats().delivered == 5 + LATE as u64
    })
    .await;
    redis.nodes[owner].kill();
    redis.nodes[replica].thaw();
    until("the replica takes over", async || {
        redis.owner(slot_of(part), (owner + 1) % 3) == Some(replica)
    })
    .await;
    (first.unwrap(), 5 + LATE)
}

/// H14, of one primary of a Redis Cluster: another publisher keeps again what its own had taken.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_what_a_late_replica_has_not_got_is_kept_again_as_well() {
    let mut redis = RedisCluster::start(3, 1);
    let near = start(spooling(at(&redis.url()))).await;
    let far = start(spooling(at(&redis.url()))).await;
    let clients = [near.client("alice").await, far.client("alice").await];
    let (_, next) = late_replica_of_a_cluster(&mut redis, [&near, &far]).await;
    let last = send(&near, next).await;
    soon("it is sent", last.settled()).await.unwrap();
    near.until_up().await;
    far.until_up().await;
    assert_eq!(kept(&far).await, numbers(0..6 + LATE));
    let expected = numbers(0..6 + LATE);
    assert_eq!(heard(&near, clients).await, [&expected[..], &expected]);
    let stats = near.cluster.stats();
    assert_eq!(stats.history_again, LATE as u64);
    assert_eq!(stats.history_rolled_back, 0);
}

/// The same without a spool: another publisher counts what its own had taken, though nothing more is sent, and it is told.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_what_a_late_replica_has_not_got_is_counted_by_whoever_goes_on() {
    let mut redis = RedisCluster::start(3, 1);
    let near = start(keeping(at(&redis.url()))).await;
    let far = start(keeping(at(&redis.url()))).await;
    let _clients = [near.client("alice").await, far.client("alice").await];
    let mut gaps = far.cluster.gaps();
    let (first, next) = late_replica_of_a_cluster(&mut redis, [&near, &far]).await;
    until("it is counted", async || {
        near.cluster.stats().history_rolled_back > 0
    })
    .await;
    assert_eq!(near.cluster.stats().history_rolled_back, LATE as u64);
    let mut is_told = false;
    while !is_told {
        let gap = soon("a gap is told", gaps.next()).await.unwrap();
        is_told = gap.concerns_user(&"alice".into()) && gap.from <= first;
    }
    near.until_up().await;
    until("a send", async || {
        let alice = near.broadcaster.to_user("alice");
        alice.send(next.to_string()).await.is_ok()
    })
    .await;
    let survived = [numbers(0..5), numbers(next..next + 1)].concat();
    assert_eq!(kept(&far).await, survived, "control");
    assert_eq!(near.cluster.stats().history_rolled_back, LATE as u64);
}

/// The slot moves before anybody can ask whether what had no answer was taken.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_frozen_primary_had_without_an_answer_is_found_where_its_slot_went() {
    const COUNT: usize = 20;
    let redis = RedisCluster::start(3, 0);
    let quick = |builder: ClusterBuilder| builder.publish_timeout(Duration::from_millis(300));
    let near = start(spooling(quick(at(&redis.url())))).await;
    let far = start(spooling(at(&redis.url()))).await;
    let clients = [near.client("alice").await, far.client("alice").await];
    send(&near, 0).await;
    let part = part("u:alice");
    let slot = slot_of(part);
    let from = redis.owner(slot, 0).unwrap();
    let to = (from + 1) % 3;
    // Whoever is logged in stays, and nobody else comes in.
    let primary = &redis.nodes[from];
    assert_eq!(
        primary.cli(&["CONFIG", "SET", "requirepass", "locked"]),
        "OK"
    );
    let locked = |words: &[&str]| {
        let login = &["--no-auth-warning", "-a", "locked"];
        primary.cli(&[login, words].concat())
    };
    primary.freeze();
    let mut waiting = Vec::new();
    for number in 1..COUNT {
        waiting.push(send(&near, number).await);
    }
    assert!(waiting.iter().all(Delivery::spooled));
    primary.thaw();
    let list = format!("{}h:u:alice", prefix_of(part));
    until("control: the first is there", async || {
        locked(&["LLEN", &list]) == "2"
    })
    .await;
    let slot = slot.to_string();
    let begin = format!("CLUSTER SETSLOT {slot} IMPORTING {}", redis.id(from));
    assert_eq!(redis.ask(to, &begin), "OK");
    let set = ["CLUSTER", "SETSLOT", &slot];
    let migrating = ["MIGRATING", redis.id(to)];
    assert_eq!(locked(&[&set[..], &migrating].concat()), "OK");
    let keys = locked(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]);
    let port = redis.nodes[to].port().to_string();
    let migrate = ["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
    let keys: Vec<&str> = keys.lines().collect();
    assert_eq!(locked(&[&migrate[..], &keys].concat()), "OK");
    let node = ["NODE", redis.id(to)];
    for other in [to, 3 - from - to] {
        assert_eq!(redis.nodes[other].cli(&[&set[..], &node].concat()), "OK");
    }
    assert_eq!(locked(&[&set[..], &node].concat()), "OK");
    locked(&["CONFIG", "SET", "requirepass", ""]);
    for delivery in &waiting {
        soon("it is sent", delivery.settled()).await.unwrap();
    }
    near.until_up().await;
    far.until_up().await;
    let expected = numbers(0..COUNT);
    assert_eq!(kept(&far).await, expected, "each once");
    assert_eq!(heard(&near, clients).await, [&expected[..], &expected]);
}

/// H28.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_spool_does_not_take_or_gives_up_is_told_and_counted() {
    let mut server = RedisServer::start();
    let wait = Duration::from_millis(400);
    let builder = keeping(at(&server.url())).spool(5, 1 << 20, wait);
    let node = start(builder.publish_timeout(wait)).await;
    let mut client = node.client("alice").await;
    server.kill();
    until("the outage is noticed", async || {
        let bob = node.broadcaster.to_user("bob");
        bob.ephemeral().send("typing").await.is_err()
    })
    .await;
    let mut waiting = Vec::new();
    for number in 0..5 {
        waiting.push(send(&node, number).await);
    }
    let full = node.broadcaster.to_user("alice").send("full").await;
    let error = full.unwrap_err();
    assert_eq!(error.kind(), SendErrorKind::Bus);
    assert!(error.to_string().contains("the spool is full"), "{error}");
    assert!(!error.maybe_sent());
    assert_eq!(error.local(), 1);
    assert_eq!(client.event().await, text("full"), "as without a spool");
    assert_eq!(node.cluster.stats().spool_dropped, 1);
    for delivery in &waiting {
        assert!(delivery.spooled());
        let error = soon("it is given up", delivery.settled())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), SendErrorKind::Dropped);
        assert!(error.to_string().contains("as long as `spool`"), "{error}");
    }
    let stats = node.cluster.stats();
    assert_eq!((stats.spool_dropped, stats.spool_waiting), (6, 0));
    server.restart();
    node.until_up().await;
    until("a send", async || !send(&node, 7).await.spooled()).await;
}

/// H28.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_waits_for_the_spool_at_most_its_window() {
    let mut server = RedisServer::start();
    let [gone, patient] = [
        start(spooling(at(&server.url()))).await,
        start(spooling(at(&server.url()))).await,
    ];
    server.kill();
    for node in [&gone, &patient] {
        until("it waits", async || send(node, 0).await.spooled()).await;
    }
    let waits = send(&gone, 1).await;
    gone.cluster.shutdown(Duration::from_millis(300)).await;
    let error = soon("it is told", waits.settled()).await.unwrap_err();
    assert!(error.to_string().contains("shut down"), "{error}");
    assert!(gone.cluster.stats().spool_dropped >= 2);

    let waits = send(&patient, 1).await;
    let ending = patient.cluster.shutdown(WAIT);
    let restarting = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.restart();
    };
    soon("it ends", async { tokio::join!(ending, restarting) }).await;
    waits.settled().await.unwrap();
    assert_eq!(patient.cluster.stats().spool_dropped, 0);
}
