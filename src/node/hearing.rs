//! What the bus tells the node: messages, and how the bus itself stands.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::Node;
use crate::bus::Listener;
use crate::bus::outage::{Deaf, LinkId, Span};
use crate::bus::topic::TopicKind;
use crate::bus::uplink::Inbound;
use crate::config::CHUNK;
use crate::local::socket::{Flushed, Sender, SweepEnd};
use crate::model::close::reason;
use crate::model::gap::Gap;
use crate::model::health::Health;

impl Node {
    pub(super) fn tell_gap(&self, (from, until): Span) -> Gap {
        let gap = Gap::between(from, until);
        let millis = gap.span().as_millis() as u64;
        self.counters.bus_gap_millis.fetch_add(millis, Relaxed);
        self.gaps.tell(gap);
        gap
    }

    /// Since when, and until when, this node has heard whatever the others said; none while the bus is down.
    pub(super) fn hearing(&self) -> Option<Span> {
        let (since, proven) = self.outage.lock().hearing()?;
        Some((since, self.bus.heard_until(proven)))
    }

    /// The same of what nodes say to each other, which goes on while the channels of others are refused.
    pub(super) fn hearing_nodes(&self) -> Option<Span> {
        let (since, proven) = self.outage.lock().hearing_nodes()?;
        Some((since, self.bus.heard_until(proven)))
    }

    /// Takes over what the links say of the bus, unless the node is about to end. Whether that is a change.
    fn follow_links(&self) -> bool {
        self.health.update(|health| match health {
            // Read meanwhile, so that of two changes the later holds.
            Health::Up | Health::Degraded { .. } => Some(self.outage.lock().health()),
            Health::Draining | Health::Down => None,
        })
    }

    /// The same of bad news: counts an outage in which messages may be missed.
    fn follow_down(&self, deaf: Deaf) -> bool {
        if deaf == Deaf::Newly {
            self.counters.bus_gaps.fetch_add(1, Relaxed);
        }
        self.follow_links()
    }
}

impl Listener for Node {
    fn heard(&self, topic: &str, bytes: &[u8]) {
        match self.uplink.open(topic, bytes) {
            Inbound::Message(scope, content) => self.collect(&scope, || content.frame()),
            Inbound::Close(scope, close) => self.collect_close(&self.members_of(&scope), &close),
            Inbound::Peer {
                from,
                word,
                scope,
                hearers,
            } => self.heard_word(from, word, &scope, hearers),
            Inbound::Answer {
                from,
                id,
                more,
                part,
            } => self.heard_answer(from, id, more, part),
            Inbound::Report(from, json) => self.presence.heard_report(from, json),
            Inbound::Watch(from, json) => self.presence.heard_request(from, json),
            Inbound::Echo(id) => self.heard_itself(id),
            Inbound::Nothing => {}
        }
    }

    fn settle(&self) -> bool {
        let mut collected = self.collected.lock();
        let rest = collected.len().saturating_sub(CHUNK);
        let chunk: SmallVec<[Sender; CHUNK]> = collected.drain(rest..).collect();
        drop(collected);
        let mut others_write = false;
        for socket in &chunk {
            others_write |= socket.flush() == Flushed::ByTask;
        }
        rest > 0 || others_write
    }

    fn garbage(&self) {
        self.uplink.garbage();
    }

    fn replaced(&self, number: u64) {
        let socket = self.live.lock().get(&number).map(SweepEnd::sender);
        if let Some(socket) = socket {
            socket.close(reason::REPLACED);
        }
    }

    fn up(&self, link: LinkId, proven: Instant) {
        if self.has_lost_its_runtime() {
            return;
        }
        let missed = self.outage.lock().up(link, proven);
        // Before the change is told: whoever hears of it finds it counted.
        let reconnects = u64::from(missed.is_some());
        self.counters.bus_reconnects.fetch_add(reconnects, Relaxed);
        let is_up = self.follow_links() && self.health.get() == Health::Up;
        let gap = missed.map(|span| self.tell_gap(span).span());
        if is_up {
            tracing::info!(node = %self.id, ?gap, "the bus is up: messages travel between the nodes");
        }
    }

    fn strayed(&self, link: LinkId) {
        self.outage.lock().strayed(link);
    }

    fn down(&self, link: LinkId, reason: Arc<str>, deaf: bool) {
        if self.has_lost_its_runtime() {
            return;
        }
        let now = SystemTime::now();
        let deaf = self.outage.lock().down(link, reason.clone(), deaf, now);
        if self.follow_down(deaf) {
            let gap = deaf != Deaf::No;
            tracing::warn!(node = %self.id, %reason, gap, "the bus is down: this node serves its own sockets and tries again by itself");
        }
    }

    fn refused(&self, link: LinkId, kind: TopicKind, reason: Arc<str>) {
        if self.has_lost_its_runtime() {
            return;
        }
        self.counters.subscriptions_refused.fetch_add(1, Relaxed);
        let now = SystemTime::now();
        let deaf = self.outage.lock().refused(link, kind, reason.clone(), now);
        if self.follow_down(deaf) {
            let (of, gap) = (kind.whose(), deaf != Deaf::No);
            tracing::warn!(node = %self.id, of, %reason, gap, "channels are refused: what others send there is missed, everything else goes on, and they are asked for again");
        }
    }

    fn works(&self, link: LinkId, proven: Instant) {
        self.outage.lock().works(link, proven);
    }

    fn panicked(&self) {
        self.counters.task_panics.fetch_add(1, Relaxed);
    }
}
