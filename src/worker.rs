//! Settings of a process that sends and holds no sockets.

use crate::broadcast::Broadcaster;
use crate::builder::ClusterBuilder;
use crate::bus::Backend;
use crate::cluster::Cluster;
use crate::model::error::ConnectError;
use crate::model::history::History;

/// Settings of a worker, then [`connect`](Self::connect): a process without sockets, such as a cron job or
/// another service, which sends to the app's users, asks who is there and watches presence. It is none of the
/// cluster's [`nodes`](Cluster::nodes), and takes no sockets: those need a
/// [`ClusterLayer`](crate::ClusterLayer).
///
/// ```no_run
/// # #[cfg(feature = "redis")]
/// # async fn work() -> Result<(), Box<dyn std::error::Error>> {
/// use axum_cluster::Broadcaster;
///
/// let broadcaster = Broadcaster::builder()
///     .redis("redis://127.0.0.1:6379")
///     .namespace("shop-prod") // the app's
///     .connect()
///     .await?;
/// let delivery = broadcaster.to_user("alice").send("your order has shipped").await?;
/// println!("{:?} nodes took it", delivery.nodes());
/// # Ok(())
/// # }
/// ```
///
/// 0 nodes for a user who is online: the namespace or the Redis is not the app's, and
/// [`Cluster::nodes`] of a node started with the same two lists nobody else.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `connect`"]
pub struct BroadcasterBuilder(ClusterBuilder);

impl Broadcaster {
    /// A publisher without sockets, for a worker, a cron job or another service: in the default
    /// namespace, with all defaults. Waits until the bus is up, at most 5 s. An app that names a namespace
    /// needs [`builder`](Self::builder).
    ///
    /// # Errors
    /// Those of [`Cluster::connect`](crate::Cluster::connect).
    ///
    /// # Panics
    /// Outside a tokio runtime.
    ///
    /// # Cancel safety
    /// Cancelled, nothing is left behind.
    #[cfg(feature = "redis")]
    pub async fn connect(redis_url: impl AsRef<str>) -> Result<Self, ConnectError> {
        Self::builder().redis(redis_url).connect().await
    }

    /// A publisher without sockets, with settings of your own. When no node takes what it sends to a user who is
    /// online, its namespace or Redis is not the app's: see [`BroadcasterBuilder`].
    pub fn builder() -> BroadcasterBuilder {
        BroadcasterBuilder::new()
    }
}

impl BroadcasterBuilder {
    pub(crate) fn new() -> Self {
        Self(ClusterBuilder::new().worker())
    }

    /// The Redis of the app's nodes; see [`Backend::redis`] for the forms of the URL. Default: none, it is
    /// alone in memory.
    #[cfg(feature = "redis")]
    pub fn redis(self, url: impl AsRef<str>) -> Self {
        Self(self.0.redis(url))
    }

    /// What connects it to the app's nodes: a [`Backend`], or a `Redis` with options. Default: [`Backend::memory`].
    pub fn backend(self, backend: impl Into<Backend>) -> Self {
        Self(self.0.backend(backend))
    }

    /// The namespace of the app's nodes ([`ClusterBuilder::namespace`]). Default: `cluster`. In another namespace it
    /// sends to nobody, and no error says so: [`Delivery::nodes`](crate::Delivery::nodes) is 0 for a user who is
    /// online.
    pub fn namespace(self, name: impl AsRef<str>) -> Self {
        Self(self.0.namespace(name))
    }

    /// What the nodes' logs call it. Default: the environment's `HOSTNAME`, else nothing.
    pub fn name(self, name: impl Into<String>) -> Self {
        Self(self.0.name(name))
    }

    /// Keeps what is sent to users, as the app's nodes do ([`ClusterBuilder::user_history`]). Default: nothing is kept.
    pub fn user_history(self, history: History) -> Self {
        Self(self.0.user_history(history))
    }

    /// Keeps what is sent to rooms, as the app's nodes do ([`ClusterBuilder::room_history`]). Default: nothing is kept.
    pub fn room_history(self, history: History) -> Self {
        Self(self.0.room_history(history))
    }

    /// Keeps what is sent to all, as the app's nodes do ([`ClusterBuilder::all_history`]). Default: nothing is kept.
    pub fn all_history(self, history: History) -> Self {
        Self(self.0.all_history(history))
    }

    /// Starts it and waits until the bus is up, at most 5 s.
    ///
    /// # Errors
    /// A [`ConnectError`] of kind `Url` or `Setting` for what makes no sense, and of kind `Unreachable` with Redis' own
    /// reason when the bus is not up in time.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    ///
    /// # Cancel safety
    /// Cancelled, nothing is left behind.
    pub async fn connect(self) -> Result<Broadcaster, ConnectError> {
        let cluster: Cluster = self.0.try_start()?;
        cluster.ready().await?;
        Ok(cluster.broadcaster())
    }

    /// Starts it without waiting: the bus comes up in the background, and sends fail until then.
    ///
    /// # Errors
    /// A [`ConnectError`] of kind `Url` or `Setting` that says what makes no sense and why.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[track_caller]
    pub fn try_start(self) -> Result<Broadcaster, ConnectError> {
        Ok(self.0.try_start()?.broadcaster())
    }
}
