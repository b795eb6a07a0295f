//! What came lately from other nodes: unions, of which a node acts on the first copy alone, and
//! questions, of which it knows whether they came.

use std::collections::{HashSet, VecDeque};

use crate::id::NodeId;

/// How many are remembered. The copies of one union leave in one pipeline, so between them comes only
/// what other nodes publish in that moment; a question is followed up after a tenth of a second.
const REMEMBERED: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Recent {
    order: VecDeque<(NodeId, u64)>,
    known: HashSet<(NodeId, u64)>,
}

impl Recent {
    /// Remembers it. Whether this is the first time.
    pub(crate) fn is_first(&mut self, origin: NodeId, id: u64) -> bool {
        if !self.known.insert((origin, id)) {
            return false;
        }
        if self.order.len() == REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back((origin, id));
        true
    }

    /// Whether it came lately.
    pub(crate) fn contains(&self, origin: NodeId, id: u64) -> bool {
        self.known.contains(&(origin, id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_copy_counts_and_memory_is_bounded() {
        let mut recent = Recent::default();
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
        assert!(recent.contains(NodeId(1), 9_999) && !recent.contains(NodeId(1), 2));
    }
}
