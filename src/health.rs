//! How the node stands.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use futures::{Stream, stream};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// How the node stands towards the bus.
///
/// Local delivery works in every state but [`Down`](Health::Down).
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Health {
    /// The probe came back, and every socket that is admitted is heard: messages travel both ways. A
    /// newcomer waits until its subscriptions are confirmed.
    Up,
    /// The bus is not usable. The node serves its own sockets and returns by itself.
    Degraded {
        /// Since when.
        since: SystemTime,
        /// Why, in Redis' own words where it has spoken, with the fix where one is known.
        reason: Arc<str>,
    },
    /// [`Cluster::shutdown`](crate::Cluster::shutdown) has begun: no new sockets.
    Draining,
    /// Shut down: sends fail, nothing is left on the bus.
    Down,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up => f.write_str("up"),
            Self::Degraded { reason, .. } => write!(f, "degraded: {reason}"),
            Self::Draining => f.write_str("draining"),
            Self::Down => f.write_str("down"),
        }
    }
}

/// How many changes a reader may lag behind before it misses the oldest.
const HISTORY: usize = 64;

/// The current health, and everyone who watches it.
#[derive(Debug)]
pub(crate) struct HealthCell(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    states: Mutex<States>,
    /// Told without the lock: who waits is foreign.
    changed: Notify,
}

/// The latest states by their numbers, the current one last: so a reader needs only the number it reads next,
/// and whoever tells of a change, and when, it reads each once and in order.
#[derive(Debug)]
struct States {
    current: Health,
    /// Those before it, oldest first.
    past: VecDeque<Health>,
    /// The number of the current one.
    number: u64,
    ended: bool,
}

impl HealthCell {
    pub(crate) fn new(initial: Health) -> Self {
        let states = States {
            current: initial,
            past: VecDeque::new(),
            number: 0,
            ended: false,
        };
        Self(Arc::new(Shared {
            states: Mutex::new(states),
            changed: Notify::new(),
        }))
    }

    pub(crate) fn get(&self) -> Health {
        self.0.states.lock().current.clone()
    }

    /// Moves on to what `next` makes of the current state; `None` leaves it. Returns whether it changed.
    pub(crate) fn update(&self, next: impl FnOnce(&Health) -> Option<Health>) -> bool {
        let changed = self.0.states.lock().advance(next);
        if changed {
            self.0.changed.notify_waiters();
        }
        changed
    }

    /// Begins with the current state; ends with the node. A reader that lags too far behind goes on with the
    /// oldest that is left.
    pub(crate) fn changes(&self) -> impl Stream<Item = Health> + Send + Unpin + use<> {
        let next = self.0.states.lock().number;
        let reader = (self.0.clone(), next);
        Box::pin(stream::unfold(reader, |(shared, next)| async move {
            let (health, number) = shared.read(next).await?;
            Some((health, (shared, number + 1)))
        }))
    }
}

impl Drop for HealthCell {
    fn drop(&mut self) {
        self.0.states.lock().ended = true;
        self.0.changed.notify_waiters();
    }
}

impl Shared {
    /// The first state from this number on, with its own; `None` after the last.
    async fn read(&self, from: u64) -> Option<(Health, u64)> {
        loop {
            // Before the look: a change in between is told to it.
            let changed = self.changed.notified();
            {
                let states = self.states.lock();
                let found = states.first_from(from);
                if found.is_some() || states.ended {
                    return found;
                }
            }
            changed.await;
        }
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
    use std::time::Duration;

    use futures::{FutureExt, StreamExt};

    use super::*;

    fn degraded(reason: &str) -> Health {
        Health::Degraded {
            since: SystemTime::UNIX_EPOCH,
            reason: reason.into(),
        }
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
