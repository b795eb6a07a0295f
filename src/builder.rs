//! Settings of a node.

use std::time::Duration;

use tokio::runtime::Handle;

use crate::bus::Backend;
use crate::cluster::Cluster;
use crate::config::{Config, Identify, Unauthenticated};
use crate::local::origin::OriginPattern;
#[cfg(feature = "deflate")]
use crate::model::compression::Compression;
use crate::model::error::{ConnectError, SendError};
use crate::model::history::History;
use crate::model::id::UserId;
use crate::model::limits::{SlowConsumer, SpoolLimits};
use crate::model::topic::Namespace;
use crate::node::Node;
use crate::quota::{InboundLimit, OverLimit, SeatLimit};
use crate::ws::handshake::is_token;

/// Settings of a node, then [`start`](Self::start).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use std::time::Duration;
/// use axum_cluster::{Cluster, UserId};
///
/// #[derive(Clone)]
/// struct CurrentUser { id: u64 } // what your auth middleware leaves in the extensions
///
/// let cluster = Cluster::builder()
///     .namespace("shop-prod")
///     .identify(|user: &CurrentUser| Some(UserId::from(user.id)))
///     .allow_origin("https://shop.example")
///     .max_sockets_per_user(20)
///     .ping_interval(Duration::from_secs(15))
///     .start();
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `start`"]
pub struct ClusterBuilder {
    config: Config,
    backend: Backend,
    /// The first setting that makes no sense.
    problem: Option<ConnectError>,
}

impl Cluster {
    /// Starts a node with settings of your own.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::new()
    }

    /// Starts a node on this Redis with all defaults and waits until the bus is up, at most 5 s. To
    /// start without waiting, use [`builder`](Self::builder).
    ///
    /// The node lives on the tokio runtime on which this runs: see [`ClusterBuilder::start`].
    ///
    /// # Errors
    /// A [`ConnectError`] of kind `Url` for a malformed URL, and of kind `Unreachable` with Redis' own reason
    /// when it is not up in time.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    ///
    /// # Cancel safety
    /// Cancelled, nothing is left behind.
    #[cfg(feature = "redis")]
    pub async fn connect(redis_url: impl AsRef<str>) -> Result<Self, ConnectError> {
        let cluster = Self::builder().redis(redis_url).try_start()?;
        cluster.ready().await?;
        Ok(cluster)
    }
}

impl ClusterBuilder {
    pub(crate) fn new() -> Self {
        let namespace = Namespace::new(Namespace::DEFAULT).expect("the default is valid");
        Self {
            config: Config::new(namespace),
            backend: Backend::memory(),
            problem: None,
        }
    }

    /// The Redis that connects the nodes; see [`Backend::redis`] for the forms of the URL. Default: none,
    /// the node is alone in memory.
    #[cfg(feature = "redis")]
    pub fn redis(self, url: impl AsRef<str>) -> Self {
        match Backend::redis(url) {
            Ok(backend) => self.backend(backend),
            Err(error) => self.wrong(error),
        }
    }

    /// What connects the nodes: a [`Backend`], or a `Redis` with options. Default: [`Backend::memory`].
    pub fn backend(mut self, backend: impl Into<Backend>) -> Self {
        self.backend = backend.into();
        match self.backend.problem().cloned() {
            Some(problem) => self.wrong(problem),
            None => self,
        }
    }

    /// Keeps clusters on one Redis apart: 1 to 64 of `A-Z a-z 0-9 . _ -`. Default: `cluster`. Redis'
    /// database numbers do not separate pub/sub, so staging and production need two namespaces.
    pub fn namespace(mut self, name: impl AsRef<str>) -> Self {
        let name = name.as_ref();
        match Namespace::new(name) {
            Some(namespace) => {
                self.config.namespace = namespace;
                self
            }
            None => self.wrong(ConnectError::setting(format!(
                "the namespace {name:?} is not usable: 1 to 64 of A-Z a-z 0-9 . _ - are needed"
            ))),
        }
    }

