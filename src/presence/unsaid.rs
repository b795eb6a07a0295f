//! What is still to be asked and to be told again, in portions: rules without I/O.
//!
//! After an outage a node asks all others of every topic that is read here, and tells everything again that is watched
//! there. With thousands of rooms that is more than may be said in one go: meanwhile nothing is read that the others
//! tell, and what waits to be read has a limit. So a portion ends whatever is left, and the rest comes after the next
//! look. When the others told more than could be kept, they are asked one after the other, a pause between. What failed
//! would fail again at once, so that a failure ends its portion; but it goes to the end of the queue, since a
//! node or topic that cannot be reached must keep no other waiting.
//!
//! ```text
//!            something is to be said               all is said
//!   Ready --------------------------> Portion ---------------------> Ready
//!     ^                                |
//!     |  time is up                    |  64 are said, or one failed, or the next node's turn comes
//!     +------------- Paused <----------+
//!                     until: at once, or in 1 s
//! ```

use std::collections::HashSet;
use std::time::Duration;

use indexmap::IndexSet;
use tokio::time::Instant;

use crate::model::topic::Topic;

/// What could not be said is said again after this long; and so long one node has to tell before the next is asked.
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// Topics that are asked for, and that are told again, at a time.
pub(super) const PORTION: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Unsaid {
    /// Whom to ask to be told of which topic. The next is at the end.
    unasked: IndexSet<(Topic, Topic)>,
    /// Topics of which the watchers may have missed something.
    untold: IndexSet<Topic>,
    /// The nodes told more at once than could be kept: they are asked one after the other.
    one_by_one: bool,
    pace: UnsaidPace,
}

