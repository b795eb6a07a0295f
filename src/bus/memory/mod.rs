//! The bus within one process: a publish is a plain call into the other nodes.

mod archive;
mod end;
#[cfg(not(feature = "testing"))]
#[path = "no_faults.rs"]
mod faults;
#[cfg(feature = "testing")]
mod faults;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;

use self::archive::HubArchive;
pub(crate) use self::end::MemoryBus;
use self::faults::{CUT, Faults};
use super::{Listener, Published};
use crate::bus::past::Keep;
use crate::model::error::PublishError;
use crate::model::history::History;
use crate::model::history::mark::Clock;
use crate::model::id::{NodeId, SocketId};
use crate::model::topic::Topic;

/// What several nodes share: who wants which channel, and which sockets hold the seats of a user,
/// oldest first.
#[derive(Default)]
pub(crate) struct Hub {
    channels: RwLock<HashMap<String, SmallVec<[HubInterest; 1]>>>,
    seats: Mutex<HashMap<String, Vec<SocketId>>>,
    faults: RwLock<Faults>,
    archive: HubArchive,
}

/// One publication.
#[derive(Debug)]
struct Parcel {
    from: NodeId,
    topics: SmallVec<[(Topic, String); 1]>,
    envelope: Bytes,
    /// How it is kept, and where.
    keep: Option<Box<(Keep, KeptLists)>>,
    /// Its publisher keeps, so that it has its place among what is kept.
    in_turn: bool,
}

/// Lists, and what each keeps.
type KeptLists = SmallVec<[(String, History); 1]>;

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
    fn keep(&self, parcel: &Parcel, keep: &Keep, places: &KeptLists) -> Published {
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

    /// The listeners of a channel, but for those that are cut off.
    fn who_wants(
        &self,
        channel: &str,
        is_meant: impl Fn(&HubInterest) -> bool,
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

struct HubInterest {
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
