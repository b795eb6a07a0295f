//! One primary for the seats that are there: a connection, and one round trip at a time for all groups.
//!
//! ```text
//!            somebody is due             it stands              whatever is due, in one pipeline
//!   closed ------------------> opening ------------> open -----------------------------------------> asking
//!     ^                           |                   ^                                                |  |
//!     |          it failed        |                   |              answered                          |  |
//!     +---------------------------+                   +------------------------------------------------+  |
//!     ^                                                                                                   |
//!     +---------------------------------------------------------------------------------------------------+
//!                                             it broke
//! ```
//! A connection that dies while nobody asks is as good as closed.

use std::collections::BTreeMap;
use std::time::Duration;

use bb8_redis::bb8::ManageConnection;
use futures::FutureExt;
use futures::future::BoxFuture;
use redis::{Cmd, RedisResult, Value};
use tokio::time::Instant;

use super::group::SeatGroup;
use crate::bus::redis::connection::{CommandPipeline, Connection, Connector};

#[derive(Debug)]
pub(super) struct SeatLink {
    pub(super) connector: Connector,
    pub(super) stage: LinkStage,
}

#[derive(Debug)]
pub(super) enum LinkStage {
    Closed,
    /// Whoever waits for Redis is told at that time that it takes long, once.
    Opening {
        late: Option<Instant>,
    },
    Open(Connection),
    Asking(Vec<GroupCommands>),
}

/// The links in use, by number, and on which of them each group is.
#[derive(Debug, Default)]
pub(super) struct SeatLinks {
    pub(super) links: BTreeMap<u64, SeatLink>,
    pub(super) of_groups: Vec<u64>,
    next: u64,
}

/// What one group has asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GroupCommands {
    /// None when it has left meanwhile.
    pub(super) group: Option<usize>,
    pub(super) commands: usize,
}

/// A link at work, and what comes of it.
pub(super) type LinkFlight = BoxFuture<'static, FlightEnd>;

#[derive(Debug)]
pub(super) enum FlightEnd {
    Opened(RedisResult<Connection>),
    Answered(Connection, Vec<RedisResult<Value>>),
    Broke(redis::RedisError),
}

impl SeatLink {
    pub(super) fn new(connector: Connector) -> Self {
        let stage = LinkStage::Closed;
        Self { connector, stage }
    }

    pub(super) fn is_busy(&self) -> bool {
        matches!(self.stage, LinkStage::Opening { .. } | LinkStage::Asking(_))
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(&self.stage, LinkStage::Open(connection) if !connection.is_dead())
    }

    /// Opens a connection; it is late when it takes longer than `patience`.
    pub(super) fn open(&mut self, patience: Duration, now: Instant) -> LinkFlight {
        let late = Some(now + patience);
        self.stage = LinkStage::Opening { late };
        let connector = self.connector.clone();
        async move { FlightEnd::Opened(connector.connect().await) }.boxed()
    }

    /// Asks for all at once; nothing if that is nothing, or the link is not open.
    pub(super) fn ask(&mut self, said: Vec<(usize, Vec<Cmd>)>) -> Option<LinkFlight> {
        let (mut commands, mut asked) = (CommandPipeline::new(), Vec::new());
        for (group, said) in said.into_iter().filter(|(_, said)| !said.is_empty()) {
            asked.push(GroupCommands {
                group: Some(group),
                commands: said.len(),
            });
            said.into_iter()
                .for_each(|command| commands.add_command(command));
        }
        if asked.is_empty() {
            return None;
        }
        match std::mem::replace(&mut self.stage, LinkStage::Asking(asked)) {
            LinkStage::Open(connection) => Some(fly(connection, commands)),
            otherwise => {
                self.stage = otherwise;
                None
            }
        }
    }

    /// The group is elsewhere: what it has asked concerns nobody any more.
    pub(super) fn forget(&mut self, group: usize) {
        if let LinkStage::Asking(asked) = &mut self.stage {
            let of_it = asked.iter_mut().filter(|asked| asked.group == Some(group));
            of_it.for_each(|asked| asked.group = None);
        }
    }

    /// Whether it takes longer than anybody waits, once.
    pub(super) fn take_late(&mut self, now: Instant) -> bool {
        match &mut self.stage {
            LinkStage::Opening { late } => late.take_if(|late| *late <= now).is_some(),
            _ => false,
        }
    }

    /// When it will be late.
    pub(super) fn late(&self) -> Option<Instant> {
        match self.stage {
            LinkStage::Opening { late } => late,
            _ => None,
        }
    }
}

impl SeatLinks {
    pub(super) fn of(groups: &[SeatGroup]) -> Self {
        let mut links = Self::default();
        for group in groups {
            let number = links.to(group.connector());
            links.of_groups.push(number);
        }
        links
    }

    /// The link to this primary.
    fn to(&mut self, connector: Connector) -> u64 {
        let mut links = self.links.iter();
        if let Some((number, _)) = links.find(|(_, link)| link.connector.leads_as(&connector)) {
            return *number;
        }
        let number = self.next;
        self.next += 1;
        self.links.insert(number, SeatLink::new(connector));
        number
    }

