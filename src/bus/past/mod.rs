//! What is kept on a bus: how it is asked for, and what comes of that.

pub(crate) mod proof;
pub(crate) mod store;

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
    /// Of these topics, under a number for each, and published nowhere.
    Silent(SmallVec<[Topic; 1]>),
}

/// How much is read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadLimits {
    /// Most entries of a topic; of more, none is told. One: nothing is wanted but the cut.
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
    /// Everything up to it is told, and nothing later. None, where nothing is kept.
    pub(crate) cut: Option<Mark>,
    /// The oldest first.
    pub(crate) entries: Result<Vec<Entry>, Missed>,
}

/// A message that was kept.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) number: Number,
    pub(crate) envelope: Bytes,
}

impl TopicPast {
    /// The past of a topic of which nothing is kept.
    pub(crate) fn of_nothing(clock: Clock) -> Self {
        Self {
            clock,
            cut: None,
            entries: Err(Missed::Forgotten),
        }
    }
}

impl Past {
    /// From where everything that is not told here comes: of each clock the earliest cut.
    pub(crate) fn cuts(&self) -> Marks {
        let mut cuts = Marks::default();
        for topic in &self.topics {
            let Some(cut) = topic.cut else { continue };
            let before = cuts.of(topic.clock);
            if before.is_none_or(|before| before.run != cut.run || cut.number < before.number) {
                cuts.set(topic.clock, cut);
            }
        }
        cuts
    }
}
