//! The task that owns one stream: it moves messages between the client, the inbox and the outbox,
//! keeps the heartbeat, and brings the socket to its one end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::close::Close;
use crate::config::{CLOSING, Config};
use crate::heartbeat::{Beat, Heartbeat};
use crate::inbox::Inbox;
use crate::node::{Node, Registration};
use crate::outbox::{Next, Outbox};
use crate::registry::Member;
use crate::ws::{Frame, WsStream};

/// Resolves when the stream is gone. Dropping it ends the socket as well.
#[pin_project(project = Parts)]
#[derive(Debug)]
pub(crate) struct Driver {
    node: Arc<Node>,
    stream: WsStream,
    socket: Ending,
    state: State,
    heartbeat: Heartbeat,
    /// Since when the peer has accepted nothing, and what it had accepted until then.
    stalled: Option<(Instant, u64)>,
    write_timeout: Duration,
    expires_at: Option<Instant>,
    #[pin]
    timer: Sleep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The socket has ended; what is queued and the Close frame are still to be written.
    Flushing {
        deadline: Instant,
    },
    /// The Close frame is queued; the peer's is awaited.
    Closing {
        deadline: Instant,
    },
    /// Nothing more to say; the peer's end of the stream is awaited.
    Draining {
        deadline: Instant,
    },
    Done,
}

/// Whatever happens to the driver, this is how its socket ends.
#[derive(Debug)]
struct Ending {
    outbox: Arc<Outbox>,
    inbox: Arc<Inbox>,
    registration: Option<Registration>,
}

impl Ending {
    /// Unreachable from now on, and the handler hears nothing more.
    fn unregister(&mut self) {
        self.registration = None;
        self.inbox.end();
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.outbox.close(Close::from_static(
            Close::ABNORMAL,
            "the socket's task was dropped",
        ));
        self.unregister();
        self.outbox.finish();
        if let Some(close) = self.outbox.close_reason() {
            let socket = self.outbox.id();
            tracing::debug!(%socket, code = close.code, reason = %close.reason, "socket closed");
        }
    }
}

