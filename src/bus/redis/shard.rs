//! One primary, as this node uses it: one connection that listens, one that publishes, and a small pool for questions.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Once, Weak};
use std::time::Duration;

use bb8_redis::bb8::{Pool, RunError};
use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::advice::Advice;
use super::channels::Channels;
use super::connection::{Connector, Counted};
use super::endpoint::OPENING;
use super::link::LinkContext;
use super::options::Target;
use super::past::read::{ReadCall, Readings, Wanted};
use super::past::room::Room;
use super::past::{Keeping, KeptList};
use super::publication::{Taken, Told};
use super::publisher::{PublishQueue, Publisher, shut_down};
use super::quota::SharedLedgers;
use super::sentinel::{Seeker, Sentinels, Watcher};
use super::shared::SharedSubscriptions;
use super::subscriber::Subscriber;
use super::subscriptions::Subscriptions;
use super::topology::Topology;
use super::{explain, supervise, words};
use crate::bus::outage::LinkId;
use crate::bus::past::{Keep, ReadLimits, TopicPast};
use crate::bus::scope::Size;
use crate::bus::{BusSettings, Confirmation, Later, Listener, Published};
use crate::model::error::PublishError;
use crate::model::history::mark::{Clock, Mark, Marks};
use crate::model::history::token::Key;
use crate::model::id::NodeId;
use crate::model::partition::{Partition, PartitionSet};
use crate::model::topic::Topic;

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
    /// Of a Redis alone, or with sentinels.
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

    /// Once, however often it is called.
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

    /// Whether a partition that was here is not handed over in full.
    pub(super) fn is_departing(&self, partition: Partition) -> bool {
        self.publisher.queue().is_departing(partition)
    }

    /// Partitions are here that were nowhere before.
    pub(super) fn carry(&self, partitions: PartitionSet) {
        self.subscriptions.with(|table| table.expect(partitions));
    }

    /// Partitions are about to move here from another shard, and what is published here is of this era.
    pub(super) fn expect(&self, partitions: PartitionSet, era: Option<NonZeroU32>) {
        self.subscriptions.with(|table| table.expect(partitions));
        let queue = self.publisher.queue();
        partitions
            .iter()
            .for_each(|partition| queue.hold(partition, era));
    }

    /// Of which partitions messages may still come from here.
    pub(super) fn heard(&self) -> PartitionSet {
        self.subscriptions.with(|table| table.heard())
    }

    /// Partitions move to another shard, which expects them, and where everybody goes already; since then they are there.
    pub(super) fn hand_over(&self, partitions: PartitionSet, to: &Self) -> Instant {
        let (ours, theirs) = (self.publisher.queue(), to.publisher.queue());
        partitions
            .iter()
            .for_each(|partition| ours.depart(partition, theirs));
        let take_out = |table: &mut Subscriptions| table.take_out(partitions, Instant::now());
        let moving = self.subscriptions.change(take_out);
        to.subscriptions.change(|table| {
            table.take_in(moving);
            Instant::now()
        })
    }

    pub(super) fn probe_now(&self) {
        self.topology.probe_now();
    }

    /// What was stranded of these partitions is here after all, unless that was a moment ago: a primary that is a replica by
    /// now would take every subscription, and pass on late what the new one says.
    pub(super) fn keep(&self, partitions: PartitionSet) {
        if self.topology.is_doubtful() {
            return;
        }
        self.subscriptions
            .change(|table| table.unstrand(partitions, Instant::now()));
    }

    /// Since when what was published here may have gone astray, if it is no primary any more.
    pub(super) fn astray_since(&self) -> Option<Instant> {
        self.topology.astray_since()
    }

    /// Everything was [handed over](Self::hand_over), or will be when it is in no pipeline any more: what is open leaves.
    pub(super) fn retire(&self) {
        self.ended.cancel();
        self.topology.retire();
        self.publisher.queue().retire();
    }

    /// Somebody goes on unheard, here or on another shard.
    pub(super) fn prove_anew(&self) {
        self.subscriptions.change(|table| {
            if table.is_behind() {
                table.confirm_anew();
            }
        });
    }

    /// Queued by the call. In a Redis Cluster they are of one partition.
    pub(super) fn publish(
        &self,
        mut topics: SmallVec<[Topic; 1]>,
        envelope: Bytes,
        size: Size,
        keep: Option<Keep>,
    ) -> impl Future<Output = Result<Published, PublishError>> + Send + use<> {
        let mut channels: SmallVec<[String; 1]> =
            topics.iter().map(|topic| self.channels.of(topic)).collect();
        let kept = keep.map(|keep| self.keeping(&topics, keep, &mut channels));
        let (first, keep) = kept.unzip();
        let first = first.as_ref().or(topics.first());
        let partition = first.and_then(|topic| self.channels.partition(topic));
        let clock = first.map_or(Clock::default(), |topic| self.clock(topic));
        let (subscriptions, topology) = (self.subscriptions.clone(), self.topology.clone());
        topics.retain(|topic| subscriptions.is_confirmed(topic));
        let publishing = self
            .publisher
            .publish(channels, envelope, size, partition, keep);
        async move {
            let published = publishing.await;
            if published.is_err() {
                topology.probe_now();
            }
            let Told {
                receivers,
                mark,
                later,
            } = published?;
            // Those that heard it surely: who subscribed meanwhile perhaps did not.
            let mut told = move |receivers: usize, mark: Option<Mark>| {
                topics.retain(|topic| subscriptions.is_confirmed(topic));
                Published {
                    nodes: receivers.saturating_sub(topics.len()),
                    comes_back: !topics.is_empty(),
                    mark: mark.map(|mark| (clock, mark)),
                    later: None,
                }
            };
            let Some(later) = later else {
                return Ok(told(receivers, mark));
            };
            let later = async move {
                let Taken { receivers, mark } = later.await.unwrap_or_else(|_| Err(shut_down()))?;
                Ok(told(receivers, mark))
            };
            Ok(Published {
                later: Some(Later::new(later)),
                ..Published::default()
            })
        }
    }

    /// How what is sent to these is kept, with empty channels for what is kept without being published. And a topic that is.
    fn keeping(
        &self,
        topics: &[Topic],
        keep: Keep,
        channels: &mut SmallVec<[String; 1]>,
    ) -> (Topic, Box<Keeping>) {
        let histories = self.common.settings.histories;
        let list = |topic: &Topic| {
            let history = histories.of(topic.kind())?;
            Some(KeptList {
                key: self.channels.list(topic),
                messages: history.messages,
                lifetime: history.lifetime_millis(),
            })
        };
        let is_union = matches!(keep, Keep::Union(_));
        let spools = self.common.room.is_some() && !matches!(keep, Keep::Silent(_));
        let (lists, kept) = match keep {
            Keep::Each => (topics.iter().map(list).collect(), None),
            Keep::Union(kept) | Keep::Silent(kept) => {
                let of = |topic| kept.contains(topic).then(|| list(topic)).flatten();
                let mut lists: SmallVec<[_; 1]> = topics.iter().map(of).collect();
                for topic in kept.iter().filter(|topic| !topics.contains(topic)) {
                    lists.push(list(topic));
                    channels.push(String::new());
                }
                (lists, kept.into_iter().next())
            }
        };
        let first = kept.or_else(|| topics.first().cloned());
        let first = first.unwrap_or_else(Topic::all);
        let clock = self.channels.clock(&first);
        let keeping = Keeping {
            clock,
            lists,
            is_union,
            spools,
            doubt: None,
        };
        (first, Box::new(keeping))
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

    /// Asks how many hear each topic; also which partitions are not here, so that nobody is found.
    pub(super) async fn listening<'a>(
        &self,
        topics: impl IntoIterator<Item = &'a Topic>,
    ) -> Result<(Vec<usize>, PartitionSet), Arc<str>> {
        let (mut channels, mut partitions) = (Vec::new(), PartitionSet::new());
        for topic in topics {
            channels.push(self.channels.of(topic));
            partitions = partitions | self.channels.partition(topic).into_iter().collect();
        }
        let marks = partitions.iter().map(|one| self.channels.mark(one));
        let (counts, here) = self.ask(&channels, &marks.collect::<Vec<_>>()).await?;
        let gone = partitions.iter().zip(here).filter(|(_, here)| !here);
        let gone: PartitionSet = gone.map(|(partition, _)| partition).collect();
        if !gone.is_empty() {
            self.topology.missed();
        }
        Ok((counts, gone))
    }

    /// What came to these of one partition, each at its place, since the mark of their clock; without marks, whatever is kept.
    pub(super) async fn read(
        &self,
        topics: &[(usize, &Topic)],
        since: Option<&Marks>,
        limits: ReadLimits,
    ) -> Result<Vec<(usize, TopicPast)>, Arc<str>> {
        let mut calls = BTreeMap::new();
        for (place, topic) in topics {
            let Some(history) = self.common.settings.histories.of(topic.kind()) else {
                continue;
            };
            let clock = self.clock(topic);
            let call = calls.entry(clock).or_insert_with(|| ReadCall {
                clock,
                clock_key: self.channels.clock(topic).to_string(),
                since: since.and_then(|marks| marks.of(clock)),
                is_lost: since.is_some_and(|marks| marks.of(clock).is_none()),
                wanted: Vec::new(),
            });
            call.wanted.push(Wanted {
                place: *place,
                key: self.channels.list(topic),
                keep: history.keep_millis(),
            });
        }
        let mut readings = Readings::new(calls.into_values(), limits);
        loop {
            let deadline = Instant::now() + self.common.settings.publish_timeout;
            let mut connection = match timeout_at(deadline, self.questions.get()).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(RunError::User(error))) => return Err(explain(&self.advice, &error)),
                Ok(Err(RunError::TimedOut)) | Err(_) => return Err(self.unopened()),
            };
            match timeout_at(deadline, connection.read(&mut readings)).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return Ok(readings.answers),
                Ok(Err(error)) => {
                    let words = words(&error);
                    if self.topology.dialect().is_elsewhere(&words) {
                        self.topology.missed();
                    }
                    return Err(self.advice.on(&words));
                }
                Err(_) => return Err("redis did not answer in time".into()),
            }
        }
    }

    /// What positions are signed with, kept beside the clock of this topic.
    pub(super) async fn key(&self, topic: &Topic) -> Result<Key, Arc<str>> {
        let clock = self.channels.clock(topic);
        let deadline = Instant::now() + self.common.settings.publish_timeout;
        let mut connection = match timeout_at(deadline, self.questions.get()).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(RunError::User(error))) => return Err(explain(&self.advice, &error)),
            Ok(Err(RunError::TimedOut)) | Err(_) => return Err(self.unopened()),
        };
        match timeout_at(deadline, connection.key(&clock)).await {
            Ok(Ok(key)) => Ok(key),
            Ok(Err(error)) => Err(self.advice.on(&words(&error))),
            Err(_) => Err("redis did not answer in time".into()),
        }
    }

    pub(super) fn publish_timeout(&self) -> Duration {
        self.common.settings.publish_timeout
    }

    /// Whether it has ever been known to carry something.
    pub(super) fn was_primary(&self) -> bool {
        self.topology.astray_since().is_some()
    }

    /// Once more on a new connection, if that which there was is of no use.
    async fn ask(&self, channels: &[String], marks: &[String]) -> Result<Counted, Arc<str>> {
        let deadline = Instant::now() + self.common.settings.publish_timeout;
        let mut may_repeat = true;
        loop {
            let mut connection = match timeout_at(deadline, self.questions.get()).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(RunError::User(error))) => return Err(explain(&self.advice, &error)),
                Ok(Err(RunError::TimedOut)) | Err(_) => return Err(self.unopened()),
            };
            match timeout_at(deadline, connection.subscribers(channels, marks)).await {
                Ok(Ok(counts)) => return Ok(counts),
                Ok(Err(error)) if may_repeat && connection.is_dead() => {
                    tracing::debug!(reason = %words(&error), "a question is asked again on a new connection");
                    self.topology.probe_now();
                    may_repeat = false;
                }
                Ok(Err(error)) => return Err(explain(&self.advice, &error)),
                // The connection may have had too little time: it knows itself for how long it owes an answer.
                Err(_) => return Err("redis did not answer in time".into()),
            }
        }
    }

    fn unopened(&self) -> Arc<str> {
        match self.connector.failure() {
            Some(words) => self.advice.on(&words),
            None => "redis accepted no connection in time".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::bus::redis::options::Redis;
    use crate::bus::redis::{advice, command};
    use crate::model::history::Histories;
    use crate::model::topic::Namespace;

    const PRIMARY: &str = "*2\r\n$4\r\nrole\r\n$6\r\nmaster\r\n";
    const REPLICA: &str = "*2\r\n$4\r\nrole\r\n$5\r\nslave\r\n";
    const NOBODY: &str = "*2\r\n$1\r\nx\r\n:0\r\n";
    const SOMEBODY: &str = "*2\r\n$1\r\nx\r\n:1\r\n";

    /// Asks a server that answers the first question on its nth connection by the nth of these.
    async fn ask(answers: Vec<String>) -> Result<Vec<usize>, Arc<str>> {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", server.local_addr().unwrap());
        let serving = async move {
            let mut connections = Vec::new();
            for answer in answers {
                let (mut connection, _) = server.accept().await.unwrap();
                let mut question = [0; 1024];
                let read = connection.read(&mut question).await.unwrap();
                assert!(
                    question[..read].starts_with(command::HELLO),
                    "the role is asked first"
                );
                connection.write_all(answer.as_bytes()).await.unwrap();
                if !answer.is_empty() {
                    connections.push(connection);
                }
            }
            std::future::pending::<()>().await;
        };
        let settings = BusSettings {
            namespace: Namespace::new("x").unwrap(),
            publish_timeout: Duration::from_secs(20),
            probe_interval: Duration::from_secs(5),
            lease: Duration::from_secs(15),
            linger: Duration::ZERO,
            seats: None,
            histories: Histories::default(),
            spool: None,
        };
        let common = Common::new(NodeId::random(), settings);
        let target = Redis::at(url).unwrap().target().unwrap();
        let shard = Shard::new(LinkId::ONLY, None, &target, Arc::new(common));
        let channels = ["x".to_owned()];
        tokio::select! {
            counted = shard.ask(&channels, &[]) => counted.map(|(counts, _)| counts),
            () = serving => unreachable!("it serves for ever"),
        }
    }

    #[tokio::test]
    async fn a_question_to_the_wrong_server_is_asked_once_more() {
        let good = || format!("{PRIMARY}{SOMEBODY}");
        for wrong in [
            format!("{REPLICA}{NOBODY}"),
            format!("-LOADING Redis is loading\r\n{NOBODY}"),
            format!("{PRIMARY}-MASTERDOWN Link with MASTER is down\r\n"),
            format!("{PRIMARY}-NOAUTH Authentication required.\r\n"),
            "nonsense\r\n".to_owned(),
            String::new(),
        ] {
            assert_eq!(
                ask(vec![wrong.clone(), good()]).await,
                Ok(vec![1]),
                "{wrong}"
            );
            let refused = ask(vec![wrong.clone(), format!("{REPLICA}{NOBODY}")]).await;
            assert_eq!(refused, Err(advice::REPLICA.into()), "{wrong}");
        }
    }

    #[tokio::test]
    async fn what_any_server_would_say_is_asked_once() {
        for (answer, expected) in [
            (format!("{PRIMARY}{NOBODY}"), Ok(vec![0])),
            (format!("-NOPERM no hello\r\n{NOBODY}"), Ok(vec![0])),
            (
                format!("-ERR unknown command 'HELLO'\r\n{NOBODY}"),
                Ok(vec![0]),
            ),
            (
                format!("{PRIMARY}-NOPERM no pubsub\r\n"),
                Err("NOPERM no pubsub"),
            ),
        ] {
            let counts = ask(vec![answer]).await;
            match expected {
                Ok(expected) => assert_eq!(counts, Ok(expected)),
                Err(words) => assert!(counts.unwrap_err().starts_with(words)),
            }
        }
    }
}
