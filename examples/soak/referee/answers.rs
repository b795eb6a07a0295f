//! Judges what nodes were told: who is there, and who is online.
//!
//! A socket was surely there while a question ran if it had entered before, and something came that was sent
//! afterwards. Its node must not have been degraded then, nor tell of a gap: one that is cut off is not asked.

use std::collections::{HashMap, HashSet};

use axum_cluster::SocketId;

use super::{PATIENCE, Referee};
use crate::answer::{Answer, Verdict};
use crate::receiver::{Membership, Receiver};
use crate::tally::Occasion;
use crate::words::{Life, Target, clock};

type Members<'a> = HashMap<Target, Vec<(SocketId, &'a Receiver)>>;

impl Referee {
    pub fn answered(&mut self, asker: Life, answer: Answer) {
        self.tally.answers += 1;
        match &answer.verdict {
            Verdict::Sockets { complete, .. } => {
                let incomplete = u64::from(!complete);
                self.tally.incomplete += incomplete;
                let began = |one: &&mut Occasion| one.from <= answer.told;
                if let Some(occasion) = self.occasions.iter_mut().rfind(began) {
                    let is_over = occasion.until.is_some_and(|until| until < answer.asked);
                    let (answers, those) = &mut occasion.answers[usize::from(is_over)];
                    *answers += 1;
                    *those += incomplete;
                }
            }
            Verdict::Online(true) => {
                let node = self.nodes.entry(asker).or_default();
                node.found = node.found.max(answer.asked);
            }
            Verdict::Online(false) => {}
            Verdict::Unanswered => self.tally.unanswered += 1,
        }
        self.answers.push_back((asker, answer));
    }

    /// What is asked in this time may be answered wrongly: Redis is where not every node is yet.
    pub fn moves(&mut self, from: u64, until: u64) {
        self.moves.push((from, until));
        self.seats.excuse(until);
    }

    pub(super) fn judge_answers(&mut self, now: u64, at_the_end: bool) {
        let is_ripe = |(_, it): &(Life, Answer)| at_the_end || it.told + PATIENCE < now;
        let count = self.answers.iter().take_while(|it| is_ripe(it)).count();
        let ripe: Vec<_> = self.answers.drain(..count).collect();
        let members = match ripe.is_empty() {
            true => return,
            false => self.members(),
        };
        let settled = now - if at_the_end { 0 } else { PATIENCE / 4 };
        let (mut wrong, mut unnamed) = (Vec::new(), 0);
        for (asker, answer) in ripe {
            let there = self.surely_there(&members, asker, &answer, settled);
            let is_wrong = match &answer.verdict {
                Verdict::Sockets {
                    count,
                    complete,
                    missing,
                } => {
                    let named = |socket: &&SocketId| missing.contains(&socket.node());
                    let owed = there.len() - there.iter().filter(named).count();
                    unnamed += u64::from(!complete && *count < owed);
                    *complete && *count < there.len()
                }
                Verdict::Online(is_online) => !is_online && !there.is_empty(),
                Verdict::Unanswered => false,
            };
            if is_wrong {
                wrong.push((asker, answer, there));
            }
        }
        drop(members);
        self.tally.unnamed += unnamed;
        for (asker, answer, there) in wrong {
            let (count, what) = match answer.verdict {
                Verdict::Sockets { .. } => (&mut self.tally.wrongly_complete, "wrongly complete"),
                _ => (&mut self.tally.wrongly_offline, "wrongly offline"),
            };
            *count += 1;
            let details = format!(
                "{asker} asked for {:?} at {}, was told {:?} at {}; surely there: {there:?}",
                answer.targets,
                clock(answer.asked),
                answer.verdict,
                clock(answer.told)
            );
            self.describe(what, (asker, 0, answer.asked), &details);
        }
    }

    fn members(&self) -> Members<'_> {
        let mut members = Members::new();
        for (socket, receiver) in &self.sockets {
            for target in receiver.memberships.keys() {
                let those = members.entry(*target).or_default();
                those.push((*socket, receiver));
            }
        }
        members
    }

    fn surely_there(
        &self,
        members: &Members<'_>,
        asker: Life,
        answer: &Answer,
        settled: u64,
    ) -> HashSet<SocketId> {
        let overlaps = |&(from, until): &(u64, u64)| answer.asked <= until && from <= answer.told;
        if self.moves.iter().any(overlaps) {
            return HashSet::new();
        }
        let is_asked = |life: Life| {
            let node = &self.nodes[&life];
            let mut cut_off = node.gaps.iter().chain(&node.outages);
            // What is not over yet may tell of a gap.
            life == asker || self.has_been_up_since(life, settled) && !cut_off.any(overlaps)
        };
        let mut there = HashSet::new();
        for target in &answer.targets {
            for (socket, receiver) in members.get(target).into_iter().flatten() {
                let has_entered = matches!(receiver.memberships[target],
                    Membership::Since(at) if at < answer.asked);
                if has_entered && receiver.proven > answer.told && is_asked(receiver.node) {
                    there.insert(*socket);
                }
            }
        }
        there
    }
}
