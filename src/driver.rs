//! The task that owns one stream: it reads for the handler, finishes what senders could not write, and
//! brings the socket to its one end. Time is the sweeper's.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;

use crate::close::Close;
use crate::inbox::Inbox;
use crate::node::Registration;
use crate::outbox::{Outbox, Phase};
use crate::registry::Member;
use crate::ws::frame::{Decoder, Frame, Heard, Violation};
use crate::ws::{Io, Opened};

/// Resolves when the stream is gone. Dropping it ends the socket as well. It bounds its turns by itself and
/// is to be polled [`unconstrained`](tokio::task::unconstrained): a handler in the same task may use up
/// tokio's budget every time, and would leave it none to read with.
#[derive(Debug)]
pub(crate) struct Driver {
    io: Io,
    socket: Ending,
    decoder: Decoder,
    /// The handler does not read.
    paused: bool,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// We have said our Close; the client's is awaited.
    Closing,
    /// Both have, or the client broke the rules: our side is to be shut …
    Shutting,
    /// … and the client's end of the stream is awaited. Closing with unread bytes would reset the
    /// connection and could destroy the Close frame on its way.
    Draining,
    Done,
}

/// So many bytes that complete nothing are a sign of life as well: fewer are a trickle by which a
/// client that answers no ping could stay for ever.
const SIGN_OF_LIFE: usize = 1024;

/// Whatever happens to the driver, this is how its socket ends.
#[derive(Debug)]
struct Ending {
    outbox: Arc<Outbox>,
    inbox: Arc<Inbox>,
    registration: Registration,
    /// Bytes since the client's last sign of life.
    trickled: usize,
}

impl Ending {
    /// Unreachable from now on, and the handler hears nothing more.
    fn unregister(&mut self) {
        if let Some(close) = self.outbox.close_reason() {
            self.registration.unregister(&close);
        }
        self.inbox.end();
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.outbox.abandon(Close::from_static(
            Close::ABNORMAL,
            "the socket's task was dropped",
        ));
        self.unregister();
        self.outbox.finish();
        if let Some(close) = self.outbox.close_reason() {
            let socket = self.outbox.id();
            tracing::debug!(%socket, code = close.code.0, reason = close.reason.as_str(), "socket closed");
        }
    }
}

impl Driver {
    pub(crate) fn new(
        opened: Opened,
        outbox: Arc<Outbox>,
        inbox: Arc<Inbox>,
        registration: Registration,
        max_message_size: usize,
    ) -> Self {
        let Opened { io, writer, early } = opened;
        outbox.open(writer);
        let socket = Ending {
            outbox,
            inbox,
            registration,
            trickled: 0,
        };
        let decoder = Decoder::new(max_message_size);
        let mut driver = Self {
            io,
            socket,
            decoder,
            paused: false,
            state: State::Open,
        };
        if !early.is_empty() {
            let Self {
                socket,
                decoder,
                state,
                ..
            } = &mut driver;
            hear(&mut BytesMut::from(early), socket, decoder, state);
        }
        driver
    }

    fn advance(&mut self, cx: &mut Context<'_>) {
        self.notice_the_end();
        let was_open = self.state == State::Open;
        self.read(cx);
        let written = self.write(cx);
        // Last, since from now on whoever ends it finds a waker.
        self.notice_the_end();
        if was_open && self.state == State::Closing {
            // A full inbox keeps it from reading no longer.
            cx.waker().wake_by_ref();
        }
        if self.state == State::Shutting && written {
            self.socket.outbox.shut();
            match self.io.poll_shutdown(cx) {
                Poll::Ready(Ok(())) => self.state = State::Draining,
                Poll::Ready(Err(_)) => self.state = State::Done,
                Poll::Pending => {}
            }
        }
        if self.state == State::Draining {
            self.drain(cx);
        }
    }

