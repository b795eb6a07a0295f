//! The room in front of the publisher, without any I/O: bounded in messages and bytes alike, and given in the
//! order of the calls.
//!
//! Whoever waits for room leaves here what it publishes, and takes it away when it gives up. So what waits is as much
//! as callers hold, and yet the order is that of the calls: with a semaphore it would be that of the polls in which
//! each finds that it has room.
//!
//! ```text
//!             room, and nobody before it                      the publisher looks
//!  enqueue ------------------------------------> arrived ------------------------> its own, until Redis has answered:
//!     |                                             ^                              then the room is given back
//!     |  none: a ticket         it is next, and     |
//!     +------------------> waiting -----------------+
//!                             |     there is room
//!                             +--> taken away, by whoever gives up
//! ```
//! Next is whoever came first; but a large union that waits for others of its kind lets small ones pass. A closed queue
//! fails what is there, and what comes.

mod moves;
mod permit;
mod waiter;

use std::collections::BTreeMap;
use std::mem::{swap, take};
use std::num::NonZeroU32;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use self::moves::{Departure, HeldBehind};
pub(super) use self::permit::Permit;
use self::permit::{LARGE, QUEUE, Units};
pub(super) use self::waiter::Waiter;
use super::past::acknowledged::Acknowledged;
use super::publication::{Publication, PublicationAnswer};
use crate::model::error::PublishError;
use crate::model::partition::Partition;

/// Between those who publish and the task that does.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Something has room, and nothing had.
    pub(super) filled: Notify,
}

#[derive(Debug)]
struct State {
    free: Units,
    /// What has room, until the publisher takes it.
    arrived: Vec<Queued>,
    /// What another publisher had, and has handed over: before what arrived.
    handed: Vec<(Publication, Waiter)>,
    /// What another one had taken lately of what departed from it.
    acknowledged: Acknowledged,
    /// What has room, and must not pass what another publisher still has of its partition.
    held: BTreeMap<Partition, HeldBehind>,
    next_hold: u64,
    /// Of the partitions that came from another primary.
    eras: BTreeMap<Partition, NonZeroU32>,
    /// Where the partitions are that were here; without keeping alive what they have left since.
    left: BTreeMap<Partition, Weak<Queue>>,
    departures: Vec<Departure>,
    /// What waits for room, by its ticket.
    small: BTreeMap<u64, Queued>,
    large: BTreeMap<u64, Queued>,
    next_ticket: u64,
    /// Nothing comes any more that is not sent on.
    is_retired: bool,
    is_closed: bool,
}

/// What one publisher has of a partition, and another goes on with.
#[derive(Debug, Default)]
pub(super) struct HandedOver {
    pub(super) waiting: Vec<(Publication, Waiter)>,
    pub(super) acknowledged: Acknowledged,
}

/// A publication, and who waits for it.
#[derive(Debug)]
pub(super) struct Queued {
    publication: Publication,
    units: Units,
    deadline: Instant,
    reply: oneshot::Sender<PublicationAnswer>,
}

/// A place among those who wait for room. Given up when dropped.
#[derive(Debug)]
pub(super) struct Place {
    ticket: u64,
    is_large: bool,
    queue: Arc<Queue>,
}

impl Queue {
    /// Queues it, or gives it a place behind whoever waits for room already.
    pub(super) fn enqueue(
        self: &Arc<Self>,
        mut queued: Queued,
    ) -> Result<Option<Place>, PublishError> {
        let is_large = queued.publication.is_large();
        let mut queue = self.clone();
        loop {
            let enqueued = queue.change(|state| match state.elsewhere(&queued.publication) {
                Some(next) => Ok(Err((queued, next))),
                None => state.enqueue(queued).map(Ok),
            });
            match enqueued? {
                Ok(None) => return Ok(None),
                Ok(Some(ticket)) => {
                    return Ok(Some(Place {
                        ticket,
                        is_large,
                        queue,
                    }));
                }
                Err((sent_on, next)) => (queued, queue) = (sent_on, next),
            }
        }
    }

