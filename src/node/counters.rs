//! What a node counts, and what it reads off its parts.

use std::sync::atomic::Ordering::Relaxed;

use super::Node;
use crate::counts::{Counted, Gauges, Stats};

impl Node {
    /// Whether it is the first of its kind.
    pub(crate) fn count_refusal(&self, what: Counted) -> bool {
        self.counters.note_refusal(what)
    }

    /// True once.
    pub(crate) fn is_first_without_user(&self) -> bool {
        !self.said_no_user.swap(true, Relaxed)
    }

    pub(crate) fn stats(&self) -> Stats {
        let probe_age = self.outage.lock().proven_at().elapsed();
        let nodes = 1 + self.members.lock().ids().count() as u64;
        let queue = self.bus.queued() as u64;
        let registry = self.registry.read();
        self.counters.stats(Gauges {
            sockets: registry.sockets() as u64,
            users: registry.users() as u64,
            rooms: registry.rooms() as u64,
            nodes,
            bus_probe_age_millis: probe_age.as_millis() as u64,
            bus_publish_queue: queue,
        })
    }
}
