//! The listening side: one connection under endless supervision, messages handed on as they are read.

use std::sync::{Arc, Once, Weak};
use std::time::Duration;

use bytes::Buf;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::advice::Advice;
use super::endpoint::Endpoint;
use super::publisher::Publisher;
use super::resp::Reader;
use super::session::{SILENCE, Session};
use super::slots::SlotTable;
use super::subscriptions::Subscriptions;
use crate::backend::{BusSettings, Listener};
use crate::id::NodeId;
use crate::topic::Topic;
use crate::wire::MAX_ENVELOPE;

/// Reconnecting: the first pause, doubled each time up to the longest, and a random part of it
/// taken, so that a fleet of nodes does not return in one moment.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The subscriptions, shared by those who want and the task that subscribes.
#[derive(Debug)]
pub(crate) struct Table {
    pub(super) subscriptions: Mutex<Subscriptions>,
    changed: Notify,
    doubted: Notify,
}

impl Table {
    pub(crate) fn new(linger: Duration) -> Self {
        Self {
            subscriptions: Mutex::new(Subscriptions::new(linger)),
            changed: Notify::new(),
            doubted: Notify::new(),
        }
    }

    /// Changes what is wanted.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Subscriptions) -> T) -> T {
        let changed = change(&mut self.subscriptions.lock());
        self.changed.notify_one();
        changed
    }

    /// A publish failed: find out soon whether the bus works at all.
    pub(crate) fn doubt(&self) {
        self.doubted.notify_one();
    }

    pub(crate) fn is_confirmed(&self, topic: &Topic) -> bool {
        self.subscriptions.lock().is_confirmed(topic)
    }
}

/// Marks the connection lost however it ends, by a panic too.
struct Connected<'a>(&'a Table);

impl<'a> Connected<'a> {
    fn new(table: &'a Table) -> Self {
        table.subscriptions.lock().connected();
        Self(table)
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.subscriptions.lock().disconnected();
    }
}

/// The task that listens.
#[derive(Debug)]
pub(crate) struct Subscriber {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) advice: Arc<Advice>,
    pub(crate) node: NodeId,
    pub(crate) settings: BusSettings,
    pub(crate) table: Arc<Table>,
    pub(crate) publisher: Arc<Publisher>,
    pub(super) slots: Option<Arc<SlotTable>>,
    pub(crate) listener: Weak<dyn Listener>,
    /// Said once that Redis does not tell its role.
    pub(crate) told_no_role: Once,
}

impl Subscriber {
    /// Connects, listens, and begins again, for ever.
    pub(crate) async fn run(&self) {
        let mut failures = 0;
        loop {
            let reason = self.listen(&mut failures).await;
            self.table.subscriptions.lock().disconnected();
            self.tell(|listener| listener.down(reason, true));
            sleep(pause(failures, fastrand::f64())).await;
            failures += 1;
        }
    }

    /// One connection from its first byte to its last; returns why it ended.
    async fn listen(&self, failures: &mut u32) -> Arc<str> {
        let stream = match timeout(SILENCE, self.endpoint.connect()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return error.to_string().into(),
            Err(_) => return "redis did not accept a connection in time".into(),
        };
        if let Some(slots) = &self.slots {
            slots.doubt();
        }
        let (mut read, mut write) = tokio::io::split(stream);
        let _connected = Connected::new(&self.table);
        let mut session = Session::new(self, failures);
        let mut reader = Reader::new(MAX_ENVELOPE);
        loop {
            let wake = match session.advance(Instant::now()) {
                Ok(wake) => wake,
                Err(reason) => return reason,
            };
            let Session {
                output, publishing, ..
            } = &mut session;
            tokio::select! {
                count = read.read_buf(reader.space()) => match count {
                    Ok(0) => return "redis closed the connection".into(),
                    Ok(_) => {
                        let read = session.read(&mut reader);
                        self.settle().await;
                        if let Err(reason) = read { return reason }
                    }
                    Err(error) => return error.to_string().into(),
                },
                count = write.write(output), if !output.is_empty() => match count {
                    Ok(count) => output.advance(count),
                    Err(error) => return error.to_string().into(),
                },
                published = async { publishing.as_mut().expect("checked").await }, if publishing.is_some() => {
                    if let Err(reason) = session.published(published) { return reason }
                }
                () = self.table.changed.notified() => {}
                () = self.table.doubted.notified() => session.hurry(),
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Delivers what was heard, letting other tasks run in between.
    async fn settle(&self) {
        while self
            .listener
            .upgrade()
            .is_some_and(|listener| listener.settle())
        {
            yield_now().await;
        }
    }

    pub(super) fn tell(&self, what: impl FnOnce(&dyn Listener)) {
        if let Some(listener) = self.listener.upgrade() {
            what(&*listener);
        }
    }
}

/// The pause before the next attempt; `random` in 0.0..1.0.
pub(super) fn pause(failures: u32, random: f64) -> Duration {
    let longest = FIRST_PAUSE
        .saturating_mul(1 << failures.min(16))
        .min(LONGEST_PAUSE);
    longest.mul_f64(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_five_seconds_and_are_spread() {
        assert_eq!(pause(0, 1.0), Duration::from_millis(50));
        assert_eq!(pause(3, 1.0), Duration::from_millis(400));
        assert_eq!(pause(3, 0.5), Duration::from_millis(200));
        assert_eq!(pause(u32::MAX, 1.0), LONGEST_PAUSE);
    }
}
