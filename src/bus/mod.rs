//! The bus between nodes: one small private trait, in memory or over Redis.

#[cfg(test)]
mod conformance;
pub(crate) mod control;
pub(crate) mod echoes;
mod eras;
pub(crate) mod gaps;
pub(crate) mod health;
pub(crate) mod inbound;
pub(crate) mod keyring;
mod memory;
pub(crate) mod outage;
pub(crate) mod past;
pub(crate) mod reception;
#[cfg(feature = "redis")]
pub(crate) mod redis;
pub(crate) mod repair;
pub(crate) mod repairs;
pub(crate) mod scope;
pub(crate) mod seen;
pub(crate) mod uplink;
pub(crate) mod wire;

use std::fmt;
use std::future::ready;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

pub(crate) use self::memory::Hub;
use self::memory::MemoryBus;
#[cfg(feature = "redis")]
use self::redis::{Redis, RedisBus, Target};
use crate::bus::outage::LinkId;
use crate::bus::past::{Keep, Past, ReadLimits};
use crate::bus::scope::Size;
use crate::model::error::{ConnectError, PublishError};
use crate::model::history::Histories;
use crate::model::history::mark::{Clock, Mark, Marks, Number};
use crate::model::history::token::Key;
use crate::model::id::NodeId;
use crate::model::limits::SpoolLimits;
use crate::model::partition::{Partition, PartitionSet};
use crate::model::topic::{Namespace, Topic, TopicKind};
use crate::quota::{SeatLimit, Seats};

/// How nodes reach one another.
///
/// ```
/// use axum_cluster::{Backend, Cluster};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// // Two nodes of one test: clones share one hub.
/// let hub = Backend::memory();
/// let a = Cluster::builder().backend(hub.clone()).start();
/// let b = Cluster::builder().backend(hub).start();
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Backend(BackendKind);

#[derive(Clone, Debug)]
enum BackendKind {
    Memory(Arc<Hub>),
    #[cfg(feature = "redis")]
    /// One, or several that share the topics.
    Redis(Vec<Target>),
    /// What it was made of makes no sense.
    #[cfg(feature = "redis")]
    Wrong(ConnectError),
}

impl Backend {
    /// Within this process. Clones share one hub, so that several nodes of one test or one demo reach
    /// each other; two calls make two hubs that never meet.
    pub fn memory() -> Self {
        Self(BackendKind::Memory(Arc::default()))
    }

    /// Over Redis 6.2 or later, or anything that speaks its pub/sub. The URL decides:
    ///
    /// | URL | |
    /// |---|---|
    /// | `redis://[user:password@]host[:port]` | one Redis, or a name or proxy that leads to the primary |
    /// | `rediss://` | the same by TLS, verified against the system's certificates (`SSL_CERT_FILE` names others) |
    /// | `redis+unix:///path/to/socket` | where there are unix sockets |
    /// | `redis-sentinel://[user:password@]host[:port],host[:port]/mymaster` | the primary that sentinels know by this name |
    /// | `rediss-sentinel://` | the same by TLS, the sentinels too |
    /// | `redis-cluster://[user:password@]host[:port],host[:port]` | a Redis Cluster: all its primaries, whichever they are |
    /// | `rediss-cluster://` | the same by TLS |
    ///
    /// `valkey` and `valkeys` are the same as `redis` and `rediss`, and `+sentinel` and `+cluster` as `-sentinel` and
    /// `-cluster`. Another kind of server than the URL says is refused, and the reason names the right one. Any of the sentinels
    /// suffices, they know the others; further ones may stand in the query too, as may the name:
    /// `?node=host:port&sentinelServiceName=mymaster`. User and password before the hosts are those of Redis; the
    /// sentinels' own are `sentinelUsername` and `sentinelPassword`, and `sentinelTls=false` (or `true`) is for
    /// sentinels that speak TLS otherwise than Redis does.
    ///
    /// A Redis Cluster is used by sharded pub/sub, so it has to be Redis 7, Valkey, or what speaks as they do. Any of its nodes
    /// suffices, it knows the others; further ones may stand in the query too: `?node=host:port`. The topics are spread over
    /// the primaries in 256 parts, and follow when slots move; a primary that is away takes its own users and rooms with it
    /// and no others ([`Gap::concerns_user`](crate::Gap::concerns_user)). A node holds two connections to each. Order is kept
    /// within an audience, as everywhere: what a primary that has lost its place passes on late is dropped, inside the gap. A union
    /// goes to each primary that is concerned.
    ///
    /// What of this is tested with which server stands in `docs/operating.md`.
    ///
    /// A name that leads to several addresses is resolved at every connect, and they are raced (RFC 8305). What no URL can
    /// say are options of [`Redis`].
    ///
    /// # Errors
    /// A [`ConnectError`] of kind `Url` names the part that is wrong. A password is never shown.
    #[cfg(feature = "redis")]
    pub fn redis(url: impl AsRef<str>) -> Result<Self, ConnectError> {
        let target = Redis::at(url)?.target()?;
        Ok(Self(BackendKind::Redis(vec![target])))
    }

