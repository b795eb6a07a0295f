//! What proves that the bus works: a probe that came back on the link that listens, and was taken by a server that is no
//! replica.
//!
//! Both are learned on different connections, in either order. Several probes may be out, and only the last is asked
//! after: one that came back late proves what it would have proved in time.
//!
//! ```text
//!             due             taken
//!   resting ------> publishing -----> out ---------+
//!      ^             |   |                         | came back
//!      |   failed    |   +--> back --> taken --+   |
//!      +-------------+         (came back)     v   v
//!      +------------------------------------- proven
//! ```

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::probe::{NextProbe, Probe};
use crate::bus::scope::Scope;
use crate::bus::wire::{self, Action};
use crate::model::id::NodeId;
use crate::model::manner::Manner;

pub(super) struct Proof {
    node: NodeId,
    interval: Duration,
    probe: Probe,
    /// Of the next probe.
    number: u64,
    /// Probes that may still come back, and when they were published.
    out: Vec<(Bytes, Instant)>,
    /// A probe to be published.
    due: Option<Bytes>,
    /// The last one is not taken yet.
    publishing: bool,
    /// When that was published which came back first, until it proves something.
    returned: Option<Instant>,
}

impl Proof {
    /// `number` is a random one, so that no probe of an earlier link is taken for one of this.
    pub(super) fn new(node: NodeId, interval: Duration, number: u64, now: Instant) -> Self {
        Self {
            node,
            interval,
            probe: Probe::new(interval, now),
            number,
            out: Vec::new(),
            due: None,
            publishing: false,
            returned: None,
        }
    }

    /// Only a probe that is published from now on proves something.
    pub(super) fn begin_anew(&mut self, now: Instant) {
        self.probe = Probe::new(self.interval, now);
        self.out.clear();
        self.returned = None;
    }

    /// Publishes what is due; when to look again, or nothing if the link is dead.
    pub(super) fn advance(&mut self, now: Instant) -> Option<Instant> {
        loop {
            match self.probe.poll(now) {
                NextProbe::Wait(until) => return Some(until),
                NextProbe::Lost => return None,
                NextProbe::Send => {
                    let probe = self.numbered();
                    self.out.push((probe.clone(), now));
                    self.due = Some(probe);
                }
            }
        }
    }

    /// No two are alike.
    fn numbered(&mut self) -> Bytes {
        let number = Some(self.number);
        self.number = self.number.wrapping_add(1);
        wire::encode(
            self.node,
            number,
            &Scope::default(),
            &Manner::InTurn,
            &Action::Probe,
        )
    }

    /// A probe to be published now.
    pub(super) fn poll(&mut self) -> Option<Bytes> {
        let probe = self.due.take()?;
        self.publishing = true;
        Some(probe)
    }

    /// The last one was taken by a server that is no replica.
    pub(super) fn taken(&mut self) {
        self.publishing = false;
    }

    /// The last one was not published, or perhaps not.
    pub(super) fn failed(&mut self, now: Instant) {
        self.publishing = false;
        self.returned = None;
        self.out.clear();
        self.probe.unsent(now);
    }

    /// Whether this payload is one of the probes, come back.
    pub(super) fn returned(&mut self, payload: &[u8], now: Instant) -> bool {
        let Some(at) = self.out.iter().position(|(probe, _)| *probe == payload) else {
            return false;
        };
        let (_, published) = self.out.swap_remove(at);
        self.out.clear();
        self.probe.returned(now);
        self.returned.get_or_insert(published);
        true
    }

    /// When the probe was published that proves the bus, said once.
    pub(super) fn proven(&mut self) -> Option<Instant> {
        match self.publishing {
            true => None,
            false => self.returned.take(),
        }
    }

    /// Something looks wrong: probe now rather than later.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.probe.hurry(now);
    }
}
