//! Redis with sentinels (rows T1 to T7): whom they name is followed, whatever the old primary says of itself.

use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum_cluster::{Backend, Health, Redis};
use futures::StreamExt;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::bus::Watch;
use crate::faults::heard_until_fence;
use crate::gaps::until_degraded_by;
use crate::support::client::text;
use crate::support::figures::Figures;
use crate::support::node::NEVER;
use crate::support::redis::free_port;
use crate::support::redis::sentinels::{SERVICE, Sentinels, named_by, watching};
use crate::support::traffic::Traffic;
use crate::support::{Lab, RedisServer, TestNode, soon, until};

const SENTINELS: usize = 3;

/// Two nodes, a primary and a replica.
struct Fleet {
    redis: Sentinels,
    nodes: [TestNode; 2],
}

/// What a failover took.
struct Course {
    /// Until the sentinels had decided.
    decided: Duration,
    /// From then on, until both nodes were at the new primary.
    followed: Duration,
}

impl Fleet {
    async fn start(probe_interval: Duration) -> Self {
        Self::by(|redis| redis.url(), probe_interval).await
    }

    async fn by(url: impl Fn(&Sentinels) -> String, probe_interval: Duration) -> Self {
        let redis = Sentinels::start(1, SENTINELS);
        let builder = Lab::memory().builder().redis(url(&redis));
        // What one node says of what it sent to the old primary is told at once, not with the next hello.
        let builder = builder.lease(NEVER);
        let builder = builder.probe_interval(probe_interval);
        let [a, b] = [(); 2].map(|()| builder.clone().start());
        let nodes = [TestNode::start(a).await, TestNode::start(b).await];
        for node in &nodes {
            node.until_up().await;
        }
        Self { redis, nodes }
    }

    /// Sends numbers from one node to the other while a failover is caused, and judges what became of them. Afterwards
    /// both are at the new primary, within so many times what the sentinels took to decide.
    async fn under_load(
        &mut self,
        (row, times): (&'static str, u32),
        cause: impl FnOnce(&mut Sentinels),
    ) {
        let Course { decided, followed } = self.told_by(0, row, cause).await;
        assert!(followed < decided * times, "{decided:?}, {followed:?}");
    }

    /// The same, as this sentinel tells it.
    async fn told_by(
        &mut self,
        sentinel: usize,
        row: &'static str,
        cause: impl FnOnce(&mut Sentinels),
    ) -> Course {
        let Self { redis, nodes } = self;
        let [a, b] = nodes;
        let mut alice = a.client("alice").await;
        let mut watches = [Watch::new(a), Watch::new(b)];
        for watch in &mut watches {
            watch.until_up().await;
        }
        let (gaps, traffic) = (a.cluster.gaps(), Traffic::start(&b.broadcaster, "alice"));
        traffic.passes(20).await;
        let switched = switched(&redis.sentinels[sentinel]).await;
        let (mut figures, begun) = (Figures::of(row), Instant::now());
        cause(redis);
        let switched = soon("control: the sentinels switch", switched).await;
        let new = redis.servers[1].port().to_string();
        assert!(switched.unwrap().ends_with(&new), "control");
        let decided = Instant::now();
        figures.repaired();
        for watch in &mut watches {
            watch.until_degraded().await;
        }
        figures.noticed();
        until("both are at the new primary", async || {
            let up = |node: &TestNode| node.cluster.health() == Health::Up;
            up(a) && up(b) && subscribers(&redis.servers[1]) == 1
        })
        .await;
        figures.healed();
        let (decided, followed) = (decided - begun, decided.elapsed());
        println!("{row}: decided {decided:?}, followed {followed:?}");
        traffic.passes(20).await;
        let heard = async || heard_until_fence(&b.broadcaster, &mut alice).await;
        let losses = traffic.losses(heard, gaps).await;
        assert!(!losses.is_empty(), "it is told of a gap");
        figures.lost_inside = losses.iter().map(|(_, lost)| lost).sum();
        figures.lost_outside = Some(0);
        Course { decided, followed }
    }
}

/// What the next `+switch-master` of this sentinel says, once it is listened to.
async fn switched(sentinel: &RedisServer) -> JoinHandle<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", sentinel.port()))
        .await
        .unwrap();
    stream
        .write_all(b"SUBSCRIBE +switch-master\r\n")
        .await
        .unwrap();
    let mut lines = BufReader::new(stream).lines();
    let mut next = async move |part: &str| loop {
        let line = lines.next_line().await.unwrap().expect("it listens");
        if line.starts_with(part) {
            return line;
        }
    };
    next(":1").await;
    tokio::spawn(async move { next(&format!("{SERVICE} ")).await })
}

