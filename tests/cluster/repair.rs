//! What is missed in an outage and was kept comes when the bus is back, in order and once (rows H1 to H5, H13, H14, H19 and H20).

use std::collections::HashSet;
use std::time::{Duration, Instant};

use axum_cluster::{Broadcaster, Close, ClusterBuilder, Health, History};
use futures::{FutureExt, StreamExt};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::client::{Event, text};
use crate::support::proxy::Proxy;
use crate::support::redis::redis_cluster::{RedisCluster, part, slot_of};
use crate::support::{Client, Lab, RedisServer, TestNode, soon, until};

/// Enough for every outage of these tests.
const MUCH: History = history(5000, 300);
/// Between two sends.
const PACE: Duration = Duration::from_millis(1);

const fn history(messages: usize, seconds: u64) -> History {
    let keep = Duration::from_secs(seconds);
    History { messages, keep }
}

fn keeps(builder: ClusterBuilder, history: History) -> ClusterBuilder {
    builder
        .user_history(history)
        .room_history(history)
        .all_history(history)
        .outbox_messages(50_000)
        .outbox_bytes(1 << 26)
}

async fn start(builder: ClusterBuilder) -> TestNode {
    let node = TestNode::start(builder.start()).await;
    node.until_up().await;
    node
}

/// A node that is at Redis directly, and one whose link may break.
struct Pair {
    server: RedisServer,
    link: Proxy,
    near: TestNode,
    far: TestNode,
}

impl Pair {
    async fn with(history: History) -> Self {
        let server = RedisServer::start();
        let link = Proxy::to(server.port()).await;
        let builder = keeps(Lab::memory().builder(), history);
        let near = start(builder.clone().redis(server.url())).await;
        let far = start(builder.redis(link.url())).await;
        Self {
            server,
            link,
            near,
            far,
        }
    }

    /// The far node is without Redis, and knows it.
    async fn cut(&self) {
        self.link.cut();
        until("the outage is noticed", async || {
            matches!(self.far.cluster.health(), Health::Degraded { .. })
        })
        .await;
    }

    async fn heal(&self) {
        self.link.heal();
        self.far.until_up().await;
    }
}

/// To whom something is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
enum To {
    Alice,
    Room,
    All,
    /// Alice, and three rooms in all of which she is.
    Union,
}

const EACH: [To; 4] = [To::Alice, To::Room, To::All, To::Union];

/// What one sends in turn to each, and what was said of it.
struct Sender {
    stop: CancellationToken,
    sending: JoinHandle<Vec<(String, To, bool)>>,
}

impl Sender {
    fn start(broadcaster: &Broadcaster, name: &'static str) -> Self {
        let (broadcaster, stop) = (broadcaster.clone(), CancellationToken::new());
        let stopped = stop.clone();
        let sending = tokio::spawn(async move {
            let mut sent = Vec::new();
            for number in 0.. {
                if stopped.is_cancelled() {
                    break;
                }
                let to = EACH[number % EACH.len()];
                let audience = match to {
                    To::Alice => broadcaster.to_user("alice"),
                    To::Room => broadcaster.to_room("x"),
                    To::All => broadcaster.to_all(),
                    To::Union => ["x", "y", "z"]
                        .into_iter()
                        .fold(broadcaster.to_user("alice"), |union, room| {
                            union.to_room(room)
                        }),
                };
                let text = format!("{name} {number}");
                let is_sent = audience.send(text.clone()).await.is_ok();
                sent.push((text, to, is_sent));
                tokio::time::sleep(PACE).await;
            }
            sent
        });
        Self { stop, sending }
    }

    async fn end(self) -> Vec<(String, To, bool)> {
        self.stop.cancel();
        self.sending.await.unwrap()
    }
}

/// Reads until the fence.
fn read(client: Client) -> JoinHandle<Vec<String>> {
    read_until(client, 1)
}

/// Reads until so many fences.
fn read_until(mut client: Client, fences: usize) -> JoinHandle<Vec<String>> {
    tokio::spawn(async move {
        let mut events = Vec::new();
        for _ in 0..fences {
            events.extend(client.before("fence").await);
        }
        let texts = events.into_iter().map(|event| match event {
            Event::Text(text) => text,
            event => panic!("{event:?}"),
        });
        texts.collect()
    })
}

async fn fence(broadcaster: &Broadcaster) {
    until("a fence is sent", async || {
        broadcaster.to_all().send("fence").await.is_ok()
    })
    .await;
}

