//! What a node missed on each of its links, and how far it has heard each clock: who is asked, when, and when a link is up again.
//! By the rules of [`Repair`].
//!
//! A link that is up again is not told to be before what was missed on it is delivered, and a last probe has come back:
//! ```text
//!         up            its topics are read         up, proven since then       all is delivered        up
//!  down ------> wanted ---------------------> read ----------------------> due -------------------> live ----> told
//!   ^                                                                                                 |
//!   +---- down, or its partitions are elsewhere, from each ------------------------------------------+
//! ```
//! Where Redis gives no answers, the node goes on without them, and tells a gap.
//!
//! A clock of which nothing is heard for long would stand so far back that what it kept is gone. So it is asked now and then
//! how far it has come; the node has heard it so far when a probe that was published later is back. And so it is, a moment later,
//! when a topic is heard that was not before: or what came to it by then would be taken for missed.

mod call;
mod state;
mod task;

use std::mem::take;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::call::Call;
use self::state::{State, Ticking};
pub(crate) use self::task::{Repairing, RepairsTask};
use super::outage::LinkId;
use super::past::Past;
use super::repair::{Due, Fate};
use super::{Archive, Bus, Links};
use crate::counts::Counters;
use crate::model::history::Histories;
use crate::model::history::mark::{Clock, Mark, Marks, Number};
use crate::model::id::UserId;
use crate::model::partition::{Partition, PartitionSet};
use crate::model::topic::{Topic, TopicKind, TopicRef};

/// So often a clock is asked how far it has come, within the time that it keeps.
const TICKS: u32 = 8;
/// So often whoever hears nothing is told that it goes on, within that time.
const RENEWALS: u32 = 4;

/// All clocks of a node, as it hears them.
#[derive(Debug)]
pub(crate) struct Repairs {
    archive: Arc<dyn Archive>,
    links: Arc<dyn Links>,
    histories: Histories,
    counters: Arc<Counters>,
    state: Mutex<State>,
    /// There is something to do.
    news: Arc<Notify>,
}

/// What became of what was missed on a link.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Repaired {
    /// Of these topics nobody can tell.
    pub(crate) missed: Vec<Topic>,
    /// Nor of any other.
    pub(crate) gave_up: bool,
    /// Sockets from this number on came meanwhile, and were told nothing of it.
    pub(crate) newcomers: Option<u64>,
}

impl Repairs {
    pub(crate) fn new(bus: Arc<dyn Bus>, histories: Histories, counters: Arc<Counters>) -> Self {
        let (links, places) = match histories.is_off() {
            true => (Vec::new(), Vec::new()),
            false => (bus.links(), places(&histories, &*bus)),
        };
        Self {
            archive: bus.clone(),
            links: bus,
            histories,
            counters,
            state: Mutex::new(State::new(links, places)),
            news: Arc::default(),
        }
    }

    pub(crate) fn are_off(&self) -> bool {
        self.histories.is_off()
    }

    /// What came on a topic's channel.
    pub(crate) fn came(&self, topic: &str, number: Number, envelope: &[u8]) -> Fate {
        self.state.lock().came(topic, number, envelope)
    }

    /// Of what was kept under one of these marks of a topic's clock before: which sockets have it not, if some have.
    pub(crate) fn had(&self, topic: &str, marks: &[Mark]) -> Option<u64> {
        self.state.lock().had(topic, marks)
    }

    /// A topic is heard from now on.
    pub(crate) fn confirmed(&self, topic: &str) {
        let topic = TopicRef::of(topic).map(TopicRef::to_topic);
        if let Some(topic) = topic.filter(|topic| self.is_kept(topic))
            && self.state.lock().confirmed(topic)
        {
            self.news.notify_one();
        }
    }

    /// Up to where everything is delivered, as far as that is news; and how far behind a client may be, in microseconds.
    fn take_proven(&self) -> Option<(Marks, u64)> {
        let proven = take(&mut self.state.lock().proven);
        let behind = self.shortest()? / RENEWALS;
        let behind = u64::try_from(behind.as_micros()).unwrap_or(u64::MAX);
        (!proven.is_empty()).then_some((proven, behind))
    }

    /// For how long what is kept the shortest is kept.
    fn shortest(&self) -> Option<Duration> {
        let kinds = [TopicKind::All, TopicKind::User, TopicKind::Room];
        let kept = kinds.into_iter().filter_map(|kind| self.histories.of(kind));
        kept.map(|history| history.keep).min()
    }

    /// When there is something to be asked, if it is not to be done now.
    fn until(&self) -> Option<Instant> {
        self.state.lock().until()
    }

    /// Something may be missed on a link. Sockets that come from now on have this number or later ones.
    pub(crate) fn down(&self, link: LinkId, newcomers: u64) {
        let mut state = self.state.lock();
        let line = state.links.get(&link).map(|line| line.partitions);
        if let Some(partitions) = line {
            state.lose(link, partitions, newcomers);
        }
    }

    /// Nothing is heard of a partition, and nobody knows where it is.
    pub(crate) fn stranded(&self, link: LinkId, partition: Partition, newcomers: u64) {
        let partitions = [partition].into_iter().collect();
        self.state.lock().lose(link, partitions, newcomers);
    }