    /// Somebody may have ended the socket: the handler, a kick, a drain, a full outbox, the sweeper.
    fn notice_the_end(&mut self) {
        match self.socket.outbox.phase() {
            Phase::Open => {}
            Phase::Closing if self.state == State::Open => {
                self.socket.unregister();
                self.state = State::Closing;
            }
            Phase::Closing => {}
            Phase::Killed => {
                self.socket.unregister();
                self.state = State::Done;
            }
        }
    }

    fn read(&mut self, cx: &mut Context<'_>) {
        for _ in 0..READS {
            if !matches!(self.state, State::Open | State::Closing) {
                return;
            }
            let full = self.state == State::Open && self.socket.inbox.poll_room(cx).is_pending();
            if full != std::mem::replace(&mut self.paused, full) {
                self.socket.outbox.pause(full);
            }
            if full {
                return;
            }
            // The buffer is the thread's: it is lent for as long as the bytes are looked at.
            let Self {
                io,
                socket,
                decoder,
                state,
                ..
            } = self;
            let read = io.poll_read(cx, |bytes| hear(bytes, socket, decoder, state));
            match read {
                Poll::Pending => return,
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false) | Err(_)) => self.vanish(),
            }
        }
        cx.waker().wake_by_ref();
    }

    /// Whether everything is written.
    fn write(&mut self, cx: &mut Context<'_>) -> bool {
        if self.state == State::Done {
            return false;
        }
        let Self { io, socket, .. } = self;
        match socket.outbox.poll_write(cx, io) {
            Poll::Ready(Ok(())) => match self.io.poll_flush(cx) {
                Poll::Ready(Ok(())) => return true,
                Poll::Ready(Err(_)) => self.vanish(),
                Poll::Pending => {}
            },
            Poll::Ready(Err(_)) => self.vanish(),
            Poll::Pending => {}
        }
        false
    }

    /// Reads and forgets until the client's end.
    fn drain(&mut self, cx: &mut Context<'_>) {
        for _ in 0..READS {
            match self.io.poll_read(cx, |bytes| bytes.is_empty()) {
                Poll::Pending => return,
                Poll::Ready(Ok(false)) => {}
                Poll::Ready(Ok(true) | Err(_)) => {
                    self.state = State::Done;
                    return;
                }
            }
        }
        cx.waker().wake_by_ref();
    }

    fn vanish(&mut self) {
        let vanished = Close::from_static(Close::ABNORMAL, "the connection was lost");
        self.socket.outbox.abandon(vanished);
        self.socket.unregister();
        self.state = State::Done;
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let driver = self.get_mut();
        driver.advance(cx);
        if driver.state == State::Done {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// Takes what a client sent; whether the stream goes on.
fn hear(bytes: &mut [u8], socket: &mut Ending, decoder: &mut Decoder, state: &mut State) -> bool {
    if bytes.is_empty() {
        return false;
    }
    socket.trickled += bytes.len();
    let mut said_something = false;
    let mut rest = bytes;
    while !rest.is_empty() && matches!(state, State::Open | State::Closing) {
        match decoder.decode(rest) {
            Ok((used, heard)) => {
                rest = &mut rest[used..];
                said_something |= heard.is_some();
                match heard {
                    Some(Heard::Message(message)) => socket.inbox.push(message),
                    Some(Heard::Ping(payload)) => socket.outbox.pong(Frame::pong(&payload)),
                    Some(Heard::Close(close)) => end(socket, state, close),
                    Some(Heard::Pong) | None => {}
                }
            }
            Err(violation) => end(socket, state, Violation::close(violation)),
        }
    }
    if said_something || socket.trickled >= SIGN_OF_LIFE {
        socket.trickled = 0;
        socket.outbox.seen();
    }
    true
}

/// The client has ended it, or broken the rules.
fn end(socket: &mut Ending, state: &mut State, close: Close) {
    socket.outbox.answer(close);
    socket.unregister();
    *state = State::Shutting;
}

/// Most reads in one turn, so that other tasks may run: 1 MiB.
const READS: usize = 16;
