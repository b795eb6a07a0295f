//! Where the primary is, for everything that talks to it, and whether what is open still leads there.
//!
//! Every connection is opened by [`Endpoint::connect`] to what [`primary`](Topology::primary) says: the one that
//! listens, the one that publishes, and those for questions and seats. Today that is one address, whose name or proxy
//! may lead elsewhere at any time; a sentinel's answer, or the owner of a topic's part in a cluster, would be told
//! here as well, and to the link as an end. What is said on a link and what a reply means is no concern of it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::endpoint::{Endpoint, Stream};

/// The Redis of one node. No connection of a node outlives a change of the primary, whichever learns of it first.
#[derive(Debug)]
pub(super) struct Topology {
    primary: Arc<Endpoint>,
    /// Raised whenever everything that is open may be on another server than what is opened next.
    generation: AtomicU64,
    probe_asked: Notify,
}

impl Topology {
    /// A single server.
    pub(super) fn single(primary: Arc<Endpoint>) -> Self {
        Self {
            primary,
            generation: AtomicU64::new(0),
            probe_asked: Notify::new(),
        }
    }

    /// Opens a connection beside the one that listens. What was open before may be on another server, and is looked
    /// after.
    pub(super) async fn connect(&self) -> io::Result<Pin<Box<dyn Stream>>> {
        let stream = self.primary.connect().await?;
        self.probe_now();
        Ok(stream)
    }

    /// Something failed, or may lead elsewhere: whether the bus works at all is to be found out soon.
    pub(super) fn probe_now(&self) {
        self.probe_asked.notify_one();
    }

    /// Resolves after a [`probe_now`](Self::probe_now).
    pub(super) fn probe_asked(&self) -> Notified<'_> {
        self.probe_asked.notified()
    }

    /// What to connect to.
    pub(super) fn primary(&self) -> &Endpoint {
        &self.primary
    }

    /// What is opened now is of this generation.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The bus listens on a new connection, to a server that is no replica: what was opened before follows.
    /// (Not when it connects: a server that refuses every greeting would end all links again and again.)
    pub(super) fn moved(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// A connection of this generation met the wrong server, or its end: whatever else is of it is left too.
    pub(super) fn leave(&self, generation: u64) {
        // Fails where it was left already.
        let _ = self.generation.compare_exchange(
            generation,
            generation + 1,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_left_once_however_many_meet_the_wrong_server() {
        let endpoint = Endpoint::parse("redis://localhost").unwrap();
        let topology = Topology::single(Arc::new(endpoint));
        let opened = topology.generation();
        topology.leave(opened);
        let after = topology.generation();
        assert_ne!(opened, after);
        topology.leave(opened);
        assert_eq!(topology.generation(), after, "others are on it by now");
        topology.moved();
        assert_ne!(topology.generation(), after);
    }
}
