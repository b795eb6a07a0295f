//! The room for what waits for Redis: bounded in messages and bytes, over all publishers of a node.

use std::mem::take;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::bus::Listener;
use crate::model::error::PublishError;
use crate::model::limits::SpoolLimits;

/// What may wait on a node, over all its publishers.
#[derive(Debug)]
pub(in crate::bus::redis) struct Room {
    pub(in crate::bus::redis) limits: SpoolLimits,
    waiting: Mutex<State>,
    emptied: Notify,
    /// Who counts.
    listener: OnceLock<Weak<dyn Listener>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct SpoolSize {
    messages: usize,
    bytes: usize,
}

/// What waits, and what was dropped since nothing did.
#[derive(Debug, Default)]
struct State {
    size: SpoolSize,
    dropped: u64,
    why: Option<Arc<str>>,
}

/// A place there. Dropped, it was in vain; unless it is [settled](Self::settle).
#[derive(Debug)]
pub(in crate::bus::redis) struct RoomPermit {
    room: Arc<Room>,
    size: SpoolSize,
    is_in_vain: bool,
    /// It had been taken, and was lost.
    was_lost: bool,
    why: Option<Arc<str>>,
}

/// What would wait there.
#[derive(Debug)]
pub(in crate::bus::redis) struct Claim {
    room: Arc<Room>,
    size: SpoolSize,
}

impl Room {
    pub(in crate::bus::redis) fn new(limits: SpoolLimits) -> Self {
        Self {
            limits,
            waiting: Mutex::default(),
            emptied: Notify::new(),
            listener: OnceLock::new(),
        }
    }

    /// Who counts what becomes of it.
    pub(in crate::bus::redis) fn count_by(&self, listener: &Weak<dyn Listener>) {
        self.listener.get_or_init(|| listener.clone());
    }

    pub(in crate::bus::redis) fn messages(&self) -> usize {
        self.waiting.lock().size.messages
    }

    /// Until nothing waits.
    pub(in crate::bus::redis) async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.messages() == 0 {
                return;
            }
            emptied.await;
        }
    }

    pub(in crate::bus::redis) fn claim(self: &Arc<Self>, messages: usize, bytes: usize) -> Claim {
        Claim {
            room: self.clone(),
            size: SpoolSize { messages, bytes },
        }
    }

    /// Of what was lost: it takes no more than what is remembered.
    pub(super) fn take_anyway(self: &Arc<Self>, messages: usize, bytes: usize) -> RoomPermit {
        let size = SpoolSize { messages, bytes };
        let mut waiting = self.waiting.lock();
        waiting.size.messages += messages;
        waiting.size.bytes += bytes;
        RoomPermit {
            room: self.clone(),
            size,
            is_in_vain: true,
            was_lost: true,
            why: None,
        }
    }

    fn told(&self, what: impl FnOnce(&dyn Listener)) {
        if let Some(listener) = self.listener.get().and_then(Weak::upgrade) {
            what(&*listener);
        }
    }
}

impl Claim {
    /// Nothing, where there is no room.
    pub(in crate::bus::redis) fn take(self) -> Result<RoomPermit, PublishError> {
        let Self { room, size } = self;
        let SpoolLimits {
            messages, bytes, ..
        } = room.limits;
        let is_full = {
            let taken = &mut room.waiting.lock().size;
            let (all, all_bytes) = (taken.messages + size.messages, taken.bytes + size.bytes);
            let is_full = all > messages || all_bytes > bytes;
            if !is_full {
                (taken.messages, taken.bytes) = (all, all_bytes);
            }
            is_full
        };
        if is_full {
            let dropped = size.messages as u64;
            room.told(|listener| listener.spool_dropped(dropped, false));
            return Err(PublishError::not_sent(format!(
                "redis is away, and the spool is full: `spool` gives it room for {messages} messages and {bytes} bytes"
            )));
        }
        Ok(RoomPermit {
            room,
            size,
            is_in_vain: true,
            was_lost: false,
            why: None,
        })
    }

    pub(in crate::bus::redis) fn wait(&self) -> Duration {
        self.room.limits.wait
    }
}

impl RoomPermit {
    /// It was taken.
    pub(in crate::bus::redis) fn settle(mut self) {
        self.is_in_vain = false;
    }

    /// It is dropped.
    pub(in crate::bus::redis) fn fail(mut self, why: &Arc<str>) {
        self.why = Some(why.clone());
    }
}

impl Drop for RoomPermit {
    fn drop(&mut self) {
        let messages = self.size.messages as u64;
        let (is_empty, dropped) = {
            let mut waiting = self.room.waiting.lock();
            waiting.size.messages -= self.size.messages;
            waiting.size.bytes -= self.size.bytes;
            if self.is_in_vain {
                waiting.dropped += messages;
                waiting.why = self.why.take().or(waiting.why.take());
            }
            let is_empty = waiting.size.messages == 0;
            let dropped = is_empty.then(|| (take(&mut waiting.dropped), waiting.why.take()));
            (is_empty, dropped)
        };
        if self.is_in_vain {
            let was_lost = self.was_lost;
            self.room
                .told(|listener| listener.spool_dropped(messages, was_lost));
        }
        if let Some((messages @ 1.., why)) = dropped {
            let why = why.as_deref().unwrap_or("the node ended");
            tracing::warn!(
                messages,
                reason = why,
                "messages that waited for redis in the spool were dropped"
            );
        }
        if is_empty {
            self.room.emptied.notify_waiters();
        }
    }
}
