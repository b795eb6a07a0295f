//! A node whose runtime ends.

use std::time::Duration;

use axum_cluster::{Close, Cluster, Health};
use futures::future::join_all;
use tokio::runtime::{Builder, Runtime};

use crate::support::client::{Event, text};
use crate::support::{Client, Lab, RedisServer, TestNode, soon};

fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

fn a_node_that_lost_its_runtime_says_so(lab: &Lab) {
    let (first, second) = (runtime(), runtime());
    let cluster = first.block_on(async {
        let cluster = lab.builder().start();
        cluster.ready().await.unwrap();
        cluster
    });
    let (node, mut early) = second.block_on(async {
        let node = TestNode::start(cluster.clone()).await;
        let mut early = node.client("alice").await;
        assert_eq!(early.ask("control").await, "control");
        (node, early)
    });
    assert_eq!(cluster.health(), Health::Up, "control");
    drop(first);

    let Health::Degraded { reason, .. } = cluster.health() else {
        panic!("{:?}", cluster.health());
    };
    assert!(reason.contains("runtime"), "{reason}");
    second.block_on(async {
        let not_ready = cluster.ready().await.unwrap_err().to_string();
        assert!(not_ready.contains("runtime"), "{not_ready}");
        let refused = Client::try_connect(node.addr, "/ws", &[("x-user", "bob")]).await;
        let Err((status, body)) = refused else {
            panic!("it is admitted");
        };
        assert_eq!(status, 503);
        assert!(!body.contains("runtime"), "{body}");
        // Who is here already is still served by this node.
        let sent = node
            .broadcaster
            .to_user("alice")
            .local()
            .send("hello")
            .await;
        assert_eq!(sent.unwrap().local(), 1);
        assert_eq!(early.event().await, text("hello"));
        let roster = node.broadcaster.to_user("alice").sockets().await.unwrap();
        assert_eq!((roster.sockets().len(), roster.is_complete()), (1, false));
    });
}

#[test]
fn a_node_in_memory_that_lost_its_runtime_says_so() {
    a_node_that_lost_its_runtime_says_so(&Lab::memory());
}

#[test]
fn a_node_on_redis_that_lost_its_runtime_says_so() {
    let lab = Lab::redis();
    a_node_that_lost_its_runtime_says_so(&lab);
    // A send names the cause as well, and what it did here.
    let (first, second) = (runtime(), runtime());
    let cluster = first.block_on(async { lab.builder().start() });
    drop(first);
    let error = second.block_on(cluster.broadcaster().to_user("alice").send("hello"));
    let error = error.unwrap_err();
    assert!(error.to_string().contains("runtime"), "{error}");
    assert!(!error.maybe_sent());
}

/// It lives, and runs nothing: what is of this node is done all the same.
#[test]
fn sockets_are_closed_while_nobody_drives_the_runtime_of_their_node() {
    /// More than are closed in one turn.
    const SOCKETS: usize = 300;
    let home = Builder::new_current_thread().enable_all().build().unwrap();
    let builder = Lab::memory()
        .builder()
        .publish_timeout(Duration::from_millis(200));
    let cluster = home.block_on(async { builder.start() });
    runtime().block_on(async {
        let node = TestNode::start(cluster).await;
        let clients = join_all((0..SOCKETS).map(|_| node.client("alice"))).await;
        let alice = || node.broadcaster.to_user("alice");
        let counted = soon("a count", alice().count()).await.unwrap();
        assert!(!counted.is_complete(), "control: nobody drives it");
        let close = alice().local().close(Close::new(4000, "bye"));
        let closed = soon("an outcome", close).await.unwrap();
        assert_eq!(closed.local(), SOCKETS);
        for mut client in clients {
            assert_eq!(client.event().await, Event::Closed(4000, "bye".into()));
        }
    });
}

/// The end of a node is no such thing, and neither is a shutdown.
#[test]
fn a_node_that_was_shut_down_stays_down() {
    let server = RedisServer::start();
    let first = runtime();
    let cluster = first.block_on(async {
        let cluster = Cluster::connect(server.url()).await.unwrap();
        cluster.shutdown(Duration::ZERO).await;
        cluster
    });
    drop(first);
    assert_eq!(cluster.health(), Health::Down);
}
