//! A span of time in which messages of other nodes may have been missed.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::time::Instant;

use super::id::{NodeId, RoomId, UserId};
use super::millis;
use super::partition::{Partition, PartitionSet};
use super::topic::{Kinds, Topic, TopicKind};

/// An outage of the bus that is over, and during which messages of other nodes may have been missed: Redis
/// pub/sub does not repeat them.
///
/// A send of another node that returned before `from`, or began after `until`, is not affected, by the
/// clock of this node. Where Redis refused some channels only, nobody else missed anything.
///
/// What is kept ([`user_history`](crate::ClusterBuilder::user_history) and its siblings) was missed only for a moment: it came
/// before the gap was told, in order, and concerns nobody any more. If it could not be told (more than is kept, or older; Redis
/// has lost it), its user or room is concerned, and so is everybody if nothing could be read. What is kept of nobody, such as
/// messages to single nodes, is in every gap.
///
/// As JSON: `from`, `until` (milliseconds since 1970).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
#[non_exhaustive]
pub struct Gap {
    /// The last moment at which the bus is known to have worked: when the last probe that came back was
    /// published. The outage itself began later, at most two `probe_interval`s before it was noticed.
    #[serde(serialize_with = "millis::serialize")]
    pub from: SystemTime,
    /// From here on everything is heard again.
    #[serde(serialize_with = "millis::serialize")]
    pub until: SystemTime,
    #[serde(skip)]
    pub(crate) extent: Arc<Extent>,
}

/// What may have been missed.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Extent {
    /// There only.
    pub(crate) partitions: PartitionSet,
    /// Whatever came on topics of these kinds, …
    pub(crate) kinds: Kinds,
    /// … and on these.
    pub(crate) topics: Vec<Topic>,
    /// Sockets from this number on were not there in time for what was repaired.
    pub(crate) newcomers: Option<u64>,
}

impl Extent {
    /// Widens the gap to that of both.
    pub(crate) fn widen(self: &mut Arc<Self>, other: &Self) {
        let all = Arc::make_mut(self);
        all.partitions = all.partitions | other.partitions;
        all.kinds = all.kinds | other.kinds;
        all.topics.extend_from_slice(&other.topics);
        all.newcomers = all.newcomers.into_iter().chain(other.newcomers).min();
    }
}

impl Gap {
    /// Whether messages to this user may have been missed. Not, where
    /// - topics are shared by several Redises, or by the primaries of a Redis Cluster, and this user's was not away;
    /// - only channels of other kinds were refused, such as those of rooms;
    /// - what is sent to users is kept ([`user_history`](crate::ClusterBuilder::user_history)), and all of it came after all.
    ///
    /// Of the rooms that a user's sockets are in it says nothing.
    pub fn concerns_user(&self, user: &UserId) -> bool {
        Topic::user(user).is_ok_and(|topic| self.concerns_topic(&topic))
    }

    /// Whether messages to this room may have been missed, by the same rules.
    pub fn concerns_room(&self, room: &RoomId) -> bool {
        Topic::room(room.as_str()).is_ok_and(|topic| self.concerns_topic(&topic))
    }

    /// How long it was.
    pub fn span(&self) -> Duration {
        self.until.duration_since(self.from).unwrap_or_default()
    }

    /// Measured by a clock that nobody sets; named by the one on the wall, which shows this `now`.
    pub(crate) fn between(
        (from, until): (Instant, Instant),
        extent: Extent,
        now: Instant,
        wall: SystemTime,
    ) -> Self {
        let end = wall.checked_sub(now.saturating_duration_since(until));
        let end = end.unwrap_or(wall);
        let span = until.saturating_duration_since(from);
        Self {
            from: end.checked_sub(span).unwrap_or(end),
            until: end,
            extent: extent.into(),
        }
    }

    pub(crate) fn concerns_topic(&self, topic: &Topic) -> bool {
        let extent = &self.extent;
        let is_there = extent.partitions.contains(Partition::of(topic.as_str()));
        is_there && extent.kinds.contains(topic.kind()) || extent.topics.contains(topic)
    }

    /// Whether what was sent to single sockets of a node is missing. That is not kept, and told with what is sent to users.
    pub(crate) fn concerns_sockets_of(&self, node: NodeId) -> bool {
        let extent = &self.extent;
        let partition = Partition::of(Topic::node(node).as_str());
        extent.partitions.contains(partition) && extent.kinds.contains(TopicKind::User)
    }

    /// Whether a socket with this number missed what others were told when it was over.
    pub(crate) fn is_news_for(&self, number: u64) -> bool {
        self.extent.newcomers.is_some_and(|first| first <= number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_gap_is_as_long_as_it_was_whatever_the_wall_clock_says() {
        let (until, wall) = (Instant::now(), SystemTime::UNIX_EPOCH + 100 * S);
        let gap = Gap::between((until - 7 * S, until), Extent::default(), until + S, wall);
        assert_eq!((gap.span(), gap.until), (7 * S, wall - S));
        let jumped = Gap {
            from: gap.until,
            until: gap.from,
            ..gap.clone()
        };
        assert_eq!(jumped.span(), Duration::ZERO);
        let shown = Gap {
            from: SystemTime::UNIX_EPOCH,
            until: SystemTime::UNIX_EPOCH + S,
            ..gap
        };
        let json = serde_json::to_string(&shown).unwrap();
        assert_eq!(json, r#"{"from":0,"until":1000}"#);
    }
}