    /// Partitions went from one link to another, and are there since then: what was proven before proves nothing of them there.
    pub(crate) fn moved(
        &self,
        moved: PartitionSet,
        links: (LinkId, LinkId),
        at: Instant,
        newcomers: u64,
    ) {
        if self.are_off() {
            return;
        }
        self.state.lock().moved(moved, links, at, newcomers);
    }

    /// A link is usable, proven by what was published then. What became of what was missed there, as soon as all of it is
    /// settled.
    pub(crate) fn up(&self, link: LinkId, proven: Instant) -> Option<Repaired> {
        if self.are_off() {
            return Some(Repaired::default());
        }
        let repaired = self.state.lock().up(link, proven);
        self.news.notify_one();
        repaired
    }

    /// A link is usable but for what is refused on it: what can be is repaired.
    pub(crate) fn works(&self, link: LinkId, proven: Instant) {
        if self.are_off() {
            return;
        }
        let mut state = self.state.lock();
        let repaired = state.up(link, proven);
        if let (Some(line), Some(repaired)) = (state.links.get_mut(&link), repaired) {
            line.repaired = repaired;
        }
        drop(state);
        self.news.notify_one();
    }

    /// The partitions of a link, if nothing that was missed of them is still to come.
    pub(crate) fn heard_on(&self, link: LinkId) -> Option<PartitionSet> {
        self.state.lock().heard_on(link)
    }

    /// There is something to be flushed, or let go later.
    pub(crate) fn look(&self) {
        self.news.notify_one();
    }

    /// Whether something is kept of what comes on a topic.
    fn is_kept(&self, topic: &Topic) -> bool {
        self.histories.of(topic.kind()).is_some()
    }

    fn is_current(&self, call: &Call) -> bool {
        let state = self.state.lock();
        call.parts.iter().any(|part| state.is_current(part))
    }

    /// What is to be asked next. `topics` are those that sockets here are on.
    fn next_call(&self, topics: impl FnOnce() -> Vec<Topic>) -> Option<Call> {
        let mut state = self.state.lock();
        let wanted = state.wanted();
        if !wanted.is_empty() {
            drop(state);
            // Those that come meanwhile wait until they are heard, and are told what comes then.
            let mut topics = topics();
            topics.retain(|topic| self.is_kept(topic));
            state = self.state.lock();
            state.begin(wanted, topics);
        }
        let every = self.shortest().map(|keep| keep / TICKS);
        let call = state.next_call();
        call.or_else(|| state.next_tick(every?))
    }

    /// Something was answered.
    fn answered(&self, call: Call, answer: Result<Past, Arc<str>>) {
        let (link, mut state) = (call.link, self.state.lock());
        let is_done = match answer {
            Ok(past) if call.is_tick => state.ticked(call, past),
            Ok(past) => state.answered(call, past),
            Err(reason) if call.is_tick => {
                tracing::debug!(%reason, "how far the histories have come cannot be asked");
                state.gave_up(&call)
            }
            Err(reason) => {
                tracing::warn!(%reason, "what was kept cannot be read: what was missed is told as a gap");
                state.gave_up(&call)
            }
        };
        drop(state);
        if is_done {
            self.links.probe(link);
        }
    }

    /// What is to be delivered next; what was next before is delivered. And the clocks that go on in another run, each delivered up
    /// to here.
    fn next_due(&self, most: usize) -> (Vec<Due>, Vec<(Clock, Mark)>) {
        let mut state = self.state.lock();
        let (due, missed, goes_on) = state.next_due(most);
        let live = state.released();
        drop(state);
        let was_missed = |due: &&Due| due.older_than.is_some();
        let repaired = due.iter().filter(was_missed).count() as u64;
        self.counters.history_repaired.fetch_add(repaired, Relaxed);
        let missed = missed as u64;
        self.counters.history_missed.fetch_add(missed, Relaxed);
        live.into_iter().for_each(|link| self.links.probe(link));
        (due, goes_on)
    }

    /// The task that read has panicked, and knows of nothing that it has asked.
    fn begin_anew(&self) {
        let mut state = self.state.lock();
        for heard in state.clocks.values_mut() {
            if !heard.repair.is_live() {
                heard.lose(u64::MAX);
            }
        }
        for line in state.links.values_mut() {
            line.ticking = Ticking::default();
        }
    }
}

/// Whoever reads is told to look whether the node is gone.
impl Drop for Repairs {
    fn drop(&mut self) {
        self.news.notify_one();
    }
}

/// Of each partition in which something may be kept: the clock, and a topic that nobody uses.
fn places(histories: &Histories, archive: &dyn Archive) -> Vec<Option<(Clock, Topic)>> {
    let mut places = vec![None; Partition::COUNT];
    let mut put = |topic: Topic| {
        let place = &mut places[Partition::of(topic.as_str()).index()];
        let is_new = place.is_none();
        if is_new {
            *place = Some((archive.clock(&topic), topic));
        }
        is_new
    };
    let nobody = |number: usize| {
        let name = format!("nobody {number}");
        match histories.user {
            Some(_) => Topic::user(&UserId::from(name)),
            None => Topic::room(&name),
        }
    };
    if histories.user.is_none() && histories.room.is_none() {
        put(Topic::all());
        return places;
    }
    let (mut number, mut missing) = (0, Partition::COUNT);
    while missing > 0 {
        missing -= usize::from(nobody(number).is_ok_and(&mut put));
        number += 1;
    }
    places
}
