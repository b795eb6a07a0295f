//! Several nodes of one test, and what may happen between them.

use std::sync::Arc;
use std::time::Duration;

use crate::bus::{Backend, Hub};
use crate::model::id::NodeId;

/// What connects the nodes of a test, as Redis does, and does to them what Redis and networks do. Clones are one hub.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use axum_cluster::{Cluster, Health};
/// use axum_cluster::testing::MemoryHub;
/// use futures::StreamExt;
///
/// let hub = MemoryHub::new();
/// let [a, b] = [(); 2].map(|()| Cluster::builder().backend(hub.backend()).start());
/// let mut gaps = a.gaps();
/// hub.partition(a.id());
/// assert!(matches!(a.health(), Health::Degraded { .. }));
/// assert_eq!(b.health(), Health::Up);
/// assert!(a.broadcaster().to_user("alice").send("only here").await.is_err());
/// hub.heal();
/// assert_eq!(a.health(), Health::Up);
/// assert!(gaps.next().await.is_some(), "what b sent meanwhile is missed, and that is told");
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct MemoryHub(Arc<Hub>);

impl MemoryHub {
    /// A hub without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// For [`ClusterBuilder::backend`](crate::ClusterBuilder::backend) of each node.
    pub fn backend(&self) -> Backend {
        Backend::of(self.0.clone())
    }

    /// Cuts a node off from all others, as if it had lost Redis: at once it is
    /// [`Degraded`](crate::Health::Degraded), its sends fail for all but its own sockets, and nothing reaches it; the
    /// others go on without it. What is on its way to it is lost. A node that is cut off already stays so.
    ///
    /// # Panics
    /// When no such node is on this hub, or it was shut down.
    #[track_caller]
    pub fn partition(&self, node: NodeId) {
        assert!(
            self.0.cut(node),
            "no node {node} is on this hub: start its cluster with `.backend(hub.backend())`"
        );
    }

    /// Ends every partition: the nodes are up again, and tell the gap ([`Cluster::gaps`](crate::Cluster::gaps)) from
    /// the moment at which they were cut off.
    pub fn heal(&self) {
        self.0.heal();
    }

    /// Whatever the nodes send to each other from now on takes so long; it stays in order. Default: nothing, a send
    /// arrives before it returns. A send returns when it has arrived, or fails after
    /// [`publish_timeout`](crate::ClusterBuilder::publish_timeout) as one that may have been sent.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[track_caller]
    pub fn delay(&self, delay: Duration) {
        self.0.delay(delay);
    }
}
