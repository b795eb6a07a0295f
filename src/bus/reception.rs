//! How well this node hears the others: the links to the bus put together, the health that follows, and the gaps.
//!
//! ```text
//!             what the links say
//!  Degraded <--------------------> Up
//!     ^  |                          |
//!     |  +-----------+--------------+
//!     |              |  a shutdown begins        it is over
//!  lost: for good    +--------------------> Draining ----> Down
//! ```
//! Only the end of the runtime is for good, since nothing can be heard without it; from *Draining* on, what the links
//! say is nobody's concern any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Links;
use super::gaps::Gaps;
use super::health::{HealthCell, HealthChanges};
use super::outage::{Deaf, LinkId, MissedSpan, Outage, Span};
use super::repairs::Repaired;
use crate::counts::Counters;
use crate::model::gap::{Extent, Gap};
use crate::model::health::Health;
use crate::model::history::Histories;
use crate::model::id::NodeId;
use crate::model::partition::PartitionSet;
use crate::model::topic::{Kinds, TopicKind};
use crate::readers::Readers;

#[derive(Debug)]
pub(crate) struct Reception {
    node: NodeId,
    links: Arc<dyn Links>,
    outage: Mutex<Outage>,
    health: HealthCell,
    gaps: Readers<Gap>,
    /// Something is to be said of what strayed.
    astray: Arc<Notify>,
    counters: Arc<Counters>,
    /// Of topics of these kinds nothing is kept.
    unkept: Kinds,
    /// Nothing is heard any more, for good.
    lost: AtomicBool,
}

impl Reception {
    /// Nothing is known of the links yet.
    pub(crate) fn new(
        node: NodeId,
        links: Arc<dyn Links>,
        histories: &Histories,
        counters: Arc<Counters>,
    ) -> Self {
        let is_unkept = |kind: &TopicKind| histories.of(*kind).is_none();
        let outage = Outage::new(links.links(), Instant::now(), SystemTime::now());
        Self {
            node,
            links,
            health: HealthCell::new(outage.health()),
            outage: Mutex::new(outage),
            gaps: Readers::default(),
            astray: Arc::default(),
            counters,
            unkept: TopicKind::EACH.into_iter().filter(is_unkept).collect(),
            lost: AtomicBool::new(false),
        }
    }

    pub(crate) fn health(&self) -> Health {
        self.health.get()
    }

    pub(crate) fn health_changes(&self) -> HealthChanges {
        self.health.changes()
    }

    pub(crate) fn gaps(&self) -> Gaps {
        Gaps::new(self.gaps.read())
    }

    /// Since when, and until when, this node has heard whatever the others said; none while the bus is down.
    pub(crate) fn hearing(&self) -> Option<Span> {
        let span = self.outage.lock().hearing();
        self.heard(span)
    }

    /// Since when, and until when, it has heard whatever the others said in these partitions.
    pub(crate) fn hearing_of(&self, partitions: PartitionSet) -> Option<Span> {
        let span = self.outage.lock().hearing_of(partitions);
        self.heard(span)
    }

    /// Since when, and until when, it has heard what nodes say to each other, which goes on while the channels of others are refused.
    pub(crate) fn hearing_nodes(&self) -> Option<Span> {
        let span = self.outage.lock().hearing_nodes();
        self.heard(span)
    }

    /// The kinds of what is refused, on any link.
    pub(crate) fn refused_kinds(&self) -> Vec<TopicKind> {
        self.outage.lock().refused_kinds()
    }

    /// When all links were last known to work, or the node started.
    pub(crate) fn proven_at(&self) -> Instant {
        self.outage.lock().proven_at()
    }

    /// What was missed there is repaired, as far as that could be.
    pub(crate) fn up(&self, link: LinkId, proven: Instant, repaired: Repaired) {
        if self.is_lost() {
            return;
        }
        let missed = self.outage.lock().up(link, proven);
        // Before the change is told: whoever hears of it finds it counted.
        let reconnects = u64::from(missed.is_some());
        self.counters.bus_reconnects.fetch_add(reconnects, Relaxed);
        let is_up = self.follow_links() && self.health() == Health::Up;
        let gap = missed.map(|missed| self.tell_gap(missed, repaired).span());
        if is_up {
            tracing::info!(node = %self.node, ?gap, "the bus is up: messages travel between the nodes");
        }
    }

    pub(crate) fn down(&self, link: LinkId, reason: &Arc<str>, deaf: bool) {
        if self.is_lost() {
            return;
        }
        let now = SystemTime::now();
        let deaf = self.outage.lock().down(link, reason.clone(), deaf, now);
        if self.follow_down(deaf) {
            let gap = deaf != Deaf::No;
            tracing::warn!(node = %self.node, %reason, gap, "the bus is down: this node serves its own sockets and tries again by itself");
        }
    }

