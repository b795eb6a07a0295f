//! The bus within one process: a publish is a plain call into the other nodes.

mod archive;
#[cfg(not(feature = "testing"))]
#[path = "no_faults.rs"]
mod faults;
#[cfg(feature = "testing")]
mod faults;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{self, BoxFuture};
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use self::archive::Archive;
use self::faults::{CUT, Faults};
use super::{Bus, BusSettings, Confirmation, Listener, Published};
use crate::bus::outage::LinkId;
use crate::bus::past::{Keep, Past, ReadLimits};
use crate::bus::scope::Size;
use crate::model::error::PublishError;
use crate::model::history::mark::{Clock, Marks};
use crate::model::history::token::Key;
use crate::model::history::{Histories, History};
use crate::model::id::{NodeId, SocketId};
use crate::model::topic::{Namespace, Topic};
use crate::quota::{Decision, SeatLimit, Seats};

/// What several nodes share: who wants which channel, and which sockets hold the seats of a user,
/// oldest first.
#[derive(Default)]
pub(crate) struct Hub {
    channels: RwLock<HashMap<String, SmallVec<[Interest; 1]>>>,
    seats: Mutex<HashMap<String, Vec<SocketId>>>,
    faults: RwLock<Faults>,
    archive: Archive,
}

/// One publication.
#[derive(Debug)]
struct Parcel {
    from: NodeId,
    topics: SmallVec<[(Topic, String); 1]>,
    envelope: Bytes,
    /// How it is kept, and where.
    keep: Option<Box<(Keep, Places)>>,
    /// Its publisher keeps, so that it has its place among what is kept.
    in_turn: bool,
}

/// Lists, and what each keeps.
type Places = SmallVec<[(String, History); 1]>;

impl Hub {
    /// Tells all who want it, but for who published it and who is cut off.
    fn deliver(&self, parcel: &Parcel) -> Result<Published, PublishError> {
        if self.faults.read().is_cut(parcel.from) {
            return Err(PublishError::not_sent(CUT));
        }
        match &parcel.keep {
            Some(keep) => Ok(self.keep(parcel, &keep.0, &keep.1)),
            None if parcel.in_turn => Ok(self.pass_in_turn(parcel)),
            None => Ok(self.pass(parcel)),
        }
    }

    /// Keeps it, and tells all who want it, its publisher as well.
    fn keep(&self, parcel: &Parcel, keep: &Keep, places: &Places) -> Published {
        let (nodes, comes_back) = self.count(parcel);
        let (mark, tells) = self.archive.add(parcel, keep, places);
        if tells {
            self.tell();
        }
        Published {
            nodes,
            comes_back,
            mark: Some((Clock::default(), mark)),
            later: None,
        }
    }

    fn pass_in_turn(&self, parcel: &Parcel) -> Published {
        let (nodes, comes_back) = self.count(parcel);
        if self.archive.pass(parcel) {
            self.tell();
        }
        Published {
            nodes,
            comes_back,
            ..Published::default()
        }
    }

    /// Who will hear it: so many others, and perhaps its publisher.
    fn count(&self, parcel: &Parcel) -> (usize, bool) {
        let (mut nodes, mut comes_back) = (0, false);
        for (_, channel) in &parcel.topics {
            nodes += self.others(channel, parcel.from).len();
            comes_back |= !self
                .who_wants(channel, |it| it.node == parcel.from)
                .is_empty();
        }
        (nodes, comes_back)
    }

    fn pass(&self, parcel: &Parcel) -> Published {
        let mut nodes = 0;
        for (topic, channel) in &parcel.topics {
            let listeners = self.others(channel, parcel.from);
            for listener in listeners.iter().filter_map(Weak::upgrade) {
                listener.heard(topic.as_str(), None, &parcel.envelope);
                while listener.flush() {}
                nodes += 1;
            }
        }
        Published {
            nodes,
            ..Published::default()
        }
    }

    fn others(&self, channel: &str, from: NodeId) -> SmallVec<[Weak<dyn Listener>; 4]> {
        self.who_wants(channel, |interest| interest.node != from)
    }

    fn listeners(&self, channel: &str) -> impl Iterator<Item = Arc<dyn Listener>> {
        let wants = self.who_wants(channel, |_| true).into_iter();
        wants.filter_map(|listener| listener.upgrade())
    }

    /// But for who is cut off.
    fn who_wants(
        &self,
        channel: &str,
        is_meant: impl Fn(&Interest) -> bool,
    ) -> SmallVec<[Weak<dyn Listener>; 4]> {
        let (channels, faults) = (self.channels.read(), self.faults.read());
        let interests = channels.get(channel).into_iter().flatten();
        let meant = interests.filter(|it| is_meant(it) && !faults.is_cut(it.node));
        meant.map(|interest| interest.listener.clone()).collect()
    }

