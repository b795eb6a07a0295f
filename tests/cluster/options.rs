//! What no URL can say: passwords that change, and addresses that differ from here (rows T8, T21).

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use axum_cluster::{Cluster, ConnectErrorKind, Redis};

use crate::gaps::until_degraded_by;
use crate::support::figures::Figures;
use crate::support::{Lab, RedisServer, TestNode, until};

async fn start(redis: Redis) -> TestNode {
    let node = TestNode::start(Lab::memory().builder().backend(redis).start()).await;
    node.until_up().await;
    node
}

/// T21.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_rotates_is_asked_for_at_every_login() {
    let server = RedisServer::with_options(&["--requirepass", "first"]);
    let (password, asked) = (Arc::new(Mutex::new("first")), Arc::new(AtomicU32::new(0)));
    let (current, count) = (password.clone(), asked.clone());
    let redis = Redis::at(server.url()).unwrap().password_from(move || {
        count.fetch_add(1, SeqCst);
        let now = *current.lock().unwrap();
        async move { Ok::<_, String>(now) }
    });
    let node = start(redis).await;
    assert!(
        node.broadcaster.is_online("alice").await.is_ok(),
        "by a link of its own"
    );
    let before = asked.load(SeqCst);
    assert!(before >= 3, "control: every connection asks, {before}");

    let mut figures = Figures::of("T21");
    let rotate = ["-a", "first", "CONFIG", "SET", "requirepass", "second"];
    assert_eq!(server.cli(&rotate), "OK");
    for kind in ["pubsub", "normal"] {
        let kill = [
            "-a", "second", "CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes",
        ];
        assert_ne!(server.cli(&kill), "0", "control: they were connected");
    }
    let reason = until_degraded_by(&node, "WRONGPASS").await;
    figures.noticed();
    assert!(!reason.contains("first"), "{reason}");
    *password.lock().unwrap() = "second";
    figures.repaired();
    node.until_up().await;
    figures.healed();
    assert!(node.broadcaster.is_online("alice").await.is_ok());
    assert!(asked.load(SeqCst) > before, "control");
}

/// T8: the old address is dead. That it lives, demoted: `failover.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_whose_address_changes_is_resolved_at_the_next_connect() {
    let (mut old, new) = (RedisServer::start(), RedisServer::start());
    let leads_to = Arc::new(AtomicU16::new(old.port()));
    let port = leads_to.clone();
    let redis = Redis::at("redis://redis.example:1").unwrap();
    let node = start(redis.addresses(move |name, _| {
        assert_eq!(name, "redis.example");
        ("127.0.0.1".to_owned(), port.load(SeqCst))
    }))
    .await;
    assert_eq!((old.connections(), new.connections()), (2, 0), "control");
    leads_to.store(new.port(), SeqCst);
    let mut figures = Figures::of("T8");
    old.kill();
    until("it has moved", async || new.connections() == 2).await;
    node.until_up().await;
    figures.healed();
}

#[tokio::test]
async fn an_option_that_makes_no_sense_is_told_at_the_start() {
    let redis = Redis::at("redis://localhost").unwrap();
    let wrong = redis.root_certificates("no certificate");
    let error = Cluster::builder().backend(wrong).try_start().unwrap_err();
    assert_eq!(error.kind(), ConnectErrorKind::Setting);
    assert!(error.to_string().contains("root_certificates"), "{error}");
}
