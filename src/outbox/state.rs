//! What an outbox keeps under its lock, and the steps that are taken there.

use std::io::{self, IoSlice};
use std::task::Waker;
use std::time::Duration;

#[cfg(target_os = "linux")]
use socket2::SockRef;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::time::Instant;

use super::queue::{OutboxLimits, Queue, SlowConsumer};
use crate::close::Close;
use crate::config::CLOSING;
use crate::expiry::Expiry;
use crate::heartbeat::{Heartbeat, excused};
use crate::ws::frame::Frame;

/// How a socket ends, and when that must be over.
pub(super) struct End {
    pub(super) close: Close,
    pub(super) deadline: Instant,
}

pub(super) struct State {
    pub(super) queue: Queue,
    /// Where senders write by themselves. Absent during the handshake, over TLS and HTTP/2, and after
    /// the end: then the socket's task does it.
    pub(super) stream: Option<OwnedWriteHalf>,
    /// Frames of one wake of the bus are collected, to leave in one write.
    pub(super) collecting: bool,
    /// The task has yet to write: it was woken for that, or was stopped in the middle of it.
    pub(super) owed: bool,
    /// Set once, by the first thing that ends the socket. Boxed, since nearly all sockets have none.
    pub(super) end: Option<Box<End>>,
    pub(super) expiry: Option<Expiry>,
    /// Since when the kernel has accepted nothing.
    pub(super) stalled: Option<Instant>,
    pub(super) heartbeat: Heartbeat,
    /// The handler does not read, so nothing the client sends is seen.
    pub(super) paused: bool,
    pub(super) killed: bool,
    /// The stream is gone.
    pub(super) finished: bool,
    pub(super) driver: Option<Waker>,
    /// The handler, waiting for room or for the end.
    pub(super) handler: Option<Waker>,
}

impl State {
    pub(super) fn new(expiry: Option<Expiry>) -> Self {
        Self {
            queue: Queue::default(),
            stream: None,
            collecting: false,
            owed: false,
            end: None,
            expiry,
            stalled: None,
            heartbeat: Heartbeat::new(Instant::now()),
            paused: false,
            killed: false,
            finished: false,
            driver: None,
            handler: None,
        }
    }

    /// Writes what is queued, as far as the kernel takes it. An error is left for the socket's
    /// task to find.
    pub(super) fn write_queue(&mut self) {
        self.collecting = false;
        let Some(stream) = &self.stream else {
            // While nothing is taken, only the stream's own wake-up helps.
            if self.stalled.is_none() {
                self.leave_to_task();
            }
            return;
        };
        self.owed = false;
        let before = self.queue.left();
        let written = self.queue.write(|slices| try_write(stream, slices));
        let progress = self.queue.left() < before;
        if progress {
            wake(self.handler.take());
        }
        match written {
            Ok(()) => self.stalled = None,
            Err(_) => {
                self.note_progress(progress);
                wake(self.driver.take());
            }
        }
    }

    /// Wakes the task to write what is queued.
    pub(super) fn leave_to_task(&mut self) {
        self.owed = true;
        wake(self.driver.take());
    }

    pub(super) fn note_progress(&mut self, progress: bool) {
        if progress || self.stalled.is_none() {
            self.stalled = Some(Instant::now());
        }
    }

    /// Makes room, if there is a way. Returns how many messages that cost, or that the client is too
    /// slow.
    pub(super) fn make_room(
        &mut self,
        frame: &Frame,
        limits: &OutboxLimits,
    ) -> Result<usize, usize> {
        if self.stream.is_none() {
            // The client is not slow while the task that alone can write has had no turn. What is collected for
            // one is bounded by the bus.
            if self.collecting || self.owed && limits.admits_burst(&self.queue, frame) {
                return Ok(0);
            }
        } else if (self.collecting || self.owed) && !limits.admits(&self.queue, frame) {
            self.write_queue();
        }
        let mut dropped = 0;
        while !limits.admits(&self.queue, frame) {
            if limits.policy == SlowConsumer::Close || !self.queue.drop_oldest() {
                let lost = self.queue.discard() + 1;
                self.end(Close::from_static(Close::TRY_AGAIN_LATER, "slow consumer"));
                return Err(lost);
            }
            dropped += 1;
        }
        Ok(dropped)
    }

    /// No pong can be seen, but the kernel sees that nothing is acknowledged: it gives up after so long,
    /// and not after 15 minutes, as Linux does by itself.
    pub(super) fn trust_acknowledgements(&self, patience: Duration) {
        #[cfg(target_os = "linux")]
        if let Some(stream) = &self.stream {
            // A failure makes a rare end late.
            let _ = SockRef::from(stream.as_ref()).set_tcp_user_timeout(Some(patience));
        }
        #[cfg(not(target_os = "linux"))]
        let _ = patience;
    }

    /// The first close wins; it is said after what is queued.
    pub(super) fn end(&mut self, close: Close) {
        self.queue_close(close);
        self.write_queue();
        self.wake_all();
    }

    pub(super) fn queue_close(&mut self, close: Close) {
        let close = close.into_written();
        self.queue.push(Frame::close(&close));
        self.note_end(close);
    }

    pub(super) fn note_end(&mut self, close: Close) {
        self.end = Some(Box::new(End {
            close,
            deadline: Instant::now() + CLOSING,
        }));
    }

    /// The process slept: nobody could have done anything in that time.
    pub(super) fn excuse(&mut self, slept: Duration, now: Instant) {
        self.heartbeat.excuse(slept, now);
        self.stalled = self.stalled.map(|since| excused(since, slept, now));
        if let Some(end) = &mut self.end {
            end.deadline = excused(end.deadline, slept, now + CLOSING);
        }
    }

    pub(super) fn wake_all(&mut self) {
        wake(self.driver.take());
        wake(self.handler.take());
    }

    /// Ends it at once, without a word.
    pub(super) fn kill(&mut self, close: Close) {
        self.note_end(close);
        self.killed = true;
        self.wake_all();
    }
}

/// `send` is cheaper than `writev` of one.
pub(super) fn try_write(stream: &OwnedWriteHalf, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    match slices {
        [one] => stream.try_write(one),
        many => stream.try_write_vectored(many),
    }
}

pub(super) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
