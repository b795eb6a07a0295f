//! What is proven: whether all that came since a position can be told. Redis does the same in `read.lua`.
//!
//! A position is a number, and the run that gave it. It is continued from there, or from an earlier number:
//! 1. The clock is empty, or began after the number, or has not come so far: whoever kept it was emptied, *Forgotten*.
//! 2. The run has ended, and its end is known: what it gave beyond is lost with it, so that everything since is news. It is not
//!    known: *Forgotten*. A run that came back has a second time, and a number is of that in which it was given.
//! 3. The number is older than what is kept: *Late*. Where the time of whoever keeps it is set back, numbers go on from where they
//!    were, as fast as time does, so that their difference is an age.
//! 4. Of each topic: where the last is not newer, or there is none, nothing came, since it would be there. Otherwise one that is
//!    not newer is there as well, so that nothing between is missing; or the first of them is the first of its list's life,
//!    before which nothing was kept for so long that rule 3 held it back. Else more came than is kept: *TooMany*. Where keys are
//!    evicted, only what is there proves anything: else *Forgotten*; but of a list of which the last number is known it is also
//!    proven that nothing came since that. Where it did and the list is not there, that is gone.
//!
//! A server that was emptied, or was the primary before, and whose time was set back as well, cannot be told from one that has
//! gone on. And where a server became the primary a second time, and then a state from before that is gone on with, those who left
//! in its second time get again what came between its two.

use std::collections::BTreeMap;

use crate::model::history::Missed;
use crate::model::history::mark::{Mark, Number, Run};

/// What a clock knows: who gave numbers, and up to where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chronicle {
    /// Nobody yet, or it was emptied.
    run: Option<Run>,
    last: Number,
    /// The first number after it was empty.
    born: Number,
    /// The first of the present run, since it came last.
    began: Number,
    /// By what run began when: the last number of its time.
    ends: BTreeMap<(Run, Number), Number>,
    /// How far numbers are before the time.
    ahead: u64,
}

/// So far the numbers of a batch may be before the time without anybody having set that back, in microseconds; less than an
/// eighth of the shortest that is kept.
const SLACK: u64 = 1_000_000;

impl Chronicle {
    /// Gives so many numbers in a row at this time, in microseconds; the first of them.
    pub(crate) fn advance(&mut self, run: Run, now: u64, count: u64) -> Number {
        let (time, next) = (now + self.ahead, self.last.0 + 1);
        if time + SLACK < next {
            self.ahead += next - time;
        }
        let first = Number(time.max(next));
        if self.run != Some(run) {
            match self.run.replace(run) {
                Some(ended) => {
                    self.ends.insert((ended, self.began), self.last);
                }
                None => self.born = first,
            }
            self.began = first;
        }
        self.last = Number(first.0 + count - 1);
        first
    }

    /// From where a position is continued by whoever was [given](Self::advance) a number now, where so many microseconds are
    /// kept: rules 1 to 3.
    pub(crate) fn continued(&self, since: Mark, keep: u64) -> Result<Number, Missed> {
        let Mark { run, number } = since;
        let from = match self.run == Some(run) && number >= self.began {
            true if number > self.last => return Err(Missed::Forgotten),
            true => number,
            false => number.min(self.end_of(since).ok_or(Missed::Forgotten)?),
        };
        match () {
            () if from < self.born => Err(Missed::Forgotten),
            () if self.last.0.saturating_sub(from.0) > keep => Err(Missed::Late),
            () => Ok(from),
        }
    }

    /// Where the time ended in which a number was given.
    fn end_of(&self, Mark { run, number }: Mark) -> Option<Number> {
        let mut began = self.ends.range((run, Number(0))..=(run, number));
        began.next_back().map(|(_, end)| *end)
    }
}

/// What may have become of a list.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ListLost {
    /// Keys go that nobody deleted.
    pub(crate) evicts: bool,
    /// The last number that was ever in it, if that is known; 0, if there was none.
    pub(crate) last: Option<Number>,
}

/// Of the numbers that a topic has, and whether the first of them is the first of its life: where those begin that came since
/// (rule 4).
pub(crate) fn since(
    numbers: impl ExactSizeIterator<Item = Number>,
    is_first: bool,
    from: Number,
    lost: ListLost,
) -> Result<usize, Missed> {
    let count = numbers.len();
    let older = numbers.take_while(|number| *number <= from).count();
    let is_gone = lost.last.map_or(lost.evicts, |last| last > from);
    match () {
        () if older > 0 => Ok(older),
        () if count == 0 && is_gone || is_first && lost.evicts => Err(Missed::Forgotten),
        () if is_first || count == 0 => Ok(0),
        () => Err(Missed::TooMany),
    }
}