async fn joined(node: &TestNode, user: &str, rooms: &[&str]) -> Client {
    let mut client = node.client(user).await;
    for room in rooms {
        assert_eq!(client.ask(&format!("join {room}")).await, "joined");
    }
    client
}

/// What of it is missing. Nothing is there twice, and nothing in another order than its sender's.
fn lost(heard: &[String], sent: &[Vec<(String, To, bool)>], concerns: &[To]) -> Vec<String> {
    let there: HashSet<&String> = heard.iter().collect();
    assert_eq!(there.len(), heard.len(), "nothing comes twice");
    let mut lost = Vec::new();
    for sent in sent {
        let mut heard = heard.iter().peekable();
        for (text, to, is_sent) in sent {
            if !there.contains(text) {
                lost.extend((*is_sent && concerns.contains(to)).then(|| text.clone()));
                continue;
            }
            let name = text.split(' ').next();
            let next = heard.find(|heard| heard.split(' ').next() == name);
            assert_eq!(next, Some(text), "in the order of its sender");
        }
    }
    lost
}

/// Both heard what concerns both in one order.
fn agree(one: &[String], other: &[String]) {
    let common = |of: &[String], with: &[String]| {
        let with: HashSet<&String> = with.iter().collect();
        let common = of.iter().filter(|text| with.contains(text));
        common.cloned().collect::<Vec<_>>()
    };
    assert_eq!(common(one, other), common(other, one));
}

/// H1, H19: Redis kills those who listen, again and again.
#[tokio::test(flavor = "multi_thread")]
async fn who_listens_is_killed_again_and_again_and_misses_nothing() {
    let server = RedisServer::start();
    let builder = Lab::memory().builder().redis(server.url());
    let keeping = keeps(builder.clone(), MUCH);
    let [a, b] = [start(keeping.clone()).await, start(keeping).await];
    let plain = builder.namespace("plain").outbox_messages(50_000);
    let [c, d] = [start(plain.clone()).await, start(plain).await];
    let rooms = ["x", "y", "z"];
    let alice = read(joined(&b, "alice", &rooms).await);
    let bob = read(joined(&a, "bob", &rooms).await);
    let control = read(joined(&d, "alice", &rooms).await);
    let mut gaps = [&a, &b].map(|node| Box::pin(node.cluster.gaps()));
    let nodes = [&a, &b, &c];
    let mut senders = Vec::new();
    for (node, name) in nodes.into_iter().zip(["a", "b", "c"]) {
        senders.push(Sender::start(&node.broadcaster, name));
    }
    let end = Instant::now() + Duration::from_secs(5);
    let mut kills = 0;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(50..300))).await;
        let killed = server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        kills += killed.parse::<u32>().unwrap();
    }
    assert!(kills > 20, "control: {kills}");
    let mut sent = Vec::new();
    for sender in senders {
        sent.push(sender.end().await);
    }
    for node in [&a, &b, &c, &d] {
        node.until_up().await;
    }
    fence(&a.broadcaster).await;
    fence(&c.broadcaster).await;
    let plain = sent.split_off(2);
    let control = soon("it reads", control).await.unwrap();
    let missed = lost(&control, &plain, &EACH);
    assert!(!missed.is_empty(), "control: nothing was missed");
    let (alice, bob) = (
        soon("it reads", alice).await.unwrap(),
        soon("it reads", bob).await.unwrap(),
    );
    assert_eq!(lost(&alice, &sent, &EACH), [""; 0]);
    assert_eq!(lost(&bob, &sent, &EACH[1..]), [""; 0]);
    agree(&alice, &bob);
    let repaired = [&a, &b].map(|node| node.cluster.stats().history_repaired);
    assert!(repaired.iter().sum::<u64>() > 0, "control: {repaired:?}");
    for gaps in &mut gaps {
        while let Some(Some(gap)) = gaps.next().now_or_never() {
            assert!(!gap.concerns_user(&"alice".into()), "{gap:?}");
            assert!(!gap.concerns_room(&"x".into()), "{gap:?}");
        }
    }
}

