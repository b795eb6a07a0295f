//! Judges every message at every socket. Rules only: it is told what was sent, what came and when.
//!
//! A socket is owed every message that was sent after it saw its welcome (or the confirmation of its
//! room) and before it began to leave. What is missing is judged later, when its node has said
//! which gaps there were.

mod answers;
mod losses;
mod seats;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use axum_cluster::SocketId;

pub use self::seats::Seat;
use self::seats::Seats;
use crate::answer::Answer;
use crate::ledger::{Entry, Ledger};
use crate::missing::{Missing, fill};
use crate::receiver::{Membership, Node, Progress, Receiver};
use crate::tally::{Occasion, Tally};
use crate::words::{
    Kind, Life, NODES, Outcome, STEADY, Stamp, Target, audiences, clock, kind, wide_union,
};

/// Missing messages are judged after this long, in microseconds: late ones have come, and gaps are told.
const PATIENCE: u64 = 20_000_000;
/// Of each kind of failure, so many are described.
const DESCRIBED: usize = 24;

#[derive(Debug)]
pub struct Referee {
    history: bool,
    /// What is sent to several targets goes to several primaries.
    is_spread: bool,
    audiences: Vec<Vec<Target>>,
    ledgers: HashMap<(Life, usize), Ledger>,
    sockets: HashMap<SocketId, Receiver>,
    nodes: HashMap<Life, Node>,
    missing: VecDeque<Missing>,
    /// Unions that came out of order, until it is known whether a primary was away then: who got them, which, and what is to be
    /// said of them.
    crossed: Vec<(Life, Stamp, String)>,
    /// By sender: what Redis lost, as far as it can be seen from here, by audience and number.
    destroyed: HashMap<Life, HashSet<(usize, u64)>>,
    /// When the last message was sent that came from a node to a node, by kind of audience.
    heard: [[[u64; 4]; NODES]; NODES],
    /// Sockets whose client fell silent, until their node gives them up.
    silent: HashSet<SocketId>,
    /// What nodes were told, until it is judged.
    answers: VecDeque<(Life, Answer)>,
    /// When a primary was being replaced: what was asked then may be answered wrongly.
    moves: Vec<(u64, u64)>,
    seats: Seats,
    /// How many sockets ended with which code.
    pub endings: BTreeMap<u16, u64>,
    pub tally: Tally,
    pub occasions: Vec<Occasion>,
    /// How often each thing that must not happen was described.
    described: HashMap<&'static str, HashSet<(Life, usize, u64)>>,
}

impl Referee {
    /// `history`: what is sent to users, rooms and everybody is kept. `is_spread`: what is sent to several targets goes to several
    /// primaries.
    pub fn new(history: bool, is_spread: bool) -> Self {
        Self {
            history,
            is_spread,
            crossed: Vec::new(),
            audiences: audiences().into_iter().chain([wide_union()]).collect(),
            ledgers: HashMap::new(),
            sockets: HashMap::new(),
            nodes: HashMap::new(),
            missing: VecDeque::new(),
            destroyed: HashMap::new(),
            heard: Default::default(),
            silent: HashSet::new(),
            answers: VecDeque::new(),
            moves: Vec::new(),
            seats: Seats::default(),
            endings: BTreeMap::new(),
            tally: Tally::default(),
            occasions: Vec::new(),
            described: HashMap::new(),
        }
    }

    // What nodes report --------------------------------------------------------------------------------

    pub fn sent(&mut self, sender: Life, audience: usize, entry: Entry) {
        *match entry.outcome {
            Outcome::Taken => &mut self.tally.taken,
            Outcome::Unsure => &mut self.tally.unsure,
            Outcome::Refused => &mut self.tally.refused,
        } += 1;
        let ledger = self.ledgers.entry((sender, audience)).or_default();
        if ledger.note(entry) {
            self.tally.refused_arrived += 1;
            let which = (sender, audience, entry.number);
            self.describe(REFUSED, which, &format!("{sender} {audience} {entry:?}"));
        }
    }

    pub fn health(&mut self, life: Life, up: bool, at: u64) {
        let node = self.nodes.entry(life).or_default();
        if node.up != up {
            if up {
                node.outages.push((node.changed, at));
            }
            (node.up, node.changed) = (up, at);
        }
        if !up
            && let Some(occasion) = self.occasions.last_mut()
            && occasion.healed.is_none()
        {
            let after = std::time::Duration::from_micros(at.saturating_sub(occasion.from));
            occasion.noticed.get_or_insert(after);
        }
    }

    pub fn node_gap(&mut self, life: Life, from: u64, until: u64) {
        self.nodes.entry(life).or_default().gaps.push((from, until));
    }

