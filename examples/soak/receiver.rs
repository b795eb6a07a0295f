//! A socket as its client sees it, and what is known of its node.

use std::collections::HashMap;

use crate::ledger::Entry;
use crate::words::{Life, Target};

/// A socket, as its client sees it.
#[derive(Debug)]
pub struct Receiver {
    pub node: Life,
    pub memberships: HashMap<Target, Membership>,
    /// The number of the audience that is this socket alone, if there is one.
    pub single: Option<usize>,
    /// The last moment at which it surely was there: something sent then has come.
    pub proven: u64,
    pub progress: HashMap<(Life, usize), Progress>,
    pub gaps: Vec<(u64, u64)>,
    /// From this moment on nothing new is owed.
    pub retired: Option<u64>,
    pub gone: bool,
}

/// How a socket stands to a target.
#[derive(Clone, Copy, Debug)]
pub enum Membership {
    /// Everything sent after this is owed.
    Since(u64),
    /// On its way in or out: messages may come.
    Unsettled,
    /// What was sent after this must not come.
    Until(u64),
}

/// The first and the last number that came of one sender to one audience.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub first: u64,
    pub last: u64,
}

#[derive(Debug, Default)]
pub struct Node {
    pub up: bool,
    pub dead: bool,
    pub changed: u64,
    /// When the last upgrade began for which the limit of the cluster was checked.
    pub counted: u64,
    /// When it last asked for a user of another node, and was told that the user is online.
    pub found: u64,
    pub gaps: Vec<(u64, u64)>,
    /// When it was degraded, as far as that is over.
    pub outages: Vec<(u64, u64)>,
    /// How many of its messages it has counted as lost by Redis.
    pub rolled_back: u64,
    /// When it has found that of something that was kept it cannot be told.
    pub missed: Vec<u64>,
}

impl Receiver {
    /// What was sent to these targets after this is owed; `None`: nothing is.
    pub fn owed_since(&self, targets: &[Target]) -> Option<u64> {
        let since = |target| match self.memberships.get(target)? {
            Membership::Since(at) => Some(*at),
            _ => None,
        };
        targets.iter().filter_map(since).min()
    }

    pub fn may_get(&self, targets: &[Target], sent: u64) -> bool {
        targets
            .iter()
            .any(|target| match self.memberships.get(target) {
                Some(Membership::Until(at)) => sent <= *at,
                standing => standing.is_some(),
            })
    }

    /// Whether it was told that it may have missed this. A client that is gone could no longer be told
    /// what its node told later, or would have told had it lived.
    pub fn was_told(&self, node: &Node, entry: &Entry) -> bool {
        let covers = |&(from, until): &(u64, u64)| entry.sent <= until && entry.done >= from;
        let died_cut_off = node.dead && !node.up && entry.done + NOTICE >= node.changed;
        self.gaps.iter().any(covers) || self.gone && (node.gaps.iter().any(covers) || died_cut_off)
    }

    /// What is kept it need not get if it came in an outage, and was told of the gap.
    pub fn was_late(&self, node: &Node, since: u64, entry: &Entry) -> bool {
        let present = (!node.up).then_some((node.changed, u64::MAX));
        let is_in = |(down, up): (u64, u64)| since + SAID >= down && since <= up;
        let mut outages = node.outages.iter().copied().chain(present);
        let covers = |(from, until): &(u64, u64)| entry.sent <= *until && since >= *from;
        self.gaps.iter().any(covers) && outages.any(is_in)
    }
}

/// So long it may take a node to say that it is degraded, and a client to hear its welcome.
const SAID: u64 = 1_000_000;
/// A node cut off when it died would have told of a gap that began at most this long before it
/// noticed: two intervals of the probe.
const NOTICE: u64 = 10_000_000;
