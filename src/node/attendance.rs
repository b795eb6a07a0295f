//! Who is online: one task per node tells the others who comes and goes here, and its own readers what
//! all of them tell.
//!
//! Nothing is said or kept for topics that nobody watches, once it is noticed that nobody does.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Weak;
use std::time::Duration;

use futures::FutureExt;
use indexmap::IndexSet;
use serde::Serialize;
use smallvec::smallvec;
use tokio::time::{Instant, sleep, sleep_until};

use super::Node;
use super::desk::{Event, News};
use crate::id::{NodeId, UserId};
use crate::presence::{Directory, PresenceChange, Reader, Report, Told, WatchRequest};
use crate::scope::{Scope, Size};
use crate::topic::Topic;
use crate::wire::{self, Action};

/// Who comes and goes here within so long is told together.
const GATHER: Duration = Duration::from_millis(10);
/// What could not be told is told again after this long.
const RETRY: Duration = Duration::from_secs(1);
/// Topics that are asked for, or told again, at a time.
const PORTION: usize = 64;

impl Node {
    /// How many nodes were told; none if it may be lost.
    async fn say_presence(&self, to: Topic, what: &impl Serialize) -> Option<usize> {
        // Nothing is waited for that is known to fail.
        self.hearing()?;
        let json = serde_json::to_vec(what).expect("tidings are plain data");
        let action = Action::Presence(&json);
        let envelope = wire::encode(self.id, None, &Scope::default(), &action);
        let published = self.bus.publish(smallvec![to], envelope, Size::Small).await;
        Some(published.ok()?.nodes)
    }

