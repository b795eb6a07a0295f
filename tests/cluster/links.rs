//! Links to Redis that are slow, die again and again, lose a single answer, or carry very much.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum_cluster::{Health, PresenceChange};
use futures::future::join_all;
use futures::{FutureExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::gaps::until_degraded_by;
use crate::support::client::{Client, Event, text};
use crate::support::proxy::Proxy;
use crate::support::{Lab, RedisServer, TestNode, soon, until};

async fn until_up(node: &TestNode) {
    until("the bus is up", async || {
        node.cluster.health() == Health::Up
    })
    .await;
}

/// Leads links to Redis, each with what happens to it.
async fn lead<F>(port: u16, link: impl Fn(TcpStream, TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((from, _)) = listener.accept().await {
            if let Ok(to) = TcpStream::connect(("127.0.0.1", port)).await {
                tokio::spawn(link(from, to));
            }
        }
    });
    addr
}

#[derive(Debug, Default)]
struct Lost {
    answers: AtomicUsize,
    answers_after: AtomicUsize,
    messages_after: AtomicUsize,
}

/// H3: the answer to one SUBSCRIBE is lost, and messages and answers of others go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_loses_a_single_answer_is_given_up() {
    let lab = Lab::redis();
    let port = lab.redis.as_ref().unwrap().port();
    let lost = Arc::new(Lost::default());
    let losing = lost.clone();
    let addr = lead(port, move |mut from, mut to| {
        let lost = losing.clone();
        async move {
            let (mut from_read, mut from_write) = from.split();
            let (mut to_read, mut to_write) = to.split();
            let answers = async {
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(count @ 1..) = to_read.read(&mut buffer).await {
                    let answer = b"*3\r\n$9\r\nsubscribe\r\n$15\r\ncluster:u:alice\r\n:";
                    let heard = &buffer[..count];
                    let at = heard.windows(answer.len()).position(|part| part == answer);
                    let kept = match at {
                        Some(at) if lost.answers.fetch_add(1, SeqCst) == 0 => {
                            let end = at + answer.len();
                            let line = heard[end..].iter().position(|byte| *byte == b'\n');
                            [&heard[..at], &heard[end + line.unwrap() + 1..]].concat()
                        }
                        _ => heard.to_vec(),
                    };
                    let after = lost.answers.load(SeqCst) == 1;
                    for (sign, count) in [
                        (&b"cluster:u:bob"[..], &lost.messages_after),
                        (b"\r\nsubscribe\r\n", &lost.answers_after),
                    ] {
                        let is_there = kept.windows(sign.len()).any(|part| part == sign);
                        count.fetch_add(usize::from(after && is_there), SeqCst);
                    }
                    if from_write.write_all(&kept).await.is_err() {
                        break;
                    }
                }
            };
            tokio::select! {
                () = answers => {}
                _ = tokio::io::copy(&mut from_read, &mut to_write) => {}
            }
        }
    })
    .await;
    let a = TestNode::start(lab.builder().redis(format!("redis://{addr}")).start()).await;
    until_up(&a).await;
    let b = lab.node().await;
    let _bob = a.client("bob").await;
    let stop = CancellationToken::new();
    let (to_bob, stopped) = (b.broadcaster.to_user("bob"), stop.clone());
    let talking = tokio::spawn(async move {
        while !stopped.is_cancelled() {
            // What is lost meanwhile is not the point.
            let _ = to_bob.clone().send("hello").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let (addr, stopped) = (a.addr, stop.clone());
    let coming = tokio::spawn(async move {
        for user in 0.. {
            let _client = Client::connect(addr, &user.to_string()).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            if stopped.is_cancelled() {
                return;
            }
        }
    });
    let mut alice = a.client("alice").await;
    until("control: the loss is noticed", async || {
        matches!(a.cluster.health(), Health::Degraded { .. })
    })
    .await;
    until_up(&a).await;
    assert_eq!(
        lost.answers.load(SeqCst),
        2,
        "control: lost once, asked again once"
    );
    for after in [&lost.messages_after, &lost.answers_after] {
        assert!(after.load(SeqCst) > 10, "control: it was not silent");
    }
    let delivery = b.broadcaster.to_user("alice").send("here?").await.unwrap();
    assert_eq!(delivery.nodes(), Some(1));
    assert_eq!(alice.event().await, text("here?"));
    stop.cancel();
    talking.await.unwrap();
    coming.await.unwrap();
}

/// The ids of the connections that listen.
fn listening(redis: &RedisServer) -> Vec<String> {
    let clients = redis.cli(&["CLIENT", "LIST", "TYPE", "pubsub"]);
    let id = |client: &str| client.split(' ').next().unwrap().to_owned();
    clients.lines().map(id).collect()
}

/// Redis refuses rooms, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_redis_refuses_costs_the_others_nothing() {
    const LINE: &str = "ACL SETUSER app on >s3cret resetchannels &cluster:u:* &cluster:all &cluster:n:* \
        &cluster:nodes +subscribe +unsubscribe +publish +pubsub";
    let lab = Lab::redis();
    let redis = lab.redis.as_ref().unwrap();
    let acl = |line: &str| redis.cli(&line.split(' ').collect::<Vec<_>>());
    assert_eq!(acl(LINE), "OK");
    let url = format!("redis://app:s3cret@127.0.0.1:{}", redis.port());
    // Longer than anybody in a test waits.
    let patient = lab.builder().publish_timeout(Duration::from_secs(3600));
    let a = TestNode::start(patient.redis(url).start()).await;
    until_up(&a).await;
    let b = lab.node().await;
    let (before, mut gaps) = (listening(redis), a.cluster.gaps());

    let mut alice = a.client("alice").await;
    assert_eq!(alice.ask("join tea").await, "joined", "it is told at once");
    let reason = until_degraded_by(&a, "NOPERM").await;
    assert!(reason.contains("grant it: ACL SETUSER app"), "{reason}");
    assert!(reason.contains("channels of rooms"), "{reason}");
    assert_ne!(a.cluster.stats().subscriptions_refused, 0);
    let delivery = b.broadcaster.to_room("tea").send("lost").await.unwrap();
    assert_eq!(delivery.nodes(), Some(0), "control: it is not heard");
    // Who comes now is confirmed as ever, and heard.
    let mut bob = a.client("bob").await;
    for (name, client) in [("alice", &mut alice), ("bob", &mut bob)] {
        let delivery = b.broadcaster.to_user(name).send("heard").await.unwrap();
        assert_eq!(delivery.nodes(), Some(1));
        assert_eq!(client.event().await, text("heard"));
    }
    assert!(matches!(a.cluster.health(), Health::Degraded { .. }));

    assert_eq!(acl("ACL SETUSER app &cluster:r:*"), "OK");
    let gap = soon("the gap", gaps.next()).await.unwrap();
    assert!(gap.span() > Duration::ZERO);
    until_up(&a).await;
    let delivery = b.broadcaster.to_room("tea").send("heard").await.unwrap();
    assert_eq!(delivery.nodes(), Some(1));
    assert_eq!(alice.event().await, text("heard"));
    assert_eq!(a.cluster.stats().bus_gaps, 1);
    for id in before {
        assert!(listening(redis).contains(&id), "the link was not lost");
    }
}

/// Redis refuses one user, whose client comes and goes: nobody else misses anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_user_who_comes_and_goes_is_one_outage() {
    const LINE: &str = "ACL SETUSER app on >s3cret resetchannels &cluster:u:bob &cluster:all &cluster:n:* \
        &cluster:nodes +subscribe +unsubscribe +publish +pubsub";
    const VISITS: u64 = 8;
    /// As `QUIET` in `refusals.rs`.
    const QUIET: Duration = Duration::from_secs(10);
    let lab = Lab::redis();
    let redis = lab.redis.as_ref().unwrap();
    assert_eq!(redis.cli(&LINE.split(' ').collect::<Vec<_>>()), "OK");
    let url = format!("redis://app:s3cret@127.0.0.1:{}", redis.port());
    let a = TestNode::start(lab.builder().redis(url).start()).await;
    until_up(&a).await;
    let b = lab.node().await;
    let (mut bob, mut gaps) = (a.client("bob").await, a.cluster.gaps());
    let begun = Instant::now();
    for visit in 0..VISITS {
        let before = a.cluster.stats().subscriptions_refused;
        let alice = a.client("alice").await;
        until("control: she is refused", async || {
            a.cluster.stats().subscriptions_refused > before
        })
        .await;
        until_degraded_by(&a, "the channels of users are refused: NOPERM").await;
        drop(alice);
        until("she is gone", async || a.cluster.stats().sockets == 1).await;
        // One of them would show that nobody is refused now.
        let probes = redis.calls("publish");
        until("probes come back", async || {
            redis.calls("publish") > probes + 3
        })
        .await;
        let delivery = b.broadcaster.to_user("bob").send(visit.to_string()).await;
        assert_eq!(delivery.unwrap().nodes(), Some(1));
        assert_eq!(bob.event().await, text(&visit.to_string()));
    }
    let quiet_times = (begun.elapsed().as_secs_f64() / QUIET.as_secs_f64()) as u64;
    let outages = a.cluster.stats().bus_gaps;
    assert!(
        outages <= 1 + quiet_times,
        "{outages} outages in {VISITS} visits and {quiet_times} quiet times"
    );
    for _ in 0..outages {
        soon("its gap", gaps.next()).await.unwrap();
    }
    until_up(&a).await;
    assert_eq!(a.cluster.stats().bus_gaps, outages);
}

