//! What becomes of one socket, as rules. The time is an argument and the stream a parameter, so that every rule is
//! tested without a clock and without a kernel; the ends lock it, hand both in, and wake whom a change concerns.
//!
//! Four questions have an answer each: how far it has come ([`Life`]), who writes ([`Writer`]), whose turn to write is
//! still to come ([`DueWrites`]), and since when the kernel has taken nothing (`stalled`). Of a frame that is said this becomes:
//!
//! ```text
//!   send ──▶ nothing queued, stream shared? ──yes──▶ written at once ──all──▶ done
//!                        │ no                               │
//!                        ▼                                  │ a part, or nothing
//!            queued ◀── collect, push                       │
//!              │                                            ▼
//!              ├─ by collect: due.flush ── flush ──┐     stalled ◀───────────┐
//!              └─ by others:  due.task ─── task ───┴──────▶ │ writable again │ a part, or nothing
//!                                                           ▼                │
//!                                                      written on ───────────┴──all──▶ done
//! ```
//!
//! A client is slow only when its queue is full *and* nobody's turn to write is still to come: else the one who finds it
//! full writes in their place, where it may, or waits for them. So what a burst queues is never held against a client
//! that was not offered anything yet.

use std::mem::{replace, take};
use std::task::Poll;

use tokio::net::tcp::OwnedWriteHalf;
use tokio::time::Instant;

use super::life::Life;
use super::outcome::{Collected, Flushed, LifeStage, Pushed};
use super::queue::FrameQueue;
use super::wakers::{Noted, Wakers, Wakes};
use crate::local::expiry::Expiry;
use crate::local::heartbeat::Heartbeat;
use crate::local::moment::Moment;
use crate::model::close::{Close, reason};
use crate::model::limits::{OutboxLimits, SlowConsumer};
use crate::model::manner::Manner;
use crate::ws::frame::Frame;
use crate::ws::{Agreed, SharedWriter};

pub(super) struct Core<W = OwnedWriteHalf> {
    pub(super) wakers: Wakers,
    pub(super) noted: Noted,
    pub(super) queue: FrameQueue,
    pub(super) writer: Writer<W>,
    pub(super) life: Life,
    pub(super) due: DueWrites,
    /// How its client takes messages. Here, where it finds room: beside the lock it would be 16 bytes of each socket.
    pub(super) agreed: Agreed,
    /// Since when the kernel has accepted nothing.
    pub(super) stalled: Option<Moment>,
    pub(super) heartbeat: Heartbeat,
    pub(super) expiry: Option<Expiry>,
}

/// Who writes to the stream.
pub(super) enum Writer<W> {
    /// The socket's task alone: over TLS and HTTP/2, and before the handshake is over, while there is none yet.
    Task,
    /// Whoever has something to say and finds nothing queued; the task finishes what the kernel does not take.
    Shared(W),
    /// Nobody: a reader takes what is queued, one after the other. It is a subscription's, or it hands on to a client,
    /// for whom time is kept.
    Reader { has_client: bool },
    /// Nobody: our side of the stream is shut, or it is gone.
    Shut,
}

/// Whose turns to write are still to come. They are no states: the bus may be collecting for a socket whose task
/// was woken already.
#[derive(Default)]
pub(super) struct DueWrites {
    /// Of the bus, at the end of its present wake.
    pub(super) flush: bool,
    /// Of the task, which was woken for it, or was stopped in the middle of it.
    pub(super) task: bool,
}

/// The clock, for rules that seldom need it: most sends leave at once, and are not to pay for the time.
pub(super) trait Now: Fn() -> Instant + Copy {}

impl<F: Fn() -> Instant + Copy> Now for F {}

impl<W: SharedWriter> Core<W> {
    pub(super) fn new(expiry: Option<Expiry>, agreed: Agreed, now: Instant) -> Self {
        Self {
            wakers: Wakers::default(),
            noted: Noted::default(),
            queue: FrameQueue::default(),
            writer: Writer::Task,
            life: Life::Open,
            due: DueWrites::default(),
            agreed,
            stalled: None,
            heartbeat: Heartbeat::new(now),
            expiry,
        }
    }

    /// Whom the change concerns, to be woken when the lock is given back.
    pub(super) fn take_wakes(&mut self) -> Wakes {
        self.noted.take(&mut self.wakers)
    }

