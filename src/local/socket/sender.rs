//! The end of whoever has something to say to a socket.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use super::Shared;
use super::outcome::{Collected, Flushed, Pushed};
use super::resuming::{Numbered, Resuming, Telling};
use crate::local::registry::{Member, Rooms};
use crate::model::close::Close;
use crate::model::id::{SocketId, UserId};
use crate::model::limits::OutboxLimits;
use crate::model::manner::Manner;
use crate::model::topic::Topic;
use crate::ws::Agreed;
use crate::ws::frame::Frame;

/// Sends, and ends the socket with a word; it never waits.
#[derive(Debug, Clone)]
pub(crate) struct Sender(pub(super) Arc<Shared>);

impl Sender {
    /// How its client takes messages.
    pub(crate) fn agreed(&self) -> Agreed {
        self.0.agreed()
    }

    /// When its identity ends, if that was said.
    pub(crate) fn expires_at(&self) -> Option<SystemTime> {
        let expiry = self.0.core.lock().expiry;
        expiry.and_then(|expiry| expiry.time())
    }

    /// It is off every topic, and was in these rooms.
    pub(crate) fn leaves(&self, rooms: Arc<Rooms>) {
        self.0.inbox.lock().left = Some(rooms);
    }

    /// The rooms in which it was when it ended.
    pub(crate) fn left(&self) -> Option<Arc<Rooms>> {
        self.0.inbox.lock().left.clone()
    }

    /// Writes a frame, or queues it when others are before it.
    pub(crate) fn send(&self, frame: &Frame, manner: &Manner, limits: &OutboxLimits) -> Pushed {
        self.0
            .change(|core| core.send(frame, manner, limits, Instant::now))
    }

    /// Queues a frame that will leave with others by [`flush`](Self::flush).
    pub(crate) fn collect(
        &self,
        frame: &Frame,
        manner: &Manner,
        limits: &OutboxLimits,
    ) -> Collected {
        self.0
            .change(|core| core.collect(frame, manner, limits, Instant::now))
    }

    /// Collects what is kept, by its number.
    pub(crate) fn collect_numbered(
        &self,
        numbered: &Numbered<'_>,
        manner: &Manner,
        limits: &OutboxLimits,
    ) -> Collected {
        self.0
            .change(|core| core.collect_numbered(numbered, manner, limits, Instant::now))
    }

    /// Its client may come back and go on: what is kept waits, until it is [released](Self::release).
    pub(crate) fn hold(&self, telling: Telling) {
        let resuming = Resuming::new(self.0.id, telling);
        self.0.change(|core| core.hold(resuming));
    }

    /// What its client missed is known, or what it missed of a room.
    pub(crate) fn release(&self, say: impl FnOnce(&mut Resuming) -> Vec<Frame>) {
        self.0.change(|core| core.release(say));
    }

    /// What only a socket has whose client may come back.
    pub(crate) fn resuming<T>(&self, ask: impl FnOnce(&mut Resuming) -> Option<T>) -> Option<T> {
        self.0.core.lock().life.resuming().and_then(ask)
    }

    /// It is in this room from now on, or no longer.
    pub(crate) fn moved(&self, room: &Topic, is_in: bool) {
        self.release(|resuming| resuming.moved(room.as_str(), is_in).into_iter().collect());
    }

    /// Ends the socket like [`close`](Self::close), but says so with what else is collected. Whether it asks
    /// for a flush.
    pub(crate) fn collect_close(&self, close: &Close) -> bool {
        self.0
            .change(|core| core.collect_close(close, Instant::now))
    }

    /// Writes what was collected, in one write where the kernel takes it.
    pub(crate) fn flush(&self) -> Flushed {
        self.0.change(|core| core.flush(Instant::now))
    }

    /// Ends the socket after what is queued. The first close wins; returns whether this was it.
    pub(crate) fn close(&self, close: Close) -> bool {
        self.0.change(|core| core.close(close, Instant::now))
    }

    /// What ended the socket, once something has.
    pub(crate) fn close_reason(&self) -> Option<Close> {
        self.0.close_reason()
    }
}

impl Member for Sender {
    fn id(&self) -> SocketId {
        self.0.id
    }

    fn user(&self) -> &UserId {
        &self.0.user
    }

    fn topic(&self) -> &Topic {
        &self.0.topic
    }
}
