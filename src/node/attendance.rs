//! Who is online: one task per node tells the others who comes and goes here, and its own readers what
//! all of them tell.
//!
//! Nothing is said or kept for topics that nobody watches, once it is noticed that nobody does.

use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;
use serde::Serialize;
use smallvec::smallvec;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::Node;
use crate::id::{NodeId, UserId};
use crate::presence::{Announcer, Presence, PresenceChange, Reader, Table, Tidings, Wish};
use crate::scope::Scope;
use crate::topic::Topic;
use crate::wire::{self, Action};

/// Who comes and goes here within so long is told together.
const GATHER: Duration = Duration::from_millis(10);
/// What could not be told is told again after this long.
const RETRY: Duration = Duration::from_secs(1);
/// Tidings that wait to be read. With more, all are dropped and asked for afresh.
const MAX_TIDINGS: usize = 1024;

/// What the task is told.
#[derive(Debug, Default)]
pub(super) struct Desk {
    /// Whether anything is watched at all: nothing else is looked at on the way of a socket.
    watched: AtomicBool,
    mail: Mutex<Mail>,
    arrived: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Mail {
    /// Topics of whose users the task is told.
    watched: HashSet<Topic>,
    news: News,
}

/// What came since the task last looked.
#[derive(Debug, Default)]
struct News {
    touched: HashMap<Topic, HashSet<UserId>>,
    readers: Vec<(Topic, Weak<Reader>)>,
    /// Whether these nodes want to be told of these topics: of each the last word, which is never dropped
    /// since nobody repeats it.
    wishes: HashMap<(NodeId, Topic), bool>,
    events: VecDeque<Event>,
    /// Tidings among the events.
    tidings: usize,
}

#[derive(Debug)]
pub(super) enum Event {
    /// A node is new, or may have missed what we want to be told.
    Joined(NodeId),
    Left(NodeId),
    /// We may have missed something ourselves.
    Returned,
    /// [`Tidings`] of another node.
    Said(NodeId, Bytes),
    /// The node is shut down.
    Stop,
}

impl Desk {
    /// A user's sockets on these topics may be others than before.
    pub(super) fn touch<'a>(&self, user: &UserId, topics: impl IntoIterator<Item = &'a Topic>) {
        if !self.watched.load(SeqCst) {
            return;
        }
        let Mail { watched, news } = &mut *self.mail.lock();
        for topic in topics {
            if watched.contains(topic) {
                let touched = news.touched.entry(topic.clone()).or_default();
                touched.insert(user.clone());
                self.arrived.notify_one();
            }
        }
    }

    pub(super) fn tell(&self, event: Event) {
        let news = &mut self.mail.lock().news;
        if let Event::Left(other) = event {
            news.wishes.retain(|(node, _), _| *node != other);
        }
        if matches!(event, Event::Said(..)) {
            if news.tidings == MAX_TIDINGS {
                news.events
                    .retain(|event| !matches!(event, Event::Said(..)));
                news.events.push_back(Event::Returned);
                news.tidings = 0;
            }
            news.tidings += 1;
        }
        news.events.push_back(event);
        self.arrived.notify_one();
    }

    fn wish(&self, node: NodeId, wish: &Wish) {
        if let Some(topic) = Topic::with_presence(wish.topic()) {
            let watches = matches!(wish, Wish::Watch { .. });
            self.mail.lock().news.wishes.insert((node, topic), watches);
            self.arrived.notify_one();
        }
    }

    fn watch(&self, topic: &Topic, watched: bool) {
        let mail = &mut *self.mail.lock();
        if watched {
            mail.watched.insert(topic.clone());
        } else {
            mail.watched.remove(topic);
            mail.news.touched.remove(topic);
        }
        self.watched.store(!mail.watched.is_empty(), SeqCst);
    }

    fn is_touched(&self) -> bool {
        !self.mail.lock().news.touched.is_empty()
    }

    fn take(&self) -> News {
        std::mem::take(&mut self.mail.lock().news)
    }
}

/// The task holds no node, and is told so that it ends with it.
impl Drop for Desk {
    fn drop(&mut self) {
        self.arrived.notify_one();
    }
}

