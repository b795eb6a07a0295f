//! In a Redis Cluster a partition may move to another primary, and with it what waits to be published there. The order
//! is kept: the queue that it comes to holds back what arrives for it until the other one is through, which sends after
//! what it still has, and sends on whoever comes late.
//!
//! ```text
//!   old:  arrived ----> its publisher: none of it is in a pipeline any more --+   handed over, in order
//!          |  left: who comes now is sent on                                  v
//!   new:   +------------------> held -----------------------------------> arrived, behind what was handed over
//! ```
//! So a partition moves on while it is held, and comes back only where the last hand-over is done.

use std::num::NonZeroU32;
use std::sync::Arc;

use super::{HandedOver, Queue, Queued, State};
use crate::bus::redis::publication::Publication;
use crate::model::partition::Partition;

/// What waits behind another publisher.
#[derive(Debug)]
pub(super) struct HeldBehind {
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
    /// Holds a partition back until its old publisher is through with it. Not while it [departs](Self::is_departing). What is
    /// published here is of this era: higher than where it was before, unless that was nowhere.
    pub(in crate::bus::redis) fn hold(&self, partition: Partition, era: Option<NonZeroU32>) {
        let mut state = self.state.lock();
        state.left.remove(&partition);
        if let Some(era) = era {
            state.eras.insert(partition, era);
        }
        let number = state.next_hold;
        state.next_hold += 1;
        let queued = Vec::new();
        state.held.insert(partition, HeldBehind { number, queued });
    }

    /// Whether a partition that departed is not handed over in full: it must not come back before.
    pub(in crate::bus::redis) fn is_departing(&self, partition: Partition) -> bool {
        let departures = &self.state.lock().departures;
        departures.iter().any(|one| one.partition == partition)
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
        state.left.insert(partition, Arc::downgrade(to));
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
    pub(in crate::bus::redis) fn hand_over(&self, departure: &Departure, what: HandedOver) {
        let is_through = {
            let mut state = self.state.lock();
            let is_through = state.is_through(departure);
            if is_through {
                let number = |one: &Departure| (one.partition, one.ticket, one.behind);
                state
                    .departures
                    .retain(|one| number(one) != number(departure));
            }
            is_through
        };
        if is_through || !what.is_empty() {
            departure.to.hand(departure.partition, what, is_through);
        }
    }

    fn hand(&self, partition: Partition, what: HandedOver, is_through: bool) {
        let is_filled = {
            let mut state = self.state.lock();
            let is_asked = !what.acknowledged.is_empty();
            state.handed.extend(what.waiting);
            state.acknowledged.take_in(what.acknowledged);
            if is_through && let Some(held) = state.held.remove(&partition) {
                state.arrived.extend(held.queued);
            }
            let has_come = !state.handed.is_empty() || !state.arrived.is_empty();
            is_asked || has_come || !state.departures.is_empty()
        };
        if is_filled {
            self.filled.notify_one();
        }
    }
}

impl HandedOver {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.acknowledged.is_empty()
    }
}

impl State {
    /// Where the partition is, if it was here.
    pub(super) fn elsewhere(&self, publication: &Publication) -> Option<Arc<Queue>> {
        let partition = publication.partition.filter(|_| !self.left.is_empty())?;
        self.left.get(&partition)?.upgrade()
    }

