//! The listening side: one connection under endless supervision, messages handed on as they are read.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use smallvec::smallvec;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::endpoint::Endpoint;
use super::probe::{Probe, Verdict};
use super::publisher::Publisher;
use super::resp::{Broken, Reader, Reply};
use super::slots::SlotTable;
use super::subscriptions::{Step, Subscriptions};
use super::with_advice;
use crate::backend::{BusSettings, Listener};
use crate::error::PublishError;
use crate::id::NodeId;
use crate::scope::Scope;
use crate::topic::Topic;
use crate::wire::{self, Action, MAX_ENVELOPE};

/// Topics in one SUBSCRIBE: 100,000 take 0.18 s in batches of 1,000 and 8 s one by one; all in one
/// command would get the connection killed.
const BATCH: usize = 1000;
/// How long Redis may say nothing while answers are owed.
const SILENCE: Duration = Duration::from_secs(5);
/// Reconnecting: the first pause, doubled each time up to the longest, and a random part of it
/// taken, so that a fleet of nodes does not return in one moment.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The subscriptions, shared by those who want and the task that subscribes.
#[derive(Debug)]
pub(crate) struct Table {
    subscriptions: Mutex<Subscriptions>,
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
    pub(crate) node: NodeId,
    pub(crate) settings: BusSettings,
    pub(crate) table: Arc<Table>,
    pub(crate) publisher: Arc<Publisher>,
    pub(super) slots: Option<Arc<SlotTable>>,
    pub(crate) listener: Weak<dyn Listener>,
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
        loop {
            let wake = match session.advance(Instant::now()) {
                Ok(wake) => wake,
                Err(reason) => return reason,
            };
            let Session {
                reader,
                output,
                publishing,
                ..
            } = &mut session;
            tokio::select! {
                count = read.read_buf(reader.space()) => match count {
                    Ok(0) => return "redis closed the connection".into(),
                    Ok(_) => {
                        let read = session.read();
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
                    session.published(published);
                }
                () = self.table.changed.notified() => {}
                () = self.table.doubted.notified() => session.probe.hurry(Instant::now()),
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

    fn tell(&self, what: impl FnOnce(&dyn Listener)) {
        if let Some(listener) = self.listener.upgrade() {
            what(&*listener);
        }
    }
}

/// One connection's state.
struct Session<'a> {
    subscriber: &'a Subscriber,
    failures: &'a mut u32,
    reader: Reader,
    /// What is still to be written.
    output: BytesMut,
    heard_at: Instant,
    probe: Probe,
    publishing: Option<BoxFuture<'a, Result<usize, PublishError>>>,
    own_topic: Topic,
    own_probe: Bytes,
}

impl<'a> Session<'a> {
    fn new(subscriber: &'a Subscriber, failures: &'a mut u32) -> Self {
        let now = Instant::now();
        let mut output = BytesMut::new();
        if let Some(auth) = subscriber.endpoint.auth() {
            output.extend_from_slice(&auth);
        }
        Self {
            subscriber,
            failures,
            reader: Reader::new(MAX_ENVELOPE),
            output,
            heard_at: now,
            probe: Probe::new(subscriber.settings.probe_interval, now),
            publishing: None,
            own_topic: Topic::node(subscriber.node),
            own_probe: wire::encode(subscriber.node, None, &Scope::default(), &Action::Probe),
        }
    }

    /// Does what is due; returns when to look again.
    fn advance(&mut self, now: Instant) -> Result<Instant, Arc<str>> {
        let mut subscriptions = self.subscriber.table.subscriptions.lock();
        if self.output.is_empty() {
            let step = subscriptions.step(now, BATCH);
            self.write(&step);
        }
        let (restored, expiry) = (subscriptions.is_restored(), subscriptions.next_expiry());
        drop(subscriptions);

        let wake = if restored {
            self.advance_probe(now)?
        } else {
            let end = self.heard_at + SILENCE;
            if end <= now {
                return Err("redis does not answer".into());
            }
            end
        };
        Ok(expiry.map_or(wake, |expiry| expiry.min(wake)))
    }

    fn advance_probe(&mut self, now: Instant) -> Result<Instant, Arc<str>> {
        loop {
            match self.probe.poll(now) {
                Verdict::Wait(until) => return Ok(until),
                Verdict::Lost => return Err("the probe did not come back: redis is silent".into()),
                Verdict::Send => {
                    let channel = self.subscriber.settings.namespace.channel(&self.own_topic);
                    let probe = self.own_probe.clone();
                    self.publishing = Some(
                        self.subscriber
                            .publisher
                            .publish(smallvec![channel], probe)
                            .boxed(),
                    );
                }
            }
        }
    }

    fn write(&mut self, step: &Step) {
        let namespace = &self.subscriber.settings.namespace;
        for (name, topics) in [
            ("SUBSCRIBE", &step.subscribe),
            ("UNSUBSCRIBE", &step.unsubscribe),
        ] {
            if topics.is_empty() {
                continue;
            }
            let mut command = redis::cmd(name);
            for topic in topics {
                command.arg(namespace.channel(topic));
            }
            self.output.extend_from_slice(&command.get_packed_command());
        }
    }

    /// Hands on what was read.
    fn read(&mut self) -> Result<(), Arc<str>> {
        self.heard_at = Instant::now();
        let Self {
            subscriber,
            reader,
            probe,
            own_topic,
            own_probe,
            heard_at,
            failures,
            ..
        } = self;
        let namespace = &subscriber.settings.namespace;
        let mut refused: Option<Arc<str>> = None;
        let read = reader.read(|reply| match reply {
            Reply::Message { channel, payload } => match namespace.topic(channel) {
                Some(topic) if topic == own_topic.as_str() && *payload == own_probe[..] => {
                    probe.returned(*heard_at);
                    **failures = 0;
                    subscriber.tell(|listener| listener.up());
                }
                Some(topic) => subscriber.tell(|listener| listener.heard(topic, payload)),
                None => subscriber.tell(|listener| listener.garbage()),
            },
            Reply::Oversized => subscriber.tell(|listener| listener.garbage()),
            Reply::Answered { channel } => {
                if let Some(topic) = namespace.topic(channel) {
                    subscriber.table.subscriptions.lock().answered(topic);
                }
            }
            Reply::Error(words) => {
                refused.get_or_insert(with_advice(&String::from_utf8_lossy(words)));
            }
            Reply::Integer(_) | Reply::Other => {}
        });
        match (refused, read) {
            (Some(reason), _) => Err(reason),
            (None, Err(Broken)) => Err("redis broke its own protocol".into()),
            (None, Ok(())) => Ok(()),
        }
    }

    fn published(&mut self, published: Result<usize, PublishError>) {
        self.publishing = None;
        if let Err(error) = published {
            self.probe.unsent(Instant::now());
            self.subscriber
                .tell(|listener| listener.down(error.reason, false));
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