/// How many hear alice.
fn subscribers(server: &RedisServer) -> usize {
    let heard = server.cli(&["PUBSUB", "NUMSUB", "cluster:u:alice"]);
    heard
        .lines()
        .last()
        .and_then(|count| count.parse().ok())
        .unwrap_or(0)
}

/// Connections of nodes: not those of sentinels, of replicas, and of `redis-cli`.
fn nodes_at(server: &RedisServer) -> usize {
    let clients = server.cli(&["CLIENT", "LIST"]);
    let others = ["name=sentinel-", "cmd=client", "flags=S", "flags=M"];
    let of_node = |client: &&str| !others.iter().any(|other| client.contains(other));
    clients.lines().filter(of_node).count()
}

async fn until_nobody_is_at(server: &RedisServer) {
    until("everybody has left", async || nodes_at(server) == 0).await;
}

/// Says that it is a primary, and takes what is published.
fn assert_calls_itself_primary(server: &RedisServer) {
    assert!(server.cli(&["ROLE"]).starts_with("master"), "control");
    let taken = server.cli(&["PUBLISH", "cluster:u:alice", r#"{"text": "stray"}"#]);
    assert_eq!(taken, "0", "control: no error, and nobody there");
}

/// T1.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_primary_is_followed_to_the_new_one() {
    let mut fleet = Fleet::start(Duration::from_millis(500)).await;
    fleet
        .under_load(("T1", 3), |redis| redis.servers[0].kill())
        .await;
}

/// T2: no probe and no end of a connection tells of it, only the sentinels do.
#[tokio::test(flavor = "multi_thread")]
async fn a_graceful_failover_is_followed_though_the_old_primary_calls_itself_that() {
    let mut fleet = Fleet::start(NEVER).await;
    let gracefully = |redis: &mut Sentinels| redis.fail_over();
    fleet.under_load(("T2", 10), gracefully).await;
    until_nobody_is_at(&fleet.redis.servers[0]).await;
    let [a, b] = &fleet.nodes;
    for node in [a, b] {
        // Questions, which have connections of their own.
        assert!(node.broadcaster.is_online("alice").await.is_ok());
    }
    assert_calls_itself_primary(&fleet.redis.servers[0]);
    let [old, new] = [0, 1].map(|n| nodes_at(&fleet.redis.servers[n]));
    assert!(old == 0 && new >= 4, "{old} {new}");
}

/// T3.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_primary_that_thaws_is_not_gone_back_to() {
    let mut fleet = Fleet::start(Duration::from_millis(500)).await;
    fleet
        .under_load(("T3", 3), |redis| redis.servers[0].freeze())
        .await;
    let old = &fleet.redis.servers[0];
    old.thaw();
    until_nobody_is_at(old).await;
    assert_calls_itself_primary(old);
    let [a, b] = &fleet.nodes;
    let mut bob = a.client("bob").await;
    let sent = b.broadcaster.to_user("bob").send("hello").await.unwrap();
    assert_eq!(sent.nodes(), Some(1));
    assert_eq!(bob.event().await, text("hello"));
}

