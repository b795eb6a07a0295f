//! What this node sent and Redis took within the last moments. A process that takes over may not know the last of it; then it is
//! kept again.
//!
//! A number means something in its run alone. So of each clock it is known on which run all of this is proven: on another one it
//! has to be asked where the runs before ended, and what has a higher number is lost. What survived keeps its mark: the next
//! process may know even less.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem::take;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::history::mark::{Mark, Number, Run};

/// So long before the last one something may have been taken and still be lost: what a replica may lag behind.
const LATELY: Duration = Duration::from_secs(10);

/// In the order in which it was taken.
#[derive(Debug)]
pub(in crate::bus::redis) struct Lately<T> {
    messages: usize,
    bytes: usize,
    taken: VecDeque<TakenLately<T>>,
    /// Of what is here.
    held: usize,
    clocks: BTreeMap<Arc<str>, ClockTaken>,
}

/// One number's.
#[derive(Debug)]
pub(in crate::bus::redis) struct TakenLately<T> {
    pub(in crate::bus::redis) clock: Arc<str>,
    pub(in crate::bus::redis) mark: Mark,
    pub(in crate::bus::redis) at: Instant,
    pub(in crate::bus::redis) bytes: usize,
    pub(in crate::bus::redis) what: T,
}

#[derive(Debug)]
struct ClockTaken {
    latest: Mark,
    /// All that is here of it is there.
    proven: Option<Run>,
}

/// Where a run of a clock ended, as another one says: nothing of it is there, where that does not know it.
pub(in crate::bus::redis) type Ends = BTreeMap<(Arc<str>, Run), Option<Number>>;

impl<T> Lately<T> {
    /// At most so much.
    pub(in crate::bus::redis) fn new(messages: usize, bytes: usize) -> Self {
        Self {
            messages,
            bytes,
            taken: VecDeque::new(),
            held: 0,
            clocks: BTreeMap::new(),
        }
    }

    pub(in crate::bus::redis) fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    /// Something was taken, now or (handed over by whoever published it) some time ago.
    pub(in crate::bus::redis) fn add(&mut self, taken: TakenLately<T>, is_proven: bool) {
        let TakenLately { mark, at, .. } = taken;
        let clock = ClockTaken {
            latest: mark,
            proven: is_proven.then_some(mark.run),
        };
        if let Some(known) = self.clocks.get_mut(&taken.clock) {
            *known = clock;
        } else {
            self.clocks.insert(taken.clock.clone(), clock);
        }
        self.held += taken.bytes;
        self.taken.push_back(taken);
        while let Some(first) = self.taken.front()
            && (first.at + LATELY < at
                || self.taken.len() > self.messages
                || self.held > self.bytes)
        {
            self.held -= first.bytes;
            self.taken.pop_front();
        }
    }

    /// The last number that a run of a clock is known to have given.
    pub(in crate::bus::redis) fn latest(&self, clock: &str, run: Run) -> Number {
        let latest = self.clocks.get(clock).map(|clock| clock.latest);
        let latest = latest.filter(|latest| latest.run == run);
        latest.map(|latest| latest.number).unwrap_or_default()
    }

    /// Of which clocks and runs the end has to be known before anything is kept by this run.
    pub(in crate::bus::redis) fn unproven(&self, run: Run) -> BTreeSet<(Arc<str>, Run)> {
        let is_unproven = |taken: &&TakenLately<T>| {
            let clock = self.clocks.get(&taken.clock);
            taken.mark.run != run && clock.is_none_or(|clock| clock.proven != Some(run))
        };
        let unproven = self.taken.iter().filter(is_unproven);
        unproven
            .map(|taken| (taken.clock.clone(), taken.mark.run))
            .collect()
    }

    /// Takes out what is lost, in order; the rest is proven on this run. What is not asked for is there.
    pub(in crate::bus::redis) fn settle(&mut self, run: Run, ends: &Ends) -> Vec<TakenLately<T>> {
        let mut lost = Vec::new();
        for taken in take(&mut self.taken) {
            let end = ends.get(&(taken.clock.clone(), taken.mark.run));
            match end.is_some_and(|end| end.is_none_or(|end| taken.mark.number > end)) {
                true => lost.push(taken),
                false => self.taken.push_back(taken),
            }
        }
        self.held = self.taken.iter().map(|taken| taken.bytes).sum();
        for (clock, _) in ends.keys() {
            if let Some(clock) = self.clocks.get_mut(clock) {
                clock.proven = Some(run);
            }
        }
        lost
    }

