//! This node's end of the bus, as messages see it: what is sent is written and queued here, and what came is read
//! here, once, into what the parts of a node act on.

use std::collections::HashSet;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde::de::IgnoredAny;
use smallvec::{SmallVec, smallvec};

use crate::bus::control::Control;
use crate::bus::echoes::Echoes;
use crate::bus::eras::Eras;
use crate::bus::inbound::{Content, Hearers, Inbound, Part, PeerWord};
use crate::bus::keyring::Keyring;
use crate::bus::past::{Keep, ReadLimits};
use crate::bus::scope::{Reach, Route, Scope, Selection, Size};
use crate::bus::seen::Seen;
use crate::bus::wire::{self, Action, Envelope, Lasting, MAX_ENVELOPE, ONE_COPY};
use crate::bus::{Bus, Published};
use crate::counts::Counters;
use crate::measures::Since;
use crate::model::close::Close;
use crate::model::error::{PublishError, QueryError, SendError};
use crate::model::history::mark::{Clock, Mark, Number};
use crate::model::history::token::{self, Key, Parts};
use crate::model::history::{Histories, Kept};
use crate::model::id::NodeId;
use crate::model::manner::Manner;
use crate::model::message::Message;
use crate::model::partition::Partition;
use crate::model::topic::{Topic, TopicKind, TopicRef};

#[derive(Debug)]
pub(crate) struct Uplink {
    node: NodeId,
    own: Topic,
    bus: Arc<dyn Bus>,
    counters: Arc<Counters>,
    /// Unions of which a copy came.
    unions: Mutex<Seen>,
    next_union: AtomicU64,
    /// Whether anything has moved, as others say: until then nothing can come late.
    has_moved: AtomicBool,
    eras: Mutex<Eras>,
    histories: Histories,
    pub(crate) keyring: Keyring,
    /// Where something is kept.
    echoes: Mutex<Echoes>,
    unkept: Mutex<Unkept>,
}

/// Nodes that do not keep what this one would.
#[derive(Debug, Default)]
struct Unkept {
    known: HashSet<NodeId>,
    news: Option<NodeId>,
}

impl Uplink {
    pub(crate) fn new(
        node: NodeId,
        bus: Arc<dyn Bus>,
        counters: Arc<Counters>,
        histories: Histories,
        publish_timeout: Duration,
    ) -> Self {
        Self {
            keyring: Keyring::new(bus.clone(), publish_timeout),
            node,
            own: Topic::node(node),
            bus,
            counters,
            unions: Mutex::default(),
            next_union: AtomicU64::new(ONE_COPY + 1),
            has_moved: AtomicBool::new(false),
            eras: Mutex::default(),
            histories,
            echoes: Mutex::new(Echoes::new(node)),
            unkept: Mutex::default(),
        }
    }