    /// It has counted so many of its messages as lost by Redis, and of so many topics it cannot tell what it missed.
    pub fn redis_lost(&mut self, life: Life, at: u64, rolled_back: u64, missed: u64) {
        let node = self.nodes.entry(life).or_default();
        node.rolled_back = rolled_back;
        if missed > 0 {
            node.missed.push(at);
        }
    }

    pub fn died(&mut self, life: Life) {
        self.nodes.entry(life).or_default().dead = true;
    }

    /// A handler has returned.
    pub fn ended(&mut self, socket: SocketId, code: u16) {
        *self.endings.entry(code).or_default() += 1;
        self.silent.remove(&socket);
    }

    /// Whether all nodes are up, and each has heard each, by every kind of audience, has counted a user's
    /// sockets in the whole cluster and has found a user online elsewhere, after this time.
    pub fn is_healed(&self, since: u64) -> bool {
        let alive = self.nodes.values().filter(|node| !node.dead);
        self.ailments(since).next().is_none() && alive.count() == NODES
    }

    /// What keeps it from that.
    pub fn ailments(&self, since: u64) -> impl Iterator<Item = (Option<Life>, &'static str)> {
        let alive = self.nodes.iter().filter(|(_, node)| !node.dead);
        let of_nodes = alive.flat_map(move |(life, node)| {
            let works = [
                (node.up, "is degraded"),
                (
                    node.counted > since,
                    "does not count a user's sockets in the cluster",
                ),
                (node.found > since, "finds nobody online elsewhere"),
            ];
            let fails = works.into_iter().filter(|(works, _)| !works);
            fails.map(|(_, what)| (Some(*life), what))
        });
        let heard = self.heard.as_flattened().as_flattened();
        let is_deaf = heard.iter().any(|sent| *sent <= since);
        of_nodes.chain(is_deaf.then_some((None, "not every node hears every other")))
    }

    // What clients report ------------------------------------------------------------------------------

    pub fn welcome(&mut self, socket: SocketId, node: Life, user: u16, at: u64) {
        let memberships = [Target::All, Target::User(user), Target::Socket(socket)]
            .map(|target| (target, Membership::Since(at)));
        let single = STEADY.contains(&user).then_some(self.audiences.len());
        if single.is_some() {
            self.audiences.push(vec![Target::Socket(socket)]);
        }
        let receiver = Receiver {
            node,
            single,
            proven: 0,
            memberships: memberships.into(),
            progress: HashMap::new(),
            gaps: Vec::new(),
            retired: None,
            gone: false,
        };
        self.sockets.insert(socket, receiver);
    }

    /// The socket begins to enter a room or to leave it.
    pub fn begins(&mut self, socket: SocketId, room: u16) {
        self.stands(socket, room, Membership::Unsettled);
    }

    pub fn joined(&mut self, socket: SocketId, room: u16, at: u64) {
        self.stands(socket, room, Membership::Since(at));
    }

    pub fn left(&mut self, socket: SocketId, room: u16, at: u64) {
        self.stands(socket, room, Membership::Until(at));
    }

    fn stands(&mut self, socket: SocketId, room: u16, membership: Membership) {
        if let Some(receiver) = self.sockets.get_mut(&socket) {
            receiver.memberships.insert(Target::Room(room), membership);
        }
    }

    pub fn gap_told(&mut self, socket: SocketId, from: u64, until: u64) {
        self.tally.gaps_told += 1;
        if let Some(receiver) = self.sockets.get_mut(&socket) {
            receiver.gaps.push((from, until));
        }
    }

    pub fn received(&mut self, socket: SocketId, stamp: Stamp, at: u64) {
        let Some(receiver) = self.sockets.get_mut(&socket) else {
            return;
        };
        let Stamp {
            sender,
            audience,
            number,
            sent,
        } = stamp;
        self.tally.delivered += 1;
        let node = receiver.node;
        let targets = &self.audiences[audience];
        receiver.proven = receiver.proven.max(sent);
        let kinds = &mut self.heard[sender.node][receiver.node.node];
        // Single sockets are not sent to all the time.
        if let Some(heard) = kinds.get_mut(kind(targets) as usize) {
            *heard = (*heard).max(sent);
        }

        let since = receiver.owed_since(targets);
        let is_stray = !receiver.may_get(targets, sent);
        let progress = receiver.progress.get(&(sender, audience)).copied();
        let mut wrong = Vec::new();
        if is_stray {
            self.tally.strays += 1;
            wrong.push("not for this socket");
        }
        let ledger = self.ledgers.entry((sender, audience)).or_default();
        if sender != receiver.node && ledger.arrived(number) {
            self.tally.refused_arrived += 1;
            wrong.push(REFUSED);
        }
        match progress {
            Some(Progress { first, last }) if number <= last => {
                let was_missing = fill(&mut self.missing, socket, stamp);
                let crosses = self.history && self.is_spread && kind(targets) == Kind::Union;
                if (was_missing || number < first) && crosses {
                    wrong.push(CROSSED);
                } else if was_missing || number < first {
                    self.tally.disorder += 1;
                    wrong.push("out of order");
                } else {
                    self.tally.duplicates += 1;
                    wrong.push("twice");
                }
            }
            _ => {
                let next = progress.map_or(1, |progress| progress.last + 1);
                let first = progress.map_or(number, |progress| progress.first);
                let last = number;
                receiver
                    .progress
                    .insert((sender, audience), Progress { first, last });
                if next < number
                    && let Some(since) = since
                {
                    let (from, to) = (next, number - 1);
                    self.missing.push_back(Missing {
                        socket,
                        sender,
                        audience,
                        from,
                        to,
                        since,
                        until: u64::MAX,
                        noticed: at,
                    });
                }
            }
        }
        for what in wrong {
            let ledger = &self.ledgers[&(sender, audience)];
            let [this, last] = [Some(number), progress.map(|progress| progress.last)]
                .map(|number| ledger.entry(number?).map(Entry::to_string));
            let details = format!(
                "{stamp} to {:?} at socket {socket} of {node} at {}; it is {this:?}, the last was {last:?}",
                self.audiences[audience],
                clock(at)
            );
            match what {
                CROSSED => self.crossed.push((node, stamp, details)),
                _ => self.describe(what, (sender, audience, number), &details),
            }
        }
    }

