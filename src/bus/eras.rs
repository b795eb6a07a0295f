//! What each node said in a partition before that moved, behind which nothing is heard that comes late.
//!
//! In a Redis Cluster a primary that has lost its place passes what it is still given on to the one that took it, by a way of
//! its own: that may come behind what the same node has published at the new one by then. (Seen after a graceful failover: 30
//! ms later, probably since its servers wait for more to send at once; and ten seconds later, where the old one was frozen in
//! between.) So a node counts how often anything has moved, and publishes with that number; a partition has one number as long as
//! it is at one primary, and a higher one at the next, where nothing is published before all is answered or given up at the
//! last. Whoever hears of the higher one hears nothing of a lower one any more: it is in the gap that the move is anyway.

use std::collections::BTreeMap;

use indexmap::IndexMap;

use crate::model::id::NodeId;
use crate::model::partition::Partition;

/// Most nodes that are remembered; whoever writes random origins costs no more than this.
const NODES: usize = 1024;

/// The highest that was heard of each node in each partition, where that is not 0.
#[derive(Debug, Default)]
pub(crate) struct Eras(IndexMap<NodeId, BTreeMap<Partition, u32>>);

impl Eras {
    /// Whether what a node said there comes behind what it said later.
    pub(crate) fn is_behind(&mut self, node: NodeId, partition: Partition, era: u32) -> bool {
        let heard = self.0.get(&node).and_then(|eras| eras.get(&partition));
        let heard = heard.copied().unwrap_or(0);
        if era > heard {
            if self.0.len() >= NODES && !self.0.contains_key(&node) {
                self.0.shift_remove_index(0);
            }
            self.0.entry(node).or_default().insert(partition, era);
        }
        era < heard
    }

    /// The node has left, and says nothing any more.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.0.shift_remove(&node);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn partition(n: u8) -> Partition {
        Partition::all().nth(n.into()).unwrap()
    }

    #[test]
    fn random_origins_take_no_more_than_their_bound() {
        let mut eras = Eras::default();
        for node in 0..10_000 {
            assert!(!eras.is_behind(NodeId(node), partition(0), 1));
        }
        assert_eq!(eras.0.len(), NODES);
        eras.forget(NodeId(9_999));
        assert!(!eras.is_behind(NodeId(9_999), partition(0), 0));
    }

    /// Primaries, the last of them the present one, each with what it still has to say.
    #[derive(Debug, Default)]
    struct World {
        primaries: Vec<Vec<(u32, u32)>>,
        next: u32,
        eras: Eras,
        heard: Vec<(u32, u32)>,
    }

    impl World {
        /// The next publication, or a move; or a primary, dead or not, passes something on.
        fn step(&mut self, step: u8, at: usize) {
            match step {
                0 => self.primaries.push(Vec::new()),
                1 | 2 => {
                    let era = self.primaries.len() as u32 - 1;
                    let now = self.primaries.last_mut().unwrap();
                    now.push((era, self.next));
                    self.next += 1;
                }
                _ => {
                    let at = at % self.primaries.len();
                    let said = &mut self.primaries[at];
                    if said.is_empty() {
                        return;
                    }
                    let (era, number) = said.remove(0);
                    if !self.eras.is_behind(NodeId(1), partition(7), era) {
                        self.heard.push((era, number));
                    }
                }
            }
        }
    }

    proptest! {
        /// However late whichever primary says what it has.
        #[test]
        fn what_is_heard_is_in_order(steps in prop::collection::vec((0u8..6, 0usize..8), 0..200)) {
            let mut world = World { primaries: vec![Vec::new()], ..World::default() };
            for (step, at) in steps {
                world.step(step, at);
            }
            prop_assert!(world.heard.is_sorted_by(|one, next| one.1 < next.1), "{:?}", world.heard);
            // Where nothing comes late, nothing is lost.
            let told: Vec<_> = world.primaries.last_mut().unwrap().drain(..).collect();
            for (era, _) in told {
                prop_assert!(!world.eras.is_behind(NodeId(1), partition(7), era));
            }
        }

        #[test]
        fn each_node_and_partition_is_by_itself(said in prop::collection::vec((0u64..3, 0u8..3, 0u32..4), 0..60)) {
            let (mut eras, mut model) = (Eras::default(), BTreeMap::new());
            for (node, at, era) in said {
                let highest = model.entry((node, at)).or_insert(0);
                prop_assert_eq!(eras.is_behind(NodeId(node), partition(at), era), era < *highest);
                *highest = era.max(*highest);
            }
        }
    }
}
