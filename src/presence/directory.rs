//! Who is online, put together from what every node tells: rules, with time as an argument.
//!
//! A user comes with the first node that names him and goes with the last, a grace period later; that is why nodes are
//! counted, and why each one's whole list is kept. A list comes in parts and counts once its last is there: until then
//! the old one holds, so that nobody flaps.
//!
//! ```text
//!            a node names the user              the last that did names them no longer
//!  offline ------------------------> Named (by 1..) ----------------------------> Leaving (until)
//!     ^       Online is told           ^                                             |     |
//!     |                                +------- a node names them: nothing told -----+     |
//!     +------------------------- the grace period is over: Offline is told ----------------+
//! ```

//! As what somebody is described is what all nodes that name her say together, and is told when that is new. In the grace period it
//! stays as it was told, so that a reconnect is no news there either.

use std::collections::{HashMap, HashSet, VecDeque};
use std::mem::take;
use std::time::Duration;

use tokio::time::Instant;

use super::word::Report;
use crate::model::description::Descriptions;
use crate::model::id::{NodeId, UserId};

#[derive(Debug)]
pub(super) struct Directory {
    grace: Duration,
    nodes: HashMap<NodeId, HashMap<UserId, Descriptions>>,
    /// Everybody who counts as online: with a node, or within the grace period.
    online: HashMap<UserId, OnlineUser>,
    /// What was told of those of them who are described.
    described: HashMap<UserId, Descriptions>,
    /// Ends of grace periods, in order. One that is no longer true is skipped.
    leaving: VecDeque<(Instant, UserId)>,
    /// Parts of a node's whole list that is not complete yet.
    staged: HashMap<NodeId, Staged>,
    /// What changed and was not taken yet.
    changes: Vec<Change>,
}

/// What readers are told.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    Online(UserId),
    Offline {
        user: UserId,
        /// Something was told of that.
        was_described: bool,
    },
    Described(UserId, Descriptions),
}

/// What is known of a user who counts as online.
#[derive(Debug, PartialEq, Eq)]
enum OnlineUser {
    /// So many nodes name the user, at least one.
    Named(usize),
    /// None does, and that is when the grace period ends.
    Leaving(Instant),
}

#[derive(Debug, Default)]
struct Staged {
    users: HashSet<UserId>,
    /// None, if nothing is said of that.
    described: Option<HashMap<UserId, Descriptions>>,
}

impl Directory {
    pub(super) fn new(grace: Duration) -> Self {
        Self {
            grace,
            nodes: HashMap::new(),
            online: HashMap::new(),
            described: HashMap::new(),
            leaving: VecDeque::new(),
            staged: HashMap::new(),
            changes: Vec::new(),
        }
    }

    fn came(&mut self, node: NodeId, user: UserId) {
        let users = self.nodes.entry(node).or_default();
        if users.contains_key(&user) {
            return;
        }
        users.insert(user.clone(), Descriptions::default());
        match self.online.get_mut(&user) {
            Some(OnlineUser::Named(nodes)) => *nodes += 1,
            Some(leaving) => *leaving = OnlineUser::Named(1),
            None => {
                self.online.insert(user.clone(), OnlineUser::Named(1));
                self.changes.push(Change::Online(user));
            }
        }
    }

    fn went(&mut self, node: NodeId, user: &UserId, now: Instant) {
        let users = self.nodes.get_mut(&node);
        if users.is_some_and(|users| users.remove(user).is_some()) {
            self.lost_one(user, now);
        }
    }

    /// What a node told.
    pub(super) fn heard(&mut self, node: NodeId, report: Report, now: Instant) {
        let touched = match report {
            Report::Everybody {
                users,
                described,
                first,
                last,
                ..
            } => self.everybody(node, (users, described), (first, last), now),
            Report::Changes {
                online,
                offline,
                described,
                ..
            } => {
                let touched = [online.clone(), offline.clone()].concat();
                online.into_iter().for_each(|user| self.came(node, user));
                offline.iter().for_each(|user| self.went(node, user, now));
                let also = described.iter().map(|(user, _)| user.clone());
                let touched = touched.into_iter().chain(also).collect();
                self.describe(node, described);
                touched
            }
        };
        self.compare(touched);
    }

    /// A part of everybody on a node; whoever is not in the whole has gone. Whom it touched.
    fn everybody(
        &mut self,
        node: NodeId,
        (users, described): (Vec<UserId>, Option<Vec<(UserId, Descriptions)>>),
        (first, last): (bool, bool),
        now: Instant,
    ) -> HashSet<UserId> {
        if first {
            self.staged.insert(node, Staged::default());
        }
        // Without its beginning it is not whole: another list will come.
        let Some(staged) = self.staged.get_mut(&node) else {
            return HashSet::new();
        };
        staged.users.extend(users);
        if let Some(described) = described {
            staged.described.get_or_insert_default().extend(described);
        }
        if !last {
            return HashSet::new();
        }
        let Staged { users, described } = self.staged.remove(&node).unwrap_or_default();
        let before: HashSet<UserId> = self
            .nodes
            .get(&node)
            .into_iter()
            .flatten()
            .map(|(user, _)| user.clone())
            .collect();
        let gone = before.difference(&users);
        gone.for_each(|user| self.went(node, user, now));
        let touched = before.union(&users).cloned().collect();
        let named = described.is_some().then(|| users.clone());
        users.into_iter().for_each(|user| self.came(node, user));
        if let (Some(mut described), Some(named)) = (described, named) {
            let all = named.into_iter();
            let all = all.map(|user| (user.clone(), described.remove(&user).unwrap_or_default()));
            self.describe(node, all.collect());
        }
        touched
    }

