//! What is kept on a bus: how it is asked for, and what comes of that.

use bytes::Bytes;
use smallvec::SmallVec;

use crate::model::history::Missed;
use crate::model::history::mark::{Clock, Mark, Marks, Number};
use crate::model::topic::Topic;

/// How a publication is kept, where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Of each topic on whose channel it is published, under a number of its own.
    Each,
    /// Of these topics, under one number of each clock: whoever has heard one copy has heard it. It is published where
    /// it is said, whether it is kept there or not.
    Union(SmallVec<[Topic; 1]>),
}

/// How much is read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadLimits {
    /// Most entries of a topic; of more, none is told.
    pub(crate) entries: usize,
    /// Most bytes of all topics together; beyond it none is told of those that are left.
    pub(crate) bytes: usize,
}

/// What came to topics since a position.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Past {
    /// In the order in which they were asked for.
    pub(crate) topics: Vec<TopicPast>,
}

/// What came to one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TopicPast {
    pub(crate) clock: Clock,
    /// Everything up to it is told, and nothing later.
    pub(crate) cut: Mark,
    /// The oldest first.
    pub(crate) entries: Result<Vec<Entry>, Missed>,
}

/// One that was kept.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) number: Number,
    pub(crate) envelope: Bytes,
}

impl Past {
    /// From where everything that is not told here comes: of each clock the earliest cut.
    pub(crate) fn cuts(&self) -> Marks {
        let mut cuts = Marks::default();
        for topic in &self.topics {
            let earlier = cuts
                .of(topic.clock)
                .is_some_and(|cut| cut.run == topic.cut.run && cut.number <= topic.cut.number);
            if !earlier {
                cuts.set(topic.clock, topic.cut);
            }
        }
        cuts
    }
}
