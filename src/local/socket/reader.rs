//! The end of a reader: of a subscription, or of what hands on to a client.

use std::task::{Context, Poll, Waker, ready};

use tokio::time::Instant;

use super::{DriverEnd, Sender};
use crate::model::close::Close;
use crate::model::id::{SocketId, UserId};
use crate::model::message::Message;
use crate::waker::{poll_locked, wake};
use crate::ws::frame::Frame;

/// Takes what is said to a socket, in its own time; dropping this is how such a socket finishes.
#[derive(Debug)]
pub(crate) struct ReaderEnd(DriverEnd);

impl ReaderEnd {
    /// In the place of a driver, which this socket has not: there is nothing to drive. With a client, to whom all is
    /// handed on, time is kept.
    pub(crate) fn instead_of(driver: DriverEnd, has_client: bool) -> Self {
        driver
            .0
            .change(|core| core.begin_reading(has_client, Instant::now()));
        Self(driver)
    }

    pub(crate) fn id(&self) -> SocketId {
        self.0.id()
    }

    pub(crate) fn user(&self) -> &UserId {
        self.0.user()
    }

    /// The socket as others reach it.
    pub(crate) fn sender(&self) -> Sender {
        self.0.sender()
    }

    /// The next message; `None` when nothing more will come.
    pub(crate) fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        let frame = ready!(self.poll_frame(cx));
        // The last one is the Close.
        Poll::Ready(frame.and_then(Frame::into_message))
    }

    /// The next frame, the Close among them; `None` when nothing more will come.
    pub(crate) fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        poll_locked(
            &self.0.0.core,
            cx,
            |core| &mut core.wakers.driver,
            |core| core.read(Instant::now),
        )
    }

    /// The next frame, if one waits. Whoever finds none is as busy as before, with what it took.
    pub(crate) fn next_waiting(&self) -> Option<Frame> {
        self.0.0.change(|core| match core.queue.is_empty() {
            true => None,
            false => match core.read(Instant::now) {
                Poll::Ready(frame) => frame,
                Poll::Pending => None,
            },
        })
    }

    /// The client is gone: nobody takes what is queued.
    pub(crate) fn abandon(&self, close: Close) {
        self.0.abandon(close);
    }

    /// Wakes this one when something ends the socket, or at once when something has. There is no handler that would wait.
    pub(crate) fn when_ended(&self, waker: Waker) {
        let ended = poll_locked(
            &self.0.0.core,
            &mut Context::from_waker(&waker),
            |core| &mut core.wakers.handler,
            |core| core.ended(),
        );
        if ended.is_ready() {
            wake(Some(waker));
        }
    }

    /// Ends the socket after what is queued, if nothing has.
    pub(crate) fn close(&self, close: Close) {
        self.sender().close(close);
    }

    /// What ended the socket, once something has.
    pub(crate) fn close_reason(&self) -> Option<Close> {
        self.0.close_reason()
    }
}
