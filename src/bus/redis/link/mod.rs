//! The rules of the connection that listens, from its first byte to its last, without any I/O: what is said and when,
//! what a reply means, and when the bus works.
//!
//! Time, replies and what became of a probe are arguments; what is to be written, published and told is returned. So
//! every fault that Redis, the link and the publisher have can be tried in any order (see the tests), and the task
//! that owns a link only pumps ([`Subscriber`](super::subscriber::Subscriber)).
//!
//! Nothing is subscribed before Redis has said who it is, since a replica takes every SUBSCRIBE. A probe proves
//! something only if it is published when everything for which nobody waits is confirmed; and the bus is up only when
//! it came back, was taken on a server that is no replica, and nothing is refused. What Redis refuses ends the link
//! only where the link is of no use without it.
//!
//! ```text
//!        OK            its role, or none              all is confirmed
//! Login -----> Greeting ----------------> Restoring ------------------> Proving --> the probe is back: up
//!                                             ^                            |
//!                                             +----------------------------+
//!                                  somebody lost patience, or Redis ended a subscription: down
//! ```
//! From each it is lost: by silence where something is owed, by two probes that did not come back, by a replica, and
//! by an error that is no topic's.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

pub(super) use self::event::{Event, Lost};
use super::advice::{Advice, is_unfit, is_wrong_server, tells_no_role, without_arguments};
use super::channels::Channels;
use super::command::{Dialect, HELLO};
use super::outstanding::Verb;
use super::past::unnumbered;
use super::proof::Proof;
use super::resp::Reply;
use super::shared::SharedSubscriptions;
use super::subscriptions::{Answered, Refusal, Subscriptions};
use crate::model::error::PublishError;
use crate::model::id::NodeId;
use crate::model::partition::Partition;
use crate::model::topic::Topic;

mod event;
mod timing;

/// Topics in one SUBSCRIBE: 100,000 take 0.18 s in batches of 1,000 and 8 s one by one; all in one
/// command would get the connection killed.
const BATCH: usize = 1000;
/// With so many unanswered, no more are sent: whoever comes during a restore waits behind these only, and
/// Redis, which cuts off a subscriber that has not read 32 MB, keeps no more answers for us.
pub(super) const UNANSWERED: usize = 4 * BATCH;
/// How long Redis may answer nothing while answers are owed.
pub(super) const SILENCE: Duration = Duration::from_secs(5);

const IMPATIENT: &str = "redis does not confirm subscriptions in time";
const ENDED: &str = "redis ended a subscription unasked: it is asked for anew";

/// What all links of one node have in common.
#[derive(Debug)]
pub(super) struct LinkContext {
    pub(super) node: NodeId,
    pub(super) channels: Channels,
    pub(super) advice: Arc<Advice>,
    pub(super) probe_interval: Duration,
    pub(super) subscriptions: Arc<SharedSubscriptions>,
}

/// One connection. Dropping it ends it, for those who wait too.
pub(super) struct Link {
    context: Arc<LinkContext>,
    own: Topic,
    stage: Stage,
    /// Redis refuses a topic that somebody wants, or did until a moment ago: that is told, and nothing is proven.
    refused: bool,
    /// Topics of another primary are not confirmed here: what comes back proves nothing for them.
    expects: bool,
    /// What is said first.
    greeting: BytesMut,
    /// Until when Redis must have said who it is.
    opened_until: Instant,
    /// When Redis last answered in turn, or began to owe an answer. What else it says is no sign of life:
    /// messages go on when a single answer was lost, and so do the answers to what was asked later.
    answered_at: Instant,
    proof: Proof,
    /// Why everything is proven anew, if not for want of patience.
    because: Option<&'static str>,
    wake: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// AUTH is not answered.
    Login,
    /// HELLO is not answered: nothing is subscribed.
    Greeting,
    /// Something for which nobody waits is not confirmed.
    Restoring,
    /// All of it is: probes prove something.
    Proving,
}

impl Link {
    /// On a connection on which nothing was said yet. `auth` logs in, if that is needed; `number` is a random one,
    /// so that no probe of an earlier connection is taken for one of this.
    pub(super) fn new(
        context: Arc<LinkContext>,
        auth: Option<BytesMut>,
        number: u64,
        opened_until: Instant,
        now: Instant,
    ) -> Self {
        context.subscriptions.with(Subscriptions::connected);
        let stage = match auth {
            Some(_) => Stage::Login,
            None => Stage::Greeting,
        };
        let mut greeting = auth.unwrap_or_default();
        greeting.extend_from_slice(HELLO);
        Self {
            own: Topic::node(context.node),
            stage,
            refused: false,
            expects: false,
            greeting,
            opened_until,
            answered_at: now,
            proof: Proof::new(context.node, context.probe_interval, number, now),
            because: None,
            wake: now,
            context,
        }
    }

