//! Programs in other languages: all they need is PUBLISH.

use std::process::Command;

use axum_cluster::Backend;

use crate::support::client::{Event, text};
use crate::support::redis::redis_cluster::RedisCluster;
use crate::support::{Lab, RedisServer, TestNode};

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_script_can_send_to_users_rooms_and_everybody() {
    let mut lab = Lab::redis();
    let [a, b] = lab.nodes().await;
    let (mut alice, mut bob) = (a.client("alice@example.com").await, b.client("bob").await);
    assert_eq!(bob.ask("join news").await, "joined");
    let server = lab.server();
    let publish = |channel: &str, message: &str| server.cli(&["PUBLISH", channel, message]);
    assert_eq!(
        publish("cluster:u:alice%40example.com", r#"{"text": "h\u00e9llo"}"#),
        "1"
    );
    assert_eq!(
        publish(
            "cluster:u:alice%40example.com",
            r#"{"json": {"order": 7,  "paid":true}}"#
        ),
        "1"
    );
    assert_eq!(
        publish("cluster:u:alice%40example.com", r#"{"base64": "AAH/"}"#),
        "1"
    );
    assert_eq!(publish("cluster:r:news", r#"{"text": "to the room"}"#), "1");
    assert_eq!(
        publish(
            "cluster:all",
            r#"{"text": "to all", "added": "by a later version"}"#
        ),
        "2"
    );
    assert_eq!(
        publish(
            "cluster:u:bob",
            r#"{"close": {"code": 4001, "reason": "logged out"}}"#
        ),
        "1"
    );

    assert_eq!(alice.event().await, text("héllo"));
    assert_eq!(alice.event().await, text(r#"{"order": 7,  "paid":true}"#));
    assert_eq!(alice.event().await, Event::Binary(vec![0, 1, 255]));
    assert_eq!(alice.event().await, text("to all"));
    assert_eq!(bob.event().await, text("to the room"));
    assert_eq!(bob.event().await, text("to all"));
    assert_eq!(bob.event().await, Event::Closed(4001, "logged out".into()));
    assert_eq!(
        a.cluster.stats().bus_garbage + b.cluster.stats().bus_garbage,
        0
    );
}

/// As `docs/operating.md` has them: where a topic is in a Redis Cluster, and at which of several Redises.
const PYTHON: &str = r#"from binascii import crc_hqx
from hashlib import sha1

slot = lambda text: crc_hqx(text.encode(), 0) % 16384
tag = lambda topic: next(n for n in range(500) if slot(str(n)) // 64 == slot(topic) // 64)
channel = lambda topic: "cluster:{%d}:%s" % (tag(topic), topic)
shard = lambda topic, names: max(names, key=lambda name: sha1(b"%d %s" % (slot(topic) // 64, name.encode())).digest())
"#;

/// What Python prints for each of these; none where there is no Python.
fn python(expression: &str, arguments: &[&str]) -> Option<Vec<String>> {
    let script = format!("{PYTHON}\nimport sys\nfor a in sys.argv[1:]: print({expression})");
    let run = Command::new("python3")
        .args(["-c", &script])
        .args(arguments)
        .output();
    let Ok(run) = run else {
        eprintln!("SKIPPED: there is no python3");
        return None;
    };
    let printed = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{run:?}");
    Some(printed.lines().map(str::to_owned).collect())
}

const TOPICS: [&str; 4] = ["u:alice%40example.com", "r:news", "all", "u:bob"];

#[tokio::test(flavor = "multi_thread")]
async fn a_python_program_finds_the_channels_of_a_redis_cluster() {
    let manual = include_str!("../../docs/operating.md");
    assert!(manual.contains(PYTHON), "the manual has these lines");
    let Some(channels) = python("channel(a)", &TOPICS) else {
        return;
    };
    let redis = RedisCluster::start(3, 0);
    let node = TestNode::start(Lab::memory().builder().redis(redis.url()).start()).await;
    node.until_up().await;
    let mut alice = node.client("alice@example.com").await;
    assert_eq!(alice.ask("join news").await, "joined");
    for channel in &channels[..3] {
        let publish = ["-c", "SPUBLISH", channel, r#"{"text": "hello"}"#];
        let taken = redis.nodes[0].cli(&publish);
        assert!(taken.ends_with('1'), "{channel}: {taken}");
        assert_eq!(alice.event().await, text("hello"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_program_finds_the_redis_of_a_topic() {
    let servers = [(); 3].map(|()| RedisServer::start());
    let names = servers
        .each_ref()
        .map(|s| format!("127.0.0.1:{}", s.port()));
    let Some(found) = python(&format!("shard(a, {names:?})"), &TOPICS) else {
        return;
    };
    let backend = Backend::shards(servers.each_ref().map(RedisServer::url)).unwrap();
    let node = TestNode::start(Lab::memory().builder().backend(backend).start()).await;
    node.until_up().await;
    let mut alice = node.client("alice@example.com").await;
    assert_eq!(alice.ask("join news").await, "joined");
    for (topic, name) in TOPICS[..3].iter().zip(found) {
        let at = names.iter().position(|one| *one == name).unwrap();
        let publish = [
            "PUBLISH",
            &format!("cluster:{topic}"),
            r#"{"text": "hello"}"#,
        ];
        assert_eq!(servers[at].cli(&publish), "1", "{topic}");
        assert_eq!(alice.event().await, text("hello"));
    }
}
