//! What a node says of what it may have missed, and how it notices (rows B2, B5, B6, B7, B9).

use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use axum_cluster::{Gap, Health};
use futures::{FutureExt, Stream, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::support::client::{Event, text};
use crate::support::figures::Figures;
use crate::support::node::NEVER;
use crate::support::program::{Program, example};
use crate::support::proxy::Proxy;
use crate::support::redis::free_port;
use crate::support::{Client, Lab, PATIENCE, RedisServer, TestNode, soon, until};

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

/// Waits until the node is degraded for this reason; returns all of it.
pub(crate) async fn until_degraded_by(node: &TestNode, part: &str) -> String {
    let (mut changes, mut last) = (node.cluster.health_changes(), None);
    let degraded = async {
        loop {
            match changes.next().await.expect("the node lives") {
                Health::Degraded { reason, .. } if reason.contains(part) => {
                    return reason.to_string();
                }
                other => last = Some(other),
            }
        }
    };
    match timeout(PATIENCE, degraded).await {
        Ok(reason) => reason,
        Err(_) => panic!("not degraded by `{part}`: {last:?}"),
    }
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
        let killing = Instant::now();
        lab.server().kill();
        until_degraded(&a).await;
        let since = killing.elapsed();
        assert!(a.cluster.stats().bus_probe_age_millis >= since.as_millis() as u64);
        let down = SystemTime::now();
        let mut during = a.broadcaster.gaps();
        assert!(
            before.next().now_or_never().is_none(),
            "it is not over, so its end is not known"
        );
        let restarting = SystemTime::now();
        let restarted = Instant::now();
        lab.server().restart();
        let gap = next_gap(&mut before).await;
        assert_eq!(next_gap(&mut during).await, gap);
        assert!(gap.from <= down && gap.until >= restarting, "{gap:?}");
        assert!(
            gap.from + Duration::from_secs(30) > start && gap.until <= SystemTime::now(),
            "{gap:?}"
        );
        let stats = a.cluster.stats();
        assert!(stats.bus_probe_age_millis <= restarted.elapsed().as_millis() as u64);
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

/// B6: the links stay on the old primary, which is a replica by now: what is published there reaches only
/// its own subscribers, the probe among them.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_became_a_replica_is_left_for_the_new_one() {
    let old = RedisServer::start();
    let new = replica_of(&old);
    let proxy = Proxy::to(old.port()).await;
    let lab = Lab::memory();
    let a = TestNode::start(lab.builder().redis(proxy.url()).start()).await;
    a.cluster.ready().await.unwrap();
    let mut gaps = a.cluster.gaps();
    let mut alice = a.client("alice").await;
    let before = SystemTime::now();

    assert_eq!(new.cli(&["REPLICAOF", "NO", "ONE"]), "OK");
    let mut figures = Figures::of("B6");
    let port = new.port().to_string();
    assert_eq!(old.cli(&["REPLICAOF", "127.0.0.1", &port]), "OK");
    let b = TestNode::start(lab.builder().redis(new.url()).start()).await;
    b.cluster.ready().await.unwrap();
    let mut bob = b.client("bob").await;
    let hello = r#"{"text": "hello"}"#;
    assert_eq!(
        old.cli(&["PUBLISH", "cluster:u:bob", hello]),
        "0",
        "control: no error, and nobody there"
    );
    assert_eq!(new.cli(&["PUBLISH", "cluster:u:bob", hello]), "1");
    assert_eq!(bob.event().await, text("hello"));

    let reason = until_degraded_by(&a, "replica").await;
    figures.noticed();
    assert!(reason.contains("point the URL to the primary"), "{reason}");
    let error = a.broadcaster.to_user("bob").send("lost").await.unwrap_err();
    assert!(!error.maybe_sent(), "{error}");
    assert!(error.to_string().contains("replica"), "{error}");
    assert!(gaps.next().now_or_never().is_none());

    let moved = SystemTime::now();
    proxy.lead_to(new.port());
    figures.repaired();
    let gap = next_gap(&mut gaps).await;
    figures.healed();
    assert!(gap.from <= moved && gap.until >= moved, "{gap:?}");
    assert!(gap.from + PATIENCE > before, "{gap:?}");
    until("up", async || a.cluster.health() == Health::Up).await;
    for (from, to, user, client) in [(&a, &b, "bob", &mut bob), (&b, &a, "alice", &mut alice)] {
        let sent = from.broadcaster.to_user(user).send("healed").await;
        assert_eq!(
            sent.unwrap().nodes(),
            Some(1),
            "from {:?} to {:?}",
            from.addr,
            to.addr
        );
        assert_eq!(client.event().await, text("healed"));
    }
    assert_eq!(a.cluster.stats().bus_gaps, 1);
}

/// B6: only the publisher found the new primary. Replication hides it from the probe.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_left_behind_on_the_old_primary_follows_the_publisher() {
    let old = RedisServer::start();
    let new = replica_of(&old);
    let proxy = Proxy::to(old.port()).await;
    let lab = Lab::memory();
    let a = TestNode::start(
        lab.builder()
            .redis(proxy.url())
            .probe_interval(Duration::from_secs(10))
            .start(),
    )
    .await;
    a.cluster.ready().await.unwrap();
    let mut gaps = a.cluster.gaps();
    let mut alice = a.client("alice").await;

    assert_eq!(new.cli(&["REPLICAOF", "NO", "ONE"]), "OK");
    let port = new.port().to_string();
    assert_eq!(old.cli(&["REPLICAOF", "127.0.0.1", &port]), "OK");
    until("replication", async || {
        old.cli(&["INFO", "replication"])
            .contains("master_link_status:up")
    })
    .await;
    proxy.lead_to(new.port());
    new.cli(&["PUBLISH", "cluster:u:alice", r#"{"text": "replicated"}"#]);
    assert_eq!(alice.event().await, text("replicated"), "control");
    old.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    until_degraded_by(&a, "another Redis").await;
    next_gap(&mut gaps).await;
    until("presence is right", async || {
        new.cli(&["PUBSUB", "NUMSUB", "cluster:u:alice"])
            .ends_with('1')
    })
    .await;
    assert_eq!(a.cluster.stats().bus_gaps, 1);
}

pub(crate) fn replica_of(primary: &RedisServer) -> RedisServer {
    let port = primary.port().to_string();
    let replica = RedisServer::with_options(&["--replicaof", "127.0.0.1", &port]);
    for server in [primary, &replica] {
        server.cli(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]);
    }
    replica
}

/// B5: only the subscriber's link is dead; publishing goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_can_speak_but_not_hear_notices() {
    let lab = Lab::redis();
    let server = lab.redis.as_ref().unwrap();
    let proxy = Proxy::to(server.port()).await;
    let a = TestNode::start(lab.builder().redis(proxy.url()).start()).await;
    let b = lab.node().await;
    a.cluster.ready().await.unwrap();
    let mut gaps = a.cluster.gaps();
    let (mut alice, mut bob) = (a.client("alice").await, b.client("bob").await);

    proxy.deafen_subscribers();
    let mut figures = Figures::of("B5 deaf");
    let sent = b.broadcaster.to_user("alice").send("into the hole").await;
    assert_eq!(sent.unwrap().nodes(), Some(1), "control: Redis counts it");
    let sent = a.broadcaster.to_user("bob").send("still spoken").await;
    assert_eq!(sent.unwrap().nodes(), Some(1));
    assert_eq!(bob.event().await, text("still spoken"));
    until_degraded_by(&a, "did not come back").await;
    figures.noticed();
    proxy.heal();
    figures.repaired();
    next_gap(&mut gaps).await;
    figures.healed();
    until("alice is heard again", async || {
        let sent = b.broadcaster.to_user("alice").send("fence").await;
        sent.is_ok_and(|sent| sent.nodes() >= Some(1))
    })
    .await;
    assert_eq!(alice.event().await, text("fence"));
    assert_eq!(a.cluster.stats().bus_gaps, 1);
}