    /// As what a node says that its users are described.
    pub(super) fn describe(&mut self, node: NodeId, described: Vec<(UserId, Descriptions)>) {
        let Some(users) = self.nodes.get_mut(&node) else {
            return;
        };
        for (user, descriptions) in described {
            if let Some(before) = users.get_mut(&user) {
                *before = descriptions;
            }
        }
    }

    /// Tells of those who are described otherwise than was told.
    fn compare(&mut self, touched: HashSet<UserId>) {
        for user in touched {
            if !matches!(self.online.get(&user), Some(OnlineUser::Named(_))) {
                continue;
            }
            let mut all = Descriptions::default();
            let said = self.nodes.values().filter_map(|users| users.get(&user));
            said.for_each(|descriptions| all.extend(descriptions));
            let told = self.described.get(&user);
            if told.map_or(all.is_empty(), |told| *told == all) {
                continue;
            }
            match all.is_empty() {
                true => self.described.remove(&user),
                false => self.described.insert(user.clone(), all.clone()),
            };
            self.changes.push(Change::Described(user, all));
        }
    }

    /// Something that was told may have been missed: a list that is not complete yet may have a hole.
    pub(super) fn interrupted(&mut self) {
        self.staged.clear();
    }

    /// A node has left or died, with everybody on it.
    pub(super) fn forget(&mut self, node: NodeId, now: Instant) {
        self.staged.remove(&node);
        let users = self.nodes.remove(&node).unwrap_or_default();
        users.keys().for_each(|user| self.lost_one(user, now));
        self.compare(users.into_keys().collect());
    }

    /// Ends the grace periods that are over.
    pub(super) fn advance(&mut self, now: Instant) {
        while self.next_end().is_some_and(|end| end <= now) {
            let Some((end, user)) = self.leaving.pop_front() else {
                return;
            };
            if self.online.get(&user) == Some(&OnlineUser::Leaving(end)) {
                self.online.remove(&user);
                let was_described = self.described.remove(&user).is_some();
                self.changes.push(Change::Offline {
                    user,
                    was_described,
                });
            }
        }
    }

