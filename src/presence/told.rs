//! What one node has told the others of a topic: rules without I/O.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::mem::take;

use super::word::Report;
use crate::model::description::Descriptions;
use crate::model::id::UserId;
use crate::model::topic::Topic;

/// Users in one part of what is told: at most about 1.5 MB of JSON, and 8 MB if every character is a control
/// character. Few in unit tests, so that lists of several parts are met everywhere.
pub(super) const PART: usize = if cfg!(test) { 3 } else { 5000 };

/// Bytes of descriptions in one part, or those of one user: twice that, if every character has to be escaped.
const DESCRIBED: usize = if cfg!(test) { 16 } else { 1024 * 1024 };

/// What was told already, so that only what differs is.
#[derive(Debug)]
pub(super) struct Told {
    topic: Topic,
    users: HashMap<UserId, Descriptions>,
}

/// What differs of one user.
struct UserChange {
    user: UserId,
    /// That she came or went.
    is_here: Option<bool>,
    described: Option<Descriptions>,
}

impl Told {
    pub(super) fn new(topic: Topic, users: HashMap<UserId, Descriptions>) -> Self {
        Self { topic, users }
    }

    /// What changed among these users, who came or went or both, or are described anew.
    pub(super) fn changes(
        &mut self,
        touched: impl IntoIterator<Item = UserId>,
        here: impl Fn(&UserId) -> Option<Descriptions>,
    ) -> Vec<Report> {
        let touched = touched.into_iter();
        let changed = touched.filter_map(|user| {
            let here = here(&user);
            self.change(user, here)
        });
        let changed: Vec<UserChange> = changed.collect();
        let size = |change: &UserChange| change.described.as_ref().map_or(0, Descriptions::size);
        let parts = in_parts(changed, size).into_iter();
        parts.map(|part| self.told(part)).collect()
    }

    fn change(&mut self, user: UserId, here: Option<Descriptions>) -> Option<UserChange> {
        let (is_here, described) = match (self.users.entry(user.clone()), here) {
            (Entry::Vacant(_), None) => return None,
            (Entry::Vacant(entry), Some(now)) => {
                let described = (!now.is_empty()).then(|| now.clone());
                entry.insert(now);
                (Some(true), described)
            }
            (Entry::Occupied(entry), None) => {
                entry.remove();
                (Some(false), None)
            }
            (Entry::Occupied(entry), Some(now)) if *entry.get() == now => return None,
            (Entry::Occupied(mut entry), Some(now)) => {
                entry.insert(now.clone());
                (None, Some(now))
            }
        };
        Some(UserChange {
            user,
            is_here,
            described,
        })
    }

    fn told(&self, part: Vec<UserChange>) -> Report {
        let (mut online, mut offline, mut described) = (Vec::new(), Vec::new(), Vec::new());
        for change in part {
            let user = change.user;
            let user_is = change.described.map(|described| (user.clone(), described));
            described.extend(user_is);
            match change.is_here {
                Some(true) => online.push(user),
                Some(false) => offline.push(user),
                None => {}
            }
        }
        Report::Changes {
            topic: self.topic.as_str().to_owned(),
            online,
            offline,
            described,
        }
    }

    /// Everything, for somebody who is new or may have missed something; and as what they are described, if that is
    /// wanted.
    pub(super) fn everybody(&self, described: bool) -> Vec<Report> {
        let users: Vec<_> = self.users.iter().collect();
        let size = |user: &(&UserId, &Descriptions)| match described {
            true => user.1.size(),
            false => 0,
        };
        let mut parts = in_parts(users, size);
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        let end = parts.len() - 1;
        let part = |(number, users): (usize, Vec<(&UserId, &Descriptions)>)| Report::Everybody {
            topic: self.topic.as_str().to_owned(),
            described: described.then(|| {
                let users = users.iter().filter(|(_, described)| !described.is_empty());
                users
                    .map(|&(user, it)| (user.clone(), it.clone()))
                    .collect()
            }),
            users: users.into_iter().map(|(user, _)| user.clone()).collect(),
            first: number == 0,
            last: number == end,
        };
        parts.into_iter().enumerate().map(part).collect()
    }
}

/// Divides a report into parts, each with as many users as may be said at once.
fn in_parts<T>(all: Vec<T>, size: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let (mut parts, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
    for one in all {
        let more = size(&one);
        if part.len() == PART || !part.is_empty() && bytes + more > DESCRIBED {
            parts.push(take(&mut part));
            bytes = 0;
        }
        bytes += more;
        part.push(one);
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::model::id::NodeId;
    use crate::presence::directory::Directory;

    #[test]
    fn everybody_is_told_in_whole_parts() {
        let users = |count: usize| {
            let users = (0..count as u64).map(UserId::from);
            users.map(|user| (user, Descriptions::default())).collect()
        };
        for (count, parts) in [(0, 1), (1, 1), (PART, 1), (PART + 1, 2)] {
            let reports = Told::new(Topic::all(), users(count)).everybody(true);
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
        let undescribed = |user| (user, Descriptions::default());
        let all = users(0..count).map(undescribed);
        let mut told = Told::new(Topic::all(), all.collect());
        let mut directory = Directory::new(Duration::ZERO);
        for part in told.everybody(false) {
            directory.heard(NodeId(1), part, Instant::now());
        }
        // The old ones have gone, as many and one more have come.
        let here: HashSet<UserId> = users(count..2 * count + 1).collect();
        let is_here = |user: &UserId| here.contains(user).then(Descriptions::default);
        let changes = told.changes(users(0..2 * count + 1), is_here);
        assert_eq!(changes.len(), 3);
        for part in changes {
            directory.heard(NodeId(1), part, Instant::now());
        }
        directory.advance(Instant::now());
        let online: HashSet<&UserId> = directory.online().collect();
        assert_eq!(online.len(), PART + 1);
        assert!(told.users.keys().all(|user| online.contains(user)));
    }

    #[test]
    fn descriptions_that_are_long_are_told_in_more_parts_and_only_where_they_differ() {
        let long = |text: &str| Descriptions::from(vec![text.repeat(DESCRIBED)]);
        let users = ["x", "y"].map(|user| (UserId::from(user), long("1")));
        let mut told = Told::new(Topic::all(), users.into());
        assert_eq!(told.everybody(true).len(), 2);
        assert_eq!(told.everybody(false).len(), 1, "control");
        let names = || ["x", "y", "z"].map(UserId::from);
        assert_eq!(told.changes(names(), |_| Some(long("1"))).len(), 1);
        assert_eq!(told.changes(names(), |_| Some(long("1"))), []);
        let changes = told.changes(names(), |user| Some(long(&user.as_str().replace('x', "2"))));
        assert_eq!(changes.len(), 3, "each for itself");
        for change in changes {
            assert_eq!(change.undescribed(), None, "nobody came or went");
        }
    }
}
