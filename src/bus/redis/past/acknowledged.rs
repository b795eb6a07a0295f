//! What this node sent and Redis took lately: when another process takes over, its clock says how much of it is lost.

use std::collections::{BTreeMap, VecDeque};
use std::mem::take;
use std::sync::Arc;

use crate::bus::redis::channels::is_clock_of;
use crate::model::history::mark::{Number, Run};
use crate::model::partition::Partition;

/// Most messages of one clock that are remembered: what a replica may lag behind.
const MOST: usize = 64 * 1024;
/// How long they are, in microseconds.
const LATELY: u64 = 60_000_000;

/// The numbers of what was taken, by the key of the clock and the run that gave them.
#[derive(Debug, Default)]
pub(in crate::bus::redis) struct Acknowledged(BTreeMap<(Arc<str>, Run), VecDeque<Number>>);

/// What a run lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::bus::redis) struct LostMessages {
    pub(in crate::bus::redis) messages: u64,
    pub(in crate::bus::redis) first: Option<Number>,
}

impl Acknowledged {
    pub(in crate::bus::redis) fn add(&mut self, run: Run, clock: &Arc<str>, number: Number) {
        let numbers = self.0.entry((clock.clone(), run)).or_default();
        // A union is kept of several topics, under one number.
        if numbers.back() != Some(&number) {
            numbers.push_back(number);
        }
        let is_old = |first: &Number| first.0 + LATELY < number.0;
        while numbers.len() > MOST || numbers.front().is_some_and(is_old) {
            numbers.pop_front();
        }
    }

    pub(in crate::bus::redis) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The clocks of which another run took something than this one, and which.
    pub(in crate::bus::redis) fn of_others(&self, run: Run) -> Vec<(Arc<str>, Run)> {
        let others = self.0.keys().filter(|(_, other)| *other != run);
        others.cloned().collect()
    }

    /// What survived of a run of a clock ends here; nothing, where it is not known. It is over.
    pub(in crate::bus::redis) fn lost(
        &mut self,
        of: &(Arc<str>, Run),
        end: Option<Number>,
    ) -> LostMessages {
        let numbers = self.0.remove(of).unwrap_or_default();
        let is_lost = |number: &&Number| end.is_none_or(|end| **number > end);
        let mut lost = numbers.iter().filter(is_lost);
        let first = lost.next().copied();
        LostMessages {
            messages: u64::from(first.is_some()) + lost.count() as u64,
            first,
        }
    }

    /// What is of a partition that departs: whoever goes on there can tell what is lost.
    pub(in crate::bus::redis) fn take_out(&mut self, partition: Partition) -> Self {
        let is_concerned = |((clock, _), _): &((Arc<str>, Run), _)| is_clock_of(clock, partition);
        let (departing, staying) = take(&mut self.0).into_iter().partition(is_concerned);
        self.0 = staying;
        Self(departing)
    }

    pub(in crate::bus::redis) fn take_in(&mut self, other: Self) {
        for (of, numbers) in other.0 {
            let known = self.0.entry(of).or_default();
            known.extend(numbers);
            known.make_contiguous().sort_unstable();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(letter: &str) -> Run {
        Run::of(&letter.repeat(12)).unwrap()
    }

    fn lost(messages: u64, first: u64) -> LostMessages {
        let first = Some(Number(first));
        LostMessages { messages, first }
    }

    #[test]
    fn exactly_what_is_beyond_the_end_is_lost() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut acknowledged = Acknowledged::default();
        assert_eq!(acknowledged.of_others(run("x")), []);
        (1..=10).for_each(|n| acknowledged.add(run("x"), &a, Number(n)));
        acknowledged.add(run("x"), &a, Number(10));
        acknowledged.add(run("x"), &b, Number(11));
        assert_eq!(acknowledged.of_others(run("x")), []);
        let [of_a, of_b] = [(a.clone(), run("x")), (b, run("x"))];
        let others = acknowledged.of_others(run("y"));
        assert_eq!(others, [of_a.clone(), of_b.clone()]);
        // It was not asked yet.
        acknowledged.add(run("y"), &a, Number(20));
        assert_eq!(acknowledged.lost(&of_a, Some(Number(7))), lost(3, 8));
        let nothing = LostMessages::default();
        assert_eq!(acknowledged.lost(&of_a, None), nothing, "counted once");
        assert_eq!(acknowledged.lost(&of_b, None), lost(1, 11));
        assert_eq!(acknowledged.of_others(run("y")), []);
    }

    #[test]
    fn what_departs_is_known_where_it_goes() {
        let (here, there) = (Partition::of("u:alice"), Partition::of("u:bob"));
        let clock = |partition: Partition| Arc::from(format!("x:{{{}}}:h", partition.tag()));
        let [ours, theirs]: [Arc<str>; 2] = [here, there].map(clock);
        let mut from = Acknowledged::default();
        from.add(run("x"), &ours, Number(1));
        from.add(run("x"), &theirs, Number(2));
        let mut to = Acknowledged::default();
        to.take_in(from.take_out(there));
        assert_eq!(from.of_others(run("y")), [(ours, run("x"))]);
        let of = (theirs, run("x"));
        assert_eq!(to.of_others(run("y")), std::slice::from_ref(&of));
        assert_eq!(to.lost(&of, Some(Number(1))), lost(1, 2));
        assert!(to.is_empty() && from.take_out(there).is_empty());
    }

    #[test]
    fn it_remembers_no_more_than_its_bound() {
        let (run, clock) = (run("x"), Arc::from("a"));
        let mut acknowledged = Acknowledged::default();
        let count = MOST as u64 + 10;
        (1..=count).for_each(|n| acknowledged.add(run, &clock, Number(n)));
        let of = (clock.clone(), run);
        assert_eq!(acknowledged.0[&of].len(), MOST);
        acknowledged.add(run, &clock, Number(LATELY + count));
        let of_last_minute = acknowledged.lost(&of, None);
        assert_eq!(of_last_minute, lost(2, count));
    }
}
