//! Which clocks a node hears on which links, and what is asked of them and answered.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem::take;
use std::time::Duration;

use tokio::time::Instant;

use super::Repaired;
use super::call::{Call, CallPart};
use crate::bus::outage::LinkId;
use crate::bus::past::Past;
use crate::bus::repair::{Due, Fate, HELD, Read, Repair};
use crate::model::history::mark::{Clock, Mark, Marks, Number};
use crate::model::partition::{Partition, PartitionSet};
use crate::model::topic::Topic;

/// Topics that are read at once, 500 in a command: 100,000 of which nothing is new take 0.2 s of Redis, 1 ms at a time (measured).
const AT_ONCE: usize = 2000;
/// When topics are heard that were not before, it is asked so much later how far their clocks have come, for all of them at once.
const SOON: Duration = Duration::from_millis(100);
/// What may be held is shared by so many clocks; where there are more, each may hold as much as one of these.
const MANY: usize = 16;
/// Topics that are read at once where much came to them, since Redis serves nobody else meanwhile …
const LARGE: usize = 400;
/// … which an answer of so many bytes shows.
const MUCH: usize = 1024 * 1024;

#[derive(Debug)]
pub(super) struct State {
    pub(super) clocks: BTreeMap<Clock, HeardClock>,
    pub(super) links: BTreeMap<LinkId, Line>,
    /// Of each partition in which something may be kept: its clock, and a topic that nobody uses.
    places: Vec<Option<(Clock, Topic)>>,
    at_once: usize,
    /// Up to where everything is delivered that was heard, since that was last asked for.
    pub(super) proven: Marks,
}

#[derive(Debug)]
pub(super) struct HeardClock {
    pub(super) repair: Repair,
    /// Raised when what was asked before is of no use any more.
    turn: u64,
    /// All was read by then.
    read_at: Option<Instant>,
}

/// A link, as far as repairs go.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) partitions: PartitionSet,
    /// It was up since something was missed there: that may be read.
    is_up: bool,
    /// Since then partitions are there that were elsewhere: what was proven before proves nothing of them.
    moved_at: Option<Instant>,
    /// That it is up was not told.
    is_withheld: bool,
    pub(super) ticking: Ticking,
    pub(super) repaired: Repaired,
}

/// How far the clocks have come.
#[derive(Debug, Default)]
pub(super) struct Ticking {
    asked_at: Option<Instant>,
    /// Of clocks with topics that were not heard before.
    hurried_at: Option<Instant>,
    is_asked: bool,
    told: Option<(Instant, Vec<Tick>)>,
}

/// How far a clock has come, and the last topic that was heard then.
#[derive(Clone, Copy, Debug)]
struct Tick {
    clock: Clock,
    mark: Mark,
    youngest: u64,
}

impl State {
    /// Nothing was heard yet on any of these links.
    pub(super) fn new(
        links: Vec<(LinkId, PartitionSet)>,
        places: Vec<Option<(Clock, Topic)>>,
    ) -> Self {
        let clocks: BTreeSet<Clock> = places.iter().flatten().map(|(clock, _)| *clock).collect();
        let bound = HELD / clocks.len().clamp(1, MANY);
        let line = |partitions| Line {
            partitions,
            ..Line::default()
        };
        Self {
            clocks: clocks
                .into_iter()
                .map(|clock| (clock, HeardClock::new(bound)))
                .collect(),
            links: links
                .into_iter()
                .map(|(link, all)| (link, line(all)))
                .collect(),
            places,
            at_once: AT_ONCE,
            proven: Marks::default(),
        }
    }

    /// What came on a topic's channel.
    pub(super) fn came(&mut self, topic: &str, number: Number, envelope: &[u8]) -> Fate {
        let clock = self.clock_of(topic);
        let heard = clock.and_then(|clock| self.clocks.get_mut(&clock));
        heard.map_or(Fate::Due, |heard| {
            heard.repair.came(topic, number, envelope)
        })
    }

    pub(super) fn had(&self, topic: &str, marks: &[Mark]) -> Option<u64> {
        let heard = self.clocks.get(&self.clock_of(topic)?)?;
        heard.repair.former().had(marks)
    }

    fn clock_of(&self, topic: &str) -> Option<Clock> {
        let place = self.places.get(Partition::of(topic).index())?;
        place.as_ref().map(|(clock, _)| *clock)
    }

