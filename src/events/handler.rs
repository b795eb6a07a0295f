//! The handler's end of one stream of events.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;

use crate::broadcast::Broadcaster;
use crate::bus::gaps::Gaps;
use crate::local::moves::Moves;
use crate::local::socket::Sender;
use crate::local::subscription::SubscriptionEnding;
use crate::model::close::Close;
use crate::model::error::{Closed, DescriptionError, RoomError, SendJsonError};
use crate::model::history::Resumed;
use crate::model::history::position::Position;
use crate::model::id::{RoomId, SocketId, UserId};
use crate::model::message::Message;
use crate::socket::Socket;

/// A registered stream of events: as long as you hold it, every node reaches its client. Of
/// [`ClusterEvents::on_open`](crate::ClusterEvents::on_open).
///
/// In all but hearing its client it is a [`Socket`](crate::Socket).
///
/// Dropping it ends the stream normally (1000), or with 1011 while panicking, after what was sent before.
#[derive(Debug)]
pub struct Events {
    /// The registered socket, from which nothing is ever received: an `EventSource` cannot speak.
    socket: Socket,
    /// Waits for the socket's end with the handler's waker.
    ending: Arc<SubscriptionEnding>,
}

impl Events {
    pub(super) fn new(socket: Socket, ending: Arc<SubscriptionEnding>) -> Self {
        Self { socket, ending }
    }

    /// The socket as others reach it.
    pub(super) fn sender(&self) -> Sender {
        self.socket.sender()
    }

    /// Its identity in the whole cluster.
    pub fn id(&self) -> SocketId {
        self.socket.id()
    }

    /// Whose it is.
    pub fn user(&self) -> &UserId {
        self.socket.user()
    }

    /// Whether its client came back with a position, and has everything since: [`Socket::resumed`].
    pub fn resumed(&self) -> Resumed {
        self.socket.resumed()
    }

    /// Up to where it was handed everything: [`Socket::position`].
    pub fn position(&self) -> Position {
        self.socket.position()
    }

    pub(super) fn came_back(&mut self, resumed: Resumed) {
        self.socket.came_back(resumed);
    }

    /// Sends to this client alone. Waits for room in the outbox, so a fast handler is slowed down to the speed of its client
    /// instead of being closed as a slow consumer.
    ///
    /// # Errors
    /// [`Closed`] when the stream has ended; nothing was sent.
    ///
    /// # Cancel safety
    /// Cancelled while it waits, the message is not sent.
    pub async fn send(&mut self, message: impl Into<Message>) -> Result<(), Closed> {
        let message = message.into();
        poll_fn(|cx| self.ending.poll(cx, |cx| self.socket.poll_room(cx))).await?;
        self.socket.push(&message)
    }

    /// Sends a value to this client alone, as JSON; like [`send`](Self::send) otherwise.
    ///
    /// # Errors
    /// A [`SendJsonError`] when the value cannot be written as JSON, or the stream has ended; nothing was sent.
    ///
    /// # Cancel safety
    /// Cancelled while it waits, the message is not sent.
    pub async fn send_json<T: Serialize + ?Sized>(
        &mut self,
        value: &T,
    ) -> Result<(), SendJsonError> {
        let json = serde_json::to_string(value).map_err(SendJsonError::json)?;
        Ok(self.send(json).await?)
    }

    /// Waits until the stream has ended: the client left, or somebody closed it.
    /// [`close_reason`](Self::close_reason) then says why.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn closed(&self) {
        poll_fn(|cx| self.ending.poll(cx, |cx| self.socket.poll_ended(cx))).await;
    }

    /// Joins a room: [`Socket::join`].
    ///
    /// # Errors
    /// When the room's id is empty or longer than 256 bytes, or the stream has ended.
    ///
    /// # Cancel safety
    /// Cancelled, it is in the room, though perhaps not yet for other nodes.
    pub async fn join(&self, room: impl Into<RoomId>) -> Result<(), RoomError> {
        self.socket.join(room).await
    }

    /// Leaves a room, at once: [`Socket::leave`].
    pub fn leave(&self, room: impl Into<RoomId>) {
        self.socket.leave(room);
    }

    /// The rooms it is in, in no order; when it has ended, those it was in at its end.
    pub fn rooms(&self) -> Vec<RoomId> {
        self.socket.rooms()
    }

    /// What others do to its rooms from now on: [`Socket::moves`].
    pub fn moves(&self) -> Moves {
        self.socket.moves()
    }

    /// Says anew when the identity ends: [`Socket::expires_at`].
    pub fn expires_at(&self, time: SystemTime) {
        self.socket.expires_at(time);
    }

    /// Says anew what kind of device this is: [`Socket::describe`].
    ///
    /// # Errors
    /// A [`DescriptionError`] when it is more than 1 KiB or 100 levels of JSON, or cannot be written so, and what was said
    /// before stays; or when the stream has ended.
    pub fn describe(&self, description: impl Serialize) -> Result<(), DescriptionError> {
        self.socket.describe(description)
    }

    /// Sends to others from here.
    pub fn broadcaster(&self) -> Broadcaster {
        self.socket.broadcaster()
    }

    /// When messages for this client may have been missed: [`Socket::gaps`].
    pub fn gaps(&self) -> Gaps {
        self.socket.gaps()
    }

    /// Ends the stream after what was sent, and waits until the client has taken that, at most 5 s. With 1000 or 4400 to 4499 an
    /// `EventSource` does not come back.
    ///
    /// # Cancel safety
    /// Cancelled, the ending goes on without you.
    pub async fn close(&mut self, close: Close) {
        self.socket.begin_close(close);
        poll_fn(|cx| self.ending.poll(cx, |cx| self.socket.poll_finished(cx))).await;
    }

    /// What ended the stream, whoever began it. `None` while it lives.
    pub fn close_reason(&self) -> Option<Close> {
        self.socket.close_reason()
    }
}
