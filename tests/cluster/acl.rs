//! The ACL lines of SECURITY.md: each is enough for its part, and for nothing else.

use std::time::Duration;

use axum_cluster::{Backend, Broadcaster, Cluster, Health, History, OverLimit};

use crate::bus::Watch;
use crate::gaps::until_degraded_by;
use crate::support::client::{text, user_header};
use crate::support::redis::redis_cluster::{RedisCluster, part, prefix_of, slot_of};
use crate::support::{Client, Lab, PATIENCE, RedisServer, TestNode, until};

const NODE: &str = "resetchannels &cluster:* +subscribe +unsubscribe +publish +pubsub";
/// Only what a process without sockets needs; what others send stays unreadable.
const WORKER: &str = "resetchannels &cluster:u:* &cluster:r:* &cluster:all &cluster:n:* &cluster:nodes +publish \
     (+subscribe resetchannels &cluster:n:* &cluster:nodes)";
/// What keeping takes besides, of a node …
const KEEPING: &str = "~cluster:h* +info +script|load +evalsha +time +hget +hmget +hset +hdel +hgetall +rpushx +rpush \
     +pexpire +ltrim +lindex +lrange";
/// … and of another program.
const KEEPER: &str = "resetchannels &cluster:u:* &cluster:r:* &cluster:all +publish ~cluster:h* +info +script|load +evalsha +time \
     +hget +hmget +hset +hdel +hgetall +rpushx +rpush +pexpire +ltrim";
const FOREIGN: &str = "resetchannels &cluster:u:* &cluster:r:* &cluster:all +publish";

/// Creates a user with these rules; returns the user's URL.
fn grant(server: &RedisServer, user: &str, rules: &str) -> String {
    let mut command = vec!["ACL", "SETUSER", user, "on", ">pass"];
    let (plain, selector) = rules.split_once(" (").unwrap_or((rules, ""));
    let selector = format!("({selector}");
    command.extend(plain.split(' '));
    if selector != "(" {
        command.push(&selector);
    }
    assert_eq!(server.cli(&command), "OK");
    format!("redis://{user}:pass@127.0.0.1:{}", server.port())
}

/// What Redis answers this user.
fn ask(server: &RedisServer, user: &str, command: &[&str]) -> String {
    let login = ["--no-auth-warning", "--user", user, "--pass", "pass"];
    server.cli(&[&login, command].concat())
}

fn assert_refused(server: &RedisServer, user: &str, commands: &[&[&str]]) {
    for command in commands {
        let answer = ask(server, user, command);
        assert!(answer.starts_with("NOPERM"), "{command:?}: {answer}");
    }
}

/// What no part of a cluster needs.
const NEVER: [&[&str]; 8] = [
    &["GET", "key"],
    &["SET", "key", "value"],
    &["KEYS", "*"],
    &["PSUBSCRIBE", "cluster:*"],
    &["CONFIG", "GET", "requirepass"],
    &["CLIENT", "LIST"],
    &["MONITOR"],
    &["PUBLISH", "other:u:alice", "x"],
];

#[tokio::test(flavor = "multi_thread")]
async fn a_node_needs_its_line_and_can_do_nothing_else() {
    let mut lab = Lab::redis();
    let url = grant(lab.server(), "node", NODE);
    let nodes = [0, 1].map(|_| lab.builder().redis(&url));
    let [a, b] = nodes.map(|builder| TestNode::start(builder.start()));
    let (a, b) = (a.await, b.await);
    for node in [&a, &b] {
        node.cluster.ready().await.unwrap();
    }
    let mut client = a.client("alice").await;
    assert_eq!(client.ask("join tea").await, "joined");
    assert!(b.broadcaster.is_online("alice").await.unwrap());
    let delivery = b.broadcaster.to_room("tea").send("hi").await.unwrap();
    assert_eq!(delivery.nodes(), Some(1));
    assert_eq!(client.event().await, text("hi"));
    assert_eq!(client.ask("leave tea").await, "left");
    assert_refused(lab.server(), "node", &NEVER);
    assert_refused(lab.server(), "node", &[&["SUBSCRIBE", "other:u:alice"]]);
}