impl Node {
    /// A reader of who comes to a topic and goes from it.
    pub(crate) fn presence(&self, topic: Topic, users: Option<HashSet<UserId>>) -> Presence {
        let reader = Arc::new(Reader::new(users, self.desk.arrived.clone()));
        let entry = (topic, Arc::downgrade(&reader));
        self.desk.mail.lock().news.readers.push(entry);
        self.desk.arrived.notify_one();
        // Looked at afterwards: either we see the end, or the task sees the reader before it ends.
        if self.stopped.load(SeqCst) {
            reader.end();
        }
        Presence::new(reader)
    }

    pub(super) fn heard_presence(&self, origin: NodeId, json: &[u8]) {
        // Tidings, which may be long, are no wish from their first word on.
        match serde_json::from_slice(json) {
            Ok(wish) => self.desk.wish(origin, &wish),
            Err(_) => {
                let json = Bytes::copy_from_slice(json);
                self.desk.tell(Event::Said(origin, json));
            }
        }
    }

    /// How many nodes were told; none if it may be lost.
    async fn say_presence(&self, to: Topic, what: &impl Serialize) -> Option<usize> {
        // Nothing is waited for that is known to fail.
        self.hearing()?;
        let json = serde_json::to_vec(what).expect("tidings are plain data");
        let action = Action::Presence(&json);
        let envelope = wire::encode(self.id, None, &Scope::default(), &action);
        self.bus.publish(smallvec![to], envelope).await.ok()
    }

    async fn say_everybody(&self, to: Topic, announcer: &Announcer) -> Option<usize> {
        let mut told = 0;
        for part in announcer.everybody() {
            told = self.say_presence(to.clone(), &part).await?;
        }
        Some(told)
    }
}

/// Runs as long as the node lives and is not shut down.
pub(super) async fn attend(node: Weak<Node>) {
    let Some(arrived) = node.upgrade().map(|node| node.desk.arrived.clone()) else {
        return;
    };
    let mut attendance = Attendance::default();
    loop {
        let next = attendance.next_look();
        tokio::select! {
            () = arrived.notified() => {
                if node.upgrade().is_some_and(|node| node.desk.is_touched()) {
                    sleep(GATHER).await;
                }
            }
            () = async { sleep_until(next.unwrap_or_else(Instant::now)).await }, if next.is_some() => {}
        }
        let Some(node) = node.upgrade() else { break };
        match AssertUnwindSafe(attendance.look(&node))
            .catch_unwind()
            .await
        {
            Ok(Look::Again) => {}
            Ok(Look::Stop) => break,
            Err(_) => tracing::error!("the presence task panicked and goes on"),
        }
    }
    attendance.end();
}

#[derive(Debug, PartialEq, Eq)]
enum Look {
    Again,
    Stop,
}

/// What the task keeps of each topic that somebody watches.
#[derive(Debug, Default)]
struct Attendance {
    topics: HashMap<Topic, Attended>,
    /// Where it is to be said again of whom our readers want to be told.
    unasked: HashSet<Topic>,
    retry_at: Option<Instant>,
}

#[derive(Debug)]
struct Attended {
    announcer: Announcer,
    /// Other nodes that are told.
    watchers: HashSet<NodeId>,
    /// For readers of this node.
    feed: Option<Feed>,
}

#[derive(Debug)]
struct Feed {
    table: Table,
    readers: Vec<Weak<Reader>>,
}

impl Attendance {
    fn next_look(&self) -> Option<Instant> {
        let feeds = self
            .topics
            .values()
            .filter_map(|attended| attended.feed.as_ref());
        let ends = feeds.filter_map(|feed| feed.table.next_end());
        ends.chain(self.retry_at).min()
    }

    async fn look(&mut self, node: &Node) -> Look {
        let News {
            touched,
            readers,
            wishes,
            events,
            ..
        } = node.desk.take();
        for (topic, reader) in readers {
            self.add_reader(node, topic, reader).await;
        }
        for event in events {
            if self.note(node, event).await == Look::Stop {
                return Look::Stop;
            }
        }
        for ((other, topic), watches) in wishes {
            self.heed(node, other, &topic, watches).await;
        }
        for (topic, users) in touched {
            self.tell_changes(node, &topic, users).await;
        }
        self.repair(node).await;
        self.inform_readers(node).await;
        self.topics.retain(|topic, attended| {
            let needed = attended.feed.is_some() || !attended.watchers.is_empty();
            if !needed {
                node.desk.watch(topic, false);
            }
            needed
        });
        Look::Again
    }

