//! How topics are called at a Redis.
//!
//! `{namespace}:{topic}`; in a Redis Cluster `{namespace}:{tag}:{topic}`, with the tag of the topic's partition in braces, by
//! which the cluster keeps all channels of a partition in one slot.

use std::sync::Arc;

use super::command::Dialect;
use crate::model::partition::Partition;
use crate::model::topic::{Namespace, Topic};

#[derive(Debug, Clone)]
pub(super) struct Channels {
    namespace: Namespace,
    dialect: Dialect,
    /// The key of the clock of all partitions that have none of their own.
    clock: Arc<str>,
}

impl Channels {
    pub(super) fn new(namespace: Namespace, dialect: Dialect) -> Self {
        let clock = format!("{}:h", namespace.as_str()).into();
        Self {
            namespace,
            dialect,
            clock,
        }
    }

    pub(super) fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Where a topic is kept, if that matters.
    pub(super) fn partition(&self, topic: &Topic) -> Option<Partition> {
        match self.dialect {
            Dialect::Plain => None,
            Dialect::Sharded => Some(Partition::of(topic.as_str())),
        }
    }

    pub(super) fn of(&self, topic: &Topic) -> String {
        self.at(self.partition(topic), topic)
    }

    /// The channel that a topic would have in this partition.
    pub(super) fn at(&self, partition: Option<Partition>, topic: &Topic) -> String {
        let Some(partition) = partition else {
            return self.namespace.channel(topic);
        };
        let (namespace, tag) = (self.namespace.as_str(), partition.tag());
        [namespace, ":{", tag, "}:", topic.as_str()].concat()
    }

    /// The key of the clock that numbers what is kept of a topic.
    pub(super) fn clock(&self, topic: &Topic) -> Arc<str> {
        match self.partition(topic) {
            None => self.clock.clone(),
            Some(partition) => {
                let (namespace, tag) = (self.namespace.as_str(), partition.tag());
                [namespace, ":{", tag, "}:h"].concat().into()
            }
        }
    }

    /// The key of the list that keeps what is sent to a topic.
    pub(super) fn list(&self, topic: &Topic) -> String {
        let namespace = self.namespace.as_str();
        match self.partition(topic) {
            None => [namespace, ":h:", topic.as_str()].concat(),
            Some(partition) => [namespace, ":{", partition.tag(), "}:h:", topic.as_str()].concat(),
        }
    }

    /// The key of the list that keeps large unions, of the same clock as this topic.
    pub(super) fn unions(&self, topic: &Topic) -> String {
        format!("{}:unions", self.clock(topic))
    }

    /// A channel of this partition that nobody hears: who publishes there learns whether the partition is.
    pub(super) fn mark(&self, partition: Partition) -> String {
        [self.namespace.as_str(), ":{", partition.tag(), "}:"].concat()
    }

    /// The topic's name in one of our channels, and the tag, where there is one.
    pub(super) fn topic<'a>(&self, channel: &'a [u8]) -> Option<(&'a str, &'a str)> {
        let rest = self.namespace.topic(channel)?;
        match self.dialect {
            Dialect::Plain => Some((rest, "")),
            Dialect::Sharded => {
                let (tag, topic) = rest.strip_prefix('{')?.split_once("}:")?;
                Some((topic, tag))
            }
        }
    }
}

/// Whether it is the key of the clock of this partition.
pub(super) fn is_clock_of(key: &str, partition: Partition) -> bool {
    let end = key.strip_suffix("}:h");
    let end = end.and_then(|end| end.strip_suffix(partition.tag()));
    end.is_some_and(|end| end.ends_with('{'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::UserId;

    #[test]
    fn a_channel_is_called_by_its_topic_and_in_a_cluster_by_its_partition_too() {
        let namespace = Namespace::new("x").unwrap();
        let alice = Topic::user(&UserId::from("alice")).unwrap();
        for (dialect, channel, tag) in [
            (Dialect::Plain, "x:u:alice", ""),
            (Dialect::Sharded, "x:{6}:u:alice", "6"),
        ] {
            let channels = Channels::new(namespace.clone(), dialect);
            assert_eq!(channels.of(&alice), channel);
            assert_eq!(channels.topic(channel.as_bytes()), Some(("u:alice", tag)));
            assert_eq!(channels.topic(b"y:u:alice"), None);
        }
        let channels = Channels::new(namespace, Dialect::Sharded);
        for foreign in ["x:u:alice", "x:{6", "x:{6}u:alice"] {
            assert_eq!(channels.topic(foreign.as_bytes()), None, "{foreign}");
        }
    }
}
