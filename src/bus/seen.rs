//! What came from each node already, by its number: unions, of which a node acts on the first copy alone, and
//! questions, of which it knows whether they came.

use std::collections::VecDeque;

use indexmap::IndexMap;

use crate::model::id::NodeId;

/// How far behind a node's highest number one may be and still be told apart: 32 KiB a node at most. Numbers
/// are given just before they are sent, so those that overtake one another are few.
const WINDOW: u64 = 256 * 1024;
/// Most nodes that are remembered; whoever writes random origins costs no more than this.
const NODES: usize = 1024;

/// Remembered for each node by itself, so that however much others send, nothing of it is forgotten.
#[derive(Debug, Default)]
pub(crate) struct Seen(IndexMap<NodeId, Window>);

/// One bit for each number of the window.
#[derive(Debug, Default)]
struct Window {
    /// Which multiple of 64 the first word begins with.
    first: u64,
    words: VecDeque<u64>,
}

impl Seen {
    /// Remembers a number of a node. Whether this is the first time.
    pub(crate) fn insert(&mut self, node: NodeId, number: u64) -> bool {
        if self.0.len() >= NODES && !self.0.contains_key(&node) {
            self.0.shift_remove_index(0);
        }
        self.0.entry(node).or_default().insert(number)
    }

    /// Whether a number came. What is too old to tell counts as come.
    pub(crate) fn contains(&self, node: NodeId, number: u64) -> bool {
        self.0
            .get(&node)
            .is_some_and(|window| window.contains(number))
    }

    /// Whether a number came, and is not too old to tell.
    pub(crate) fn contains_lately(&self, node: NodeId, number: u64) -> bool {
        self.0
            .get(&node)
            .is_some_and(|window| window.contains_lately(number))
    }

    /// The node has left, and says nothing any more.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.0.shift_remove(&node);
    }
}

impl Window {
    fn insert(&mut self, number: u64) -> bool {
        if self.contains(number) {
            return false;
        }
        let (word, bit) = (number / 64, 1 << (number % 64));
        self.reach(word);
        self.words[(word - self.first) as usize] |= bit;
        true
    }

    fn contains(&self, number: u64) -> bool {
        let word = number / 64;
        word + WORDS < self.end() || self.contains_lately(number)
    }

    fn contains_lately(&self, number: u64) -> bool {
        let word = number / 64;
        let at = word.checked_sub(self.first);
        let bits = at.and_then(|at| self.words.get(usize::try_from(at).ok()?));
        bits.is_some_and(|bits| bits & 1 << (number % 64) != 0)
    }

    fn end(&self) -> u64 {
        self.first + self.words.len() as u64
    }

    /// Makes a place for a word, and forgets what is then too old.
    fn reach(&mut self, word: u64) {
        if self.words.is_empty() || word >= self.end() + WORDS {
            self.words.clear();
            self.first = word;
        }
        while word < self.first {
            self.words.push_front(0);
            self.first -= 1;
        }
        while word >= self.end() {
            self.words.push_back(0);
        }
        while self.words.len() as u64 > WORDS {
            self.words.pop_front();
            self.first += 1;
        }
    }
}

const WORDS: u64 = WINDOW / 64;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const NODE: NodeId = NodeId(1);

    #[test]
    fn each_node_is_remembered_by_itself_however_much_others_send() {
        let mut seen = Seen::default();
        assert!(seen.insert(NODE, 7));
        for number in 0..1_000_000 {
            seen.insert(NodeId(2), number);
        }
        assert!(!seen.insert(NODE, 7));
        assert!(seen.insert(NODE, 8));
    }

    #[test]
    fn numbers_may_overtake_one_another() {
        let mut seen = Seen::default();
        let first = 5 * WINDOW;
        assert!(seen.insert(NODE, first));
        assert!(seen.insert(NODE, first - 1000));
        assert!(!seen.insert(NODE, first - 1000));
        assert!(!seen.contains(NODE, first - 999));
        assert!(seen.insert(NODE, first + 1));
        assert!(!seen.insert(NODE, first));
    }

    #[test]
    fn what_is_too_old_to_tell_counts_as_come() {
        let mut seen = Seen::default();
        assert!(seen.insert(NODE, 1));
        assert!(seen.insert(NODE, 10 * WINDOW));
        assert!(seen.contains(NODE, 2));
        assert!(!seen.insert(NODE, 2));
    }

    #[test]
    fn a_node_that_left_is_forgotten() {
        let mut seen = Seen::default();
        seen.insert(NODE, 1);
        seen.forget(NODE);
        assert!(!seen.contains(NODE, 1));
        assert!(seen.0.is_empty());
    }

    #[test]
    fn random_origins_and_numbers_take_no_more_than_their_bound() {
        let mut seen = Seen::default();
        for node in 0..10_000 {
            seen.insert(NodeId(node), u64::MAX - node);
            seen.insert(NodeId(node), node);
        }
        assert_eq!(seen.0.len(), NODES);
        let words = seen.0.values().map(|window| window.words.len());
        assert!(words.max() <= Some(WORDS as usize));
    }

    proptest! {
        #[test]
        fn within_the_window_it_is_a_set(numbers in prop::collection::vec(0..WINDOW - 64, 0..500), base: u32) {
            let (mut seen, mut set) = (Seen::default(), HashSet::new());
            for number in numbers {
                let number = u64::from(base) + number;
                prop_assert_eq!(seen.contains(NODE, number), set.contains(&number));
                prop_assert_eq!(seen.insert(NODE, number), set.insert(number));
            }
        }
    }
}