    pub(crate) fn refused(&self, link: LinkId, kind: TopicKind, reason: &Arc<str>) {
        if self.is_lost() {
            return;
        }
        self.counters.subscriptions_refused.fetch_add(1, Relaxed);
        let now = SystemTime::now();
        let deaf = self.outage.lock().refused(link, kind, reason.clone(), now);
        if self.follow_down(deaf) {
            let (of, gap) = (kind.whose(), deaf != Deaf::No);
            tracing::warn!(node = %self.node, of, %reason, gap, "channels are refused: what others send there is missed, everything else goes on, and they are asked for again");
        }
    }

    /// Partitions are on another link.
    pub(crate) fn moved(&self, partitions: PartitionSet, links: (LinkId, LinkId), at: Instant) {
        if self.is_lost() {
            return;
        }
        self.counters.bus_moves.fetch_add(1, Relaxed);
        let now = SystemTime::now();
        self.outage.lock().moved(partitions, links, at, now);
        self.follow_links();
    }

    /// The links, and those of them that work.
    pub(crate) fn links(&self) -> (usize, usize) {
        self.outage.lock().count()
    }

    pub(crate) fn works(&self, link: LinkId, proven: Instant) {
        self.outage.lock().works(link, proven);
    }

    pub(crate) fn strayed(&self, link: LinkId, since: Option<Instant>) {
        self.outage.lock().strayed(link, since);
        self.astray.notify_one();
    }

    /// Told when something strayed here or elsewhere.
    pub(crate) fn astray(&self) -> Arc<Notify> {
        self.astray.clone()
    }

    /// Since when what this node published may not have arrived, to be said to the others.
    pub(crate) fn take_strayed(&self) -> Option<Instant> {
        self.outage.lock().take_strayed()
    }

    /// What strayed could not be said.
    pub(crate) fn still_strayed(&self, since: Instant) {
        self.outage.lock().has_strayed(Some(since));
    }

    /// What another published may have reached others only, while we heard all there was to hear. Whether that is more than is to
    /// be told already.
    pub(crate) fn others_strayed(&self, span: Span) -> bool {
        let is_news = self.outage.lock().others_strayed(span);
        self.astray.notify_one();
        is_news
    }

    /// Tells the gap of what others published elsewhere, if they did.
    pub(crate) fn tell_of_others(&self) {
        let strays = self.outage.lock().take_strays();
        if let Some(strays) = strays {
            self.counters.bus_gaps.fetch_add(1, Relaxed);
            let missed = MissedSpan {
                span: strays,
                partitions: PartitionSet::all(),
                kinds: Kinds::ALL,
            };
            self.tell_gap(missed, Repaired::default());
        }
    }

    /// Whether nothing is heard any more, for good.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(SeqCst)
    }

    /// Nothing will be heard any more, for this reason. Whether that is news.
    pub(crate) fn lose(&self, reason: &str) -> bool {
        let degraded = |health: &Health| match health {
            Health::Up | Health::Degraded { .. } => Some(Health::Degraded {
                since: SystemTime::now(),
                reason: reason.into(),
            }),
            Health::Draining | Health::Down => None,
        };
        !self.lost.swap(true, SeqCst) && self.health.update(degraded)
    }

    /// The node begins to drain. Whether that is a change.
    pub(crate) fn drains(&self) -> bool {
        self.health
            .update(|health| (*health != Health::Down).then_some(Health::Draining))
    }

    /// The node is shut down. Whether that is a change. Whoever reads of the node is told that it is the last.
    pub(crate) fn ends(&self) -> bool {
        let is_news = self.health.update(|_| Some(Health::Down));
        self.health.end();
        self.gaps.end();
        is_news
    }

    fn heard(&self, span: Option<Span>) -> Option<Span> {
        let (since, proven) = span?;
        Some((since, self.links.heard_until(proven)))
    }

    fn tell_gap(&self, missed: MissedSpan, repaired: Repaired) -> Gap {
        let kinds = match repaired.gave_up {
            true => Kinds::ALL,
            false => missed.kinds | self.unkept,
        };
        let extent = Extent {
            partitions: missed.partitions,
            kinds,
            topics: repaired.missed,
            newcomers: repaired.newcomers,
        };
        let gap = Gap::between(missed.span, extent, Instant::now(), SystemTime::now());
        let millis = gap.span().as_millis() as u64;
        self.counters.bus_gap_millis.fetch_add(millis, Relaxed);
        self.gaps.tell(&gap);
        gap
    }

    /// Takes over what the links say of the bus, unless the node is about to end. Whether that is a change.
    fn follow_links(&self) -> bool {
        self.health.update(|health| match health {
            // Read meanwhile, so that of two changes the later holds.
            Health::Up | Health::Degraded { .. } => Some(self.outage.lock().health()),
            Health::Draining | Health::Down => None,
        })
    }

    /// Takes over bad news of the links, and counts an outage in which messages may be missed.
    fn follow_down(&self, deaf: Deaf) -> bool {
        if deaf == Deaf::Newly {
            self.counters.bus_gaps.fetch_add(1, Relaxed);
        }
        self.follow_links()
    }
}
