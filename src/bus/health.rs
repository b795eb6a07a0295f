//! The health of a node, and everyone who watches it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures::Stream;
use parking_lot::Mutex;

use crate::model::health::Health;
use crate::waker::{poll_locked, wake};

/// How many changes a reader may lag behind before it misses the oldest.
const HISTORY: usize = 64;

/// Every change of a node's health, beginning with the state in which it was asked for. A stream, made by
/// [`Cluster::health_changes`](crate::Cluster::health_changes).
#[must_use = "streams do nothing unless polled"]
pub struct HealthChanges {
    states: Arc<Mutex<States>>,
    /// Which reader it is.
    reader: u64,
    /// The number of the state it reads next.
    next: u64,
}

/// The current health, and everyone who watches it.
#[derive(Debug)]
pub(crate) struct HealthCell(Arc<Mutex<States>>);

/// The latest states by their numbers, the current one last: so a reader needs only the number it reads next,
/// and whoever tells of a change, and when, it reads each once and in order.
#[derive(Debug)]
struct States {
    current: Health,
    /// The states before the current one, oldest first.
    past: VecDeque<Health>,
    /// The number of the current one.
    number: u64,
    ended: bool,
    /// How many readers there were.
    readers: u64,
    /// The wakers of readers that wait for a change. They are foreign, and woken without the lock.
    waiting: HashMap<u64, Option<Waker>>,
}

impl HealthCell {
    pub(crate) fn new(initial: Health) -> Self {
        let states = States {
            current: initial,
            past: VecDeque::new(),
            number: 0,
            ended: false,
            readers: 0,
            waiting: HashMap::new(),
        };
        Self(Arc::new(Mutex::new(states)))
    }

    pub(crate) fn get(&self) -> Health {
        self.0.lock().current.clone()
    }

    /// Moves on to what `next` makes of the current state; `None` leaves it. Returns whether it changed.
    pub(crate) fn update(&self, next: impl FnOnce(&Health) -> Option<Health>) -> bool {
        let mut states = self.0.lock();
        let changed = states.advance(next);
        let waiting = match changed {
            true => std::mem::take(&mut states.waiting),
            false => HashMap::new(),
        };
        drop(states);
        waiting.into_values().for_each(wake);
        changed
    }

    /// Nothing more will come.
    pub(crate) fn end(&self) {
        let mut states = self.0.lock();
        states.ended = true;
        let waiting = std::mem::take(&mut states.waiting);
        drop(states);
        waiting.into_values().for_each(wake);
    }

    /// Begins with the current state; ends with the node. A reader that lags too far behind goes on with the
    /// oldest that is left.
    pub(crate) fn changes(&self) -> HealthChanges {
        let mut states = self.0.lock();
        states.readers += 1;
        HealthChanges {
            states: self.0.clone(),
            reader: states.readers,
            next: states.number,
        }
    }
}

impl Drop for HealthCell {
    fn drop(&mut self) {
        self.end();
    }
}

impl Stream for HealthChanges {
    type Item = Health;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Health>> {
        let this = self.get_mut();
        let (reader, next) = (this.reader, this.next);
        let read = poll_locked(
            &this.states,
            cx,
            |states| states.waiting.entry(reader).or_default(),
            |states| match (states.first_from(next), states.ended) {
                (None, false) => Poll::Pending,
                (found, _) => Poll::Ready(found),
            },
        );
        read.map(|found| {
            let (health, number) = found?;
            this.next = number + 1;
            Some(health)
        })
    }
}

impl Drop for HealthChanges {
    fn drop(&mut self) {
        let waiting = self.states.lock().waiting.remove(&self.reader);
        drop(waiting);
    }
}

impl fmt::Debug for HealthChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthChanges").finish_non_exhaustive()
    }
}

impl States {
    fn advance(&mut self, next: impl FnOnce(&Health) -> Option<Health>) -> bool {
        let next = next(&self.current).filter(|next| *next != self.current);
        let Some(next) = next else {
            return false;
        };
        self.past
            .push_back(std::mem::replace(&mut self.current, next));
        self.number += 1;
        if self.past.len() == HISTORY {
            self.past.pop_front();
        }
        true
    }