/// T4: nothing else tells of it, since no probe is due.
#[tokio::test(flavor = "multi_thread")]
async fn the_sentinel_that_is_listened_to_may_go_with_the_primary() {
    let mut fleet = Fleet::start(NEVER).await;
    let is_listened_to = |sentinel: &RedisServer| {
        let listeners = sentinel.cli(&["CLIENT", "LIST", "TYPE", "pubsub"]);
        listeners.contains("sub=1")
    };
    let mut watched = None;
    until("control: one of them is listened to", async || {
        watched = fleet.redis.sentinels.iter().position(is_listened_to);
        watched.is_some()
    })
    .await;
    let watched = watched.unwrap();
    let both_die = |redis: &mut Sentinels| {
        redis.sentinels[watched].kill();
        redis.servers[0].kill();
        assert_eq!(redis.named_by(watched), None, "control: it is gone");
    };
    let other = (watched + 1) % SENTINELS;
    let Course { decided, followed } = fleet.told_by(other, "T4", both_die).await;
    assert!(followed < 3 * decided, "{decided:?}, {followed:?}");
}

/// T4: a machine goes, with the primary and a sentinel. No port of it is closed, as they are where only processes end.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_silent_is_followed_as_soon_as_one_that_is_gone() {
    // Others tell its address, so that it is asked by that as well.
    let by_name = |redis: &Sentinels| redis.url().replace("127.0.0.1", "localhost");
    let start = || Fleet::by(by_name, Duration::from_millis(500));
    let dies = |redis: &mut Sentinels| {
        redis.sentinels[0].kill();
        redis.servers[0].kill();
    };
    let gone = start().await.told_by(1, "T4 gone", dies).await;
    let mut unanswered = None;
    let falls_silent = |redis: &mut Sentinels| {
        redis.sentinels[0].freeze();
        redis.servers[0].freeze();
        let address = ("127.0.0.1", redis.sentinels[0].port());
        let mut link = std::net::TcpStream::connect(address).expect("control: it refuses nobody");
        link.write_all(b"PING\r\n").unwrap();
        unanswered = Some(link);
    };
    let mut fleet = start().await;
    let silent = fleet.told_by(1, "T4 silent", falls_silent).await;
    let mut link = unanswered.unwrap();
    link.set_nonblocking(true).unwrap();
    let error = link.read(&mut [0]).expect_err("control: all the time");
    assert_eq!(error.kind(), ErrorKind::WouldBlock, "control: it is silent");
    let longest = 2 * gone.followed + silent.decided / 3;
    assert!(silent.followed < longest, "{:?}", silent.followed);
}

/// T5.
#[tokio::test(flavor = "multi_thread")]
async fn a_sentinel_that_was_cut_off_with_the_old_primary_leads_nobody_there() {
    let mut redis = Sentinels::start(1, SENTINELS);
    let [old, new] = [0, 1].map(|n| redis.servers[n].port());
    redis.fail_over();
    until("the sentinels agree", async || {
        (0..SENTINELS).all(|n| redis.named_by(n) == Some(new))
    })
    .await;
    // It has never heard of the others, and takes this one for the primary under the same name.
    let other = RedisServer::start();
    let cut_off = RedisServer::sentinel(&watching(other.port(), 1));
    let url = redis.url();
    let url = url.replace("://", &format!("://127.0.0.1:{},", cut_off.port()));
    let node = TestNode::start(Lab::memory().builder().redis(url).start()).await;
    node.until_up().await;
    assert_eq!(named_by(&cut_off), Some(other.port()), "control");
    assert!(![old, new].contains(&other.port()), "control: they differ");
    assert_eq!((nodes_at(&other), nodes_at(&redis.servers[1])), (0, 2));

    redis.sentinels.iter_mut().for_each(RedisServer::kill);
    // Each question is a connection of its own, and so is each of these.
    let connections = || {
        let stats = cut_off.cli(&["INFO", "stats"]);
        let line = stats
            .lines()
            .find_map(|line| line.strip_prefix("total_connections_received:"));
        line.and_then(|count| count.trim().parse::<u32>().ok())
            .unwrap()
    };
    let (before, mut ours) = (connections(), 0);
    until("it is asked again and again", async || {
        ours += 1;
        connections() >= before + ours + 5
    })
    .await;
    assert_eq!(nodes_at(&other), 0, "nor when it alone answers");
    assert_eq!(node.cluster.health(), Health::Up);
}

