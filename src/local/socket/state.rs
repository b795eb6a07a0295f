//! What an outbox keeps under its lock, and the steps that are taken there.

use std::io::{self, ErrorKind, IoSlice};
use std::mem::take;
use std::task::{Poll, Waker};
use std::time::Duration;

#[cfg(target_os = "linux")]
use socket2::SockRef;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::time::Instant;

use super::Swept;
use super::queue::Queue;
use crate::close::{Close, reason};
use crate::config::CLOSING;
use crate::expiry::{Clock, Expiry};
use crate::heartbeat::{Beat, Heartbeat, HeartbeatTimes, excused};
use crate::limits::{OutboxLimits, SlowConsumer};
use crate::waker::wake;
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
    driver: Option<Waker>,
    /// The handler, waiting for room or for the end.
    handler: Option<Waker>,
    /// Whom to wake once the lock is given back.
    wakes_driver: bool,
    wakes_handler: bool,
}

/// Those whom a change concerns. Woken without the lock, since a waker is foreign code, which may come back here.
#[must_use = "somebody waits for it"]
pub(super) struct Wakes(Option<Waker>, Option<Waker>);

impl Wakes {
    pub(super) fn wake(self) {
        wake(self.0);
        wake(self.1);
    }
}

/// How the writing of the socket's task goes on.
pub(super) enum Writing {
    Over(io::Result<()>),
    /// The kernel takes no more of a shared stream for now.
    Blocked,
    /// Nobody else may write: this is to be written, and put back as far as it was not.
    ByTask(Queue),
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
            wakes_driver: false,
            wakes_handler: false,
        }
    }

    /// Where the socket's task waits.
    pub(super) fn driver(&mut self) -> &mut Option<Waker> {
        &mut self.driver
    }

    /// Where the handler does.
    pub(super) fn handler(&mut self) -> &mut Option<Waker> {
        &mut self.handler
    }

    pub(super) fn wake_driver(&mut self) {
        self.wakes_driver = true;
    }

    pub(super) fn wake_handler(&mut self) {
        self.wakes_handler = true;
    }

    /// To be taken before the lock is given back.
    pub(super) fn take_wakes(&mut self) -> Wakes {
        let driver = take(&mut self.wakes_driver).then(|| self.driver.take());
        let handler = take(&mut self.wakes_handler).then(|| self.handler.take());
        Wakes(driver.flatten(), handler.flatten())
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
            self.wake_handler();
        }
        match written {
            Ok(()) => self.stalled = None,
            Err(_) => {
                self.note_progress(progress);
                self.wake_driver();
            }
        }
    }

    /// The socket's task writes. Adds to whether there was progress.
    pub(super) fn begin_writing(&mut self, progress: &mut bool) -> Writing {
        (self.collecting, self.owed) = (false, false);
        let Some(stream) = &self.stream else {
            return Writing::ByTask(take(&mut self.queue));
        };
        let before = self.queue.left();
        let written = self.queue.write(|slices| try_write(stream, slices));
        *progress |= self.queue.left() < before;
        if *progress {
            self.wake_handler();
        }
        match written {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.note_progress(*progress);
                self.owed = *progress;
                Writing::Blocked
            }
            over => {
                self.stalled = self.stalled.filter(|_| over.is_err());
                Writing::Over(over)
            }
        }
    }

    /// The task has written by itself what it had taken out; others may have queued more meanwhile.
    pub(super) fn end_writing(
        &mut self,
        rest: Queue,
        written: io::Result<()>,
        progress: bool,
    ) -> Poll<io::Result<()>> {
        self.queue.put_first(rest);
        if progress {
            self.wake_handler();
        }
        match written {
            Ok(()) => {
                self.stalled = None;
                match self.queue.is_empty() {
                    true => Poll::Ready(Ok(())),
                    false => Poll::Pending,
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.note_progress(progress);
                self.owed |= progress;
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Wakes the task to write what is queued.
    pub(super) fn leave_to_task(&mut self) {
        self.owed = true;
        self.wake_driver();
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
            if self.collecting || self.owed && self.queue.admits_burst(frame, limits) {
                return Ok(0);
            }
        } else if (self.collecting || self.owed) && !self.queue.admits(frame, limits) {
            self.write_queue();
        }
        let mut dropped = 0;
        while !self.queue.admits(frame, limits) {
            if limits.policy == SlowConsumer::Close || !self.queue.drop_oldest() {
                let lost = self.queue.discard() + 1;
                self.end(reason::SLOW);
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

    /// Does what time demands.
    pub(super) fn sweep(
        &mut self,
        clock: Clock,
        slept: Duration,
        times: &HeartbeatTimes,
        number: u64,
    ) -> Swept {
        let now = clock.now;
        if !slept.is_zero() {
            self.excuse(slept, now);
        }
        if let Some(end) = &self.end {
            if end.deadline <= now {
                self.killed = true;
                self.wake_driver();
            }
            return Swept::Fine;
        }
        if self.expiry.is_some_and(|expiry| expiry.is_over(clock)) {
            self.end(reason::EXPIRED);
            return Swept::Fine;
        }
        if self
            .stalled
            .is_some_and(|since| since + times.write_timeout <= now)
        {
            let lost = self.queue.discard();
            self.kill(reason::STALLED);
            return Swept::Stalled(lost);
        }
        match self.heartbeat.poll(now, times, number) {
            Beat::Wait => {}
            Beat::Ping => {
                self.queue.push(Frame::ping());
                self.write_queue();
            }
            Beat::Dead if self.paused => {
                self.trust_acknowledgements(times.patience());
                self.heartbeat.seen(now);
            }
            Beat::Dead => self.kill(reason::SILENT),
        }
        Swept::Fine
    }

    pub(super) fn wake_all(&mut self) {
        self.wake_driver();
        self.wake_handler();
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