    /// The era of what is published now.
    pub(super) fn era(&self, publication: &Publication) -> Option<NonZeroU32> {
        self.eras.get(&publication.partition?).copied()
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
        !is_behind && !waiting.any(|(_, it)| concerns(it))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use smallvec::smallvec;
    use tokio::sync::oneshot;
    use tokio::time::Instant;

    use super::*;
    use crate::bus::redis::publication::PublicationAnswer;
    use crate::bus::redis::queue::Waiter;
    use crate::bus::redis::queue::permit::UNIT;
    use crate::bus::scope::Size;

    fn partition() -> Partition {
        Partition::of("r:1")
    }

    /// Publishers that take over and hand over as the task does.
    struct World {
        queues: Vec<Arc<Queue>>,
        /// What each has taken over.
        backlogs: Vec<Vec<(Publication, Waiter)>>,
        /// Where the partition is.
        place: usize,
        answers: Vec<oneshot::Receiver<PublicationAnswer>>,
        /// With its era.
        published: Vec<(usize, String)>,
        /// Where the partition was in each era.
        stays: Vec<usize>,
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        /// A call, so large, that looked for the place so many moves ago.
        Call {
            units: usize,
            late: bool,
        },
        Move {
            to: usize,
        },
        /// The publisher takes over and hands over, …
        Look(usize),
        /// … or publishes what it has.
        Publish(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (prop_oneof![Just(1), Just(30_000)], any::<bool>())
                .prop_map(|(units, late)| Step::Call { units, late }),
            1 => (0usize..3).prop_map(|to| Step::Move { to }),
            3 => (0usize..3).prop_map(Step::Look),
            2 => (0usize..3).prop_map(Step::Publish),
        ]
    }

    impl World {
        fn new() -> Self {
            Self {
                queues: (0..3).map(|_| Arc::default()).collect(),
                backlogs: (0..3).map(|_| Vec::new()).collect(),
                place: 0,
                answers: Vec::new(),
                published: Vec::new(),
                stays: vec![0],
            }
        }

        fn call(&mut self, at: usize, units: usize) {
            let name = self.answers.len().to_string();
            let envelope = Bytes::from(vec![b'x'; (units - 1) * UNIT]);
            let channels = smallvec![name];
            let publication = Publication::new(channels, envelope, Size::Small, Some(partition()));
            let (reply, answer) = oneshot::channel();
            let queued = Queued::new(publication, Instant::now(), reply);
            let place = self.queues[at].enqueue(queued).unwrap();
            // Nobody gives up.
            std::mem::forget(place);
            self.answers.push(answer);
        }

        fn step(&mut self, step: Step, before: &mut usize) {
            match step {
                Step::Call { units, late } => {
                    self.call(if late { *before } else { self.place }, units);
                }
                Step::Move { to }
                    if to != self.place && !self.queues[to].is_departing(partition()) =>
                {
                    let era = NonZeroU32::new(self.stays.len() as u32);
                    self.stays.push(to);
                    self.queues[to].hold(partition(), era);
                    self.queues[self.place].depart(partition(), &self.queues[to]);
                    *before = std::mem::replace(&mut self.place, to);
                }
                Step::Move { .. } => {}
                Step::Look(at) => self.look(at),
                Step::Publish(at) => {
                    for (one, _) in self.backlogs[at].drain(..) {
                        let era = one.era.map_or(0, |era| era.get() as usize);
                        assert_eq!(self.stays[era], at, "it is of another place");
                        self.published.push((era, one.channels.concat()));
                    }
                }
            }
        }

        fn look(&mut self, at: usize) {
            let (queue, backlog) = (&self.queues[at], &mut self.backlogs[at]);
            let mut arrived = Vec::new();
            let (handed, departures) = queue.take(&mut arrived);
            backlog.extend(handed.waiting);
            backlog.extend(
                arrived
                    .into_iter()
                    .map(|one| one.admitted(queue, Waiter::new)),
            );
            for departure in departures {
                let waiting = std::mem::take(backlog);
                let what = HandedOver {
                    waiting,
                    ..HandedOver::default()
                };
                queue.hand_over(&departure, what);
            }
        }
    }

    #[test]
    fn queues_do_not_keep_one_another_alive() {
        let [one, other] = [(); 2].map(|()| Arc::new(Queue::default()));
        for (name, from, to) in [("r:1", &one, &other), ("r:2", &other, &one)] {
            let partition = Partition::of(name);
            to.hold(partition, None);
            from.depart(partition, to);
            let (_, departures) = from.take(&mut Vec::new());
            from.hand_over(&departures[0], HandedOver::default());
            assert!(!from.is_departing(partition));
        }
        let [one, other] = [one, other].map(|queue| Arc::downgrade(&queue));
        assert!(one.upgrade().is_none() && other.upgrade().is_none());
    }

    proptest! {
        /// Whatever moves when, and however late a caller learns of it.
        #[test]
        fn order_holds_and_nothing_is_stuck(steps in prop::collection::vec(step(), 1..60)) {
            let (mut world, mut before) = (World::new(), 0);
            for step in steps {
                world.step(step, &mut before);
            }
            for _ in 0..200 {
                for at in 0..3 {
                    world.step(Step::Look(at), &mut before);
                    world.step(Step::Publish(at), &mut before);
                }
            }
            let all: Vec<String> = (0..world.answers.len()).map(|n| n.to_string()).collect();
            prop_assert!(world.published.is_sorted_by_key(|(era, _)| era), "and of one era after the other");
            let (_, in_order): (Vec<_>, Vec<_>) = world.published.into_iter().unzip();
            let mut published = in_order.clone();
            published.sort_by_key(|name| name.parse::<usize>().unwrap());
            prop_assert_eq!(&published, &all, "each once");
            prop_assert_eq!(&in_order, &all, "in the order of the calls");
        }
    }
}