    /// The steady sockets of a node, and the numbers of their audiences.
    pub fn singles(&self, node: usize) -> Vec<(usize, SocketId)> {
        let open = self.sockets.iter().filter(|(_, receiver)| !receiver.gone);
        let here = open.filter(|(_, receiver)| receiver.node.node == node);
        here.filter_map(|(socket, receiver)| Some((receiver.single?, *socket)))
            .collect()
    }

    /// The client is about to leave; nothing sent from now on is owed to it.
    pub fn retire(&mut self, socket: SocketId, at: u64) {
        if let Some(receiver) = self.sockets.get_mut(&socket) {
            receiver.retired = Some(at);
        }
    }

    /// Whether everything owed to a retired socket has come.
    pub fn is_settled(&self, socket: SocketId) -> bool {
        self.outstanding(socket, 0).is_empty()
    }

    /// The socket's node has been up for this long.
    pub fn has_been_up_since(&self, life: Life, time: u64) -> bool {
        let node = self.nodes.get(&life);
        node.is_some_and(|node| node.dead || node.up && node.changed < time)
    }

    /// The client falls silent without a word.
    pub fn vanished(&mut self, socket: SocketId) {
        self.silent.insert(socket);
    }

    pub fn silent(&self) -> usize {
        self.silent.len()
    }

    /// Sockets that are open now.
    pub fn sockets(&self) -> usize {
        self.sockets.values().filter(|it| !it.gone).count()
    }

    /// Whether the node has given up a client that fell silent.
    pub fn was_given_up(&self, socket: SocketId) -> bool {
        !self.silent.contains(&socket)
    }

    /// A retired client has waited long enough: what it has not got is missing.
    pub fn closes(&mut self, socket: SocketId, at: u64) {
        self.missing.extend(self.outstanding(socket, at));
        self.gone(socket);
    }

    /// The socket has ended. What is not known to be missing by now may have been on its way.
    pub fn gone(&mut self, socket: SocketId) {
        if let Some(receiver) = self.sockets.get_mut(&socket) {
            receiver.gone = true;
        }
    }

    /// Judges what has waited long enough; everything at the end.
    pub fn judge(&mut self, now: u64, at_the_end: bool) {
        self.judge_answers(now, at_the_end);
        self.judge_missing(now, at_the_end);
        if at_the_end {
            self.judge_crossed();
            self.judge_destroyed();
        }
    }

    /// A union over several primaries has an order at each, and none across the outage of one of them.
    fn judge_crossed(&mut self) {
        for (receiver, stamp, details) in std::mem::take(&mut self.crossed) {
            let covers = |&(from, until): &(u64, u64)| (from..=until).contains(&stamp.sent);
            let node = self.nodes.get(&receiver);
            if node.is_some_and(|node| node.gaps.iter().any(covers)) {
                self.tally.crossed += 1;
                continue;
            }
            self.tally.disorder += 1;
            let which = (stamp.sender, stamp.audience, stamp.number);
            self.describe("out of order", which, &details);
        }
    }

    /// Of this message, once: it is missing at many sockets.
    fn describe(&mut self, what: &'static str, which: (Life, usize, u64), details: &str) {
        let described = self.described.entry(what).or_default();
        if described.insert(which) && described.len() <= DESCRIBED {
            eprintln!("{what}: {details}");
        }
    }
}

const CROSSED: &str = "a union that came out of order";
const REFUSED: &str = "not sent, yet it came";