/// H2: Redis kills those who send. What it took is heard everywhere, what failed at most once, and where it was sent all of it in order.
#[tokio::test(flavor = "multi_thread")]
async fn who_sends_is_killed_again_and_again_and_keeps_the_order() {
    let server = RedisServer::start();
    let builder = keeps(Lab::memory().builder().redis(server.url()), MUCH);
    let [near, far] = [start(builder.clone()).await, start(builder).await];
    let alice = read(joined(&far, "alice", &["x"]).await);
    let bob = read(joined(&near, "bob", &["x"]).await);
    let sender = Sender::start(&near.broadcaster, "near");
    let begun = Instant::now();
    until("control: something has failed", async || {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(50..300))).await;
        server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        begun.elapsed() > Duration::from_secs(5) && near.cluster.stats().bus_publish_failures > 0
    })
    .await;
    let sent = [sender.end().await];
    let failed = sent[0].iter().filter(|(.., is_sent)| !is_sent).count();
    assert!(failed > 0, "control: nothing failed");
    near.until_up().await;
    fence(&near.broadcaster).await;
    let (alice, bob) = (alice.await.unwrap(), bob.await.unwrap());
    assert_eq!(lost(&alice, &sent, &EACH), [""; 0]);
    for to in &EACH[1..] {
        let sent = sent[0].iter().filter(|(_, sent, _)| sent == to);
        let sent: Vec<&String> = sent.map(|(text, ..)| text).collect();
        let heard = bob.iter().filter(|text| sent.contains(text));
        assert_eq!(heard.collect::<Vec<_>>(), sent, "{to:?}");
    }
}

/// What fails while the node hears nothing comes behind what was taken before it, and everything else at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_failed_comes_behind_what_was_taken_before_it() {
    let server = RedisServer::start();
    let node = start(keeps(Lab::memory().builder().redis(server.url()), MUCH)).await;
    let (mut alice, mut bob) = (node.client("alice").await, node.client("bob").await);
    let to = |user: &str| node.broadcaster.to_user(user);
    to("alice").send("1").await.unwrap();
    assert_eq!(alice.event().await, text("1"));
    // Whoever is logged in stays, and nobody else comes in.
    server.cli(&["CONFIG", "SET", "requirepass", "locked"]);
    let locked =
        |words: &[&str]| server.cli(&[&["--no-auth-warning", "-a", "locked"], words].concat());
    assert_eq!(locked(&["CLIENT", "KILL", "TYPE", "pubsub"]), "1");
    until("the outage is noticed", async || {
        matches!(node.cluster.health(), Health::Degraded { .. })
    })
    .await;
    to("alice")
        .send("2")
        .await
        .expect("it is taken, and unheard");
    assert_eq!(
        locked(&["CONFIG", "SET", "min-replicas-to-write", "1"]),
        "OK"
    );
    for user in ["alice", "bob"] {
        let refused = to(user).send("3").await.unwrap_err();
        assert!(!refused.maybe_sent(), "{refused}");
    }
    assert_eq!(bob.event().await, text("3"), "at once");
    // It is refused as well, and is kept nowhere.
    let _ = to("alice").ephemeral().send("meanwhile").await;
    assert_eq!(alice.event().await, text("meanwhile"));
    locked(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    locked(&["CONFIG", "SET", "requirepass", ""]);
    node.until_up().await;
    to("alice").send("4").await.unwrap();
    for number in ["2", "3", "4"] {
        assert_eq!(alice.event().await, text(number));
    }
    let stats = node.cluster.stats();
    assert_eq!((stats.history_repaired, stats.history_unordered), (1, 0));
}

/// H3: nothing arrives, and nobody is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_black_hole_costs_nothing() {
    let pair = Pair::with(MUCH).await;
    let alice = read(joined(&pair.far, "alice", &["x"]).await);
    let bob = read(joined(&pair.near, "bob", &["x"]).await);
    let sender = Sender::start(&pair.near.broadcaster, "near");
    for _ in 0..2 {
        pair.link.black_hole();
        until("the outage is noticed", async || {
            matches!(pair.far.cluster.health(), Health::Degraded { .. })
        })
        .await;
        pair.heal().await;
    }
    let sent = [sender.end().await];
    fence(&pair.near.broadcaster).await;
    let (alice, bob) = (alice.await.unwrap(), bob.await.unwrap());
    assert_eq!(lost(&alice, &sent, &EACH), [""; 0]);
    agree(&alice, &bob);
    assert!(pair.far.cluster.stats().history_repaired > 0, "control");
}

/// H3: Redis stands still.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_redis_costs_nothing_that_it_took() {
    let pair = Pair::with(MUCH).await;
    let alice = read(joined(&pair.far, "alice", &["x"]).await);
    let senders = [
        Sender::start(&pair.near.broadcaster, "near"),
        Sender::start(&pair.far.broadcaster, "far"),
    ];
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        pair.server.freeze();
        until("the outage is noticed", async || {
            matches!(pair.far.cluster.health(), Health::Degraded { .. })
        })
        .await;
        pair.server.thaw();
        pair.far.until_up().await;
        pair.near.until_up().await;
    }
    let mut sent = Vec::new();
    for sender in senders {
        sent.push(sender.end().await);
    }
    fence(&pair.near.broadcaster).await;
    assert_eq!(lost(&alice.await.unwrap(), &sent, &EACH), [""; 0]);
}