/// B7: only the publisher fails, so no gap will ever be told, and newcomers are heard as ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_can_hear_but_not_speak_admits_nobody_unheard() {
    let mut lab = Lab::redis();
    let server = lab.server();
    grant(server);
    let link = Proxy::slow(server.port(), Duration::from_millis(20)).await;
    let url = format!("redis://app:s3cret@{}", link.addr);
    // On a busy machine too, what is subscribed to is confirmed in time.
    let patient = lab.builder().redis(url).publish_timeout(PATIENCE);
    let a = TestNode::start(patient.start()).await;
    a.cluster.ready().await.unwrap();
    let b = lab.node().await;
    lab.server().cli(&["ACL", "SETUSER", "app", "-publish"]);
    until_degraded_by(&a, "NOPERM").await;
    for n in 0..5 {
        let (user, room) = (format!("user-{n}"), format!("room-{n}"));
        let mut client = a.client(&user).await;
        let sent = b.broadcaster.to_user(&user).send("at once").await;
        assert_eq!(sent.unwrap().nodes(), Some(1));
        assert_eq!(client.event().await, text("at once"));
        assert_eq!(client.ask(&format!("join {room}")).await, "joined");
        let sent = b.broadcaster.to_room(&room).send("at once").await;
        assert_eq!(sent.unwrap().nodes(), Some(1));
        assert_eq!(client.event().await, text("at once"));
    }
    assert!(matches!(a.cluster.health(), Health::Degraded { .. }));
    assert_eq!(a.cluster.stats().bus_gaps, 0, "nobody was deaf");
}

