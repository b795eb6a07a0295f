//! What Redis is asked and told, and what it says.

use std::collections::VecDeque;

use crate::model::id::SocketId;
use crate::model::topic::Topic;

/// Users and their seats as they are written.
pub(in crate::bus::redis::quota) type Writes = Vec<(Topic, String)>;

/// What Redis says to a claim.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::bus::redis::quota) enum Verdict {
    Granted {
        since: u64,
        replaced: Vec<SocketId>,
        /// No node was missing.
        whole: bool,
    },
    /// By those that are known, so that it holds whoever is missing.
    Refused { whole: bool },
    /// Not decided: Redis has lost the seats of these nodes. And its time, in milliseconds.
    Missing { nodes: Vec<String>, millis: u64 },
}

/// What Redis is asked and told in one pipeline: first the truth, then the claims.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::bus::redis::quota) struct Batch {
    pub(in crate::bus::redis::quota) writes: Writes,
    /// With them everything is written.
    pub(in crate::bus::redis::quota) whole: bool,
    pub(in crate::bus::redis::quota) claims: VecDeque<(Topic, u64)>,
}

impl Batch {
    pub(in crate::bus::redis::quota) fn is_empty(&self) -> bool {
        !self.has_writes() && self.claims.is_empty()
    }

    pub(in crate::bus::redis::quota) fn has_writes(&self) -> bool {
        self.whole || !self.writes.is_empty()
    }
}
