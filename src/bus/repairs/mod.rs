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
//! how far it has come; the node has heard it so far when a probe that was published later is back.

mod call;
mod task;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem::take;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::call::{Call, Part};
pub(crate) use self::task::{Repairing, Task};
use super::Bus;
use super::outage::LinkId;
use super::past::Past;
use super::repair::{Due, Fate, HELD, Repair};
use crate::counts::Counters;
use crate::model::history::Histories;
use crate::model::history::mark::{Clock, Mark, Number};
use crate::model::id::UserId;
use crate::model::partition::{Partition, PartitionSet};
use crate::model::topic::{Topic, TopicKind};

/// Topics that are read at once, 500 in a command: 100,000 of which nothing is new take 0.2 s of Redis, 1 ms at a time (measured).
const AT_ONCE: usize = 2000;
/// The same where much came to them, since Redis serves nobody else meanwhile …
const LARGE: usize = 400;
/// … which an answer of so many bytes shows.
const MUCH: usize = 1024 * 1024;
/// So often a clock is asked how far it has come, within the time that it keeps.
const TICKS: u32 = 8;

/// All clocks of a node, as it hears them.
#[derive(Debug)]
pub(crate) struct Repairs {
    bus: Arc<dyn Bus>,
    histories: Histories,
    counters: Arc<Counters>,
    state: Mutex<State>,
    /// There is something to do.
    news: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    clocks: BTreeMap<Clock, Heard>,
    links: BTreeMap<LinkId, Line>,
    /// Of each partition: its clock, and a topic that nobody uses.
    places: Vec<Option<(Clock, Topic)>>,
    at_once: usize,
}

#[derive(Debug)]
struct Heard {
    repair: Repair,
    /// Raised when what was asked before is of no use any more.
    turn: u64,
    /// All was read by then.
    read_at: Option<Instant>,
}

/// A link, as far as repairs go.
#[derive(Debug, Default)]
struct Line {
    partitions: PartitionSet,
    /// It was up since something was missed there: that may be read.
    is_up: bool,
    /// That it is up was not told.
    is_withheld: bool,
    ticking: Ticking,
    repaired: Repaired,
}

