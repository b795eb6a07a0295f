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

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use futures::future::{join, join_all};

use super::Local;
use super::expiry::Expiry;
use super::registry::{About, Full, Member, Rooms};
use super::socket::resuming::Telling;
use super::socket::{DriverEnd, HandlerEnd, Registered, Sender, SocketEnds, SweepEnd};
use crate::bus::Confirmation;
use crate::measures::Since;
use crate::model::close::{Close, reason};
use crate::model::description::Description;
use crate::model::gap::Gap;
use crate::model::id::{InvalidId, RoomId, SocketId, UserId};
use crate::model::topic::Topic;
use crate::ws::Agreed;

/// Why a socket may not enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefusedSocket {
    InvalidUser(InvalidId),
    Draining,
    /// The runtime is gone: nobody would ping the socket, or end it when its identity expires.
    RuntimeEnded,
    Full(Full),
}

impl RefusedSocket {
    /// Whether the same client may enter later.
    pub(crate) fn is_passing(self) -> bool {
        !matches!(self, Self::InvalidUser(_))
    }
}

impl fmt::Display for RefusedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Draining => "the server is shutting down, try again",
            Self::RuntimeEnded => "the server cannot open sockets now, try again later",
            Self::Full(Full::Node) => "the server is full, try again later",
            Self::Full(Full::User) => "too many sockets of this user",
            Self::InvalidUser(error) => return write!(f, "user id: {error}"),
        })
    }
}

impl Local {
    /// Takes a place for a socket of this user, and makes sure the cluster's messages for the user
    /// come here. In an outage it does not wait for that. Returns the sockets of other nodes, too, which lost their
    /// seats to it and are to be closed.
    pub(crate) async fn reserve(
        self: &Arc<Self>,
        user: UserId,
    ) -> Result<(Reservation, Vec<SocketId>), RefusedSocket> {
        let topic = Topic::user(&user).map_err(RefusedSocket::InvalidUser)?;
        if self.is_draining() {
            return Err(RefusedSocket::Draining);
        }
        if self.home.has_lost_its_runtime() {
            return Err(RefusedSocket::RuntimeEnded);
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
            agreed: Agreed::NOTHING,
            is_registered: false,
        };
        let (all, user) = confirmations;
        let listening = join(self.wait_confirmed(all), self.wait_confirmed(user));
        let seat = self.seat(&reservation.topic, number);
        let (seat, _) = join(seat, listening).await;
        seat.map(|replaced| (reservation, replaced))
    }

    fn is_full(&self, full: Full) -> RefusedSocket {
        self.counters.limits_refused.fetch_add(1, Relaxed);
        RefusedSocket::Full(full)
    }

    /// Takes a seat of the user in the whole cluster, where those are limited; whose seats it took.
    async fn seat(&self, user: &Topic, number: u64) -> Result<Vec<SocketId>, RefusedSocket> {
        let Some(seats) = self.bus.seats() else {
            return Ok(Vec::new());
        };
        let decision = seats.claim(user, number).await;
        if !decision.checked {
            self.counters.limits_unchecked.fetch_add(1, Relaxed);
        }
        decision.granted.ok_or_else(|| self.is_full(Full::User))
    }

    /// Gives back what a socket of this user has, whether or not it came to be.
    fn give_back(&self, user: &Topic, number: u64) {
        self.registry.write().give_place_back(user);
        if let Some(seats) = self.bus.seats() {
            seats.release(user, number);
        }
        self.bus.release(user);
        self.bus.release(&self.all);
    }

    /// Puts a socket into a room.
    pub(crate) fn begin_join(&self, socket: &Sender, room: &Topic) -> Option<Joined> {
        // Wanted before it is joined: the end of the socket releases every room it has joined.
        let confirmation = self.bus.want(room);
        let joined = self.registry.write().join(socket.id(), room);
        let is_new = joined == Some(true);
        if !is_new {
            self.bus.release(room);
        }
        joined?;
        if is_new {
            socket.moved(room, true);
        }
        self.presence.touch(socket.user(), [room]);
        Some(Joined {
            is_new,
            confirmation,
        })
    }