    // Senders --------------------------------------------------------------------------------------

    /// Writes a frame, or queues it when others are before it.
    pub(super) fn send(
        &mut self,
        frame: &Frame,
        manner: &Manner,
        limits: &OutboxLimits,
        now: impl Now,
    ) -> Pushed {
        if !self.life.is_open() {
            return Pushed::Closed;
        }
        let worded = self.worded(frame);
        let frame = worded.as_ref().unwrap_or(frame);
        if let Writer::Shared(stream) = &self.writer
            && self.queue.is_empty()
        {
            let written = stream.try_write(frame.as_bytes()).unwrap_or(0);
            if written < frame.len() {
                self.queue.push_begun(frame.clone(), written);
                self.stalled = Some(now().into());
                self.noted.wake_driver();
            }
            return Pushed::Taken;
        }
        let stalled = self.stalled.is_some();
        let pushed = self.enqueue(frame, manner, limits, now);
        // While the kernel takes nothing, only its own wake-up helps.
        if pushed.is_taken() && !stalled {
            self.leave_to_task();
        }
        pushed
    }

    /// Queues a frame that will leave with others by [`flush`](Self::flush).
    pub(super) fn collect(
        &mut self,
        frame: &Frame,
        manner: &Manner,
        limits: &OutboxLimits,
        now: impl Now,
    ) -> Collected {
        let worded = self.worded(frame);
        let frame = worded.as_ref().unwrap_or(frame);
        let pushed = match self.life.is_open() {
            true => self.enqueue(frame, manner, limits, now),
            false => Pushed::Closed,
        };
        Collected {
            pushed,
            wants_flush: pushed.is_taken() && !replace(&mut self.due.flush, true),
        }
    }

    /// Ends the socket like [`close`](Self::close), but says so with what else is collected. Whether that
    /// wants a flush.
    pub(super) fn collect_close(&mut self, close: &Close, now: impl Now) -> bool {
        if !self.life.is_open() {
            return false;
        }
        self.queue_close(close.clone(), now());
        !replace(&mut self.due.flush, true)
    }

    /// Writes what was collected, in one write where the kernel takes it.
    pub(super) fn flush(&mut self, now: impl Now) -> Flushed {
        if self.due.flush {
            self.write_queue(now);
        }
        if !self.life.is_open() {
            self.noted.wake_all();
        }
        match self.writer {
            Writer::Shared(_) => Flushed::Here,
            Writer::Task | Writer::Reader { .. } | Writer::Shut => Flushed::ByTask,
        }
    }

    /// Ends the socket after what is queued. The first close wins; returns whether this was it.
    pub(super) fn close(&mut self, close: Close, now: impl Now) -> bool {
        let is_first = self.life.is_open();
        if is_first {
            self.queue_close(close, now());
            self.write_queue(now);
            self.noted.wake_all();
        }
        is_first
    }

    /// Queues a frame, if there is a way to make room for it.
    pub(super) fn enqueue(
        &mut self,
        frame: &Frame,
        manner: &Manner,
        limits: &OutboxLimits,
        now: impl Now,
    ) -> Pushed {
        let key = match manner {
            Manner::InTurn => None,
            Manner::Volatile if self.is_behind() || !self.has_room_for(frame, limits, now) => {
                return Pushed::LeftOut;
            }
            Manner::Volatile => None,
            Manner::Latest(key) if self.queue.replace(frame, key, limits) => {
                return Pushed::Superseded;
            }
            Manner::Latest(key) => Some(key.clone()),
        };
        let mut dropped = 0;
        while !self.has_room_for(frame, limits, now) {
            if limits.policy == SlowConsumer::Close || !self.queue.drop_oldest() {
                let lost = dropped + self.queue.discard() + 1;
                self.close(reason::SLOW, now);
                return Pushed::Overflowed(lost);
            }
            dropped += 1;
        }
        self.queue.push_keyed(frame.clone(), key);
        Pushed::instead_of(dropped)
    }

    /// Whether something waits that was offered to the client already.
    fn is_behind(&self) -> bool {
        !self.queue.is_empty() && !self.due.flush && !self.due.task
    }

