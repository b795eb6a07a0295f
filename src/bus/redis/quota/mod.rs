//! Slots over Redis: decided there by one script, kept true by one task, and by the node's own count
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

use self::ledger::Book;
pub(super) use self::writer::Keeper;
use crate::bus::Listener;
use crate::bus::topic::Topic;
use crate::model::id::NodeId;
use crate::quota::SlotLimit;
use crate::quota::{Claim, Slots};

/// The slots of this node's sockets, shared by those who claim and the task that keeps Redis informed.
#[derive(Debug)]
pub(super) struct SlotTable {
    book: Mutex<Book>,
    changed: Notify,
    doubted: Notify,
    listener: OnceLock<Weak<dyn Listener>>,
    limit: SlotLimit,
    /// The longest wait for Redis.
    deadline: Duration,
}

impl SlotTable {
    pub(super) fn new(node: NodeId, limit: SlotLimit, deadline: Duration) -> Self {
        Self {
            book: Mutex::new(Book::new(node, limit)),
            changed: Notify::new(),
            doubted: Notify::new(),
            listener: OnceLock::new(),
            limit,
            deadline,
        }
    }

    /// Sockets that lose their slot are told to it.
    pub(super) fn start(&self, listener: Weak<dyn Listener>) {
        // Set once: a bus starts once.
        let _ = self.listener.set(listener);
    }

    /// Redis is reached anew and may have forgotten the slots: find out now.
    pub(super) fn doubt(&self) {
        self.doubted.notify_one();
    }

    fn change<T>(&self, change: impl FnOnce(&mut Book) -> T) -> T {
        let mut book = self.book.lock();
        let changed = change(&mut book);
        let news = book.take_news();
        drop(book);
        if let Some(listener) = self.listener.get().and_then(Weak::upgrade) {
            news.lost
                .iter()
                .for_each(|number| listener.replaced(*number));
        }
        news.answer();
        changed
    }
}

impl Slots for SlotTable {
    fn claim(&self, user: &Topic, number: u64) -> BoxFuture<'_, Claim> {
        let user = user.clone();
        let mut answer = self.change(|book| book.claim(&user, number, now()));
        self.changed.notify_one();
        async move {
            if let Ok(Ok(claim)) = timeout(self.deadline, &mut answer).await {
                return claim;
            }
            self.change(|book| book.settle(&user, number, now()));
            // Settled just now, or answered in the last moment.
            let claim = answer.try_recv().unwrap_or(Claim {
                granted: None,
                checked: false,
            });
            if claim.granted.is_none() && !claim.checked {
                tracing::debug!(
                    user = user.as_str(),
                    "refused: redis did not count the user's sockets in time; does it evict keys (maxmemory-policy)?"
                );
            }
            claim
        }
        .boxed()
    }

    fn release(&self, user: &Topic, number: u64) {
        self.change(|book| book.release(user, number));
        self.changed.notify_one();
    }

    fn holds(&self, user: &Topic, number: u64) -> bool {
        self.book.lock().holds(user, number)
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

    /// Notes at every wake whether the book is free.
    struct Woken {
        table: Arc<SlotTable>,
        free: Mutex<Vec<bool>>,
    }

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            let free = self.table.book.try_lock().is_some();
            self.free.lock().push(free);
        }
    }

    #[tokio::test]
    async fn nobody_is_woken_under_the_lock() {
        let (sockets, over) = (1, OverLimit::Refuse);
        let limit = SlotLimit { sockets, over };
        let table = Arc::new(SlotTable::new(NodeId(1), limit, Duration::from_secs(3600)));
        let woken = Arc::new(Woken {
            table: table.clone(),
            free: Mutex::default(),
        });
        let user = Topic::room("1").unwrap();
        let waker = Waker::from(woken.clone());
        let mut claims = [1, 2].map(|number| table.claim(&user, number));
        for claim in &mut claims {
            assert!(
                claim
                    .as_mut()
                    .poll(&mut Context::from_waker(&waker))
                    .is_pending()
            );
        }
        table.release(&user, 2);
        table.change(|book| book.outage(0));
        assert_eq!(*woken.free.lock(), [true, true]);
    }
}