    /// Publishes a message: queued by the call, so that sends keep the order of the calls. What is kept comes back to this node's
    /// own sockets; everything else is for the other nodes alone.
    pub(crate) fn send<'a>(
        &'a self,
        selection: &Selection,
        scope: &Scope<'_>,
        message: &Message,
        manner: &Manner,
        how: How,
    ) -> Result<Sending<'a>, SendError> {
        let Course {
            mut topics,
            union,
            keep,
        } = match how.reach {
            Reach::Here => Course::default(),
            Reach::Everywhere => self.course(selection, how.is_ephemeral),
        };
        if keep.is_none() {
            topics.retain(|topic| *topic != self.own);
        }
        let kept = keep.as_ref().map(|_| self.next_union.fetch_add(1, Relaxed));
        let lasting = match kept {
            Some(number) => Lasting::Kept(number),
            None if how.is_ephemeral => Lasting::Ephemeral,
            None => Lasting::Unsaid,
        };
        let envelope = match topics.is_empty() {
            true => None,
            false => Some(self.write_message(lasting, union, scope, message, manner)?),
        };
        self.counters.sent.fetch_add(1, Relaxed);
        let begun = kept.map(|number| Begun::of(self, number));
        let since = Since::now();
        let size = selection.size();
        let publish = |envelope| self.bus.publish(topics, envelope, size, keep);
        Ok(Sending {
            uplink: self,
            since,
            publishing: envelope.map(publish),
            is_known: scope.targets.len() == 1 && how.reach == Reach::Everywhere,
            is_union: union.is_some(),
            begun,
        })
    }

    /// Publishes a message for the other nodes themselves; queued by the call. Resolves to how many took it.
    pub(crate) fn send_to_nodes(
        &self,
        message: &Message,
    ) -> Result<impl Future<Output = Result<usize, PublishError>> + use<'_>, SendError> {
        let (scope, manner) = (Scope::default(), Manner::InTurn);
        let envelope = self.write_message(Lasting::Unsaid, None, &scope, message, &manner)?;
        self.counters.sent.fetch_add(1, Relaxed);
        let since = Since::now();
        let publishing = self.say(Topic::nodes(), envelope);
        Ok(async move {
            let published = self
                .published(since, publishing.await)
                .inspect_err(|error| {
                    self.counters.record_failed_publish(error.maybe_sent);
                })?;
            Ok(published.nodes)
        })
    }

    fn published(
        &self,
        since: Since,
        published: Result<Published, PublishError>,
    ) -> Result<Published, PublishError> {
        published.inspect(|_| self.counters.measures.published(since))
    }

    /// How a message travels.
    fn course(&self, selection: &Selection, is_ephemeral: bool) -> Course {
        let is_kept = |topic: &Topic| self.histories.of(topic.kind()).is_some();
        let kept = match is_ephemeral || self.histories.is_off() {
            true => SmallVec::new(),
            false => selection.filter(is_kept),
        };
        let (topics, union, keep) = match selection.route() {
            // They are of one kind.
            Route::Separate(topics) => (topics, None, Keep::Each),
            Route::Union(topics) if topics.len() == 1 && kept.is_empty() => {
                (topics, Some(ONE_COPY), Keep::Each)
            }
            Route::Union(topics) => {
                let number = self.next_union.fetch_add(1, Relaxed);
                let keep = Keep::Union(kept.clone());
                match self.are_at_one_clock(&topics, &kept) {
                    true => (topics, Some(number), keep),
                    false => (selection.carriers(), Some(number), keep),
                }
            }
        };
        Course {
            topics,
            union,
            keep: (!kept.is_empty()).then_some(keep),
        }
    }

    /// Whether whoever hears a copy hears with it up to where each history of the union is known to him: where the one copy for
    /// all nodes has another clock, the others' would stand still.
    fn are_at_one_clock(&self, topics: &[Topic], kept: &[Topic]) -> bool {
        let [carrier] = topics else { return true };
        let clock = self.bus.clock(carrier);
        kept.iter().all(|topic| self.bus.clock(topic) == clock)
    }

    fn write_message(
        &self,
        lasting: Lasting,
        union: Option<u64>,
        scope: &Scope<'_>,
        message: &Message,
        manner: &Manner,
    ) -> Result<Bytes, SendError> {
        let action = Action::from(message);
        let envelope = wire::encode_as(lasting, self.node, union, scope, manner, &action);
        let (bytes, limit) = (envelope.len(), MAX_ENVELOPE);
        match bytes > limit {
            true => Err(SendError::too_large(bytes, limit)),
            false => Ok(envelope),
        }
    }

    pub(crate) fn write(
        &self,
        union: Option<u64>,
        scope: &Scope<'_>,
        action: &Action<'_>,
    ) -> Bytes {
        wire::encode(self.node, union, scope, &Manner::InTurn, action)
    }

    /// An envelope that names its whole scope, on whatever channel it travels.
    pub(crate) fn write_word(&self, scope: &Scope<'_>, id: u64, word: &Control) -> Bytes {
        let json = serde_json::to_vec(word).expect("control is plain data");
        self.write(Some(id), scope, &Action::Control(&json))
    }

    /// Tells other nodes something; queued by the call.
    pub(crate) fn say(
        &self,
        to: Topic,
        envelope: Bytes,
    ) -> BoxFuture<'static, Result<Published, PublishError>> {
        self.bus.publish(smallvec![to], envelope, Size::Small, None)
    }

    /// Asks whoever is on a topic; queued by the call, among what else is of its audience's size.
    pub(crate) fn ask(
        &self,
        on: Topic,
        question: Bytes,
        size: Size,
    ) -> BoxFuture<'static, Result<Published, PublishError>> {
        self.bus.publish(smallvec![on], question, size, None)
    }

    /// Says nothing, to learn how many nodes hear it.
    pub(crate) fn probe(&self) -> BoxFuture<'static, Result<Published, PublishError>> {
        let probe = self.write(None, &Scope::default(), &Action::Probe);
        self.say(Topic::nodes(), probe)
    }

    /// Reads what came on a topic's channel.
    pub(crate) fn open<'a>(
        &self,
        topic: &'a str,
        number: Option<Number>,
        bytes: &'a [u8],
    ) -> Inbound<'a> {
        let read = wire::unstamped(bytes).and_then(|(era, bytes)| Ok((era, wire::decode(bytes)?)));
        let (Some(topic), Ok((era, envelope))) = (TopicRef::of(topic), read) else {
            return self.garbage();
        };
        // What is numbered has its order by that.
        if number.is_none() && self.is_late(topic, era, &envelope) {
            self.counters.bus_late.fetch_add(1, Relaxed);
            return Inbound::Nothing;
        }
        let Envelope {
            origin,
            union,
            scope,
            manner,
            lasting,
            action,
        } = envelope;
        if !self.histories.is_off() && number.is_none() && lasting == Lasting::Unsaid {
            self.look_whether_kept(origin, topic, &scope, &action);
        }
        match (origin, action) {
            (Some(origin), action)
                if origin == self.node && !self.comes_back(topic, number, lasting) =>
            {
                echo(union, &action)
            }
            (Some(from), Action::Control(json)) => self.read_word(from, topic, scope, json),
            (Some(from), Action::Answer { id, more, part }) => Inbound::Answer(Part {
                from,
                id,
                more,
                part,
            }),
            (Some(from), Action::Report(json)) => Inbound::Report(from, json),
            (Some(from), Action::Watch(json)) => Inbound::Watch(from, json),
            (_, Action::Text(_) | Action::Binary(_) | Action::Close { .. })
                if self.is_another_copy(origin, union) =>
            {
                Inbound::Nothing
            }
            (_, Action::Text(text)) if topic.kind() == TopicKind::Nodes => {
                Inbound::ToNodes(origin, Content::Text(text))
            }
            (_, Action::Binary(bytes)) if topic.kind() == TopicKind::Nodes => {
                Inbound::ToNodes(origin, Content::Binary(bytes))
            }
            (_, Action::Text(text)) => {
                Inbound::Message(whom(topic, union, scope), Content::Text(text), manner)
            }
            (_, Action::Binary(bytes)) => {
                Inbound::Message(whom(topic, union, scope), Content::Binary(bytes), manner)
            }
            (_, Action::Close { code, reason }) => {
                Inbound::Close(whom(topic, union, scope), Close::new(code, &*reason))
            }
            (
                None,
                Action::Control(_) | Action::Answer { .. } | Action::Report(_) | Action::Watch(_),
            ) => Inbound::Nothing,
            (_, Action::Probe | Action::Unknown) => Inbound::Nothing,
        }
    }

    fn read_word<'a>(
        &self,
        from: NodeId,
        topic: TopicRef<'_>,
        scope: Scope<'a>,
        json: &[u8],
    ) -> Inbound<'a> {
        let hearers = match topic == TopicRef::from(&self.own) {
            true => Hearers::ThisNode,
            false => Hearers::Others,
        };
        match serde_json::from_slice(json) {
            Ok(word) => Inbound::Peer(PeerWord {
                from,
                word,
                scope,
                hearers,
            }),
            // A word of a later version.
            Err(_) if serde_json::from_slice::<IgnoredAny>(json).is_ok() => Inbound::Nothing,
            Err(_) => self.garbage(),
        }
    }

    /// Whether it comes behind what its node published later.
    fn is_late(&self, topic: TopicRef<'_>, era: u32, envelope: &Envelope<'_>) -> bool {
        let Some(origin) = envelope.origin else {
            return false;
        };
        if era > 0 {
            self.has_moved.store(true, Relaxed);
        } else if !self.has_moved.load(Relaxed) {
            return false;
        }
        let partition = Partition::of(topic.as_str());
        self.eras.lock().is_behind(origin, partition, era)
    }

    /// Whether a node should have kept this.
    fn look_whether_kept(
        &self,
        origin: Option<NodeId>,
        topic: TopicRef<'_>,
        scope: &Scope<'_>,
        action: &Action<'_>,
    ) {
        let is_kept = |topic: &TopicRef<'_>| self.histories.of(topic.kind()).is_some();
        let concerns = match scope.targets.as_slice() {
            [] => is_kept(&topic),
            targets => targets.iter().any(is_kept),
        };
        let (Some(from), Action::Text(_) | Action::Binary(_)) = (origin, action) else {
            return;
        };
        if from == self.node || !concerns {
            return;
        }
        self.counters.history_unkept.fetch_add(1, Relaxed);
        let mut unkept = self.unkept.lock();
        if unkept.known.len() < MOST_UNKEPT && unkept.known.insert(from) {
            unkept.news = Some(from);
        }
    }

    /// A node that was just found not to keep what it should, once.
    pub(crate) fn take_unkept(&self) -> Option<NodeId> {
        if self.histories.is_off() {
            return None;
        }
        self.unkept.lock().news.take()
    }

    /// Keeps a Close, so that it reaches those who are cut off; whoever is there was told otherwise. Queued by the call; nothing, where
    /// nothing is kept.
    pub(crate) fn keep_close(
        &self,
        selection: &Selection,
        close: &Close,
    ) -> Option<BoxFuture<'static, Result<Published, PublishError>>> {
        let Course { keep, .. } = self.course(selection, false);
        // Where each copy is for its own topic alone, none names the others.
        let (keep, is_union) = match keep? {
            Keep::Each => (Keep::Silent(selection.filter(|_| true)), false),
            keep => (keep, true),
        };
        let number = self.next_union.fetch_add(1, Relaxed);
        let action = Action::Close {
            code: close.code.0,
            reason: close.wire_reason().into(),
        };
        let (scope, manner) = (selection.scope(), Manner::InTurn);
        let (lasting, union) = (Lasting::Kept(number), is_union.then_some(number));
        let envelope = wire::encode_as(lasting, self.node, union, &scope, &manner, &action);
        let (nowhere, size) = (SmallVec::new(), selection.size());
        Some(self.bus.publish(nowhere, envelope, size, Some(keep)))
    }

    /// Whether this node's own message, come back, is for its own sockets.
    fn comes_back(&self, topic: TopicRef<'_>, number: Option<Number>, lasting: Lasting) -> bool {
        match (number, lasting) {
            (Some(_), Lasting::Kept(number)) => self.echoes.lock().came(number, topic),
            _ => false,
        }
    }

    /// What is kept of one topic.
    pub(crate) async fn kept(&self, selection: &Selection) -> Result<Kept, QueryError> {
        let Some(topic) = selection.only() else {
            return Err(QueryError::not_kept(NOT_ONE));
        };
        let Some(history) = self.histories.of(topic.kind()) else {
            return Err(QueryError::not_kept(OFF));
        };
        let limits = ReadLimits {
            entries: history.most(),
            bytes: usize::MAX,
        };
        let topics = slice::from_ref(topic);
        let past = self.bus.read(topics, None, limits).await;
        let past = past.map_err(QueryError::bus)?;
        let key = self.keyring.key().await.map_err(QueryError::bus)?;
        let parts = Parts {
            clock: self.bus.clock(topic),
            marks: past.cuts(),
            ..Parts::default()
        };
        let entries = past.topics.into_iter().find_map(|topic| topic.entries.ok());
        let entries = entries.unwrap_or_default();
        let messages = entries
            .iter()
            .filter_map(|entry| read_kept(&entry.envelope));
        let mut messages: Vec<Message> = messages.collect();
        messages.drain(..messages.len().saturating_sub(history.messages));
        Ok(Kept {
            messages,
            position: token::write(&parts, &key),
        })
    }

    /// Whether a union was acted on already.
    fn is_another_copy(&self, origin: Option<NodeId>, union: Option<u64>) -> bool {
        match (origin, union) {
            (Some(origin), Some(union)) if union != ONE_COPY => {
                !self.unions.lock().insert(origin, union)
            }
            _ => false,
        }
    }

    /// What came makes no sense.
    pub(crate) fn garbage<'a>(&self) -> Inbound<'a> {
        self.counters.bus_garbage.fetch_add(1, Relaxed);
        Inbound::Nothing
    }

    /// The node has left, and sends no more copies.
    pub(crate) fn forget(&self, node: NodeId) {
        self.unions.lock().forget(node);
        self.eras.lock().forget(node);
    }
}

