//! Judges what is missing: lost inside a gap that was told, or outside.

use std::collections::{HashSet, VecDeque};

use axum_cluster::SocketId;

use super::{PATIENCE, Referee};
use crate::ledger::Entry;
use crate::missing::Missing;
use crate::tally::Occasion;
use crate::words::{Kind, Outcome, clock, kind};

/// What of what is missing somebody was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Inside,
    /// Redis had taken it, and lost it.
    Destroyed,
    /// Redis lost so much that the receiver's node cannot tell what it missed, and has counted that.
    Untellable,
    Outside,
}

/// After a fault has healed, it may take a node so long to say what it has lost.
const TOLD: u64 = 1_000_000;
/// A message may be lost to a fault that began this long after it was sent: it was on its way.
const UNDER_WAY: u64 = 1_000_000;

impl Referee {
    /// What a retired socket was owed and has not got, after the last that came.
    pub(super) fn outstanding(&self, socket: SocketId, noticed: u64) -> Vec<Missing> {
        let Some((receiver, until)) = self
            .sockets
            .get(&socket)
            .and_then(|receiver| Some((receiver, receiver.retired?)))
        else {
            return Vec::new();
        };
        let missing = self
            .ledgers
            .iter()
            .filter_map(|(&(sender, audience), ledger)| {
                let since = receiver.owed_since(&self.audiences[audience])?;
                let last = receiver.progress.get(&(sender, audience));
                let from = last.map_or(1, |progress| progress.last + 1);
                let mut owed = ledger
                    .after(since, from)
                    .filter(|entry| entry.done < until)
                    .filter(|entry| sender == receiver.node || entry.outcome == Outcome::Taken);
                owed.next()?;
                Some(Missing {
                    socket,
                    sender,
                    audience,
                    from,
                    to: ledger.last(),
                    since,
                    until,
                    noticed,
                })
            });
        missing.collect()
    }

    pub(super) fn judge_missing(&mut self, now: u64, at_the_end: bool) {
        let mut waiting = VecDeque::new();
        for missing in std::mem::take(&mut self.missing) {
            let node = self.sockets[&missing.socket].node;
            // Who fell silent reads no more.
            let ripe = missing.noticed + PATIENCE < now
                && !self.silent.contains(&missing.socket)
                && self.has_been_up_since(node, now - PATIENCE / 4);
            if ripe || at_the_end {
                self.decide(&missing);
            } else {
                waiting.push_back(missing);
            }
        }
        self.missing = waiting;
        let needed: HashSet<_> = self.missing.iter().map(|missing| missing.socket).collect();
        self.sockets
            .retain(|socket, receiver| !receiver.gone || needed.contains(socket));
        for ledger in self.ledgers.values_mut() {
            ledger.forget_old(now);
        }
    }

    /// What is kept is lost only with the Redis that had taken it: in a fault in which that may be, as this socket was told.
    fn lost_by_redis(&self, missing: &Missing, entry: &Entry) -> Loss {
        let receiver = &self.sockets[&missing.socket];
        let node = &self.nodes[&receiver.node];
        let span = |one: &Occasion| {
            let until = one.until.unwrap_or(u64::MAX);
            let is_then = one.from <= entry.done + UNDER_WAY && entry.sent <= until;
            (one.destroys && is_then).then_some((one.from, until.saturating_add(TOLD)))
        };
        let mut spans = self.occasions.iter().filter_map(span);
        let (Some((from, until)), true) = (spans.next(), receiver.was_told(node, entry)) else {
            return Loss::Outside;
        };
        match node.missed.iter().any(|at| (from..until).contains(at)) {
            true => Loss::Untellable,
            false => Loss::Destroyed,
        }
    }

    /// Whatever a Redis lost has been counted by its sender.
    pub(super) fn judge_destroyed(&mut self) {
        for (sender, lost) in std::mem::take(&mut self.destroyed) {
            let counted = self.nodes.get(&sender).map_or(0, |node| node.rolled_back);
            let uncounted = (lost.len() as u64).saturating_sub(counted);
            self.tally.uncounted += uncounted;
            if uncounted > 0 {
                let details = format!("{sender} lost {}, and counted {counted}", lost.len());
                self.describe("uncounted", (sender, 0, 0), &details);
            }
        }
    }

    fn decide(&mut self, missing: &Missing) {
        let receiver = &self.sockets[&missing.socket];
        let node = &self.nodes[&receiver.node];
        let Some(ledger) = self.ledgers.get(&(missing.sender, missing.audience)) else {
            return;
        };
        let mut lost = Vec::new();
        let owed = ledger
            .after(missing.since, missing.from)
            .take_while(|entry| entry.number <= missing.to)
            .filter(|entry| entry.done < missing.until);
        for entry in owed {
            let is_local = missing.sender == receiver.node;
            if !is_local && entry.outcome != Outcome::Taken {
                self.tally.sender_told += 1;
                continue;
            }
            let is_kept = self.history && kind(&self.audiences[missing.audience]) != Kind::Socket;
            let loss = match is_kept {
                true if receiver.was_late(node, missing.since, entry) => Loss::Inside,
                true => self.lost_by_redis(missing, entry),
                false if !is_local && receiver.was_told(node, entry) => Loss::Inside,
                false => Loss::Outside,
            };
            let inside = loss != Loss::Outside;
            if loss == Loss::Destroyed {
                let of_sender = self.destroyed.entry(missing.sender).or_default();
                of_sender.insert((missing.audience, entry.number));
            }
            let blamed = self
                .occasions
                .iter_mut()
                .rfind(|occasion| occasion.from <= entry.done + UNDER_WAY);
            match loss {
                Loss::Inside => self.tally.inside += 1,
                Loss::Destroyed | Loss::Untellable => self.tally.destroyed += 1,
                Loss::Outside => {
                    self.tally.outside += 1;
                    lost.push(*entry);
                }
            }
            if let Some(occasion) = blamed {
                *match inside {
                    true => &mut occasion.inside,
                    false => &mut occasion.outside,
                } += 1;
            }
        }
        let unreported = missing
            .to
            .saturating_sub(ledger.last().max(missing.from - 1));
        let sender_lives = self
            .nodes
            .get(&missing.sender)
            .is_some_and(|node| !node.dead);
        if unreported > 0 && sender_lives {
            self.tally.unreported += unreported;
        }
        if let (Some(first), Some(last)) = (lost.first(), lost.last()) {
            let mut gaps = receiver.gaps.clone();
            gaps.extend(&node.gaps);
            gaps.retain(|(from, until)| {
                first.sent < until + PATIENCE && *from < last.done + PATIENCE
            });
            let gaps: Vec<_> = gaps
                .iter()
                .map(|(from, until)| (clock(*from), clock(*until)))
                .collect();
            let details = format!(
                "{} messages from {} to {:?} at socket {} of {}, {} ({}) to {} ({}), owed since {} and until {}, told of {gaps:?}",
                lost.len(),
                missing.sender,
                self.audiences[missing.audience],
                missing.socket,
                receiver.node,
                first.number,
                clock(first.sent),
                last.number,
                clock(last.done),
                clock(missing.since),
                clock(missing.until),
            );
            let which = (missing.sender, missing.audience, first.number);
            self.describe("lost", which, &details);
        }
    }
}