/// One room that Redis refuses, whoever asked for it.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_a_room_is_there_all_the_same() {
    const LINE: &str = "ACL SETUSER app on >s3cret resetchannels &cluster:u:* &cluster:all &cluster:p:* &cluster:n:* \
        &cluster:nodes +subscribe +unsubscribe +publish +pubsub";
    const LEASE: Duration = Duration::from_secs(2);
    let lab = Lab::redis();
    let redis = lab.redis.as_ref().unwrap();
    assert_eq!(redis.cli(&LINE.split(' ').collect::<Vec<_>>()), "OK");
    let url = format!("redis://app:s3cret@127.0.0.1:{}", redis.port());
    let brief = lab.builder().lease(LEASE).presence_grace(Duration::ZERO);
    let [a, b] = [
        TestNode::start(brief.clone().redis(url).start()).await,
        TestNode::start(brief.start()).await,
    ];
    for node in [&a, &b] {
        until_up(node).await;
        until("they know each other", async || {
            node.cluster.stats().nodes == 2
        })
        .await;
    }
    let mut presence = b.broadcaster.presence();
    let mut next = async || soon("a change", presence.next()).await.unwrap();
    let mut alice = a.client("alice").await;
    assert_eq!(next().await, PresenceChange::Online("alice".into()));
    assert_eq!(alice.ask("join tea").await, "joined");
    until_degraded_by(&a, "NOPERM").await;

    let refused = Instant::now();
    for cut in [false, true] {
        if cut {
            redis.cli(&["CLIENT", "KILL", "USER", "app", "TYPE", "pubsub"]);
        }
        // Longer than silence is forgiven.
        while refused.elapsed() < 2 * LEASE || cut && refused.elapsed() < 4 * LEASE {
            let bob = a.client("bob").await;
            assert_eq!(
                next().await,
                PresenceChange::Online("bob".into()),
                "alice stays"
            );
            drop(bob);
            assert_eq!(
                next().await,
                PresenceChange::Offline("bob".into()),
                "alice stays"
            );
        }
        until("they know each other", async || {
            b.cluster.stats().nodes == 2
        })
        .await;
    }
    assert!(
        matches!(a.cluster.health(), Health::Degraded { .. }),
        "control"
    );
}