/// What a send is told beside the message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    pub(crate) reach: Reach,
    /// Not kept, whatever is.
    pub(crate) is_ephemeral: bool,
}

/// How a message travels: on which topics, its number where it names its targets, and how it is kept.
#[derive(Debug, Default)]
struct Course {
    topics: SmallVec<[Topic; 1]>,
    union: Option<u64>,
    keep: Option<Keep>,
}

/// A message that is queued.
#[must_use = "it is queued, and what becomes of it is told to whoever waits"]
pub(crate) struct Sending<'a> {
    uplink: &'a Uplink,
    since: Since,
    publishing: Option<BoxFuture<'static, Result<Published, PublishError>>>,
    is_known: bool,
    /// The first copy is for all of it.
    is_union: bool,
    begun: Option<Begun<'a>>,
}

/// What became of one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    /// Other nodes that took it, where that can be known.
    pub(crate) nodes: Option<usize>,
    pub(crate) mark: Option<(Clock, Mark)>,
    pub(crate) key: Option<Key>,
}

/// What of a message that the bus refused this node's own sockets have already.
#[derive(Debug)]
pub(crate) enum Came {
    Whole,
    /// What came back on these topics.
    On(SmallVec<[Topic; 1]>),
}

impl Sending<'_> {
    /// Whether this node's own sockets get it when it comes back.
    pub(crate) fn is_kept(&self) -> bool {
        self.begun.is_some()
    }

    /// What became of it; and where it failed, what has come back all the same.
    pub(crate) async fn end(self) -> Result<Sent, (PublishError, Came)> {
        let published = match self.publishing {
            None => Ok(Published::default()),
            Some(publishing) => self.uplink.published(self.since, publishing.await),
        };
        match published {
            Ok(published) => Ok(Sent {
                nodes: self.is_known.then_some(published.nodes),
                mark: published.mark,
                key: match published.mark {
                    Some(_) => self.uplink.keyring.signing().await,
                    None => None,
                },
            }),
            Err(error) => {
                let counters = &self.uplink.counters;
                counters.record_failed_publish(error.maybe_sent);
                let came = match self.begun {
                    None => Came::Whole,
                    Some(begun) => match begun.fail() {
                        came if self.is_union && !came.is_empty() => Came::Whole,
                        came => Came::On(came),
                    },
                };
                Err((error, came))
            }
        }
    }
}

