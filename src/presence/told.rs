//! What one node tells the others of a topic: rules without I/O.

use std::collections::HashSet;

use super::Report;
use crate::id::UserId;
use crate::topic::Topic;

/// Users in one part of what is told: at most about 1.5 MB of JSON, and 8 MB if every character is a control
/// character.
const PART: usize = 5000;

/// What was told already, so that only what differs is.
#[derive(Debug)]
pub(crate) struct Told {
    topic: Topic,
    told: HashSet<UserId>,
    /// The others may have missed something: they are told everything again.
    stale: bool,
}

impl Told {
    pub(crate) fn new(topic: Topic, users: HashSet<UserId>) -> Self {
        Self {
            topic,
            told: users,
            stale: false,
        }
    }

    /// Who counts as told.
    pub(crate) fn told(&self) -> impl Iterator<Item = &UserId> {
        self.told.iter()
    }

    pub(crate) fn is_stale(&self) -> bool {
        self.stale
    }

    pub(crate) fn may_have_been_missed(&mut self) {
        self.stale = true;
    }

    /// What changed among these users, who came or went or both.
    pub(crate) fn changes(
        &mut self,
        touched: impl IntoIterator<Item = UserId>,
        is_here: impl Fn(&UserId) -> bool,
    ) -> Vec<Report> {
        let mut changed = Vec::new();
        for user in touched {
            let here = is_here(&user);
            let differs = if here {
                self.told.insert(user.clone())
            } else {
                self.told.remove(&user)
            };
            if differs {
                changed.push((user, here));
            }
        }
        let users = |part: &[(UserId, bool)], online: bool| {
            let users = part.iter().filter(|(_, here)| *here == online);
            users.map(|(user, _)| user.clone()).collect()
        };
        let part = |part| Report::Changes {
            topic: self.topic.as_str().to_owned(),
            online: users(part, true),
            offline: users(part, false),
        };
        changed.chunks(PART).map(part).collect()
    }

    /// Everything, for somebody who is new or may have missed something.
    pub(crate) fn everybody(&self) -> Vec<Report> {
        let users: Vec<UserId> = self.told.iter().cloned().collect();
        let mut parts: Vec<&[UserId]> = users.chunks(PART).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        let end = parts.len() - 1;
        let part = |(number, users): (usize, &&[UserId])| Report::Everybody {
            topic: self.topic.as_str().to_owned(),
            users: users.to_vec(),
            first: number == 0,
            last: number == end,
        };
        parts.iter().enumerate().map(part).collect()
    }

