//! The bus over Redis pub/sub, spread over as many primaries as there are.

mod address;
mod advice;
mod asked;
mod backlog;
mod backoff;
mod census;
mod channels;
mod cluster;
mod command;
mod connection;
mod dial;
mod endpoint;
mod explained;
mod fields;
mod link;
mod options;
mod outstanding;
mod past;
mod pipeline;
mod placement;
mod probe;
mod proof;
mod publication;
mod publisher;
mod queue;
mod quota;
mod refusals;
mod resp;
mod sentinel;
mod shard;
mod shared;
mod stride;
mod subscriber;
mod subscriptions;
#[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
#[path = "no_tls.rs"]
mod tls;
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
mod tls;
mod topology;
mod turns;

use std::error::Error as _;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use redis::{ErrorKind, RedisError, RedisResult, Value};
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::advice::Advice;
use self::census::CensusTopics;
#[cfg(any(fuzzing, axum_cluster_internals))]
pub(crate) use self::cluster::read_view;
use self::cluster::{Cartographer, Follower};
use self::explained::Ending;
use self::options::ClusterTarget;
pub use self::options::Redis;
pub(crate) use self::options::Target;
use self::placement::Placement;
use self::quota::{SeatWriter, SharedLedgers};
#[cfg(any(fuzzing, axum_cluster_internals))]
pub(crate) use self::resp::RespReader;
use self::shard::{Common, Shard};
use super::{
    Archive, Bus, BusSettings, Confirmation, Hearing, Interests, Links, Listener, Publish,
    Published,
};
use crate::bus::outage::LinkId;
use crate::bus::past::{Keep, Past, ReadLimits};
use crate::bus::scope::Size;
use crate::model::error::PublishError;
use crate::model::history::mark::{Clock, Marks};
use crate::model::history::token::Key;
use crate::model::id::NodeId;
use crate::model::partition::{Partition, PartitionSet};
use crate::model::topic::Topic;
use crate::quota::Seats;
use crate::tasks;

/// One node's end of the bus.
#[derive(Debug)]
pub(crate) struct RedisBus {
    common: Arc<Common>,
    placement: Arc<Placement>,
    census: CensusTopics,
    /// The names that decide who carries what, where they do.
    names: Vec<String>,
    /// Where sockets per user are limited.
    seats: Option<Arc<SharedLedgers>>,
    cluster: Option<FollowedCluster>,
}

/// Who tells where partitions are, if somebody has to.
#[derive(Debug)]
struct FollowedCluster {
    target: Arc<ClusterTarget>,
    hints: Arc<Notify>,
}

impl RedisBus {
    /// On each of these, which are no two the same.
    pub(crate) fn new(targets: &[Target], node: NodeId, settings: BusSettings) -> Self {
        let common = Arc::new(Common::new(node, settings));
        let (placement, cluster) = match targets {
            [Target::Cluster(target)] => {
                let (target, hints) = (target.clone(), Arc::new(Notify::new()));
                let nowhere = cluster::nowhere(&target, &common, &hints);
                (
                    Placement::unknown(nowhere),
                    Some(FollowedCluster { target, hints }),
                )
            }
            targets => (Self::place(targets, &common), None),
        };
        let census = match (targets, &cluster) {
            (_, Some(_)) => CensusTopics::by_partition(),
            ([_], None) => CensusTopics::one(),
            (_, None) => CensusTopics::by_shard(placement.links().into_iter().map(|(_, all)| all)),
        };
        let seats = |limit| Arc::new(placement.seats(limit, &common));
        let mut names = Vec::new();
        if targets.len() > 1 {
            names.extend(targets.iter().map(Target::to_string));
            names.sort();
        }
        Self {
            names,
            seats: common.settings.seats.map(seats),
            placement: Arc::new(placement),
            census,
            cluster,
            common,
        }
    }