/// B4: users come and are sent to at once, before, during and after an outage over a slow link. Who is
/// not reached came before the end of the gap.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_who_comes_after_a_gap_is_missed() {
    let mut lab = Lab::redis();
    let link = Proxy::slow(lab.server().port(), Duration::from_millis(20)).await;
    let a = TestNode::start(lab.builder().redis(link.url()).start()).await;
    a.cluster.ready().await.unwrap();
    let b = lab.node().await;
    let (mut gaps, mut told) = (a.cluster.gaps(), Vec::new());
    let stop = CancellationToken::new();
    let coming = (0..4).map(|visitor| {
        let (addr, broadcaster, stop) = (a.addr, b.broadcaster.clone(), stop.clone());
        tokio::spawn(async move {
            let mut missed = Vec::new();
            for n in 0.. {
                if stop.is_cancelled() {
                    break;
                }
                let user = format!("{visitor}-{n}");
                let _client = Client::connect(addr, &user).await;
                let begun = SystemTime::now();
                // Where b itself cannot send, it was told.
                let sent = broadcaster.to_user(&user).send("at once").await;
                if sent.is_ok_and(|sent| sent.nodes() == Some(0)) {
                    missed.push(begun);
                }
            }
            missed
        })
    });
    let coming: Vec<_> = coming.collect();
    for _ in 0..3 {
        let killed = lab.server().cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        assert_eq!(killed, "2", "control: both were connected");
        told.push(next_gap(&mut gaps).await);
        for node in [&a, &b] {
            until("up", async || node.cluster.health() == Health::Up).await;
        }
    }
    stop.cancel();
    let missed = futures::future::try_join_all(coming)
        .await
        .unwrap()
        .concat();
    assert!(!missed.is_empty(), "control: some came during the outages");
    for begun in missed {
        let inside = told
            .iter()
            .any(|gap| (gap.from..=gap.until).contains(&begun));
        assert!(inside, "{begun:?} is in none of {told:?}");
    }
}

/// B5: Redis stands still for longer than an upgrade waits, and goes on. Who was admitted unheard is
/// told of a gap; nobody else loses anything.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_admitted_unheard_is_told_of_a_gap() {
    let mut lab = Lab::redis();
    let patient = lab.builder().publish_timeout(PATIENCE);
    let b = TestNode::start(patient.clone().start()).await;
    let hasty = patient.publish_timeout(Duration::from_millis(300));
    let a = TestNode::start(hasty.probe_interval(NEVER).start()).await;
    a.cluster.ready().await.unwrap();
    b.cluster.ready().await.unwrap();
    let mut gaps = a.cluster.gaps();
    let mut early = a.client("early").await;
    lab.server().freeze();
    let before = SystemTime::now();
    let mut late = soon("an upgrade", a.client("late")).await;
    let admitted = SystemTime::now();
    let reason = until_degraded_by(&a, "does not confirm").await;
    assert!(reason.contains("in time"), "{reason}");
    let sending = b.broadcaster.to_user("early").send("meanwhile");
    let (sent, ()) = tokio::join!(sending, async { lab.server().thaw() });
    assert_eq!(sent.unwrap().nodes(), Some(1), "its connection is kept");
    assert_eq!(early.event().await, text("meanwhile"));
    let gap = next_gap(&mut gaps).await;
    assert!(gap.from <= before && gap.until >= admitted, "{gap:?}");
    until("up", async || a.cluster.health() == Health::Up).await;
    let sent = b.broadcaster.to_user("late").send("now").await;
    assert_eq!(sent.unwrap().nodes(), Some(1));
    assert_eq!(late.event().await, text("now"));
    assert_eq!(a.cluster.stats().bus_gaps, 1);
}