    /// A node wants its own topic at least.
    fn listener(&self, node: NodeId) -> Option<Arc<dyn Listener>> {
        let channels = self.channels.read();
        let mut interests = channels.values().flatten();
        let interest = interests.find(|interest| interest.node == node);
        interest.and_then(|interest| interest.listener.upgrade())
    }
}

struct Interest {
    node: NodeId,
    reasons: usize,
    listener: Weak<dyn Listener>,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("channels", &self.channels.read().len())
            .finish()
    }
}

/// One node's end of a hub.
#[derive(Debug)]
pub(crate) struct MemoryBus {
    hub: Arc<Hub>,
    node: NodeId,
    namespace: Namespace,
    publish_timeout: Duration,
    limit: Option<SeatLimit>,
    histories: Histories,
    listener: RwLock<Option<Weak<dyn Listener>>>,
}

impl MemoryBus {
    pub(crate) fn new(hub: Arc<Hub>, node: NodeId, settings: BusSettings) -> Self {
        Self {
            hub,
            node,
            namespace: settings.namespace,
            publish_timeout: settings.publish_timeout,
            limit: settings.seats,
            histories: settings.histories,
            listener: RwLock::default(),
        }
    }

    /// Where what is sent to a topic is kept, if it is.
    fn place(&self, topic: &Topic) -> Option<(String, History)> {
        let history = self.histories.of(topic.kind())?;
        Some((self.namespace.channel(topic), history))
    }

    fn leave(&self) {
        self.hub.faults.write().forget(self.node);
        self.hub.channels.write().retain(|_, interests| {
            interests.retain(|interest| interest.node != self.node);
            !interests.is_empty()
        });
        self.hub.seats.lock().retain(|_, held| {
            held.retain(|socket| socket.node != self.node);
            !held.is_empty()
        });
    }

    fn socket(&self, number: u64) -> SocketId {
        SocketId {
            node: self.node,
            number,
        }
    }
}

/// Waits for what is on its way as long as a publication may take.
async fn in_time(
    deadline: Duration,
    arrival: oneshot::Receiver<Result<Published, PublishError>>,
) -> Result<Published, PublishError> {
    let arrived = match Handle::try_current() {
        Ok(_) => timeout(deadline, arrival).await.ok(),
        // The caller has no timer.
        Err(_) => Some(arrival.await),
    };
    arrived.and_then(Result::ok).unwrap_or_else(|| {
        Err(PublishError {
            maybe_sent: true,
            ..PublishError::not_sent(LATE)
        })
    })
}

const LATE: &str = "it did not arrive in time: `MemoryHub::delay` is longer than `publish_timeout`, or too much is on its way";

impl Bus for MemoryBus {
    fn start(&self, listener: Weak<dyn Listener>) {
        *self.listener.write() = Some(listener.clone());
        if let Some(listener) = listener.upgrade() {
            listener.up(LinkId::ONLY, Instant::now());
        }
    }

    fn want(&self, topic: &Topic) -> Confirmation {
        let Some(listener) = self.listener.read().clone() else {
            return Confirmation::NotAwaited;
        };
        let mut channels = self.hub.channels.write();
        let interests = channels.entry(self.namespace.channel(topic)).or_default();
        match interests
            .iter_mut()
            .find(|interest| interest.node == self.node)
        {
            Some(interest) => interest.reasons += 1,
            None => interests.push(Interest {
                node: self.node,
                reasons: 1,
                listener,
            }),
        }
        Confirmation::NotAwaited
    }

    fn release(&self, topic: &Topic) {
        let channel = self.namespace.channel(topic);
        let mut channels = self.hub.channels.write();
        let Some(interests) = channels.get_mut(&channel) else {
            return;
        };
        let Some(at) = interests.iter().position(|i| i.node == self.node) else {
            return;
        };
        interests[at].reasons -= 1;
        if interests[at].reasons == 0 {
            interests.swap_remove(at);
        }
        if interests.is_empty() {
            channels.remove(&channel);
        }
    }

    fn prove_anew(&self) {}

