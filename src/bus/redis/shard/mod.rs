//! One primary, as this node uses it: one connection that listens, one that publishes, and a small pool for questions.

use std::sync::{Arc, Once, Weak};
use std::time::Duration;

use bb8_redis::bb8::Pool;
use futures::FutureExt;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::advice::Advice;
use super::channels::Channels;
use super::connection::Connector;
use super::endpoint::OPENING;
use super::link::LinkContext;
use super::options::Target;
use super::past::room::Room;
use super::publisher::{PublishQueue, Publisher};
use super::quota::SharedLedgers;
use super::sentinel::{Seeker, Sentinels, Watcher};
use super::shared::SharedSubscriptions;
use super::subscriber::Subscriber;
use super::subscriptions::Subscriptions;
use super::supervise;
use super::topology::Topology;
use crate::bus::outage::LinkId;
use crate::bus::{BusSettings, Confirmation, Listener};
use crate::model::history::mark::Clock;
use crate::model::id::NodeId;
use crate::model::partition::Partition;
use crate::model::topic::Topic;

mod asking;
mod moving;
mod sending;

/// Connections for questions, beside the two of the bus itself.
const POOL: u32 = 2;

/// What all shards of one node have in common.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) node: NodeId,
    pub(super) settings: BusSettings,
    pub(super) tasks: TaskTracker,
    pub(super) ended: CancellationToken,
    /// For what waits for Redis to be back, where it does.
    pub(super) room: Option<Arc<Room>>,
}

