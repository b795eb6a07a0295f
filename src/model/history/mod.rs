//! What is kept of what is sent, for those who were away.

pub(crate) mod mark;
pub(crate) mod position;
pub(crate) mod token;

use std::time::Duration;

use serde::Serialize;

use self::position::Position;
use crate::model::message::Message;
use crate::model::topic::TopicKind;

/// How much is kept of what is sent to each user or room, or to all: the window, inside which whoever was away misses
/// nothing. The defaults are 100 messages and 5 minutes.
///
/// ```
/// use std::time::Duration;
/// use axum_cluster::History;
///
/// let an_hour = History { keep: Duration::from_secs(3600), ..History::default() };
/// assert_eq!(an_hour.messages, 100);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct History {
    /// At least so many of the last messages of each audience, and at most a quarter more: 1 to 10,000. Default: 100.
    pub messages: usize,
    /// Each for at least so long: 10 s to 7 days. An audience to which nothing is sent for an eighth longer takes no memory.
    /// Default: 5 minutes.
    pub keep: Duration,
}

impl History {
    /// What makes no sense, if anything.
    pub(crate) fn problem(&self) -> Option<String> {
        if !(1..=MOST).contains(&self.messages) {
            let messages = self.messages;
            return Some(format!(
                "keeps {messages} messages: 1 to {MOST} are possible"
            ));
        }
        if !(SHORTEST..=LONGEST).contains(&self.keep) {
            let keep = self.keep;
            return Some(format!("keeps for {keep:?}: 10 s to 7 days are possible"));
        }
        None
    }

    /// How long, in milliseconds.
    pub(crate) fn keep_millis(&self) -> u64 {
        self.keep.as_millis() as u64
    }

    /// How long an audience may be silent before what is kept of it goes.
    pub(crate) fn lifetime_millis(&self) -> u64 {
        self.keep_millis() * 9 / 8
    }

    /// So many are never kept.
    pub(crate) fn most(&self) -> usize {
        self.messages * 5 / 4
    }
}

impl Default for History {
    fn default() -> Self {
        Self {
            messages: 100,
            keep: Duration::from_secs(5 * 60),
        }
    }
}

/// What is kept of what is sent to whom: nothing, unless an app says so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Histories {
    pub(crate) user: Option<History>,
    pub(crate) room: Option<History>,
    pub(crate) all: Option<History>,
}

impl Histories {
    /// What is kept of a topic of this kind.
    pub(crate) fn of(&self, kind: TopicKind) -> Option<History> {
        match kind {
            TopicKind::User => self.user,
            TopicKind::Room => self.room,
            TopicKind::All => self.all,
            TopicKind::Socket | TopicKind::Node | TopicKind::Nodes | TopicKind::Presence => None,
        }
    }

    /// Those of all kinds that are kept.
    pub(crate) fn all_kinds(&self) -> impl Iterator<Item = History> + use<> {
        [self.user, self.room, self.all].into_iter().flatten()
    }

    /// The histories as nodes tell them to one another.
    pub(crate) fn told(&self) -> Vec<String> {
        let named = [("user", self.user), ("room", self.room), ("all", self.all)];
        let told = named.into_iter().filter_map(|(name, history)| {
            let history = history?;
            let (messages, millis) = (history.messages, history.keep_millis());
            Some(format!("{name}:{messages}/{millis}"))
        });
        told.collect()
    }

    pub(crate) fn is_off(&self) -> bool {
        self.user.is_none() && self.room.is_none() && self.all.is_none()
    }

    /// What makes no sense, if anything.
    pub(crate) fn problem(&self) -> Option<String> {
        let named = [
            ("user_history", self.user),
            ("room_history", self.room),
            ("all_history", self.all),
        ];
        named.into_iter().find_map(|(name, history)| {
            let problem = history?.problem()?;
            Some(format!("{name} {problem}"))
        })
    }
}

/// What is kept of an audience: the answer of [`Audience::history`](crate::Audience::history).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Kept {
    /// The oldest first.
    pub messages: Vec<Message>,
    /// Everything later comes to a socket that goes on from here.
    pub position: Position,
}

/// How a socket that came back goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub enum Resumed {
    /// It came without a position.
    New,
    /// It has everything since its position that is kept. Where users have no history, or all have none, what was sent to those is no
    /// part of that, as the app knows.
    Complete {
        /// So many messages it got again at its beginning, since it had missed them.
        replayed: usize,
    },
    /// Nobody can tell yet, since the bus is down: what it missed comes when that is over, before anything newer that is kept.
    Later,
    /// What it missed cannot be told, or not all of it: the app has to fetch its state anew.
    Missed(Missed),
}

/// Why nobody can tell what was missed since a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub enum Missed {
    /// It is older than what is kept ([`History::keep`]).
    Late,
    /// More came since than is kept ([`History::messages`]), or than is sent again at once.
    TooMany,
    /// Redis has lost what it kept, or a part of it: it was emptied, restarted without its data, or evicts keys. Or the client was in a
    /// room, and nothing is kept of rooms: what is kept of the rest it gets.
    Forgotten,
    /// The position is not one of this user in this namespace.
    Foreign,
}

impl Missed {
    /// The word in which a client is told why.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Late => "late",
            Self::TooMany => "too-many",
            Self::Forgotten => "forgotten",
            Self::Foreign => "foreign",
        }
    }

    /// Reads such a word.
    pub(crate) fn read(word: &str) -> Option<Self> {
        let all = [Self::Late, Self::TooMany, Self::Forgotten, Self::Foreign];
        all.into_iter().find(|missed| missed.word() == word)
    }
}

/// Most messages that may be kept of an audience.
const MOST: usize = 10_000;
/// Shorter than this is no help to whoever reconnects.
const SHORTEST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_that_makes_no_sense_is_named() {
        assert_eq!(Histories::default().problem(), None);
        let history = |messages, secs| History {
            messages,
            keep: Duration::from_secs(secs),
        };
        for (history, problem) in [
            (History::default(), None),
            (history(1, 10), None),
            (history(10_000, 604_800), None),
            (history(0, 60), Some("0 messages")),
            (history(10_001, 60), Some("10001 messages")),
            (history(1, 9), Some("9s")),
            (history(1, 604_801), Some("604801s")),
        ] {
            let histories = Histories {
                room: Some(history),
                ..Histories::default()
            };
            let said = histories.problem();
            assert_eq!(said.is_some(), problem.is_some(), "{said:?}");
            assert!(said.iter().all(|said| said.starts_with("room_history ")));
            assert!(said.is_none_or(|said| problem.is_some_and(|part| said.contains(part))));
        }
    }
}