    fn place(targets: &[Target], common: &Arc<Common>) -> Placement {
        let several = targets.len() > 1;
        let mut names: Vec<String> = targets.iter().map(Target::to_string).collect();
        names.sort();
        let shard = |(n, target): (usize, &Target)| {
            let (link, name) = (LinkId(n as u32), target.to_string());
            let rank = names.partition_point(|one| *one < name) as u16;
            let shown = several.then(|| (rank, name.as_str().into()));
            (
                name,
                Arc::new(Shard::new(link, shown, target, common.clone())),
            )
        };
        Placement::of(targets.iter().enumerate().map(shard).collect())
    }

    /// Keeps to how the cluster is divided.
    fn follow(
        &self,
        FollowedCluster { target, hints }: &FollowedCluster,
        listener: &Weak<dyn Listener>,
    ) {
        let cartographer = Cartographer::new(
            target.clone(),
            hints.clone(),
            self.common.settings.probe_interval,
        );
        let follower = Follower::new(
            target.clone(),
            self.common.clone(),
            self.placement.clone(),
            self.seats.clone(),
            cartographer.sight(),
            hints.clone(),
            listener.clone(),
        );
        let (ended, told) = (self.common.ended.clone(), listener.clone());
        self.common.tasks.spawn(supervise(
            "cartographer",
            ended,
            told,
            cartographer,
            |cartographer| cartographer.run().boxed(),
        ));
        let (ended, told) = (self.common.ended.clone(), listener.clone());
        self.common
            .tasks
            .spawn(supervise("follower", ended, told, follower, |follower| {
                follower.run().boxed()
            }));
    }

    fn start_seats(&self, seats: &Arc<SharedLedgers>, listener: &Weak<dyn Listener>) {
        let Common { node, settings, .. } = &*self.common;
        seats.start(listener.clone());
        let advice = self.placement.advice();
        let writer = || SeatWriter::new(seats.clone(), &advice, *node, settings);
        let (writer, mut leaving) = (writer(), writer());
        let (ended, told) = (self.common.ended.clone(), listener.clone());
        self.common.tasks.spawn(async move {
            supervise("seats", ended, told, writer, |writer| writer.run().boxed()).await;
            leaving.leave().await;
        });
    }
}

impl Bus for RedisBus {
    fn start(&self, listener: Weak<dyn Listener>) {
        for shard in self.placement.shards() {
            shard.start(&listener, self.seats.as_ref());
        }
        if let Some(cluster) = &self.cluster {
            self.follow(cluster, &listener);
        }
        if let Some(seats) = &self.seats {
            self.start_seats(seats, &listener);
        }
        self.common.tasks.close();
    }

    fn censuses(&self) -> Vec<Topic> {
        self.census.all()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        self.common.ended.cancel();
        self.common.tasks.wait().boxed()
    }
}

impl Interests for RedisBus {
    fn want(&self, topic: &Topic) -> Confirmation {
        self.placement.want(topic)
    }

    fn release(&self, topic: &Topic) {
        self.placement.release(topic);
    }

    fn prove_anew(&self) {
        for shard in self.placement.shards() {
            shard.prove_anew();
        }
    }

    fn seats(&self) -> Option<&dyn Seats> {
        self.seats.as_deref().map(|seats| seats as &dyn Seats)
    }
}

impl Publish for RedisBus {
    fn publish(
        &self,
        topics: SmallVec<[Topic; 1]>,
        envelope: Bytes,
        size: Size,
        keep: Option<Keep>,
    ) -> BoxFuture<'static, Result<Published, PublishError>> {
        self.placement.publish(topics, &envelope, size, keep)
    }

    fn census(&self, topic: &Topic) -> Topic {
        self.census.of(Partition::of(topic.as_str()))
    }

    fn everywhere(&self) -> Vec<Topic> {
        let nodes = Topic::nodes();
        let home = Partition::of(nodes.as_str());
        let links = self.placement.links().into_iter();
        let others = links.filter(|(_, carried)| !carried.contains(home));
        let others = others.filter_map(|(_, carried)| carried.iter().next());
        let others = others.map(|partition| self.census.of(partition));
        std::iter::once(nodes).chain(others).collect()
    }

    fn queued(&self) -> usize {
        self.placement
            .shards()
            .iter()
            .map(|shard| shard.queued())
            .sum()
    }

    fn spooled(&self) -> usize {
        self.common.room.as_ref().map_or(0, |room| room.messages())
    }

    fn drained(&self) -> BoxFuture<'_, ()> {
        async {
            if let Some(room) = &self.common.room {
                room.emptied().await;
            }
        }
        .boxed()
    }
}

