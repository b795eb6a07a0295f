//! The task that owns one stream: it reads for the handler, finishes what senders could not write, and
//! brings the socket to its one end. Time is the sweeper's.
//!
//! ```text
//!                     somebody else ends it
//!            Open ──────────────────────────▶ Closing
//!              │                                │
//!              │ the client says Close, or breaks the rules
//!              ▼                                ▼
//!              └──────────▶ Shutting ◀──────────┘
//!                              │ all is written: our side is shut
//!                              ▼
//!                           Draining
//!                              │ the client's side has ended
//!                              ▼
//!                            Done ◀── from anywhere: the stream fails, or the socket is cut
//! ```
//!
//! These are not the stages of the socket, which say what may still be sent to it: here is what is still expected of the
//! stream. The task learns of an ending from the socket, or makes it; from then on it only sees the bytes off. *Draining*
//! is there since a TCP stream that is closed with unread bytes is reset, which could destroy the Close frame on its way.

use std::mem::replace;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::time::Instant;

use super::outcome::LifeStage;
use super::{DriverEnd, Sender, span};
use crate::model::close::{Close, reason};
use crate::quota::{ClientBuckets, InboundLimit};
use crate::ws::frame::{Allowance, Decoder, Frame, Heard, Violation};
use crate::ws::{Agreed, Io, OpenedIo};

/// Resolves when the stream is gone. Dropping it ends the socket as well. It bounds its turns by itself and
/// is to be polled [`unconstrained`](tokio::task::unconstrained).
#[derive(Debug)]
pub(crate) struct Driver<R: Registered> {
    io: Io,
    socket: Driven<R>,
}

/// What makes a socket reachable, until it is dropped at the latest.
pub(crate) trait Registered {
    /// Largest message, in bytes.
    fn max_message_size(&self) -> usize;

    /// Unreachable from now on; this is how it ended. Does nothing the second time.
    fn unregister(&mut self, close: &Close);
}

/// What a driver has beside the stream; whatever happens to it, this is how its socket ends.
#[derive(Debug)]
struct Driven<R: Registered> {
    end: DriverEnd,
    registration: R,
    decoder: Decoder,
    agreed: Agreed,
    phase: Phase,
    /// The handler does not read.
    paused: bool,
    /// Bytes since the client's last sign of life.
    trickled: u32,
    /// What the client has sent, where that is limited.
    inbound: Option<Box<ClientBuckets>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// We have said our Close; the client's is awaited.
    Closing,
    /// Both have, or the client broke the rules: our side is to be shut.
    Shutting,
    /// The client's end of the stream is awaited.
    Draining,
    Done,
}

impl Phase {
    /// Whether what the client says still matters.
    fn listens(self) -> bool {
        matches!(self, Self::Open | Self::Closing)
    }
}

impl<R: Registered> Driver<R> {
    pub(super) fn sender(&self) -> Sender {
        self.socket.end.sender()
    }

    pub(crate) fn new(
        opened: OpenedIo,
        end: DriverEnd,
        registration: R,
        inbound: Option<InboundLimit>,
    ) -> Self {
        let OpenedIo { io, writer, early } = opened;
        let inbound = inbound.map(|limit| {
            let largest = registration.max_message_size();
            Box::new(ClientBuckets::new(limit, largest, Instant::now()))
        });
        end.opened(writer);
        let agreed = end.agreed();
        let mut socket = Driven {
            end,
            registration,
            decoder: Decoder::default(),
            agreed,
            phase: Phase::Open,
            paused: false,
            trickled: 0,
            inbound,
        };
        if !early.is_empty() {
            let mut allowance = socket.allowance();
            socket.hear(&mut BytesMut::from(early), &mut allowance);
        }
        Self { io, socket }
    }

