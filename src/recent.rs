//! Unions seen lately, so that a node acts on the first copy alone.

use std::collections::{HashSet, VecDeque};

use crate::id::NodeId;

/// How many unions are remembered. The copies of one union leave in one pipeline, so between them
/// comes only what other nodes publish in that moment.
const REMEMBERED: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct RecentUnions {
    order: VecDeque<(NodeId, u64)>,
    known: HashSet<(NodeId, u64)>,
}

impl RecentUnions {
    /// Whether this is the first copy.
    pub(crate) fn is_first(&mut self, origin: NodeId, union: u64) -> bool {
        if !self.known.insert((origin, union)) {
            return false;
        }
        if self.order.len() == REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back((origin, union));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_copy_counts_and_memory_is_bounded() {
        let mut recent = RecentUnions::default();
        assert!(recent.is_first(NodeId(1), 1));
        assert!(!recent.is_first(NodeId(1), 1));
        assert!(recent.is_first(NodeId(2), 1), "another node's");
        for union in 2..10_000 {
            assert!(recent.is_first(NodeId(1), union));
        }
        assert_eq!(
            (recent.order.len(), recent.known.len()),
            (REMEMBERED, REMEMBERED)
        );
        assert!(!recent.is_first(NodeId(1), 9_999));
    }
}
