//! Nodes, clients and faults for the integration tests.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part")]

pub mod arguments;
pub mod balancer;
pub mod client;
pub mod concern;
pub mod events;
pub mod figures;
pub mod line;
pub mod node;
pub mod program;
pub mod proxy;
pub mod raw;
pub mod redis;
pub mod traffic;

use std::time::Duration;

use axum_cluster::{Backend, Cluster, ClusterBuilder, History};

pub use client::Client;
pub use node::TestNode;
pub use redis::RedisServer;

/// How long an event may take before the test gives up. Long, since the machine may be busy: no
/// test passes by it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for an event, not for ever.
pub async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, event).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing happened for {PATIENCE:?}"),
    }
}

/// Waits until a condition holds that nothing announces.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let holds = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    soon(what, holds).await;
}

/// Keeps what is sent to whomever.
pub fn keeping(builder: ClusterBuilder) -> ClusterBuilder {
    let history = History::default();
    builder
        .user_history(history)
        .room_history(history)
        .all_history(history)
}

/// One kind of cluster: a backend, and the server behind it.
pub struct Lab {
    pub backend: Backend,
    pub redis: Option<RedisServer>,
    pub namespace: &'static str,
    /// Its nodes keep everything.
    pub keeps: bool,
}

impl Lab {
    pub fn memory() -> Self {
        Self::on(Backend::memory(), "cluster")
    }

    /// Of a backend whose servers are the test's, and which it has to itself in this namespace.
    pub fn on(backend: Backend, namespace: &'static str) -> Self {
        Self {
            backend,
            redis: None,
            namespace,
            keeps: false,
        }
    }

    pub fn redis() -> Self {
        let server = RedisServer::start();
        let backend = Backend::redis(server.url()).expect("a good url");
        Self {
            redis: Some(server),
            ..Self::on(backend, "cluster")
        }
    }

    pub fn keeping(self) -> Self {
        Self {
            keeps: true,
            ..self
        }
    }

    pub fn server(&mut self) -> &mut RedisServer {
        self.redis.as_mut().expect("a lab with redis")
    }

    /// Settings of a node of this lab. Short times, since the tests wait for them.
    pub fn builder(&self) -> ClusterBuilder {
        let builder = Cluster::builder()
            .backend(self.backend.clone())
            .namespace(self.namespace)
            .linger(Duration::from_millis(50))
            .probe_interval(Duration::from_millis(500));
        match self.keeps {
            true => keeping(builder),
            false => builder,
        }
    }

    pub async fn node(&self) -> TestNode {
        let node = TestNode::start(self.builder().start()).await;
        node.until_up().await;
        node
    }

    pub async fn nodes<const N: usize>(&self) -> [TestNode; N] {
        let mut nodes = Vec::new();
        for _ in 0..N {
            nodes.push(self.node().await);
        }
        nodes
            .try_into()
            .unwrap_or_else(|_| unreachable!("N were started"))
    }
}
