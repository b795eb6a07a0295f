//! What the clock of this node says to that of another: rules, with time as an argument.
//!
//! Two clocks cannot be compared, as whatever tells of the one takes a while to the other. But that while is never less than
//! nothing. So of all that came from another node within a while, the one that took the least *by the two clocks* says how far
//! apart these are at most, in one direction; the same of what came there from here, which the other says in its hello, in the
//! other direction. The truth is between the two, and the middle is taken:
//!
//! ```text
//!   least of what came   =  shortest way here   +  how far our clock is ahead
//!   least of what went   =  shortest way there  -  how far our clock is ahead
//!                           ------------------
//!   sum: the shortest round trip. How far ahead: half of the difference, to within half of the sum
//! ```
//! So a message that took three milliseconds longer than the quickest is seen to. Clocks drift apart: what is older than two
//! hellos counts no more.

use std::collections::HashMap;

use crate::model::id::NodeId;

/// Most nodes that are kept. Nobody says goodbye to whoever has never said hello.
const MOST: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Clocks(HashMap<NodeId, Ways>);

/// In microseconds by both clocks: they may be anything.
#[derive(Debug, Default)]
struct Ways {
    /// The least of what came since the last turn, and of the turn before.
    came: [Option<i64>; 2],
    /// The least of what went, as the other node says.
    went: Option<i64>,
}

impl Clocks {
    /// Something came that was sent then, by the clock of its node. How long ago that is, if that can be told.
    pub(super) fn came(&mut self, from: NodeId, sent: u64, now: u64) -> Option<u64> {
        if self.0.len() == MOST && !self.0.contains_key(&from) {
            return None;
        }
        let ways = self.0.entry(from).or_default();
        let took = (now as i64).wrapping_sub(sent as i64);
        // One alone tells nothing: it would be its own measure.
        let is_first = ways.came().is_none();
        ways.came[0] = ways.came[0].into_iter().chain([took]).min();
        let (came, went) = (ways.came().filter(|_| !is_first)?, ways.went?);
        // No round trip takes less than nothing: a clock was changed.
        came.checked_add(went)
            .filter(|round_trip| *round_trip >= 0)?;
        let ahead = came.checked_sub(went)? / 2;
        u64::try_from(took.checked_sub(ahead)?).ok()
    }

    /// What is said to the others.
    pub(super) fn told(&self) -> Vec<(NodeId, i64)> {
        let told = self.0.iter();
        told.filter_map(|(node, ways)| Some((*node, ways.came()?)))
            .collect()
    }

    /// The same. From now on it is another turn.
    pub(super) fn turn(&mut self) -> Vec<(NodeId, i64)> {
        let told = self.told();
        for ways in self.0.values_mut() {
            ways.came[1] = ways.came[0].take();
        }
        told
    }

    /// What a node says of what came there from here.
    pub(super) fn told_by(&mut self, node: NodeId, of_us: Option<i64>) {
        if let Some(ways) = self.0.get_mut(&node) {
            ways.went = of_us;
        }
    }

    pub(super) fn forget(&mut self, node: NodeId) {
        self.0.remove(&node);
    }
}

