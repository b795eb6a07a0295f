//! The end of the app's handler.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::time::Instant;

use super::inbox::Inbox;
use super::{Sender, Shared};
use crate::local::expiry::Expiry;
use crate::model::close::Close;
use crate::model::id::{SocketId, UserId};
use crate::model::limits::OutboxLimits;
use crate::model::message::Message;
use crate::waker::poll_locked;
use crate::ws::Agreed;
use crate::ws::frame::Frame;

/// Hears, and says as much as the client takes: it waits where a [`Sender`] would overflow.
#[derive(Debug)]
pub(crate) struct HandlerEnd(pub(super) Arc<Shared>);

impl HandlerEnd {
    pub(crate) fn id(&self) -> SocketId {
        self.0.id
    }

    pub(crate) fn user(&self) -> &UserId {
        &self.0.user
    }

    /// How its client takes messages.
    pub(crate) fn agreed(&self) -> Agreed {
        self.0.agreed()
    }

    /// The socket as others reach it.
    pub(crate) fn sender(&self) -> Sender {
        Sender(self.0.clone())
    }

    /// Waits for room: the handler's own sends press back instead of overflowing.
    pub(crate) fn poll_room(
        &self,
        cx: &mut Context<'_>,
        limits: &OutboxLimits,
    ) -> Poll<Result<(), Close>> {
        poll_locked(
            &self.0.core,
            cx,
            |core| &mut core.wakers.handler,
            |core| core.room(limits),
        )
    }

    /// Takes the handler's frame into the room that [`poll_room`](Self::poll_room) found.
    pub(crate) fn push(&self, frame: Frame) -> Result<(), Close> {
        self.0.change(|core| core.push(frame))
    }

    /// The client's next message; `None` when nothing more will come.
    pub(crate) fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        let (message, was_full) = ready!(poll_locked(
            &self.0.inbox,
            cx,
            |inbox| &mut inbox.handler,
            Inbox::next
        ));
        if was_full {
            self.0.change(|core| core.noted.wake_driver());
        }
        Poll::Ready(message)
    }

    /// Waits until something ends the socket.
    pub(crate) fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<()> {
        poll_locked(
            &self.0.core,
            cx,
            |core| &mut core.wakers.handler,
            |core| core.ended(),
        )
    }

    /// Waits until the stream is gone.
    pub(crate) fn poll_finished(&self, cx: &mut Context<'_>) -> Poll<()> {
        poll_locked(
            &self.0.core,
            cx,
            |core| &mut core.wakers.handler,
            |core| core.finished(),
        )
    }

    /// Its identity ends then, and not when it was said before.
    pub(crate) fn expire_at(&self, expiry: Expiry) {
        self.0.change(|core| core.expiry = Some(expiry));
    }

    /// Ends the socket after what is queued, if nothing has.
    pub(crate) fn close(&self, close: Close) {
        self.0.change(|core| core.close(close, Instant::now));
    }

    /// What ended the socket, once something has.
    pub(crate) fn close_reason(&self) -> Option<Close> {
        self.0.close_reason()
    }
}