    /// Redis said something.
    pub(super) fn handle<'r>(
        &mut self,
        reply: Reply<'r>,
        now: Instant,
    ) -> Result<Option<Event<'r>>, Lost> {
        match reply {
            Reply::Message { channel, payload } => Ok(self.heard(channel, payload, now)),
            Reply::Oversized => Ok(Some(Event::Garbage)),
            Reply::Subscribed { channel } => Ok(self.answered(Verb::Subscribe, channel, now)),
            Reply::Unsubscribed { channel } => Ok(self.answered(Verb::Unsubscribe, channel, now)),
            Reply::Hello { role, mode } => {
                match is_unfit(self.context.channels.dialect(), role, mode) {
                    Some(unfit) => Err(unfit.into()),
                    None => Ok(self.greeted(None)),
                }
            }
            Reply::Error(words) => self.refuse(&String::from_utf8_lossy(words), now),
            // What publishes is answered so; the two are out of step.
            Reply::Integer(_) | Reply::Array(_) => Err("redis answered what nobody asked".into()),
            Reply::Other | Reply::Bulk(_) => {
                if self.stage == Stage::Login {
                    self.stage = Stage::Greeting;
                }
                Ok(None)
            }
        }
    }

    fn heard<'r>(
        &mut self,
        channel: &'r [u8],
        payload: &'r [u8],
        now: Instant,
    ) -> Option<Event<'r>> {
        let Some((topic, _)) = self.context.channels.topic(channel) else {
            return Some(Event::Garbage);
        };
        if topic != self.own.as_str() || !self.proof.returned(payload, now) {
            return Some(match self.is_superseded(topic, payload) {
                true => Event::Superseded,
                false => Event::Heard { topic, payload },
            });
        }
        self.prove()
    }

    /// What is kept and comes from where its partition is no more: what of it has survived is read at its new place, and
    /// what has not would come behind what is newer.
    fn is_superseded(&self, topic: &str, payload: &[u8]) -> bool {
        let context = &self.context;
        context.channels.dialect() == Dialect::Sharded
            && unnumbered(payload).0.is_some()
            && !context.subscriptions.with(|table| table.carries(topic))
    }

    fn answered<'r>(&mut self, verb: Verb, channel: &'r [u8], now: Instant) -> Option<Event<'r>> {
        let (topic, tag) = self.context.channels.topic(channel)?;
        let subscriptions = &self.context.subscriptions;
        if verb == Verb::Unsubscribe && topic == self.own.as_str() && !self.is_probed(tag) {
            // It is probed elsewhere by now.
            return None;
        }
        let answer = |table: &mut Subscriptions| {
            let answered = table.answered(verb, topic, now);
            (answered, table.is_newly_heard(topic))
        };
        let (answered, is_newly_heard) = subscriptions.with(answer);
        match answered {
            Answered::InTurn => {
                self.answered_at = now;
                return is_newly_heard.then_some(Event::Confirmed { topic });
            }
            Answered::Ended => {
                self.because = Some(ENDED);
                return Some(Event::Moved { topic });
            }
            Answered::Stranded => {
                let partition = match topic == self.own.as_str() {
                    true => subscriptions.with(|table| table.probed()),
                    false => Some(Partition::of(topic)),
                };
                return Some(Event::Stranded { partition });
            }
            Answered::OutOfTurn | Answered::Stray => {}
        }
        None
    }

    fn greeted(&mut self, untold: Option<Arc<str>>) -> Option<Event<'static>> {
        matches!(self.stage, Stage::Login | Stage::Greeting).then(|| {
            self.stage = Stage::Restoring;
            Event::Greeted { untold }
        })
    }

    /// An error is the answer to a command, and concerns what that was about.
    fn refuse(&mut self, words: &str, now: Instant) -> Result<Option<Event<'static>>, Lost> {
        match self.stage {
            Stage::Greeting if tells_no_role(words) => {
                return Ok(self.greeted(Some(without_arguments(words).into())));
            }
            Stage::Restoring | Stage::Proving if self.is_elsewhere(words) => {
                return Ok(self.misplaced(words, now));
            }
            Stage::Restoring | Stage::Proving if !is_wrong_server(words) => {}
            _ => return Err(self.context.advice.on(words).into()),
        }
        let subscriptions = &self.context.subscriptions;
        match subscriptions.with(|table| table.refused(now)) {
            Refusal::Vital => Err(self.context.advice.on(words).into()),
            Refusal::Undecided => {
                self.answered_at = now;
                Ok(None)
            }
            Refusal::Topic(topic) => {
                (self.answered_at, self.refused) = (now, true);
                let reason = self.context.advice.on(words);
                Ok(Some(Event::Refused { topic, reason }))
            }
        }
    }

    fn is_elsewhere(&self, words: &str) -> bool {
        self.context.channels.dialect().is_elsewhere(words)
    }

    /// `MOVED <slot> <host:port>`.
    fn misplaced(&mut self, words: &str, now: Instant) -> Option<Event<'static>> {
        let slot = words.split(' ').nth(1)?.parse().ok()?;
        let subscriptions = &self.context.subscriptions;
        let partition = Some(subscriptions.with(|table| table.misplaced(slot))?);
        self.answered_at = now;
        Some(Event::Stranded { partition })
    }

    /// Whether this is the tag of the channel on which the link is probed.
    fn is_probed(&self, tag: &str) -> bool {
        let probed = self.context.subscriptions.with(|table| table.probed());
        probed.is_none_or(|partition| partition.tag() == tag)
    }

    /// The channel on which the link is probed.
    pub(super) fn probed(&self) -> String {
        let partition = self.context.subscriptions.with(|table| table.probed());
        self.context.channels.at(partition, &self.own)
    }

    /// A probe to be published on the node's own channel. What becomes of it is told by
    /// [`probe_published`](Self::probe_published), unless the next one is due before.
    pub(super) fn poll_probe(&mut self) -> Option<Bytes> {
        self.proof.poll()
    }

    /// Redis took the last probe, for so many, or did not.
    pub(super) fn probe_published(
        &mut self,
        took: Result<usize, PublishError>,
        now: Instant,
    ) -> Result<Option<Event<'static>>, Lost> {
        match took {
            // Whichever of the two was left behind: what was published there reached nobody who moved.
            Ok(0) => Err(Lost {
                reason: "the publisher is connected to another Redis than the subscriber".into(),
                strayed: true,
            }),
            Ok(_) => {
                self.proof.taken();
                Ok(self.prove())
            }
            Err(error) if error.on_replica => Err(Lost {
                reason: error.reason,
                strayed: true,
            }),
            Err(error) if self.is_elsewhere(&error.reason) => {
                self.proof.failed(now);
                let partition = None;
                Ok(Some(Event::Stranded { partition }))
            }
            Err(error) => {
                self.proof.failed(now);
                let (reason, deaf) = (error.reason, false);
                Ok(Some(Event::Down { reason, deaf }))
            }
        }
    }

    /// Something looks wrong: probe now.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.proof.hurry(now);
    }

    /// The bus works, if a probe has come back and nobody goes on unheard; if somebody is refused, only the link.
    fn prove(&mut self) -> Option<Event<'static>> {
        let proven = self.proof.proven()?;
        let works = |table: &mut Subscriptions| table.is_restored() && table.has_arrived();
        let works = !self.expects && self.context.subscriptions.with(works);
        works.then_some(match self.refused {
            true => Event::Works {
                proven: self.hears_nodes().then_some(proven),
            },
            false => Event::Up { proven },
        })
    }

    fn hears_nodes(&self) -> bool {
        let is_refused = |table: &mut Subscriptions| table.is_refused(&Topic::nodes());
        !self.context.subscriptions.with(is_refused)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.context.subscriptions.with(Subscriptions::disconnected);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet, VecDeque};

    use proptest::prelude::*;
    use tokio::sync::oneshot;
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;
    use crate::bus::Confirmation;
    use crate::bus::redis::command;
    use crate::model::partition::PartitionSet;
    use crate::model::topic::Namespace;

    const MS: Duration = Duration::from_millis(1);
    const S: Duration = Duration::from_secs(1);
    const INTERVAL: Duration = Duration::from_secs(4);
    const LINGER: Duration = Duration::from_secs(2);
    const OPENING: Duration = Duration::from_secs(10);
    const NOPERM: &str = "NOPERM No permissions to access a channel";

    fn topic(n: u8) -> Topic {
        Topic::room(&n.to_string()).unwrap()
    }

    /// What Redis says.
    #[derive(Debug, Clone, PartialEq)]
    enum Said {
        Ok,
        Hello(Option<&'static str>),
        Error(&'static str),
        Subscribed(Topic),
        Unsubscribed(Topic),
        /// A subscription was ended that nobody had asked to end.
        Ended(Topic),
        Message(Topic, Bytes),
    }

    /// What the link tells.
    #[derive(Debug, Clone, PartialEq)]
    enum Told {
        Greeted(bool),
        Heard(String, Vec<u8>),
        /// Not noted: the table says it.
        Confirmed,
        Garbage,
        Up(Instant),
        Works,
        Down(String, bool),
        Refused(Topic),
        Moved(String),
        Stranded,
    }

    impl From<Event<'_>> for Told {
        fn from(event: Event<'_>) -> Self {
            match event {
                Event::Greeted { untold } => Self::Greeted(untold.is_none()),
                Event::Heard { topic, payload } => Self::Heard(topic.into(), payload.into()),
                Event::Garbage | Event::Superseded => Self::Garbage,
                Event::Confirmed { .. } => Self::Confirmed,
                Event::Up { proven } => Self::Up(proven),
                Event::Works { .. } => Self::Works,
                Event::Down { reason, deaf } => Self::Down(reason.as_ref().into(), deaf),
                Event::Refused { topic, .. } => Self::Refused(topic),
                Event::Moved { topic } => Self::Moved(topic.into()),
                Event::Stranded { .. } => Self::Stranded,
            }
        }
    }

    /// Does what the task does, by hand.
    struct Pump {
        context: Arc<LinkContext>,
        own: Topic,
        link: Option<Link>,
        now: Instant,
        out: BytesMut,
        /// The last probe, until something became of it.
        publishing: Option<Bytes>,
        told: VecDeque<Told>,
        lost: Option<Lost>,
        links: u64,
    }

    impl Pump {
        fn new() -> Self {
            let own = Topic::node(NodeId(7));
            Self::at(Dialect::Plain, Subscriptions::new(LINGER, own))
        }

        /// At a primary of a Redis Cluster, which carries nothing yet.
        fn in_cluster() -> Self {
            let own = Topic::node(NodeId(7));
            Self::at(Dialect::Sharded, Subscriptions::sharded(LINGER, own))
        }

        fn at(dialect: Dialect, subscriptions: Subscriptions) -> Self {
            let (node, namespace) = (NodeId(7), Namespace::new("x").unwrap());
            Self {
                context: Arc::new(LinkContext {
                    node,
                    advice: Arc::new(Advice::new(None, &namespace, dialect)),
                    channels: Channels::new(namespace, dialect),
                    probe_interval: INTERVAL,
                    subscriptions: Arc::new(SharedSubscriptions::new(subscriptions)),
                }),
                own: Topic::node(node),
                link: None,
                now: Instant::now(),
                out: BytesMut::new(),
                publishing: None,
                told: VecDeque::new(),
                lost: None,
                links: 0,
            }
        }

        /// A link that was greeted, and on which the own topic is confirmed.
        fn greeted() -> Self {
            let mut pump = Self::new();
            pump.connect(None);
            pump.say(Said::Hello(Some("master")));
            assert_eq!(pump.told.pop_front(), Some(Told::Greeted(true)));
            assert_eq!(
                pump.written(),
                ["HELLO", &format!("SUBSCRIBE {:?}", pump.own)]
            );
            pump.say(Said::Subscribed(pump.own.clone()));
            pump
        }

        /// A link that was proven.
        fn up() -> Self {
            let mut pump = Self::greeted();
            let proven = pump.now;
            pump.return_probe();
            pump.took(Ok(1));
            assert_eq!(pump.told.pop_front(), Some(Told::Up(proven)));
            pump
        }

        fn connect(&mut self, auth: Option<BytesMut>) {
            self.links += 1;
            let (context, number) = (self.context.clone(), self.links << 32);
            let until = self.now + OPENING;
            self.link = Some(Link::new(context, auth, number, until, self.now));
            self.lost = None;
            self.turn();
        }

        fn table<T>(&self, change: impl FnOnce(&mut Subscriptions) -> T) -> T {
            self.context.subscriptions.with(change)
        }

        fn want(&mut self, n: u8) -> Confirmation {
            let confirmation = self.table(|table| table.want(&topic(n)));
            self.turn();
            confirmation
        }

        /// Waits for it.
        fn wait_for(&mut self, n: u8) -> oneshot::Receiver<()> {
            match self.want(n) {
                Confirmation::Pending(confirmed) => confirmed,
                Confirmation::NotAwaited => panic!("{n} is not heard yet"),
            }
        }

        /// One round of the task.
        fn turn(&mut self) {
            let Some(link) = &mut self.link else { return };
            link.poll_transmit(&mut self.out, self.now);
            let event = link.handle_timeout(self.now);
            let probe = link.poll_probe();
            let wake = link.poll_timeout();
            self.note(event.map(|event| event.map(Told::from)));
            if self.link.is_some() {
                assert!(wake > self.now, "it would spin");
                self.publishing = probe.or(self.publishing.take());
            }
        }

        fn note(&mut self, told: Result<Option<Told>, Lost>) {
            match told {
                Ok(told) => self
                    .told
                    .extend(told.filter(|told| *told != Told::Confirmed)),
                Err(lost) => {
                    (self.lost, self.link) = (Some(lost), None);
                    self.out.clear();
                }
            }
        }

        fn say(&mut self, said: Said) {
            let channel = |topic: &Topic| self.context.channels.of(topic);
            let (name, mut payload) = match &said {
                Said::Subscribed(topic) | Said::Unsubscribed(topic) | Said::Ended(topic) => {
                    (channel(topic), Bytes::new())
                }
                Said::Message(topic, payload) => (channel(topic), payload.clone()),
                _ => (String::new(), Bytes::new()),
            };
            let (channel, payload) = (name.as_bytes(), payload.split_to(payload.len()));
            let mode: &[u8] = match self.context.channels.dialect() {
                Dialect::Plain => b"standalone",
                Dialect::Sharded => b"cluster",
            };
            let reply = match &said {
                Said::Ok => Reply::Other,
                Said::Hello(role) => Reply::Hello {
                    mode: Some(mode),
                    role: role.map(str::as_bytes),
                },
                Said::Error(words) => Reply::Error(words.as_bytes()),
                Said::Subscribed(_) => Reply::Subscribed { channel },
                Said::Unsubscribed(_) | Said::Ended(_) => Reply::Unsubscribed { channel },
                Said::Message(..) => Reply::Message {
                    channel,
                    payload: &payload,
                },
            };
            let Some(link) = &mut self.link else { return };
            let told = link.handle(reply, self.now);
            let told = told.map(|event| event.map(Told::from));
            self.note(told);
            self.turn();
        }

        /// The last probe comes back.
        fn comes_up(&mut self) {
            self.return_probe();
            self.took(Ok(1));
            assert_eq!(self.told, [Told::Up(self.now)]);
        }

        fn return_probe(&mut self) {
            let probe = self.publishing.clone().expect("a probe is published");
            self.say(Said::Message(self.own.clone(), probe));
        }

        fn took(&mut self, took: Result<usize, PublishError>) {
            assert!(self.publishing.take().is_some(), "nothing is published");
            let Some(link) = &mut self.link else { return };
            let told = link.probe_published(took, self.now);
            self.note(told.map(|event| event.map(Told::from)));
            self.turn();
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            self.turn();
        }

        /// The commands that were written, and their arguments without the namespace.
        fn commands(&mut self) -> Vec<(String, Vec<String>)> {
            let out = String::from_utf8(self.out.split().to_vec()).unwrap();
            let mut lines = out.split("\r\n").filter(|line| !line.is_empty());
            let mut commands = Vec::new();
            while let Some(head) = lines.next() {
                let count: usize = head[1..].parse().unwrap();
                let mut words = (0..count).map(|_| lines.nth(1).unwrap());
                let name = words.next().unwrap().to_owned();
                let topic = |channel: &str| channel.trim_start_matches("x:").to_owned();
                commands.push((name, words.map(topic).collect()));
            }
            commands
        }

        /// What was written, a line for a command.
        fn written(&mut self) -> Vec<String> {
            let mut commands = Vec::new();
            while !self.out.is_empty() {
                commands.extend(self.commands());
                self.turn();
            }
            let line =
                |(name, words): (String, Vec<String>)| [vec![name], words].concat().join(" ");
            commands.into_iter().map(line).collect()
        }

        fn reason(&self) -> &str {
            self.lost.as_ref().map_or("", |lost| &lost.reason)
        }
    }

    fn failed(words: &str) -> Result<usize, PublishError> {
        Err(PublishError::not_sent(words))
    }

    /// A primary that was frozen, and is none any more, says what it was told before.
    #[test]
    fn what_is_kept_and_comes_from_where_its_partition_is_no_more_is_dropped() {
        let (node, namespace) = (NodeId(7), Namespace::new("x").unwrap());
        let own = Topic::node(node);
        let context = Arc::new(LinkContext {
            node,
            advice: Arc::new(Advice::new(None, &namespace, Dialect::Sharded)),
            channels: Channels::new(namespace, Dialect::Sharded),
            probe_interval: INTERVAL,
            subscriptions: Arc::new(SharedSubscriptions::new(Subscriptions::sharded(
                LINGER, own,
            ))),
        });
        let (now, all) = (Instant::now(), PartitionSet::all());
        let mut link = Link::new(context.clone(), None, 0, now + OPENING, now);
        context.subscriptions.with(|table| table.expect(all));
        let channel = context.channels.of(&topic(1));
        let mut says = |payload: &[u8]| {
            let channel = channel.as_bytes();
            let told = link.handle(Reply::Message { channel, payload }, now);
            matches!(told, Ok(Some(Event::Heard { .. })))
        };
        let (kept, plain) = (b"\x020000000000000007hi", b"\x01hi");
        assert!(says(kept) && says(plain), "control");
        context.subscriptions.with(|table| table.take_out(all, now));
        assert_eq!((says(kept), says(plain)), (false, true));
    }

    /// A new primary is dialed before the former one has let go of its partitions, and may lose them again.
    #[test]
    fn who_carries_nothing_asks_for_nothing_and_is_not_probed() {
        let mut pump = Pump::in_cluster();
        pump.connect(None);
        pump.say(Said::Hello(Some("master")));
        assert_eq!(pump.told.pop_front(), Some(Told::Greeted(true)));
        assert_eq!(pump.written(), ["HELLO"]);
        for _ in 0..2 {
            pump.pass(2 * SILENCE);
            assert!(pump.written().is_empty() && pump.told.is_empty());
            assert_eq!((pump.publishing.clone(), pump.reason()), (None, ""));
            pump.table(|table| {
                table.expect(PartitionSet::all());
                table.take_in(Vec::new());
            });
            pump.turn();
            let own = pump.context.channels.of(&pump.own);
            let own = own.trim_start_matches("x:");
            assert_eq!(pump.written(), [format!("SSUBSCRIBE {own}")]);
            pump.say(Said::Subscribed(pump.own.clone()));
            assert_eq!(pump.table(|table| table.unanswered()), 0);
            pump.comes_up();
            pump.told.clear();
            let now = pump.now;
            pump.table(|table| table.take_out(PartitionSet::all(), now));
            pump.turn();
        }
        pump.pass(10 * INTERVAL);
        assert_eq!((pump.publishing.clone(), pump.reason()), (None, ""));
    }

    #[test]
    fn nothing_is_subscribed_before_redis_has_said_who_it_is() {
        let mut pump = Pump::new();
        pump.table(|table| table.want(&topic(1)));
        let mut auth = BytesMut::new();
        command::auth(&mut auth, None, "s3cret");
        pump.connect(Some(auth));
        assert_eq!(pump.written(), ["AUTH s3cret", "HELLO"]);
        pump.say(Said::Ok);
        assert!(pump.written().is_empty() && pump.told.is_empty());
        pump.say(Said::Hello(Some("master")));
        let own = format!("SUBSCRIBE {:?}", pump.own);
        assert_eq!(
            pump.written(),
            [&own, "SUBSCRIBE r:1"],
            "its own first, and alone"
        );
        assert_eq!(pump.told, [Told::Greeted(true)]);
    }

    #[test]
    fn only_who_cannot_tell_its_role_is_trusted_without() {
        for (said, reason) in [
            (Said::Hello(Some("replica")), "is a replica"),
            (Said::Hello(Some("slave")), "is a replica"),
            (Said::Error("NOAUTH HELLO must be called"), "password@host"),
            (Said::Error("LOADING Redis is loading"), "tries again"),
            (
                Said::Error("ERR max number of clients reached"),
                "maxclients",
            ),
        ] {
            let mut pump = Pump::new();
            pump.connect(None);
            pump.say(said);
            assert!(pump.reason().contains(reason), "{}", pump.reason());
        }
        for said in [
            Said::Hello(None),
            Said::Error("ERR unknown command 'HELLO', with args beginning with: s3cret"),
            Said::Error("NOPERM this user has no permissions to run the 'hello' command"),
        ] {
            let mut pump = Pump::new();
            pump.connect(None);
            let tells = matches!(said, Said::Hello(_));
            pump.say(said);
            assert_eq!(pump.told, [Told::Greeted(tells)]);
            assert_eq!(pump.written().len(), 2);
        }
    }

    #[test]
    fn a_password_that_is_refused_is_no_question_for_the_role() {
        for words in [
            "WRONGPASS invalid",
            "ERR wrong number of arguments for 'auth'",
        ] {
            let mut pump = Pump::new();
            pump.connect(Some(BytesMut::from("auth")));
            pump.say(Said::Error(words));
            assert!(pump.reason().starts_with(words), "{}", pump.reason());
        }
    }

    #[test]
    fn who_says_nothing_is_given_up_when_opening_should_be_over() {
        let mut pump = Pump::new();
        pump.connect(None);
        pump.pass(OPENING - MS);
        assert_eq!(pump.lost, None);
        pump.pass(MS);
        assert_eq!(pump.reason(), "redis does not answer");
    }

    #[test]
    fn the_bus_is_up_when_the_probe_is_back_and_taken_in_either_order() {
        let mut pump = Pump::greeted();
        let first = pump.now;
        pump.pass(MS);
        pump.took(Ok(1));
        assert!(pump.told.is_empty(), "it is not back");
        let probe = Said::Message(pump.own.clone(), Bytes::from_static(b"another's"));
        pump.say(probe);
        assert!(matches!(pump.told.pop_front(), Some(Told::Heard(..))));

        let mut pump = Pump::greeted();
        pump.pass(MS);
        pump.return_probe();
        assert!(pump.told.is_empty(), "perhaps it was taken on a replica");
        pump.took(Ok(1));
        let Some(Told::Up(proven)) = pump.told.pop_front() else {
            panic!("it is up")
        };
        assert_eq!(proven, pump.now - MS, "as of when it was published");
        assert!(first <= proven);
        pump.pass(INTERVAL);
        assert!(pump.publishing.is_some(), "again and again");
    }

    #[test]
    fn what_becomes_of_a_probe_decides() {
        let mut pump = Pump::greeted();
        pump.took(Ok(0));
        assert!(pump.reason().contains("another Redis"));
        assert!(pump.lost.as_ref().unwrap().strayed);

        let mut pump = Pump::greeted();
        pump.took(Err(PublishError {
            on_replica: true,
            ..PublishError::not_sent("a replica")
        }));
        assert_eq!(
            (pump.reason(), pump.lost.as_ref().unwrap().strayed),
            ("a replica", true)
        );

        let mut pump = Pump::greeted();
        pump.return_probe();
        pump.took(failed("OOM"));
        assert_eq!(
            pump.told,
            [Told::Down("OOM".into(), false)],
            "it proves nothing"
        );
        assert!(pump.publishing.is_none() && pump.link.is_some());
        pump.pass(INTERVAL / 5);
        assert!(pump.publishing.is_some(), "it is tried again soon");
    }

    #[test]
    fn a_probe_of_an_earlier_link_proves_nothing() {
        let mut pump = Pump::greeted();
        let earlier = pump.publishing.clone().unwrap();
        pump.link = None;
        pump.connect(None);
        pump.say(Said::Hello(Some("master")));
        pump.written();
        pump.say(Said::Subscribed(pump.own.clone()));
        pump.took(Ok(1));
        pump.told.clear();
        pump.say(Said::Message(pump.own.clone(), earlier));
        assert!(matches!(pump.told.pop_front(), Some(Told::Heard(..))));
    }

    #[test]
    fn two_probes_that_do_not_come_back_end_the_link() {
        let mut pump = Pump::up();
        pump.pass(INTERVAL);
        pump.took(Ok(1));
        pump.pass(INTERVAL / 2);
        pump.took(Ok(1));
        assert_eq!(pump.lost, None);
        pump.pass(INTERVAL / 2);
        assert!(pump.reason().contains("did not come back"));
    }

    #[test]
    fn what_looks_wrong_is_probed_at_once() {
        let mut pump = Pump::up();
        pump.pass(MS);
        assert_eq!(pump.publishing, None);
        pump.link.as_mut().unwrap().hurry(pump.now);
        pump.turn();
        assert!(pump.publishing.is_some());
    }

    /// H3: measured from the last answer in turn, whatever else is said.
    #[test]
    fn silence_where_an_answer_is_owed_ends_the_link() {
        let mut pump = Pump::up();
        let _one = pump.wait_for(1);
        let _two = pump.wait_for(2);
        pump.written();
        for n in 0..4 {
            pump.pass(S);
            pump.say(Said::Message(topic(n), Bytes::new()));
            // That of 1 was lost.
            pump.say(Said::Subscribed(topic(2)));
        }
        assert_eq!(pump.lost, None);
        pump.pass(S);
        assert_eq!(pump.reason(), "redis does not answer");

        let mut pump = Pump::up();
        let mut one = pump.wait_for(1);
        pump.written();
        pump.pass(SILENCE - MS);
        pump.say(Said::Subscribed(topic(1)));
        assert_eq!(one.try_recv(), Ok(()));
        let _two = pump.wait_for(2);
        pump.written();
        pump.pass(SILENCE - MS);
        assert_eq!(pump.lost, None, "it begins anew with each answer");
    }

    #[test]
    fn no_more_is_asked_than_redis_can_keep_answers_for() {
        let mut pump = Pump::greeted();
        for n in 0..2 * UNANSWERED {
            pump.table(|table| table.want(&Topic::room(&format!("room-{n}")).unwrap()));
        }
        pump.turn();
        let mut asked = Vec::new();
        for _ in 0..10 {
            let commands = pump.commands();
            pump.turn();
            asked.extend(commands.into_iter().flat_map(|(_, topics)| topics));
        }
        assert_eq!(asked.len(), UNANSWERED);
        let newcomer = pump.want(1);
        assert!(matches!(newcomer, Confirmation::Pending(_)));
        for name in &asked {
            let room = name.strip_prefix("r:").unwrap();
            pump.say(Said::Subscribed(Topic::room(room).unwrap()));
        }
        assert_eq!(pump.commands()[0].1.len(), BATCH);
    }

    #[test]
    fn whoever_loses_patience_is_heard_before_the_bus_is_up_again() {
        let mut pump = Pump::up();
        let _one = pump.wait_for(1);
        pump.written();
        pump.link.as_mut().unwrap().hurry(pump.now);
        pump.turn();
        let early = pump.publishing.clone().unwrap();
        pump.table(Subscriptions::confirm_anew);
        pump.pass(MS);
        assert_eq!(
            pump.told.pop_front(),
            Some(Told::Down(IMPATIENT.into(), true))
        );
        pump.took(Ok(1));
        pump.say(Said::Message(pump.own.clone(), early));
        assert!(
            matches!(pump.told.pop_front(), Some(Told::Heard(..))),
            "it proves nothing"
        );
        assert_eq!(
            pump.publishing, None,
            "nothing is proven before it is heard"
        );
        pump.say(Said::Subscribed(topic(1)));
        pump.comes_up();
    }

    /// Patience ends while the probe that would prove the bus is on its way back.
    #[test]
    fn nobody_is_up_who_lost_patience_since() {
        let mut pump = Pump::greeted();
        let _one = pump.wait_for(1);
        let probe = pump.publishing.clone().unwrap();
        pump.took(Ok(1));
        pump.table(Subscriptions::confirm_anew);
        let link = pump.link.as_mut().unwrap();
        let channel = pump.context.channels.of(&pump.own);
        let reply = Reply::Message {
            channel: channel.as_bytes(),
            payload: &probe,
        };
        assert_eq!(link.handle(reply, pump.now), Ok(None));
    }

    #[test]
    fn a_refused_topic_is_told_and_the_rest_goes_on() {
        let mut pump = Pump::up();
        let mut waiting = pump.wait_for(1);
        assert_eq!(pump.written(), ["SUBSCRIBE r:1"]);
        pump.say(Said::Error(NOPERM));
        assert_eq!(waiting.try_recv(), Err(TryRecvError::Closed), "it is told");
        assert_eq!(pump.told.pop_front(), Some(Told::Refused(topic(1))));
        assert!(pump.link.is_some());

        let mut other = pump.wait_for(2);
        assert_eq!(pump.written(), ["SUBSCRIBE r:2"]);
        pump.say(Said::Subscribed(topic(2)));
        assert_eq!(other.try_recv(), Ok(()));
        pump.pass(INTERVAL);
        let stale = pump.publishing.clone().unwrap();
        pump.return_probe();
        pump.took(Ok(1));
        let told = pump.told.pop_front();
        assert_eq!(told, Some(Told::Works), "the link does, but 1 is not heard");
        assert_eq!(pump.written(), ["SUBSCRIBE r:1"], "it is asked for again");

        pump.say(Said::Subscribed(topic(1)));
        assert!(pump.told.is_empty());
        assert_ne!(
            pump.publishing,
            Some(stale),
            "only what is published now proves it"
        );
        pump.comes_up();
    }

    #[test]
    fn a_refused_topic_is_forgotten_with_those_who_want_it() {
        let mut pump = Pump::up();
        let _waiting = pump.wait_for(1);
        pump.written();
        pump.say(Said::Error(NOPERM));
        pump.told.clear();
        let left = pump.now;
        pump.table(|table| table.release(&topic(1), left));
        pump.turn();
        // Who comes back would be refused again.
        for told in [Told::Works, Told::Works, Told::Up(left + 3 * INTERVAL)] {
            pump.pass(INTERVAL);
            pump.return_probe();
            pump.took(Ok(1));
            assert_eq!(pump.told.pop_front(), Some(told));
        }
    }

    #[test]
    fn what_the_link_cannot_do_without_ends_it() {
        let mut pump = Pump::new();
        pump.connect(None);
        pump.say(Said::Hello(Some("master")));
        pump.written();
        pump.say(Said::Error(NOPERM));
        assert!(
            pump.reason().contains("grant it: ACL SETUSER"),
            "{}",
            pump.reason()
        );

        for words in ["MASTERDOWN Link with MASTER is down", "MOVED 1 127.0.0.1:1"] {
            let mut pump = Pump::up();
            let _waiting = pump.wait_for(1);
            pump.written();
            pump.say(Said::Error(words));
            assert!(pump.reason().starts_with(words), "another server is meant");
        }

        let mut pump = Pump::up();
        pump.say(Said::Error("ERR Protocol error"));
        assert!(
            pump.reason().starts_with("ERR Protocol"),
            "nothing was asked"
        );
    }

    #[test]
    fn a_subscription_that_redis_ends_is_asked_for_anew_and_a_gap() {
        let mut pump = Pump::up();
        let _one = pump.wait_for(1);
        pump.written();
        pump.say(Said::Subscribed(topic(1)));
        assert!(pump.told.is_empty());
        pump.say(Said::Ended(topic(1)));
        let down = Told::Down(ENDED.into(), true);
        assert_eq!(pump.told, [Told::Moved("r:1".into()), down]);
        assert!(!pump.context.subscriptions.is_confirmed(&topic(1)));
        pump.told.clear();
        assert_eq!(pump.written(), ["SUBSCRIBE r:1"]);
        assert_eq!(pump.publishing, None);
        pump.say(Said::Subscribed(topic(1)));
        pump.comes_up();
    }

    #[test]
    fn what_is_not_ours_is_garbage() {
        let mut pump = Pump::up();
        let link = pump.link.as_mut().unwrap();
        let foreign = Reply::Message {
            channel: b"y:all",
            payload: b"",
        };
        for reply in [foreign, Reply::Oversized] {
            assert_eq!(link.handle(reply, pump.now), Ok(Some(Event::Garbage)));
        }
        let stray = Reply::Subscribed { channel: b"y:all" };
        assert_eq!(link.handle(stray, pump.now), Ok(None));
    }

    #[test]
    fn nobody_waits_for_a_link_that_is_gone() {
        let mut pump = Pump::greeted();
        let mut waiting = pump.wait_for(1);
        pump.link = None;
        assert_eq!(waiting.try_recv(), Err(TryRecvError::Closed));
    }

    /// Anything, whether or not it makes sense now.
    fn said() -> impl Strategy<Value = Said> {
        let n = || (0u8..3).prop_map(topic);
        let error = prop::sample::select(vec![NOPERM, "ERR unknown command", "LOADING", ""]);
        let role = prop::sample::select(vec![Some("master"), Some("replica"), None]);
        prop_oneof![
            2 => Just(Said::Ok),
            2 => role.prop_map(Said::Hello),
            4 => error.prop_map(Said::Error),
            8 => n().prop_map(Said::Subscribed),
            8 => n().prop_map(Said::Unsubscribed),
            2 => n().prop_map(|topic| Said::Message(topic, Bytes::new())),
        ]
    }

    #[derive(Clone, Debug)]
    enum Step {
        Want(u8),
        Release(u8),
        Pass(u64),
        /// What is written leaves.
        Write,
        /// Redis carries out the oldest command.
        Serve,
        /// Its oldest reply arrives.
        Hear,
        /// Its oldest reply is lost.
        Lose,
        /// Redis gets the probe; what it says of it arrives.
        Publish,
        Take,
        Fail,
        OnReplica,
        /// Redis gets a probe that was given up.
        PublishLate,
        Deny(u8),
        Allow(u8),
        /// Redis ends a subscription by itself.
        End(u8),
        Cut,
        Connect,
        /// The oldest waiter has no more patience.
        Impatience,
        Hurry,
    }

    fn step() -> impl Strategy<Value = Step> {
        let n = || 0u8..4;
        prop_oneof![
            6 => n().prop_map(Step::Want),
            4 => n().prop_map(Step::Release),
            3 => prop::sample::select(vec![20u64, 300, 2000, 4000]).prop_map(Step::Pass),
            8 => Just(Step::Write),
            10 => Just(Step::Serve),
            12 => Just(Step::Hear),
            1 => Just(Step::Lose),
            4 => Just(Step::Publish),
            4 => Just(Step::Take),
            1 => Just(Step::Fail),
            1 => Just(Step::OnReplica),
            1 => Just(Step::PublishLate),
            1 => n().prop_map(Step::Deny),
            2 => n().prop_map(Step::Allow),
            1 => n().prop_map(Step::End),
            1 => Just(Step::Cut),
            4 => Just(Step::Connect),
            1 => Just(Step::Impatience),
            1 => Just(Step::Hurry),
        ]
    }

    /// A Redis, the link to it, and those who want to hear something.
    struct World {
        pump: Pump,
        commands: VecDeque<(String, Vec<String>)>,
        replies: VecDeque<Said>,
        /// What Redis sends us, and since when.
        heard: HashMap<Topic, Instant>,
        denied: HashSet<Topic>,
        /// How many Redis says that it gave the probe to.
        taken: Option<usize>,
        late: Vec<Bytes>,
        /// Probes, and when they were published; and those that Redis sent us on this link.
        probes: Vec<(Bytes, Instant)>,
        sent: Vec<Bytes>,
        wanted: Vec<u8>,
        waiting: Vec<(u8, oneshot::Receiver<()>)>,
        /// Those who go on although they were not heard, until the bus is up.
        unheard: HashSet<u8>,
        up: bool,
    }

    impl World {
        fn new() -> Self {
            let mut pump = Pump::new();
            pump.connect(None);
            Self {
                pump,
                commands: VecDeque::new(),
                replies: VecDeque::new(),
                heard: HashMap::new(),
                denied: HashSet::new(),
                taken: None,
                late: Vec::new(),
                probes: Vec::new(),
                sent: Vec::new(),
                wanted: Vec::new(),
                waiting: Vec::new(),
                unheard: HashSet::new(),
                up: false,
            }
        }

        fn apply(&mut self, step: Step) {
            match step {
                Step::Want(n) => self.want(n),
                Step::Release(n) => self.release(n),
                Step::Pass(millis) => self.pump.pass(Duration::from_millis(millis)),
                Step::Write => {
                    let commands = self.pump.commands();
                    self.commands.extend(commands);
                }
                Step::Serve => self.serve(),
                Step::Hear => {
                    if let Some(said) = self.replies.pop_front() {
                        self.pump.say(said);
                    }
                }
                Step::Lose => {
                    // Nothing tells of the loss of what was not asked.
                    if !matches!(self.replies.front(), Some(Said::Ended(_))) {
                        self.replies.pop_front();
                    }
                }
                Step::Publish => {
                    if let Some(probe) = self.pump.publishing.clone()
                        && self.taken.is_none()
                    {
                        self.taken = Some(self.deliver(probe));
                    }
                }
                Step::Take => {
                    if let Some(taken) = self.taken.take() {
                        self.pump.took(Ok(taken));
                    }
                }
                Step::Fail | Step::OnReplica if self.pump.publishing.is_some() => {
                    self.taken = None;
                    self.pump.took(Err(PublishError {
                        on_replica: matches!(step, Step::OnReplica),
                        ..PublishError::maybe_sent("it failed")
                    }));
                }
                Step::PublishLate => {
                    if let Some(probe) = self.late.pop() {
                        self.deliver(probe);
                    }
                }
                Step::Deny(n) => {
                    self.denied.insert(topic(n));
                }
                Step::Allow(n) => {
                    self.denied.remove(&topic(n));
                }
                Step::End(n) => {
                    if self.heard.remove(&topic(n)).is_some() {
                        self.replies.push_back(Said::Ended(topic(n)));
                    }
                }
                Step::Cut => self.pump.link = None,
                Step::Connect if self.pump.link.is_none() => self.pump.connect(None),
                Step::Impatience if !self.waiting.is_empty() => {
                    let (n, _) = self.waiting.remove(0);
                    self.unheard.insert(n);
                    self.pump.table(Subscriptions::confirm_anew);
                }
                Step::Hurry => {
                    let now = self.pump.now;
                    if let Some(link) = &mut self.pump.link {
                        link.hurry(now);
                    }
                }
                Step::Fail | Step::OnReplica | Step::Connect | Step::Impatience => {}
            }
            self.turn();
            self.check();
        }

        fn want(&mut self, n: u8) {
            self.wanted.push(n);
            let is_heard = self.pump.context.subscriptions.is_confirmed(&topic(n));
            match self.pump.want(n) {
                Confirmation::Pending(confirmed) => self.waiting.push((n, confirmed)),
                Confirmation::NotAwaited if is_heard => {}
                Confirmation::NotAwaited => {
                    self.unheard.insert(n);
                }
            }
        }

        fn release(&mut self, n: u8) {
            if let Some(at) = self.wanted.iter().position(|wanted| *wanted == n) {
                self.wanted.swap_remove(at);
                let now = self.pump.now;
                self.pump.table(|table| table.release(&topic(n), now));
                if !self.wanted.contains(&n) {
                    self.unheard.remove(&n);
                }
            }
        }

        fn serve(&mut self) {
            let Some((name, topics)) = self.commands.pop_front() else {
                return;
            };
            let own = &self.pump.own;
            let topic = |name: String| match name.strip_prefix("r:") {
                Some(room) => Topic::room(room).unwrap(),
                None => own.clone(),
            };
            let topics: Vec<Topic> = topics.into_iter().map(topic).collect();
            match name.as_str() {
                "HELLO" => self.replies.push_back(Said::Hello(Some("master"))),
                "SUBSCRIBE" if topics.iter().any(|topic| self.denied.contains(topic)) => {
                    self.replies.push_back(Said::Error(NOPERM));
                }
                "SUBSCRIBE" => {
                    for topic in topics {
                        self.heard.entry(topic.clone()).or_insert(self.pump.now);
                        self.replies.push_back(Said::Subscribed(topic));
                    }
                }
                _ => {
                    for topic in topics {
                        self.heard.remove(&topic);
                        self.replies.push_back(Said::Unsubscribed(topic));
                    }
                }
            }
        }

        /// Redis gets a probe.
        fn deliver(&mut self, probe: Bytes) -> usize {
            let own = self.pump.own.clone();
            if !self.heard.contains_key(&own) {
                return 0;
            }
            self.sent.push(probe.clone());
            self.replies.push_back(Said::Message(own, probe));
            1
        }

        /// Looks at what the link did.
        fn turn(&mut self) {
            self.pump.turn();
            if self.pump.link.is_none() {
                self.commands.clear();
                self.replies.clear();
                self.heard.clear();
                self.pump.out.clear();
                self.sent.clear();
                self.late.extend(self.pump.publishing.take());
                self.taken = None;
                self.up = false;
                self.unheard.extend(self.wanted.iter().copied());
            }
            let known = |probe: &Bytes| self.probes.iter().any(|(one, _)| one == probe);
            if let Some(probe) = self.pump.publishing.clone().filter(|probe| !known(probe)) {
                self.late
                    .extend(self.probes.last().map(|(probe, _)| probe.clone()));
                self.taken = None;
                self.probes.push((probe, self.pump.now));
            }
            while let Some(told) = self.pump.told.pop_front() {
                match told {
                    Told::Up(proven) => self.check_up(proven),
                    Told::Down(..) => self.up = false,
                    Told::Refused(refused) => {
                        self.up = false;
                        self.unheard.extend((0..4).filter(|n| topic(*n) == refused));
                    }
                    Told::Moved(name) => {
                        self.unheard
                            .extend((0..4).filter(|n| topic(*n).as_str() == name));
                    }
                    Told::Greeted(_)
                    | Told::Heard(..)
                    | Told::Confirmed
                    | Told::Garbage
                    | Told::Works
                    | Told::Stranded => {}
                }
            }
        }

        fn check_up(&mut self, proven: Instant) {
            assert_eq!(self.pump.publishing, None, "up before the probe was taken");
            let mut of_then = self.probes.iter().filter(|(_, at)| *at == proven);
            assert!(
                of_then.any(|(probe, _)| self.sent.contains(probe)),
                "up without a probe that came back"
            );
            for n in self.unheard.drain().filter(|n| self.wanted.contains(n)) {
                let ends = self.replies.contains(&Said::Ended(topic(n)));
                let since = self.heard.get(&topic(n));
                assert!(
                    ends || since.is_some_and(|since| *since <= proven),
                    "{n} was not heard then"
                );
            }
            self.up = true;
        }

        fn check(&mut self) {
            let connected = self.pump.link.is_some();
            let subscriptions = &self.pump.context.subscriptions;
            let (heard, replies, commands) = (&self.heard, &self.replies, &self.commands);
            let is_heard =
                |n| heard.contains_key(&topic(n)) || replies.contains(&Said::Ended(topic(n)));
            for n in (0..4).filter(|n| subscriptions.is_confirmed(&topic(*n))) {
                let name = topic(n).as_str().to_owned();
                let in_flight = commands.iter().any(|(_, topics)| topics.contains(&name));
                assert!(is_heard(n) && !in_flight, "{n} is confirmed but deaf");
            }
            let (wanted, unheard) = (&self.wanted, &mut self.unheard);
            self.waiting
                .retain_mut(|(n, waiting)| match waiting.try_recv() {
                    Ok(()) => {
                        assert!(subscriptions.is_confirmed(&topic(*n)), "told to be heard");
                        false
                    }
                    Err(TryRecvError::Closed) => {
                        let refused = unheard.contains(n);
                        assert!(
                            !connected || !wanted.contains(n) || refused,
                            "left without an answer"
                        );
                        false
                    }
                    Err(TryRecvError::Empty) => true,
                });
            let waits = |n: &u8| self.waiting.iter().any(|(waiting, _)| waiting == n);
            if self.up {
                for n in wanted.iter().filter(|n| !waits(n)) {
                    assert!(is_heard(*n), "up, and deaf for {n} in silence");
                }
            }
        }

        /// Lets all come to an end.
        fn settle(&mut self) {
            self.denied.clear();
            for _ in 0..400 {
                self.apply(Step::Connect);
                for _ in 0..20 {
                    for step in [Step::Write, Step::Serve, Step::Hear] {
                        self.apply(step);
                    }
                }
                for step in [Step::Publish, Step::Hear, Step::Take] {
                    self.apply(step);
                }
                if self.up && self.waiting.is_empty() {
                    break;
                }
                self.apply(Step::Pass(100));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn nonsense_is_survived(steps in prop::collection::vec((said(), 0u8..3, 0u8..4), 0..60)) {
            let mut pump = Pump::new();
            let mut wanted = [0; 3];
            for (said, n, what) in steps {
                match what {
                    _ if pump.link.is_none() => pump.connect(None),
                    0 => {
                        wanted[usize::from(n)] += 1;
                        let _ = pump.want(n);
                    }
                    1 if wanted[usize::from(n)] > 0 => {
                        wanted[usize::from(n)] -= 1;
                        let now = pump.now;
                        pump.table(|table| table.release(&topic(n), now));
                    }
                    2 => pump.pass(300 * MS),
                    _ => {
                        pump.commands();
                        let greeting = Said::Hello(Some("master"));
                        pump.say(if what == 3 { greeting } else { said.clone() });
                    }
                }
                pump.say(said);
                pump.commands();
            }
        }

        #[test]
        fn nothing_that_happens_leaves_anybody_deaf_in_silence(steps in prop::collection::vec(step(), 0..150)) {
            let mut world = World::new();
            for step in steps {
                world.apply(step);
            }
            world.settle();
            prop_assert!(world.up, "it never comes up: {:?}", world.pump.lost);
            prop_assert!(world.waiting.is_empty(), "a waiter was forgotten");
            for n in world.wanted.clone() {
                prop_assert!(world.heard.contains_key(&topic(n)));
                world.apply(Step::Release(n));
            }
            world.apply(Step::Pass(2000));
            world.settle();
            let heard: Vec<&Topic> = world.heard.keys().collect();
            prop_assert_eq!(heard, [&world.pump.own], "only itself is left");
        }
    }
}