    /// Finds the user in the type that the app's auth middleware leaves in the request's extensions.
    /// Default: a [`UserId`] itself. `None` means there is no user.
    pub fn identify<T: Send + Sync + 'static>(
        mut self,
        identify: impl Fn(&T) -> Option<UserId> + Send + Sync + 'static,
    ) -> Self {
        self.config.identify = Identify::by(identify);
        self
    }

    /// What happens to an upgrade without a user. Default: [`Unauthenticated::Close`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use axum_cluster::{Close, Cluster, Unauthenticated};
    ///
    /// let log_in = Close::new(4001, "log in first");
    /// let cluster = Cluster::builder()
    ///     .unauthenticated(Unauthenticated::CloseWith(log_in))
    ///     .start();
    /// # }
    /// ```
    pub fn unauthenticated(mut self, unauthenticated: Unauthenticated) -> Self {
        if let Unauthenticated::CloseWith(close) = &unauthenticated
            && !close.is_sendable()
        {
            let problem = SendError::invalid_close(close.code);
            return self.wrong(ConnectError::setting(format!("unauthenticated: {problem}")));
        }
        self.config.unauthenticated = unauthenticated;
        self
    }

    /// The subprotocols that the app speaks, best first; [`ClusterSocket::protocols`] names others for one
    /// handler. Default: none. Name them here when clients offer any: a browser gives up on an upgrade
    /// that chooses none of its offers, and would never see the 4403 of a missing user. Where `resume.v1` stands among them
    /// says [`ClusterSocket::protocols`].
    ///
    /// [`ClusterSocket::protocols`]: crate::ClusterSocket::protocols
    pub fn protocols<P: Into<String>>(mut self, protocols: impl IntoIterator<Item = P>) -> Self {
        self.config.protocols = protocols.into_iter().map(Into::into).collect();
        match self
            .config
            .protocols
            .iter()
            .find(|protocol| !is_token(protocol))
        {
            None => self,
            Some(wrong) => {
                let problem = format!(
                    "the subprotocol {wrong:?} is no token (RFC 9110, section 5.6.2): only letters, digits and \
                        !#$%&'*+-.^_`|~ may stand there"
                );
                self.wrong(ConnectError::setting(problem))
            }
        }
    }

    /// Lets pages of another origin in: exact scheme, host and port, such as `https://shop.example`, or
    /// `https://*.shop.example` for every name below, whole labels only: `a.shop.example` and
    /// `a.b.shop.example`, not `shop.example` itself. All of them must be yours. Default: only pages of the
    /// request's own host and port. May be called several times.
    pub fn allow_origin(mut self, origin: impl AsRef<str>) -> Self {
        let origin = origin.as_ref();
        match OriginPattern::parse(origin) {
            Ok(pattern) => {
                self.config.origins.allow(pattern);
                self
            }
            Err(needed) => self.wrong(ConnectError::setting(format!(
                "the origin {origin:?} is not usable: {needed}"
            ))),
        }
    }

    /// Lets pages of another origin in by a rule of your own, for origins that are known only at run time.
    /// It is asked of a well-formed origin that nothing else lets in, written as browsers do: lower case,
    /// a default port left out. It must not block; a panic refuses. May be called several times: one that
    /// agrees suffices.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use axum_cluster::Cluster;
    ///
    /// let tenants = ["https://one.example", "https://two.example"];
    /// let cluster = Cluster::builder()
    ///     .allow_origin_if(move |origin| tenants.contains(&origin))
    ///     .start();
    /// # }
    /// ```
    pub fn allow_origin_if(mut self, rule: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        self.config.origins.allow_if(rule);
        self
    }

    /// Lets pages of any origin in. Only for apps that do not authenticate by cookie: with cookies,
    /// any page a user visits could act in the user's name (cross-site WebSocket hijacking).
    pub fn allow_any_origin(mut self) -> Self {
        self.config.origins.allow_any();
        self
    }

    /// Most sockets of one user on this node; further upgrades get 429. Default: no limit.
    pub fn max_sockets_per_user(mut self, sockets: usize) -> Self {
        self.config.limits.sockets_per_user = Some(sockets);
        self
    }

    /// Most sockets of one user in the whole cluster, and what happens at the limit. Default: no limit.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use axum_cluster::{Cluster, OverLimit};
    ///
    /// let cluster = Cluster::builder()
    ///     .max_sockets_per_user_in_cluster(1, OverLimit::CloseOldest) // one device at a time
    ///     .start();
    /// # }
    /// ```
    ///
    /// Exact however many nodes admit at once: Redis decides, with one command per upgrade and at most one
    /// per end. The seats of a node that died come back with its [`lease`](Self::lease). While Redis does
    /// not answer, each node counts its own sockets
    /// ([`Stats::limits_unchecked`](crate::Stats::limits_unchecked)), so that a user may have up to
    /// so many on every node; they stay, and count again afterwards.
    ///
    /// Redis may lose any of it (`DEL`, eviction, `FLUSHALL`, a restart without its data): the nodes notice within
    /// 0.25 s and write it again, and upgrades wait for that, at most [`publish_timeout`](Self::publish_timeout), then
    /// they are refused. A node that does not come back is given up after half of that, until its lease ends; what
    /// is granted meanwhile is counted as unchecked. Upgrades wait for 0.75 s as well when the first node of a cluster
    /// starts, since an empty Redis may be one that has lost everything. A jump of Redis' clock shortens or prolongs
    /// leases; it is noticed, and treated as a loss.
    ///
    /// With an ACL, the node's user needs more than for the rest:
    /// `~<namespace>:seats* +eval +evalsha +time +hget +hmget +hset +hdel +hexists +unlink +pexpire +zadd
    /// +zrem +zscore +zrangebyscore +zremrangebyscore`, with several primaries `~<namespace>:{*}:seats*`. Without it the limit is each node's own, and the log says so.
    pub fn max_sockets_per_user_in_cluster(mut self, sockets: usize, over: OverLimit) -> Self {
        self.config.seats = Some(SeatLimit { sockets, over });
        self
    }

    /// Keeps what is sent to users, for each by itself, so that nobody who was away for a while misses it: whoever comes back with
    /// its position gets what it missed, and a broken link to Redis costs nothing. All nodes and workers must say the same; one
    /// that does not is named in the log and counted ([`Stats::history_unkept`](crate::Stats::history_unkept)). Default: nothing is
    /// kept, and no key, command or right is needed.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use axum_cluster::{Cluster, History};
    ///
    /// let cluster = Cluster::builder()
    ///     .user_history(History::default())
    ///     .room_history(History { messages: 50, ..History::default() })
    ///     .start();
    /// # }
    /// ```
    ///
    /// A send that is kept costs Redis 3.2 to 3.5 times what another does (measured), and its sender's own sockets get it when it comes back
    /// from Redis, in the one order that all get. [`Audience::ephemeral`](crate::Audience::ephemeral) leaves one out.
    ///
    /// With an ACL, the node's user needs more than for the rest:
    /// `~<namespace>:h* +info +script|load +evalsha +time +hget +hmget +hset +hdel +hgetall +rpushx +rpush +pexpire +ltrim +lindex
    /// +lrange`, in a Redis Cluster `~<namespace>:{*}:h*`. Without it what should be kept fails, saying so, and reaches the sockets
    /// of the sender's node alone.
    pub fn user_history(mut self, history: History) -> Self {
        self.config.histories.user = Some(history);
        self
    }

    /// Keeps what is sent to rooms, for each by itself, as [`user_history`](Self::user_history) does for users. Default: nothing is
    /// kept.
    pub fn room_history(mut self, history: History) -> Self {
        self.config.histories.room = Some(history);
        self
    }

    /// Keeps what is sent to all ([`Broadcaster::to_all`](crate::Broadcaster::to_all)), as [`user_history`](Self::user_history) does
    /// for users. Default: nothing is kept.
    pub fn all_history(mut self, history: History) -> Self {
        self.config.histories.all = Some(history);
        self
    }

    /// What is kept of sends made while Redis is away waits here instead of failing: at most so many messages, so many bytes of
    /// payload, and each so long. Default: none, such sends fail.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), axum_cluster::SendError> {
    /// use std::time::Duration;
    /// use axum_cluster::{Cluster, History};
    ///
    /// let cluster = Cluster::builder()
    ///     .user_history(History::default())
    ///     .spool(10_000, 16 * 1024 * 1024, Duration::from_secs(60))
    ///     .start();
    ///
    /// let delivery = cluster.broadcaster().to_user("alice").send("hello").await?;
    /// if delivery.spooled() {
    ///     // Nobody has it yet. Whoever must know waits for it, or is told why it was dropped.
    ///     delivery.settled().await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Only for audiences with a history, since what comes late needs its place in the order. Such a send returns `Ok` as soon as
    /// Redis is known to be away, or when [`publish_timeout`](Self::publish_timeout) is over without an answer, and says
    /// [`Delivery::spooled`](crate::Delivery::spooled). Nobody gets it before Redis is back, the sockets of its own node neither: then
    /// all leave in the order in which they were sent, each once. What had no answer is looked for among what is kept, and kept
    /// only where it is not there. While something waits, what is sent goes behind it.
    ///
    /// What Redis had taken within the 10 s before, up to as many messages and bytes once more for each primary, is remembered. If Redis goes on
    /// with an older state, after a failover to a replica that lagged or a restart without the last moments, what is
    /// missing there is kept again, before anything new; whoever has it already does not get it twice
    /// ([`Stats::history_again`](crate::Stats::history_again)). So a failover loses nothing, as long as its sender lives.
    ///
    /// What finds no room fails at once, and reaches the sockets of its own node alone, as without a spool. What waits too long is dropped, and so is what waits when the node
    /// ends: [`Cluster::shutdown`] waits for it at most its window.
    /// [`Delivery::settled`](crate::Delivery::settled) tells its sender, [`Stats::spool_dropped`](crate::Stats::spool_dropped) counts
    /// it. What Redis refuses (rights, memory) fails as ever. Closes do not wait, and [`Backend::memory`] is never away.
    pub fn spool(mut self, messages: usize, bytes: usize, wait: Duration) -> Self {
        self.config.spool = Some(SpoolLimits {
            messages,
            bytes,
            wait,
        });
        self
    }

    /// Most sockets on this node; further upgrades get 503. Default: no limit.
    pub fn max_sockets(mut self, sockets: usize) -> Self {
        self.config.limits.sockets = Some(sockets);
        self
    }

    /// Largest message a client may send, in bytes; a larger one closes its socket with 1009. Default:
    /// 64 KiB, so that a client cannot make the node hold much.
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        self.config.max_message_size = bytes;
        self
    }

    /// How many messages and bytes a second each client may send; one that sends more is closed with 1008, and
    /// [`Stats::inbound_closed`](crate::Stats::inbound_closed) counts it. Default: no limit, and no cost.
    ///
    /// A burst is allowed as long as it is a second's worth: who was silent for a second or longer may send that much
    /// at once, and in any span of *t* seconds a client may send *t* + 1 seconds' worth. Of bytes it may send one
    /// message of [`max_message_size`](Self::max_message_size) more, so that no message is refused for its size alone.
    /// Pings and pongs count as messages, and every byte counts, those of frames' headers too; what is compressed counts as it is
    /// inflated.
    ///
    /// While a handler does not read, nothing is read for it, and what its client sends meanwhile is not held against
    /// the client. A whole process that does not run for a while cannot know when what it then reads was sent: set
    /// the limit to several times what your honest clients send.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use axum_cluster::Cluster;
    ///
    /// // A chat: nobody types 20 messages a second, and a page that joins 20 rooms at once is welcome.
    /// let cluster = Cluster::builder().inbound_limit(20, 64 * 1024).start();
    /// # }
    /// ```
    pub fn inbound_limit(mut self, messages_per_second: usize, bytes_per_second: usize) -> Self {
        self.config.inbound = Some(InboundLimit {
            messages: messages_per_second,
            bytes: bytes_per_second,
        });
        self
    }

    /// How many messages may wait for a slow client; at this limit, or at [`outbox_bytes`](Self::outbox_bytes),
    /// [`slow_consumer`](Self::slow_consumer) decides. Default: 256. During the handshake, over TLS in this process
    /// and over HTTP/2, where only the socket's own task writes, a burst may take four times as much of both until
    /// that task has had its turn.
    pub fn outbox_messages(mut self, messages: usize) -> Self {
        self.config.outbox.messages = messages;
        self
    }

    /// How many bytes of payload may wait for a slow client; at this limit, or at
    /// [`outbox_messages`](Self::outbox_messages), [`slow_consumer`](Self::slow_consumer) decides. Default: 1 MiB. A
    /// single message of any size fits into an empty outbox.
    pub fn outbox_bytes(mut self, bytes: usize) -> Self {
        self.config.outbox.bytes = bytes;
        self
    }

    /// What happens at the limits of the outbox. Default: [`SlowConsumer::Close`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use axum_cluster::{Cluster, SlowConsumer};
    ///
    /// let ticker = Cluster::builder()
    ///     .outbox_messages(8)
    ///     .slow_consumer(SlowConsumer::DropOldest) // only the newest prices matter
    ///     .start();
    /// # }
    /// ```
    pub fn slow_consumer(mut self, policy: SlowConsumer) -> Self {
        self.config.outbox.policy = policy;
        self
    }

    /// Compresses messages for the clients that take it (permessage-deflate,
    /// [RFC 7692](https://www.rfc-editor.org/rfc/rfc7692)), all browsers among them, and takes compressed ones. Default: no
    /// compression, and no cost.
    ///
    /// A message is compressed once for all sockets of this node, when the first needs it so, and small ones, those of more than
    /// 1 MiB and those that get no smaller go as they are. Nothing is remembered between two messages (`server_no_context_takeover` and
    /// `client_no_context_takeover`, section 7.1.1): an idle socket needs no more memory than without, and messages that are much alike
    /// get less small than they could. It pays for text of half a KiB and more to many sockets, or where bytes are dear: 1 KiB of JSON
    /// costs 13 µs of CPU once, about twice a system call. A client that names a smaller window (`server_max_window_bits`,
    /// section 7.1.2.1) gets the messages compressed that fit into it.
    ///
    /// What clients send is bounded as it is inflated: [`max_message_size`](Self::max_message_size) is that of the whole message, and
    /// beyond 1 MiB one is at most 100 times what came for it (1009). [`inbound_limit`](Self::inbound_limit) counts what was
    /// inflated. What is no compressed message closes with 1007.
    ///
    /// **Secrets**: where one message holds a secret beside text that somebody else chooses, its length tells of the secret.
    /// [`Audience::uncompressed`](crate::Audience::uncompressed) leaves such a message out. What a handler sends by
    /// [`Socket::send`](crate::Socket::send) is compressed as well.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use axum_cluster::{Cluster, Compression};
    ///
    /// let cluster = Cluster::builder().compression(Compression::default()).start();
    /// # }
    /// ```
    #[cfg(feature = "deflate")]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.config.deflating = compression.into();
        self
    }

    /// A client that was silent this long is pinged (±10 %, so that pings spread). Default: 25 s, since
    /// common proxies cut silent connections at 60 s.
    pub fn ping_interval(mut self, interval: Duration) -> Self {
        self.config.ping_interval = interval;
        self
    }

    /// A client that stays silent this long after a ping is gone (1006). Default: 20 s.
    pub fn pong_timeout(mut self, timeout: Duration) -> Self {
        self.config.pong_timeout = timeout;
        self
    }

    /// A client that accepts not one byte this long, while there is something to send, is closed.
    /// Default: 10 s.
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.config.write_timeout = timeout;
        self
    }

    /// The longest a send waits for Redis, and an upgrade for its subscription. Default: 2 s.
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.config.publish_timeout = timeout;
        self
    }

    /// How often the bus is proved from end to end; a fault that no error tells is found within two
    /// intervals. Default: 5 s.
    pub fn probe_interval(mut self, interval: Duration) -> Self {
        self.config.probe_interval = interval;
        self
    }

    /// How long a user's subscription outlives the last socket, so that a page reload costs Redis
    /// nothing. Default: 2 s. Until then `is_online` may still be true.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.config.linger = linger;
        self
    }

    /// How long a node that has gone silent still counts as there (nodes say hello three times as
    /// often): for [`Cluster::nodes`], presence, and the seats of
    /// [`max_sockets_per_user_in_cluster`](Self::max_sockets_per_user_in_cluster); not for delivery.
    /// Default: 15 s, so that a node may lose two hellos. At least 1 s.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.config.lease = lease;
        self
    }

    /// How long a user stays online in [`Broadcaster::presence`](crate::Broadcaster::presence) after the last
    /// socket, so that a page reload or a reconnect is no change. Default: 5 s.
    pub fn presence_grace(mut self, grace: Duration) -> Self {
        self.config.presence_grace = grace;
        self
    }

    /// What [`Cluster::nodes`] calls this node. Default: the environment's `HOSTNAME`, which names the pod
    /// or container, else nothing.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// Starts the node; the bus comes up in the background.
    ///
    /// The node's tasks run on the tokio runtime on which this is called, and end with it: keep that runtime, and
    /// start the cluster within the one that serves. When it ends first, health becomes
    /// [`Degraded`](crate::Health::Degraded) for good, saying so, and upgrades are refused with 503. Handles may be
    /// used from any runtime that has timers (`enable_time`); sends and questions, also from none.
    ///
    /// # Panics
    /// When a setting makes no sense (the text says which and why), or outside a tokio runtime.
    #[track_caller]
    pub fn start(self) -> Cluster {
        match self.try_start() {
            Ok(cluster) => cluster,
            Err(error) => panic!("{error}"),
        }
    }

    /// Like [`start`](Self::start), but returns what makes no sense.
    ///
    /// # Errors
    /// A [`ConnectError`] of kind `Url` or `Setting` that says which and why.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[track_caller]
    pub fn try_start(self) -> Result<Cluster, ConnectError> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        if let Some(problem) = self.config.problem() {
            return Err(ConnectError::setting(problem));
        }
        assert!(
            Handle::try_current().is_ok(),
            "a cluster starts tasks: call this within a tokio runtime, such as `#[tokio::main]`"
        );
        let node = Node::start(self.config, &self.backend);
        #[cfg(feature = "metrics")]
        crate::metrics::keep_recording(&node);
        Ok(Cluster::of(node))
    }

    /// Makes this the builder of a worker: a process that never holds a socket.
    pub(crate) fn worker(mut self) -> Self {
        self.config.worker = true;
        self
    }

    fn wrong(mut self, problem: ConnectError) -> Self {
        self.problem.get_or_insert(problem);
        self
    }
}