    /// Partitions went from one link to another.
    pub(super) fn moved(
        &mut self,
        moved: PartitionSet,
        (from, to): (LinkId, LinkId),
        at: Instant,
        newcomers: u64,
    ) {
        if let Some(line) = self.links.get_mut(&from) {
            line.partitions = line.partitions - moved;
            if line.partitions.is_empty() {
                self.links.remove(&from);
            }
        }
        let line = self.links.entry(to).or_default();
        line.partitions = line.partitions | moved;
        line.moved_at = line.moved_at.max(Some(at));
        self.lose(to, moved, newcomers);
    }

    fn clocks_of(&self, partitions: PartitionSet) -> BTreeSet<Clock> {
        let of = |partition: Partition| self.places.get(partition.index())?.as_ref();
        let places = partitions.iter().filter_map(of);
        places.map(|(clock, _)| *clock).collect()
    }

    pub(super) fn lose(&mut self, link: LinkId, partitions: PartitionSet, newcomers: u64) {
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

    pub(super) fn up(&mut self, link: LinkId, proven: Instant) -> Option<Repaired> {
        let carried = self.links.get(&link).map(|line| line.partitions)?;
        let clocks = self.clocks_of(carried);
        let line = self.links.get_mut(&link)?;
        if line.moved_at.is_some_and(|at| proven < at) {
            return None;
        }
        line.is_up = true;
        let ticked = line.ticking.told.take_if(|(at, _)| *at <= proven);
        for tick in ticked.into_iter().flat_map(|(_, told)| told) {
            let Some(heard) = self.clocks.get_mut(&tick.clock) else {
                continue;
            };
            match heard.repair.advance(tick.mark, tick.youngest) {
                true if heard.repair.is_live() => self.proven.set(tick.clock, tick.mark),
                true => {}
                false => heard.lose(u64::MAX),
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

    pub(super) fn heard_on(&self, link: LinkId) -> Option<PartitionSet> {
        let carried = self.links.get(&link)?.partitions;
        let is_live = |clock| {
            let heard = self.clocks.get(&clock);
            heard.is_some_and(|heard| heard.repair.is_live())
        };
        let clocks = self.clocks_of(carried);
        clocks.into_iter().all(is_live).then_some(carried)
    }

    /// The clocks that may be read.
    pub(super) fn wanted(&self) -> Vec<(LinkId, Clock)> {
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

    pub(super) fn begin(&mut self, wanted: Vec<(LinkId, Clock)>, topics: Vec<Topic>) {
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

    pub(super) fn next_call(&mut self) -> Option<Call> {
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
                    parts.push(CallPart {
                        clock,
                        turn: heard.turn,
                        at,
                        read,
                        youngest: 0,
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
    pub(super) fn next_tick(&mut self, every: Duration) -> Option<Call> {
        let now = Instant::now();
        let is_due = |line: &&Line| {
            let asked_at = line.ticking.asked_at;
            line.may_tick() && asked_at.is_none_or(|at| now >= at + every)
        };
        let young = self.young();
        let hurries = |(link, line): &(&LinkId, &Line)| {
            let is_due = line.ticking.hurried_at.is_none_or(|at| now >= at + SOON);
            line.may_tick() && is_due && young.contains_key(link)
        };
        let due = self.links.iter().find(|(_, line)| is_due(line));
        let is_all = due.is_some();
        let (link, line) = due.or_else(|| self.links.iter().find(hurries))?;
        let (link, clocks) = (*link, self.clocks_of(line.partitions));
        let is_asked =
            |clock: &Clock| is_all || young.get(&link).is_some_and(|it| it.contains(clock));
        let part = |clock| {
            let heard = self.clocks.get(&clock)?;
            Some(CallPart {
                clock,
                turn: heard.turn,
                at: 0,
                read: Read::default(),
                youngest: heard.repair.youngest().unwrap_or_default(),
                nobody: self.nobody(clock)?,
            })
        };
        let parts = clocks
            .into_iter()
            .filter(is_asked)
            .filter_map(part)
            .collect();
        let ticking = &mut self.links.get_mut(&link)?.ticking;
        ticking.is_asked = true;
        ticking.hurried_at = Some(now);
        if is_all {
            ticking.asked_at = Some(now);
        }
        Some(Call {
            link,
            is_tick: true,
            parts,
        })
    }

    /// The clocks of links with topics that are heard since they were heard last.
    fn young(&self) -> BTreeMap<LinkId, BTreeSet<Clock>> {
        let has_young = |heard: &HeardClock| heard.repair.youngest().is_some();
        if !self.clocks.values().any(has_young) {
            return BTreeMap::new();
        }
        let young = self.links.iter().map(|(link, line)| {
            let mut clocks = self.clocks_of(line.partitions);
            clocks.retain(|clock| self.clocks.get(clock).is_some_and(has_young));
            (*link, clocks)
        });
        young.filter(|(_, clocks)| !clocks.is_empty()).collect()
    }

    pub(super) fn confirmed(&mut self, topic: Topic) -> bool {
        let place = self.places.get(Partition::of(topic.as_str()).index());
        let clock = place.and_then(Option::as_ref).map(|(clock, _)| *clock);
        let heard = clock.and_then(|clock| self.clocks.get_mut(&clock));
        heard.is_some_and(|heard| heard.repair.confirmed(topic))
    }

    /// When there is something to be asked soon.
    pub(super) fn until(&self) -> Option<Instant> {
        let young = self.young();
        let lines = young.keys().filter_map(|link| self.links.get(link));
        let lines = lines.filter(|line| line.may_tick());
        let due = lines.filter_map(|line| Some(line.ticking.hurried_at? + SOON));
        due.min()
    }

    /// A topic of this clock that nobody uses.
    fn nobody(&self, clock: Clock) -> Option<Topic> {
        let mut places = self.places.iter().flatten();
        let place = places.find(|(one, _)| *one == clock);
        place.map(|(_, topic)| topic.clone())
    }

    pub(super) fn is_current(&self, part: &CallPart) -> bool {
        let heard = self.clocks.get(&part.clock);
        heard.is_some_and(|heard| heard.turn == part.turn)
    }

    /// It was read how far the clocks of a link have come. Whether a probe is to be published now.
    pub(super) fn ticked(&mut self, call: Call, past: Past) -> bool {
        let marks = call.parts.iter().zip(&past.topics);
        let current = marks.filter(|(part, _)| self.is_current(part));
        let marks = current.filter_map(|(part, told)| {
            Some(Tick {
                clock: part.clock,
                mark: told.cut?,
                youngest: part.youngest,
            })
        });
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

    /// Topics of a call were read. Whether a probe is to be published now.
    pub(super) fn answered(&mut self, call: Call, past: Past) -> bool {
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

    pub(super) fn gave_up(&mut self, call: &Call) -> bool {
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

    /// And how many topics cannot be told, and which clocks go on in another run.
    pub(super) fn next_due(&mut self, most: usize) -> (Vec<Due>, usize, Vec<(Clock, Mark)>) {
        let (mut all, mut count, mut goes_on) = (Vec::new(), 0, Vec::new());
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
                goes_on.extend(heard.repair.take_goes_on().map(|mark| (clock, mark)));
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
        (all, count, goes_on)
    }

    /// Links whose up was withheld, and may be told.
    pub(super) fn released(&mut self) -> Vec<LinkId> {
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

impl Line {
    fn may_tick(&self) -> bool {
        self.is_up && !self.is_withheld && !self.ticking.is_asked
    }
}

impl HeardClock {
    pub(super) fn new(bound: usize) -> Self {
        Self {
            repair: Repair::new(bound),
            turn: 0,
            read_at: None,
        }
    }

    pub(super) fn lose(&mut self, newcomers: u64) {
        self.turn += 1;
        self.read_at = None;
        self.repair.lost(newcomers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_proven_before_a_move_proves_nothing_of_what_came_by_it() {
        let [from, to] = [LinkId(1), LinkId(2)];
        let topic = Topic::room("x").unwrap();
        let place = Partition::of(topic.as_str());
        let moved: PartitionSet = [place].into_iter().collect();
        let mut places = vec![None; Partition::COUNT];
        places[place.index()] = Some((Clock(0), topic));
        let links = vec![(from, moved), (to, PartitionSet::new())];
        let mut state = State::new(links, places);
        let before = Instant::now();
        let at = before + Duration::from_secs(1);
        state.moved(moved, (from, to), at, 0);
        assert_eq!(state.up(to, before), None);
        assert_eq!(state.wanted(), [], "it may not be subscribed there yet");
        assert_eq!(state.up(to, at), None, "it is to be read");
        assert_eq!(state.wanted(), [(to, Clock(0))]);
    }
}