    /// The group is there now.
    pub(super) fn lead(&mut self, group: usize, connector: Connector) {
        let before = self.of_groups[group];
        if let Some(link) = self.links.get_mut(&before) {
            link.forget(group);
        }
        self.of_groups[group] = self.to(connector);
    }

    pub(super) fn close_unused(&mut self) {
        let of_groups = &self.of_groups;
        self.links.retain(|number, _| of_groups.contains(number));
    }

    pub(super) fn is_busy(&self, number: u64) -> bool {
        self.links.get(&number).is_some_and(SeatLink::is_busy)
    }
}

/// To each who asked, and is still there, its own answers.
pub(super) fn shared_out(
    asked: Vec<GroupCommands>,
    answers: Vec<RedisResult<Value>>,
) -> impl Iterator<Item = (usize, Vec<RedisResult<Value>>)> {
    let mut answers = answers.into_iter();
    asked.into_iter().filter_map(move |asked| {
        let own = answers.by_ref().take(asked.commands).collect();
        Some((asked.group?, own))
    })
}

fn fly(mut connection: Connection, commands: CommandPipeline) -> LinkFlight {
    async move {
        match connection.run(&commands).await {
            Ok(answers) => FlightEnd::Answered(connection, answers),
            // The connection is of no further use.
            Err(error) => FlightEnd::Broke(error),
        }
    }
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::super::world::connector;
    use super::*;
    use crate::model::id::NodeId;
    use crate::quota::{OverLimit, SeatLimit};

    fn group(connector: &Connector) -> SeatGroup {
        let (sockets, over) = (1, OverLimit::Refuse);
        let limit = SeatLimit { sockets, over };
        SeatGroup::new("x".into(), connector.clone(), NodeId(1), limit)
    }

    /// Of two groups that ask together; which of the answers each hears.
    fn asking() -> Vec<GroupCommands> {
        let asked = |group, commands| GroupCommands { group, commands };
        vec![asked(Some(2), 2), asked(Some(0), 1)]
    }

    fn shared(asked: Vec<GroupCommands>, answers: i64) -> Vec<(usize, Vec<i64>)> {
        let answers = (0..answers).map(|answer| Ok(Value::Int(answer)));
        let number = |answer| match answer {
            Ok(Value::Int(number)) => number,
            other => panic!("{other:?}"),
        };
        let shared = shared_out(asked, answers.collect());
        shared
            .map(|(group, answers)| (group, answers.into_iter().map(number).collect()))
            .collect()
    }

    #[test]
    fn each_hears_the_answers_to_what_it_asked() {
        assert_eq!(shared(asking(), 3), [(2, vec![0, 1]), (0, vec![2])]);
        let short = [(2, vec![0]), (0, vec![])];
        assert_eq!(
            shared(asking(), 1),
            short,
            "and finds that some are missing"
        );
    }

    #[test]
    fn who_has_left_hears_nothing_and_the_others_all() {
        let mut link = SeatLink::new(connector("redis://127.0.0.1:1"));
        link.stage = LinkStage::Asking(asking());
        link.forget(2);
        let LinkStage::Asking(asked) = link.stage else {
            panic!("it still asks");
        };
        assert_eq!(shared(asked, 3), [(0, vec![2])]);
    }

    #[test]
    fn groups_share_a_link_while_they_are_on_one_primary() {
        let [one, two] = [1, 2].map(|port| connector(&format!("redis://127.0.0.1:{port}")));
        let groups = [&one, &two, &one].map(group);
        let mut links = SeatLinks::of(&groups);
        assert_eq!((&*links.of_groups, links.links.len()), (&[0, 1, 0][..], 2));
        links.lead(1, one);
        links.close_unused();
        assert_eq!((&*links.of_groups, links.links.len()), (&[0, 0, 0][..], 1));
        let number = links.of_groups[2];
        links.links.get_mut(&number).unwrap().stage = LinkStage::Asking(asking());
        links.lead(2, two);
        links.close_unused();
        let asking = match &links.links[&number].stage {
            LinkStage::Asking(asked) => asked.iter().map(|asked| asked.group),
            other => panic!("{other:?}"),
        };
        assert!(
            asking.eq([None, Some(0)]),
            "who has left hears nothing of it"
        );
        // What an earlier link still has on its way is not taken for this one's.
        assert_eq!((&*links.of_groups, links.links.len()), (&[0, 0, 2][..], 2));
    }

    #[test]
    fn a_connection_is_late_once() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut link = SeatLink::new(connector("redis://127.0.0.1:1"));
        assert!(!link.take_late(now) && link.late().is_none());
        drop(link.open(second, now));
        assert!(link.is_busy() && !link.take_late(now));
        assert_eq!(link.late(), Some(now + second));
        assert!(link.take_late(now + second) && !link.take_late(now + second));
        assert_eq!(link.late(), None);
    }
}
