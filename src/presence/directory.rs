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

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::PresenceChange;
use super::word::Report;
use crate::model::id::{NodeId, UserId};

#[derive(Debug)]
pub(super) struct Directory {
    grace: Duration,
    nodes: HashMap<NodeId, HashSet<UserId>>,
    /// Everybody who counts as online: with a node, or within the grace period.
    online: HashMap<UserId, OnlineUser>,
    /// Ends of grace periods, in order. One that is no longer true is skipped.
    leaving: VecDeque<(Instant, UserId)>,
    /// Parts of a node's whole list that is not complete yet.
    staged: HashMap<NodeId, HashSet<UserId>>,
    /// What changed and was not taken yet.
    changes: Vec<PresenceChange>,
}

/// Of a user who counts as online.
#[derive(Debug, PartialEq, Eq)]
enum OnlineUser {
    /// So many nodes name the user, at least one.
    Named(usize),
    /// None does, and that is when the grace period ends.
    Leaving(Instant),
}

impl Directory {
    pub(super) fn new(grace: Duration) -> Self {
        Self {
            grace,
            nodes: HashMap::new(),
            online: HashMap::new(),
            leaving: VecDeque::new(),
            staged: HashMap::new(),
            changes: Vec::new(),
        }
    }

    pub(super) fn came(&mut self, node: NodeId, user: UserId) {
        if !self.nodes.entry(node).or_default().insert(user.clone()) {
            return;
        }
        match self.online.get_mut(&user) {
            Some(OnlineUser::Named(nodes)) => *nodes += 1,
            Some(leaving) => *leaving = OnlineUser::Named(1),
            None => {
                self.online.insert(user.clone(), OnlineUser::Named(1));
                self.changes.push(PresenceChange::Online(user));
            }
        }
    }

    fn went(&mut self, node: NodeId, user: &UserId, now: Instant) {
        let users = self.nodes.get_mut(&node);
        if users.is_some_and(|users| users.remove(user)) {
            self.lost_one(user, now);
        }
    }

    /// What a node told.
    pub(super) fn heard(&mut self, node: NodeId, report: Report, now: Instant) {
        match report {
            Report::Everybody {
                users, first, last, ..
            } => self.everybody(node, users, (first, last), now),
            Report::Changes {
                online, offline, ..
            } => {
                online.into_iter().for_each(|user| self.came(node, user));
                offline.iter().for_each(|user| self.went(node, user, now));
            }
        }
    }

    /// A part of everybody on a node; whoever is not in the whole has gone.
    fn everybody(
        &mut self,
        node: NodeId,
        users: Vec<UserId>,
        (first, last): (bool, bool),
        now: Instant,
    ) {
        if first {
            self.staged.insert(node, HashSet::new());
        }
        // Without its beginning it is not whole: another list will come.
        let Some(staged) = self.staged.get_mut(&node) else {
            return;
        };
        staged.extend(users);
        if !last {
            return;
        }
        let whole = self.staged.remove(&node).unwrap_or_default();
        let before = self.nodes.get(&node).into_iter().flatten();
        let gone: Vec<UserId> = before
            .filter(|user| !whole.contains(*user))
            .cloned()
            .collect();
        gone.iter().for_each(|user| self.went(node, user, now));
        whole.into_iter().for_each(|user| self.came(node, user));
    }

    /// Something that was told may have been missed: a list that is not complete yet may have a hole.
    pub(super) fn interrupted(&mut self) {
        self.staged.clear();
    }

    /// A node has left or died, with everybody on it.
    pub(super) fn forget(&mut self, node: NodeId, now: Instant) {
        self.staged.remove(&node);
        for user in self.nodes.remove(&node).unwrap_or_default() {
            self.lost_one(&user, now);
        }
    }

    /// Ends the grace periods that are over.
    pub(super) fn advance(&mut self, now: Instant) {
        while self.next_end().is_some_and(|end| end <= now) {
            let Some((end, user)) = self.leaving.pop_front() else {
                return;
            };
            if self.online.get(&user) == Some(&OnlineUser::Leaving(end)) {
                self.online.remove(&user);
                self.changes.push(PresenceChange::Offline(user));
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

    pub(super) fn take_changes(&mut self) -> Vec<PresenceChange> {
        std::mem::take(&mut self.changes)
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

    fn online(name: &str) -> PresenceChange {
        PresenceChange::Online(user(name))
    }

    fn offline(name: &str) -> PresenceChange {
        PresenceChange::Offline(user(name))
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

    #[test]
    fn a_whole_list_replaces_what_was_known_and_a_torn_one_does_not() {
        let (mut directory, now) = (Directory::new(GRACE), Instant::now());
        for name in ["x", "y"] {
            directory.came(A, user(name));
        }
        directory.take_changes();
        directory.everybody(A, vec![user("z")], (false, true), now);
        assert_eq!(directory.take_changes(), [], "its beginning was missed");
        directory.everybody(A, vec![user("y")], (true, false), now);
        directory.everybody(A, vec![user("z")], (false, true), now);
        assert_eq!(directory.take_changes(), [online("z")]);
        directory.advance(now + GRACE);
        assert_eq!(directory.take_changes(), [offline("x")]);
        directory.everybody(A, vec![], (true, false), now);
        directory.interrupted();
        directory.everybody(A, vec![], (false, true), now);
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
        directory.everybody(A, vec![], (true, false), now);
        directory.forget(A, now);
        assert!(directory.staged.is_empty() && !directory.nodes.contains_key(&A));
        directory.advance(now + GRACE);
        assert_eq!(directory.take_changes(), [offline("y")]);
    }
}
