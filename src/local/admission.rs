//! How a socket becomes reachable, and stops being it: a place, then a registration, each a value that
//! undoes itself.
//!
//! ```text
//!  reserve ------------------> Reservation ------------------> Registration ------------> unregistered --> gone
//!  a place here; heard, and    dropped: all of that is         reachable by all           what was taken   the sweeper
//!  a seat, or it is refused    given back                                                 is given back    forgets it
//! ```
//! Whoever may end a socket looks for those that are registered. So the registration comes first, and then the question
//! whether a drain has begun or its seat was taken meanwhile: in the other order it could miss both.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use futures::future::join;

use super::Local;
use super::expiry::Expiry;
use super::registry::{About, Full, Member, Rooms};
use super::socket::{DriverEnd, Ends, HandlerEnd, Registered, Sender, SweepEnd};
use crate::bus::Confirmation;
use crate::measures::Since;
use crate::model::close::{Close, reason};
use crate::model::description::Description;
use crate::model::gap::Gap;
use crate::model::id::{InvalidId, RoomId, SocketId, UserId};
use crate::model::topic::Topic;

/// Why a socket may not enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    InvalidUser(InvalidId),
    Draining,
    /// The runtime is gone: nobody would ping the socket, or end it when its identity expires.
    RuntimeEnded,
    Full(Full),
}

impl Local {
    /// Takes a place for a socket of this user, and makes sure the cluster's messages for the user
    /// come here. In an outage it does not wait for that. Returns the sockets of other nodes, too, which lost their
    /// seats to it and are to be closed.
    pub(crate) async fn reserve(
        self: &Arc<Self>,
        user: UserId,
    ) -> Result<(Reservation, Vec<SocketId>), Refused> {
        let topic = Topic::user(&user).map_err(Refused::InvalidUser)?;
        if self.is_draining() {
            return Err(Refused::Draining);
        }
        if self.home.has_lost_its_runtime() {
            return Err(Refused::RuntimeEnded);
        }
        let taken = self
            .registry
            .write()
            .take_place(&topic, self.settings.limits);
        taken.map_err(|full| self.is_full(full))?;
        let confirmations = (self.bus.want(&self.all), self.bus.want(&topic));
        let number = self.next_socket.fetch_add(1, Relaxed);
        let reservation = Reservation {
            local: self.clone(),
            user,
            topic,
            number,
        };
        let (all, user) = confirmations;
        let listening = join(self.wait_confirmed(all), self.wait_confirmed(user));
        let seat = self.seat(&reservation.topic, number);
        let (seat, _) = join(seat, listening).await;
        seat.map(|replaced| (reservation, replaced))
    }

    fn is_full(&self, full: Full) -> Refused {
        self.counters.limits_refused.fetch_add(1, Relaxed);
        Refused::Full(full)
    }

    /// Takes a seat of the user in the whole cluster, where those are limited; whose seats it took.
    async fn seat(&self, user: &Topic, number: u64) -> Result<Vec<SocketId>, Refused> {
        let Some(seats) = self.bus.seats() else {
            return Ok(Vec::new());
        };
        let decision = seats.claim(user, number).await;
        if !decision.checked {
            self.counters.limits_unchecked.fetch_add(1, Relaxed);
        }
        decision.granted.ok_or_else(|| self.is_full(Full::User))
    }

    /// Puts a socket into a room; returns when the cluster's messages for the room come here.
    pub(crate) async fn join(&self, socket: &Sender, room: &Topic) -> Option<()> {
        let joined = self.begin_join(socket, room)?;
        self.wait_confirmed(joined.confirmation).await;
        Some(())
    }

    pub(crate) fn begin_join(&self, socket: &Sender, room: &Topic) -> Option<Joined> {
        // Wanted before it is joined: the end of the socket releases every room it has joined.
        let confirmation = self.bus.want(room);
        let joined = self.registry.write().join(socket.id(), room);
        let is_new = joined == Some(true);
        if !is_new {
            self.bus.release(room);
        }
        joined?;
        self.presence.touch(socket.user(), [room]);
        Some(Joined {
            is_new,
            confirmation,
        })
    }

    /// Waits until a topic is heard. In an outage of the bus it does not; and if it takes too long, that
    /// is one.
    pub(crate) async fn wait_confirmed(&self, confirmation: Confirmation) {
        let is_awaited = matches!(confirmation, Confirmation::Pending(_));
        let since = Since::now();
        if !confirmation.wait(self.settings.publish_timeout).await {
            self.bus.prove_anew();
        }
        if is_awaited {
            self.counters.measures.confirmed(since);
        }
    }

    /// Takes a socket out of a room that the app names; an unusable name is told in the log.
    pub(crate) fn leave_room(&self, socket: &Sender, room: &RoomId) {
        match Topic::room(room.as_str()) {
            Ok(room) => _ = self.leave(socket, &room),
            Err(error) => error.log("leave"),
        }
    }

    /// Whether the socket was in the room.
    pub(crate) fn leave(&self, socket: &Sender, room: &Topic) -> bool {
        let left = self.registry.write().leave(socket.id(), room);
        if left {
            self.bus.release(room);
            self.presence.touch(socket.user(), [room]);
        }
        left
    }