    /// Takes out what somebody else looks after from now on.
    pub(in crate::bus::redis) fn take_out(
        &mut self,
        which: impl Fn(&T) -> bool,
    ) -> Vec<TakenLately<T>> {
        let (out, stay): (Vec<_>, _) = take(&mut self.taken)
            .into_iter()
            .partition(|taken| which(&taken.what));
        self.taken = stay.into();
        self.held = self.taken.iter().map(|taken| taken.bytes).sum();
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(letter: &str) -> Run {
        Run::of(&letter.repeat(12)).unwrap()
    }

    fn taken(letter: &str, number: u64, at: Instant) -> TakenLately<u64> {
        let mark = Mark {
            run: run(letter),
            number: Number(number),
        };
        TakenLately {
            clock: "c".into(),
            mark,
            at,
            bytes: 10,
            what: number,
        }
    }

    fn ends(ends: &[(&str, Option<u64>)]) -> Ends {
        let end =
            |(letter, end): &(&str, Option<u64>)| (("c".into(), run(letter)), end.map(Number));
        ends.iter().map(end).collect()
    }

    fn numbers(lost: Vec<TakenLately<u64>>) -> Vec<u64> {
        lost.into_iter().map(|taken| taken.what).collect()
    }

    #[test]
    fn what_has_a_higher_number_than_the_end_of_its_run_is_lost() {
        let (mut lately, now) = (Lately::new(100, 10_000), Instant::now());
        (1..=10).for_each(|n| lately.add(taken("a", n, now), true));
        assert!(lately.unproven(run("a")).is_empty());
        let asked: Vec<_> = lately.unproven(run("b")).into_iter().collect();
        assert_eq!(asked, [("c".into(), run("a"))]);
        let lost = lately.settle(run("b"), &ends(&[("a", Some(7))]));
        assert_eq!(numbers(lost), [8, 9, 10]);
        assert!(lately.unproven(run("b")).is_empty(), "it is settled");
        lately.add(taken("b", 20, now), true);
        // The next one knows less of the first run than the second did, and nothing of that.
        assert_eq!(lately.unproven(run("d")).len(), 2);
        let lost = lately.settle(run("d"), &ends(&[("a", Some(5)), ("b", None)]));
        assert_eq!(numbers(lost), [6, 7, 20]);
        assert_eq!(lately.latest("c", run("b")), Number(20));
        assert_eq!(lately.latest("c", run("d")), Number(0));
    }

    #[test]
    fn it_is_bounded_in_time_messages_and_bytes() {
        let now = Instant::now();
        let all = |mut lately: Lately<u64>| numbers(lately.settle(run("b"), &ends(&[("a", None)])));
        let mut lately = Lately::new(3, 1000);
        (1..=5).for_each(|n| lately.add(taken("a", n, now), true));
        assert_eq!(all(lately), [3, 4, 5]);
        let mut lately = Lately::new(100, 20);
        (1..=5).for_each(|n| lately.add(taken("a", n, now), true));
        assert_eq!(all(lately), [4, 5]);
        let mut lately = Lately::new(100, 1000);
        lately.add(taken("a", 1, now), true);
        lately.add(taken("a", 2, now + LATELY / 2), true);
        lately.add(taken("a", 3, now + LATELY + Duration::from_millis(1)), true);
        assert_eq!(all(lately), [2, 3]);
    }

    #[test]
    fn what_was_handed_over_is_proven_nowhere() {
        let (mut lately, now) = (Lately::new(100, 10_000), Instant::now());
        lately.add(taken("a", 1, now), true);
        let mut next = Lately::new(100, 10_000);
        lately
            .take_out(|_| true)
            .into_iter()
            .for_each(|taken| next.add(taken, false));
        assert!(lately.is_empty());
        assert_eq!(next.unproven(run("b")).len(), 1);
        assert!(next.unproven(run("a")).is_empty(), "it is that one");
    }
}
