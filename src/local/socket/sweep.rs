//! The end of the node, which keeps time for its sockets and has the last word.

use std::sync::Arc;
use std::time::Duration;

use super::outcome::Swept;
use super::{Sender, Shared};
use crate::local::expiry::Times;
use crate::local::heartbeat::HeartbeatTimes;
use crate::model::close::reason;

/// Ends the socket when time demands it, with or without a word.
#[derive(Debug, Clone)]
pub(crate) struct SweepEnd(pub(super) Arc<Shared>);

impl SweepEnd {
    /// The socket as others reach it.
    pub(crate) fn sender(&self) -> Sender {
        Sender(self.0.clone())
    }

    /// Does what time demands: pings, gives up the silent and the stalled, ends what has expired. Time in
    /// which the process slept is demanded of nobody; an identity expires all the same.
    pub(crate) fn sweep(&self, clock: Times, slept: Duration, times: &HeartbeatTimes) -> Swept {
        let number = self.0.id.number;
        self.0
            .change(|core| core.sweep(clock, slept, times, number))
    }

    /// The node is at its end: the stream is dropped, whatever is still to be said.
    pub(crate) fn cut(&self) {
        self.0.change(|core| core.cut(reason::STOPPED));
    }
}