/// H4, H5: what is too much, or too old, is told to whom it concerns, and nothing of it comes.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_beyond_the_window_is_told_and_nothing_of_it_comes() {
    let pair = Pair::with(history(10, 300)).await;
    let (mut alice, mut bob) = (pair.far.client("alice").await, pair.far.client("bob").await);
    let near = &pair.near.broadcaster;
    for user in ["alice", "bob"] {
        near.to_user(user).send("before").await.unwrap();
    }
    assert_eq!(alice.event().await, text("before"));
    assert_eq!(bob.event().await, text("before"));
    let mut gaps = pair.far.cluster.gaps();
    pair.cut().await;
    for number in 0..20 {
        near.to_user("alice")
            .send(number.to_string())
            .await
            .unwrap();
    }
    for number in 0..3 {
        near.to_user("bob").send(number.to_string()).await.unwrap();
    }
    let kept = pair.server.cli(&["LLEN", "cluster:h:u:alice"]);
    assert!(kept.parse::<usize>().unwrap() < 20, "control: {kept}");
    pair.heal().await;
    let gap = soon("a gap is told", gaps.next()).await.unwrap();
    let concerned = ["alice", "bob", "carol"].map(|user| gap.concerns_user(&user.into()));
    assert_eq!(concerned, [true, false, false], "{gap:?}");
    for user in ["alice", "bob"] {
        near.to_user(user).send("fence").await.unwrap();
    }
    assert_eq!(alice.before("fence").await, []);
    let numbers = ["0", "1", "2"].map(text);
    assert_eq!(bob.before("fence").await, numbers);
    let stats = pair.far.cluster.stats();
    assert_eq!((stats.history_repaired, stats.history_missed), (3, 1));
}

/// H20: who was sent away while his node was cut off goes when it is back, and who came since stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_close_is_carried_out_when_the_node_is_back() {
    let pair = Pair::with(MUCH).await;
    let mut old = pair.far.client("alice").await;
    pair.cut().await;
    let near = &pair.near.broadcaster;
    near.to_user("alice").send("first").await.unwrap();
    let closing = near.to_user("alice").close(Close::new(4001, "kicked"));
    closing.await.unwrap();
    let mut new = pair.far.client("alice").await;
    pair.heal().await;
    assert_eq!(old.event().await, text("first"));
    assert_eq!(old.event().await, Event::Closed(4001, "kicked".into()));
    near.to_user("alice").send("welcome").await.unwrap();
    assert_eq!(new.event().await, text("welcome"));
}

/// Who comes in an outage gets nothing that is older, and is told.
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_in_an_outage_gets_nothing_that_is_older() {
    let pair = Pair::with(MUCH).await;
    let mut old = pair.far.client("alice").await;
    pair.cut().await;
    let near = &pair.near.broadcaster;
    near.to_user("alice").send("missed").await.unwrap();
    let mut new = pair.far.client("alice").await;
    pair.heal().await;
    near.to_user("alice").send("later").await.unwrap();
    assert_eq!(old.event().await, text("missed"));
    assert_eq!(old.event().await, text("later"));
    assert_eq!(new.event().await, text("later"));
}

/// H13: Redis comes back with an older state, which its publishers know, and nobody else can.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_redis_has_forgotten_is_counted_and_told() {
    const FORGOTTEN: u64 = 7;
    let mut server = RedisServer::start();
    let builder = keeps(Lab::memory().builder().redis(server.url()), MUCH);
    let builder = builder.lease(Duration::from_millis(1500));
    let [near, far] = [start(builder.clone()).await, start(builder).await];
    let mut alice = far.client("alice").await;
    let to_alice = || near.broadcaster.to_user("alice");
    for number in 0..3 {
        to_alice().send(number.to_string()).await.unwrap();
    }
    assert_eq!(server.cli(&["SAVE"]), "OK");
    for number in 3..3 + FORGOTTEN {
        to_alice().send(number.to_string()).await.unwrap();
    }
    let mut gaps = far.cluster.gaps();
    let concerned = async {
        while let Some(gap) = gaps.next().await {
            if gap.concerns_user(&"alice".into()) {
                return;
            }
        }
    };
    server.kill();
    server.restart();
    assert_eq!(server.cli(&["LLEN", "cluster:h:u:alice"]), "3", "control");
    near.until_up().await;
    far.until_up().await;
    until("a send", async || to_alice().send("after").await.is_ok()).await;
    let lost = near.cluster.stats().history_rolled_back;
    assert_eq!(lost, FORGOTTEN);
    soon("a gap is told", concerned).await;
    to_alice().send("fence").await.unwrap();
    let heard = alice.before("fence").await;
    let numbers = (0..3 + FORGOTTEN).map(|number| text(&number.to_string()));
    let expected: Vec<Event> = numbers.chain([text("after")]).collect();
    assert_eq!(heard, expected, "once each");
}

