//! The body of the response: what is said to the socket, as hyper takes it.
//!
//! ```text
//!           the rooms are heard, what it missed is there          the Close is written, or nothing is left to say
//!  Opening ────────────────────────────────────────────▶ Open ───────────────────────────────────────────────▶ Over
//! ```
//! Dropped by hyper in any of them, the client has left; while *Opening* it never had a stream (1006 all the same, with
//! another reason). *Over* ends the body, and says nothing more.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::future::{BoxFuture, pending};
use futures::{FutureExt, Stream};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::local::socket::resuming::PositionTold;
use crate::local::subscription::{Streamed, SubscriptionEnding};
use crate::model::close::reason;
use crate::model::history::Resumed;
use crate::model::history::mark::Number;
use crate::sse;
use crate::ws::frame::Frame;

/// Pulled by whoever writes the response, so that a client that does not read fills the outbox. Dropping it is how the
/// client leaves.
pub(super) struct Written {
    streamed: Streamed,
    /// Has the waker of the handler that waits for the end.
    ending: Arc<SubscriptionEnding>,
    /// The rooms it is in are heard, and what it missed is there.
    resumed: BoxFuture<'static, Resumed>,
    /// The handler waits for the beginning.
    begun: Option<oneshot::Sender<Resumed>>,
    /// What its client was told last, where it is told positions.
    position: Option<String>,
    phase: Phase,
    /// A shutdown waits for the last event.
    _token: TaskTrackerToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Opening,
    Open,
    Over,
}

impl Written {
    pub(super) fn new(
        streamed: Streamed,
        resumed: BoxFuture<'static, Resumed>,
        is_told: bool,
        tasks: &TaskTracker,
    ) -> Self {
        Self {
            ending: streamed.ending(),
            streamed,
            resumed,
            begun: None,
            position: is_told.then(String::new),
            phase: Phase::Opening,
            _token: tasks.token(),
        }
    }

    /// With what the handler waits for the end.
    pub(super) fn ending(&self) -> Arc<SubscriptionEnding> {
        self.ending.clone()
    }

    /// Is told when the client has its answer and the rooms are heard.
    pub(super) fn when_begun(&mut self, begun: oneshot::Sender<Resumed>) {
        self.begun = Some(begun);
    }

    fn begin(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        let resumed = ready!(self.resumed.as_mut().poll(cx));
        // It holds the node.
        self.resumed = pending().boxed();
        if let Some(begun) = self.begun.take() {
            // Nobody may be interested.
            let _ = begun.send(resumed);
        }
        self.phase = Phase::Open;
        let mut opening = Vec::new();
        sse::write_opening(sse::retry(fastrand::f64()), &mut opening);
        Poll::Ready(opening.into())
    }

    /// All that waits, as far as one write may be.
    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let first = self.streamed.end.poll_frame(cx);
        if first.is_pending() {
            self.ending.wake_handler();
        }
        let mut next = ready!(first);
        let mut out = Vec::new();
        while let Some(frame) = next {
            self.write(frame, &mut out);
            next = match out.len() < ENOUGH && self.phase == Phase::Open {
                true => self.streamed.end.next_waiting(),
                false => break,
            };
        }
        if out.is_empty() {
            self.phase = Phase::Over;
            return Poll::Ready(None);
        }
        Poll::Ready(Some(out.into()))
    }

    fn write(&mut self, frame: Frame, out: &mut Vec<u8>) {
        if frame.is_ping() {
            return sse::write_comment(out);
        }
        let (number, frame) = frame.unmarked();
        match frame.into_message() {
            Some(message) => match message.as_text().and_then(PositionTold::read) {
                Some(told) if self.position.is_some() => self.write_told(&told, number, out),
                _ => sse::write_message(&message, self.id(number).as_deref(), out),
            },
            None => {
                let close = self.streamed.end.close_reason().unwrap_or(reason::DONE);
                sse::write_close(&close, sse::retry(fastrand::f64()), out);
                self.phase = Phase::Over;
            }
        }
    }
}

impl Written {
    fn write_told(&mut self, told: &PositionTold<'_>, number: Option<Number>, out: &mut Vec<u8>) {
        match *told {
            PositionTold::Position(position) => {
                self.position = Some(position.to_owned());
                sse::write_position(position, out);
            }
            PositionTold::Missed { why, position } => {
                self.position = Some(position.to_owned());
                sse::write_missed(why, position, out);
            }
            PositionTold::Text(text) => {
                sse::write_message(&text.into(), self.id(number).as_deref(), out);
            }
        }
    }

    /// Where a client goes on that has this.
    fn id(&self, number: Option<Number>) -> Option<String> {
        let (Number(number), position) = number.zip(self.position.as_ref())?;
        Some(format!("{position}~{number}"))
    }
}

impl Stream for Written {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let events = self.get_mut();
        let written = match events.phase {
            Phase::Opening => events.begin(cx).map(Some),
            Phase::Open => events.poll_written(cx),
            Phase::Over => Poll::Ready(None),
        };
        written.map(|written| written.map(Ok))
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        self.streamed.end.abandon(match self.phase {
            Phase::Opening => reason::NOT_OPENED,
            Phase::Open | Phase::Over => reason::VANISHED,
        });
    }
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Written")
            .field("streamed", &self.streamed)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

/// More than this is left for the next turn.
const ENOUGH: usize = 16 * 1024;
