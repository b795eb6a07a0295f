//! This process's membership in the cluster.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::timeout;

use crate::broadcast::Broadcaster;
use crate::bus::gaps::Gaps;
use crate::bus::health::HealthChanges;
use crate::counts::Stats;
use crate::model::error::{ConnectError, QueryError};
use crate::model::health::Health;
use crate::model::id::NodeId;
use crate::model::roster::NodeInfo;
use crate::node::Node;

/// How long [`Cluster::ready`] waits.
const READY: Duration = Duration::from_secs(5);

/// This process's node in the cluster. Cheap to clone; the node lives until the last handle (this,
/// a [`ClusterLayer`](crate::ClusterLayer), a [`Broadcaster`]) and the last socket are gone, or until
/// [`shutdown`](Self::shutdown).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), axum_cluster::ConnectError> {
/// use axum_cluster::{Backend, Cluster, Health};
///
/// let cluster = Cluster::builder().backend(Backend::memory()).start();
/// cluster.ready().await?;
/// assert_eq!(cluster.health(), Health::Up);
/// assert_eq!(cluster.stats().sockets, 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Cluster {
    node: Arc<Node>,
}

impl Cluster {
    /// The identity of this node, new at every start.
    pub fn id(&self) -> NodeId {
        self.node.ground.node
    }

    /// Sends to users, rooms and sockets anywhere in the cluster.
    pub fn broadcaster(&self) -> Broadcaster {
        Broadcaster::of(self.node.clone())
    }

    /// Waits until the bus is up, at most 5 s.
    ///
    /// # Errors
    /// A [`ConnectError`] of kind `Unreachable` with the reason when it is not up in time. The node goes on trying.
    ///
    /// # Panics
    /// Outside a tokio runtime that has timers.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ready(&self) -> Result<(), ConnectError> {
        let mut changes = self.node.ground.reception.health_changes();
        let up = async {
            while let Some(health) = changes.next().await {
                match health {
                    Health::Up => return Ok(()),
                    Health::Degraded { reason, .. }
                        if self.node.ground.home.has_lost_its_runtime() =>
                    {
                        return Err(ConnectError::unreachable(reason));
                    }
                    Health::Degraded { .. } => {}
                    Health::Draining | Health::Down => break,
                }
            }
            Err(ConnectError::unreachable("the cluster was shut down"))
        };
        timeout(READY, up).await.unwrap_or_else(|_| {
            Err(ConnectError::unreachable(match self.health() {
                Health::Degraded { reason, .. } => reason,
                health => health.to_string().into(),
            }))
        })
    }

    /// How the node stands towards the bus now.
    pub fn health(&self) -> Health {
        self.node.ground.reception.health()
    }

    /// Every change of health, beginning with the present state. A reader that keeps up misses no
    /// outage however short; one that lags more than 64 changes behind misses the oldest. Ends with
    /// the node.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let cluster = axum_cluster::Cluster::builder().start();
    /// use futures::StreamExt;
    ///
    /// let mut changes = cluster.health_changes();
    /// tokio::spawn(async move {
    ///     while let Some(health) = changes.next().await {
    ///         println!("{health}"); // "up", or "degraded: .." with the reason
    ///     }
    /// });
    /// # }
    /// ```
    pub fn health_changes(&self) -> HealthChanges {
        self.node.ground.reception.health_changes()
    }

    /// The gaps that end from now on, one for each outage of the bus in which messages of other nodes may
    /// have been missed; none for a Redis that was absent from the start. A stream that begins in an
    /// outage tells of that outage. A reader misses none; one that lags more than 16 behind is told
    /// of the oldest as one gap that spans them. Ends with the node.
    ///
    /// Histories make none of them less, since what is sent to nodes is never kept; but whom one
    /// [concerns](crate::Gap::concerns_user), and with that [`Socket::gaps`](crate::Socket::gaps).
    pub fn gaps(&self) -> Gaps {
        self.node.ground.reception.gaps()
    }

    /// Counts of this node.
    pub fn stats(&self) -> Stats {
        self.node.peers.stats()
    }

    /// Every node of the cluster, this one first, then the oldest first. Nodes say hello every third of
    /// their [`lease`](crate::ClusterBuilder::lease) and are asked once more here; one that no longer answers is
    /// listed, as it last described itself, until its lease ends. For people and dashboards: delivery
    /// does not depend on it. Workers ([`Broadcaster::builder`]) hold no sockets and are not listed.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), axum_cluster::QueryError> {
    /// # let cluster = axum_cluster::Cluster::builder().start();
    /// for node in cluster.nodes().await? {
    ///     println!("{} {}: {} sockets", node.id, node.name, node.sockets);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When Redis does not answer, or after [`shutdown`](Self::shutdown).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn nodes(&self) -> Result<Vec<NodeInfo>, QueryError> {
        self.node.peers.queries().nodes().await
    }

    /// Ends the node's part in the cluster: from now on upgrades get 503; every socket is closed with
    /// 1012 at a random moment of `window`, so that the clients do not all reconnect at once; then
    /// their tasks are awaited and the bus is left. Returns at the latest 5 s after the window, which is a day at
    /// most.
    ///
    /// Run it in the server's shutdown signal, while the server still answers:
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn serve(cluster: axum_cluster::Cluster, app: axum::Router) -> std::io::Result<()> {
    /// let listener = tokio::net::TcpListener::bind("0.0.0.0:3000").await?;
    /// axum::serve(listener, app)
    ///     .with_graceful_shutdown(async move {
    ///         let _ = tokio::signal::ctrl_c().await;
    ///         cluster.shutdown(Duration::from_secs(30)).await;
    ///     })
    ///     .await
    /// # }
    /// ```
    ///
    /// A socket's handler that awaits it waits for its own end, so that it returns at that deadline only: let
    /// a task of its own call it.
    ///
    /// # Panics
    /// Outside a tokio runtime that has timers.
    ///
    /// # Cancel safety
    /// Cancelled, the node stays draining; call it again to go on.
    pub async fn shutdown(&self, window: Duration) {
        self.node.shutdown(window).await;
    }

    pub(crate) fn of(node: Arc<Node>) -> Self {
        Self { node }
    }
}
