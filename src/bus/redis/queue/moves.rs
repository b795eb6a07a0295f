//! In a Redis Cluster a partition may move to another primary, and with it what waits to be published there. The order
//! is kept: the queue that it comes to holds back what arrives for it until the other one is through, which sends after
//! what it still has, and sends on whoever comes late.
//!
//! ```text
//!   old:  arrived ----> its publisher: none of it is in a pipeline any more --+   handed over, in order
//!          |  left: who comes now is sent on                                  v
//!   new:   +------------------> held -----------------------------------> arrived, behind what was handed over
//! ```

use std::sync::Arc;

use super::{Queue, Queued, State, Waiter};
use crate::bus::redis::publication::Publication;
use crate::model::partition::Partition;

/// What waits behind another publisher.
#[derive(Debug)]
pub(super) struct Held {
    number: u64,
    pub(super) queued: Vec<Queued>,
}

/// A partition that leaves for another queue.
#[derive(Debug, Clone)]
pub(in crate::bus::redis) struct Departure {
    pub(in crate::bus::redis) partition: Partition,
    to: Arc<Queue>,
    /// It was held itself when it left: what the other publisher has goes first.
    behind: Option<u64>,
    /// Who had an earlier ticket waits for room here.
    ticket: u64,
}

impl Queue {
    /// Holds a partition back until [`hand`](Self::hand) says that its old publisher is through with it.
    pub(in crate::bus::redis) fn hold(&self, partition: Partition) {
        let mut state = self.state.lock();
        state.left.remove(&partition);
        let number = state.next_hold;
        state.next_hold += 1;
        let queued = Vec::new();
        let before = state.held.insert(partition, Held { number, queued });
        // It went away and came back before anything was handed over.
        let queued = before.map_or_else(Vec::new, |held| held.queued);
        if let Some(held) = state.held.get_mut(&partition) {
            held.queued = queued;
        }
    }

    /// A partition is at another queue now, which holds it. Its publisher hands over what it has.
    pub(in crate::bus::redis) fn depart(&self, partition: Partition, to: &Arc<Self>) {
        let mut state = self.state.lock();
        let departure = Departure {
            partition,
            to: to.clone(),
            behind: state.held.get(&partition).map(|held| held.number),
            ticket: state.next_ticket,
        };
        state.departures.push(departure);
        state.left.insert(partition, to.clone());
        drop(state);
        self.filled.notify_one();
    }

    /// All its partitions have departed.
    pub(in crate::bus::redis) fn retire(&self) {
        self.state.lock().is_retired = true;
        self.filled.notify_one();
    }

    /// Whether nothing will come, and all is handed over.
    pub(in crate::bus::redis) fn is_over(&self) -> bool {
        let state = self.state.lock();
        state.is_retired && state.departures.is_empty()
    }

    /// Hands over what the publisher had of a partition that departs; the departure is over when nothing more can come.
    pub(in crate::bus::redis) fn hand_over(&self, departure: &Departure, what: Vec<(Publication, Waiter)>) {
        let is_through = {
            let mut state = self.state.lock();
            let is_through = state.is_through(departure);
            if is_through {
                let number = |one: &Departure| (one.partition, one.ticket, one.behind);
                state.departures.retain(|one| number(one) != number(departure));
            }
            is_through
        };
        if is_through || !what.is_empty() {
            departure.to.hand(departure.partition, what, is_through);
        }
    }

    fn hand(&self, partition: Partition, what: Vec<(Publication, Waiter)>, is_through: bool) {
        let is_filled = {
            let mut state = self.state.lock();
            state.handed.extend(what);
            if is_through && let Some(held) = state.held.remove(&partition) {
                state.arrived.extend(held.queued);
            }
            !state.handed.is_empty() || !state.arrived.is_empty() || !state.departures.is_empty()
        };
        if is_filled {
            self.filled.notify_one();
        }
    }
}

impl State {
    /// Where the partition is, if it was here.
    pub(super) fn elsewhere(&self, publication: &Publication) -> Option<Arc<Queue>> {
        let partition = publication.partition.filter(|_| !self.left.is_empty())?;
        self.left.get(&partition).cloned()
    }

    /// Whether nothing more can come of what departed, but what the publisher has.
    fn is_through(&self, departure: &Departure) -> bool {
        let Departure {
            partition,
            behind,
            ticket,
            ..
        } = departure;
        let held = self.held.get(partition);
        let is_behind = held.is_some_and(|held| Some(held.number) == *behind);
        let mut waiting = self.small.range(..ticket).chain(self.large.range(..ticket));
        let concerns = |queued: &Queued| queued.publication.partition == Some(*partition);
        // Once it is back, they are admitted here, in their order.
        let waits = self.left.contains_key(partition) && waiting.any(|(_, it)| concerns(it));
        !is_behind && !waits
    }
}