/// How far the clocks have come.
#[derive(Debug, Default)]
struct Ticking {
    asked_at: Option<Instant>,
    is_asked: bool,
    told: Option<(Instant, Vec<(Clock, Mark)>)>,
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
        let mut state = State {
            clocks: BTreeMap::new(),
            links: BTreeMap::new(),
            places: Vec::new(),
            at_once: AT_ONCE,
        };
        if !histories.is_off() {
            state.places = places(&histories, &*bus);
            for (clock, _) in state.places.iter().flatten() {
                state.clocks.entry(*clock).or_insert_with(Heard::new);
            }
            for (link, partitions) in bus.links() {
                state.links.entry(link).or_default().partitions = partitions;
            }
        }
        Self {
            bus,
            histories,
            counters,
            state: Mutex::new(state),
            news: Arc::default(),
        }
    }

    pub(crate) fn are_off(&self) -> bool {
        self.histories.is_off()
    }

    /// What came on a topic's channel.
    pub(crate) fn came(&self, topic: &str, number: Number, envelope: &[u8]) -> Fate {
        let mut state = self.state.lock();
        let State { clocks, places, .. } = &mut *state;
        let place = places
            .get(Partition::of(topic).index())
            .and_then(Option::as_ref);
        let heard = place.and_then(|(clock, _)| clocks.get_mut(clock));
        heard.map_or(Fate::Due, |heard| {
            heard.repair.came(topic, number, envelope)
        })
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
    #[cfg(feature = "redis")]
    pub(crate) fn stranded(&self, link: LinkId, partition: Partition, newcomers: u64) {
        let partitions = [partition].into_iter().collect();
        self.state.lock().lose(link, partitions, newcomers);
    }

    /// Partitions went from one link to another.
    pub(crate) fn moved(&self, moved: PartitionSet, (from, to): (LinkId, LinkId), newcomers: u64) {
        if self.are_off() {
            return;
        }
        let mut state = self.state.lock();
        if let Some(line) = state.links.get_mut(&from) {
            line.partitions = line.partitions - moved;
            if line.partitions.is_empty() {
                state.links.remove(&from);
            }
        }
        let line = state.links.entry(to).or_default();
        line.partitions = line.partitions | moved;
        state.lose(to, moved, newcomers);
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

    /// The same of a link of which something is refused: what can be is repaired.
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
        let kinds = [TopicKind::All, TopicKind::User, TopicKind::Room];
        let kept = kinds.into_iter().filter_map(|kind| self.histories.of(kind));
        let every = kept.map(|history| history.keep / TICKS).min();
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
            self.bus.probe(link);
        }
    }

    /// What is to be delivered next; what was next before is delivered.
    fn next_due(&self, most: usize) -> Vec<Due> {
        let mut state = self.state.lock();
        let (due, missed) = state.next_due(most);
        let live = state.released();
        drop(state);
        let was_missed = |due: &&Due| due.older_than.is_some();
        let repaired = due.iter().filter(was_missed).count() as u64;
        self.counters.history_repaired.fetch_add(repaired, Relaxed);
        let missed = missed as u64;
        self.counters.history_missed.fetch_add(missed, Relaxed);
        live.into_iter().for_each(|link| self.bus.probe(link));
        due
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

impl State {
    fn clocks_of(&self, partitions: PartitionSet) -> BTreeSet<Clock> {
        let of = |partition: Partition| self.places.get(partition.index())?.as_ref();
        let places = partitions.iter().filter_map(of);
        places.map(|(clock, _)| *clock).collect()
    }

    fn lose(&mut self, link: LinkId, partitions: PartitionSet, newcomers: u64) {
        let clocks = self.clocks_of(partitions);
        let Some(line) = self.links.get_mut(&link) else {
            return;
        };
        (line.is_up, line.is_withheld) = (false, false);
        line.ticking = Ticking::default();
        for clock in clocks {
            if let Some(heard) = self.clocks.get_mut(&clock) {
                heard.lose(newcomers);
                line.repaired.newcomers.get_or_insert(newcomers);
            }
        }
    }

    fn up(&mut self, link: LinkId, proven: Instant) -> Option<Repaired> {
        let carried = self.links.get(&link).map(|line| line.partitions)?;
        let clocks = self.clocks_of(carried);
        let line = self.links.get_mut(&link)?;
        line.is_up = true;
        let ticked = line.ticking.told.take_if(|(at, _)| *at <= proven);
        for (clock, mark) in ticked.into_iter().flat_map(|(_, told)| told) {
            if let Some(heard) = self.clocks.get_mut(&clock)
                && !heard.repair.advance(mark)
            {
                heard.lose(u64::MAX);
            }
        }
        let mut are_live = true;
        for clock in clocks {
            if let Some(heard) = self.clocks.get_mut(&clock) {
                if heard.read_at.take_if(|at| *at <= proven).is_some() {
                    heard.repair.came_back();
                }
                are_live &= heard.repair.is_live();
            }
        }
        line.is_withheld = !are_live;
        are_live.then(|| take(&mut line.repaired))
    }

    /// The clocks that may be read.
    fn wanted(&self) -> Vec<(LinkId, Clock)> {
        let mut wanted = Vec::new();
        for (link, line) in self.links.iter().filter(|(_, line)| line.is_up) {
            let clocks = self.clocks_of(line.partitions).into_iter();
            let is_deaf = |clock: &Clock| {
                let heard = self.clocks.get(clock);
                heard.is_some_and(|heard| heard.repair.is_deaf())
            };
            wanted.extend(clocks.filter(is_deaf).map(|clock| (*link, clock)));
        }
        wanted
    }

    fn begin(&mut self, wanted: Vec<(LinkId, Clock)>, topics: Vec<Topic>) {
        let mut by_clock: HashMap<Clock, Vec<Topic>> = HashMap::new();
        for topic in topics {
            let place = self.places.get(Partition::of(topic.as_str()).index());
            if let Some((clock, _)) = place.and_then(Option::as_ref) {
                by_clock.entry(*clock).or_default().push(topic);
            }
        }
        for (link, clock) in wanted {
            let (Some(line), Some(heard)) =
                (self.links.get_mut(&link), self.clocks.get_mut(&clock))
            else {
                continue;
            };
            // It may have gone down again.
            if line.is_up && heard.repair.is_deaf() {
                line.repaired.gave_up |= heard.repair.heard_until().is_none();
                heard.turn += 1;
                let topics = by_clock.remove(&clock).unwrap_or_default();
                heard.repair.begin(topics, AT_ONCE);
            }
        }
    }

    fn next_call(&mut self) -> Option<Call> {
        let links: Vec<_> = self
            .links
            .iter()
            .map(|(link, line)| (*link, line.partitions))
            .collect();
        links.into_iter().find_map(|(link, partitions)| {
            let (mut parts, mut room, mut since) = (Vec::new(), self.at_once, None);
            for clock in self.clocks_of(partitions) {
                let nobody = self.nobody(clock)?;
                let heard = self.clocks.get_mut(&clock)?;
                if let Some((at, read)) = heard.repair.next_read(room, since) {
                    since = Some(read.since.is_some());
                    room = room.saturating_sub(read.topics.len().max(1));
                    parts.push(Part {
                        clock,
                        turn: heard.turn,
                        at,
                        read,
                        nobody,
                    });
                }
            }
            let is_tick = false;
            (!parts.is_empty()).then_some(Call {
                link,
                is_tick,
                parts,
            })
        })
    }

    /// Asks how far the clocks of a link have come, if that is long ago.
    fn next_tick(&mut self, every: Duration) -> Option<Call> {
        let now = Instant::now();
        let is_due = |line: &Line| {
            let ticking = &line.ticking;
            let is_old = ticking.asked_at.is_none_or(|at| now >= at + every);
            line.is_up && !line.is_withheld && is_old && !ticking.is_asked
        };
        let (link, line) = self.links.iter_mut().find(|(_, line)| is_due(line))?;
        (line.ticking.asked_at, line.ticking.is_asked) = (Some(now), true);
        let (link, partitions) = (*link, line.partitions);
        let part = |clock| {
            Some(Part {
                clock,
                turn: self.clocks.get(&clock)?.turn,
                at: 0,
                read: super::repair::Read::default(),
                nobody: self.nobody(clock)?,
            })
        };
        let parts = self
            .clocks_of(partitions)
            .into_iter()
            .filter_map(part)
            .collect();
        Some(Call {
            link,
            is_tick: true,
            parts,
        })
    }

    /// A topic of this clock that nobody uses.
    fn nobody(&self, clock: Clock) -> Option<Topic> {
        let mut places = self.places.iter().flatten();
        let place = places.find(|(one, _)| *one == clock);
        place.map(|(_, topic)| topic.clone())
    }

    fn is_current(&self, part: &Part) -> bool {
        let heard = self.clocks.get(&part.clock);
        heard.is_some_and(|heard| heard.turn == part.turn)
    }

    /// Whether a probe is to be published now.
    fn ticked(&mut self, call: Call, past: Past) -> bool {
        let marks = call.parts.iter().zip(&past.topics);
        let current = marks.filter(|(part, _)| self.is_current(part));
        let marks = current.filter_map(|(part, told)| Some((part.clock, told.cut?)));
        let marks = marks.collect();
        let Some(line) = self
            .links
            .get_mut(&call.link)
            .filter(|line| line.ticking.is_asked)
        else {
            return false;
        };
        line.ticking.is_asked = false;
        line.ticking.told = Some((Instant::now(), marks));
        true
    }

    /// The same.
    fn answered(&mut self, call: Call, past: Past) -> bool {
        let entries = past
            .topics
            .iter()
            .flat_map(|topic| topic.entries.iter().flatten());
        let bytes: usize = entries.map(|entry| entry.envelope.len()).sum();
        self.at_once = match bytes > MUCH {
            true => LARGE,
            false => AT_ONCE,
        };
        let mut told = past.topics.into_iter();
        let mut is_done = true;
        for part in call.parts {
            let past = told.by_ref().take(part.read.topics.len().max(1)).collect();
            if !self.is_current(&part) {
                continue;
            }
            let Some(heard) = self.clocks.get_mut(&part.clock) else {
                continue;
            };
            if !heard.repair.answered(part.at, past) {
                // Another process answers by now.
                heard.lose(u64::MAX);
            }
            heard.read_at = heard.repair.is_read().then(Instant::now);
            is_done &= heard.read_at.is_some();
        }
        is_done
    }

    fn gave_up(&mut self, call: &Call) -> bool {
        let Some(line) = self.links.get_mut(&call.link) else {
            return false;
        };
        line.ticking.is_asked = false;
        if call.is_tick {
            return false;
        }
        for part in &call.parts {
            if let Some(heard) = self.clocks.get_mut(&part.clock)
                && heard.turn == part.turn
            {
                line.repaired.gave_up = true;
                heard.turn += 1;
                heard.repair.give_up();
            }
        }
        false
    }

    /// And how many topics cannot be told.
    fn next_due(&mut self, most: usize) -> (Vec<Due>, usize) {
        let (mut all, mut count) = (Vec::new(), 0);
        let links: Vec<_> = self
            .links
            .iter()
            .map(|(link, line)| (*link, line.partitions))
            .collect();
        for (link, partitions) in links {
            for clock in self.clocks_of(partitions) {
                let Some(heard) = self.clocks.get_mut(&clock) else {
                    continue;
                };
                heard.repair.delivered();
                let missed = heard.repair.take_missed();
                count += missed.len();
                if let Some(line) = self.links.get_mut(&link) {
                    let topics = missed.into_iter().map(|(topic, _)| topic);
                    line.repaired.missed.extend(topics);
                }
                while all.len() < most
                    && let Some(due) = heard.repair.next()
                {
                    all.push(due);
                }
            }
        }
        (all, count)
    }

    /// Links whose up was withheld, and may be told.
    fn released(&mut self) -> Vec<LinkId> {
        let withheld = self.links.iter().filter(|(_, line)| line.is_withheld);
        let is_live = |clock: &Clock| {
            let heard = self.clocks.get(clock);
            heard.is_some_and(|heard| heard.repair.is_live())
        };
        let live = withheld.filter(|(_, line)| self.clocks_of(line.partitions).iter().all(is_live));
        let live: Vec<LinkId> = live.map(|(link, _)| *link).collect();
        for link in &live {
            if let Some(line) = self.links.get_mut(link) {
                line.is_withheld = false;
            }
        }
        live
    }
}

impl Heard {
    fn new() -> Self {
        Self {
            repair: Repair::new(HELD),
            turn: 0,
            read_at: None,
        }
    }

    fn lose(&mut self, newcomers: u64) {
        self.turn += 1;
        self.read_at = None;
        self.repair.lost(newcomers);
    }
}

/// Of each partition in which something may be kept: the clock, and a topic that nobody uses.
fn places(histories: &Histories, bus: &dyn Bus) -> Vec<Option<(Clock, Topic)>> {
    let mut places = vec![None; Partition::COUNT];
    let mut put = |topic: Topic| {
        let place = &mut places[Partition::of(topic.as_str()).index()];
        let is_new = place.is_none();
        if is_new {
            *place = Some((bus.clock(&topic), topic));
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