/// B7: permissions that are taken away while the node runs, and given back.
#[tokio::test(flavor = "multi_thread")]
async fn revoked_permissions_are_named_and_survived() {
    let mut lab = Lab::redis();
    let server = lab.server();
    grant(server);
    let url = format!("redis://app:s3cret@127.0.0.1:{}", server.port());
    let a = TestNode::start(lab.builder().redis(url).start()).await;
    let server = lab.server();
    a.cluster.ready().await.unwrap();
    let _alice = a.client("alice").await;
    let line = "ACL SETUSER app resetchannels &cluster:* +subscribe +unsubscribe +publish +pubsub";
    let denied = [
        (vec!["ACL", "SETUSER", "app", "-publish"], "NOPERM", line, 0),
        (
            vec!["ACL", "SETUSER", "app", "resetchannels"],
            "NOPERM",
            line,
            1,
        ),
        (vec!["ACL", "DELUSER", "app"], "WRONGPASS", "in the URL", 2),
    ];
    for (command, words, fix, gaps) in denied {
        server.cli(&command);
        let mut figures = Figures::of("B7 revoked");
        let reason = until_degraded_by(&a, words).await;
        figures.noticed();
        assert!(reason.contains(fix), "{reason}");
        a.broadcaster.to_user("alice").send("x").await.unwrap_err();
        grant(server);
        figures.repaired();
        until("up", async || a.cluster.health() == Health::Up).await;
        figures.healed();
        let counted = server.cli(&["PUBSUB", "NUMSUB", "cluster:u:alice"]);
        assert!(counted.ends_with('1'), "up and deaf: {counted}");
        assert_eq!(a.cluster.stats().bus_gaps, gaps, "after {command:?}");
    }
}

/// As the docs say.
fn grant(server: &RedisServer) {
    let line = "ACL SETUSER app on >s3cret resetchannels &cluster:* +subscribe +unsubscribe +publish +pubsub";
    assert_eq!(server.cli(&line.split(' ').collect::<Vec<_>>()), "OK");
}

/// B7: what a real server says to those who want to come back.
#[tokio::test(flavor = "multi_thread")]
async fn refused_connections_are_named_and_survived() {
    let mut lab = Lab::redis();
    let [a] = lab.nodes().await;
    let server = lab.server();
    let client = redis::Client::open(server.url()).unwrap();
    let mut held = client.get_multiplexed_async_connection().await.unwrap();
    let mut ask = async |line: &str| {
        let mut command = redis::Cmd::new();
        line.split(' ').for_each(|part| {
            command.arg(part);
        });
        let answer: redis::Value = command.query_async(&mut held).await.unwrap();
        answer
    };
    for (refuse, allow, words, fix) in [
        (
            "CONFIG SET maxclients 1",
            "CONFIG SET maxclients 100",
            "ERR max number of clients",
            "raise its maxclients",
        ),
        (
            "CONFIG SET requirepass s3cret",
            "CONFIG SET requirepass ",
            "NOAUTH",
            "redis://:password@host",
        ),
    ] {
        ask(refuse).await;
        for kind in ["pubsub", "normal"] {
            ask(&format!("CLIENT KILL TYPE {kind}")).await;
        }
        let mut figures = Figures::of("B7 refused");
        let reason = until_degraded_by(&a, words).await;
        figures.noticed();
        assert!(reason.contains(fix), "{reason}");
        ask(allow).await;
        figures.repaired();
        until("up", async || a.cluster.health() == Health::Up).await;
        figures.healed();
    }
    assert_eq!(a.cluster.stats().bus_gaps, 2);
}

