//! What a node missed of one clock, and how it gets that in order and once: rules without I/O.
//!
//! What is kept is read again when the connection is back. But it comes by another way than what is published meanwhile, so
//! that the same message may come by both, and a later one before an earlier. Everything the node knows of it is one mark:
//! how far it has heard the clock. So what comes on the connection is held until it is known where the two ways meet:
//! - Reading begins when all is subscribed: of what is published later nothing is missed.
//! - An answer ends at its cut. Of its topics, what was held up to there is in the answer, and what was held beyond it is not.
//! - Answers have different cuts. What was published to a topic behind its own, and before the last, may still be on its way
//!   while all answers are there; if the mark went to the last cut then, it would be taken for known. So a probe is published
//!   behind the last answer, and what comes before it on the connection is held too.
//! - Then all of it is delivered by its numbers, and the mark goes with it. Lost in between, the next connection begins at the
//!   mark, so that nothing is read of what was delivered.
//!
//! ```text
//!         all is subscribed        all are answered          the probe is back        all is delivered
//!  Deaf -------------------> Reading --------------> Barrier ----------------> Flushing ------------> Live
//!   ^                           ^                      |                                               |
//!   |                           +----------------------+  too much was held: it is dropped, and read    |
//!   +---- lost, from each: the mark stays --------------------------------------------------------------+
//! ```
//! Where more comes than may be held, what was read by then is delivered at once (it *spills*): of each topic still in order,
//! though not between topics, and each topic is read again from its cut. So a node that hears more than it can hold while it
//! reads goes on by reading.
//!
//! Where another run goes on, all behind the end of the one before is read; of that a part was [delivered](Known) already, if the
//! server that was heard had become a replica.

mod former;
mod known;
#[cfg(test)]
mod world;

use std::collections::{HashMap, VecDeque};
use std::mem::take;

use bytes::Bytes;

pub(crate) use self::former::Former;
use self::known::Known;
use super::past::{Entry, TopicPast};
use crate::model::history::Missed;
use crate::model::history::mark::{Mark, Number};
use crate::model::topic::{Topic, TopicRef};

/// So much may be held of one clock, and read at once.
pub(crate) const HELD: usize = 8 * 1024 * 1024;
/// Of what was delivered, one is remembered for so many bytes that may be held: 1 MiB of them for one clock.
const FOR_EACH: usize = 128;
/// And so many in any case.
const LEAST: usize = 1024;

/// How far a node has heard a clock, and what it does about the rest.
#[derive(Debug)]
pub(crate) struct Repair {
    /// Everything up to it was delivered, or concerns nobody here. None: nothing was heard, so nothing is missed.
    heard: Option<Mark>,
    stage: Stage,
    /// What came on the connection, in the order of its numbers.
    held: Vec<Due>,
    /// Of what is held.
    bytes: usize,
    /// Most of what is held, and of what was read.
    bound: usize,
    /// What was read and may be delivered, though others may come that are older.
    spilled: VecDeque<Due>,
    /// Up to where topics were delivered beyond the mark.
    spills: HashMap<Topic, Mark>,
    /// Sockets with this number and later ones came when something may have been missed already.
    newcomers: Option<u64>,
    /// The latest that was delivered before anything was proven.
    began: Number,
    missed: Vec<(Topic, Missed)>,
    /// The runs before.
    former: Former,
    /// What was delivered lately.
    known: Known,
    /// Another run goes on from here, where all is delivered.
    goes_on: Option<Mark>,
    /// Topics that are heard since the clock was heard last, in the order in which that began: what came to them before is for
    /// nobody here, and cannot be told from what came since. So it is to be found out soon how far the clock has come; in an outage
    /// before that too much is told.
    young: HashMap<Topic, u64>,
    youngest: u64,
}

#[derive(Debug)]
enum Stage {
    Deaf,
    /// Until all are answered; then a probe is out.
    Reading(ReadsBegun),
    Flushing {
        queue: VecDeque<Due>,
        /// None: nobody knows.
        until: Option<Mark>,
    },
    Live,
}

#[derive(Debug, Default)]
struct ReadsBegun {
    reads: Vec<Read>,
    asked: usize,
    answered: usize,
    /// The latest.
    cut: Option<Mark>,
    cuts: HashMap<Topic, Number>,
    found: Vec<Due>,
    /// Of what was found.
    bytes: usize,
    /// What was held was dropped, and has to be read: of each topic from here on.
    dropped: HashMap<Box<str>, Number>,
    /// It is read since something was dropped, so nobody has missed it.
    is_again: bool,
}