    /// Puts a newcomer into its rooms; resolves when what is sent to them comes here.
    pub(crate) fn begin_joins(
        self: &Arc<Self>,
        socket: &Sender,
        rooms: &[Topic],
    ) -> impl Future<Output = ()> + Send + use<> {
        let joined = rooms
            .iter()
            .filter_map(|room| self.begin_join(socket, room));
        let joined: Vec<Joined> = joined.collect();
        let local = self.clone();
        async move {
            let heard = joined.into_iter();
            let heard = heard.map(|joined| local.wait_confirmed(joined.confirmation));
            join_all(heard).await;
        }
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
            socket.moved(room, false);
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

    /// What rosters and presence tell of a socket from now on, if it is registered.
    pub(crate) fn redescribe(&self, socket: &Sender, description: Description) -> Option<()> {
        let (before, rooms) = {
            let mut registry = self.registry.write();
            let before = registry.redescribe(socket.id(), description)?;
            let rooms = registry.rooms_of(socket.id()).into_iter();
            let rooms: Vec<Topic> = match self.presence.is_watched() {
                true => rooms.flat_map(Rooms::iter).cloned().collect(),
                false => Vec::new(),
            };
            (before, rooms)
        };
        drop(before);
        self.presence
            .touch(socket.user(), rooms.iter().chain([&self.all]));
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
    agreed: Agreed,
    /// What it has is its registration's now.
    is_registered: bool,
}

impl Reservation {
    pub(crate) fn user(&self) -> &UserId {
        &self.user
    }

    /// How the client takes messages, as the handshake says.
    pub(crate) fn agree(&mut self, agreed: Agreed) {
        self.agreed = agreed;
    }

    /// From now on the socket is reachable from every node; what comes waits in the outbox.
    pub(crate) fn register(
        self,
        expiry: Option<Expiry>,
        description: Option<Description>,
        holding: Option<Telling>,
    ) -> (HandlerEnd, DriverEnd, Registration) {
        let SocketEnds {
            sender,
            handler,
            driver,
            sweep,
        } = self.ends(expiry);
        if let Some(telling) = holding {
            sender.hold(telling);
        }
        let registration = self.enter(&sender, sweep, description);
        (handler, driver, registration)
    }

    /// The ends of the socket to be, which nobody reaches yet.
    pub(super) fn ends(&self, expiry: Option<Expiry>) -> SocketEnds {
        let id = SocketId {
            node: self.local.node,
            number: self.number,
        };
        SocketEnds::new(
            id,
            self.user.clone(),
            self.topic.clone(),
            expiry,
            self.agreed,
        )
    }

    /// From now on every node reaches it.
    pub(super) fn enter(
        mut self,
        sender: &Sender,
        sweep: SweepEnd,
        description: Option<Description>,
    ) -> Registration {
        let (local, number) = (self.local.clone(), self.number);
        self.is_registered = true;
        let registration = Registration {
            local: local.clone(),
            socket: sender.clone(),
        };
        local.live.insert(number, sweep);
        let about = About {
            connected_at: SystemTime::now(),
            description,
        };
        local.registry.write().insert(sender.clone(), about);
        local.presence.touch(sender.user(), [&local.all]);
        // A drain that began meanwhile may have looked before this one was there.
        if local.is_draining() {
            sender.close(reason::RESTART);
        }
        // So may who took its seat.
        if let Some(seats) = local.bus.seats()
            && !seats.holds(sender.topic(), number)
        {
            sender.close(reason::REPLACED);
        }
        let (socket, user) = (sender.id(), sender.user().as_str());
        tracing::debug!(%socket, user, "socket opened");
        registration
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.is_registered {
            self.local.give_back(&self.topic, self.number);
        }
    }
}

/// A socket that is reachable until [`unregister`](Self::unregister), and watched over until this is
/// dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    local: Arc<Local>,
    socket: Sender,
}

impl Registered for Registration {
    fn max_message_size(&self) -> usize {
        self.local.settings.max_message_size
    }