    fn advance(&mut self, cx: &mut Context<'_>) {
        self.socket.notice_the_end();
        let was_open = self.socket.phase == Phase::Open;
        self.read(cx);
        let written = self.write(cx);
        // Last, since from now on whoever ends it finds a waker.
        self.socket.notice_the_end();
        if was_open && self.socket.phase == Phase::Closing {
            // A full inbox keeps it from reading no longer.
            cx.waker().wake_by_ref();
        }
        if self.socket.phase == Phase::Shutting && written {
            self.socket.end.shut();
            match self.io.poll_shutdown(cx) {
                Poll::Ready(Ok(())) => self.socket.phase = Phase::Draining,
                Poll::Ready(Err(_)) => self.socket.phase = Phase::Done,
                Poll::Pending => {}
            }
        }
        if self.socket.phase == Phase::Draining {
            self.drain(cx);
        }
    }

    fn read(&mut self, cx: &mut Context<'_>) {
        let Self { io, socket } = self;
        let mut allowance = socket.allowance();
        for _ in 0..READS {
            if !socket.phase.listens() || socket.is_paused(cx) {
                return;
            }
            let mut left = socket.decoder.take_left();
            if !left.is_empty() {
                socket.hear_on(&mut left, &mut allowance);
                match allowance.left() {
                    0 => break,
                    _ => continue,
                }
            }
            // The buffer is the thread's: it is lent for as long as the bytes are looked at.
            match io.poll_read(cx, |bytes| socket.hear(bytes, &mut allowance)) {
                Poll::Pending => return socket.caught_up(),
                Poll::Ready(Ok(true)) if allowance.left() == 0 => break,
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false) | Err(_)) => socket.vanish(),
            }
        }
        cx.waker().wake_by_ref();
    }

    /// Whether everything is written.
    fn write(&mut self, cx: &mut Context<'_>) -> bool {
        let Self { io, socket } = self;
        if socket.phase == Phase::Done {
            return false;
        }
        let written = match socket.end.poll_write(cx, io) {
            Poll::Ready(Ok(())) => io.poll_flush(cx),
            other => other,
        };
        if let Poll::Ready(Err(_)) = written {
            socket.vanish();
        }
        matches!(written, Poll::Ready(Ok(())))
    }

    /// Reads and forgets until the client's end.
    fn drain(&mut self, cx: &mut Context<'_>) {
        for _ in 0..READS {
            match self.io.poll_read(cx, |bytes| bytes.is_empty()) {
                Poll::Pending => return,
                Poll::Ready(Ok(false)) => {}
                Poll::Ready(Ok(true) | Err(_)) => {
                    self.socket.phase = Phase::Done;
                    return;
                }
            }
        }
        cx.waker().wake_by_ref();
    }
}

impl<R: Registered + Unpin> Future for Driver<R> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let driver = self.get_mut();
        driver.advance(cx);
        match driver.socket.phase {
            Phase::Done => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }
}

impl<R: Registered> Driven<R> {
    /// Of one turn.
    fn allowance(&self) -> Allowance {
        Allowance::of(self.agreed, self.registration.max_message_size())
    }

    /// Somebody may have ended the socket: the handler, a kick, a drain, a full outbox, the sweeper.
    fn notice_the_end(&mut self) {
        match self.end.stage() {
            LifeStage::Open => {}
            LifeStage::Ending if self.phase == Phase::Open => {
                self.unregister();
                self.phase = Phase::Closing;
            }
            LifeStage::Ending => {}
            LifeStage::Cut => {
                self.unregister();
                self.phase = Phase::Done;
            }
        }
    }

    /// Whether nothing is to be read, since the handler does not read either. Once it has ended nobody waits for it.
    fn is_paused(&mut self, cx: &mut Context<'_>) -> bool {
        let full = self.phase == Phase::Open && self.end.poll_inbox(cx).is_pending();
        if full != replace(&mut self.paused, full) {
            self.end.pause(full);
            if let Some(inbound) = self.inbound.as_mut().filter(|_| full) {
                inbound.stopped(Instant::now());
            }
        }
        full
    }

    /// Nothing more has come for now.
    fn caught_up(&mut self) {
        if let Some(inbound) = &mut self.inbound {
            inbound.caught_up();
        }
    }

    /// Takes what a client sent; whether the stream goes on.
    fn hear(&mut self, bytes: &mut [u8], allowance: &mut Allowance) -> bool {
        if bytes.is_empty() {
            return false;
        }
        let read = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.trickled = self.trickled.saturating_add(read);
        let now = self.now();
        self.admit(now, |inbound, now| inbound.take_bytes(bytes.len(), now));
        self.hear_on(bytes, allowance);
        true
    }

