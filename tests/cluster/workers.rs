//! Processes without sockets: they send, ask and watch, and are no nodes.

use std::time::Duration;

use axum::response::Response;
use axum::{Extension, Router, routing::any};
use axum_cluster::{Broadcaster, ClusterSocket, ConnectErrorKind, Health, PresenceChange, UserId};
use futures::StreamExt;

use crate::support::client::text;
use crate::support::node::{id_of, serve};
use crate::support::{Client, Lab, RedisServer, TestNode, soon, until};

on_every_bus! {
    a_worker_sends_asks_and_watches_and_is_no_node
    commands_and_questions_count_no_workers
}

async fn worker(lab: &Lab) -> Broadcaster {
    let worker = Broadcaster::builder().backend(lab.backend.clone());
    worker.name("cron").connect().await.unwrap()
}

/// Two nodes, of which the first knows the worker, and the worker.
async fn two_nodes_and_a_worker(lab: &Lab) -> (TestNode, TestNode, Broadcaster) {
    let [a, b] = lab.nodes().await;
    let worker = worker(lab).await;
    let mut fence = a.client("fence").await;
    // It is told only by nodes that it knows, and those answered its hello.
    let mut watching = worker.presence();
    let online = soon("the fence", watching.next()).await;
    assert_eq!(online, Some(PresenceChange::Online("fence".into())));
    fence.close(1000).await;
    a.until_empty().await;
    (a, b, worker)
}

async fn a_worker_sends_asks_and_watches_and_is_no_node(lab: Lab) {
    let (a, b, worker) = two_nodes_and_a_worker(&lab).await;
    let mut presence = worker.presence_of(["alice"]);
    let mut alice = a.client("alice").await;
    let online = soon("alice", presence.next()).await;
    assert_eq!(online, Some(PresenceChange::Online("alice".into())));
    worker
        .to_user("alice")
        .send("from the worker")
        .await
        .unwrap();
    assert_eq!(alice.event().await, text("from the worker"));
    let id = id_of(&mut alice).await;
    let roster = worker.to_users(["alice", "bob"]).sockets().await.unwrap();
    assert!(roster.is_complete(), "{roster:?}");
    assert_eq!(roster.sockets()[0].id, id);
    alice.close(1000).await;
    let offline = soon("alice's end", presence.next()).await;
    assert_eq!(offline, Some(PresenceChange::Offline("alice".into())));

    for node in [&a, &b] {
        until("the nodes know each other", async || {
            node.cluster.stats().nodes >= 2
        })
        .await;
        let nodes = node.cluster.nodes().await.unwrap();
        let mut ids: Vec<_> = nodes.iter().map(|node| node.id).collect();
        ids.sort_unstable();
        let mut both = [a.id(), b.id()];
        both.sort_unstable();
        assert_eq!(ids, both, "{nodes:?}");
        assert_eq!(node.cluster.stats().nodes, 2);
    }
}

async fn commands_and_questions_count_no_workers(lab: Lab) {
    let (a, b, _worker) = two_nodes_and_a_worker(&lab).await;
    let (_alice, _bob) = (a.client("alice").await, b.client("bob").await);
    let both = a.broadcaster.to_users(["alice", "bob"]);
    let joined = both.clone().join("tea").await.unwrap();
    assert_eq!(
        (joined.local(), joined.nodes(), joined.unanswered()),
        (1, Some(1), 0)
    );
    let count = both.count().await.unwrap();
    assert_eq!((count.sockets(), count.is_complete()), (2, true));
}

/// Nobody waits for a worker, and none is missed.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_never_missing() {
    let mut lab = Lab::redis();
    let (a, b, _worker) = two_nodes_and_a_worker(&lab).await;
    until("the nodes know each other", async || {
        a.cluster.stats().nodes == 2
    })
    .await;
    let listening = lab.server().cli(&["PUBSUB", "NUMSUB", "cluster:nodes"]);
    assert!(listening.ends_with('3'), "control: {listening}");
    lab.server().kill();
    until("it is degraded", async || a.cluster.health() != Health::Up).await;
    let count = a
        .broadcaster
        .to_users(["alice", "bob"])
        .count()
        .await
        .unwrap();
    assert_eq!(count.missing(), [b.id()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_has_the_namespace_of_its_app() {
    let server = RedisServer::start();
    let lab = Lab::memory();
    let node = lab.builder().redis(server.url()).namespace("shop");
    let node = TestNode::start(node.start()).await;
    node.cluster.ready().await.unwrap();
    let mut alice = node.client("alice").await;
    let elsewhere = Broadcaster::connect(server.url()).await.unwrap();
    let sent = elsewhere.to_user("alice").send("lost").await.unwrap();
    assert_eq!(sent.nodes(), Some(0), "control: another namespace");
    let builder = Broadcaster::builder().redis(server.url()).namespace("shop");
    let worker = builder.connect().await.unwrap();
    let sent = worker.to_user("alice").send("found").await.unwrap();
    assert_eq!(sent.nodes(), Some(1));
    assert_eq!(alice.event().await, text("found"));
}

/// Its sockets would be missed by nobody.
#[tokio::test]
async fn a_worker_holds_no_sockets() {
    async fn ws(socket: ClusterSocket) -> Response {
        socket.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
    }
    let lab = Lab::memory();
    let (node, worker) = (lab.node().await, worker(&lab).await);
    let route = Router::new().route("/ws", any(ws));
    let alice = Extension(UserId::from("alice"));
    let (addr, _a) = serve(route.clone().layer(Extension(worker)).layer(alice.clone())).await;
    let (status, body) = Client::try_connect(addr, "/ws", &[]).await.unwrap_err();
    assert!(status == 500 && body.contains("ClusterLayer"), "{body}");
    let (addr, _b) = serve(
        route
            .layer(Extension(node.broadcaster.clone()))
            .layer(alice),
    )
    .await;
    assert!(
        Client::try_connect(addr, "/ws", &[]).await.is_ok(),
        "control"
    );
}

#[tokio::test]
async fn what_makes_no_sense_is_said_by_a_workers_settings_too() {
    let wrong = Broadcaster::builder().namespace("a:b").try_start();
    let wrong = wrong.unwrap_err();
    assert_eq!(wrong.kind(), ConnectErrorKind::Setting);
    assert!(wrong.to_string().contains("namespace"), "{wrong}");
    let absent = RedisServer::absent();
    let waiting = Broadcaster::builder()
        .redis(absent.url())
        .try_start()
        .unwrap();
    let failed = waiting.to_user("alice").send("x").await.unwrap_err();
    assert!(!failed.maybe_sent());
    let builder = Broadcaster::builder().redis("redis://:s3cret@host:port");
    let error = tokio::time::timeout(Duration::from_secs(3600), builder.connect()).await;
    let error = error.unwrap().unwrap_err().to_string();
    assert!(
        error.contains("port") && !error.contains("s3cret"),
        "{error}"
    );
}