/// Nobody is counted there, for Redis, and somebody is: whoever tells that it is refused such channels is asked by name.
#[tokio::test(flavor = "multi_thread")]
async fn a_roster_of_a_room_that_redis_refuses_is_whole_all_the_same() {
    const LINE: &str = "ACL SETUSER app on >s3cret resetchannels &cluster:u:* &cluster:all &cluster:n:* \
        &cluster:nodes +subscribe +unsubscribe +publish +pubsub";
    let lab = Lab::redis();
    let redis = lab.redis.as_ref().unwrap();
    let acl = |line: &str| redis.cli(&line.split(' ').collect::<Vec<_>>());
    assert_eq!(acl(LINE), "OK");
    let url = format!("redis://app:s3cret@127.0.0.1:{}", redis.port());
    let a = TestNode::start(lab.builder().redis(url).start()).await;
    until_up(&a).await;
    let b = lab.node().await;
    until("they know each other", async || {
        b.cluster.stats().nodes == 2
    })
    .await;
    let (mut alice, ask) = (a.client("alice").await, &b.broadcaster);
    let tea = async || ask.to_room("tea").count().await.unwrap();
    assert!(tea().await.is_complete());

    assert_eq!(alice.ask("join tea").await, "joined");
    until("b is told", async || tea().await.sockets() == 1).await;
    for cut in [false, true] {
        if cut {
            redis.cli(&["CLIENT", "KILL", "USER", "app", "TYPE", "pubsub"]);
            // Who is cut off without a word of it is found out by counting.
            until("it is back", async || {
                redis
                    .cli(&["PUBSUB", "NUMSUB", "cluster:nodes"])
                    .ends_with('2')
            })
            .await;
        }
        for _ in 0..10 {
            let tea = tea().await;
            assert_eq!((tea.sockets(), tea.is_complete()), (1, true));
        }
        let alice = ask.to_user("alice").count().await.unwrap();
        assert_eq!(
            (alice.sockets(), alice.is_complete()),
            (1, true),
            "she is heard"
        );
    }
    assert_eq!(acl("ACL SETUSER app &cluster:r:*"), "OK");
    until("b is told", async || tea().await.is_complete()).await;
    assert_eq!(tea().await.sockets(), 1);
}