    async fn say_everybody(&self, to: Topic, announcer: &Told) -> Option<usize> {
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
    /// Whom to ask to be told of which topics.
    unasked: IndexSet<(Topic, Topic)>,
    /// The nodes told more at once than could be kept: they are asked one after the other.
    one_by_one: bool,
    /// When to go on with what is to be asked and told again.
    retry_at: Option<Instant>,
}

#[derive(Debug)]
struct Attended {
    announcer: Told,
    /// Other nodes that are told.
    watchers: HashSet<NodeId>,
    /// For readers of this node.
    feed: Option<Feed>,
}

#[derive(Debug)]
struct Feed {
    table: Directory,
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
                announcer: Told::new(topic.clone(), users),
                watchers: HashSet::new(),
                feed: None,
            }
        })
    }

    async fn add_reader(&mut self, node: &Node, topic: Topic, reader: Weak<Reader>) {
        let attended = self.attended(node, &topic);
        let is_new = attended.feed.is_none();
        let feed = attended.feed.get_or_insert_with(|| {
            let mut table = Directory::new(node.config.presence_grace);
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
            self.unasked.insert((Topic::nodes(), topic));
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
            Event::Joined(other) => self.ask_to_be_told(&Topic::node(other)),
            Event::Left(other) => {
                let now = Instant::now();
                let gone = Topic::node(other);
                self.unasked.retain(|(to, _)| *to != gone);
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
                self.interrupted();
                self.ask_to_be_told(&Topic::nodes());
            }
            Event::Missed => {
                self.interrupted();
                let others: Vec<NodeId> = node.members.lock().ids().collect();
                for other in others {
                    self.ask_to_be_told(&Topic::node(other));
                }
                self.one_by_one = true;
            }
        }
        Look::Again
    }

    fn interrupted(&mut self) {
        let feeds = self.topics.values_mut().filter_map(|it| it.feed.as_mut());
        feeds.for_each(|feed| feed.table.interrupted());
    }

    fn ask_to_be_told(&mut self, to: &Topic) {
        let read = self.topics.iter().filter(|(_, it)| it.feed.is_some());
        let asks = read.map(|(topic, _)| (to.clone(), topic.clone()));
        self.unasked.extend(asks);
    }

    /// Another node wants to be told of a topic, or does no longer.
    async fn heed(&mut self, node: &Node, other: NodeId, topic: &Topic, watches: bool) {
        if watches {
            let attended = self.attended(node, topic);
            attended.watchers.insert(other);
            let told = node.say_everybody(Topic::node(other), &attended.announcer);
            match told.await {
                // It has left, and said so before.
                Some(0) => drop(attended.watchers.remove(&other)),
                Some(_) => {}
                None => attended.announcer.may_have_been_missed(),
            }
        } else if let Some(attended) = self.topics.get_mut(topic) {
            attended.watchers.remove(&other);
        }
    }

    async fn heard(&mut self, node: &Node, origin: NodeId, tidings: Report) {
        let Some(topic) = Topic::with_presence(tidings.topic()) else {
            return;
        };
        let Some(attended) = self.topics.get_mut(&topic) else {
            return;
        };
        // Of a node that is no member, nobody would ever notice the end: it says hello first.
        let is_member = node.members.lock().contains(origin);
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
        for part in changes {
            if !attended.watchers.is_empty() {
                let told = node.say_presence(topic.presence(), &part).await;
                attended.note_told(told);
            }
            if let Some(feed) = &mut attended.feed {
                feed.table.heard(node.id, part, Instant::now());
            }
        }
    }

    /// Asks where we may not be told, and tells everything again where something may have been missed: some
    /// of it, so that what others tell meanwhile is read between one portion and the next.
    async fn repair(&mut self, node: &Node) {
        let now = Instant::now();
        if self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.retry_at = self.repair_some(node).await.map(|pause| now + pause);
    }

    /// After which pause to go on, if there is more.
    async fn repair_some(&mut self, node: &Node) -> Option<Duration> {
        let mut pause = Duration::ZERO;
        for _ in 0..PORTION {
            let Some((to, topic)) = self.unasked.pop() else {
                break;
            };
            let watch = WatchRequest::Watch {
                topic: topic.as_str().to_owned(),
            };
            if node.say_presence(to.clone(), &watch).await.is_none() {
                self.unasked.insert((to, topic));
                return Some(RETRY);
            }
            let next = self.unasked.last();
            if self.one_by_one && next.is_some_and(|(next, _)| *next != to) {
                pause = RETRY;
                break;
            }
        }
        self.one_by_one &= !self.unasked.is_empty();
        let stale = |(_, attended): &(&Topic, &mut Attended)| attended.announcer.is_stale();
        let mut stale = self.topics.iter_mut().filter(stale);
        for (topic, attended) in stale.by_ref().take(PORTION) {
            attended.announcer.told_everybody();
            if !attended.watchers.is_empty() {
                let told = node.say_everybody(topic.presence(), &attended.announcer);
                attended.note_told(told.await);
            }
            if attended.announcer.is_stale() {
                return Some(RETRY);
            }
        }
        let is_more = !self.unasked.is_empty() || stale.next().is_some();
        is_more.then_some(pause)
    }

    async fn inform_readers(&mut self, node: &Node) {
        let now = Instant::now();
        let mut ended = HashSet::new();
        for (topic, attended) in &mut self.topics {
            let Some(feed) = &mut attended.feed else {
                continue;
            };
            feed.table.advance(now);
            feed.inform();
            feed.readers.retain(|reader| reader.strong_count() > 0);
            if feed.readers.is_empty() {
                attended.feed = None;
                ended.insert(topic.clone());
                node.bus.release(&topic.presence());
                let topic = topic.as_str().to_owned();
                let unwatch = WatchRequest::Unwatch { topic };
                // Whoever does not hear it will find that nobody listens.
                let _ = node.say_presence(Topic::nodes(), &unwatch).await;
            }
        }
        if !ended.is_empty() {
            self.unasked.retain(|(_, asked)| !ended.contains(asked));
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
    use std::sync::Arc;

    use tokio::sync::Notify;

    use super::*;
    use crate::backend::Backend;
    use crate::config::Config;
    use crate::topic::Namespace;

    #[tokio::test]
    async fn who_was_told_more_than_it_could_keep_asks_one_node_after_the_other() {
        let node = Node::start(
            Config::new(Namespace::new("x").unwrap()),
            &Backend::memory(),
        );
        for id in [1, 2] {
            let mut other = node.introduce();
            other.id = NodeId(id);
            let mut members = node.members.lock();
            members.heard(other, Duration::from_secs(15), false, Instant::now());
        }
        let mut attendance = Attendance::default();
        let reader = Arc::new(Reader::new(None, Arc::new(Notify::new())));
        for room in ["a", "b", "c"] {
            let (topic, reader) = (Topic::room(room).unwrap(), Arc::downgrade(&reader));
            attendance.add_reader(&node, topic, reader).await;
        }
        assert_eq!(attendance.repair_some(&node).await, None, "all at once");

        attendance.note(&node, Event::Missed).await;
        assert_eq!(attendance.repair_some(&node).await, Some(RETRY));
        assert_eq!(attendance.unasked.len(), 3);
        assert_eq!(attendance.repair_some(&node).await, None);
        assert!(attendance.unasked.is_empty() && !attendance.one_by_one);
    }
}