#[derive(Debug, Default)]
enum UnsaidPace {
    /// Whatever there is begins a portion.
    #[default]
    Ready,
    /// So many may still be asked and told, and then comes the pause.
    Portion {
        asks: usize,
        tells: usize,
        pause: Duration,
    },
    Paused {
        until: Instant,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextUnsaid {
    /// Asks on this channel to be told of this topic.
    Ask { to: Topic, topic: Topic },
    /// Tells all watchers of a topic everybody.
    Tell(Topic),
}

impl Unsaid {
    pub(super) fn ask(&mut self, to: Topic, topic: Topic) {
        self.unasked.insert((to, topic));
    }

    pub(super) fn ask_one_by_one(&mut self) {
        self.one_by_one = true;
    }

    pub(super) fn tell(&mut self, topic: Topic) {
        self.untold.insert(topic);
    }

    /// Nobody is there to be asked on this channel any more.
    pub(super) fn forget_asks_to(&mut self, gone: &Topic) {
        self.unasked.retain(|(to, _)| to != gone);
    }

    /// Nobody reads these any more.
    pub(super) fn forget_asks_for(&mut self, ended: &HashSet<Topic>) {
        self.unasked.retain(|(_, topic)| !ended.contains(topic));
    }

    /// Nobody watches it any more.
    pub(super) fn forget_tell(&mut self, topic: &Topic) {
        self.untold.swap_remove(topic);
    }

    /// Ends the pause, if it is over.
    pub(super) fn advance(&mut self, now: Instant) {
        if self.pause_ends().is_some_and(|until| until <= now) {
            self.pace = UnsaidPace::Ready;
        }
    }

    pub(super) fn pause_ends(&self) -> Option<Instant> {
        match self.pace {
            UnsaidPace::Paused { until } => Some(until),
            UnsaidPace::Ready | UnsaidPace::Portion { .. } => None,
        }
    }

    /// What to say next, unless there is nothing, or a pause comes first.
    pub(super) fn poll(&mut self, now: Instant) -> Option<NextUnsaid> {
        if matches!(self.pace, UnsaidPace::Ready) && !self.is_empty() {
            self.pace = UnsaidPace::Portion {
                asks: PORTION,
                tells: PORTION,
                pause: Duration::ZERO,
            };
        }
        let UnsaidPace::Portion { asks, tells, pause } = &mut self.pace else {
            return None;
        };
        if *asks > 0
            && let Some((to, topic)) = self.unasked.pop()
        {
            *asks -= 1;
            return Some(NextUnsaid::Ask { to, topic });
        }
        self.one_by_one &= !self.unasked.is_empty();
        if *tells > 0
            && let Some(topic) = self.untold.pop()
        {
            *tells -= 1;
            return Some(NextUnsaid::Tell(topic));
        }
        let until = now + *pause;
        self.pace = match self.is_empty() {
            true => UnsaidPace::Ready,
            false => UnsaidPace::Paused { until },
        };
        None
    }

    /// The nodes on this channel were asked.
    pub(super) fn asked(&mut self, asked: &Topic) {
        let others_turn = self.unasked.last().is_some_and(|(to, _)| to != asked);
        if self.one_by_one
            && others_turn
            && let UnsaidPace::Portion { asks, pause, .. } = &mut self.pace
        {
            (*asks, *pause) = (0, RETRY);
        }
    }

    /// This could not be said.
    pub(super) fn failed(&mut self, unsaid: NextUnsaid, now: Instant) {
        // The next is taken from the end.
        match unsaid {
            NextUnsaid::Ask { to, topic } => {
                let (at, _) = self.unasked.insert_full((to, topic));
                self.unasked.swap_indices(0, at);
            }
            NextUnsaid::Tell(topic) => {
                let (at, _) = self.untold.insert_full(topic);
                self.untold.swap_indices(0, at);
            }
        }
        let until = now + RETRY;
        self.pace = UnsaidPace::Paused { until };
    }

    fn is_empty(&self) -> bool {
        self.unasked.is_empty() && self.untold.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::NodeId;

    fn topic(n: usize) -> Topic {
        Topic::room(&n.to_string()).unwrap()
    }

    fn node(id: u64) -> Topic {
        Topic::node(NodeId(id))
    }

    /// Everything that is said before the next pause.
    fn portion(unsaid: &mut Unsaid, now: Instant) -> Vec<NextUnsaid> {
        let next = || {
            let next = unsaid.poll(now)?;
            if let NextUnsaid::Ask { to, .. } = &next {
                unsaid.asked(to);
            }
            Some(next)
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn a_portion_ends_and_the_rest_follows_at_once() {
        let (mut unsaid, now) = (Unsaid::default(), Instant::now());
        for n in 0..PORTION + 1 {
            unsaid.ask(Topic::nodes(), topic(n));
            unsaid.tell(topic(n));
        }
        assert_eq!(unsaid.pause_ends(), None);
        assert_eq!(portion(&mut unsaid, now).len(), 2 * PORTION);
        assert_eq!(unsaid.pause_ends(), Some(now));
        assert_eq!(unsaid.poll(now), None, "others are read before");
        unsaid.advance(now);
        let rest = portion(&mut unsaid, now);
        assert!(matches!(
            rest[..],
            [NextUnsaid::Ask { .. }, NextUnsaid::Tell(_)]
        ));
        assert_eq!(unsaid.pause_ends(), None);
        unsaid.tell(topic(0));
        assert_eq!(
            unsaid.poll(now),
            Some(NextUnsaid::Tell(topic(0))),
            "nothing left"
        );
    }

    #[test]
    fn what_fails_is_said_again_later_and_keeps_nothing_else_from_being_said() {
        let (mut unsaid, mut now) = (Unsaid::default(), Instant::now());
        for n in 0..3 {
            unsaid.ask(node(n), topic(0));
        }
        let never = unsaid.poll(now).unwrap();
        let mut said = Vec::new();
        unsaid.failed(
            NextUnsaid::Ask {
                to: node(2),
                topic: topic(0),
            },
            now,
        );
        assert_eq!(
            never,
            NextUnsaid::Ask {
                to: node(2),
                topic: topic(0)
            }
        );
        for _ in 0..2 {
            assert_eq!(unsaid.poll(now), None, "a pause");
            unsaid.advance(now + RETRY / 2);
            assert_eq!(unsaid.poll(now + RETRY / 2), None, "a pause");
            assert_eq!(unsaid.pause_ends(), Some(now + RETRY));
            now += RETRY;
            unsaid.advance(now);
            while let Some(next) = unsaid.poll(now) {
                match next == never {
                    true => unsaid.failed(next, now),
                    false => said.push(next),
                }
            }
        }
        assert_eq!(said.len(), 2);
        unsaid.tell(topic(1));
        unsaid.failed(NextUnsaid::Tell(topic(2)), now);
        now += RETRY;
        unsaid.advance(now);
        unsaid.forget_asks_to(&node(2));
        assert_eq!(
            portion(&mut unsaid, now),
            [NextUnsaid::Tell(topic(1)), NextUnsaid::Tell(topic(2))]
        );
    }

    #[test]
    fn who_told_more_than_could_be_kept_is_asked_alone() {
        let (mut unsaid, mut now) = (Unsaid::default(), Instant::now());
        for n in 0..9 {
            unsaid.ask(node(n / 3), topic(n as usize % 3));
        }
        unsaid.ask_one_by_one();
        unsaid.tell(topic(0));
        assert_eq!(
            portion(&mut unsaid, now).len(),
            4,
            "one node, and what is told anyway"
        );
        assert_eq!(unsaid.pause_ends(), Some(now + RETRY));
        for asks in [3, 3] {
            now += RETRY;
            unsaid.advance(now);
            assert_eq!(portion(&mut unsaid, now).len(), asks);
        }
        for n in 0..9 {
            unsaid.ask(node(n), topic(0));
        }
        assert_eq!(portion(&mut unsaid, now).len(), 9, "it is over");
    }

    #[test]
    fn what_nobody_needs_is_not_said() {
        let (mut unsaid, now) = (Unsaid::default(), Instant::now());
        for n in 0..3 {
            unsaid.ask(node(0), topic(n));
            unsaid.ask(node(1), topic(n));
            unsaid.tell(topic(n));
        }
        unsaid.forget_asks_to(&node(0));
        unsaid.forget_asks_for(&HashSet::from([topic(0), topic(1)]));
        unsaid.forget_tell(&topic(0));
        unsaid.forget_tell(&topic(1));
        let (to, topic) = (node(1), topic(2));
        let left = [
            NextUnsaid::Ask {
                to,
                topic: topic.clone(),
            },
            NextUnsaid::Tell(topic),
        ];
        assert_eq!(portion(&mut unsaid, now), left);
    }
}
