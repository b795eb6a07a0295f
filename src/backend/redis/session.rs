//! One connection of the subscriber, from its first byte to its last: greets, subscribes, probes, and hands
//! on what it hears.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::advice::{REPLICA, is_replica, tells_no_role, without_arguments};
use super::backoff::Backoff;
use super::command::{self, HELLO};
use super::probe::{Probe, Verdict};
use super::resp::{Broken, Reader, Reply};
use super::subscriber::Subscriber;
use super::subscriptions::Step;
use crate::error::PublishError;
use crate::scope::Scope;
use crate::topic::Topic;
use crate::wire::{self, Action};

/// Topics in one SUBSCRIBE: 100,000 take 0.18 s in batches of 1,000 and 8 s one by one; all in one
/// command would get the connection killed.
const BATCH: usize = 1000;
/// With so many unanswered, no more are sent: whoever comes during a restore waits behind these only, and
/// Redis, which cuts off a subscriber that has not read 32 MB, keeps no more answers for us.
pub(super) const UNANSWERED: usize = 4 * BATCH;
/// Replies that are handed on before those whom they concern get their turn: half of what an outbox holds by
/// default.
const TURN: usize = 128;
/// How long Redis may answer nothing while answers are owed.
pub(super) const SILENCE: Duration = Duration::from_secs(5);

