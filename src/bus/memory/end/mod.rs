//! What one node has of a hub.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{self, BoxFuture};
use parking_lot::RwLock;
use smallvec::SmallVec;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::faults::CUT;
use super::{Hub, HubInterest, Parcel};
use crate::bus::outage::LinkId;
use crate::bus::past::{Keep, Past, ReadLimits};
use crate::bus::scope::Size;
use crate::bus::{
    Archive, Bus, BusSettings, Confirmation, Hearing, Interests, Links, Listener, Publish,
    Published,
};
use crate::model::error::PublishError;
use crate::model::history::mark::{Clock, Marks};
use crate::model::history::token::Key;
use crate::model::history::{Histories, History};
use crate::model::id::{NodeId, SocketId};
use crate::model::topic::{Namespace, Topic};
use crate::quota::{SeatLimit, Seats};

mod seats;

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

    fn stop(&self) -> BoxFuture<'_, ()> {
        *self.listener.write() = None;
        self.leave();
        future::ready(()).boxed()
    }
}

impl Interests for MemoryBus {
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
            None => interests.push(HubInterest {
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

    fn seats(&self) -> Option<&dyn Seats> {
        self.limit.map(|_| self as &dyn Seats)
    }
}

impl Publish for MemoryBus {
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

    fn queued(&self) -> usize {
        0
    }
}

impl Archive for MemoryBus {
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
}

impl Links for MemoryBus {
    fn probe(&self, _: LinkId) {
        if self.hub.archive.probe(self.node) {
            self.hub.tell();
        }
    }

    fn heard_until(&self, _proven: Instant) -> Instant {
        self.hub.faults.read().heard_until(Instant::now())
    }
}

impl Hearing for MemoryBus {
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
}

impl Drop for MemoryBus {
    fn drop(&mut self) {
        self.leave();
    }
}