    /// Takes what came, as far as this turn goes.
    fn hear_on(&mut self, bytes: &mut [u8], allowance: &mut Allowance) {
        let now = self.now();
        let mut said_something = false;
        let mut rest = bytes;
        while !rest.is_empty() && self.phase.listens() {
            let before = allowance.left();
            let mut has_room = true;
            match self.decoder.decode(rest, allowance) {
                Ok((used, heard)) => {
                    rest = &mut rest[used..];
                    said_something |= heard.is_some();
                    let inflated = before - allowance.left();
                    self.admit_inflated(now, inflated.saturating_sub(used));
                    match heard {
                        _ if !self.phase.listens() => {}
                        Some(Heard::Close(close)) => self.answer(close),
                        Some(_) if !self.admit(now, ClientBuckets::take_message) => {}
                        Some(Heard::Message(message)) => has_room = self.end.heard(message),
                        Some(Heard::Ping(payload)) => self.end.pong(Frame::pong(&payload)),
                        Some(Heard::Pong) | None => {}
                    }
                }
                Err(violation) => self.answer(Violation::close(violation)),
            }
            // A few bytes may be many large messages: no more of them is inflated than the handler reads.
            let waits = allowance.inflates() && self.phase == Phase::Open && !has_room;
            if self.phase.listens() && (allowance.left() == 0 || waits) {
                self.decoder.leave(rest);
                break;
            }
        }
        if said_something || self.trickled >= SIGN_OF_LIFE {
            self.trickled = 0;
            self.end.seen();
        }
    }

    /// The time; the clock is not read where nothing is limited.
    fn now(&self) -> Option<Instant> {
        self.inbound.as_ref().map(|_| Instant::now())
    }

    /// What is inflated counts as if it had come so.
    fn admit_inflated(&mut self, now: Option<Instant>, bytes: usize) {
        if bytes > 0 {
            self.admit(now, |inbound, now| inbound.take_bytes(bytes, now));
        }
    }

    /// Whether the client may have sent it; one that may not is closed.
    fn admit(
        &mut self,
        now: Option<Instant>,
        take: impl FnOnce(&mut ClientBuckets, Instant) -> bool,
    ) -> bool {
        let taken = match (&mut self.inbound, now) {
            (Some(inbound), Some(now)) if self.phase == Phase::Open => take(inbound, now),
            _ => true,
        };
        if !taken {
            let (socket, user) = (self.end.id(), self.end.user().as_str());
            tracing::debug!(%socket, user, "closed with 1008: the client sent more than `inbound_limit` allows; raise it if \
                an honest one does so too");
            self.answer(reason::TOO_MUCH);
        }
        taken
    }

    /// The client has ended it, or broken the rules.
    fn answer(&mut self, close: Close) {
        self.end.answer(close);
        self.unregister();
        self.phase = Phase::Shutting;
    }

    /// The stream failed, or ended without a Close frame.
    fn vanish(&mut self) {
        self.end.abandon(reason::VANISHED);
        self.unregister();
        self.phase = Phase::Done;
    }

    /// Unreachable from now on, and the handler hears nothing more.
    fn unregister(&mut self) {
        if let Some(close) = self.end.close_reason() {
            self.registration.unregister(&close);
        }
        self.end.end_inbox();
    }
}

impl<R: Registered> Drop for Driven<R> {
    fn drop(&mut self) {
        self.end.abandon(reason::DROPPED);
        self.unregister();
        if let Some(close) = self.end.close_reason() {
            span::record_end(&close);
            let socket = self.end.id();
            tracing::debug!(%socket, code = close.code.0, reason = close.reason.as_str(), "socket closed");
        }
    }
}

/// Most reads in one turn, so that other tasks may run: 1 MiB.
const READS: usize = 16;
/// So many bytes that complete nothing are a sign of life as well: fewer are a trickle by which a
/// client that answers no ping could stay for ever.
const SIGN_OF_LIFE: u32 = 1024;
