//! What the bus did not take, and waits here for what it took before: rules without I/O.
//!
//! What is kept comes to this node's own sockets when it comes back. Of what failed nothing comes back, and delivered at once it
//! would come before what was taken earlier and is still on its way, or waits for a repair. So on a topic of which something is
//! *awaited* it waits:
//! ```text
//!                   something is awaited there, or waits
//!   failed ---------------------------------------------> waiting ---- all of that has come back, or will not
//!     |                                                     |  +------ what was sent later comes back first
//!     |  nothing does                                       |  +------ it has waited too long, or there is too much
//!     +-------------------> delivered <---------------------+
//!                                                           |
//!                          dropped <------------------------+ it comes back itself: it was taken all the same
//! ```
//! What will not come back is known when a link is proven by what was published later, and all that was missed there is repaired.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use crate::model::topic::Topic;

/// So much may wait, in bytes: as much as may be held in a repair.
const MOST: usize = 8 * 1024 * 1024;
/// Of so many topics something is awaited at most: beyond, what fails there waits for nothing.
const MOST_TOPICS: usize = 64 * 1024;
/// Of so many topics at most where nobody of them is here: it concerns who comes meanwhile.
const MOST_ELSEWHERE: usize = 4 * 1024;
/// So long it waits: whoever is without a bus for longer has his sockets served in the order in which that is possible.
const LONGEST: Duration = Duration::from_secs(30);

/// What failed on one node and waits for what was taken before it.
#[derive(Debug)]
pub(crate) struct Deferred<T> {
    topics: HashMap<Topic, Behind>,
    /// In the order in which they failed.
    waiting: BTreeMap<u64, DeferredSend<T>>,
    next: u64,
    bytes: usize,
}

/// What waits for what, on one topic.
#[derive(Debug, Default)]
struct Behind {
    /// The last that was taken and has not come back, and when it was taken.
    awaited: Option<(u64, Instant)>,
    waiting: VecDeque<u64>,
}

/// A send that failed.
#[derive(Debug)]
pub(crate) struct DeferredSend<T> {
    /// Of the send.
    pub(crate) number: u64,
    pub(crate) topics: SmallVec<[Topic; 1]>,
    pub(crate) since: Instant,
    pub(crate) bytes: usize,
    pub(crate) what: T,
}

/// What is to be done about what waits when something comes back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DeferredCame<T> {
    /// It was waiting itself.
    pub(crate) is_itself: bool,
    /// To be delivered before it, …
    pub(crate) before: Vec<T>,
    /// … and behind it.
    pub(crate) after: Vec<T>,
}

impl<T> Default for Deferred<T> {
    fn default() -> Self {
        Self {
            topics: HashMap::new(),
            waiting: BTreeMap::new(),
            next: 0,
            bytes: 0,
        }
    }
}