impl Common {
    pub(super) fn new(node: NodeId, settings: BusSettings) -> Self {
        let room = settings.spool.map(|limits| Arc::new(Room::new(limits)));
        Self {
            node,
            room,
            settings,
            tasks: TaskTracker::new(),
            ended: CancellationToken::new(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Shard {
    pub(super) link: LinkId,
    /// What it is called where there are several.
    name: Option<Arc<str>>,
    /// The place of its name among those of all that share the topics, sorted.
    rank: u16,
    common: Arc<Common>,
    topology: Arc<Topology>,
    /// Who tells where the primary is, if somebody has to.
    sentinels: Option<Arc<Sentinels>>,
    advice: Arc<Advice>,
    channels: Channels,
    subscriptions: Arc<SharedSubscriptions>,
    publisher: Arc<Publisher>,
    /// Taken by [`start`](Self::start).
    queue: Mutex<Option<PublishQueue>>,
    connector: Connector,
    questions: Pool<Connector>,
    /// Of its own tasks, when it carries nothing any more.
    ended: CancellationToken,
}

impl Shard {
    /// The shard of a Redis alone, or with sentinels.
    pub(super) fn new(
        link: LinkId,
        name: Option<(u16, Arc<str>)>,
        target: &Target,
        common: Arc<Common>,
    ) -> Self {
        let (topology, sentinels) = match target {
            Target::Single(endpoint) => (Topology::single(endpoint.clone()), None),
            Target::Sentinel(target) => {
                let interval = common.settings.probe_interval;
                let sentinels = Sentinels::new(target.clone(), interval);
                (Topology::sought(), Some(Arc::new(sentinels)))
            }
            Target::Cluster(_) => unreachable!("a cluster has shards of its own"),
        };
        let own = Topic::node(common.node);
        let subscriptions = Subscriptions::new(common.settings.linger, own);
        let shard = Self::at(link, topology, target.user(), subscriptions, common);
        let (rank, name) = name.unzip();
        Self {
            rank: rank.unwrap_or_default(),
            name,
            sentinels,
            ..shard
        }
    }

    /// Of a primary of a Redis Cluster, or of what no primary is known to carry.
    pub(super) fn of_cluster(
        link: LinkId,
        name: Arc<str>,
        topology: Topology,
        user: Option<&str>,
        common: Arc<Common>,
    ) -> Self {
        let own = Topic::node(common.node);
        let subscriptions = Subscriptions::sharded(common.settings.linger, own);
        let shard = Self::at(link, topology, user, subscriptions, common);
        Self {
            name: Some(name),
            ..shard
        }
    }

    fn at(
        link: LinkId,
        topology: Topology,
        user: Option<&str>,
        subscriptions: Subscriptions,
        common: Arc<Common>,
    ) -> Self {
        let settings = &common.settings;
        let topology = Arc::new(topology);
        let connector = Connector::new(topology.clone(), settings.publish_timeout);
        let questions = Pool::builder()
            .max_size(POOL)
            .connection_timeout(settings.publish_timeout.min(OPENING))
            .build_unchecked(connector.clone());
        let dialect = topology.dialect();
        let advice = Advice::new(user, &settings.namespace, dialect);
        let advice = Arc::new(advice.keeping(!settings.histories.is_off()));
        let (publisher, mut queue) =
            Publisher::new(topology.clone(), advice.clone(), settings.publish_timeout);
        queue.room = common.room.clone();
        Self {
            link,
            name: None,
            rank: 0,
            topology,
            sentinels: None,
            advice,
            channels: Channels::new(settings.namespace.clone(), dialect),
            subscriptions: Arc::new(SharedSubscriptions::new(subscriptions)),
            publisher: Arc::new(publisher),
            queue: Mutex::new(Some(queue)),
            connector,
            questions,
            ended: common.ended.child_token(),
            common,
        }
    }

    /// Another connection to it.
    pub(super) fn connector(&self) -> Connector {
        Connector::new(self.topology.clone(), self.common.settings.publish_timeout)
    }

    pub(super) fn advice(&self) -> &Arc<Advice> {
        &self.advice
    }

    /// Starts its tasks: once, however often it is called.
    pub(super) fn start(&self, listener: &Weak<dyn Listener>, seats: Option<&Arc<SharedLedgers>>) {
        let Some(mut queue) = self.queue.lock().take() else {
            return;
        };
        // It ends by itself, when it has handed over what it had.
        queue.listener = Some(listener.clone());
        if let Some(room) = &self.common.room {
            room.count_by(listener);
        }
        queue.will_keep = !self.common.settings.histories.is_off();
        let (ended, told) = (self.common.ended.clone(), listener.clone());
        self.common
            .tasks
            .spawn(supervise("publisher", ended, told, queue, |queue| {
                queue.run().boxed()
            }));
        if let Some(sentinels) = &self.sentinels {
            self.follow(sentinels, listener);
        }
        let (ended, told) = (self.ended.clone(), listener.clone());
        let subscriber = Subscriber {
            link: self.link,
            name: self.name.clone(),
            topology: self.topology.clone(),
            context: Arc::new(LinkContext {
                node: self.common.node,
                channels: self.channels.clone(),
                advice: self.advice.clone(),
                probe_interval: self.common.settings.probe_interval,
                subscriptions: self.subscriptions.clone(),
            }),
            publisher: self.publisher.clone(),
            seats: seats.cloned(),
            listener: listener.clone(),
            told_no_role: Once::new(),
            began: false,
        };
        self.common
            .tasks
            .spawn(supervise("subscriber", ended, told, subscriber, |task| {
                task.run().boxed()
            }));
    }

    /// Keeps to the primary that the sentinels name.
    fn follow(&self, sentinels: &Arc<Sentinels>, listener: &Weak<dyn Listener>) {
        let (ended, told) = (self.ended.clone(), listener.clone());
        let seeker = Seeker::new(sentinels.clone(), self.topology.clone());
        self.common
            .tasks
            .spawn(supervise("sentinels", ended, told, seeker, |seeker| {
                seeker.run().boxed()
            }));
        let (ended, told) = (self.ended.clone(), listener.clone());
        let watcher = Watcher::new(sentinels.clone(), self.topology.clone());
        self.common.tasks.spawn(supervise(
            "sentinel watch",
            ended,
            told,
            watcher,
            |watcher| watcher.run().boxed(),
        ));
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    pub(super) fn topology(&self) -> &Topology {
        &self.topology
    }

    /// None where the topic has moved to another shard.
    pub(super) fn want(&self, topic: &Topic) -> Option<Confirmation> {
        self.subscriptions
            .change(|table| table.carries(topic.as_str()).then(|| table.want(topic)))
    }

    /// Whether it was here, and not on another shard.
    pub(super) fn release(&self, topic: &Topic) -> bool {
        self.subscriptions.change(|table| {
            let is_here = table.carries(topic.as_str());
            if is_here {
                table.release(topic, Instant::now());
            }
            is_here
        })
    }

    /// Who numbers what is kept of a topic.
    pub(super) fn clock(&self, topic: &Topic) -> Clock {
        let partition = self.channels.partition(topic);
        partition.map_or(
            Clock(self.rank),
            |partition| Clock(partition.index() as u16),
        )
    }

    /// Where it is kept, if that decides what may be published together.
    pub(super) fn partition(&self, topic: &Topic) -> Option<Partition> {
        self.channels.partition(topic)
    }

    pub(super) fn queued(&self) -> usize {
        self.publisher.queued()
    }

    pub(super) fn publish_timeout(&self) -> Duration {
        self.common.settings.publish_timeout
    }

    /// Whether it has ever been known to carry something.
    pub(super) fn was_primary(&self) -> bool {
        self.topology.astray_since().is_some()
    }
}
