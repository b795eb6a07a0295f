//! What a publication takes of the queue, and gives back.

use std::mem::take;
use std::sync::Arc;

use super::Queue;
use crate::bus::redis::publication::Publication;

/// What may be queued, in units of [`UNIT`] bytes of payload; every publication takes at least one.
pub(super) const QUEUE: usize = 64 * 1024;
/// What of it large unions may take: whoever sends to one user finds room beside them.
pub(super) const LARGE: usize = QUEUE / 4;
pub(super) const UNIT: usize = 1024;

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Units {
    pub(super) all: usize,
    /// The units of large unions among them.
    pub(super) large: usize,
}

/// What a publication takes of the queue. Given back when dropped.
#[derive(Debug)]
pub(in crate::bus::redis) struct Permit {
    pub(super) units: Units,
    pub(super) queue: Arc<Queue>,
}

impl Units {
    pub(super) fn of(publication: &Publication) -> Self {
        let units = publication.channels.len() * (1 + publication.envelope.len() / UNIT);
        match () {
            // There is one at a time.
            () if publication.is_probe => Self::default(),
            () if publication.is_large() => Self {
                all: units.min(LARGE),
                large: units.min(LARGE),
            },
            () => Self {
                all: units.min(QUEUE),
                large: 0,
            },
        }
    }
}

impl Permit {
    /// Makes one permit of two, which are given back at once: each time takes a lock. One of another queue is given back
    /// to that.
    pub(in crate::bus::redis) fn merge(&mut self, mut other: Self) {
        if !Arc::ptr_eq(&self.queue, &other.queue) {
            return;
        }
        let more = take(&mut other.units);
        self.units.all += more.all;
        self.units.large += more.large;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.units.all > 0 {
            self.queue.change(|state| state.release(self.units));
        }
    }
}