impl<T> Deferred<T> {
    /// The bus took this, and it has not come back there.
    pub(super) fn took<'a>(
        &mut self,
        number: u64,
        topics: impl Iterator<Item = &'a Topic>,
        is_here: bool,
        now: Instant,
    ) {
        let most = match is_here {
            true => MOST_TOPICS,
            false => MOST_ELSEWHERE,
        };
        for topic in topics {
            if self.topics.len() < most || self.topics.contains_key(topic) {
                let behind = self.topics.entry(topic.clone()).or_default();
                let last = behind.awaited.get_or_insert((number, now));
                *last = (*last).max((number, now));
            }
        }
    }

    /// Whether something that fails on one of these has to wait.
    pub(super) fn is_behind(&self, topics: &[Topic]) -> bool {
        topics.iter().any(|topic| self.topics.contains_key(topic))
    }

    /// It waits. Where there is too much of that, all of it is to be delivered now, in this order.
    pub(super) fn wait(&mut self, waiting: DeferredSend<T>) -> Vec<T> {
        let at = self.next;
        self.next += 1;
        for topic in &waiting.topics {
            let behind = self.topics.entry(topic.clone()).or_default();
            behind.waiting.push_back(at);
        }
        self.bytes += waiting.bytes;
        self.waiting.insert(at, waiting);
        match self.bytes > MOST {
            true => self.let_go(|_| true),
            false => Vec::new(),
        }
    }

    /// Something came back, on these topics.
    pub(super) fn came(&mut self, number: u64, topics: &[&str]) -> DeferredCame<T> {
        let mut came = DeferredCame::default();
        if !self.waiting.is_empty() {
            came.is_itself = self.take_itself(number, topics);
            let before = self.older_than(number, topics).into_iter();
            came.before = before.filter_map(|at| self.take(at)).collect();
        }
        for topic in topics {
            if let Some(behind) = self.topics.get_mut(*topic) {
                behind.awaited.take_if(|(last, _)| *last <= number);
                self.tidy(topic);
            }
        }
        if !self.waiting.is_empty() {
            came.after = self.free(topics.iter().map(|topic| (*topic).into()).collect());
        }
        came
    }

    /// What was taken by then on such topics has come back, or will not. What is to be delivered now.
    pub(super) fn settle(&mut self, is_settled: impl Fn(&Topic, Instant) -> bool) -> Vec<T> {
        let mut settled = Vec::new();
        for (topic, behind) in &mut self.topics {
            let is_over = |(_, at): &mut (u64, Instant)| is_settled(topic, *at);
            if behind.awaited.take_if(is_over).is_some() {
                settled.push(topic.as_str().into());
            }
        }
        self.free(settled)
    }

    /// What has waited too long, and is to be delivered now.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<T> {
        self.let_go(|one| one.since + LONGEST <= now)
    }

    /// When there may be such.
    pub(super) fn until(&self) -> Option<Instant> {
        let first = self.waiting.values().next()?;
        Some(first.since + LONGEST)
    }

    fn let_go(&mut self, goes: impl Fn(&DeferredSend<T>) -> bool) -> Vec<T> {
        let mut gone = Vec::new();
        while let Some((at, one)) = self.waiting.first_key_value() {
            let at = *at;
            if !goes(one) {
                break;
            }
            gone.extend(self.take(at));
        }
        gone
    }

    /// Whether it waited itself: what is the same for several topics has come with the first.
    fn take_itself(&mut self, number: u64, topics: &[&str]) -> bool {
        let behind = topics.iter().filter_map(|topic| self.topics.get(*topic));
        let mut waiting = behind.flat_map(|behind| &behind.waiting);
        let is_itself = |at: &&u64| self.waiting.get(at).is_some_and(|it| it.number == number);
        let itself = waiting.find(is_itself).copied();
        itself.is_some_and(|at| self.take(at).is_some())
    }

    /// What is older and waits on these, and whatever that waits for, in order.
    fn older_than(&self, number: u64, topics: &[&str]) -> BTreeSet<u64> {
        let mut older = BTreeSet::new();
        let is_older = |at: &u64| self.waiting.get(at).is_some_and(|it| it.number < number);
        let mut look: Vec<(&str, u64)> = Vec::new();
        for topic in topics {
            let behind = self.topics.get(*topic);
            let last = behind.and_then(|it| it.waiting.iter().rfind(|at| is_older(at)));
            look.extend(last.map(|at| (*topic, *at)));
        }
        while let Some((topic, last)) = look.pop() {
            let behind = self.topics.get(topic);
            let waiting = behind.into_iter().flat_map(|behind| &behind.waiting);
            for at in waiting.take_while(|at| **at <= last) {
                if older.insert(*at) {
                    let others = self.waiting.get(at).into_iter().flat_map(|it| &it.topics);
                    look.extend(others.map(|other| (other.as_str(), *at)));
                }
            }
        }
        older
    }

    /// What waits on these for nothing any more, in order.
    fn free(&mut self, mut topics: Vec<Box<str>>) -> Vec<T> {
        let mut free = BTreeMap::new();
        while let Some(topic) = topics.pop() {
            let behind = self.topics.get(&*topic);
            let first = behind.and_then(|behind| behind.waiting.front()).copied();
            if let Some(at) = first.filter(|at| self.is_free(*at)) {
                let others = self.waiting.get(&at).into_iter().flat_map(|it| &it.topics);
                topics.extend(others.map(|topic| topic.as_str().into()));
                free.extend(self.take(at).map(|what| (at, what)));
            }
            self.tidy(&topic);
        }
        free.into_values().collect()
    }

    fn is_free(&self, at: u64) -> bool {
        let mut topics = self.waiting.get(&at).into_iter().flat_map(|it| &it.topics);
        topics.all(|topic| {
            let behind = self.topics.get(topic);
            behind.is_none_or(|it| it.awaited.is_none() && it.waiting.front() == Some(&at))
        })
    }

    fn take(&mut self, at: u64) -> Option<T> {
        let taken = self.waiting.remove(&at)?;
        self.bytes -= taken.bytes;
        for topic in &taken.topics {
            if let Some(behind) = self.topics.get_mut(topic) {
                let place = behind.waiting.binary_search(&at);
                place.ok().and_then(|place| behind.waiting.remove(place));
            }
            self.tidy(topic.as_str());
        }
        Some(taken.what)
    }

    fn tidy(&mut self, topic: &str) {
        let is_over = |it: &Behind| it.awaited.is_none() && it.waiting.is_empty();
        if self.topics.get(topic).is_some_and(is_over) {
            self.topics.remove(topic);
        }
    }
}

impl<T> Default for DeferredCame<T> {
    fn default() -> Self {
        Self {
            is_itself: false,
            before: Vec::new(),
            after: Vec::new(),
        }
    }
}