impl Driver {
    pub(crate) fn new(
        node: Arc<Node>,
        stream: WsStream,
        outbox: Arc<Outbox>,
        inbox: Arc<Inbox>,
        registration: Option<Registration>,
        expires_at: Option<Instant>,
    ) -> Self {
        let now = Instant::now();
        let Config {
            ping_interval,
            pong_timeout,
            write_timeout,
            ..
        } = *node.config();
        Self {
            node,
            stream,
            socket: Ending {
                outbox,
                inbox,
                registration,
            },
            state: State::Open,
            heartbeat: Heartbeat::new(ping_interval, pong_timeout, fastrand::f64(), now),
            stalled: None,
            write_timeout,
            expires_at,
            timer: sleep_until(now),
        }
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let now = Instant::now();
            let mut driver = self.as_mut().project();
            driver.notice_the_end(now);
            driver.read(cx, now);
            driver.notice_the_end(now);
            let flushed = driver.write(cx, now);
            driver.drain(cx, flushed);
            let wake = driver.keep_time(now);
            if *driver.state == State::Done {
                return Poll::Ready(());
            }
            // A timer that is set too early costs one wake-up; setting it at every message, more.
            if wake < driver.timer.deadline() || driver.timer.is_elapsed() {
                driver.timer.as_mut().reset(wake);
            }
            if driver.timer.poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl Parts<'_> {
    /// Somebody may have ended the socket: the handler, a kick, a drain, a full outbox.
    fn notice_the_end(&mut self, now: Instant) {
        if *self.state == State::Open && self.socket.outbox.close_reason().is_some() {
            self.socket.unregister();
            *self.state = State::Flushing {
                deadline: now + CLOSING,
            };
        }
    }

    fn read(&mut self, cx: &mut Context<'_>, now: Instant) {
        while matches!(
            self.state,
            State::Open | State::Flushing { .. } | State::Closing { .. }
        ) {
            if *self.state == State::Open && self.socket.inbox.poll_room(cx).is_pending() {
                // We are not listening, so silence says nothing about the client.
                self.heartbeat.seen(now);
                return;
            }
            let Poll::Ready(frame) = self.stream.poll_next(cx) else {
                return;
            };
            match frame {
                Some(Ok(frame)) => {
                    self.heartbeat.seen(now);
                    match frame {
                        Frame::Message(message) => self.socket.inbox.push(message),
                        Frame::Alive => {}
                        Frame::Close(close) => self.end(
                            close,
                            State::Closing {
                                deadline: now + CLOSING,
                            },
                        ),
                    }
                }
                Some(Err(close)) => self.fail(close, now),
                None => self.end(
                    vanished(),
                    State::Draining {
                        deadline: now + CLOSING,
                    },
                ),
            }
        }
    }

    /// Whether everything is with the peer's side.
    fn write(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        while matches!(self.state, State::Open | State::Flushing { .. }) {
            match self.stream.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(close)) => {
                    self.fail(close, now);
                    break;
                }
                Poll::Pending => break,
            }
            let written = match self.socket.outbox.poll_next(cx) {
                Poll::Ready(Next::Send(message)) => self.stream.send(message),
                Poll::Ready(Next::Close(close)) => {
                    self.socket.unregister();
                    *self.state = State::Closing {
                        deadline: now + CLOSING,
                    };
                    self.stream.close(&close)
                }
                Poll::Pending => break,
            };
            if let Err(close) = written {
                self.fail(close, now);
            }
        }
        if *self.state == State::Done {
            return false;
        }
        match self.stream.poll_flush(cx) {
            Poll::Ready(Ok(())) => *self.stalled = None,
            Poll::Ready(Err(close)) => self.fail(close, now),
            Poll::Pending => {
                let written = self.stream.written();
                if self.stalled.is_none_or(|(_, before)| before < written) {
                    *self.stalled = Some((now, written));
                }
            }
        }
        self.stalled.is_none()
    }

    fn drain(&mut self, cx: &mut Context<'_>, flushed: bool) {
        let draining = flushed && matches!(self.state, State::Draining { .. });
        if draining && self.stream.poll_drain(cx).is_ready() {
            *self.state = State::Done;
        }
    }

    /// Does what is due; returns when to look again.
    fn keep_time(&mut self, now: Instant) -> Instant {
        match *self.state {
            State::Open => self.keep_open(now),
            State::Flushing { deadline }
            | State::Closing { deadline }
            | State::Draining { deadline } => {
                if deadline <= now {
                    *self.state = State::Done;
                }
                deadline
            }
            State::Done => now,
        }
    }

    fn keep_open(&mut self, now: Instant) -> Instant {
        if self.expires_at.is_some_and(|end| end <= now) {
            self.socket
                .outbox
                .close(Close::from_static(Close::EXPIRED, "the identity expired"));
            return now;
        }
        let stall_ends = self.stalled.map(|(since, _)| since + *self.write_timeout);
        if stall_ends.is_some_and(|end| end <= now) {
            let close = Close::from_static(Close::TRY_AGAIN_LATER, "the client accepts nothing");
            self.node
                .count_slow_close(self.socket.outbox.abandon(close));
            *self.state = State::Done;
            return now;
        }
        let beat = loop {
            match self.heartbeat.poll(now) {
                Beat::Wait(until) => break until,
                Beat::Ping => {
                    if let Err(close) = self.stream.ping() {
                        self.fail(close, now);
                        return now;
                    }
                }
                Beat::Dead => {
                    self.end(
                        Close::from_static(Close::ABNORMAL, "no sign of life"),
                        State::Done,
                    );
                    return now;
                }
            }
        };
        let ends = [*self.expires_at, stall_ends];
        ends.into_iter().flatten().fold(beat, Instant::min)
    }

    /// The peer has ended it, or is gone: nobody reads what is still queued.
    fn end(&mut self, close: Close, next: State) {
        self.socket.outbox.abandon(close);
        self.socket.unregister();
        *self.state = next;
    }

    /// The stream broke, or the client broke the rules. It is told, if it can be.
    fn fail(&mut self, close: Close, now: Instant) {
        let told =
            *self.state == State::Open && close.is_sendable() && self.stream.close(&close).is_ok();
        let next = if told {
            State::Draining {
                deadline: now + CLOSING,
            }
        } else {
            State::Done
        };
        self.end(close, next);
    }
}

fn vanished() -> Close {
    Close::from_static(Close::ABNORMAL, "the connection was lost")
}