/// B7: what a server says that is not ready.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_not_ready_is_quoted_and_tried_again() {
    for (words, fix) in [
        (
            "LOADING Redis is loading the dataset in memory",
            "tries again",
        ),
        (
            "READONLY You can't write against a read only replica.",
            "primary",
        ),
        (
            "OOM command not allowed when used memory > 'maxmemory'.",
            "maxmemory",
        ),
        ("MISCONF Redis is configured to save RDB snapshots", "log"),
    ] {
        let mut server = RedisServer::absent();
        let refusing = refuse_everything(server.port(), words).await;
        let node = TestNode::start(Lab::memory().builder().redis(server.url()).start()).await;
        let reason = until_degraded_by(&node, words).await;
        assert!(reason.contains(fix), "{reason}");
        let error = node.broadcaster.to_user("x").send("x").await.unwrap_err();
        assert!(
            !error.maybe_sent() && error.to_string().contains(words),
            "{error}"
        );
        refusing.abort();
        assert!(refusing.await.unwrap_err().is_cancelled());
        server.restart();
        until("up", async || node.cluster.health() == Health::Up).await;
    }
}

/// A server that answers whatever is said to it with one error.
async fn refuse_everything(port: u16, words: &str) -> JoinHandle<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let answer = format!("-{words}\r\n");
    tokio::spawn(async move {
        let mut links = tokio::task::JoinSet::new();
        loop {
            let (mut link, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            links.spawn(async move {
                let mut buffer = [0; 4096];
                while link.read(&mut buffer).await.is_ok_and(|count| count > 0) {
                    if link.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    })
}

/// With Redis frozen, a hundred thousand sends at once fail by their deadline; only so many wait as the
/// queue holds, and afterwards none.
#[tokio::test(flavor = "multi_thread")]
async fn publishes_fail_fast_instead_of_piling_up() {
    const SENDS: usize = 100_000;
    const QUEUE: u64 = 65_536;
    let mut lab = Lab::redis();
    let deadline = Duration::from_secs(2);
    let node = TestNode::start(lab.builder().publish_timeout(deadline).start()).await;
    node.cluster.ready().await.unwrap();
    let all = async || {
        let start = Instant::now();
        let sends = (0..SENDS).map(|n| node.broadcaster.to_user(n as u64).send("x"));
        let sent = futures::future::join_all(sends).await;
        let failed = sent.iter().filter(|sent| sent.is_err()).count();
        (failed, start.elapsed())
    };
    let (failed, undisturbed) = all().await;
    assert_eq!(failed, 0, "control");

    lab.server().freeze();
    let cluster = node.cluster.clone();
    let most = tokio::spawn(async move {
        let mut most = 0;
        loop {
            let queued = cluster.stats().bus_publish_queue;
            if queued < most && most >= QUEUE / 2 {
                return most;
            }
            most = queued;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let (failed, frozen) = all().await;
    let most = soon("the queue fills and empties", most).await.unwrap();
    assert!(most <= QUEUE, "{most} waited");
    assert_eq!(failed, SENDS);
    assert!(
        frozen < deadline + 5 * undisturbed,
        "{frozen:?} with a deadline of {deadline:?}, {undisturbed:?} without a fault"
    );
    let stats = node.cluster.stats();
    assert_eq!(stats.bus_publish_failures, SENDS as u64);
    assert_eq!(
        stats.bus_publish_unsent + stats.bus_publish_uncertain,
        stats.bus_publish_failures
    );
    assert!(stats.bus_publish_queue <= 1, "only a probe may wait");
    lab.server().thaw();
    until("sends work again", async || {
        node.broadcaster.to_user("x").send("x").await.is_ok()
    })
    .await;
}

/// B9: a stopped process gives up none of its clients for the time in which it slept, and what was sent
/// meanwhile arrives; or, when Redis has cut it off, the gap is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_node_gives_nobody_up_and_hides_no_gap() {
    let mut lab = Lab::redis();
    let [b] = lab.nodes().await;
    let port = free_port();
    let mut program = example("resync");
    program
        .env("PORT", port.to_string())
        .env("REDIS_URL", lab.server().url())
        .stdout(Stdio::null());
    let program = Program(program.spawn().unwrap());
    let addr = ([127, 0, 0, 1], port).into();
    until("it listens", async || {
        tokio::net::TcpStream::connect(addr).await.is_ok()
    })
    .await;
    let mut alice = Client::try_connect(addr, "/alice", &[]).await.unwrap();
    assert_eq!(alice.ask("hello").await, "hello");

    // The client owes a pong when the process stops, for longer than the pong may take.
    const PING: [u8; 2] = [0x89, 0];
    const MASKED_PONG: [u8; 6] = [0x8a, 0x80, 0, 0, 0, 0];
    let mut frame = [0; 2];
    soon("a ping", alice.raw().read_exact(&mut frame))
        .await
        .unwrap();
    assert_eq!(frame, PING);
    stop(&program).await;
    for n in 0..100 {
        let sent = b.broadcaster.to_user("alice").send(n.to_string()).await;
        assert_eq!(sent.unwrap().nodes(), Some(1));
    }
    tokio::time::sleep(Duration::from_secs(6)).await;
    let mut byte = [0];
    let nothing = alice.raw().peek(&mut byte).now_or_never();
    assert!(nothing.is_none(), "control: it was frozen");
    signal(&program, "-CONT");
    let mut figures = Figures::of("B9");
    alice.raw().write_all(&MASKED_PONG).await.unwrap();
    for n in 0..100 {
        assert_eq!(alice.event().await, text(&n.to_string()));
    }
    figures.healed();
    drop(figures);

    stop(&program).await;
    let killed = lab.server().cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    assert_eq!(killed, "2", "control: it was connected");
    until("b is back", async || {
        b.cluster.stats().bus_reconnects == 1 && b.cluster.health() == Health::Up
    })
    .await;
    let sent = b.broadcaster.to_user("alice").send("missed").await;
    assert_eq!(sent.unwrap().nodes(), Some(0), "control: nobody is there");
    signal(&program, "-CONT");
    let Event::Text(told) = alice.event().await else {
        panic!("closed");
    };
    assert!(told.starts_with(r#"{"resync": "#), "{told}");
    assert_eq!(alice.ask("still here").await, "still here");
}

/// Stops it, and waits until every thread has heard of it.
async fn stop(program: &Program) {
    signal(program, "-STOP");
    let threads = format!("/proc/{}/task", program.0.id());
    until("it is stopped", async || {
        std::fs::read_dir(&threads).unwrap().all(|thread| {
            let status = std::fs::read_to_string(thread.unwrap().path().join("status"));
            status.unwrap().contains("State:\tT")
        })
    })
    .await;
}

fn signal(program: &Program, signal: &str) {
    let pid = program.0.id().to_string();
    let status = Command::new("kill").args([signal, &pid]).status();
    assert!(status.unwrap().success());
}

/// What an operator reads afterwards: every socket that ended, once, by its code.
#[tokio::test(flavor = "multi_thread")]
async fn every_end_is_counted_by_its_code() {
    let lab = Lab::memory();
    let [mut node] = lab.nodes().await;
    for command in ["return", "panic", "close 4001", "close 1002"] {
        let mut client = node.client("alice").await;
        client.send(command).await;
        assert!(matches!(client.event().await, Event::Closed(..)));
        drop(client);
        // A handler that panics tells nobody.
        if command != "panic" {
            node.next_end().await;
        }
    }
    let mut leaves = node.client("alice").await;
    leaves.close(1001).await;
    node.next_end().await;
    let mut vanishes = node.client("alice").await;
    assert_eq!(vanishes.ask("hello").await, "hello");
    drop(vanishes);
    node.next_end().await;
    let mut talks = node.client("alice").await;
    talks.send(&"x".repeat(100_000)).await;
    node.next_end().await;
    drop((leaves, talks));
    let mut stays = node.client("alice").await;
    let sent_away = async move { stays.event().await };
    tokio::join!(node.cluster.shutdown(Duration::ZERO), sent_away);
    let stats = node.cluster.stats();
    let counted = [
        ("normal", stats.closed_normal),
        ("going away", stats.closed_going_away),
        ("abnormal", stats.closed_abnormal),
        ("protocol", stats.closed_protocol),
        ("too big", stats.closed_too_big),
        ("panicked", stats.closed_panicked),
        ("restart", stats.closed_restart),
        ("other", stats.closed_other),
    ];
    for (kind, count) in counted {
        assert_eq!(count, 1, "{kind}: {stats:?}");
    }
    let rest = stats.closed_no_status + stats.closed_slow + stats.closed_expired;
    assert_eq!(rest, 0, "{stats:?}");
}