    /// When [`advance`](Self::advance) has something to do.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.leaving.front().map(|(end, _)| *end)
    }

    pub(super) fn online(&self) -> impl Iterator<Item = &UserId> {
        self.online.keys()
    }

    /// What was told of those who are described.
    pub(super) fn described(&self) -> impl Iterator<Item = (&UserId, &Descriptions)> {
        self.described.iter()
    }

    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        take(&mut self.changes)
    }

    fn lost_one(&mut self, user: &UserId, now: Instant) {
        match self.online.get_mut(user) {
            Some(OnlineUser::Named(nodes)) if *nodes > 1 => *nodes -= 1,
            Some(last) => {
                let end = now + self.grace;
                *last = OnlineUser::Leaving(end);
                self.leaving.push_back((end, user.clone()));
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(5);
    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn user(name: &str) -> UserId {
        name.into()
    }

    fn online(name: &str) -> Change {
        Change::Online(user(name))
    }

    fn offline(name: &str) -> Change {
        Change::Offline {
            user: user(name),
            was_described: false,
        }
    }

    fn changes(online: &[&str], offline: &[&str], described: &[(&str, &[&str])]) -> Report {
        let users = |names: &[&str]| names.iter().map(|name| user(name)).collect();
        let described = described.iter().map(|(name, all)| (user(name), are(all)));
        Report::Changes {
            topic: "all".into(),
            online: users(online),
            offline: users(offline),
            described: described.collect(),
        }
    }

    fn are(all: &[&str]) -> Descriptions {
        let all: Vec<String> = all.iter().map(|&json| json.to_owned()).collect();
        all.into()
    }

    fn described(name: &str, all: &[&str]) -> Change {
        Change::Described(user(name), are(all))
    }

    #[test]
    fn a_user_is_what_all_nodes_say_and_a_move_between_them_is_no_news() {
        let (mut directory, mut now) = (Directory::new(GRACE), Instant::now());
        let mut hear = |node, report, now| {
            directory.heard(node, report, now);
            directory.advance(now);
            directory.take_changes()
        };
        let phone = changes(&["x"], &[], &[("x", &["phone"])]);
        let expected = [online("x"), described("x", &["phone"])];
        assert_eq!(hear(A, phone.clone(), now), expected);
        assert_eq!(hear(B, phone.clone(), now), [], "there is a second one");
        let laptop = changes(&[], &[], &[("x", &["laptop"])]);
        let both = [described("x", &["laptop", "phone"])];
        assert_eq!(hear(B, laptop, now), both);
        let expected = [described("x", &["laptop"])];
        assert_eq!(hear(A, changes(&[], &["x"], &[]), now), expected);
        assert_eq!(hear(B, changes(&[], &["x"], &[]), now), [], "who knows");
        now += GRACE / 2;
        let back = changes(&["x"], &[], &[("x", &["laptop"])]);
        assert_eq!(hear(A, back, now), [], "she was not away");
        assert_eq!(hear(A, changes(&[], &["x"], &[]), now), []);
        let expected = [described("x", &["phone"])];
        assert_eq!(hear(B, phone, now), expected, "another one came");
        assert_eq!(hear(B, changes(&[], &["x"], &[]), now), []);
        now += GRACE;
        let gone = Change::Offline {
            user: user("x"),
            was_described: true,
        };
        assert_eq!(hear(B, changes(&[], &[], &[]), now), [gone]);
        assert!(directory.described.is_empty());
    }

    #[test]
    fn a_list_that_says_nothing_of_descriptions_leaves_them() {
        let (mut directory, now) = (Directory::new(GRACE), Instant::now());
        directory.heard(A, changes(&["x", "y"], &[], &[("x", &["1"])]), now);
        directory.take_changes();
        let mut everybody = |described| {
            let users = vec![user("x"), user("y")];
            let report = Report::Everybody {
                topic: "all".into(),
                users,
                described,
                first: true,
                last: true,
            };
            directory.heard(A, report, now);
            directory.take_changes()
        };
        assert_eq!(everybody(None), []);
        let others = everybody(Some(vec![(user("y"), are(&["2"]))]));
        assert_eq!(others.len(), 2);
        assert!(others.contains(&described("x", &[])));
        assert!(others.contains(&described("y", &["2"])));
    }

    #[test]
    fn a_user_on_two_nodes_comes_once_and_goes_once() {
        let (mut directory, now) = (Directory::new(GRACE), Instant::now());
        directory.came(A, user("x"));
        directory.came(B, user("x"));
        directory.came(B, user("x"));
        assert_eq!(directory.take_changes(), [online("x")]);
        directory.went(A, &user("x"), now);
        directory.advance(now + GRACE * 2);
        assert_eq!(directory.take_changes(), []);
        directory.went(B, &user("x"), now + GRACE * 2);
        directory.advance(now + GRACE * 3 - Duration::from_millis(1));
        assert_eq!(directory.take_changes(), []);
        directory.advance(now + GRACE * 3);
        assert_eq!(directory.take_changes(), [offline("x")]);
        assert!(directory.online.is_empty() && directory.leaving.is_empty());
    }

    #[test]
    fn a_reconnect_within_the_grace_period_is_no_change() {
        let (mut directory, now) = (Directory::new(GRACE), Instant::now());
        directory.came(A, user("x"));
        directory.take_changes();
        directory.went(A, &user("x"), now);
        directory.came(B, user("x"));
        directory.advance(now + GRACE * 9);
        assert_eq!(directory.take_changes(), []);
        directory.went(B, &user("x"), now + GRACE * 9);
        assert_eq!(directory.next_end(), Some(now + GRACE * 10));
    }

    fn everybody(directory: &mut Directory, users: Vec<UserId>, ends: (bool, bool), now: Instant) {
        directory.everybody(A, (users, None), ends, now);
    }

    #[test]
    fn a_whole_list_replaces_what_was_known_and_a_torn_one_does_not() {
        let (mut directory, now) = (Directory::new(GRACE), Instant::now());
        for name in ["x", "y"] {
            directory.came(A, user(name));
        }
        directory.take_changes();
        everybody(&mut directory, vec![user("z")], (false, true), now);
        assert_eq!(directory.take_changes(), [], "its beginning was missed");
        everybody(&mut directory, vec![user("y")], (true, false), now);
        everybody(&mut directory, vec![user("z")], (false, true), now);
        assert_eq!(directory.take_changes(), [online("z")]);
        directory.advance(now + GRACE);
        assert_eq!(directory.take_changes(), [offline("x")]);
        everybody(&mut directory, vec![], (true, false), now);
        directory.interrupted();
        everybody(&mut directory, vec![], (false, true), now);
        directory.advance(now + GRACE * 2);
        assert_eq!(directory.take_changes(), [], "its middle was missed");
    }

    #[test]
    fn a_node_takes_its_users_along() {
        let (mut directory, now) = (Directory::new(GRACE), Instant::now());
        directory.came(A, user("x"));
        directory.came(B, user("x"));
        directory.came(A, user("y"));
        directory.take_changes();
        everybody(&mut directory, vec![], (true, false), now);
        directory.forget(A, now);
        assert!(directory.staged.is_empty() && !directory.nodes.contains_key(&A));
        directory.advance(now + GRACE);
        assert_eq!(directory.take_changes(), [offline("y")]);
    }
}