    /// They have been told everything.
    pub(crate) fn told_everybody(&mut self) {
        self.stale = false;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::*;
    use crate::id::NodeId;
    use crate::presence::{Directory, PresenceChange};

    #[test]
    fn everybody_is_told_in_whole_parts() {
        let users = |count: usize| (0..count as u64).map(UserId::from).collect();
        for (count, parts) in [(0, 1), (1, 1), (PART, 1), (PART + 1, 2)] {
            let reports = Told::new(Topic::all(), users(count)).everybody();
            assert_eq!(reports.len(), parts);
            let mut table = Directory::new(Duration::ZERO);
            for part in reports {
                table.heard(NodeId(1), part, Instant::now());
            }
            assert_eq!(table.online().count(), count);
        }
    }

    #[test]
    fn a_crowd_that_moves_at_once_is_told_in_parts() {
        let users = |range: std::ops::Range<u64>| range.map(UserId::from);
        let count = PART as u64;
        let mut told = Told::new(Topic::all(), users(0..count).collect());
        let mut table = Directory::new(Duration::ZERO);
        for part in told.everybody() {
            table.heard(NodeId(1), part, Instant::now());
        }
        // The old ones have gone, as many and one more have come.
        let here: HashSet<UserId> = users(count..2 * count + 1).collect();
        let changes = told.changes(users(0..2 * count + 1), |user| here.contains(user));
        assert_eq!(changes.len(), 3);
        for part in changes {
            table.heard(NodeId(1), part, Instant::now());
        }
        table.advance(Instant::now());
        let online: HashSet<&UserId> = table.online().collect();
        assert_eq!(online.len(), PART + 1);
        assert!(told.told().all(|user| online.contains(user)));
    }

    const GRACE: Duration = Duration::from_secs(5);
    const STEP: Duration = Duration::from_secs(1);

    #[derive(Clone, Debug)]
    enum Event {
        Join(usize, u8),
        Leave(usize, u8),
        /// The node's users are gone; the watcher learns it by the lease.
        Crash(usize),
        /// What the node says gets lost, with or without its knowing.
        CutOff(usize, bool),
        /// It knows that it was cut off.
        Heal(usize),
        Wait,
    }

    fn event() -> impl Strategy<Value = Event> {
        let node = 0usize..3;
        prop_oneof![
            6 => (node.clone(), 0u8..4).prop_map(|(n, u)| Event::Join(n, u)),
            6 => (node.clone(), 0u8..4).prop_map(|(n, u)| Event::Leave(n, u)),
            1 => node.clone().prop_map(Event::Crash),
            1 => (node.clone(), any::<bool>()).prop_map(|(n, k)| Event::CutOff(n, k)),
            2 => node.prop_map(Event::Heal),
            6 => Just(Event::Wait),
        ]
    }

    struct Node {
        here: HashSet<UserId>,
        told: Told,
        connected: bool,
        knows: bool,
    }

    /// Three nodes and one watcher.
    struct World {
        nodes: Vec<Node>,
        table: Directory,
        now: Instant,
        shown: HashSet<UserId>,
        /// When each user was last on any node.
        seen: HashMap<UserId, Instant>,
        disturbed: bool,
    }

    impl World {
        fn new() -> Self {
            let node = || Node {
                here: HashSet::new(),
                told: Told::new(Topic::all(), HashSet::new()),
                connected: true,
                knows: true,
            };
            Self {
                nodes: vec![node(), node(), node()],
                table: Directory::new(GRACE),
                now: Instant::now(),
                shown: HashSet::new(),
                seen: HashMap::new(),
                disturbed: false,
            }
        }

        fn apply(&mut self, event: Event) {
            match event {
                Event::Join(n, u) => {
                    self.nodes[n].here.insert(u64::from(u).into());
                    self.announce(n, u);
                }
                Event::Leave(n, u) => {
                    self.nodes[n].here.remove(&u64::from(u).into());
                    self.announce(n, u);
                }
                Event::Crash(n) => {
                    self.disturbed = true;
                    self.nodes[n].here.clear();
                    self.nodes[n].told = Told::new(Topic::all(), HashSet::new());
                    self.nodes[n].connected = true;
                    self.table.forget(NodeId(n as u64), self.now);
                }
                Event::CutOff(n, knows) => {
                    self.disturbed = true;
                    self.nodes[n].connected = false;
                    self.nodes[n].knows = knows;
                }
                Event::Heal(n) => {
                    if !std::mem::replace(&mut self.nodes[n].connected, true) {
                        self.nodes[n].told.may_have_been_missed();
                        self.repair(n);
                    }
                }
                Event::Wait => self.now += STEP,
            }
            for node in &self.nodes {
                for user in &node.here {
                    self.seen.insert(user.clone(), self.now);
                }
            }
            self.table.advance(self.now);
            self.read();
        }

        fn announce(&mut self, n: usize, u: u8) {
            let Node {
                here,
                told,
                connected,
                knows,
            } = &mut self.nodes[n];
            for part in told.changes([u64::from(u).into()], |user| here.contains(user)) {
                if *connected {
                    self.table.heard(NodeId(n as u64), part, self.now);
                } else if *knows {
                    told.may_have_been_missed();
                }
            }
        }

        fn repair(&mut self, n: usize) {
            assert!(self.nodes[n].told.is_stale());
            for part in self.nodes[n].told.everybody() {
                self.table.heard(NodeId(n as u64), part, self.now);
            }
            self.nodes[n].told.told_everybody();
        }

        /// Takes what the watcher is told.
        fn read(&mut self) {
            for change in self.table.take_changes() {
                match change {
                    PresenceChange::Online(user) => assert!(self.shown.insert(user), "twice"),
                    PresenceChange::Offline(user) => {
                        assert!(self.shown.remove(&user), "twice");
                        let seen = self.seen[&user];
                        assert!(self.disturbed || seen + GRACE <= self.now, "a flap");
                    }
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn every_history_ends_in_the_truth(events in proptest::collection::vec(event(), 0..80)) {
            let mut world = World::new();
            for event in events {
                world.apply(event);
            }
            for n in 0..world.nodes.len() {
                world.apply(Event::Heal(n));
            }
            for _ in 0..=GRACE.as_secs() {
                world.apply(Event::Wait);
            }
            let truth: HashSet<UserId> = world.nodes.iter().flat_map(|node| node.here.clone()).collect();
            prop_assert_eq!(&world.shown, &truth);
            prop_assert_eq!(world.table.online().count(), truth.len());
            prop_assert_eq!(world.table.next_end(), None);
        }
    }
}
