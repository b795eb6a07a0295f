//! A span of time in which messages of other nodes may have been missed.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::time::Instant;

use super::id::{RoomId, UserId};
use super::millis;
use super::partition::{Partition, PartitionSet};
use super::topic::Topic;

/// An outage of the bus that is over, and during which messages of other nodes may have been missed: Redis
/// pub/sub does not repeat them.
///
/// A send of another node that returned before `from`, or began after `until`, is not affected, by the
/// clock of this node. Where Redis refused some channels only, nobody else missed anything.
///
/// As JSON: `from`, `until` (milliseconds since 1970).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
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
    pub(crate) partitions: PartitionSet,
}

impl Gap {
    /// Whether messages to this user may have been missed. Always, but where topics are shared by several Redises, or by the
    /// primaries of a Redis Cluster, of which one was away.
    pub fn concerns_user(&self, user: &UserId) -> bool {
        Topic::user(user).is_ok_and(|topic| self.concerns_topic(&topic))
    }

    /// The same of messages to this room.
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
        partitions: PartitionSet,
        now: Instant,
        wall: SystemTime,
    ) -> Self {
        let end = wall.checked_sub(now.saturating_duration_since(until));
        let end = end.unwrap_or(wall);
        let span = until.saturating_duration_since(from);
        Self {
            from: end.checked_sub(span).unwrap_or(end),
            until: end,
            partitions,
        }
    }

    pub(crate) fn is_of_everything(&self) -> bool {
        self.partitions == PartitionSet::all()
    }

    pub(crate) fn concerns_topic(&self, topic: &Topic) -> bool {
        self.partitions.contains(Partition::of(topic.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_gap_is_as_long_as_it_was_whatever_the_wall_clock_says() {
        let (until, wall) = (Instant::now(), SystemTime::UNIX_EPOCH + 100 * S);
        let gap = Gap::between((until - 7 * S, until), PartitionSet::all(), until + S, wall);
        assert_eq!((gap.span(), gap.until), (7 * S, wall - S));
        let jumped = Gap {
            from: gap.until,
            until: gap.from,
            ..gap
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