    /// Whether a frame may be queued. Where it may not, whoever asks has written first in place of those whose
    /// turn is due, or they are too many to wait for.
    fn has_room_for(&mut self, frame: &Frame, limits: &OutboxLimits, now: impl Now) -> bool {
        if self.queue.admits(frame, limits) {
            return true;
        }
        match self.writer {
            // What is collected for one is bounded by the bus.
            Writer::Task | Writer::Reader { .. } if self.due.flush => true,
            Writer::Task | Writer::Reader { .. } => {
                self.due.task && self.queue.admits_burst(frame, limits)
            }
            Writer::Shared(_) if self.due.flush || self.due.task => {
                self.write_queue(now);
                self.queue.admits(frame, limits)
            }
            Writer::Shared(_) | Writer::Shut => false,
        }
    }

    /// The first close wins; it is said after what is queued.
    fn queue_close(&mut self, close: Close, now: Instant) {
        let close = close.into_written();
        self.queue.push(Frame::close(&close));
        self.life.end(close, now);
    }

    // The handler ----------------------------------------------------------------------------------

    /// Whether the handler may say more: it is pressed back instead of overflowing.
    pub(super) fn room(&self, limits: &OutboxLimits) -> Poll<Result<(), Close>> {
        match self.life.close() {
            Some(close) => Poll::Ready(Err(close.clone())),
            None if self.queue.has_room(limits) => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }

    /// Takes the handler's frame into the [`room`](Self::room) that it found; the task, which runs next, writes all that
    /// the handler said in one go.
    pub(super) fn push(&mut self, frame: Frame) -> Result<(), Close> {
        if let Some(close) = self.life.close() {
            return Err(close.clone());
        }
        let frame = self.worded(&frame).unwrap_or(frame);
        self.queue.push(frame);
        self.leave_to_task();
        Ok(())
    }

    /// Whether the stream is gone. A reader that hands on to a client may not come any more: it is given up before.
    pub(super) fn finished(&self) -> Poll<()> {
        match self.life {
            Life::Finished(_) => Poll::Ready(()),
            Life::Cut(_) if self.hands_on() => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }

    // The socket's task, but for its writing ---------------------------------------------------------

    /// The handshake is over; with a stream of its own, senders may write.
    pub(super) fn open(&mut self, stream: Option<W>, now: Instant) {
        self.writer = stream.map_or(Writer::Task, Writer::Shared);
        self.heartbeat = Heartbeat::new(now);
    }

    /// The client gave a sign of life.
    pub(super) fn seen(&mut self, now: Instant) {
        self.heartbeat.seen(now);
    }

    /// While the handler does not read, silence says nothing about the client.
    pub(super) fn pause(&mut self, paused: bool, now: Instant) {
        self.heartbeat.pause(paused, now);
    }

    /// Answers a ping.
    pub(super) fn pong(&mut self, frame: Frame) {
        if self.life.is_open() {
            self.queue.push_pong(frame);
        }
    }

    /// The client ended it, or broke the rules: it is told, and nothing else.
    pub(super) fn answer(&mut self, close: Close, now: Instant) {
        if self.life.is_open() {
            self.queue.discard();
            self.close(close, || now);
        }
    }

    /// Where the task stands with its socket.
    pub(super) fn stage(&self) -> LifeStage {
        match self.life {
            Life::Open | Life::Resuming(_) => LifeStage::Open,
            Life::Ending(_) => LifeStage::Ending,
            Life::Cut(_) | Life::Finished(_) => LifeStage::Cut,
        }
    }

    /// The client is gone: nobody reads what is queued.
    pub(super) fn abandon(&mut self, close: Close) {
        self.queue.discard();
        self.cut(close);
    }

    /// Drops the stream, whatever is still to be said. The reason counts where nothing had ended it.
    pub(super) fn cut(&mut self, close: Close) {
        if self.life.cut(close) {
            self.noted.wake_all();
        }
    }

    /// Our side says no more. What the stream was is to be dropped without the lock.
    #[must_use = "drop it without the lock"]
    pub(super) fn shut(&mut self) -> Writer<W> {
        replace(&mut self.writer, Writer::Shut)
    }

    /// The stream is gone. What is left of it is to be dropped without the lock.
    #[must_use = "drop it without the lock"]
    pub(super) fn finish(&mut self) -> (Writer<W>, FrameQueue) {
        self.life.finish(reason::DROPPED);
        self.noted.wake_all();
        (self.shut(), take(&mut self.queue))
    }
}