    /// Several Redises that know nothing of each other and share the topics: each user, room and node is at one of them, which
    /// their names decide, and a union goes to each that is concerned. Each is a URL in any of the forms that
    /// [`redis`](Self::redis) knows but that of a Redis Cluster, which spreads topics by itself, or a [`Redis`] with options. One that is away takes its own topics with it and no
    /// others: [`health`](crate::Cluster::health) names it, and [`Gap::concerns_user`](crate::Gap::concerns_user) tells whom
    /// it concerns.
    ///
    /// The same list everywhere, with the same hosts and ports, in any order: nodes with another one would look for users
    /// elsewhere. Where such nodes hear each other all the same, they say so in the log, with both lists, and in
    /// [`Stats::nodes_on_other_shards`](crate::Stats::nodes_on_other_shards). So it changes only while no node runs.
    ///
    /// ```no_run
    /// use axum_cluster::{Backend, Cluster};
    ///
    /// # fn main() -> Result<(), axum_cluster::ConnectError> {
    /// let backend = Backend::shards(["redis://one.internal", "redis://two.internal"])?;
    /// let cluster = Cluster::builder().backend(backend).try_start()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// A [`ConnectError`] as those of [`redis`](Self::redis) and of the options of [`Redis`]; or of kind `Setting` where the
    /// list is empty, names one twice, or has a Redis Cluster among several.
    #[cfg(feature = "redis")]
    pub fn shards<R>(redises: impl IntoIterator<Item = R>) -> Result<Self, ConnectError>
    where
        R: TryInto<Redis>,
        ConnectError: From<R::Error>,
    {
        let mut targets = Vec::new();
        for redis in redises {
            let redis: Redis = redis.try_into()?;
            targets.push(redis.target()?);
        }
        redis::check_several(&targets).map_err(ConnectError::setting)?;
        Ok(Self(BackendKind::Redis(targets)))
    }

    /// What it was made of, if that makes no sense.
    pub(crate) fn problem(&self) -> Option<&ConnectError> {
        match &self.0 {
            #[cfg(feature = "redis")]
            BackendKind::Wrong(problem) => Some(problem),
            _ => None,
        }
    }

    #[cfg(feature = "testing")]
    pub(crate) fn of(hub: Arc<Hub>) -> Self {
        Self(BackendKind::Memory(hub))
    }

    pub(crate) fn open(&self, node: NodeId, settings: BusSettings) -> Box<dyn Bus> {
        match &self.0 {
            BackendKind::Memory(hub) => Box::new(MemoryBus::new(hub.clone(), node, settings)),
            #[cfg(feature = "redis")]
            BackendKind::Redis(targets) => Box::new(RedisBus::new(targets, node, settings)),
            #[cfg(feature = "redis")]
            BackendKind::Wrong(problem) => {
                unreachable!("refused when the node was built: {problem}")
            }
        }
    }
}

/// Options that make no sense are told where the cluster starts.
#[cfg(feature = "redis")]
impl From<Redis> for Backend {
    fn from(redis: Redis) -> Self {
        Self(redis.target().map_or_else(BackendKind::Wrong, |target| {
            BackendKind::Redis(vec![target])
        }))
    }
}

/// What a bus needs to know of its node.
#[derive(Clone, Debug)]
pub(crate) struct BusSettings {
    pub(crate) namespace: Namespace,
    pub(crate) publish_timeout: Duration,
    pub(crate) probe_interval: Duration,
    pub(crate) lease: Duration,
    pub(crate) linger: Duration,
    pub(crate) seats: Option<SeatLimit>,
    pub(crate) histories: Histories,
    pub(crate) spool: Option<SpoolLimits>,
}

#[cfg(test)]
impl BusSettings {
    /// Settings with nothing that is off by default.
    pub(crate) fn plain(publish_timeout: Duration) -> Self {
        Self {
            namespace: Namespace::new("x").expect("a good name"),
            publish_timeout,
            probe_interval: Duration::from_secs(5),
            lease: Duration::from_secs(15),
            linger: Duration::ZERO,
            seats: None,
            histories: Histories::default(),
            spool: None,
        }
    }
}