    /// Makes it unreachable, gives its place back and counts how it ended.
    fn unregister(&mut self, close: &Close) {
        if self.socket.left().is_none() {
            self.local.counters.record_close(close);
            self.give_back();
        }
    }
}

impl Registration {
    /// Does nothing the second time.
    fn give_back(&mut self) {
        let (local, socket) = (&self.local, &self.socket);
        let removed = {
            let mut registry = local.registry.write();
            let Some(removed) = registry.remove(socket.id()) else {
                return;
            };
            // Before anybody else finds it gone.
            removed.member.leaves(removed.rooms.clone());
            removed
        };
        for room in removed.rooms.iter() {
            local.bus.release(room);
        }
        let topics = removed.rooms.iter().chain([&local.all]);
        local.presence.touch(socket.user(), topics);
        local.give_back(socket.topic(), socket.id().number);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.give_back();
        self.local.live.remove(self.socket.id().number);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::model::gap::Extent;
    use crate::model::partition::{Partition, PartitionSet};
    use crate::model::topic::{Kinds, TopicKind};

    fn of(topic: &Topic) -> Partition {
        Partition::of(topic.as_str())
    }

    fn gap(partitions: PartitionSet) -> Extent {
        Extent {
            partitions,
            kinds: Kinds::ALL,
            ..Extent::default()
        }
    }

    #[tokio::test]
    async fn a_gap_concerns_whoever_is_reached_by_a_topic_of_it_and_nobody_else() {
        let cluster = crate::Cluster::builder().start();
        let broadcaster = cluster.broadcaster();
        let local = &broadcaster.node().local;
        let alice = local.reserve("alice".into()).await.unwrap().0;
        let (handler, _driver, mut registration) = alice.register(None, None, None);
        let socket = handler.sender();
        let (room, left) = (Topic::room("tea").unwrap(), Topic::room("milk").unwrap());
        for joined in [&room, &left] {
            local.begin_join(&socket, joined).unwrap();
        }
        assert!(local.leave(&socket, &left));
        let (user, own) = (socket.topic().clone(), Topic::node(local.node));
        let reached = [&user, &room, &local.all, &own];
        let rest = Partition::all().filter(|partition| !reached.map(of).contains(partition));
        let rest = gap(rest.collect());
        let concerns = |extent: &Extent| {
            let now = Instant::now();
            let span = (now - Duration::from_secs(1), now);
            let gap = Gap::between(span, extent.clone(), now, SystemTime::now());
            local.is_concerned(&socket, &gap)
        };
        let check = |when: &str| {
            for topic in reached {
                let there = gap([of(topic)].into_iter().collect());
                assert!(concerns(&there), "{when}: {topic:?}");
            }
            assert!(!concerns(&rest), "{when}");
            for (topic, is_concerned) in [(&room, true), (&left, false)] {
                let alone = Extent {
                    topics: vec![topic.clone()],
                    ..Extent::default()
                };
                assert_eq!(concerns(&alone), is_concerned, "{when}: {topic:?} alone");
            }
            let of_others = Extent {
                kinds: [TopicKind::Node].into_iter().collect(),
                ..gap(PartitionSet::all())
            };
            assert!(!concerns(&of_others), "{when}: what nodes say to nodes");
            let number = socket.id().number;
            for (first, is_concerned) in [(number, true), (number + 1, false)] {
                let late = Extent {
                    newcomers: Some(first),
                    ..Extent::default()
                };
                assert_eq!(
                    concerns(&late),
                    is_concerned,
                    "{when}: news from {first} on"
                );
            }
        };
        check("open");
        registration.unregister(&reason::RESTART);
        check("ended");
    }
}