/// Somebody between Redis and the node ends a subscription of the node.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_redis_ends_is_a_gap_and_comes_back() {
    let lab = Lab::redis();
    let redis = lab.redis.as_ref().unwrap();
    let ends = Arc::new(tokio::sync::Notify::new());
    let ended = ends.clone();
    let addr = lead(redis.port(), move |mut from, mut to| {
        let ends = ended.clone();
        async move {
            let (mut from_read, mut from_write) = from.split();
            let (mut to_read, mut to_write) = to.split();
            let mut subscribes = false;
            let commands = async {
                let mut buffer = vec![0; 64 * 1024];
                loop {
                    tokio::select! {
                        read = from_read.read(&mut buffer) => {
                            let Ok(count @ 1..) = read else { return };
                            let said = &buffer[..count];
                            subscribes |= said.windows(9).any(|part| part == b"SUBSCRIBE");
                            if to_write.write_all(said).await.is_err() {
                                return;
                            }
                        }
                        () = ends.notified(), if subscribes => {
                            let end = b"UNSUBSCRIBE cluster:u:alice\r\n";
                            to_write.write_all(end).await.unwrap();
                        }
                    }
                }
            };
            tokio::select! {
                () = commands => {}
                _ = tokio::io::copy(&mut to_read, &mut from_write) => {}
            }
        }
    })
    .await;
    let a = TestNode::start(lab.builder().redis(format!("redis://{addr}")).start()).await;
    until_up(&a).await;
    let b = lab.node().await;
    let mut alice = a.client("alice").await;
    let (before, mut gaps) = (listening(redis), a.cluster.gaps());
    let send = async |text: &str| {
        let sent = b.broadcaster.to_user("alice").send(text.to_owned());
        sent.await.unwrap().nodes()
    };
    assert_eq!(send("control").await, Some(1));
    assert_eq!(alice.event().await, text("control"));

    ends.notify_one();
    soon("the gap", gaps.next()).await.unwrap();
    assert_eq!(send("here?").await, Some(1), "told, and heard again");
    assert_eq!(alice.event().await, text("here?"));
    until_up(&a).await;
    assert_eq!(a.cluster.stats().bus_gaps, 1);
    assert_eq!(listening(redis), before, "the link was not lost");
    let ended = redis.calls("unsubscribe");
    assert_eq!(ended, 1, "control: redis ended it");
}

/// H5: a round trip of 1.2 s, and one more for the password, with the settings that everybody has.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_comes_up_over_a_link_slower_than_its_senders_wait() {
    let server = RedisServer::with_options(&["--requirepass", "secret"]);
    let link = Proxy::slow(server.port(), Duration::from_millis(600)).await;
    let near = format!("redis://:secret@127.0.0.1:{}", server.port());
    let far = format!("redis://:secret@{}", link.addr);
    let defaults = |url| axum_cluster::Cluster::builder().redis(url).start();
    let near = TestNode::start(defaults(near)).await;
    until_up(&near).await;
    let mut client = near.client("alice").await;
    let far = TestNode::start(defaults(far)).await;
    let early = far.broadcaster.to_user("alice").send("too early").await;
    let early = early.expect_err("control: no sender waits so long");
    assert!(!early.maybe_sent(), "{early}");
    until_up(&far).await;
    // Another one may be on the wire when this one comes, whose answer takes as long.
    until("a send arrives", async || {
        let sent = far.broadcaster.to_user("alice").send("here?").await;
        sent.is_ok_and(|delivery| delivery.nodes() == Some(1))
    })
    .await;
    assert_eq!(client.event().await, text("here?"));
}

