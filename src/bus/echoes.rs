//! What this node sends and keeps comes to its own sockets when it comes back, in the order that all get. What the bus refuses is
//! delivered at once instead, and may come back all the same.
//!
//! ```text
//!           comes back on a topic: delivered, and remembered
//!             +----+
//!             |    v
//!  begin --> begun ---- taken --> nothing is remembered: what comes back later is delivered
//!                  ---- failed -> the topics where it has not come back are delivered at once; what comes back later is a copy
//! ```

use std::collections::HashMap;

use smallvec::SmallVec;

use crate::bus::seen::Seen;
use crate::model::id::NodeId;
use crate::model::topic::{Topic, TopicRef};

/// Of one node, by the numbers of its sends.
#[derive(Debug)]
pub(crate) struct Echoes {
    node: NodeId,
    /// Which of those that have no answer came back, and where.
    begun: HashMap<u64, SmallVec<[Topic; 1]>>,
    /// Delivered without having come back.
    delivered: Seen,
}

impl Echoes {
    pub(crate) fn new(node: NodeId) -> Self {
        Self {
            node,
            begun: HashMap::new(),
            delivered: Seen::default(),
        }
    }

    pub(crate) fn begin(&mut self, number: u64) {
        self.begun.insert(number, SmallVec::new());
    }

    /// It came back on this topic. Whether it is to be delivered.
    pub(crate) fn came(&mut self, number: u64, topic: TopicRef<'_>) -> bool {
        match self.begun.get_mut(&number) {
            Some(came) => {
                came.push(topic.to_topic());
                true
            }
            None => !self.delivered.contains_lately(self.node, number),
        }
    }

    /// The bus took it, or nobody waits for that any more.
    pub(crate) fn end(&mut self, number: u64) {
        self.begun.remove(&number);
    }

    /// The bus refused it, or gave no answer. On which topics it has come back; on the others it is to be delivered.
    pub(crate) fn fail(&mut self, number: u64) -> SmallVec<[Topic; 1]> {
        self.delivered.insert(self.node, number);
        self.begun.remove(&number).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> TopicRef<'_> {
        TopicRef::of(name).unwrap()
    }

    fn names(topics: &[Topic]) -> Vec<&str> {
        topics.iter().map(Topic::as_str).collect()
    }

    #[test]
    fn what_is_sent_is_delivered_once_on_each_topic_whatever_becomes_of_it() {
        let mut echoes = Echoes::new(NodeId(1));
        echoes.begin(7);
        echoes.begin(8);
        assert!(echoes.came(7, topic("u:a")), "before the answer");
        echoes.end(7);
        assert!(echoes.came(7, topic("u:b")), "after it");

        assert!(echoes.came(8, topic("u:a")));
        assert_eq!(names(&echoes.fail(8)), ["u:a"]);
        assert!(!echoes.came(8, topic("u:b")), "it was delivered at once");
        assert!(echoes.came(9, topic("u:b")), "of a call that was cancelled");
        assert!(echoes.begun.is_empty());
    }

    #[test]
    fn what_is_older_than_everything_that_failed_is_no_copy() {
        let mut echoes = Echoes::new(NodeId(1));
        echoes.begin(1_000_000);
        echoes.fail(1_000_000);
        assert!(echoes.came(5, topic("u:a")));
    }
}
