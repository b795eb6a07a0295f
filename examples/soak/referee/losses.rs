//! Judges what is missing: lost inside a gap that was told, or outside.

use std::collections::{HashSet, VecDeque};

use axum_cluster::SocketId;

use super::{PATIENCE, Referee};
use crate::missing::Missing;
use crate::words::{Kind, Outcome, clock, kind};

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
            let inside = !is_local
                && match is_kept && !receiver.gone {
                    true => receiver.was_late(missing.since, entry),
                    false => receiver.is_excused(node, entry),
                };
            let blamed = self
                .occasions
                .iter_mut()
                .rfind(|occasion| occasion.from <= entry.done + UNDER_WAY);
            match inside {
                true => self.tally.inside += 1,
                false => {
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
                "{} messages from {} to {:?} at socket {} of {}, {} ({}) to {} ({}), retired {}, told of {gaps:?}",
                lost.len(),
                missing.sender,
                self.audiences[missing.audience],
                missing.socket,
                receiver.node,
                first.number,
                clock(first.sent),
                last.number,
                clock(last.done),
                clock(missing.until),
            );
            self.describe("lost", &details);
        }
    }
}