impl Archive for RedisBus {
    fn clock(&self, topic: &Topic) -> Clock {
        self.placement.clock(topic)
    }

    fn read<'a>(
        &'a self,
        topics: &'a [Topic],
        since: Option<&'a Marks>,
        limits: ReadLimits,
    ) -> BoxFuture<'a, Result<Past, Arc<str>>> {
        self.placement.read(topics, since, limits).boxed()
    }

    fn key(&self) -> BoxFuture<'_, Result<Key, Arc<str>>> {
        self.placement.key().boxed()
    }
}

impl Links for RedisBus {
    fn links(&self) -> Vec<(LinkId, PartitionSet)> {
        self.placement.links()
    }

    fn shared_by(&self) -> &[String] {
        &self.names
    }

    fn probe(&self, link: LinkId) {
        let shards = self.placement.shards();
        if let Some(shard) = shards.iter().find(|shard| shard.link == link) {
            shard.probe_now();
        }
    }
}

impl Hearing for RedisBus {
    fn listening<'a>(&'a self, topics: &'a [Topic]) -> BoxFuture<'a, Result<Vec<usize>, Arc<str>>> {
        self.placement.listening(topics).boxed()
    }
}

impl Drop for RedisBus {
    fn drop(&mut self) {
        self.common.ended.cancel();
    }
}

/// What is wrong with a list of Redises that share the topics.
pub(crate) fn check_several(targets: &[Target]) -> Result<(), String> {
    let several = targets.len() > 1;
    let mut names: Vec<String> = targets.iter().map(Target::to_string).collect();
    names.sort();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("shards: {} stands twice in the list", pair[0])),
        None if several && targets.iter().any(Target::is_cluster) => {
            Err("shards: a Redis Cluster spreads topics by itself: use it alone".into())
        }
        None if names.is_empty() => Err("shards: the list is empty".into()),
        None => Ok(()),
    }
}

/// Runs a task until it returns or the bus ends.
async fn supervise<T>(
    name: &'static str,
    ended: CancellationToken,
    listener: Weak<dyn Listener>,
    mut state: T,
    run: impl for<'a> Fn(&'a mut T) -> BoxFuture<'a, ()>,
) {
    let panicked = || {
        if let Some(listener) = listener.upgrade() {
            listener.panicked();
        }
    };
    tasks::supervise(name, &ended, panicked, &mut state, run).await;
}

/// The answers to a question, or why there are none.
async fn until_answered(
    asking: impl Future<Output = RedisResult<Vec<RedisResult<Value>>>>,
    driver: impl Future<Output = ()>,
    ending: &Ending,
) -> Result<Vec<RedisResult<Value>>, String> {
    let answers = tokio::select! {
        answers = asking => answers.map_err(|error| words(&error)),
        () = driver => Err("it closed the connection".into()),
    };
    answers.map_err(|words| ending.told().map_or(words, str::to_owned))
}

/// A failure in Redis' own words, and what to do about it where that is known.
fn explain(advice: &Advice, error: &RedisError) -> Arc<str> {
    advice.on(&words(error))
}

fn words(error: &RedisError) -> String {
    match (error.kind(), error.code(), error.detail()) {
        (_, Some(code), Some(detail)) => format!("{code} {detail}"),
        (ErrorKind::Io, ..) => io_words(error),
        _ => error.to_string(),
    }
}

fn io_words(error: &RedisError) -> String {
    let source = error.source().map(ToString::to_string);
    source.unwrap_or_else(|| error.to_string())
}
