//! On which topics all nodes are counted: one for each part of the bus that may fail by itself.
//!
//! Whoever is counted at one Redis may be cut off from another. So there is one where a single Redis carries all, one at each
//! of several, and one in each partition of a Redis Cluster: these move one by one, and who hears one of a primary's has not
//! followed every other to it yet.

use crate::model::partition::{Partition, PartitionSet};
use crate::model::topic::Topic;

/// The topics of the census by partition; none where one suffices.
#[derive(Debug)]
pub(super) struct CensusTopics(Option<[Topic; Partition::COUNT]>);

impl CensusTopics {
    /// The census of one Redis.
    pub(super) fn one() -> Self {
        Self(None)
    }

    /// The census of a Redis Cluster: a topic for each partition.
    pub(super) fn by_partition() -> Self {
        Self(Some(Topic::nodes_by_partition()))
    }

    /// Of several Redises, each of which carries some partitions for good.
    pub(super) fn by_shard(shards: impl IntoIterator<Item = PartitionSet>) -> Self {
        let topics = Topic::nodes_by_partition();
        let home = Partition::of(Topic::nodes().as_str());
        let mut by_shard = topics.clone();
        for carried in shards {
            let first = carried.iter().next().filter(|_| !carried.contains(home));
            let topic = &topics[first.unwrap_or(home).index()];
            carried
                .iter()
                .for_each(|partition| by_shard[partition.index()] = topic.clone());
        }
        Self(Some(by_shard))
    }

    /// Each once.
    pub(super) fn all(&self) -> Vec<Topic> {
        let Some(topics) = &self.0 else {
            return vec![Topic::nodes()];
        };
        let own = Partition::all().zip(topics);
        let own = own.filter(|(partition, topic)| Partition::of(topic.as_str()) == *partition);
        own.map(|(_, topic)| topic.clone()).collect()
    }

    /// Where those are counted who hear what is in this partition.
    pub(super) fn of(&self, partition: Partition) -> Topic {
        let topics = self.0.as_ref();
        topics.map_or_else(Topic::nodes, |topics| topics[partition.index()].clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_counted_goes_the_same_way() {
        let third = |n| Partition::all().filter(move |one| one.index() % 3 == n);
        let shards = || (0..3).map(|n| third(n).collect());
        for (census, count) in [
            (CensusTopics::one(), 1),
            (CensusTopics::by_shard(shards()), 3),
            (CensusTopics::by_partition(), Partition::COUNT),
        ] {
            let all = census.all();
            assert_eq!(all.len(), count);
            assert!(all.contains(&Topic::nodes()), "which is heard anyhow");
            for partition in Partition::all() {
                let topic = census.of(partition);
                assert!(all.contains(&topic));
                let at = Partition::of(topic.as_str());
                let is_same = match count {
                    1 => true,
                    3 => at.index() % 3 == partition.index() % 3,
                    _ => at == partition,
                };
                assert!(is_same, "{topic:?} for {partition:?}");
            }
        }
    }
}
