//! What this node sent and Redis took lately: when another process takes over, its clock says how much of it is lost.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::model::history::mark::{Number, Run};

/// Most messages of one clock that are remembered: what a replica may lag behind.
const MOST: usize = 64 * 1024;
/// How long they are, in microseconds.
const LATELY: u64 = 60_000_000;

/// The numbers of what was taken, by the key of the clock that gave them.
#[derive(Debug, Default)]
pub(in crate::bus::redis) struct Acknowledged {
    run: Option<Run>,
    numbers: BTreeMap<Arc<str>, VecDeque<Number>>,
}

impl Acknowledged {
    pub(in crate::bus::redis) fn add(&mut self, run: Run, clock: &Arc<str>, number: Number) {
        if self.run != Some(run) {
            // Whoever asks for the end of the one before has done so.
            self.numbers.clear();
            self.run = Some(run);
        }
        if !self.numbers.contains_key(clock) {
            self.numbers.insert(clock.clone(), VecDeque::new());
        }
        let Some(numbers) = self.numbers.get_mut(clock) else {
            return;
        };
        // A union is kept of several topics, under one number.
        if numbers.back() != Some(&number) {
            numbers.push_back(number);
        }
        let is_old = |first: &Number| first.0 + LATELY < number.0;
        while numbers.len() > MOST || numbers.front().is_some_and(is_old) {
            numbers.pop_front();
        }
    }

    /// The run that took them, where it is not this one, and of which clocks.
    pub(in crate::bus::redis) fn of_another(&self, run: Run) -> Option<(Run, Vec<Arc<str>>)> {
        let before = self.run.filter(|before| *before != run)?;
        Some((before, self.numbers.keys().cloned().collect()))
    }

    /// What survived of a clock ends here; nothing, where it is not known. How many are lost.
    pub(in crate::bus::redis) fn lost(&mut self, clock: &str, end: Option<Number>) -> u64 {
        let numbers = self.numbers.remove(clock).unwrap_or_default();
        let is_lost = |number: &&Number| end.is_none_or(|end| **number > end);
        numbers.iter().filter(is_lost).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_what_is_beyond_the_end_is_lost() {
        let run = |letter: &str| Run::of(&letter.repeat(12)).unwrap();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut acknowledged = Acknowledged::default();
        assert_eq!(acknowledged.of_another(run("x")), None);
        (1..=10).for_each(|n| acknowledged.add(run("x"), &a, Number(n)));
        acknowledged.add(run("x"), &a, Number(10));
        acknowledged.add(run("x"), &b, Number(11));
        assert_eq!(acknowledged.of_another(run("x")), None);
        let before = acknowledged.of_another(run("y"));
        assert_eq!(before, Some((run("x"), vec![a.clone(), b])));
        assert_eq!(acknowledged.lost("a", Some(Number(7))), 3);
        assert_eq!(acknowledged.lost("a", None), 0, "counted once");
        assert_eq!(acknowledged.lost("b", None), 1);
        acknowledged.add(run("y"), &a, Number(20));
        assert_eq!(acknowledged.of_another(run("y")), None);
    }

    #[test]
    fn it_remembers_no_more_than_its_bound() {
        let (run, clock) = (Run::of("abcdefabcdef").unwrap(), Arc::from("a"));
        let mut acknowledged = Acknowledged::default();
        let count = MOST as u64 + 10;
        (1..=count).for_each(|n| acknowledged.add(run, &clock, Number(n)));
        assert_eq!(acknowledged.numbers["a"].len(), MOST);
        acknowledged.add(run, &clock, Number(LATELY + count));
        assert_eq!(acknowledged.lost("a", None), 2, "those of the last minute");
    }
}