    /// Whether messages for this socket may have been missed.
    pub(crate) fn is_concerned(&self, socket: &Sender, gap: &Gap) -> bool {
        gap.is_news_for(socket.id().number)
            || gap.concerns_topic(&self.all)
            || gap.concerns_sockets_of(self.node)
            || gap.concerns_user(socket.user())
            || self
                .rooms(socket)
                .iter()
                .any(|room| gap.concerns_room(room))
    }

    /// The rooms of a socket; those in which it was at its end, once it has ended.
    pub(crate) fn rooms(&self, socket: &Sender) -> Vec<RoomId> {
        let names = |rooms: &Rooms| rooms.iter().filter_map(Topic::as_room).collect();
        let registry = self.registry.read();
        match registry.rooms_of(socket.id()) {
            Some(rooms) => names(rooms),
            None => socket.left().map(|rooms| names(&rooms)).unwrap_or_default(),
        }
    }

    /// What rosters tell of a socket from now on, if it is registered.
    pub(crate) fn redescribe(&self, socket: &Sender, description: Description) -> Option<()> {
        let before = self
            .registry
            .write()
            .redescribe(socket.id(), description.0)?;
        drop(before);
        Some(())
    }
}

/// A socket is in a room.
#[derive(Debug)]
pub(crate) struct Joined {
    /// It was not before.
    pub(crate) is_new: bool,
    /// That what is sent to the room comes here.
    pub(crate) confirmation: Confirmation,
}

/// A place for a socket whose user the cluster already listens for. Dropping it gives both back.
#[derive(Debug)]
pub(crate) struct Reservation {
    local: Arc<Local>,
    user: UserId,
    topic: Topic,
    /// What the socket will be called; its seat names it already.
    number: u64,
}

impl Reservation {
    pub(crate) fn user(&self) -> &UserId {
        &self.user
    }

    /// From now on the socket is reachable from every node; what comes waits in the outbox.
    pub(crate) fn register(
        self,
        expiry: Option<Expiry>,
        description: Option<Description>,
    ) -> (HandlerEnd, DriverEnd, Registration) {
        let Ends {
            sender,
            handler,
            driver,
            sweep,
        } = self.ends(expiry);
        let registration = self.enter(&sender, sweep, description);
        (handler, driver, registration)
    }

    /// The ends of the socket to be, which nobody reaches yet.
    pub(super) fn ends(&self, expiry: Option<Expiry>) -> Ends {
        let id = SocketId {
            node: self.local.node,
            number: self.number,
        };
        Ends::new(id, self.user.clone(), expiry)
    }

    /// From now on every node reaches it.
    pub(super) fn enter(
        self,
        sender: &Sender,
        sweep: SweepEnd,
        description: Option<Description>,
    ) -> Registration {
        let (local, number, id) = (self.local.clone(), self.number, sender.id());
        local.live.insert(number, sweep);
        let about = About {
            connected_at: SystemTime::now(),
            description: description.map(|description| description.0),
        };
        local
            .registry
            .write()
            .insert(self.topic.clone(), sender.clone(), about);
        local.presence.touch(&self.user, [&local.all]);
        // A drain that began meanwhile may have looked before this one was there.
        if local.is_draining() {
            sender.close(reason::RESTART);
        }
        // So may who took its seat.
        if let Some(seats) = local.bus.seats()
            && !seats.holds(&self.topic, number)
        {
            sender.close(reason::REPLACED);
        }
        tracing::debug!(socket = %id, user = self.user.as_str(), "socket opened");
        Registration {
            local,
            id,
            reservation: Some(self),
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.local.registry.write().give_place_back(&self.topic);
        if let Some(seats) = self.local.bus.seats() {
            seats.release(&self.topic, self.number);
        }
        self.local.bus.release(&self.topic);
        self.local.bus.release(&self.local.all);
    }
}

/// A socket that is reachable until [`unregister`](Self::unregister), and watched over until this is
/// dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    local: Arc<Local>,
    id: SocketId,
    reservation: Option<Reservation>,
}

impl Registered for Registration {
    /// Makes it unreachable, gives its place back and counts how it ended.
    fn unregister(&mut self, close: &Close) {
        if self.reservation.is_some() {
            self.local.counters.record_close(close);
            self.give_back();
        }
    }
}

impl Registration {
    fn give_back(&mut self) {
        let Some(reservation) = self.reservation.take() else {
            return;
        };
        let local = &self.local;
        let removed = {
            let mut registry = local.registry.write();
            let removed = registry.remove(self.id);
            // Before anybody else finds it gone.
            if let Some(removed) = &removed {
                removed.member.leaves(removed.rooms.clone());
            }
            removed
        };
        let rooms = || removed.iter().flat_map(|removed| removed.rooms.iter());
        for room in rooms() {
            local.bus.release(room);
        }
        local
            .presence
            .touch(&reservation.user, rooms().chain([&local.all]));
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.give_back();
        self.local.live.remove(self.id.number);
    }
}
