//! How what is queued for a reader is read: one after the other, in the reader's own time.

use std::task::Poll;

use tokio::time::Instant;

use super::core::{Core, Now, Writer};
use crate::local::heartbeat::Heartbeat;
use crate::ws::SharedWriter;
use crate::ws::frame::Frame;

impl<W: SharedWriter> Core<W> {
    /// A reader takes what is said. Until it comes for the first time it is busy elsewhere.
    pub(super) fn begin_reading(&mut self, has_client: bool, now: Instant) {
        self.writer = Writer::Reader { has_client };
        self.stalled = Some(now.into());
        self.heartbeat = Heartbeat::new(now);
    }

    /// Whether a reader hands on to a client. That one says nothing: its sign of life is that more is taken for it.
    pub(super) fn hands_on(&self) -> bool {
        matches!(self.writer, Writer::Reader { has_client: true })
    }

    /// The next frame. A reader that finds none waits, and a burst that wakes it is not held against it; one that takes
    /// a frame is busy with that, comes back by itself, and is late when the queue is full.
    pub(super) fn read(&mut self, now: impl Now) -> Poll<Option<Frame>> {
        self.due.task = false;
        if self.hands_on() && self.life.is_cut() {
            return Poll::Ready(None);
        }
        let next = self.queue.pop();
        let taken = next.as_ref().map(|_| now());
        self.stalled = taken.map(Into::into);
        if let Some(taken) = taken {
            self.heartbeat.seen(taken);
        }
        match next {
            None if self.life.is_open() => Poll::Pending,
            next => Poll::Ready(next),
        }
    }

    /// Whether something has ended it.
    pub(super) fn ended(&self) -> Poll<()> {
        match self.life.is_open() {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    }
}
