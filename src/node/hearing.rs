//! What the bus tells the node: messages, and how the bus itself stands.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::admission::replaced;
use super::{CHUNK, Node};
use crate::backend::Listener;
use crate::close::Close;
use crate::gap::Gap;
use crate::health::Health;
use crate::outbox::Outbox;
use crate::wire::{self, Action, ONE_COPY};
use crate::ws::frame::Frame;

/// What is known of the bus beside its health.
#[derive(Debug)]
pub(super) struct Outage {
    started: Instant,
    /// When the bus was last known to work.
    proven: Option<Instant>,
    /// Since when it has worked without a break; none while it does not.
    since: Option<Instant>,
    /// Messages may have been missed in the present outage, since then.
    gap: Option<Instant>,
    /// What this node published since then may not have arrived everywhere, and the others are to be told.
    strayed: Option<Instant>,
    /// From when until when others said so of what they published.
    strays: Option<(Instant, Instant)>,
}

impl Outage {
    pub(super) fn new(started: Instant) -> Self {
        Self {
            started,
            proven: None,
            since: None,
            gap: None,
            strayed: None,
            strays: None,
        }
    }

    /// The bus works, proven by what was published then. Since when messages may have been missed, if they may.
    fn ends(&mut self, proven: Instant) -> Option<Instant> {
        self.proven = Some(proven);
        self.since.get_or_insert(proven);
        let gap = self.gap.take()?;
        // One gap tells of both.
        let strays = self.strays.take().map_or(gap, |(from, _)| from);
        Some(gap.min(strays))
    }

    /// Others stood on the wrong server in the meantime; it is told with the next [`take_strays`](Self::take_strays),
    /// since after a failover many say so.
    pub(super) fn others_strayed(&mut self, from: Instant, until: Instant) {
        let (first, last) = self.strays.unwrap_or((from, until));
        self.strays = Some((first.min(from), last.max(until)));
    }

    pub(super) fn take_strays(&mut self) -> Option<(Instant, Instant)> {
        self.strays.take()
    }

    /// Since when what we published may not have arrived; to be said to the others.
    pub(super) fn take_strayed(&mut self) -> Option<Instant> {
        self.strayed.take()
    }

    /// It could not be said, or is known only now.
    pub(super) fn has_strayed(&mut self, since: Option<Instant>) {
        self.strayed = self.strayed.into_iter().chain(since).min();
    }

    /// The bus does not work. Whether messages may be missed, and whether that is new. Who never heard
    /// anything misses nothing.
    fn begins(&mut self, deaf: bool) -> (bool, bool) {
        self.since = None;
        let is_new = deaf && self.gap.is_none() && self.proven.is_some();
        if is_new {
            self.gap = self.proven;
        }
        (self.gap.is_some(), is_new)
    }

    /// When the bus was last known to work, or the node started.
    pub(super) fn proven_at(&self) -> Instant {
        self.proven.unwrap_or(self.started)
    }
}

impl Node {
    pub(super) fn tell_gap(&self, gap: Gap) {
        let millis = gap.span().as_millis() as u64;
        self.counters.bus_gap_millis.fetch_add(millis, Relaxed);
        self.gaps.tell(gap);
    }

    /// Since when, and until when, this node has heard whatever the others said; none while the bus is down.
    pub(super) fn hearing(&self) -> Option<(Instant, Instant)> {
        let (since, proven) = {
            let outage = self.outage.lock();
            (outage.since?, outage.proven?)
        };
        Some((since, self.bus.heard_until(proven)))
    }
}

impl Listener for Node {
    fn heard(&self, topic: &str, bytes: &[u8]) {
        let Ok(envelope) = wire::decode(bytes) else {
            return self.garbage();
        };
        if envelope.origin == Some(self.id) {
            if let Action::Control(_) = envelope.action {
                self.heard_itself(envelope.union);
            }
            return;
        }
        if let (Some(origin), Action::Control(json)) = (envelope.origin, &envelope.action) {
            let to_us = topic == self.own.as_str();
            return self.heard_control(origin, to_us, &envelope.scope, json);
        }
        if let (Some(origin), Some(union)) = (envelope.origin, envelope.union)
            && union != ONE_COPY
            && !self.unions.lock().insert(origin, union)
        {
            return;
        }
        let mut scope = envelope.scope;
        if envelope.union.is_none() {
            scope.targets.push(topic);
        }
        match envelope.action {
            Action::Text(text) => self.collect(&scope, || Frame::text(&text)),
            Action::Binary(bytes) => self.collect(&scope, || Frame::binary(&bytes)),
            Action::Close { code, reason } => {
                self.collect_close(&self.members_of(&scope), &Close::new(code, &*reason));
            }
            Action::Answer { id, more, part } => {
                if let Some(origin) = envelope.origin {
                    self.heard_answer(origin, id, more, part);
                }
            }
            Action::Report(json) => {
                if let Some(origin) = envelope.origin {
                    self.presence.heard_report(origin, json);
                }
            }
            Action::Watch(json) => {
                if let Some(origin) = envelope.origin {
                    self.presence.heard_request(origin, json);
                }
            }
            Action::Control(_) | Action::Probe | Action::Unknown => {}
        }
    }

    fn settle(&self) -> bool {
        let mut collected = self.collected.lock();
        let rest = collected.len().saturating_sub(CHUNK);
        let chunk: SmallVec<[Arc<Outbox>; CHUNK]> = collected.drain(rest..).collect();
        drop(collected);
        let mut others_write = false;
        for outbox in &chunk {
            others_write |= outbox.write_collected();
        }
        rest > 0 || others_write
    }

    fn garbage(&self) {
        self.counters.bus_garbage.fetch_add(1, Relaxed);
    }

    fn replaced(&self, number: u64) {
        let outbox = self.live.lock().get(&number).cloned();
        if let Some(outbox) = outbox {
            outbox.close(replaced());
        }
    }

    fn up(&self, proven: Instant) {
        if self.has_lost_its_runtime() {
            return;
        }
        let gap = self.outage.lock().ends(proven);
        let gap = gap.map(|from| Gap::between(from, proven));
        let changed = self.health.update(|health| match health {
            Health::Degraded { .. } => Some(Health::Up),
            _ => None,
        });
        if let Some(gap) = gap {
            self.counters.bus_reconnects.fetch_add(1, Relaxed);
            self.tell_gap(gap);
        }
        if changed {
            tracing::info!(node = %self.id, gap = ?gap.map(|gap| gap.span()), "the bus is up: messages travel between the nodes");
        }
    }

    fn strayed(&self) {
        let mut outage = self.outage.lock();
        let proven = outage.proven;
        outage.has_strayed(proven);
    }

    fn down(&self, reason: Arc<str>, deaf: bool) {
        if self.has_lost_its_runtime() {
            return;
        }
        let (gap, is_new) = self.outage.lock().begins(deaf);
        self.counters.bus_gaps.fetch_add(u64::from(is_new), Relaxed);
        let changed = self.health.update(|health| match health {
            Health::Up => Some(Health::Degraded {
                since: SystemTime::now(),
                reason: reason.clone(),
            }),
            Health::Degraded { since, .. } => Some(Health::Degraded {
                since: *since,
                reason: reason.clone(),
            }),
            Health::Draining | Health::Down => None,
        });
        if changed {
            tracing::warn!(node = %self.id, %reason, gap, "the bus is down: this node serves its own sockets and tries again by itself");
        }
    }
}
