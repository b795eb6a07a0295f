//! The subscriptions, shared by those who want and the task that subscribes.

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::subscriptions::Subscriptions;
use crate::model::topic::Topic;

#[derive(Debug)]
pub(super) struct SharedSubscriptions {
    subscriptions: Mutex<Subscriptions>,
    changed: Notify,
}

impl SharedSubscriptions {
    pub(super) fn new(subscriptions: Subscriptions) -> Self {
        Self {
            subscriptions: Mutex::new(subscriptions),
            changed: Notify::new(),
        }
    }

    /// Changes what is wanted.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Subscriptions) -> T) -> T {
        let changed = self.with(change);
        self.changed.notify_one();
        changed
    }

    /// Looks at the subscriptions, or notes what became of them; whoever waits is told afterwards.
    pub(super) fn with<T>(&self, look: impl FnOnce(&mut Subscriptions) -> T) -> T {
        let mut subscriptions = self.subscriptions.lock();
        let seen = look(&mut subscriptions);
        let news = subscriptions.take_news();
        drop(subscriptions);
        news.tell();
        seen
    }

    pub(super) fn is_confirmed(&self, topic: &Topic) -> bool {
        self.subscriptions.lock().is_confirmed(topic)
    }

    /// Resolves when something else is wanted.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::{Context, Wake, Waker};
    use std::time::Duration;

    use futures::FutureExt;
    use tokio::time::Instant;

    use super::*;
    use crate::bus::Confirmation;
    use crate::bus::redis::outstanding::Verb;

    const LINGER: Duration = Duration::from_secs(5);

    fn shared() -> Arc<SharedSubscriptions> {
        let own = Topic::room("own").unwrap();
        Arc::new(SharedSubscriptions::new(Subscriptions::new(LINGER, own)))
    }

    /// Comes back to the table when it is woken.
    struct Reentrant(Arc<SharedSubscriptions>, std::sync::mpsc::Sender<()>);

    impl Wake for Reentrant {
        fn wake(self: Arc<Self>) {
            self.0.with(|_| {});
            let _ = self.1.send(());
        }
    }

    #[test]
    fn a_waker_may_come_back() {
        let steps: [fn(&SharedSubscriptions, &Topic); 4] = [
            |table, topic| table.change(|table| table.release(topic, Instant::now())),
            |table, topic| {
                table.with(|table| table.step(Instant::now(), 2));
                table.with(|table| table.answered(Verb::Subscribe, topic.as_str(), Instant::now()));
            },
            |table, _| {
                // First that of the own topic, which is granted.
                table.with(|table| table.step(Instant::now(), 2));
                let answered = |table: &mut Subscriptions| {
                    table.answered(Verb::Subscribe, "r:own", Instant::now());
                    table.refused(Instant::now())
                };
                table.with(answered);
            },
            |table, _| table.with(Subscriptions::disconnected),
        ];
        for (n, step) in steps.into_iter().enumerate() {
            let (woken, wakes) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let table = shared();
                let topic = Topic::room("x").unwrap();
                table.with(Subscriptions::connected);
                let Confirmation::Pending(mut confirmed) = table.change(|table| table.want(&topic))
                else {
                    panic!("nothing is confirmed yet")
                };
                let waker = Waker::from(Arc::new(Reentrant(table.clone(), woken)));
                let mut cx = Context::from_waker(&waker);
                assert!(confirmed.poll_unpin(&mut cx).is_pending());
                step(&table, &topic);
            });
            let woken = wakes.recv_timeout(Duration::from_secs(10));
            assert_eq!(woken, Ok(()), "step {n}");
        }
    }
}
