//! Seats over Redis: decided there by one script, kept true by one task, and by the node's own count
//! while Redis does not answer.

mod ledger;
mod missing;
mod script;
mod writer;

use std::sync::{OnceLock, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;

use self::ledger::Ledger;
pub(super) use self::writer::SeatWriter;
use crate::bus::Listener;
use crate::model::id::NodeId;
use crate::model::topic::Topic;
use crate::quota::{Decision, SeatLimit, Seats};

/// The seats of this node's sockets, shared by those who claim and the task that keeps Redis informed.
#[derive(Debug)]
pub(super) struct SharedLedger {
    ledger: Mutex<Ledger>,
    changed: Notify,
    unverified: Notify,
    listener: OnceLock<Weak<dyn Listener>>,
    limit: SeatLimit,
    /// The longest wait for Redis.
    deadline: Duration,
}

impl SharedLedger {
    pub(super) fn new(node: NodeId, limit: SeatLimit, deadline: Duration) -> Self {
        Self {
            ledger: Mutex::new(Ledger::new(node, limit)),
            changed: Notify::new(),
            unverified: Notify::new(),
            listener: OnceLock::new(),
            limit,
            deadline,
        }
    }

    /// Sockets that lose their seat are told to it.
    pub(super) fn start(&self, listener: Weak<dyn Listener>) {
        // Set once: a bus starts once.
        let _ = self.listener.set(listener);
    }

    /// Redis is reached anew and may have forgotten the seats: find out now.
    pub(super) fn verify(&self) {
        self.unverified.notify_one();
    }

    fn change<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut ledger = self.ledger.lock();
        let changed = change(&mut ledger);
        let news = ledger.take_news();
        drop(ledger);
        if let Some(listener) = self.listener.get().and_then(Weak::upgrade) {
            news.lost
                .iter()
                .for_each(|number| listener.replaced(*number));
        }
        news.answer();
        changed
    }
}

impl Seats for SharedLedger {
    fn claim(&self, user: &Topic, number: u64) -> BoxFuture<'_, Decision> {
        let user = user.clone();
        let mut answer = self.change(|ledger| ledger.claim(&user, number, now()));
        self.changed.notify_one();
        async move {
            if let Ok(Ok(decision)) = timeout(self.deadline, &mut answer).await {
                return decision;
            }
            self.change(|ledger| ledger.decide_here(&user, number, now()));
            // Decided just now, or answered in the last moment.
            let decision = answer.try_recv().unwrap_or(Decision {
                granted: None,
                checked: false,
            });
            if decision.granted.is_none() && !decision.checked {
                tracing::debug!(
                    user = user.as_str(),
                    "refused: redis did not count the user's sockets in time; does it evict keys (maxmemory-policy)?"
                );
            }
            decision
        }
        .boxed()
    }

    fn release(&self, user: &Topic, number: u64) {
        self.change(|ledger| ledger.release(user, number));
        self.changed.notify_one();
    }

    fn holds(&self, user: &Topic, number: u64) -> bool {
        self.ledger.lock().holds(user, number)
    }
}

/// Microseconds of this machine's clock: Redis' own are taken whenever it answers.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::{Context, Wake, Waker};

    use super::*;
    use crate::quota::OverLimit;

    /// Notes at every wake whether the ledger is free.
    struct Woken {
        seats: Arc<SharedLedger>,
        free: Mutex<Vec<bool>>,
    }

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            let free = self.seats.ledger.try_lock().is_some();
            self.free.lock().push(free);
        }
    }

    #[tokio::test]
    async fn nobody_is_woken_under_the_lock() {
        let (sockets, over) = (1, OverLimit::Refuse);
        let limit = SeatLimit { sockets, over };
        let seats = Arc::new(SharedLedger::new(
            NodeId(1),
            limit,
            Duration::from_secs(3600),
        ));
        let woken = Arc::new(Woken {
            seats: seats.clone(),
            free: Mutex::default(),
        });
        let user = Topic::room("1").unwrap();
        let waker = Waker::from(woken.clone());
        let mut claims = [1, 2].map(|number| seats.claim(&user, number));
        for claim in &mut claims {
            assert!(
                claim
                    .as_mut()
                    .poll(&mut Context::from_waker(&waker))
                    .is_pending()
            );
        }
        seats.release(&user, 2);
        seats.change(|ledger| ledger.outage(0));
        assert_eq!(*woken.free.lock(), [true, true]);
    }
}