    /// Takes what has room. Into an empty one, whose memory is used again. Returns what others handed over, which comes
    /// before it, and what is to be handed over when that is taken.
    pub(super) fn take(&self, arrived: &mut Vec<Queued>) -> (HandedOver, Vec<Departure>) {
        let mut state = self.state.lock();
        swap(arrived, &mut state.arrived);
        let mut handed = take(&mut state.handed);
        if !state.eras.is_empty() {
            let handed = handed.iter_mut().map(|(publication, _)| publication);
            let arrived = arrived.iter_mut().map(|queued| &mut queued.publication);
            handed
                .chain(arrived)
                .for_each(|publication| publication.era = state.era(publication));
        }
        let handed = HandedOver {
            waiting: handed,
            acknowledged: take(&mut state.acknowledged),
        };
        (handed, state.departures.clone())
    }

    /// What has room and is not published, in units of 1 KiB.
    pub(super) fn taken(&self) -> usize {
        QUEUE - self.state.lock().free.all
    }

    /// Nothing is published any more.
    pub(super) fn close(&self) {
        let (arrived, waiting, handed) = self.change(|state| {
            state.is_closed = true;
            let (small, large) = (take(&mut state.small), take(&mut state.large));
            let waiting = small.into_values().chain(large.into_values());
            let held = take(&mut state.held).into_values();
            let mut arrived = take(&mut state.arrived);
            arrived.extend(held.flat_map(|held| held.queued));
            (arrived, waiting, take(&mut state.handed))
        });
        for (_, mut waiter) in handed {
            waiter.fail(&stopped());
        }
        for queued in arrived.into_iter().chain(waiting) {
            // Fails only when the sender gave up.
            let _ = queued.reply.send(Err(stopped()));
        }
    }

    /// The publisher is told afterwards if it has something to do.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let was_empty = state.arrived.is_empty();
        let changed = change(&mut state);
        let is_filled = was_empty && !state.arrived.is_empty();
        drop(state);
        if is_filled {
            self.filled.notify_one();
        }
        changed
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            free: Units {
                all: QUEUE,
                large: LARGE,
            },
            arrived: Vec::new(),
            handed: Vec::new(),
            acknowledged: Acknowledged::default(),
            held: BTreeMap::new(),
            next_hold: 0,
            eras: BTreeMap::new(),
            left: BTreeMap::new(),
            departures: Vec::new(),
            small: BTreeMap::new(),
            large: BTreeMap::new(),
            next_ticket: 0,
            is_retired: false,
            is_closed: false,
        }
    }
}

impl State {
    /// The ticket, if it has to wait.
    fn enqueue(&mut self, queued: Queued) -> Result<Option<u64>, PublishError> {
        if self.is_closed {
            return Err(stopped());
        }
        let is_large = queued.publication.is_large();
        let is_next = self.next().is_none() && self.waiting(is_large).is_empty();
        // The probe takes none: what others send must not make the link look dead.
        if queued.units.all == 0 || is_next && self.has_room(queued.units) {
            self.admit(queued);
            return Ok(None);
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting(is_large).insert(ticket, queued);
        Ok(Some(ticket))
    }

    fn release(&mut self, units: Units) {
        self.free.all += units.all;
        self.free.large += units.large;
        self.serve();
    }

    fn leave(&mut self, ticket: u64, is_large: bool) -> Option<Queued> {
        let left = self.waiting(is_large).remove(&ticket);
        self.serve();
        left
    }

    /// Gives room to those who are next.
    fn serve(&mut self) {
        while let Some((ticket, is_large, units)) = self.next()
            && self.has_room(units)
        {
            let queued = self.waiting(is_large).remove(&ticket);
            queued.into_iter().for_each(|queued| self.admit(queued));
        }
    }

    /// Who waits for room and is next: whoever came first, but large ones that wait for others of their kind.
    fn next(&self) -> Option<(u64, bool, Units)> {
        let small = self.small.first_key_value();
        let small = small.map(|(ticket, queued)| (*ticket, false, queued.units));
        let large = self.large.first_key_value();
        let large = large.map(|(ticket, queued)| (*ticket, true, queued.units));
        let large = large.filter(|(.., units)| units.large <= self.free.large);
        let both = small.into_iter().chain(large);
        both.min_by_key(|(ticket, ..)| *ticket)
    }

    fn has_room(&self, units: Units) -> bool {
        units.all <= self.free.all && units.large <= self.free.large
    }

    fn admit(&mut self, queued: Queued) {
        self.free.all -= queued.units.all;
        self.free.large -= queued.units.large;
        let partition = queued
            .publication
            .partition
            .filter(|_| !self.held.is_empty());
        match partition.and_then(|partition| self.held.get_mut(&partition)) {
            Some(held) => held.queued.push(queued),
            None => self.arrived.push(queued),
        }
    }

    fn waiting(&mut self, is_large: bool) -> &mut BTreeMap<u64, Queued> {
        match is_large {
            true => &mut self.large,
            false => &mut self.small,
        }
    }
}

impl Queued {
    pub(super) fn new(
        publication: Publication,
        deadline: Instant,
        reply: oneshot::Sender<PublicationAnswer>,
    ) -> Self {
        Self {
            units: Units::of(&publication),
            publication,
            deadline,
            reply,
        }
    }