    fn publish(
        &self,
        topics: SmallVec<[Topic; 1]>,
        envelope: Bytes,
        _: Size,
        keep: Option<Keep>,
    ) -> BoxFuture<'static, Result<Published, PublishError>> {
        let keep = keep.map(|keep| {
            let topics = match &keep {
                Keep::Each => &topics,
                Keep::Union(kept) | Keep::Silent(kept) => kept,
            };
            let places = topics.iter().filter_map(|topic| self.place(topic));
            let places = places.collect();
            Box::new((keep, places))
        });
        let named = topics.into_iter().map(|topic| {
            let channel = self.namespace.channel(&topic);
            (topic, channel)
        });
        let parcel = Parcel {
            from: self.node,
            topics: named.collect(),
            envelope,
            keep,
            in_turn: !self.histories.is_off(),
        };
        let posted = self.hub.faults.read().post(parcel);
        match posted {
            Err(parcel) => future::ready(self.hub.deliver(&parcel)).boxed(),
            Ok(arrival) => in_time(self.publish_timeout, arrival).boxed(),
        }
    }

    fn clock(&self, _: &Topic) -> Clock {
        Clock::default()
    }

    fn read<'a>(
        &'a self,
        topics: &'a [Topic],
        since: Option<&'a Marks>,
        limits: ReadLimits,
    ) -> BoxFuture<'a, Result<Past, Arc<str>>> {
        let places = topics.iter().map(|topic| self.place(topic));
        let is_cut = self.hub.faults.read().is_cut(self.node);
        let read = match is_cut {
            false => Ok(self.hub.archive.read(places, since, limits)),
            true => Err(CUT.into()),
        };
        future::ready(read).boxed()
    }

    fn key(&self) -> BoxFuture<'_, Result<Key, Arc<str>>> {
        let is_cut = self.hub.faults.read().is_cut(self.node);
        let key = match is_cut {
            false => Ok(self.hub.archive.key().within(self.namespace.as_str())),
            true => Err(CUT.into()),
        };
        future::ready(key).boxed()
    }

    fn probe(&self, _: LinkId) {
        if self.hub.archive.probe(self.node) {
            self.hub.tell();
        }
    }

    fn listening<'a>(&'a self, topics: &'a [Topic]) -> BoxFuture<'a, Result<Vec<usize>, Arc<str>>> {
        let (channels, faults) = (self.hub.channels.read(), self.hub.faults.read());
        let nodes = topics.iter().map(|topic| {
            let interests = channels.get(&self.namespace.channel(topic));
            let there = interests.into_iter().flatten();
            there.filter(|it| !faults.is_cut(it.node)).count()
        });
        let answer = match faults.is_cut(self.node) {
            false => Ok(nodes.collect()),
            true => Err(CUT.into()),
        };
        future::ready(answer).boxed()
    }

    fn heard_until(&self, _proven: Instant) -> Instant {
        self.hub.faults.read().heard_until(Instant::now())
    }

    fn queued(&self) -> usize {
        0
    }

    fn seats(&self) -> Option<&dyn Seats> {
        self.limit.map(|_| self as &dyn Seats)
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        *self.listener.write() = None;
        self.leave();
        future::ready(()).boxed()
    }
}

impl Seats for MemoryBus {
    fn claim(&self, user: &Topic, number: u64) -> BoxFuture<'_, Decision> {
        // Cut off, a node counts its own, as without Redis.
        let checked = !self.hub.faults.read().is_cut(self.node);
        let counts = |socket: &SocketId| checked || socket.node == self.node;
        let mut seats = self.hub.seats.lock();
        let held = seats.entry(self.namespace.channel(user)).or_default();
        let count = held.iter().filter(|socket| counts(socket)).count();
        let room = self.limit.map_or(Some(0), |limit| limit.make_room(count));
        let replaced = room.map(|over| {
            let oldest = held.iter().copied().filter(counts).take(over);
            let replaced: Vec<SocketId> = oldest.collect();
            held.retain(|socket| !replaced.contains(socket));
            held.push(self.socket(number));
            replaced
        });
        drop(seats);
        let granted = replaced.map(|replaced| {
            let (own, others): (Vec<SocketId>, _) = replaced
                .into_iter()
                .partition(|socket| socket.node == self.node);
            let listener = self.listener.read().as_ref().and_then(Weak::upgrade);
            if let Some(listener) = listener {
                own.iter()
                    .for_each(|socket| listener.replaced(socket.number));
            }
            others
        });
        future::ready(Decision { granted, checked }).boxed()
    }

    fn release(&self, user: &Topic, number: u64) {
        let channel = self.namespace.channel(user);
        let mut seats = self.hub.seats.lock();
        let Some(held) = seats.get_mut(&channel) else {
            return;
        };
        held.retain(|socket| *socket != self.socket(number));
        if held.is_empty() {
            seats.remove(&channel);
        }
    }

    fn holds(&self, user: &Topic, number: u64) -> bool {
        let seats = self.hub.seats.lock();
        let held = seats.get(&self.namespace.channel(user));
        held.is_some_and(|held| held.contains(&self.socket(number)))
    }
}

impl Drop for MemoryBus {
    fn drop(&mut self) {
        self.leave();
    }
}