/// T6.
#[tokio::test(flavor = "multi_thread")]
async fn without_any_sentinel_nothing_happens_until_redis_is_lost() {
    let mut redis = Sentinels::start(0, 1);
    let node = TestNode::start(Lab::memory().builder().redis(redis.url()).start()).await;
    node.until_up().await;
    let mut changes = Watch::new(&node);
    changes.until_up().await;
    redis.sentinels[0].kill();
    assert_eq!(redis.named_by(0), None, "control");
    let probed = redis.servers[0].calls("publish");
    until("probes go on", async || {
        redis.servers[0].calls("publish") >= probed + 5
    })
    .await;
    assert_eq!(node.cluster.health(), Health::Up);
    assert_eq!(node.cluster.stats().bus_gaps, 0);

    let mut figures = Figures::of("T6");
    redis.servers[0].kill();
    let reason = until_degraded_by(&node, "no sentinel tells").await;
    figures.noticed();
    let port = redis.servers[0].port().to_string();
    assert!(
        reason.contains(&port) && reason.contains(SERVICE),
        "{reason}"
    );
    redis.servers[0].restart();
    figures.repaired();
    changes.until_up().await;
    figures.healed();
}

async fn until_told(url: &str, part: &str, fix: &str) {
    let node = TestNode::start(Lab::memory().builder().redis(url).start()).await;
    let reason = until_degraded_by(&node, part).await;
    assert!(reason.contains(fix), "{url}: {reason}");
    assert!(!reason.contains("s3cret"), "{reason}");
}

async fn until_up(url: &str) -> TestNode {
    let node = TestNode::start(Lab::memory().builder().redis(url).start()).await;
    node.until_up().await;
    node
}

/// T7, T23.
#[tokio::test(flavor = "multi_thread")]
async fn another_kind_of_server_is_answered_with_the_right_url() {
    let redis = Sentinels::start(0, 1);
    let (server, sentinel) = (redis.servers[0].port(), redis.sentinels[0].port());
    until_up(&redis.url()).await;
    let unknown = format!("redis-sentinel://127.0.0.1:{sentinel}/nobody");
    until_told(&unknown, "knows no `nobody`", "SENTINEL MASTERS").await;
    let no_sentinel = format!("redis-sentinel://127.0.0.1:{server}/{SERVICE}");
    until_told(&no_sentinel, "this is no sentinel", "redis://host:port").await;
    let no_server = format!("redis://127.0.0.1:{sentinel}");
    until_told(&no_server, "this is a sentinel", "redis-sentinel://").await;
    let bus = free_port().to_string();
    let node = RedisServer::with_options(&["--cluster-enabled", "yes", "--cluster-port", &bus]);
    let part = "a node of a Redis Cluster";
    until_told(&node.url(), part, "redis-cluster://").await;
}

/// T7: who may ask the sentinels, and what they have to grant.
#[tokio::test(flavor = "multi_thread")]
async fn sentinels_have_users_and_passwords_of_their_own() {
    const NEEDED: &str = "resetchannels &+switch-master +subscribe +ping +sentinel|master \
        +sentinel|get-master-addr-by-name +sentinel|sentinels +sentinel|myid";
    let redis = RedisServer::with_options(&["--requirepass", "s3cret"]);
    let watched = watching(redis.port(), 1);
    let lines = format!("{watched}sentinel auth-pass {SERVICE} s3cret\n");
    let open = RedisServer::sentinel(&lines);
    let closed = RedisServer::sentinel(&format!(
        "{lines}requirepass s3cret+1\nuser watcher on >s3cret+2 {NEEDED}\nuser less on >s3cret+2 +sentinel|master\n"
    ));
    let url = |sentinel: &RedisServer, query: &str| {
        let port = sentinel.port();
        format!("redis-sentinel://:s3cret@127.0.0.1:{port}/{SERVICE}{query}")
    };
    until_up(&url(&open, "")).await;
    let query = "?sentinelPassword=s3cret";
    until_told(
        &url(&open, query),
        "no password",
        "take sentinelPassword out",
    )
    .await;
    until_told(&url(&closed, ""), "NOAUTH", "add sentinelPassword").await;
    until_told(&url(&closed, query), "WRONGPASS", "check sentinelUsername").await;
    until_up(&url(&closed, "?sentinelPassword=s3cret+1")).await;
    let query = "?sentinelUsername=less&sentinelPassword=s3cret+2";
    let line = format!("ACL SETUSER less {NEEDED}");
    until_told(&url(&closed, query), "NOPERM", &line).await;
    let query = "?sentinelUsername=watcher&sentinelPassword=s3cret+2";
    let _node = until_up(&url(&closed, query)).await;
    until("it is listened to", async || {
        let port = closed.port().to_string();
        let arguments = ["-p", &port, "-a", "s3cret+1", "CLIENT", "LIST"];
        let listed = std::process::Command::new("redis-cli")
            .args(arguments)
            .output();
        let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
        listed
            .lines()
            .any(|client| client.contains("sub=1") && client.contains("user=watcher"))
    })
    .await;
}