    /// With whoever `waits` for it, and the permit for the room that it has taken.
    pub(super) fn admitted<W>(
        self,
        queue: &Arc<Queue>,
        waits: impl FnOnce(Instant, oneshot::Sender<PublicationAnswer>, Permit) -> W,
    ) -> (Publication, W) {
        let permit = Permit {
            units: self.units,
            queue: queue.clone(),
        };
        let waiter = waits(self.deadline, self.reply, permit);
        (self.publication, waiter)
    }
}

impl Place {
    /// Gives the place up; whether there was no room until now.
    pub(super) fn leave(&self) -> bool {
        let leave = |state: &mut State| state.leave(self.ticket, self.is_large);
        self.queue.change(leave).is_some()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

pub(super) fn stopped() -> PublishError {
    PublishError::not_sent("the cluster was shut down")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::task::{Context, Wake, Waker};
    use std::time::Duration;

    use bytes::Bytes;
    use futures::FutureExt;
    use smallvec::smallvec;

    use super::permit::UNIT;
    use super::*;
    use crate::bus::scope::Size;

    struct Call {
        /// If there is no room.
        place: Option<Place>,
        answer: oneshot::Receiver<PublicationAnswer>,
        envelope: Bytes,
    }

    fn publication(name: &str, units: usize, size: Size) -> Publication {
        let envelope = Bytes::from(vec![b'x'; (units - 1) * UNIT]);
        Publication::new(smallvec![name.to_owned()], envelope, size, None)
    }

    fn enqueue(queue: &Arc<Queue>, publication: Publication) -> Call {
        let (reply, answer) = oneshot::channel();
        let envelope = publication.envelope.clone();
        let queued = Queued::new(publication, Instant::now(), reply);
        Call {
            place: queue.enqueue(queued).unwrap(),
            answer,
            envelope,
        }
    }

    fn small(queue: &Arc<Queue>, name: &str, units: usize) -> Call {
        enqueue(queue, publication(name, units, Size::Small))
    }

    fn large(queue: &Arc<Queue>, name: &str, units: usize) -> Call {
        enqueue(queue, publication(name, units, Size::Large))
    }

    /// What the publisher takes over, by its channel, and the permits.
    fn taken(queue: &Arc<Queue>) -> (Vec<String>, Vec<Permit>) {
        let mut arrived = Vec::new();
        queue.take(&mut arrived);
        let admitted = arrived
            .into_iter()
            .map(|queued| queued.admitted(queue, |_, _, permit| permit));
        let named = admitted.map(|(publication, waiter)| (publication.channels.concat(), waiter));
        named.unzip()
    }

    fn names(queue: &Arc<Queue>) -> Vec<String> {
        taken(queue).0
    }

    #[test]
    fn each_queue_gets_back_what_it_gave() {
        let queues: [Arc<Queue>; 2] = Default::default();
        for queue in &queues {
            for name in ["a", "b"] {
                small(queue, name, 100);
            }
        }
        let permits = queues.iter().flat_map(|queue| taken(queue).1);
        let mut all: Option<Permit> = None;
        for permit in permits {
            match &mut all {
                Some(all) => all.merge(permit),
                None => all = Some(permit),
            }
        }
        assert_eq!(queues.each_ref().map(|queue| queue.taken()), [200, 0]);
        drop(all);
        assert_eq!(queues.each_ref().map(|queue| queue.taken()), [0, 0]);
    }

    #[test]
    fn room_is_given_in_the_order_of_the_calls() {
        let queue = Arc::new(Queue::default());
        small(&queue, "most", QUEUE - 1);
        let (came, permit) = taken(&queue);
        assert_eq!(came, ["most"]);
        let calls = [("a", 2), ("b", 1), ("c", 1)].map(|(name, units)| small(&queue, name, units));
        assert!(calls.iter().all(|call| call.place.is_some()));
        assert!(
            names(&queue).is_empty(),
            "b and c would fit, but a is first"
        );
        assert_eq!(queue.taken(), QUEUE - 1);
        drop(permit);
        let (came, permit) = taken(&queue);
        assert_eq!(came, ["a", "b", "c"]);
        assert_eq!(queue.taken(), 4);
        assert!(
            calls
                .iter()
                .all(|call| !call.place.as_ref().unwrap().leave())
        );
        drop(permit);
        assert_eq!(queue.taken(), 0);
    }

    /// What it would have published is gone at once, and nobody waits for it.
    #[test]
    fn who_gives_up_leaves_nothing() {
        let queue = Arc::new(Queue::default());
        small(&queue, "most", QUEUE - 1);
        let (_, permit) = taken(&queue);
        let [first, second, third] =
            [("a", 2), ("b", 1), ("c", 2)].map(|(name, units)| small(&queue, name, units));
        assert!(!first.envelope.is_unique(), "control: it is queued");
        drop(first.place);
        assert!(first.envelope.is_unique());
        assert_eq!(names(&queue), ["b"], "there was room for it");
        assert!(third.place.as_ref().unwrap().leave());
        assert!(third.answer.now_or_never().unwrap().is_err());
        drop((permit, second));
        assert_eq!((names(&queue).len(), queue.taken()), (0, 0));
    }

    #[test]
    fn large_ones_have_a_part_and_starve_nobody() {
        let queue = Arc::new(Queue::default());
        large(&queue, "large", LARGE);
        let (_, part) = taken(&queue);
        let _second = large(&queue, "second", 1);
        let _third = large(&queue, "third", 1);
        small(&queue, "small", QUEUE - LARGE);
        let (came, rest) = taken(&queue);
        assert_eq!(came, ["small"], "it passes those who wait for their part");
        let late = small(&queue, "late", LARGE);
        drop(part);
        assert_eq!(names(&queue), ["second", "third"]);
        drop(late);
        drop(rest);

        let queue = Arc::new(Queue::default());
        small(&queue, "most", QUEUE - 1);
        let (_, most) = taken(&queue);
        let _large = large(&queue, "large", 2);
        let _late = small(&queue, "late", 1);
        assert!(names(&queue).is_empty(), "the large one is next");
        drop(most);
        assert_eq!(names(&queue), ["large", "late"]);
    }

    #[test]
    fn a_probe_waits_for_no_room() {
        let queue = Arc::new(Queue::default());
        small(&queue, "all", 2 * QUEUE);
        let _waits = small(&queue, "waits", 1);
        let probe = Publication::probe(smallvec!["probe".to_owned()], Bytes::new());
        assert!(enqueue(&queue, probe).place.is_none());
        assert_eq!(names(&queue), ["all", "probe"]);
    }

    #[test]
    fn nothing_waits_when_it_is_closed() {
        let queue = Arc::new(Queue::default());
        let calls = ["all", "waits"].map(|name| small(&queue, name, QUEUE));
        queue.close();
        for call in calls {
            let told = call.answer.now_or_never().unwrap().unwrap();
            assert!(!told.unwrap_err().maybe_sent);
        }
        let (reply, _) = oneshot::channel();
        let late = publication("late", 1, Size::Small);
        let late = queue.enqueue(Queued::new(late, Instant::now(), reply));
        assert!(late.is_err());
    }

    /// Comes back to the queue when it is woken.
    struct Reentrant(Arc<Queue>, mpsc::Sender<usize>);

    impl Wake for Reentrant {
        fn wake(self: Arc<Self>) {
            let _ = self.1.send(self.0.taken());
        }
    }

    #[test]
    fn a_waker_may_come_back() {
        let steps: [fn(&Queue, Option<Place>); 2] =
            [|queue, _| queue.close(), |_, place| drop(place)];
        for (n, step) in steps.into_iter().enumerate() {
            let (woken, wakes) = mpsc::channel();
            std::thread::spawn(move || {
                let queue = Arc::new(Queue::default());
                small(&queue, "all", QUEUE);
                let mut call = small(&queue, "waits", 1);
                let waker = Waker::from(Arc::new(Reentrant(queue.clone(), woken)));
                let mut cx = Context::from_waker(&waker);
                assert!(call.answer.poll_unpin(&mut cx).is_pending());
                step(&queue, call.place.take());
            });
            let woken = wakes.recv_timeout(Duration::from_secs(10));
            assert_eq!(woken, Ok(QUEUE), "step {n}");
        }
    }
}