/// A kept message, until it is known what became of it.
struct Begun<'a> {
    uplink: &'a Uplink,
    number: u64,
}

impl<'a> Begun<'a> {
    fn of(uplink: &'a Uplink, number: u64) -> Self {
        uplink.echoes.lock().begin(number);
        Self { uplink, number }
    }

    fn fail(self) -> SmallVec<[Topic; 1]> {
        self.uplink.echoes.lock().fail(self.number)
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.uplink.echoes.lock().end(self.number);
    }
}

/// The message in an envelope, if there is one.
fn read_kept(envelope: &[u8]) -> Option<Message> {
    match wire::decode(envelope).ok()?.action {
        Action::Text(text) => Some(Content::Text(text).message()),
        Action::Binary(bytes) => Some(Content::Binary(bytes).message()),
        _ => None,
    }
}

/// What is kept, as those get it who missed it.
pub(crate) fn read_entry(envelope: &[u8]) -> Option<(Scope<'_>, Content<'_>)> {
    let Envelope { scope, action, .. } = wire::decode(envelope).ok()?;
    match action {
        Action::Text(text) => Some((scope, Content::Text(text))),
        Action::Binary(bytes) => Some((scope, Content::Binary(bytes))),
        _ => None,
    }
}

/// Most nodes that are remembered for that.
const MOST_UNKEPT: usize = 1024;