    fn attended(&mut self, node: &Node, topic: &Topic) -> &mut Attended {
        self.topics.entry(topic.clone()).or_insert_with(|| {
            // First told of changes, then looked at: nothing falls in between.
            node.desk.watch(topic, true);
            let users = node.registry.read().users_on(topic);
            Attended {
                announcer: Announcer::new(topic.clone(), users),
                watchers: HashSet::new(),
                feed: None,
            }
        })
    }

    async fn add_reader(&mut self, node: &Node, topic: Topic, reader: Weak<Reader>) {
        let attended = self.attended(node, &topic);
        let is_new = attended.feed.is_none();
        let feed = attended.feed.get_or_insert_with(|| {
            let mut table = Table::new(node.config.presence_grace);
            for user in attended.announcer.told() {
                table.came(node.id, user.clone());
            }
            let readers = Vec::new();
            Feed { table, readers }
        });
        feed.inform();
        if let Some(reader) = reader.upgrade() {
            for user in feed.table.online() {
                reader.push(&PresenceChange::Online(user.clone()));
            }
        }
        feed.readers.push(reader);
        if is_new {
            let confirmation = node.bus.want(&topic.presence());
            node.settled(confirmation).await;
            self.ask_to_be_told_of(node, &topic, Topic::nodes()).await;
        }
    }

    async fn note(&mut self, node: &Node, event: Event) -> Look {
        match event {
            Event::Stop => return Look::Stop,
            Event::Said(origin, json) => match serde_json::from_slice(&json) {
                Ok(tidings) => self.heard(node, origin, tidings).await,
                // A word of a later version.
                Err(_) => tracing::debug!(other = %origin, "tidings that make no sense here"),
            },
            Event::Joined(other) => self.ask_to_be_told(node, &Topic::node(other)).await,
            Event::Left(other) => {
                let now = Instant::now();
                for attended in self.topics.values_mut() {
                    attended.watchers.remove(&other);
                    if let Some(feed) = &mut attended.feed {
                        feed.table.forget(other, now);
                    }
                }
            }
            Event::Returned => {
                for attended in self.topics.values_mut() {
                    attended.announcer.may_have_been_missed();
                }
                self.ask_to_be_told(node, &Topic::nodes()).await;
            }
        }
        Look::Again
    }

    async fn ask_to_be_told(&mut self, node: &Node, to: &Topic) {
        let read =
            |(topic, attended): (&Topic, &Attended)| attended.feed.is_some().then(|| topic.clone());
        let read: Vec<Topic> = self.topics.iter().filter_map(read).collect();
        for topic in read {
            if !self.ask_to_be_told_of(node, &topic, to.clone()).await {
                return;
            }
        }
    }

    /// Whether it was asked; if not, it will be.
    async fn ask_to_be_told_of(&mut self, node: &Node, topic: &Topic, to: Topic) -> bool {
        let topic = topic.as_str().to_owned();
        let watch = Wish::Watch { topic };
        let asked = node.say_presence(to.clone(), &watch).await.is_some();
        if !asked {
            self.unasked.insert(to);
        }
        asked
    }

    /// Another node wants to be told of a topic, or does no longer.
    async fn heed(&mut self, node: &Node, other: NodeId, topic: &Topic, watches: bool) {
        if watches {
            let attended = self.attended(node, topic);
            attended.watchers.insert(other);
            let told = node.say_everybody(Topic::node(other), &attended.announcer);
            if told.await.is_none() {
                attended.announcer.may_have_been_missed();
            }
        } else if let Some(attended) = self.topics.get_mut(topic) {
            attended.watchers.remove(&other);
        }
    }

    async fn heard(&mut self, node: &Node, origin: NodeId, tidings: Tidings) {
        let Some(topic) = Topic::with_presence(tidings.topic()) else {
            return;
        };
        let Some(attended) = self.topics.get_mut(&topic) else {
            return;
        };
        // Of a node that is no member, nobody would ever notice the end: it says hello first.
        let is_member = node.members.lock().ids().any(|id| id == origin);
        if let Some(feed) = attended.feed.as_mut().filter(|_| is_member) {
            feed.table.heard(origin, tidings, Instant::now());
        }
    }

