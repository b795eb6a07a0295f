//! How far a node has heard the runs of a clock that are over. What was lost with one of them may be kept again, by a later run
//! and under another number; whoever has it from before must not get it twice.

use std::collections::VecDeque;

use crate::model::history::mark::Mark;

/// Most runs that are remembered: so many failovers in a row.
const MOST: usize = 8;

#[derive(Debug, Default)]
pub(crate) struct Former(VecDeque<FormerlyHeard>);

#[derive(Debug)]
struct FormerlyHeard {
    until: Mark,
    /// Sockets with this number and later ones came when nothing more of it was heard.
    newcomers: u64,
}

impl Former {
    /// A run is over, and was heard up to here.
    pub(crate) fn add(&mut self, until: Mark, newcomers: u64) {
        self.0.push_back(FormerlyHeard { until, newcomers });
        if self.0.len() > MOST {
            self.0.pop_front();
        }
    }

    /// Of what was kept under one of these: which sockets have it not, if some have.
    pub(crate) fn had(&self, marks: &[Mark]) -> Option<u64> {
        let heard = self.0.iter().filter(|heard| heard.until.covers(marks));
        heard.map(|heard| heard.newcomers).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::history::mark::{Number, Run};

    #[test]
    fn what_was_heard_of_a_run_that_is_over_is_known() {
        let mark = |letter: &str, number| Mark {
            run: Run::of(&letter.repeat(12)).unwrap(),
            number: Number(number),
        };
        let mut former = Former::default();
        assert_eq!(former.had(&[mark("a", 1)]), None);
        former.add(mark("a", 200), 7);
        former.add(mark("b", 50), 9);
        for (marks, newcomers) in [
            (&[mark("a", 200)][..], Some(7)),
            (&[mark("a", 201)], None),
            (&[mark("b", 100)], None),
            (&[mark("c", 1)], None),
            (&[mark("a", 300), mark("b", 40)], Some(9)),
            (&[mark("a", 100), mark("b", 60)], Some(7)),
            (&[], None),
        ] {
            assert_eq!(former.had(marks), newcomers, "{marks:?}");
        }
        (0..MOST as u64).for_each(|n| former.add(mark("c", n), n));
        assert_eq!(former.had(&[mark("a", 1)]), None, "it is bounded");
    }
}