/// Topics to be read.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Read {
    pub(crate) topics: Vec<Topic>,
    /// From here on; where nothing was heard, only how far the clock has come.
    pub(crate) since: Option<Mark>,
}

/// Something to be delivered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Due {
    pub(crate) topic: Box<str>,
    pub(crate) number: Number,
    pub(crate) envelope: Bytes,
    /// It was missed: only for sockets with smaller numbers.
    pub(crate) older_than: Option<u64>,
}

/// What becomes of something that came on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is to be delivered now.
    Due,
    Held,
    /// It was delivered before.
    Known,
}

impl Repair {
    pub(crate) fn new(bound: usize) -> Self {
        Self {
            heard: None,
            stage: Stage::Deaf,
            held: Vec::new(),
            bytes: 0,
            bound,
            spilled: VecDeque::new(),
            spills: HashMap::new(),
            newcomers: None,
            began: Number::default(),
            missed: Vec::new(),
            former: Former::default(),
            known: Known::new((bound / FOR_EACH).max(LEAST)),
            goes_on: None,
            young: HashMap::new(),
            youngest: 0,
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        matches!(self.stage, Stage::Live)
    }

    pub(crate) fn is_deaf(&self) -> bool {
        matches!(self.stage, Stage::Deaf)
    }

    /// How far the clock was heard.
    pub(crate) fn heard_until(&self) -> Option<Mark> {
        self.heard
    }

    /// What was heard of runs that are over.
    pub(crate) fn former(&self) -> &Former {
        &self.former
    }

    /// Something may be missed from now on. Sockets that come from now on have this number or later ones.
    pub(crate) fn lost(&mut self, newcomers: u64) {
        self.stage = Stage::Deaf;
        self.held.clear();
        self.bytes = 0;
        if self.heard.is_some() {
            self.newcomers.get_or_insert(newcomers);
        }
    }

    /// What came was numbered so.
    pub(crate) fn came(&mut self, topic: &str, number: Number, envelope: &[u8]) -> Fate {
        match (&self.stage, &mut self.heard) {
            (Stage::Live, Some(heard)) if number <= heard.number => return Fate::Known,
            (Stage::Live, Some(heard)) => {
                heard.number = number;
                self.young.clear();
                self.known.add(topic, number, envelope);
                return Fate::Due;
            }
            (Stage::Live | Stage::Deaf | Stage::Reading(_), None) => {
                self.began = self.began.max(number);
                self.known.add(topic, number, envelope);
                return Fate::Due;
            }
            _ => {}
        }
        let due = Due {
            topic: topic.into(),
            number,
            envelope: Bytes::copy_from_slice(envelope),
            older_than: None,
        };
        if let Stage::Flushing { queue, until } = &mut self.stage {
            if let Some(until) = until {
                until.number = until.number.max(number);
            }
            queue.push_back(due);
            return Fate::Held;
        }
        self.bytes += due.size();
        self.held.push(due);
        if self.bytes > self.bound {
            self.drop_held();
        }
        Fate::Held
    }

    /// A topic is heard from now on, behind what came before. Whether it is to be found out how far the clock has come, since what
    /// comes to the topic is known from there.
    pub(crate) fn confirmed(&mut self, topic: Topic) -> bool {
        if self.heard.is_some() {
            self.youngest += 1;
            self.young.insert(topic, self.youngest);
        }
        self.is_live() && self.heard.is_some()
    }

    /// The last topic that is heard since the clock was heard last.
    pub(crate) fn youngest(&self) -> Option<u64> {
        (!self.young.is_empty()).then_some(self.youngest)
    }

    /// What was held will be read.
    fn drop_held(&mut self) {
        let held = take(&mut self.held);
        self.bytes = 0;
        if let Stage::Reading(reading) = &mut self.stage {
            for due in held {
                reading.dropped.entry(due.topic).or_insert(due.number);
            }
            self.spill();
        }
    }

    /// What was read is delivered without what is held.
    fn spill(&mut self) {
        let Stage::Reading(reading) = &mut self.stage else {
            return;
        };
        let mut found = take(&mut reading.found);
        reading.bytes = 0;
        found.sort_by_key(|due| due.number);
        self.spilled.extend(found);
        if let Some(cut) = reading.cut {
            let cuts = reading.cuts.iter();
            let marks = cuts.map(|(topic, number)| {
                (
                    topic.clone(),
                    Mark {
                        number: *number,
                        ..cut
                    },
                )
            });
            self.spills.extend(marks);
        }
    }

    /// All of these is subscribed, and to be read, so many at once.
    pub(crate) fn begin(&mut self, mut topics: Vec<Topic>, at_once: usize) {
        if self.heard.is_none() {
            topics.clear();
        }
        let since = |topic: &Topic| self.spills.get(topic).copied().or(self.heard);
        if !self.spills.is_empty() {
            topics.sort_by_cached_key(|topic| since(topic).map(|mark| (mark.run, mark.number)));
        }
        let alike = topics.chunk_by(|one, other| since(one) == since(other));
        let reads = alike
            .flat_map(|alike| alike.chunks(at_once))
            .map(|topics| Read {
                topics: topics.to_vec(),
                since: since(&topics[0]),
            });
        let mut reads: Vec<Read> = reads.collect();
        if reads.is_empty() {
            // How far the clock has come is to be known all the same.
            reads.push(Read {
                topics: Vec::new(),
                since: self.heard,
            });
        }
        self.stage = Stage::Reading(ReadsBegun {
            reads,
            ..ReadsBegun::default()
        });
    }

    /// What is to be read now, and its place: of so many topics at most, and if somebody says so only if it is since a mark, or is
    /// not.
    pub(crate) fn next_read(&mut self, most: usize, since: Option<bool>) -> Option<(usize, Read)> {
        let Stage::Reading(reading) = &mut self.stage else {
            return None;
        };
        let at = reading.asked;
        let read = reading.reads.get_mut(at)?;
        if most == 0 || since.is_some_and(|since| since != read.since.is_some()) {
            return None;
        }
        reading.asked += 1;
        let rest = read.topics.split_off(most.min(read.topics.len()));
        let read = read.clone();
        if !rest.is_empty() {
            reading.reads.push(Read {
                topics: rest,
                ..read
            });
        }
        Some((at, read))
    }

    /// A read is answered: what came to its topics; where it was of none, to any topic. Whether that was the process that answered
    /// the others.
    pub(crate) fn answered(&mut self, at: usize, past: Vec<TopicPast>) -> bool {
        let Stage::Reading(reading) = &mut self.stage else {
            return false;
        };
        let cuts = || past.iter().filter_map(|topic| topic.cut);
        let first = cuts().min_by_key(|cut| cut.number);
        let (Some(first), Some(last)) = (first, cuts().max_by_key(|cut| cut.number)) else {
            return false;
        };
        let run = reading.cut.map_or(first.run, |cut| cut.run);
        if cuts().any(|cut| cut.run != run) {
            return false;
        }
        let latest = reading.cut.map(|cut| cut.number).max(Some(last.number));
        reading.cut = latest.map(|number| Mark { run, number });
        reading.answered += 1;
        let read = &mut reading.reads[at];
        read.since = Some(first);
        let older_than = self.newcomers.filter(|_| !reading.is_again);
        for (topic, past) in read.topics.iter().zip(past) {
            let cut = past.cut.unwrap_or(first).number;
            let known = reading.cuts.insert(topic.clone(), cut);
            match past.entries {
                Err(missed) => self.missed.push((topic.clone(), missed)),
                Ok(entries) => {
                    let new = |entry: &Entry| {
                        let Entry { number, envelope } = entry;
                        Some(*number) > known && !self.known.has(topic.as_str(), *number, envelope)
                    };
                    for entry in entries.into_iter().filter(new) {
                        let due = Due::read(topic, entry, older_than);
                        reading.bytes += due.size();
                        reading.found.push(due);
                    }
                }
            }
        }
        if reading.bytes > self.bound {
            self.spill();
        }
        self.read_again();
        true
    }

    /// Where something was dropped, all is read again from where it was read up to.
    fn read_again(&mut self) {
        let Stage::Reading(reading) = &mut self.stage else {
            return;
        };
        let (Some(cut), false) = (reading.cut, reading.dropped.is_empty()) else {
            return;
        };
        if reading.answered < reading.reads.len() {
            return;
        }
        for (topic, number) in take(&mut reading.dropped) {
            if let (Some(topic), false) = (TopicRef::of(&topic), reading.cuts.contains_key(&*topic))
            {
                let number = Number(number.0.saturating_sub(1));
                reading.reads.push(Read {
                    topics: vec![topic.to_topic()],
                    since: Some(Mark { number, ..cut }),
                });
            }
        }
        (reading.asked, reading.answered, reading.is_again) = (0, 0, true);
        self.spill();
    }

    /// Whether all was read: a probe that is published now ends the repair.
    pub(crate) fn is_read(&mut self) -> bool {
        self.read_again();
        let Stage::Reading(reading) = &self.stage else {
            return false;
        };
        reading.answered == reading.reads.len()
    }

    /// The probe that was published when all [was read](Self::is_read) came back. Whether all is still read.
    pub(crate) fn came_back(&mut self) -> bool {
        if !self.is_read() {
            return false;
        }
        let Stage::Reading(reading) = &mut self.stage else {
            return false;
        };
        let until = reading.cut;
        self.flush(until);
        true
    }

    /// What was missed cannot be read: it is not told, and what is there is delivered.
    pub(crate) fn give_up(&mut self) {
        if !self.is_live() {
            self.flush(None);
        }
    }

    fn flush(&mut self, cut: Option<Mark>) {
        if let Some(heard) = self.heard
            && cut.is_none_or(|cut| cut.run != heard.run)
        {
            self.former.add(heard, self.newcomers.unwrap_or(u64::MAX));
            self.goes_on = cut;
        }
        let (mut queue, mut cuts) = (Vec::new(), HashMap::new());
        if let Stage::Reading(reading) = &mut self.stage {
            queue = take(&mut reading.found);
            cuts = take(&mut reading.cuts);
        }
        let unread = |due: &Due| Some(&due.number) > cuts.get(&*due.topic);
        queue.extend(take(&mut self.held).into_iter().filter(unread));
        queue.sort_by_key(|due| due.number);
        let last = queue.last().map(|due| due.number);
        let until = cut.map(|cut| Mark {
            number: cut.number.max(self.began).max(last.unwrap_or_default()),
            ..cut
        });
        self.bytes = 0;
        self.stage = Stage::Flushing {
            queue: queue.into(),
            until,
        };
    }

    /// A probe came back that was published when the clock had come so far, and all topics up to that one were heard. Whether
    /// this is the process that was heard.
    pub(crate) fn advance(&mut self, cut: Mark, youngest: u64) -> bool {
        if !self.is_live() {
            return true;
        }
        self.young.retain(|_, young| *young > youngest);
        let heard = self.heard.get_or_insert(Mark {
            number: self.began,
            ..cut
        });
        if heard.run != cut.run {
            return false;
        }
        heard.number = heard.number.max(cut.number);
        true
    }

    /// What is to be delivered next.
    pub(crate) fn next(&mut self) -> Option<Due> {
        let due = self.next_due()?;
        let Due {
            topic,
            number,
            envelope,
            ..
        } = &due;
        self.known.add(topic, *number, envelope);
        Some(due)
    }

    fn next_due(&mut self) -> Option<Due> {
        if let Some(due) = self.spilled.pop_front() {
            return Some(due);
        }
        let Stage::Flushing { queue, until } = &mut self.stage else {
            return None;
        };
        let due = queue.pop_front()?;
        self.heard = until.map(|until| Mark {
            number: due.number,
            ..until
        });
        Some(due)
    }

    /// All that was [next](Self::next) is delivered.
    pub(crate) fn delivered(&mut self) {
        let Stage::Flushing { queue, until } = &self.stage else {
            return;
        };
        if queue.is_empty() && self.spilled.is_empty() {
            self.heard = *until;
            self.stage = Stage::Live;
            self.spills = HashMap::new();
            self.young = HashMap::new();
            (self.newcomers, self.began) = (None, Number::default());
        }
    }

    /// Another run goes on, and all is delivered up to here: told once.
    pub(crate) fn take_goes_on(&mut self) -> Option<Mark> {
        let is_live = self.is_live();
        self.goes_on.take_if(|_| is_live)
    }

    /// Which topics cannot be told in full.
    pub(crate) fn take_missed(&mut self) -> Vec<(Topic, Missed)> {
        take(&mut self.missed)
    }
}

impl Due {
    fn read(topic: &Topic, Entry { number, envelope }: Entry, older_than: Option<u64>) -> Self {
        Self {
            topic: topic.as_str().into(),
            number,
            envelope,
            older_than,
        }
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.topic.len() + self.envelope.len()
    }
}