/// H14: the replica that takes over has not got the last of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_late_replica_has_not_got_is_counted_and_nothing_comes_twice() {
    const LATE: usize = 9;
    let mut old = RedisServer::start();
    let new = crate::gaps::replica_of(&old);
    let name = Proxy::to(old.port()).await;
    let builder = keeps(Lab::memory().builder().redis(name.url()), MUCH);
    let [near, far] = [start(builder.clone()).await, start(builder).await];
    let alice = read(far.client("alice").await);
    let to_alice = || near.broadcaster.to_user("alice");
    for number in 0..5 {
        to_alice().send(format!("near {number}")).await.unwrap();
    }
    let kept = || new.cli(&["LLEN", "cluster:h:u:alice"]);
    until("control: replication", async || kept() == "5").await;
    new.freeze();
    // What is sent later stays behind this.
    let fill = "for n = 1, 2000 do redis.call('SET', 'fill', string.rep('x', 8192)) end";
    old.cli(&["EVAL", fill, "0"]);
    for number in 5..5 + LATE {
        to_alice().send(format!("near {number}")).await.unwrap();
    }
    until("all of it is heard", async || {
        far.cluster.stats().delivered >= 5 + LATE as u64
    })
    .await;
    old.kill();
    new.thaw();
    assert_eq!(new.cli(&["REPLICAOF", "NO", "ONE"]), "OK");
    assert_eq!(kept(), "5", "control");
    name.lead_to(new.port());
    near.until_up().await;
    far.until_up().await;
    for number in 5 + LATE..10 + LATE {
        let text = format!("near {number}");
        until("a send", async || {
            to_alice().send(text.clone()).await.is_ok()
        })
        .await;
    }
    assert_eq!(near.cluster.stats().history_rolled_back, LATE as u64);
    fence(&near.broadcaster).await;
    let expected: Vec<String> = (0..10 + LATE)
        .map(|number| format!("near {number}"))
        .collect();
    assert_eq!(alice.await.unwrap(), expected, "once each");
}

/// B6, T16: a node still listens to the old primary, which is a replica of the new one and passes on what that publishes.
#[tokio::test(flavor = "multi_thread")]
async fn what_came_by_the_old_primary_does_not_come_twice() {
    const PASSED_ON: usize = 5;
    let old = RedisServer::start();
    let new = crate::gaps::replica_of(&old);
    let (name, other) = (Proxy::to(old.port()).await, Proxy::to(old.port()).await);
    let builder = keeps(Lab::memory().builder(), MUCH).probe_interval(Duration::from_secs(10));
    let near = start(builder.clone().redis(name.url())).await;
    let far = start(builder.redis(other.url())).await;
    let mut alice = far.client("alice").await;
    let to_alice = || near.broadcaster.to_user("alice");
    to_alice().send("before").await.unwrap();
    assert_eq!(alice.event().await, text("before"));
    until("control: it is replicated", async || {
        new.cli(&["LLEN", "cluster:h:u:alice"]) == "1"
    })
    .await;

    assert_eq!(new.cli(&["REPLICAOF", "NO", "ONE"]), "OK");
    let port = new.port().to_string();
    assert_eq!(old.cli(&["REPLICAOF", "127.0.0.1", &port]), "OK");
    until("replication", async || {
        let told = old.cli(&["INFO", "replication"]);
        told.contains("master_link_status:up")
    })
    .await;
    name.cut();
    name.lead_to(new.port());
    name.heal();
    near.until_up().await;
    for number in 0..PASSED_ON {
        let text = number.to_string();
        until("a send", async || {
            to_alice().send(text.clone()).await.is_ok()
        })
        .await;
    }
    for number in 0..PASSED_ON {
        let passed_on = alice.event().await;
        assert_eq!(passed_on, text(&number.to_string()), "control");
    }
    assert_eq!(far.cluster.health(), Health::Up, "control");
    other.cut();
    to_alice().send("missed").await.unwrap();
    other.lead_to(new.port());
    other.heal();
    until("it is repaired", async || {
        far.cluster.stats().history_repaired > 0 && far.cluster.health() == Health::Up
    })
    .await;
    to_alice().send("fence").await.unwrap();
    assert_eq!(alice.before("fence").await, [text("missed")]);
}