const NOT_ONE: &str = "history is told of one audience at a time: one user, one room, or all";
const OFF: &str = "nothing is kept of such an audience: set `user_history`, `room_history` or `all_history` when the cluster is built";

/// Of what this node said itself: its own copy of a question proves that it hears the answers.
fn echo<'a>(number: Option<u64>, action: &Action<'_>) -> Inbound<'a> {
    match (action, number) {
        (Action::Control(_), Some(id)) => Inbound::Echo(id),
        _ => Inbound::Nothing,
    }
}

/// Where no union is named, whoever is on the topic.
fn whom<'a>(topic: TopicRef<'a>, union: Option<u64>, mut scope: Scope<'a>) -> Scope<'a> {
    if union.is_none() {
        scope.targets.push(topic);
    }
    scope
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use super::*;
    use crate::bus::{Backend, BusSettings};
    use crate::model::history::Histories;
    use crate::model::topic::Namespace;

    const US: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);

    fn uplink() -> Uplink {
        let settings = BusSettings {
            namespace: Namespace::new("x").unwrap(),
            publish_timeout: Duration::from_secs(5),
            probe_interval: Duration::from_secs(5),
            lease: Duration::from_secs(15),
            linger: Duration::ZERO,
            seats: None,
            histories: Histories::default(),
        };
        let bus = Backend::memory().open(US, settings);
        Uplink::new(
            US,
            bus.into(),
            Arc::default(),
            Histories::default(),
            Duration::from_secs(2),
        )
    }

    fn garbage(uplink: &Uplink) -> u64 {
        uplink.counters.bus_garbage.load(Relaxed)
    }

    fn scope<'a>(targets: &[&'a str]) -> Scope<'a> {
        Scope {
            targets: targets
                .iter()
                .filter_map(|name| TopicRef::of(name))
                .collect(),
            ..Scope::default()
        }
    }

    fn text(union: Option<u64>, named: &[&str]) -> Bytes {
        wire::encode(
            OTHER,
            union,
            &scope(named),
            &Manner::InTurn,
            &Action::Text("hi".into()),
        )
    }

    #[test]
    fn what_comes_on_a_topic_is_for_whoever_is_on_it() {
        let uplink = uplink();
        let hi = || Content::Text("hi".into());
        let (plain, foreign) = (text(None, &[]), r#"{"text":"hi"}"#);
        for bytes in [&plain, foreign.as_bytes()] {
            let opened = uplink.open("r:x", None, bytes);
            assert_eq!(
                opened,
                Inbound::Message(scope(&["r:x"]), hi(), Manner::InTurn)
            );
            let again = uplink.open("r:x", None, bytes);
            assert_eq!(again, opened, "it has no number");
        }
        let close = uplink.open("u:a", None, br#"{"close":{"code":4000}}"#);
        assert_eq!(close, Inbound::Close(scope(&["u:a"]), Close::new(4000, "")));
    }

    #[test]
    fn of_a_union_the_first_copy_counts() {
        let uplink = uplink();
        let union = text(Some(7), &["r:x", "u:a"]);
        let message = Inbound::Message(
            scope(&["r:x", "u:a"]),
            Content::Text("hi".into()),
            Manner::InTurn,
        );
        assert_eq!(uplink.open("r:x", None, &union), message);
        assert_eq!(uplink.open("u:a", None, &union), Inbound::Nothing);
        uplink.forget(OTHER);
        assert_eq!(uplink.open("u:a", None, &union), message);
        let single = text(Some(ONE_COPY), &["s:x"]);
        for _ in 0..2 {
            assert_ne!(uplink.open("n:1", None, &single), Inbound::Nothing);
        }
        assert_eq!(garbage(&uplink), 0);
    }

    #[test]
    fn of_its_own_words_a_node_hears_that_a_question_came_back() {
        let uplink = uplink();
        let own = |union, action| wire::encode(US, union, &scope(&[]), &Manner::InTurn, &action);
        let ask = own(Some(5), Action::Control(br#"{"ping":{"id":5}}"#));
        assert_eq!(uplink.open("nodes", None, &ask), Inbound::Echo(5));
        for action in [
            Action::Text("hi".into()),
            Action::Probe,
            Action::Report(b"{}"),
            Action::Watch(b"{}"),
        ] {
            assert_eq!(
                uplink.open("all", None, &own(None, action)),
                Inbound::Nothing
            );
        }
        assert_eq!(garbage(&uplink), 0);
    }

    #[test]
    fn a_word_says_whether_others_hear_it() {
        let uplink = uplink();
        let bye = wire::encode(
            OTHER,
            Some(0),
            &scope(&[]),
            &Manner::InTurn,
            &Action::Control(br#""bye""#),
        );
        let own = Topic::node(US);
        for (topic, expected) in [
            (own.as_str(), Hearers::ThisNode),
            ("nodes", Hearers::Others),
            ("n:2", Hearers::Others),
        ] {
            let Inbound::Peer(said) = uplink.open(topic, None, &bye) else {
                panic!("{topic}");
            };
            assert_eq!(said.word, Control::Bye);
            assert_eq!((said.from, said.hearers), (OTHER, expected));
        }
    }

    #[test]
    fn what_comes_behind_what_was_published_later_is_dropped_and_counted() {
        let uplink = uplink();
        let plain = text(None, &[]);
        let era = |n| NonZeroU32::new(n).unwrap();
        let stamped = |n| [&wire::stamp(era(n))[..], &plain].concat();
        let is_heard = |bytes: &[u8], topic: &str| {
            let before = uplink.counters.bus_late.load(Relaxed);
            let is_heard = uplink.open(topic, None, bytes) != Inbound::Nothing;
            let late = uplink.counters.bus_late.load(Relaxed) - before;
            assert_eq!(late, u64::from(!is_heard));
            is_heard
        };
        assert!(is_heard(&plain, "r:x"));
        assert!(is_heard(&stamped(2), "r:x"));
        assert!(is_heard(&stamped(2), "r:x"));
        assert!(!is_heard(&stamped(1), "r:x"));
        assert!(!is_heard(&plain, "r:x"));
        assert!(is_heard(br#"{"text":"hi"}"#, "r:x"), "of no node");
        assert_ne!(Partition::of("r:x"), Partition::of("r:y"), "control");
        assert!(is_heard(&plain, "r:y"), "it has not moved");
        assert_eq!(
            uplink.open("r:x", None, &wire::stamp(era(3))),
            Inbound::Nothing
        );
        assert_eq!(garbage(&uplink), 1);
    }

    #[test]
    fn garbage_is_counted_and_what_a_later_version_says_is_not() {
        let uplink = uplink();
        let control = |json: &'static [u8]| {
            wire::encode(
                OTHER,
                Some(1),
                &scope(&[]),
                &Manner::InTurn,
                &Action::Control(json),
            )
        };
        let mut later = text(None, &[]).to_vec();
        later[1] = 200;
        for bytes in [&control(br#"{"dance":{}}"#)[..], &later] {
            assert_eq!(uplink.open("nodes", None, bytes), Inbound::Nothing);
        }
        assert_eq!(garbage(&uplink), 0);
        for bytes in [&control(b"{")[..], b"", b"{}"] {
            assert_eq!(uplink.open("nodes", None, bytes), Inbound::Nothing);
        }
        assert_eq!(garbage(&uplink), 3);
    }
}
