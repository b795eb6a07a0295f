//! What one sender sent to one audience, as it says itself.

use std::collections::{HashSet, VecDeque};
use std::fmt;

use crate::words::{Outcome, clock};

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Entry {
    pub number: u64,
    /// Just before the send was called, and just after it returned.
    pub sent: u64,
    pub done: u64,
    pub outcome: Outcome,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sent, done) = (clock(self.sent), clock(self.done));
        write!(f, "{} {:?} {sent} to {done}", self.number, self.outcome)
    }
}

/// The entries of the last [`WINDOW`], by number.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: VecDeque<Entry>,
    /// What came to another node before its sender reported it.
    early: HashSet<u64>,
}

impl Ledger {
    /// The sender reports. Whether it came to another node although it certainly was not sent.
    pub fn note(&mut self, entry: Entry) -> bool {
        let arrived = self.early.remove(&entry.number);
        self.entries.push_back(entry);
        arrived && entry.outcome == Outcome::Refused
    }

    /// It came to another node. Whether it did although it certainly was not sent.
    pub fn arrived(&mut self, number: u64) -> bool {
        match self.entry(number) {
            Some(entry) => entry.outcome == Outcome::Refused,
            None => {
                self.early.insert(number);
                false
            }
        }
    }

    pub fn entry(&self, number: u64) -> Option<&Entry> {
        let first = self.entries.front()?.number;
        self.entries.get(number.checked_sub(first)? as usize)
    }

    /// What was sent after this time, from this number on.
    pub fn after(&self, time: u64, from: u64) -> impl Iterator<Item = &Entry> {
        let start = self
            .entries
            .partition_point(|entry| entry.sent <= time || entry.number < from);
        self.entries.range(start..)
    }

    /// The last number that was reported.
    pub fn last(&self) -> u64 {
        self.entries.back().map_or(0, |entry| entry.number)
    }

    pub fn forget_old(&mut self, now: u64) {
        while self
            .entries
            .front()
            .is_some_and(|entry| entry.done + WINDOW < now)
        {
            self.entries.pop_front();
        }
    }
}

/// Longer than the longest fault and what follows it.
const WINDOW: u64 = 12 * 60 * 1_000_000;