impl Ways {
    fn came(&self) -> Option<i64> {
        self.came.into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    /// Two nodes whose clocks are so far apart.
    struct Two {
        a: Clocks,
        b: Clocks,
        ahead: i64,
        now: u64,
    }

    impl Two {
        fn new(ahead: i64) -> Self {
            let (a, b) = (Clocks::default(), Clocks::default());
            Self {
                a,
                b,
                ahead,
                now: 1 << 40,
            }
        }

        /// By the clock of B.
        fn at_b(&self) -> u64 {
            self.now.wrapping_add_signed(self.ahead)
        }

        /// What B finds that something from A took, which took so long.
        fn comes_to_b(&mut self, way: u64) -> Option<u64> {
            let sent = self.now;
            self.now += way;
            self.b.came(A, sent, self.at_b())
        }

        fn comes_to_a(&mut self, way: u64) -> Option<u64> {
            let sent = self.at_b();
            self.now += way;
            self.a.came(B, sent, self.now)
        }

        fn say_hello(&mut self) {
            let told = self.a.turn().into_iter().find(|(node, _)| *node == B);
            self.b.told_by(A, told.map(|(_, micros)| micros));
            let told = self.b.turn().into_iter().find(|(node, _)| *node == A);
            self.a.told_by(B, told.map(|(_, micros)| micros));
        }
    }

    #[test]
    fn nothing_is_told_before_both_ways_are_known() {
        let mut two = Two::new(5_000_000);
        assert_eq!(two.comes_to_b(100), None);
        assert_eq!(
            two.comes_to_b(100),
            None,
            "of the way back nothing is known"
        );
        assert_eq!(two.comes_to_a(100), None);
        two.say_hello();
        assert_eq!(
            (two.comes_to_b(100), two.comes_to_a(250)),
            (Some(100), Some(250))
        );
        two.b.forget(A);
        assert_eq!(two.comes_to_b(100), None);
    }

    #[test]
    fn what_is_late_is_told_to_be_and_a_way_that_grew_is_learnt() {
        let mut two = Two::new(-7_000_000);
        let _ = (two.comes_to_b(100), two.comes_to_a(100));
        two.say_hello();
        assert_eq!(two.comes_to_b(90_100), Some(90_100));
        for _ in 0..2 {
            two.say_hello();
            // From now on both ways take longer.
            let _ = (two.comes_to_b(2_000), two.comes_to_a(2_000));
        }
        two.say_hello();
        assert_eq!(two.comes_to_b(2_000), Some(2_000));
    }

    #[test]
    fn one_that_comes_alone_after_a_long_time_is_not_its_own_measure() {
        let mut two = Two::new(0);
        let _ = (two.comes_to_b(100), two.comes_to_a(100));
        for _ in 0..3 {
            let _ = two.comes_to_a(100);
            two.say_hello();
        }
        assert_eq!(two.comes_to_b(9_000), None);
        two.say_hello();
        let _ = two.comes_to_b(100);
        assert_eq!(two.comes_to_b(9_000), Some(9_000), "control");
    }

    #[test]
    fn a_clock_that_was_changed_is_told_nothing_by_until_both_ways_are_known_anew() {
        let mut two = Two::new(0);
        let _ = (two.comes_to_b(100), two.comes_to_a(100));
        two.say_hello();
        two.ahead -= 3_000_000;
        assert_eq!(
            two.comes_to_b(100),
            None,
            "it would have come before it was sent"
        );
        for _ in 0..3 {
            let _ = (two.comes_to_b(100), two.comes_to_a(100));
            two.say_hello();
        }
        assert_eq!(two.comes_to_b(100), Some(100));
    }

    proptest! {
        /// However far apart the clocks are, and however uneven the ways.
        #[test]
        fn it_is_right_to_within_half_of_the_shortest_round_trip(
            ahead in -1_000_000_000_000i64..1_000_000_000_000,
            here in 0u64..5_000,
            there in 0u64..5_000,
            ways in vec((0u64..100_000, 0u64..100_000), 1..20),
            hellos in 1usize..4,
        ) {
            let mut two = Two::new(ahead);
            for _ in 0..hellos {
                // The quickest, by which it is known.
                let _ = (two.comes_to_b(there), two.comes_to_a(here));
                two.say_hello();
            }
            let half = (here + there) / 2 + 1;
            for (longer, back) in ways {
                let (took, told) = (there + longer, two.comes_to_b(there + longer));
                prop_assert!(told.is_some_and(|told| told.abs_diff(took) <= half), "{told:?} of {took}");
                let (took, told) = (here + back, two.comes_to_a(here + back));
                prop_assert!(told.is_some_and(|told| told.abs_diff(took) <= half), "{told:?} of {took}");
            }
        }

        #[test]
        fn nonsense_is_no_panic(said in vec((any::<u64>(), any::<u64>(), any::<Option<i64>>()), 0..9)) {
            let mut clocks = Clocks::default();
            for (sent, now, of_us) in said {
                let _ = clocks.came(A, sent, now);
                clocks.told_by(A, of_us);
                let _ = clocks.turn();
            }
        }
    }
}