/// Each of its rights is needed: without it, what is kept is refused, or not told.
#[tokio::test(flavor = "multi_thread")]
async fn a_spool_takes_nothing_that_keeping_does_not() {
    let mut lab = Lab::redis();
    let url = grant(lab.server(), "node", &format!("{NODE} {KEEPING}"));
    let builder = lab.builder().redis(&url).user_history(History::default());
    let builder = builder.publish_timeout(Duration::from_millis(300));
    let node = TestNode::start(builder.spool(100, 1 << 20, PATIENCE).start()).await;
    node.cluster.ready().await.unwrap();
    let alice = || node.broadcaster.to_user("alice");
    alice().send("0").await.unwrap();
    lab.server().freeze();
    let waits = alice().send("1").await.unwrap();
    assert!(waits.spooled());
    lab.server().thaw();
    waits.settled().await.unwrap();
    assert!(lab.server().calls("lrange") > 0, "control: looked for");
    assert_eq!(alice().history().await.unwrap().messages.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn keeping_takes_its_line_and_nothing_else() {
    let mut lab = Lab::redis();
    let url = grant(lab.server(), "node", &format!("{NODE} {KEEPING}"));
    let builder = lab.builder().redis(&url).user_history(History::default());
    let node = TestNode::start(builder.start()).await;
    node.cluster.ready().await.unwrap();
    let mut client = node.client("alice").await;
    let alice = || node.broadcaster.to_user("alice");
    for n in 0..200 {
        alice().send(n.to_string()).await.unwrap();
        assert_eq!(client.event().await, text(&n.to_string()));
    }
    let kept = alice().history().await.unwrap();
    assert_eq!(kept.messages.len(), 100);
    assert_refused(lab.server(), "node", &NEVER);
    assert_refused(
        lab.server(),
        "node",
        &[
            &["LRANGE", "other:h:u:alice", "0", "-1"],
            &["DEL", "cluster:h:u:alice"],
        ],
    );
    for command in [
        "info",
        "script|load",
        "evalsha",
        "time",
        "hmget",
        "hset",
        "rpushx",
        "lrange",
    ] {
        let (without, with) = (format!("-{command}"), format!("+{command}"));
        if lab.server().cli(&["ACL", "SETUSER", "node", &without]) != "OK" {
            // Redis 6 takes a part of a command from nobody.
            assert_eq!(command, "script|load");
            continue;
        }
        // It asks anew who keeps.
        lab.server().cli(&["SCRIPT", "FLUSH"]);
        lab.server().cli(&["CLIENT", "KILL", "USER", "node"]);
        until(&format!("{command} is refused"), async || {
            let (sent, told) = (alice().send("refused").await, alice().history().await);
            let (sent, told) = (sent.err(), told.err());
            let words = [sent.map(|it| it.to_string()), told.map(|it| it.to_string())];
            let fix = "grant it: ACL SETUSER node";
            words.iter().flatten().any(|words| words.contains(fix))
        })
        .await;
        lab.server().cli(&["ACL", "SETUSER", "node", &with]);
    }
}

/// As `docs/guide/other-programs.md` says it.
#[tokio::test(flavor = "multi_thread")]
async fn another_program_keeps_what_it_sends_by_one_command() {
    let mut lab = Lab::redis();
    let builder = lab.builder().user_history(History::default());
    let node = TestNode::start(builder.start()).await;
    node.cluster.ready().await.unwrap();
    let mut client = node.client("alice").await;
    grant(lab.server(), "keeper", KEEPER);
    let script = include_str!("../../src/bus/redis/past/append.lua");
    let digest = ask(lab.server(), "keeper", &["SCRIPT", "LOAD", script]);
    let message = r#"{"text": "hello"}"#;
    let keep = |message| {
        let keys = ["EVALSHA", &digest, "2", "cluster:h", "cluster:h:u:alice"];
        let rest = [
            "",
            "PUBLISH",
            "100",
            "337500",
            "r",
            "cluster:u:alice",
            message,
        ];
        ask(
            lab.redis.as_ref().unwrap(),
            "keeper",
            &[&keys[..], &rest].concat(),
        )
    };
    for n in 0..150 {
        let told = keep(message);
        assert!(told.ends_with("\n1") || told.ends_with('1'), "{n}: {told}");
        assert_eq!(client.event().await, text("hello"));
    }
    let kept = node.broadcaster.to_user("alice").history().await.unwrap();
    assert_eq!(kept.messages, vec!["hello".into(); 100]);
    node.broadcaster
        .to_user("alice")
        .send("from a node")
        .await
        .unwrap();
    assert_eq!(client.event().await, text("from a node"));
    assert_eq!(node.cluster.stats().history_rolled_back, 0);
    assert_refused(lab.server(), "keeper", &NEVER);
    assert_refused(
        lab.server(),
        "keeper",
        &[&["LRANGE", "cluster:h:u:alice", "0", "-1"]],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_sends_and_reads_nothing() {
    let mut lab = Lab::redis();
    let [node] = lab.nodes().await;
    let mut client = node.client("alice").await;
    let url = grant(lab.server(), "worker", WORKER);
    let worker = Broadcaster::connect(&url).await.unwrap();
    let delivery = worker.to_user("alice").send("shipped").await.unwrap();
    assert_eq!(delivery.nodes(), Some(1));
    assert_eq!(client.event().await, text("shipped"));
    assert_refused(lab.server(), "worker", &NEVER);
    for channel in ["cluster:u:alice", "cluster:r:tea", "cluster:all"] {
        assert_refused(lab.server(), "worker", &[&["SUBSCRIBE", channel]]);
    }
    let unknown = worker.is_online("alice").await.unwrap_err().to_string();
    assert!(unknown.contains("NOPERM"), "{unknown}");
    lab.server().cli(&["ACL", "SETUSER", "worker", "+pubsub"]);
    assert!(worker.is_online("alice").await.unwrap());
}

/// It is counted at each, on channels that its line names.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_at_several_redises_needs_the_line_of_one() {
    let servers = [RedisServer::start(), RedisServer::start()];
    let urls = servers.each_ref().map(RedisServer::url);
    let builder = Lab::memory()
        .builder()
        .backend(Backend::shards(&urls).unwrap());
    let node = TestNode::start(builder.start()).await;
    node.until_up().await;
    let _client = node.client("alice").await;
    let urls = servers
        .each_ref()
        .map(|server| grant(server, "worker", WORKER));
    let worker = Broadcaster::builder().backend(Backend::shards(&urls).unwrap());
    let worker = worker.connect().await.unwrap();
    until("it is told the whole", async || {
        let count = worker.to_user("alice").count().await.unwrap();
        (count.sockets(), count.is_complete()) == (1, true)
    })
    .await;
    let counted = servers.each_ref().map(|server| {
        let census = server.cli(&["PUBSUB", "CHANNELS", "cluster:n:all*"]);
        let count = |channel| server.cli(&["PUBSUB", "NUMSUB", channel]);
        census.lines().map(count).collect::<String>()
    });
    let counted = counted.iter().filter(|counted| counted.ends_with('2'));
    assert_eq!(
        counted.count(),
        1,
        "control: there, and at the other where nodes meet"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_publisher_sends_and_is_no_node() {
    let mut lab = Lab::redis();
    let [node] = lab.nodes().await;
    let mut client = node.client("alice").await;
    let url = grant(lab.server(), "foreign", FOREIGN);
    let message = r#"{"text": "hello"}"#;
    for channel in ["cluster:u:alice", "cluster:all"] {
        let taken = ask(lab.server(), "foreign", &["PUBLISH", channel, message]);
        assert_eq!(taken, "1");
        assert_eq!(client.event().await, text("hello"));
    }
    assert_refused(lab.server(), "foreign", &NEVER);
    let node_channel = lab.server().cli(&["PUBSUB", "CHANNELS", "cluster:n:*"]);
    assert_refused(
        lab.server(),
        "foreign",
        &[
            &["SUBSCRIBE", "cluster:u:alice"],
            &["PUBLISH", &node_channel, message],
        ],
    );
    let error = Cluster::connect(url).await.unwrap_err().to_string();
    assert!(error.contains("NOPERM"), "{error}");
}

const FOREIGN_IN_CLUSTER: &str =
    "resetchannels &cluster:{*}:u:* &cluster:{*}:r:* &cluster:{*}:all +spublish";

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_publisher_at_a_redis_cluster_sends_and_is_no_node() {
    let redis = RedisCluster::start(3, 0);
    let node = TestNode::start(Lab::memory().builder().redis(redis.url()).start()).await;
    node.until_up().await;
    let mut client = node.client("alice").await;
    grant_everywhere(&redis, "foreign", FOREIGN_IN_CLUSTER);
    let message = r#"{"text": "hello"}"#;
    for topic in ["u:alice", "all"] {
        let (part, prefix) = (part(topic), prefix_of(part(topic)));
        let owner = redis.owner(slot_of(part), 0).expect("somebody owns it");
        let (server, channel) = (&redis.nodes[owner], prefix.clone() + topic);
        let taken = ask(server, "foreign", &["SPUBLISH", &channel, message]);
        assert_eq!(taken, "1", "{topic}");
        assert_eq!(client.event().await, text("hello"));
        assert_refused(server, "foreign", &NEVER);
        let of_nodes = prefix + "nodes";
        let refused: [&[&str]; 2] = [&["SSUBSCRIBE", &channel], &["SPUBLISH", &of_nodes, message]];
        assert_refused(server, "foreign", &refused);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_redises_need_the_line_of_one_and_the_keys_of_every_group() {
    let servers = [RedisServer::start(), RedisServer::start()];
    for (user, keys, unchecked) in [
        ("seated", "~cluster:{*}:seats*", 0),
        ("unseated", "~cluster:seats*", 3),
    ] {
        let rules = format!("{NODE} {keys} {SEATS}");
        let urls = servers.each_ref().map(|server| grant(server, user, &rules));
        let builder = Lab::memory().builder().publish_timeout(PATIENCE);
        let builder = builder.backend(Backend::shards(&urls).unwrap());
        let builder = builder.max_sockets_per_user_in_cluster(2, OverLimit::Refuse);
        let node = TestNode::start(builder.start()).await;
        node.until_up().await;
        let _clients = (node.client("alice").await, node.client("alice").await);
        let alice = [("x-user", &*user_header("alice"))];
        let third = Client::try_connect(node.addr, "/ws", &alice).await;
        assert_eq!(third.unwrap_err().0, 429, "{user}");
        assert_eq!(node.cluster.stats().limits_unchecked, unchecked, "{user}");
    }
}

/// What a node needs at every server of a Redis Cluster, and what it does not get without it.
const CLUSTER: [(&str, Lack); 5] = [
    ("+ssubscribe", Lack::Bus),
    ("+spublish", Lack::Bus),
    ("+cluster|slots", Lack::Bus),
    ("+pubsub|shardnumsub", Lack::Question),
    ("+sunsubscribe", Lack::Leaving),
];
/// Without it a server that is cut off from the others is not told from one that is well.
const CLUSTER_STATE: &str = "+cluster|info";

/// What fails first without a right.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Lack {
    Bus,
    Question,
    Leaving,
}

/// Creates a user with these rules at every server; returns the user's URL.
fn grant_everywhere(redis: &RedisCluster, user: &str, rules: &str) -> String {
    for node in 0..redis.nodes.len() {
        let command = format!("ACL SETUSER {user} on >pass resetchannels &cluster:* {rules}");
        assert_eq!(redis.ask(node, &command), "OK", "{command}");
    }
    redis.url().replace("://", &format!("://{user}:pass@"))
}

async fn join_and_leave(a: &TestNode, b: &TestNode) {
    let mut client = a.client("alice").await;
    assert_eq!(client.ask("join tea").await, "joined");
    let delivery = b.broadcaster.to_room("tea").send("hi").await.unwrap();
    assert_eq!(delivery.nodes(), Some(1));
    assert_eq!(client.event().await, text("hi"));
    assert_eq!(client.ask("leave tea").await, "left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_at_a_redis_cluster_needs_each_right_of_its_line_and_no_other() {
    let redis = RedisCluster::start(3, 0);
    let rights = CLUSTER.map(|(right, _)| right);
    let line = rights.join(" ");
    let builder = Lab::memory().builder().linger(Duration::ZERO);
    let start = async |user: &str, rules: &str| {
        let url = grant_everywhere(&redis, user, rules);
        TestNode::start(builder.clone().redis(url).start()).await
    };
    for (user, rules) in [("node", format!("{line} {CLUSTER_STATE}")), ("least", line)] {
        let (a, b) = (start(user, &rules).await, start(user, &rules).await);
        for node in [&a, &b] {
            node.until_up().await;
        }
        join_and_leave(&a, &b).await;
        assert!(!b.broadcaster.is_online("bob").await.unwrap());
        until("nobody listens any more", async || {
            let sent = b.broadcaster.to_room("tea").send("x").await;
            sent.unwrap().nodes() == Some(0)
        })
        .await;
        assert_eq!(a.cluster.health(), Health::Up);
    }
    let whole = Lab::memory().builder().redis(redis.url()).start();
    let whole = TestNode::start(whole).await;
    whole.until_up().await;
    for (n, (right, lack)) in CLUSTER.into_iter().enumerate() {
        let rest: Vec<_> = rights.into_iter().filter(|one| *one != right).collect();
        let user = format!("lacks{n}");
        let node = start(&user, &rest.join(" ")).await;
        let told = match lack {
            Lack::Bus => until_degraded_by(&node, "NOPERM").await,
            Lack::Question => {
                node.until_up().await;
                let asked = node.broadcaster.is_online("bob").await;
                asked.unwrap_err().to_string()
            }
            Lack::Leaving => {
                node.until_up().await;
                let mut changes = Watch::new(&node);
                changes.until_up().await;
                join_and_leave(&node, &whole).await;
                changes.until_degraded().await
            }
        };
        assert!(told.contains("NOPERM"), "{right}: {told}");
        let fix = format!("ACL SETUSER {user} ");
        let (_, granted) = told
            .split_once(&fix)
            .unwrap_or_else(|| panic!("{right}: {told}"));
        assert!(granted.contains(right), "{right}: {told}");
    }
}

/// What keeping needs besides at a Redis Cluster, and what fails without each right.
const KEEPING_IN_CLUSTER: [(&str, Kept); 15] = [
    ("+info", Kept::Connect),
    ("+script|load", Kept::Connect),
    ("+evalsha", Kept::Message),
    ("+time", Kept::Message),
    ("+hmget", Kept::Message),
    ("+hset", Kept::Message),
    ("+rpushx", Kept::Message),
    ("+rpush", Kept::New),
    ("+pexpire", Kept::New),
    ("+ltrim", Kept::Full),
    ("+hget", Kept::Run),
    ("+hgetall", Kept::Run),
    ("+hdel", Kept::Run),
    ("+lrange", Kept::Read),
    ("+asking", Kept::Moving),
];
/// It reads the end of a list of which a position is known.
const SINCE: &str = "+lindex";
const KEYS_IN_CLUSTER: &str = "~cluster:{*}:h*";

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kept {
    Connect,
    Message,
    New,
    /// More than is kept.
    Full,
    /// The first behind another process'.
    Run,
    Read,
    /// Of a slot whose keys have left already.
    Moving,
}

#[tokio::test(flavor = "multi_thread")]
async fn keeping_at_a_redis_cluster_needs_each_right_of_its_line_and_no_other() {
    const FEW: usize = 4;
    let redis = RedisCluster::start(3, 0);
    let line = CLUSTER.map(|(right, _)| right).join(" ");
    let keeping = KEEPING_IN_CLUSTER.map(|(right, _)| right).join(" ");
    let rules = format!("{line} {CLUSTER_STATE} {KEYS_IN_CLUSTER} {keeping} {SINCE}");
    let url = grant_everywhere(&redis, "node", &rules);
    let few = History {
        messages: FEW,
        ..History::default()
    };
    let builder = Lab::memory().builder().redis(url).user_history(few);
    let builder = builder.publish_timeout(Duration::from_secs(1));
    let node = TestNode::start(builder.start()).await;
    node.until_up().await;
    let mut client = node.client("alice").await;
    let alice = || node.broadcaster.to_user("alice");
    for n in 0..3 * FEW {
        alice().send(n.to_string()).await.unwrap();
        assert_eq!(client.event().await, text(&n.to_string()));
    }
    assert_eq!(alice().history().await.unwrap().messages.len(), FEW);
    let everywhere = |command: &str| (0..3).for_each(|n| drop(redis.ask(n, command)));
    let part = part("u:alice");
    let (slot, clock) = (slot_of(part), prefix_of(part) + "h");
    let owner = redis.owner(slot, 0).expect("somebody owns it");
    for (n, (right, kept)) in KEEPING_IN_CLUSTER.into_iter().enumerate() {
        everywhere(&format!("ACL SETUSER node -{}", &right[1..]));
        let told = move |sent: Option<String>| {
            sent.is_some_and(|words| {
                words.contains("grant it: ACL SETUSER node") && words.contains(right)
            })
        };
        if kept == Kept::Moving {
            redis.begin_move(slot, (owner + 1) % 3);
            assert!(redis.move_keys(slot, (owner + 1) % 3) > 0, "control");
        }
        until(
            &format!("without {right}, {kept:?} is refused"),
            async || {
                match kept {
                    Kept::Connect => {
                        everywhere("SCRIPT FLUSH");
                        everywhere("CLIENT KILL USER node");
                    }
                    Kept::Run => {
                        let ends = (0..40).map(|end| format!(" end:{end:012}:{end:016} {end:016}"));
                        let ends: String = ends.collect();
                        let run = "run ------------ began 0000000000000001";
                        redis.ask(owner, &format!("HSET {clock} {run}{ends}"));
                    }
                    _ => {}
                }
                let user = match kept {
                    Kept::New => users_of(part, n + 1).remove(n),
                    _ => "alice".to_owned(),
                };
                let mut refused = false;
                for _ in 0..if kept == Kept::Full { 2 * FEW } else { 1 } {
                    let sent = node.broadcaster.to_user(&*user).send("x").await;
                    refused |= told(sent.err().map(|error| error.to_string()));
                }
                let read = match kept {
                    Kept::Read | Kept::Run => alice().history().await.err(),
                    _ => None,
                };
                refused || told(read.map(|error| error.to_string()))
            },
        )
        .await;
        everywhere(&format!("ACL SETUSER node {right}"));
        node.until_up().await;
        until("it is kept again", async || alice().send("x").await.is_ok()).await;
    }
    let owner = &redis.nodes[owner];
    assert_refused(owner, "node", &NEVER[..7]);
    assert_refused(
        owner,
        "node",
        &[&["LRANGE", "other:{1}:h:u:alice", "0", "-1"]],
    );
}

fn users_of(part: u16, count: usize) -> Vec<String> {
    let named = (0..).map(|n| format!("user-{n}"));
    let fitting = named.filter(|user| self::part(&format!("u:{user}")) == part);
    fitting.take(count).collect()
}

/// What `max_sockets_per_user_in_cluster` needs besides, but for the keys.
const SEATS: &str = "+eval +evalsha +time +hget +hmget +hset +hdel +hexists +unlink +pexpire \
    +zadd +zrem +zscore +zrangebyscore +zremrangebyscore";

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_at_a_redis_cluster_needs_the_keys_of_every_group() {
    let redis = RedisCluster::start(3, 0);
    let line = CLUSTER.map(|(right, _)| right).join(" ");
    for (user, keys, unchecked) in [
        ("seated", "~cluster:{*}:seats*", 0),
        ("unseated", "~cluster:seats*", 3),
    ] {
        let rules = format!("{line} {CLUSTER_STATE} {keys} {SEATS}");
        let url = grant_everywhere(&redis, user, &rules);
        let builder = Lab::memory().builder().redis(url);
        let builder = builder.max_sockets_per_user_in_cluster(2, OverLimit::Refuse);
        let node = TestNode::start(builder.publish_timeout(PATIENCE).start()).await;
        node.until_up().await;
        let _clients = (node.client("alice").await, node.client("alice").await);
        let alice = [("x-user", &*user_header("alice"))];
        let third = Client::try_connect(node.addr, "/ws", &alice).await;
        assert_eq!(third.unwrap_err().0, 429, "{user}");
        assert_eq!(node.cluster.stats().limits_unchecked, unchecked, "{user}");
    }
}
