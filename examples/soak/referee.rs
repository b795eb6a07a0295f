//! Judges every message at every socket. Rules only: it is told what was sent, what came and when.
//!
//! A socket is owed every message that was sent after it saw its welcome (or the confirmation of its
//! room) and before it began to leave. What is missing is judged later, when its node has said
//! which gaps there were.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use axum_cluster::SocketId;

use crate::ledger::{Entry, Ledger};
use crate::tally::{Occasion, Tally};
use crate::words::{Life, NODES, Outcome, Stamp, Target, audiences, clock, kind};

/// Missing messages are judged after this long, in microseconds: late ones have come, and gaps are told.
const PATIENCE: u64 = 20_000_000;
/// A node cut off when it died would have told of a gap that began at most this long before it
/// noticed: two intervals of the probe.
const NOTICE: u64 = 10_000_000;
/// A message may be lost to a fault that began this long after it was sent: it was on its way.
const UNDER_WAY: u64 = 1_000_000;
/// Of each kind of failure, so many are described.
const DESCRIBED: usize = 12;

#[derive(Debug)]
pub struct Referee {
    audiences: Vec<Vec<Target>>,
    ledgers: HashMap<(Life, usize), Ledger>,
    sockets: HashMap<SocketId, Receiver>,
    nodes: HashMap<Life, Node>,
    missing: VecDeque<Missing>,
    /// When the last message was sent that came from a node to a node, by kind of audience.
    heard: [[[u64; 4]; NODES]; NODES],
    /// Sockets whose client fell silent, until their node gives them up.
    silent: HashSet<SocketId>,
    /// How many sockets ended with which code.
    pub endings: BTreeMap<u16, u64>,
    pub tally: Tally,
    pub occasions: Vec<Occasion>,
    /// How often each thing that must not happen was described.
    described: HashMap<&'static str, usize>,
}

/// A socket, as its client sees it.
#[derive(Debug)]
struct Receiver {
    node: Life,
    memberships: HashMap<Target, Membership>,
    progress: HashMap<(Life, usize), Progress>,
    gaps: Vec<(u64, u64)>,
    /// From this moment on nothing new is owed.
    retired: Option<u64>,
    gone: bool,
}

/// How a socket stands to a target.
#[derive(Clone, Copy, Debug)]
enum Membership {
    /// Everything sent after this is owed.
    Since(u64),
    /// On its way in or out: messages may come.
    Unsettled,
    /// What was sent after this must not come.
    Until(u64),
}

/// The first and the last number that came of one sender to one audience.
#[derive(Clone, Copy, Debug)]
struct Progress {
    first: u64,
    last: u64,
}

#[derive(Debug, Default)]
struct Node {
    up: bool,
    dead: bool,
    changed: u64,
    gaps: Vec<(u64, u64)>,
}

/// Numbers that a socket has not received though later ones came, or none will.
#[derive(Clone, Debug)]
struct Missing {
    socket: SocketId,
    sender: Life,
    audience: usize,
    from: u64,
    to: u64,
    /// Owed only if sent after this …
    since: u64,
    /// … and returned before this.
    until: u64,
    noticed: u64,
}

impl Referee {
    pub fn new() -> Self {
        Self {
            audiences: audiences(),
            ledgers: HashMap::new(),
            sockets: HashMap::new(),
            nodes: HashMap::new(),
            missing: VecDeque::new(),
            heard: Default::default(),
            silent: HashSet::new(),
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
            self.describe(REFUSED, &format!("{sender} {audience} {entry:?}"));
        }
    }

    pub fn health(&mut self, life: Life, up: bool, at: u64) {
        let node = self.nodes.entry(life).or_default();
        if node.up != up {
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

    pub fn died(&mut self, life: Life) {
        self.nodes.entry(life).or_default().dead = true;
    }

    /// A handler has returned.
    pub fn ended(&mut self, socket: SocketId, code: u16) {
        *self.endings.entry(code).or_default() += 1;
        self.silent.remove(&socket);
    }

    /// Whether all nodes are up, and each has heard each, by every kind of audience, after this
    /// time.
    pub fn is_healed(&self, since: u64) -> bool {
        let up = self.nodes.values().filter(|node| node.up && !node.dead);
        let heard = self.heard.as_flattened().as_flattened();
        up.count() == NODES && heard.iter().all(|sent| *sent > since)
    }

    // What clients report ------------------------------------------------------------------------------

    pub fn welcome(&mut self, socket: SocketId, node: Life, user: u16, at: u64) {
        let memberships =
            [Target::All, Target::User(user)].map(|target| (target, Membership::Since(at)));
        let receiver = Receiver {
            node,
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
        let heard = &mut self.heard[sender.node][receiver.node.node][kind(targets) as usize];
        *heard = (*heard).max(sent);

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
                if was_missing || number < first {
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
            self.describe(what, &details);
        }
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
        let receivers = self.sockets.values();
        receivers.filter(|receiver| !receiver.gone).count()
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

    /// What a retired socket was owed and has not got, after the last that came.
    fn outstanding(&self, socket: SocketId, noticed: u64) -> Vec<Missing> {
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

    // Judging ------------------------------------------------------------------------------------------

    /// Judges what has been missing for long enough; everything at the end.
    pub fn judge(&mut self, now: u64, at_the_end: bool) {
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
            let inside = !is_local && receiver.is_excused(node, entry);
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

    fn describe(&mut self, what: &'static str, details: &str) {
        let described = self.described.entry(what).or_default();
        *described += 1;
        if *described <= DESCRIBED {
            eprintln!("{what}: {details}");
        }
    }
}

impl Receiver {
    /// What was sent to these targets after this is owed; `None`: nothing is.
    fn owed_since(&self, targets: &[Target]) -> Option<u64> {
        let since = |target| match self.memberships.get(target)? {
            Membership::Since(at) => Some(*at),
            _ => None,
        };
        targets.iter().filter_map(since).min()
    }

    fn may_get(&self, targets: &[Target], sent: u64) -> bool {
        targets
            .iter()
            .any(|target| match self.memberships.get(target) {
                Some(Membership::Until(at)) => sent <= *at,
                standing => standing.is_some(),
            })
    }

    /// Whether it was told that it may have missed this. A client that is gone could no longer be told
    /// what its node told later, or would have told had it lived.
    fn is_excused(&self, node: &Node, entry: &Entry) -> bool {
        let covers = |&(from, until): &(u64, u64)| entry.sent <= until && entry.done >= from;
        let died_cut_off = node.dead && !node.up && entry.done + NOTICE >= node.changed;
        self.gaps.iter().any(covers) || self.gone && (node.gaps.iter().any(covers) || died_cut_off)
    }
}

const REFUSED: &str = "not sent, yet it came";

/// Takes a number that came late out of what is missing; whether it was.
fn fill(missing: &mut VecDeque<Missing>, socket: SocketId, stamp: Stamp) -> bool {
    let Stamp {
        sender,
        audience,
        number,
        ..
    } = stamp;
    let found = missing.iter().position(|missing| {
        (missing.socket, missing.sender, missing.audience) == (socket, sender, audience)
            && (missing.from..=missing.to).contains(&number)
    });
    let Some(found) = found.and_then(|at| missing.remove(at)) else {
        return false;
    };
    let before = Missing {
        to: number - 1,
        ..found.clone()
    };
    let after = Missing {
        from: number + 1,
        ..found
    };
    missing.extend(
        [before, after]
            .into_iter()
            .filter(|rest| rest.from <= rest.to),
    );
    true
}
