//! The gaps that end, as a stream.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::{Stream, StreamExt};

use crate::model::gap::Gap;
use crate::readers::{ReaderNews, Reading};

/// The gaps that end from now on. A stream, made by [`Cluster::gaps`](crate::Cluster::gaps) and its siblings.
#[must_use = "streams do nothing unless polled"]
pub struct Gaps {
    gaps: Reading<Gap>,
    /// Whom others do not concern.
    concerns: Option<Concerns>,
}

type Concerns = Box<dyn Fn(&Gap) -> bool + Send + Sync>;

impl Gaps {
    pub(super) fn new(gaps: Reading<Gap>) -> Self {
        Self {
            gaps,
            concerns: None,
        }
    }

    /// The gaps that are of concern alone.
    pub(crate) fn that_concern(
        self,
        concerns: impl Fn(&Gap) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self {
            concerns: Some(Box::new(concerns)),
            ..self
        }
    }
}

/// Who lags is told of several as one that spans them.
impl ReaderNews for Gap {
    const MOST: usize = 16;

    fn make_room(unread: &mut VecDeque<Self>) -> bool {
        if let Some(oldest) = unread.pop_front()
            && let Some(next) = unread.front_mut()
        {
            next.from = next.from.min(oldest.from);
            next.until = next.until.max(oldest.until);
            next.extent.widen(&oldest.extent);
        }
        false
    }
}

impl Stream for Gaps {
    type Item = Gap;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Gap>> {
        loop {
            let gap = ready!(self.gaps.poll_next_unpin(cx));
            match (&gap, &self.concerns) {
                (Some(gap), Some(concerns)) if !concerns(gap) => {}
                _ => return Poll::Ready(gap),
            }
        }
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
    use crate::model::gap::Extent;
    use crate::readers::Readers;

    const S: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn whoever_asks_hears_of_every_gap_that_ends_later() {
        let gaps = Readers::default();
        let until = SystemTime::UNIX_EPOCH + 100 * S;
        let gap = |n: u32| Gap {
            from: until - n * S,
            until,
            extent: Extent::default().into(),
        };
        gaps.tell(&gap(1));
        let mut asked = gaps.read();
        assert!(asked.next().now_or_never().is_none(), "the past is over");
        let (second, third) = (gap(2), gap(3));
        gaps.tell(&second);
        gaps.tell(&third);
        assert_eq!(asked.next().await, Some(second));
        assert_eq!(asked.next().await, Some(third));
        drop(gaps);
        assert_eq!(asked.next().await, None);
    }

    #[tokio::test]
    async fn a_reader_that_lags_is_told_of_one_gap_that_spans_what_it_missed() {
        let gaps = Readers::default();
        let mut lagging = gaps.read();
        let start = SystemTime::UNIX_EPOCH;
        let told: Vec<_> = (0..219)
            .map(|n| Gap {
                from: start + 2 * n * S,
                until: start + (2 * n + 1) * S,
                extent: Extent::default().into(),
            })
            .collect();
        for gap in &told {
            gaps.tell(gap);
        }
        drop(gaps);
        let heard: Vec<_> = lagging.by_ref().collect().await;
        assert_eq!(heard.len(), Gap::MOST);
        let merged = told.len() - Gap::MOST;
        assert_eq!(
            (heard[0].from, heard[0].until),
            (told[0].from, told[merged].until)
        );
        assert_eq!(heard[1..], told[merged + 1..]);
    }
}
