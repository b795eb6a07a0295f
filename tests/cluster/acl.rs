//! The ACL lines of SECURITY.md: each is enough for its part, and for nothing else.

use axum_cluster::{Broadcaster, Cluster};

use crate::support::client::text;
use crate::support::{Lab, RedisServer, TestNode};

const NODE: &str = "resetchannels &cluster:* +subscribe +unsubscribe +publish +pubsub";
/// Only what a process without sockets needs; what others send stays unreadable.
const WORKER: &str = "resetchannels &cluster:u:* &cluster:r:* &cluster:all &cluster:n:* &cluster:nodes +publish \
     (+subscribe resetchannels &cluster:n:* &cluster:nodes)";
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
