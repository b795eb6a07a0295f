//! A span of time in which messages of other nodes may have been missed.

use std::time::{Duration, SystemTime};

use futures::Stream;
use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::health::follow;

/// An outage of the bus that is over, and during which messages of other nodes may have been missed: Redis
/// pub/sub does not repeat them.
///
/// A send of another node that returned before `from`, or began after `until`, is not affected, by the
/// clock of this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Gap {
    /// The last moment at which the bus is known to have worked: when the last probe that came back was
    /// published. The outage itself began later, at most two `probe_interval`s before it was noticed.
    pub from: SystemTime,
    /// From here on everything is heard again.
    pub until: SystemTime,
}

impl Gap {
    /// How long it was.
    pub fn span(&self) -> Duration {
        self.until.duration_since(self.from).unwrap_or_default()
    }

    /// Measured by a clock that nobody sets; named by the one on the wall.
    pub(crate) fn between(from: Instant, until: Instant) -> Self {
        let until_now = until.elapsed();
        let end = SystemTime::now();
        let end = end.checked_sub(until_now).unwrap_or(end);
        let span = until.saturating_duration_since(from);
        Self {
            from: end.checked_sub(span).unwrap_or(end),
            until: end,
        }
    }
}

/// How many gaps a reader may lag behind before it misses the oldest.
const HISTORY: usize = 16;

/// Everyone who wants to know of gaps.
#[derive(Debug)]
pub(crate) struct Gaps(broadcast::Sender<Gap>);

impl Gaps {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(HISTORY))
    }

    pub(crate) fn tell(&self, gap: Gap) {
        // Fails only when nobody wants to know.
        let _ = self.0.send(gap);
    }

    /// The gaps that end from now on; ends with the node.
    pub(crate) fn stream(&self) -> impl Stream<Item = Gap> + Send + Unpin + use<> {
        follow(self.0.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_gap_is_as_long_as_it_was_whatever_the_wall_clock_says() {
        let until = Instant::now();
        let gap = Gap::between(until - 7 * S, until);
        assert_eq!(gap.span(), 7 * S);
        let jumped = Gap {
            from: gap.until,
            until: gap.from,
        };
        assert_eq!(jumped.span(), Duration::ZERO);
    }

    #[tokio::test]
    async fn whoever_asks_hears_of_every_gap_that_ends_later() {
        let gaps = Gaps::new();
        let now = Instant::now();
        let gap = |n: u32| Gap::between(now - n * S, now);
        gaps.tell(gap(1));
        let mut asked = gaps.stream();
        assert!(asked.next().now_or_never().is_none(), "the past is over");
        let (second, third) = (gap(2), gap(3));
        gaps.tell(second);
        gaps.tell(third);
        assert_eq!(asked.next().await, Some(second));
        assert_eq!(asked.next().await, Some(third));
        drop(gaps);
        assert_eq!(asked.next().await, None);
    }
}
