//! What one node has told the others of a topic: rules without I/O.

use std::collections::HashSet;

use super::word::Report;
use crate::model::id::UserId;
use crate::model::topic::Topic;

/// Users in one part of what is told: at most about 1.5 MB of JSON, and 8 MB if every character is a control
/// character. Few in unit tests, so that lists of several parts are met everywhere.
pub(super) const PART: usize = if cfg!(test) { 3 } else { 5000 };

/// What was told already, so that only what differs is.
#[derive(Debug)]
pub(super) struct Told {
    topic: Topic,
    users: HashSet<UserId>,
}

impl Told {
    pub(super) fn new(topic: Topic, users: HashSet<UserId>) -> Self {
        Self { topic, users }
    }

    /// Who counts as told.
    pub(super) fn users(&self) -> impl Iterator<Item = &UserId> {
        self.users.iter()
    }

    /// What changed among these users, who came or went or both.
    pub(super) fn changes(
        &mut self,
        touched: impl IntoIterator<Item = UserId>,
        is_here: impl Fn(&UserId) -> bool,
    ) -> Vec<Report> {
        let mut changed = Vec::new();
        for user in touched {
            let here = is_here(&user);
            let differs = if here {
                self.users.insert(user.clone())
            } else {
                self.users.remove(&user)
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
    pub(super) fn everybody(&self) -> Vec<Report> {
        let users: Vec<UserId> = self.users.iter().cloned().collect();
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
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::model::id::NodeId;
    use crate::presence::directory::Directory;

    #[test]
    fn everybody_is_told_in_whole_parts() {
        let users = |count: usize| (0..count as u64).map(UserId::from).collect();
        for (count, parts) in [(0, 1), (1, 1), (PART, 1), (PART + 1, 2)] {
            let reports = Told::new(Topic::all(), users(count)).everybody();
            assert_eq!(reports.len(), parts);
            let mut directory = Directory::new(Duration::ZERO);
            for part in reports {
                directory.heard(NodeId(1), part, Instant::now());
            }
            assert_eq!(directory.online().count(), count);
        }
    }

    #[test]
    fn a_crowd_that_moves_at_once_is_told_in_parts() {
        let users = |range: std::ops::Range<u64>| range.map(UserId::from);
        let count = PART as u64;
        let mut told = Told::new(Topic::all(), users(0..count).collect());
        let mut directory = Directory::new(Duration::ZERO);
        for part in told.everybody() {
            directory.heard(NodeId(1), part, Instant::now());
        }
        // The old ones have gone, as many and one more have come.
        let here: HashSet<UserId> = users(count..2 * count + 1).collect();
        let changes = told.changes(users(0..2 * count + 1), |user| here.contains(user));
        assert_eq!(changes.len(), 3);
        for part in changes {
            directory.heard(NodeId(1), part, Instant::now());
        }
        directory.advance(Instant::now());
        let online: HashSet<&UserId> = directory.online().collect();
        assert_eq!(online.len(), PART + 1);
        assert!(told.users().all(|user| online.contains(user)));
    }
}