    /// The first state from this number on, with its own.
    fn first_from(&self, from: u64) -> Option<(Health, u64)> {
        let behind = self.number.checked_sub(from)?;
        let back = self
            .past
            .len()
            .min(usize::try_from(behind).unwrap_or(usize::MAX));
        let health = self.past.get(self.past.len() - back);
        let health = health.unwrap_or(&self.current).clone();
        Some((health, self.number - back as u64))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::task::{Context, Poll, Wake, Waker};
    use std::time::{Duration, SystemTime};

    use futures::{FutureExt, StreamExt};

    use super::*;

    fn degraded(reason: &str) -> Health {
        Health::Degraded {
            since: SystemTime::UNIX_EPOCH,
            reason: reason.into(),
        }
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_leaves_nothing() {
        let cell = HealthCell::new(Health::Up);
        let mut changes = cell.changes();
        assert_eq!(changes.next().await, Some(Health::Up));
        assert!(changes.next().now_or_never().is_none());
        assert_eq!(cell.0.lock().waiting.len(), 1, "control");
        drop(changes);
        assert_eq!(cell.0.lock().waiting.len(), 0);
    }

    #[tokio::test]
    async fn an_outage_between_two_reads_is_seen() {
        let cell = HealthCell::new(Health::Up);
        let mut changes = cell.changes();
        assert_eq!(changes.next().await, Some(Health::Up));
        cell.update(|_| Some(degraded("gone")));
        cell.update(|_| Some(Health::Up));
        assert!(!cell.update(|_| Some(Health::Up)), "no change, no event");
        assert_eq!(changes.next().await, Some(degraded("gone")));
        assert_eq!(changes.next().await, Some(Health::Up));
        drop(cell);
        assert_eq!(changes.next().await, None);
    }

    #[tokio::test]
    async fn who_lags_goes_on_with_the_oldest_that_is_left() {
        let cell = HealthCell::new(Health::Up);
        let changes = cell.changes();
        let last = 3 * HISTORY;
        for n in 1..=last {
            cell.update(|_| Some(degraded(&n.to_string())));
        }
        drop(cell);
        let seen: Vec<Health> = changes.collect().await;
        let left = (last + 1 - HISTORY..=last).map(|n| degraded(&n.to_string()));
        assert_eq!(seen, Vec::from_iter(left));
    }

    /// Every reader ends with the last state, has no state twice, and has all that came since it began.
    #[test]
    fn no_change_is_missed_or_told_twice() {
        const CHANGES: usize = HISTORY / 2;
        let cell = HealthCell::new(Health::Up);
        let read = std::thread::scope(|scope| {
            for name in ["a", "b"] {
                let cell = &cell;
                scope.spawn(move || {
                    for n in 0..CHANGES / 2 {
                        cell.update(|_| Some(degraded(&format!("{name} {n}"))));
                    }
                });
            }
            Vec::from_iter((0..8).map(|_| cell.changes()))
        });
        let last = cell.get();
        drop(cell);
        for reader in read {
            let seen: Vec<Health> = reader.collect().now_or_never().unwrap();
            assert_eq!(seen.last(), Some(&last));
            for name in ["a", "b"] {
                let mut numbers = seen.iter().filter_map(|health| match health {
                    Health::Degraded { reason, .. } => {
                        reason.strip_prefix(name)?.trim().parse().ok()
                    }
                    _ => None,
                });
                let first: usize = numbers.next().unwrap_or(CHANGES / 2);
                assert!(numbers.eq(first + 1..CHANGES / 2), "{seen:?}");
            }
        }
    }

    /// Comes back to the cell when it is woken.
    struct Reentrant(Arc<HealthCell>, mpsc::Sender<Health>);

    impl Wake for Reentrant {
        fn wake(self: Arc<Self>) {
            let _ = self.1.send(self.0.get());
        }
    }

    #[test]
    fn a_waker_may_come_back() {
        let (woken, wakes) = mpsc::channel();
        std::thread::spawn(move || {
            let cell = Arc::new(HealthCell::new(Health::Up));
            let mut changes = cell.changes();
            let waker = Waker::from(Arc::new(Reentrant(cell.clone(), woken)));
            let mut cx = Context::from_waker(&waker);
            let first = changes.poll_next_unpin(&mut cx);
            assert_eq!(first, Poll::Ready(Some(Health::Up)));
            assert!(changes.poll_next_unpin(&mut cx).is_pending());
            cell.update(|_| Some(Health::Draining));
        });
        let woken = wakes.recv_timeout(Duration::from_secs(10));
        assert_eq!(woken, Ok(Health::Draining));
    }
}
