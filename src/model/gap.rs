//! A span of time in which messages of other nodes may have been missed.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use futures::Stream;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use crate::model::millis;
use crate::waker::{poll_locked, wake};

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

/// How many gaps wait for a reader before the two oldest become one.
const HISTORY: usize = 16;

/// The gaps that end from now on. A stream, made by [`Cluster::gaps`](crate::Cluster::gaps) and its siblings.
#[must_use = "streams do nothing unless polled"]
pub struct Gaps(Arc<Reader>);

/// Everyone who wants to know of gaps.
#[derive(Debug)]
pub(crate) struct GapReaders(Mutex<Vec<Weak<Reader>>>);

#[derive(Debug, Default)]
struct Reader(Mutex<Unread>);

#[derive(Debug, Default)]
struct Unread {
    gaps: VecDeque<Gap>,
    ended: bool,
    waker: Option<Waker>,
}

impl GapReaders {
    pub(crate) fn new() -> Self {
        Self(Mutex::default())
    }

    pub(crate) fn tell(&self, gap: Gap) {
        for reader in self.readers() {
            reader.change(|unread| unread.push(gap));
        }
    }

    /// The gaps that end from now on; ends with the node. Who lags is told of several as one that spans them.
    pub(crate) fn stream(&self) -> Gaps {
        let reader = Arc::new(Reader::default());
        let mut readers = self.0.lock();
        // Only before it would grow, so that many readers cost no square.
        if readers.len() == readers.capacity() {
            readers.retain(|reader| reader.strong_count() > 0);
        }
        readers.push(Arc::downgrade(&reader));
        Gaps(reader)
    }

    fn readers(&self) -> Vec<Arc<Reader>> {
        self.0.lock().iter().filter_map(Weak::upgrade).collect()
    }
}

impl Drop for GapReaders {
    fn drop(&mut self) {
        for reader in self.readers() {
            reader.change(|unread| unread.ended = true);
        }
    }
}

impl Reader {
    fn change(&self, change: impl FnOnce(&mut Unread)) {
        let mut unread = self.0.lock();
        change(&mut unread);
        let waker = unread.waker.take();
        drop(unread);
        wake(waker);
    }
}

impl Unread {
    fn push(&mut self, gap: Gap) {
        if self.gaps.len() == HISTORY
            && let Some(oldest) = self.gaps.pop_front()
            && let Some(next) = self.gaps.front_mut()
        {
            next.from = next.from.min(oldest.from);
            next.until = next.until.max(oldest.until);
        }
        self.gaps.push_back(gap);
    }
}

impl Stream for Gaps {
    type Item = Gap;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Gap>> {
        poll_locked(
            &self.0.0,
            cx,
            |unread| &mut unread.waker,
            |unread| match (unread.gaps.pop_front(), unread.ended) {
                (None, false) => Poll::Pending,
                (gap, _) => Poll::Ready(gap),
            },
        )
    }
}

impl fmt::Debug for Gaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gaps").finish_non_exhaustive()
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
        let shown = Gap {
            from: SystemTime::UNIX_EPOCH,
            until: SystemTime::UNIX_EPOCH + S,
        };
        let json = serde_json::to_string(&shown).unwrap();
        assert_eq!(json, r#"{"from":0,"until":1000}"#);
    }

    #[tokio::test]
    async fn whoever_asks_hears_of_every_gap_that_ends_later() {
        let gaps = GapReaders::new();
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

    #[tokio::test]
    async fn a_reader_that_lags_is_told_of_one_gap_that_spans_what_it_missed() {
        let gaps = GapReaders::new();
        let mut lagging = gaps.stream();
        let start = SystemTime::UNIX_EPOCH;
        let told: Vec<_> = (0..219)
            .map(|n| Gap {
                from: start + 2 * n * S,
                until: start + (2 * n + 1) * S,
            })
            .collect();
        for gap in &told {
            gaps.tell(*gap);
        }
        drop(gaps);
        let heard: Vec<_> = lagging.by_ref().collect().await;
        assert_eq!(heard.len(), HISTORY);
        let merged = told.len() - HISTORY;
        assert_eq!(
            (heard[0].from, heard[0].until),
            (told[0].from, told[merged].until)
        );
        assert_eq!(heard[1..], told[merged + 1..]);
    }
}
