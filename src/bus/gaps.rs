//! Everyone who wants to know of gaps, and what each has not read yet.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use futures::Stream;
use parking_lot::Mutex;

use crate::model::gap::Gap;
use crate::waker::{poll_locked, wake};

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
    use std::time::{Duration, SystemTime};

    use futures::{FutureExt, StreamExt};

    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn whoever_asks_hears_of_every_gap_that_ends_later() {
        let gaps = GapReaders::new();
        let until = SystemTime::UNIX_EPOCH + 100 * S;
        let gap = |n: u32| Gap {
            from: until - n * S,
            until,
        };
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
