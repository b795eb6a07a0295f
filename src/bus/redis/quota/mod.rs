//! Seats over Redis: decided there by one script, kept true by one task, and by the node's own count
//! while Redis does not answer.
//!
//! Where topics are spread over several primaries, users are spread over groups: each has keys of its own, all in one slot, a
//! ledger and a dialog with Redis. So whatever holds of a Redis and its keys holds of each group.

mod dialog;
mod group;
mod lapse;
mod ledger;
mod link;
mod missing;
mod pace;
mod script;
mod voice;
#[cfg(test)]
mod world;
mod writer;

use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::timeout;

use self::group::SeatGroup;
use self::ledger::Ledger;
use self::script::leases;
pub(super) use self::writer::SeatWriter;
use super::connection::Connector;
use super::topology::Topology;
use crate::bus::{BusSettings, Listener};
use crate::model::id::NodeId;
use crate::model::topic::Topic;
use crate::quota::{Decision, SeatLimit, Seats};

/// The seats of this node's sockets, shared by those who claim and the task that keeps Redis informed.
#[derive(Debug)]
pub(super) struct SharedLedgers {
    /// Never empty.
    groups: Vec<SeatGroup>,
    group_of: fn(&Topic) -> usize,
    /// There is news for the task.
    changed: Notify,
    listener: OnceLock<Weak<dyn Listener>>,
    limit: SeatLimit,
    /// The longest wait for Redis.
    deadline: Duration,
}

impl SharedLedgers {
    /// All users are one group, whose keys are without a tag.
    pub(super) fn single(
        node: NodeId,
        limit: SeatLimit,
        settings: &BusSettings,
        connector: Connector,
    ) -> Self {
        let leases = leases(&settings.namespace, None);
        let groups = vec![SeatGroup::new(leases, connector, node, limit)];
        Self::new(groups, |_| 0, limit, settings)
    }

    /// Users are spread by `group_of` over as many groups as there are tags; each begins at the connector beside it. All
    /// nodes have to agree on that.
    pub(super) fn tagged<'a>(
        node: NodeId,
        limit: SeatLimit,
        settings: &BusSettings,
        groups: impl IntoIterator<Item = (&'a str, Connector)>,
        group_of: fn(&Topic) -> usize,
    ) -> Self {
        let group = |(tag, connector)| {
            let leases = leases(&settings.namespace, Some(tag));
            SeatGroup::new(leases, connector, node, limit)
        };
        let groups = groups.into_iter().map(group).collect();
        Self::new(groups, group_of, limit, settings)
    }

    fn new(
        groups: Vec<SeatGroup>,
        group_of: fn(&Topic) -> usize,
        limit: SeatLimit,
        settings: &BusSettings,
    ) -> Self {
        Self {
            groups,
            group_of,
            changed: Notify::new(),
            listener: OnceLock::new(),
            limit,
            deadline: settings.publish_timeout,
        }
    }

    /// Sockets that lose their seat are told to it.
    pub(super) fn start(&self, listener: Weak<dyn Listener>) {
        // Set once: a bus starts once.
        let _ = self.listener.set(listener);
    }

    /// The keys of this group are on another primary now, which the connector leads to.
    pub(super) fn follow(&self, group: usize, connector: &Connector) {
        let group = self.groups.get(group);
        if group.is_some_and(|group| group.follow(connector)) {
            self.changed.notify_one();
        }
    }

    /// This primary is reached anew and may have forgotten the seats: find out now.
    pub(super) fn verify(&self, topology: &Arc<Topology>) {
        let concerned = self.groups.iter().filter(|group| group.verify(topology));
        if concerned.count() > 0 {
            self.changed.notify_one();
        }
    }

    fn group(&self, user: &Topic) -> &SeatGroup {
        &self.groups[(self.group_of)(user) % self.groups.len()]
    }

    fn change<T>(&self, group: &SeatGroup, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut ledger = group.ledger.lock();
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

impl Seats for SharedLedgers {
    fn claim(&self, user: &Topic, number: u64) -> BoxFuture<'_, Decision> {
        let (user, group) = (user.clone(), self.group(user));
        let mut answer = self.change(group, |ledger| ledger.claim(&user, number, now()));
        self.changed.notify_one();
        async move {
            if let Ok(Ok(decision)) = timeout(self.deadline, &mut answer).await {
                return decision;
            }
            self.change(group, |ledger| ledger.decide_here(&user, number, now()));
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
        self.change(self.group(user), |ledger| ledger.release(user, number));
        self.changed.notify_one();
    }

    fn holds(&self, user: &Topic, number: u64) -> bool {
        self.group(user).ledger.lock().holds(user, number)
    }
}

/// Microseconds of this machine's clock: Redis' own are taken whenever it answers.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Wake, Waker};

    use parking_lot::Mutex;

    use super::world::connector;
    use super::*;
    use crate::quota::OverLimit;

    /// Notes at every wake whether the ledger is free.
    struct Woken {
        seats: Arc<SharedLedgers>,
        free: Mutex<Vec<bool>>,
    }

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            let free = self.seats.groups[0].ledger.try_lock().is_some();
            self.free.lock().push(free);
        }
    }

    #[tokio::test]
    async fn nobody_is_woken_under_the_lock() {
        let (sockets, over) = (1, OverLimit::Refuse);
        let limit = SeatLimit { sockets, over };
        let settings = BusSettings::plain(Duration::from_secs(3600));
        let nowhere = connector("redis://127.0.0.1:1");
        let seats = SharedLedgers::single(NodeId(1), limit, &settings, nowhere);
        let seats = Arc::new(seats);
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
        seats.change(&seats.groups[0], |ledger| ledger.outage(0));
        assert_eq!(*woken.free.lock(), [true, true]);
    }
}