/// H6: whoever connects is served for 20 ms.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_dies_after_every_connect_is_tried_less_and_less_often() {
    let server = RedisServer::start();
    let connects = Arc::new(Mutex::new(Vec::new()));
    let connected = connects.clone();
    let addr = lead(server.port(), move |mut from, mut to| {
        let connects = connected.clone();
        async move {
            let mut first = [0; 64 * 1024];
            let Ok(count) = from.read(&mut first).await else {
                return;
            };
            if to.write_all(&first[..count]).await.is_err() {
                return;
            }
            let mut answer = vec![0; 64 * 1024];
            let Ok(count) = to.read(&mut answer).await else {
                return;
            };
            if from.write_all(&answer[..count]).await.is_err() {
                return;
            }
            let mut next = [0; 9 + 14];
            let subscribes = match from.peek(&mut next).await {
                Ok(count) => next[..count].windows(9).any(|part| part == b"SUBSCRIBE"),
                Err(_) => false,
            };
            let passing = copy_bidirectional(&mut from, &mut to);
            if subscribes {
                connects.lock().unwrap().push(Instant::now());
                // Carries what it can until then.
                let _ = tokio::time::timeout(Duration::from_millis(20), passing).await;
            } else {
                let _ = passing.await;
            }
        }
    })
    .await;
    let builder = Lab::memory().builder().redis(format!("redis://{addr}"));
    let node = TestNode::start(builder.start()).await;
    let mut changes = node.cluster.health_changes();
    let ups = Arc::new(AtomicUsize::new(0));
    let counted = ups.clone();
    let watching = tokio::spawn(async move {
        while let Some(health) = changes.next().await {
            counted.fetch_add(usize::from(health == Health::Up), SeqCst);
        }
    });
    until("twelve links came and went", async || {
        connects.lock().unwrap().len() >= 12
    })
    .await;
    watching.abort();
    assert!(
        ups.load(SeqCst) >= 2,
        "control: they worked before they died"
    );
    let connects = connects.lock().unwrap();
    let (first, last) = (connects[4] - connects[0], connects[11] - connects[7]);
    // Each is a random part of one that doubles: 50 to 400 ms, and four times 5 s.
    assert!(
        last > 2 * first,
        "four pauses of {first:?}, then four of {last:?}"
    );
}

/// H8: senders to very many users at once. Each has a thread, so that naming the users keeps nobody waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 12)]
async fn large_unions_keep_neither_the_probe_nor_small_sends_waiting() {
    const SENDERS: usize = 8;
    const ROUNDS: usize = 4;
    const USERS: usize = 40_000;
    let lab = Lab::redis();
    let patient = lab.builder().publish_timeout(Duration::from_secs(60));
    // By default, since the threads of this test may take the machine away for a part of the tests' own interval.
    let patient = patient.probe_interval(Duration::from_secs(5));
    let a = TestNode::start(patient.start()).await;
    until_up(&a).await;
    let b = lab.node().await;
    let (mut alice, mut bob) = (b.client("alice").await, b.client("bob").await);
    let mut changes = a.cluster.health_changes();
    assert_eq!(changes.next().await, Some(Health::Up));
    let small = async |name: &str| {
        let begun = Instant::now();
        let sent = a.broadcaster.to_user("bob").send(name).await;
        assert_eq!(sent.unwrap().nodes(), Some(1));
        begun.elapsed()
    };
    let large = |sender: usize| {
        let names = (0..USERS).map(|user| format!("{sender}-{user}"));
        let users = names.chain(["alice".to_owned()]);
        let audience = a.broadcaster.to_users(users);
        tokio::spawn(async move {
            let mut took = Duration::ZERO;
            for round in 0..ROUNDS {
                let begun = Instant::now();
                let sent = audience.clone().send(format!("{sender} {round}"));
                sent.await.unwrap();
                took = took.max(begun.elapsed());
            }
            took
        })
    };
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let flood = join_all((0..SENDERS).map(large));
    let flooded = async {
        let mut times = Vec::new();
        let mut flood = std::pin::pin!(flood);
        loop {
            tokio::select! {
                took = &mut flood => {
                    let took = took.into_iter().map(Result::unwrap).collect();
                    return (median(took), median(times));
                }
                time = small("now") => times.push(time),
            }
        }
    };
    let (large, small_time) = soon("the flood ends", flooded).await;
    assert!(
        small_time * 4 < large,
        "a small send took {small_time:?}, a large one {large:?}"
    );
    a.broadcaster
        .to_users(["alice", "bob"])
        .send("fence")
        .await
        .unwrap();
    let heard = alice.before("fence").await;
    for sender in 0..SENDERS {
        let of_sender = |event: &&Event| matches!(event, Event::Text(text) if text.starts_with(&format!("{sender} ")));
        let heard: Vec<Event> = heard.iter().filter(of_sender).cloned().collect();
        let sent: Vec<Event> = (0..ROUNDS)
            .map(|round| text(&format!("{sender} {round}")))
            .collect();
        assert_eq!(heard, sent, "once each, in order");
    }
    assert!(
        bob.before("fence").await.len() > 4,
        "control: small sends went on"
    );
    assert!(
        changes.next().now_or_never().is_none(),
        "the node was well all the time"
    );
}