/// T7: what is missing without each right. Who may not listen finds a failover by asking.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_right_at_the_sentinels_what_it_is_for_is_missing() {
    /// And whether a node finds no primary without it.
    const RIGHTS: [(&str, bool); 7] = [
        ("&+switch-master", false),
        ("+subscribe", false),
        ("+ping", false),
        ("+sentinel|sentinels", false),
        ("+sentinel|myid", false),
        ("+sentinel|master", true),
        ("+sentinel|get-master-addr-by-name", true),
    ];
    let redis = Sentinels::start(1, SENTINELS);
    let start = async |user: &str, lack: &str| {
        let rules = RIGHTS.iter().map(|(right, _)| *right);
        let rules: Vec<_> = rules.filter(|right| *right != lack).collect();
        for sentinel in &redis.sentinels {
            let granting = ["ACL", "SETUSER", user, "on", ">pass", "resetchannels"];
            assert_eq!(sentinel.cli(&[&granting[..], &rules].concat()), "OK");
        }
        let query = format!("?sentinelUsername={user}&sentinelPassword=pass");
        let builder = Lab::memory().builder().redis(redis.url() + &query);
        TestNode::start(builder.start()).await
    };
    let listens = |user: &str| {
        let user = format!("user={user} ");
        redis.sentinels.iter().any(|sentinel| {
            let listeners = sentinel.cli(&["CLIENT", "LIST", "TYPE", "pubsub"]);
            let mut listeners = listeners.lines();
            listeners.any(|line| line.contains("sub=1") && line.contains(&user))
        })
    };
    let refused = |user: &str| {
        let mut logs = redis.sentinels.iter().map(|s| s.cli(&["ACL", "LOG"]));
        logs.any(|log| log.lines().any(|line| line == user))
    };
    let mut lacking = Vec::new();
    for (n, (right, is_needed)) in RIGHTS.into_iter().enumerate() {
        let user = format!("lacks{n}");
        let node = start(&user, right).await;
        if is_needed {
            let reason = until_degraded_by(&node, "NOPERM").await;
            assert!(reason.contains(right), "{right}: {reason}");
            continue;
        }
        node.until_up().await;
        until(&format!("control: {right} is refused"), async || {
            refused(&user)
        })
        .await;
        let client = node.client(&user).await;
        lacking.push((right, user, node, client));
    }
    let whole = start("whole", "").await;
    whole.until_up().await;
    until("control: who may listens", async || listens("whole")).await;
    assert!(!refused("whole"), "control: it needs no other right");
    redis.fail_over();
    let new = &redis.servers[1];
    for (right, user, ..) in &lacking {
        until(&format!("it follows without {right}"), async || {
            new.cli(&["PUBSUB", "NUMSUB", &format!("cluster:u:{user}")])
                .ends_with('1')
        })
        .await;
    }
    // Nor has anything else told: connections to it end when it is none any more.
    assert_calls_itself_primary(&redis.servers[0]);
    assert!(!listens("lacks0") && !listens("lacks1"), "control: unheard");
}

