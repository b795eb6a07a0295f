//! What a node counts.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::Node;
use crate::close::Close;
use crate::code::CloseCode;
use crate::health::Stats;

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) sent: AtomicU64,
    pub(super) delivered: AtomicU64,
    pub(super) dropped_oldest: AtomicU64,
    pub(super) dropped_full: AtomicU64,
    pub(super) dropped_stalled: AtomicU64,
    pub(super) slow_closed: AtomicU64,
    closes: Closes,
    pub(super) bus_gaps: AtomicU64,
    pub(super) bus_gap_millis: AtomicU64,
    pub(super) bus_garbage: AtomicU64,
    pub(super) bus_reconnects: AtomicU64,
    publishes_unsent: AtomicU64,
    publishes_uncertain: AtomicU64,
    refused: Refusals,
    pub(super) limits_refused: AtomicU64,
    pub(super) limits_unchecked: AtomicU64,
    pub(super) questions_refused: AtomicU64,
}

/// Sockets that ended, by the code.
#[derive(Debug, Default)]
struct Closes {
    normal: AtomicU64,
    going_away: AtomicU64,
    no_status: AtomicU64,
    abnormal: AtomicU64,
    protocol: AtomicU64,
    too_big: AtomicU64,
    panicked: AtomicU64,
    restart: AtomicU64,
    slow: AtomicU64,
    expired: AtomicU64,
    other: AtomicU64,
}

impl Closes {
    fn of(&self, code: CloseCode) -> &AtomicU64 {
        match code {
            Close::NORMAL => &self.normal,
            Close::GOING_AWAY => &self.going_away,
            Close::NO_STATUS => &self.no_status,
            Close::ABNORMAL => &self.abnormal,
            Close::PROTOCOL_ERROR | Close::INVALID_DATA => &self.protocol,
            Close::TOO_BIG => &self.too_big,
            Close::INTERNAL_ERROR => &self.panicked,
            Close::RESTART => &self.restart,
            Close::TRY_AGAIN_LATER => &self.slow,
            Close::EXPIRED => &self.expired,
            _ => &self.other,
        }
    }
}

/// Upgrades that were refused for another reason than a limit.
#[derive(Debug, Default)]
struct Refusals {
    origins: AtomicU64,
    handshakes: AtomicU64,
    unauthenticated: AtomicU64,
    ids: AtomicU64,
    draining: AtomicU64,
    upgrades: AtomicU64,
    /// A type of user that was looked for and not there was said at warn.
    said_no_user: AtomicBool,
}

/// What a refusal counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    Origin,
    Handshake,
    Unauthenticated,
    Id,
    Draining,
    Upgrade,
}

impl Refusals {
    fn of(&self, what: Counted) -> &AtomicU64 {
        match what {
            Counted::Origin => &self.origins,
            Counted::Handshake => &self.handshakes,
            Counted::Unauthenticated => &self.unauthenticated,
            Counted::Id => &self.ids,
            Counted::Draining => &self.draining,
            Counted::Upgrade => &self.upgrades,
        }
    }
}

impl Counters {
    pub(super) fn note_failed_publish(&self, maybe_sent: bool) {
        let counter = match maybe_sent {
            true => &self.publishes_uncertain,
            false => &self.publishes_unsent,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(super) fn note_close(&self, close: &Close) {
        self.closes.of(close.code).fetch_add(1, Relaxed);
    }
}

impl Node {
    /// Whether it is the first of its kind.
    pub(crate) fn count_refusal(&self, what: Counted) -> bool {
        self.counters.refused.of(what).fetch_add(1, Relaxed) == 0
    }

    /// True once.
    pub(crate) fn is_first_without_user(&self) -> bool {
        !self.counters.refused.said_no_user.swap(true, Relaxed)
    }

    pub(crate) fn stats(&self) -> Stats {
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        let counters = &self.counters;
        let (closes, refused) = (&counters.closes, &counters.refused);
        let (oldest, full, stalled) = (
            count(&counters.dropped_oldest),
            count(&counters.dropped_full),
            count(&counters.dropped_stalled),
        );
        let (unsent, uncertain) = (
            count(&counters.publishes_unsent),
            count(&counters.publishes_uncertain),
        );
        let probe_age = self.outage.lock().proven_at().elapsed();
        let nodes = 1 + self.members.lock().ids().count() as u64;
        let registry = self.registry.read();
        Stats {
            sockets: registry.sockets() as u64,
            users: registry.users() as u64,
            rooms: registry.rooms() as u64,
            nodes,
            sent: count(&counters.sent),
            delivered: count(&counters.delivered),
            dropped: oldest + full + stalled,
            dropped_oldest: oldest,
            dropped_full: full,
            dropped_stalled: stalled,
            slow_closed: count(&counters.slow_closed),
            closed_normal: count(&closes.normal),
            closed_going_away: count(&closes.going_away),
            closed_no_status: count(&closes.no_status),
            closed_abnormal: count(&closes.abnormal),
            closed_protocol: count(&closes.protocol),
            closed_too_big: count(&closes.too_big),
            closed_panicked: count(&closes.panicked),
            closed_restart: count(&closes.restart),
            closed_slow: count(&closes.slow),
            closed_expired: count(&closes.expired),
            closed_other: count(&closes.other),
            bus_gaps: count(&counters.bus_gaps),
            bus_gap_millis: count(&counters.bus_gap_millis),
            bus_garbage: count(&counters.bus_garbage),
            bus_reconnects: count(&counters.bus_reconnects),
            bus_probe_age_millis: probe_age.as_millis() as u64,
            bus_publish_failures: unsent + uncertain,
            bus_publish_unsent: unsent,
            bus_publish_uncertain: uncertain,
            bus_publish_queue: self.bus.queued() as u64,
            origins_refused: count(&refused.origins),
            handshakes_refused: count(&refused.handshakes),
            unauthenticated: count(&refused.unauthenticated),
            ids_refused: count(&refused.ids),
            drain_refused: count(&refused.draining),
            upgrades_failed: count(&refused.upgrades),
            limits_refused: count(&counters.limits_refused),
            limits_unchecked: count(&counters.limits_unchecked),
            questions_refused: count(&counters.questions_refused),
        }
    }
}