/// T9, T12: in a Redis Cluster whose slots move and whose primaries change.
#[tokio::test(flavor = "multi_thread")]
async fn what_moves_in_a_cluster_costs_nothing() {
    const PRIMARIES: usize = 3;
    let redis = RedisCluster::start(PRIMARIES, 1);
    let builder = keeps(Lab::memory().builder().redis(redis.url()), MUCH);
    let builder = builder.publish_timeout(Duration::from_secs(20));
    let [near, far] = [start(builder.clone()).await, start(builder).await];
    let rooms = ["x", "y", "z"];
    // One for each partition that is judged: there is no order between them.
    let alice = read_until(joined(&far, "alice", &rooms).await, 3);
    let sender = Sender::start(&near.broadcaster, "near");
    let part = part("u:alice");
    let owner = |asked| redis.owner(slot_of(part), asked).unwrap();
    for round in 1..=2 {
        let to = (owner(0) + round) % PRIMARIES;
        redis.move_slots([slot_of(part)], to);
        tokio::time::sleep(Duration::from_millis(300)).await;
        until("all is well", async || {
            near.cluster.health() == Health::Up && far.cluster.health() == Health::Up
        })
        .await;
        assert_eq!(owner(0), to, "control");
    }
    let old = owner(0);
    redis.fail_over(old + PRIMARIES);
    until("control: the old one is its replica", async || {
        !redis.is_primary(old)
    })
    .await;
    until("a send", async || {
        near.broadcaster
            .to_user("alice")
            .send("near x")
            .await
            .is_ok()
    })
    .await;
    near.until_up().await;
    far.until_up().await;
    let sent = sender.end().await;
    fence(&near.broadcaster).await;
    for audience in [
        near.broadcaster.to_user("alice"),
        near.broadcaster.to_room("x"),
    ] {
        audience.send("fence").await.expect("all is well");
    }
    let mut heard = alice.await.unwrap();
    heard.retain(|text| text != "near x");
    let there: HashSet<&String> = heard.iter().collect();
    assert_eq!(there.len(), heard.len(), "nothing comes twice");
    let is_of = |to: To| move |(_, one, _): &&(String, To, bool)| *one == to;
    // A union has an order in each partition, and none between them.
    let lost_unions = sent.iter().filter(is_of(To::Union));
    let mut lost_unions =
        lost_unions.filter(|(text, _, is_sent)| *is_sent && !there.contains(text));
    assert_eq!(lost_unions.next(), None);
    for to in [To::Alice, To::Room, To::All] {
        let sent: Vec<_> = sent.iter().filter(is_of(to)).cloned().collect();
        let is_sent = |text: &&String| sent.iter().any(|(one, ..)| one == *text);
        let heard: Vec<String> = heard.iter().filter(is_sent).cloned().collect();
        assert_eq!(lost(&heard, &[sent], &[to]), [""; 0], "{to:?}");
    }
    let stats = far.cluster.stats();
    assert!(stats.bus_moves > 0, "control");
    assert_eq!(stats.history_missed, 0, "all of it could be read");
    let lost = near.cluster.stats().history_rolled_back;
    assert_eq!(lost, 0, "no primary took what another does not have");
}

/// H4: everything that was kept is gone by then.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_for_too_long_is_told() {
    let pair = Pair::with(history(100, 10)).await;
    let mut alice = pair.far.client("alice").await;
    let mut gaps = pair.far.cluster.gaps();
    pair.cut().await;
    let near = &pair.near.broadcaster;
    near.to_user("alice").send("missed").await.unwrap();
    until("control: what was kept is gone", async || {
        pair.server.cli(&["EXISTS", "cluster:h:u:alice"]) == "0"
    })
    .await;
    pair.heal().await;
    let gap = soon("a gap is told", gaps.next()).await.unwrap();
    assert!(gap.concerns_user(&"alice".into()), "{gap:?}");
    near.to_user("alice").send("later").await.unwrap();
    assert_eq!(alice.event().await, text("later"));
}