/// T7: asked before each login to one of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_of_the_sentinels_that_rotates_is_asked_for_at_every_login() {
    let redis = Sentinels::start(1, SENTINELS);
    let rotate = |password: &str| {
        let rules = [
            "ACL",
            "SETUSER",
            "watcher",
            "on",
            "resetpass",
            "resetchannels",
        ];
        let password = format!(">{password}");
        for sentinel in &redis.sentinels {
            let granted = ["&+switch-master", "+subscribe", "+ping", "+sentinel"];
            let command = [&rules[..], &[&password], &granted].concat();
            assert_eq!(sentinel.cli(&command), "OK");
            sentinel.cli(&["CLIENT", "KILL", "USER", "watcher"]);
        }
    };
    rotate("first");
    let (password, asked) = (Arc::new(Mutex::new("first")), Arc::new(AtomicU32::new(0)));
    let (current, count) = (password.clone(), asked.clone());
    let url = redis.url() + "?sentinelUsername=watcher";
    let backend = Redis::at(url).unwrap().sentinel_password_from(move || {
        count.fetch_add(1, SeqCst);
        let now = *current.lock().unwrap();
        async move { Ok::<_, String>(now) }
    });
    let node = TestNode::start(Lab::memory().builder().backend(backend).start()).await;
    node.until_up().await;
    let asked = || asked.load(SeqCst);
    assert!(asked() >= 1, "control");
    rotate("second");
    let before = asked();
    until("control: they are asked in vain", async || {
        asked() >= before + 5
    })
    .await;
    assert_eq!(node.cluster.health(), Health::Up, "Redis is well");
    *password.lock().unwrap() = "second";
    redis.fail_over();
    until("it follows", async || {
        let heard = redis.servers[1].cli(&["PUBSUB", "NUMSUB", "cluster:nodes"]);
        heard.ends_with('1')
    })
    .await;
    node.until_up().await;
}

/// T22: each of several Redises may be watched by sentinels of its own.
#[tokio::test(flavor = "multi_thread")]
async fn one_of_several_redises_fails_over_and_the_other_is_none_the_wiser() {
    let all = [Sentinels::start(1, SENTINELS), Sentinels::start(0, 1)];
    let urls = all.each_ref().map(Sentinels::url);
    let builder = Lab::memory()
        .builder()
        .backend(Backend::shards(&urls).unwrap());
    let builder = builder.probe_interval(NEVER);
    let [a, b] = [(); 2].map(|()| builder.clone().start());
    let (a, b) = (TestNode::start(a).await, TestNode::start(b).await);
    for node in [&a, &b] {
        node.until_up().await;
        let stats = node.cluster.stats();
        assert_eq!((stats.bus_shards, stats.bus_shards_up), (2, 2));
    }
    let is_heard = |server: &RedisServer, user: &str| {
        let channel = format!("cluster:u:{user}");
        server.cli(&["PUBSUB", "NUMSUB", &channel]).ends_with('1')
    };
    let (mut there, mut stays) = (None, None);
    for n in 0.. {
        let user = format!("user-{n}");
        let client = a.client(&user).await;
        match is_heard(&all[0].servers[0], &user) {
            true => there = Some((user, client)),
            false => stays = Some((user, client)),
        }
        if there.is_some() && stays.is_some() {
            break;
        }
    }
    let (mut there, mut stays) = (there.unwrap(), stays.unwrap());
    let mut gaps = a.cluster.gaps();
    all[0].fail_over();
    // By both: who has not heard of it yet is up, and sends to the old one.
    until("it is followed", async || {
        is_heard(&all[0].servers[1], &there.0) && nodes_at(&all[0].servers[0]) == 0
    })
    .await;
    for node in [&a, &b] {
        node.until_up().await;
    }
    for (user, client) in [&mut there, &mut stays] {
        let sent = b.broadcaster.to_user(user.as_str()).send("hello").await;
        assert_eq!(sent.unwrap().nodes(), Some(1), "{user}");
        assert_eq!(client.event().await, text("hello"));
    }
    let gap = soon("its gap", gaps.next()).await.unwrap();
    let concerns = |user: &str| gap.concerns_user(&user.into());
    assert!(concerns(&there.0) && !concerns(&stays.0), "{gap:?}");
}