/// One node's end of the bus, of which each part sees what it needs. Dropping it leaves the bus.
pub(crate) trait Bus: Interests + Publish + Archive + Links + Hearing {
    /// The bus begins; from now on the listener is called. Called once.
    fn start(&self, listener: Weak<dyn Listener>);

    /// The topics on which all nodes are counted. Every node wants each of them, and who is counted on one is reached by
    /// whatever else goes the same way.
    fn censuses(&self) -> Vec<Topic> {
        vec![Topic::nodes()]
    }

    /// Leaves the bus; resolves when nothing of this node is left there.
    fn stop(&self) -> BoxFuture<'_, ()>;
}

/// What sockets need: to be reached, and a seat.
pub(crate) trait Interests: fmt::Debug + Send + Sync {
    /// One more reason to hear a topic. Every call is paired with a [`release`](Self::release).
    fn want(&self, topic: &Topic) -> Confirmation;

    /// One reason less to hear a topic.
    fn release(&self, topic: &Topic);

    /// Somebody goes on without the confirmation of a topic. Says [`Listener::down`], and
    /// [`Listener::up`] only when that topic is heard.
    fn prove_anew(&self);

    /// The seats of users, where their sockets in the cluster are limited.
    fn seats(&self) -> Option<&dyn Seats>;
}

/// What is said.
pub(crate) trait Publish: fmt::Debug + Send + Sync {
    /// Publishes the same bytes on the channel of each topic, and keeps them if it is said how: then each hears them with
    /// their number, the node that publishes too, all nodes in one order. Queued by the call, so that the order of calls is
    /// the order in which they are published, among those of one size.
    fn publish(
        &self,
        topics: SmallVec<[Topic; 1]>,
        envelope: Bytes,
        size: Size,
        keep: Option<Keep>,
    ) -> BoxFuture<'static, Result<Published, PublishError>>;

    /// That of the [topics on which nodes are counted](Bus::censuses) which goes the way of this topic.
    fn census(&self, _topic: &Topic) -> Topic {
        Topic::nodes()
    }

    /// Of the topics on which nodes are counted one for each link, that of all nodes first: what is said on each of them reaches
    /// whoever hears any.
    fn everywhere(&self) -> Vec<Topic> {
        vec![Topic::nodes()]
    }

    /// How much waits to be published, in publications of 1 KiB.
    fn queued(&self) -> usize;

    /// How many messages wait for the bus to be back.
    fn spooled(&self) -> usize {
        0
    }

    /// Until none does.
    fn drained(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }
}

/// What is kept.
pub(crate) trait Archive: fmt::Debug + Send + Sync {
    /// Who numbers what is kept of a topic.
    fn clock(&self, topic: &Topic) -> Clock;

    /// What came to each of these topics since the mark of its clock, if that can be told; without marks, whatever is kept. A topic
    /// of which nothing is kept, and one whose clock has no mark, is [`Forgotten`](crate::Missed::Forgotten).
    fn read<'a>(
        &'a self,
        topics: &'a [Topic],
        since: Option<&'a Marks>,
        limits: ReadLimits,
    ) -> BoxFuture<'a, Result<Past, Arc<str>>>;

    /// What positions are signed with, the same for all nodes of the namespace.
    fn key(&self) -> BoxFuture<'_, Result<Key, Arc<str>>>;
}

/// The links of which the listener is told.
pub(crate) trait Links: fmt::Debug + Send + Sync {
    /// The links of which the listener is told, and what each carries.
    fn links(&self) -> Vec<(LinkId, PartitionSet)> {
        vec![(LinkId::ONLY, PartitionSet::all())]
    }

    /// Between whom the topics are shared by their names, which has to be the same on every node: sorted, none where nothing is.
    fn shared_by(&self) -> &[String] {
        &[]
    }

    /// Says [`Listener::up`] once more for a link that is, proven by what is published from now on.
    fn probe(&self, link: LinkId);

    /// Until when everything was heard that others published, if the last probe that came back was published
    /// at `proven`.
    fn heard_until(&self, proven: Instant) -> Instant {
        proven
    }
}

/// Who hears.
pub(crate) trait Hearing: fmt::Debug + Send + Sync {
    /// How many nodes hear each of these topics.
    fn listening<'a>(&'a self, topics: &'a [Topic]) -> BoxFuture<'a, Result<Vec<usize>, Arc<str>>>;
}