pub(super) struct Session<'a> {
    subscriber: &'a Subscriber,
    backoff: &'a mut Backoff,
    /// What is still to be written.
    pub(super) output: BytesMut,
    /// When Redis last said something.
    heard_at: Instant,
    /// When Redis last answered in turn, or began to owe an answer. What else it says is no sign of life:
    /// messages go on when a single answer was lost, and so do the answers to what was asked later.
    answered_at: Instant,
    /// Until when Redis must have said who it is.
    opened_until: Instant,
    /// Redis has said who it is: before that, nothing is subscribed.
    greeted: bool,
    /// Everything for which nobody waited is confirmed: probes prove something.
    restored: bool,
    probe: Probe,
    /// Probes that may still come back, and when they were published.
    probes: Vec<(Bytes, Instant)>,
    /// The last probe, until Redis has taken it.
    pub(super) publishing: Option<BoxFuture<'a, Result<usize, PublishError>>>,
    /// When the probe was published that came back first, until Redis has said that it is no replica.
    returned: Option<Instant>,
    own_topic: Topic,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        subscriber: &'a Subscriber,
        opened_until: Instant,
        backoff: &'a mut Backoff,
    ) -> Self {
        let now = Instant::now();
        let mut output = BytesMut::new();
        if let Some(auth) = subscriber.endpoint.auth() {
            output.extend_from_slice(&auth);
        }
        output.extend_from_slice(HELLO);
        Self {
            subscriber,
            backoff,
            output,
            heard_at: now,
            answered_at: now,
            opened_until,
            greeted: false,
            restored: false,
            probe: Probe::new(subscriber.settings.probe_interval, now),
            probes: Vec::new(),
            publishing: None,
            returned: None,
            own_topic: Topic::node(subscriber.node),
        }
    }

    /// Does what is due; returns when to look again.
    pub(super) fn advance(&mut self, now: Instant) -> Result<Instant, Arc<str>> {
        let table = &self.subscriber.table;
        let (doubted, step, (restored, expiry, owed)) = table.with(|table| {
            let doubted = self.restored && !table.is_restored();
            let may_write = self.greeted && self.output.is_empty();
            let limit = match may_write && table.unanswered() <= UNANSWERED - BATCH {
                true => BATCH,
                false => 0,
            };
            if table.unanswered() == 0 {
                self.answered_at = now;
            }
            let step = table.step(now, limit);
            let owed = table.unanswered() > 0;
            (
                doubted,
                step,
                (table.is_restored(), table.next_expiry(), owed),
            )
        });
        self.write(&step);
        if doubted {
            self.begin_anew(now);
        }
        self.restored = restored;
        let mut wake = self.answered_until(owed);
        if wake.is_some_and(|end| end <= now) {
            return Err("redis does not answer".into());
        }
        if restored {
            let probe = self.advance_probe(now)?;
            wake = Some(wake.map_or(probe, |end| end.min(probe)));
        }
        let wake = wake.unwrap_or(now + SILENCE);
        Ok(expiry.map_or(wake, |expiry| expiry.min(wake)))
    }

    /// Until when Redis must say what it owes, if it owes anything.
    fn answered_until(&self, owed: bool) -> Option<Instant> {
        match self.greeted {
            false => Some(self.opened_until),
            true => owed.then_some(self.answered_at + SILENCE),
        }
    }

    /// Somebody goes on unheard: only a probe that is published when all is confirmed proves the bus again.
    fn begin_anew(&mut self, now: Instant) {
        self.probe = Probe::new(self.subscriber.settings.probe_interval, now);
        self.probes.clear();
        self.returned = None;
        let reason = "redis does not confirm subscriptions in time";
        self.subscriber
            .tell(|listener| listener.down(reason.into(), true));
    }

    fn advance_probe(&mut self, now: Instant) -> Result<Instant, Arc<str>> {
        loop {
            match self.probe.poll(now) {
                Verdict::Wait(until) => return Ok(until),
                Verdict::Lost => return Err("the probe did not come back: redis is silent".into()),
                Verdict::Send => {
                    let channel = self.subscriber.settings.namespace.channel(&self.own_topic);
                    let probe = self.numbered_probe();
                    self.probes.push((probe.clone(), now));
                    self.publishing = Some(self.subscriber.publisher.probe(channel, probe).boxed());
                }
            }
        }
    }

    /// No two are alike: one that was published on an earlier connection proves nothing about this one.
    fn numbered_probe(&self) -> Bytes {
        let number = Some(fastrand::u64(..));
        wire::encode(
            self.subscriber.node,
            number,
            &Scope::default(),
            &Action::Probe,
        )
    }

    fn write(&mut self, step: &Step) {
        let namespace = &self.subscriber.settings.namespace;
        let channel = |topic| namespace.channel(topic);
        if !step.subscribe.is_empty() {
            command::subscribe(&mut self.output, step.subscribe.iter().map(channel));
        }
        if !step.unsubscribe.is_empty() {
            command::unsubscribe(&mut self.output, step.unsubscribe.iter().map(channel));
        }
    }

    /// Hands on a part of what was read; whether there may be more.
    pub(super) fn read(&mut self, reader: &mut Reader) -> Result<bool, Arc<str>> {
        self.heard_at = Instant::now();
        let mut refused = Ok(());
        let read = reader.read(TURN, |reply| {
            let taken = self.take(reply);
            if refused.is_ok() {
                refused = taken;
            }
        });
        refused?;
        read.map_err(|Broken| "redis broke its own protocol".into())
    }

    fn take(&mut self, reply: Reply<'_>) -> Result<(), Arc<str>> {
        let subscriber = self.subscriber;
        let namespace = &subscriber.settings.namespace;
        match reply {
            Reply::Message { channel, payload } => match namespace.topic(channel) {
                Some(topic) if topic == self.own_topic.as_str() && self.is_probe(payload) => {}
                Some(topic) => subscriber.tell(|listener| listener.heard(topic, payload)),
                None => subscriber.tell(|listener| listener.garbage()),
            },
            Reply::Oversized => subscriber.tell(|listener| listener.garbage()),
            Reply::Answered { channel } => {
                if let Some(topic) = namespace.topic(channel) {
                    let in_turn = subscriber.table.with(|table| table.answered(topic));
                    if in_turn {
                        self.answered_at = self.heard_at;
                    }
                }
            }
            Reply::Hello { role } if role.is_some_and(is_replica) => return Err(REPLICA.into()),
            Reply::Hello { .. } => self.greet(),
            Reply::Error(words) => {
                let words = String::from_utf8_lossy(words);
                if self.greeted || !tells_no_role(&words) {
                    return Err(subscriber.advice.on(&words));
                }
                self.greet();
                subscriber.told_no_role.call_once(|| {
                    let words = without_arguments(&words);
                    tracing::warn!(
                        words,
                        "redis does not tell its role: after a failover, make sure that \
                        the old primary is not reachable under the URL's host"
                    );
                });
            }
            Reply::Integer(_) | Reply::Other => {}
        }
        Ok(())
    }

    fn greet(&mut self) {
        self.greeted = true;
        self.subscriber.endpoint.moved();
    }

    /// Whether this is one of our probes, come back.
    fn is_probe(&mut self, payload: &[u8]) -> bool {
        let Some(at) = self.probes.iter().position(|(probe, _)| *probe == payload) else {
            return false;
        };
        let (_, published) = self.probes.swap_remove(at);
        self.probes.clear();
        self.probe.returned(self.heard_at);
        self.returned.get_or_insert(published);
        if self.publishing.is_none() {
            self.prove();
        }
        true
    }

    /// Redis took the last probe, or did not.
    pub(super) fn published(
        &mut self,
        published: Result<usize, PublishError>,
    ) -> Result<(), Arc<str>> {
        self.publishing = None;
        match published {
            Ok(0) => Err("the publisher is connected to another Redis than the subscriber".into()),
            Ok(_) => {
                self.prove();
                Ok(())
            }
            Err(error) if error.on_replica => {
                self.subscriber.tell(|listener| listener.strayed());
                Err(error.reason)
            }
            Err(error) => {
                self.returned = None;
                self.probes.clear();
                self.probe.unsent(Instant::now());
                self.subscriber
                    .tell(|listener| listener.down(error.reason, false));
                Ok(())
            }
        }
    }

    /// Something looks wrong: probe now.
    pub(super) fn hurry(&mut self) {
        self.probe.hurry(Instant::now());
    }

    /// The bus works, if a probe has come back.
    fn prove(&mut self) {
        if let Some(proven) = self.returned.take() {
            self.backoff.works(Instant::now());
            self.subscriber.tell(|listener| listener.up(proven));
        }
    }
}
