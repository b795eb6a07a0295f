//! How a socket becomes reachable, and stops being it: a place, then a registration, each a value that
//! undoes itself.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use futures::future::join;

use super::Node;
use crate::bus::Confirmation;
use crate::bus::control::Ask;
use crate::bus::scope::{Reach, Selection};
use crate::bus::topic::Topic;
use crate::local::expiry::Expiry;
use crate::local::registry::{About, Full, Member};
use crate::local::socket::{DriverEnd, Ends, HandlerEnd, Sender};
use crate::model::close::{Close, reason};
use crate::model::id::{InvalidId, SocketId, UserId};

/// Why a socket may not enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    InvalidUser(InvalidId),
    Draining,
    /// The runtime is gone: nobody would ping the socket, or end it when its identity expires.
    RuntimeEnded,
    Full(Full),
}

impl Node {
    /// Takes a place for a socket of this user, and makes sure the cluster's messages for the user
    /// come here. In an outage it does not wait for that.
    pub(crate) async fn reserve(self: &Arc<Self>, user: UserId) -> Result<Reservation, Refused> {
        let topic = Topic::user(&user).map_err(Refused::InvalidUser)?;
        if self.is_draining() {
            return Err(Refused::Draining);
        }
        if self.has_lost_its_runtime() {
            return Err(Refused::RuntimeEnded);
        }
        let claimed = self.registry.write().claim(&topic, self.config.limits);
        claimed.map_err(|full| {
            self.counters.limits_refused.fetch_add(1, Relaxed);
            Refused::Full(full)
        })?;
        let confirmations = (self.bus.want(&self.all), self.bus.want(&topic));
        let number = self.next_socket.fetch_add(1, Relaxed);
        let reservation = Reservation {
            node: self.clone(),
            user,
            topic,
            number,
        };
        let (all, user) = confirmations;
        let listening = join(self.settled(all), self.settled(user));
        let slot = self.slot(&reservation.topic, number);
        let (slot, _) = join(slot, listening).await;
        slot.map(|()| reservation)
    }

    /// Takes a slot of the user in the whole cluster, where those are limited.
    async fn slot(self: &Arc<Self>, user: &Topic, number: u64) -> Result<(), Refused> {
        let Some(slots) = self.bus.slots() else {
            return Ok(());
        };
        let claim = slots.claim(user, number).await;
        if !claim.checked {
            self.counters.limits_unchecked.fetch_add(1, Relaxed);
        }
        let Some(others) = claim.granted else {
            self.counters.limits_refused.fetch_add(1, Relaxed);
            return Err(Refused::Full(Full::User));
        };
        if !others.is_empty() {
            let mut selection = Selection::default();
            others
                .into_iter()
                .for_each(|socket| selection.add(Topic::socket(socket)));
            let (node, close) = (self.clone(), Ask::from(&reason::REPLACED));
            self.spawn(async move {
                // Should it not arrive, their nodes learn it with the next renewal of their lease.
                let _ = node.command(&selection, close, Reach::Everywhere).await;
            });
        }
        Ok(())
    }

    /// Puts a socket into a room; returns when the cluster's messages for the room come here.
    pub(crate) async fn join(&self, socket: &Sender, room: &Topic) -> Option<()> {
        let confirmation = self.begin_join(socket, room)?;
        self.settled(confirmation).await;
        Some(())
    }

    pub(super) fn begin_join(&self, socket: &Sender, room: &Topic) -> Option<Confirmation> {
        // Wanted before it is joined: the end of the socket releases every room it has joined.
        let confirmation = self.bus.want(room);
        let joined = self.registry.write().join(socket.id(), room);
        if joined != Some(true) {
            self.bus.release(room);
        }
        joined?;
        self.presence.touch(socket.user(), [room]);
        Some(confirmation)
    }

    /// Waits until a topic is heard. In an outage of the bus it does not; and if it takes too long, that
    /// is one.
    pub(super) async fn settled(&self, confirmation: Confirmation) {
        if !confirmation.wait(self.config.publish_timeout).await {
            self.bus.doubt();
        }
    }

    pub(crate) fn leave(&self, socket: &Sender, room: &Topic) {
        let left = self.registry.write().leave(socket.id(), room);
        if left {
            self.bus.release(room);
            self.presence.touch(socket.user(), [room]);
        }
    }
}

/// A place for a socket whose user the cluster already listens for. Dropping it gives both back.
#[derive(Debug)]
pub(crate) struct Reservation {
    node: Arc<Node>,
    user: UserId,
    topic: Topic,
    /// What the socket will be called; its slot names it already.
    number: u64,
}

impl Reservation {
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    pub(crate) fn user(&self) -> &UserId {
        &self.user
    }

    /// From now on the socket is reachable from every node; what comes waits in the outbox.
    pub(crate) fn register(
        self,
        expiry: Option<Expiry>,
        description: Option<Box<str>>,
    ) -> (HandlerEnd, DriverEnd, Registration) {
        let (node, number) = (self.node.clone(), self.number);
        let id = SocketId {
            node: node.id,
            number,
        };
        let ends = Ends::new(id, self.user.clone(), expiry);
        let sender = ends.sender;
        node.live.lock().insert(number, ends.sweep);
        let about = About {
            connected_at: SystemTime::now(),
            description,
        };
        node.registry
            .write()
            .insert(self.topic.clone(), sender.clone(), about);
        node.presence.touch(&self.user, [&node.all]);
        // A drain that began meanwhile may have looked before this one was there.
        if node.is_draining() {
            sender.close(reason::RESTART);
        }
        // So may who took its slot.
        if let Some(slots) = node.bus.slots()
            && !slots.holds(&self.topic, number)
        {
            sender.close(reason::REPLACED);
        }
        tracing::debug!(socket = %id, user = self.user.as_str(), "socket opened");
        let registration = Registration {
            node,
            id,
            reservation: Some(self),
        };
        (ends.handler, ends.driver, registration)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.node.registry.write().unclaim(&self.topic);
        if let Some(slots) = self.node.bus.slots() {
            slots.release(&self.topic, self.number);
        }
        self.node.bus.release(&self.topic);
        self.node.bus.release(&self.node.all);
    }
}

/// A socket that is reachable until [`unregister`](Self::unregister), and watched over until this is
/// dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    node: Arc<Node>,
    id: SocketId,
    reservation: Option<Reservation>,
}

impl Registration {
    /// Its client is over the inbound limit.
    pub(crate) fn count_too_much(&self, user: &UserId) {
        self.node.counters.inbound_closed.fetch_add(1, Relaxed);
        tracing::debug!(socket = %self.id, user = user.as_str(), "closed with 1008: the client sent more than `inbound_limit` allows; raise it if an \
            honest one does so too");
    }

    /// Makes it unreachable, gives its place back and counts how it ended.
    pub(crate) fn unregister(&mut self, close: &Close) {
        if self.reservation.is_some() {
            self.node.counters.note_close(close);
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        let Some(reservation) = self.reservation.take() else {
            return;
        };
        let node = &self.node;
        let removed = node.registry.write().remove(self.id);
        let rooms = || removed.iter().flat_map(|removed| removed.rooms.iter());
        for room in rooms() {
            node.bus.release(room);
        }
        node.presence
            .touch(&reservation.user, rooms().chain([&node.all]));
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.give_back();
        // Dropped afterwards: with the last of it its stream is closed.
        let gone = self.node.live.lock().swap_remove(&self.id.number);
        drop(gone);
    }
}