/// What became of a publication.
#[derive(Debug, Clone, Default)]
pub(crate) struct Published {
    /// Other nodes that took it, in sum.
    pub(crate) nodes: usize,
    /// Whether a copy was counted as this node's own, and must come back. If it does not, this node is deaf, and the
    /// count one too low.
    pub(crate) comes_back: bool,
    /// The highest number under which it is kept, if one clock gave them all.
    pub(crate) mark: Option<(Clock, Mark)>,
    /// It waits for the bus to be back.
    pub(crate) later: Option<Later>,
}

/// What becomes of a publication that waits for the bus to be back.
#[derive(Clone)]
pub(crate) struct Later(pub(crate) Shared<BoxFuture<'static, Result<Published, PublishError>>>);

impl Later {
    #[cfg(feature = "redis")]
    pub(crate) fn new(
        later: impl Future<Output = Result<Published, PublishError>> + Send + 'static,
    ) -> Self {
        Self(later.boxed().shared())
    }
}

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Later")
    }
}

/// Who hears. Calls come from the bus's own task: they must neither block nor wait.
pub(crate) trait Listener: Send + Sync {
    /// A message came on a topic's channel. It is delivered by the next [`flush`](Self::flush).
    /// What is kept has a number, which grows from one to the next of its clock; copies of a union have the same.
    fn heard(&self, topic: &str, number: Option<Number>, bytes: &[u8]);

    /// Delivers a part of what was heard; whether there is more, or other tasks should run before more is
    /// heard, since some sockets are written by their own task only. Called until neither is, whenever a part
    /// of what came is heard.
    fn flush(&self) -> bool;

    /// A topic is heard from now on that was not before an outage either: what was published there by now is for nobody here.
    fn confirmed(&self, topic: &str) {
        let _ = topic;
    }

    /// Something that is kept came from where its topic is no more, and was dropped.
    fn superseded(&self) {}

    /// Something came that cannot be a message.
    fn garbage(&self);

    /// A socket of this node lost its seat to a newer one of its user.
    fn replaced(&self, number: u64);

    /// A link is usable: everything on it for which nobody waited was confirmed, and then the probe published
    /// at `proven` came back. Said for every probe.
    fn up(&self, link: LinkId, proven: Instant);

    /// What this node published since the link was last proven may have reached only a part of the others, and nobody
    /// else knows it: it stood on a server that is no primary any more. Said before [`down`](Self::down); or after it
    /// with a time since when nothing proves anything, since another server may have been the primary.
    fn strayed(&self, link: LinkId, since: Option<Instant>);

    /// A link is not usable. `deaf`: messages may be missed from now on.
    fn down(&self, link: LinkId, reason: Arc<str>, deaf: bool);

    /// A topic of this kind is refused on a link: messages to it may be missed from now on, all others go on. Said
    /// each time it is asked for.
    fn refused(&self, link: LinkId, kind: TopicKind, reason: Arc<str>);

    /// Nothing is heard of this partition on its link any more, which is as good as it was for all others.
    fn stranded(&self, link: LinkId, partition: Partition);

    /// These partitions went from one link to another, on which they are heard when it is [`up`](Self::up), proven since
    /// then.
    fn moved(&self, partitions: PartitionSet, links: (LinkId, LinkId), at: Instant);

    /// As [`up`](Self::up), but for what is refused, which is not what nodes say to all nodes. Said for every probe.
    fn works(&self, link: LinkId, proven: Instant);

    /// Another process took over where this node published, and it does not know so many of what this node had kept there, the first
    /// of it about then.
    fn rolled_back(&self, messages: u64, since: Option<Instant>) {
        let _ = (messages, since);
    }

    /// So much of what was lost so is kept again.
    fn kept_again(&self, messages: u64) {
        let _ = messages;
    }

    /// So much that waited for the bus to be back was given up; it had been kept, and was lost, or never was.
    fn spool_dropped(&self, messages: u64, was_lost: bool) {
        let _ = (messages, was_lost);
    }

    /// A task of the bus panicked, and begins again.
    fn panicked(&self);
}

/// Whether a topic is heard already.
#[derive(Debug)]
pub(crate) enum Confirmation {
    /// Nobody has to wait: it is, or it cannot be for now, since the bus is down or refuses it. Then it is heard before
    /// the bus is up again.
    NotAwaited,
    /// Resolves when it is confirmed, or when it cannot be for now because the bus is down.
    Pending(oneshot::Receiver<()>),
}

impl Confirmation {
    /// Waits, but not for ever. Whether there was an end of it in time.
    pub(crate) async fn wait(self, deadline: Duration) -> bool {
        match self {
            Self::NotAwaited => true,
            Self::Pending(confirmed) => timeout(deadline, confirmed).await.is_ok(),
        }
    }
}
