//! The bus within one process: a publish is a plain call into the other nodes.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{self, BoxFuture};
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{Bus, BusSettings, Confirmation, Listener, Published};
use crate::bus::outage::LinkId;
use crate::bus::scope::Size;
use crate::model::error::PublishError;
use crate::model::id::{NodeId, SocketId};
use crate::model::topic::{Namespace, Topic};
use crate::quota::{Decision, SeatLimit, Seats};

/// What several nodes share: who wants which channel, and which sockets hold the seats of a user,
/// oldest first.
#[derive(Default)]
pub(crate) struct Hub {
    channels: RwLock<HashMap<String, SmallVec<[Interest; 1]>>>,
    seats: Mutex<HashMap<String, Vec<SocketId>>>,
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
    limit: Option<SeatLimit>,
    listener: RwLock<Option<Weak<dyn Listener>>>,
}

impl MemoryBus {
    pub(crate) fn new(hub: Arc<Hub>, node: NodeId, settings: BusSettings) -> Self {
        Self {
            hub,
            node,
            namespace: settings.namespace,
            limit: settings.seats,
            listener: RwLock::default(),
        }
    }

    fn leave(&self) {
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
    ) -> BoxFuture<'static, Result<Published, PublishError>> {
        let mut nodes = 0;
        for topic in &topics {
            let listeners: SmallVec<[Weak<dyn Listener>; 4]> = {
                let channels = self.hub.channels.read();
                let interests = channels.get(&self.namespace.channel(topic));
                let others = interests
                    .into_iter()
                    .flatten()
                    .filter(|i| i.node != self.node);
                others.map(|interest| interest.listener.clone()).collect()
            };
            for listener in listeners.iter().filter_map(Weak::upgrade) {
                listener.heard(topic.as_str(), &envelope);
                while listener.flush() {}
                nodes += 1;
            }
        }
        let comes_back = false;
        future::ready(Ok(Published { nodes, comes_back })).boxed()
    }

    fn listening<'a>(&'a self, topics: &'a [Topic]) -> BoxFuture<'a, Result<Vec<usize>, Arc<str>>> {
        let channels = self.hub.channels.read();
        let nodes = topics.iter().map(|topic| {
            let interests = channels.get(&self.namespace.channel(topic));
            interests.map_or(0, SmallVec::len)
        });
        future::ready(Ok(nodes.collect())).boxed()
    }

    fn heard_until(&self, _proven: Instant) -> Instant {
        Instant::now()
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
        let mut seats = self.hub.seats.lock();
        let held = seats.entry(self.namespace.channel(user)).or_default();
        let room = self
            .limit
            .map_or(Some(0), |limit| limit.make_room(held.len()));
        let replaced = room.map(|over| {
            let replaced: Vec<SocketId> = held.drain(..over).collect();
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
        let checked = true;
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
