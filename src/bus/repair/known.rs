//! What a node has delivered of a clock lately. A number means something in its run alone, and what comes on a connection does not
//! tell its run: a primary that has lost its place passes on, as a replica, what the one that took it has numbered. That came under
//! the mark of the run before; when that run turns out to be over, all behind its end is read, and with it what came so.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::model::history::mark::Number;

/// So long, in the microseconds of the numbers: much longer than a node stays with a server that is no primary any more.
const LATELY: u64 = 60_000_000;
/// In its first bytes an envelope says whose it is, and which.
const HEAD: usize = 64;

/// By number, in rising order, what it was.
#[derive(Debug)]
pub(super) struct Known {
    most: usize,
    delivered: VecDeque<(Number, u64)>,
}

impl Known {
    /// So many at most.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            delivered: VecDeque::new(),
        }
    }

    pub(super) fn add(&mut self, topic: &str, number: Number, envelope: &[u8]) {
        let new = (number, what(topic, envelope));
        match self.delivered.back() {
            Some(last) if last.0 > number => {
                let at = self.delivered.partition_point(|known| known.0 <= number);
                self.delivered.insert(at, new);
            }
            _ => self.delivered.push_back(new),
        }
        let is_over = |known: &(Number, u64)| known.0.0.saturating_add(LATELY) < number.0;
        while self.delivered.len() > self.most || self.delivered.front().is_some_and(is_over) {
            self.delivered.pop_front();
        }
    }

    /// Whether this very message was delivered under this number.
    pub(super) fn has(&self, topic: &str, number: Number, envelope: &[u8]) -> bool {
        let from = self.delivered.partition_point(|known| known.0 < number);
        let alike = self.delivered.range(from..);
        let mut alike = alike.take_while(|known| known.0 == number).peekable();
        alike.peek().is_some() && {
            let what = what(topic, envelope);
            alike.any(|known| known.1 == what)
        }
    }
}

fn what(topic: &str, envelope: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    topic.hash(&mut hasher);
    envelope.len().hash(&mut hasher);
    envelope[..envelope.len().min(HEAD)].hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_burst_nothing_of_it_stays() {
        let mut known = Known::new(8);
        (1..=8).for_each(|number| known.add("r:x", Number(number), b"one"));
        known.add("r:x", Number(9 + LATELY), b"one");
        assert_eq!(known.delivered.len(), 1);
    }

    #[test]
    fn what_was_delivered_is_known_by_all_that_it_is() {
        let mut known = Known::new(8);
        for number in [7, 9, 8, 8] {
            known.add("r:x", Number(number), b"one");
        }
        for (topic, number, envelope, is_known) in [
            ("r:x", 7, &b"one"[..], true),
            ("r:x", 8, b"one", true),
            ("r:x", 9, b"one", true),
            ("r:x", 10, b"one", false),
            ("r:y", 8, b"one", false),
            ("r:x", 8, b"two", false),
            ("r:x", 8, b"one more", false),
        ] {
            let has = known.has(topic, Number(number), envelope);
            assert_eq!(has, is_known, "{topic} {number} {envelope:?}");
        }
    }

    #[test]
    fn no_more_is_remembered_than_there_is_room_for_nor_longer() {
        let mut known = Known::new(8);
        (0..1000).for_each(|number| known.add("r:x", Number(number), b""));
        assert_eq!(known.delivered.len(), 8);
        for later in 0..20 {
            known.add("r:x", Number(2000 + LATELY + later), b"");
        }
        assert!(!known.has("r:x", Number(999), b""));
        assert_eq!(known.delivered.len(), 8);
    }
}