    async fn tell_changes(&mut self, node: &Node, topic: &Topic, touched: HashSet<UserId>) {
        let Some(attended) = self.topics.get_mut(topic) else {
            return;
        };
        let changes = attended.announcer.changes(touched, |user| {
            let user = Topic::user(user);
            user.is_ok_and(|user| node.registry.read().has_user_on(&user, topic))
        });
        let Some(changes) = changes else { return };
        if !attended.watchers.is_empty() {
            let told = node.say_presence(topic.presence(), &changes).await;
            attended.note_told(told);
        }
        if let Some(feed) = &mut attended.feed {
            feed.table.heard(node.id, changes, Instant::now());
        }
    }

    /// Tells everything again where something may have been missed.
    async fn repair(&mut self, node: &Node) {
        let now = Instant::now();
        if self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.retry_at = None;
        for to in std::mem::take(&mut self.unasked) {
            self.ask_to_be_told(node, &to).await;
        }
        let stale = |(_, attended): &(&Topic, &mut Attended)| attended.announcer.is_stale();
        let mut missed = !self.unasked.is_empty();
        for (topic, attended) in self.topics.iter_mut().filter(stale) {
            attended.announcer.told_everybody();
            if !attended.watchers.is_empty() {
                let told = node.say_everybody(topic.presence(), &attended.announcer);
                attended.note_told(told.await);
            }
            if attended.announcer.is_stale() {
                missed = true;
                break;
            }
        }
        self.retry_at = missed.then(|| now + RETRY);
    }

    async fn inform_readers(&mut self, node: &Node) {
        let now = Instant::now();
        for (topic, attended) in &mut self.topics {
            let Some(feed) = &mut attended.feed else {
                continue;
            };
            feed.table.advance(now);
            feed.inform();
            feed.readers.retain(|reader| reader.strong_count() > 0);
            if feed.readers.is_empty() {
                attended.feed = None;
                node.bus.release(&topic.presence());
                let topic = topic.as_str().to_owned();
                let unwatch = Wish::Unwatch { topic };
                // Whoever does not hear it will find that nobody listens.
                let _ = node.say_presence(Topic::nodes(), &unwatch).await;
            }
        }
    }

    fn end(&self) {
        let feeds = self
            .topics
            .values()
            .filter_map(|attended| attended.feed.as_ref());
        let readers = feeds.flat_map(|feed| &feed.readers);
        readers
            .filter_map(Weak::upgrade)
            .for_each(|reader| reader.end());
    }
}

impl Attended {
    /// How many nodes were told what concerns all watchers; none if it may be lost.
    fn note_told(&mut self, told: Option<usize>) {
        match told {
            Some(0) => self.watchers.clear(),
            Some(_) => {}
            None => self.announcer.may_have_been_missed(),
        }
    }
}

impl Feed {
    fn inform(&mut self) {
        let changes = self.table.take_changes();
        for reader in self.readers.iter().filter_map(Weak::upgrade) {
            changes.iter().for_each(|change| reader.push(change));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: NodeId = NodeId(1);

    fn watch(topic: &Topic) -> Wish {
        let topic = topic.as_str().to_owned();
        Wish::Watch { topic }
    }

    #[test]
    fn too_many_tidings_are_asked_for_afresh_and_wishes_stay() {
        let (desk, all) = (Desk::default(), Topic::all());
        desk.wish(OTHER, &watch(&all));
        for _ in 0..=MAX_TIDINGS {
            desk.tell(Event::Said(OTHER, Bytes::new()));
        }
        let News { events, wishes, .. } = desk.take();
        assert!(matches!(
            events.as_slices(),
            ([Event::Returned, Event::Said(..)], [])
        ));
        assert_eq!(wishes, HashMap::from([((OTHER, all), true)]));
    }

    #[test]
    fn the_last_word_of_a_node_counts_until_it_leaves() {
        let (desk, all) = (Desk::default(), Topic::all());
        let topic = all.as_str().to_owned();
        desk.wish(OTHER, &watch(&all));
        desk.wish(OTHER, &Wish::Unwatch { topic });
        desk.wish(NodeId(2), &watch(&all));
        desk.tell(Event::Left(NodeId(2)));
        assert_eq!(desk.take().wishes, HashMap::from([((OTHER, all), false)]));
    }
}
