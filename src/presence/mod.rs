//! Who comes online and goes offline, as a stream.

mod announcer;
mod reader;
mod table;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use serde::{Deserialize, Serialize};

pub(crate) use self::announcer::Announcer;
pub(crate) use self::reader::Reader;
pub(crate) use self::table::Table;
use crate::id::UserId;

/// A user came or went. As JSON: `{"online": ".."}` or `{"offline": ".."}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PresenceChange {
    /// The user's first socket in the whole cluster.
    Online(UserId),
    /// The user's last socket ended, and for the grace period none followed.
    Offline(UserId),
}

impl PresenceChange {
    /// Whose change it is.
    pub fn user(&self) -> &UserId {
        match self {
            Self::Online(user) | Self::Offline(user) => user,
        }
    }

    /// Whether the user is online now.
    pub fn is_online(&self) -> bool {
        matches!(self, Self::Online(_))
    }
}

/// Who comes online and goes offline in the whole cluster. A stream, made by
/// [`Broadcaster::presence`](crate::Broadcaster::presence) and its siblings.
///
/// It begins with [`Online`](PresenceChange::Online) for everybody who is online, and from then on tells every
/// change once, however many nodes listen. A reader that lags is told the last state of each user,
/// not every change between. Ends with the node.
///
/// A reconnect within the grace period ([`ClusterBuilder::presence_grace`](crate::ClusterBuilder::presence_grace), 5 s)
/// is no change. That a node died is noticed with the first hello and probe of this one after its
/// [`lease`](crate::ClusterBuilder::lease) (15 s), at most 10 s later by default; from then on its users have the
/// grace period too. During an outage of Redis what is known stays; afterwards it is compared, and what
/// changed is told.
#[must_use = "streams do nothing unless polled"]
pub struct Presence {
    reader: Arc<Reader>,
}

impl Presence {
    pub(crate) fn new(reader: Arc<Reader>) -> Self {
        Self { reader }
    }

    /// Of a room that cannot be.
    pub(crate) fn ended() -> Self {
        let reader = Reader::new(None, Arc::default());
        reader.end();
        Self::new(Arc::new(reader))
    }
}

impl Stream for Presence {
    type Item = PresenceChange;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<PresenceChange>> {
        self.reader.poll_next(cx)
    }
}

impl fmt::Debug for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Presence").finish()
    }
}

/// Whether a node wants to be told of a topic's users.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wish {
    /// It does: first of everybody, then of every change.
    Watch { topic: String },
    /// It does no longer.
    Unwatch { topic: String },
}

impl Wish {
    pub(crate) fn topic(&self) -> &str {
        match self {
            Self::Watch { topic } | Self::Unwatch { topic } => topic,
        }
    }
}

/// What nodes tell one another of a topic's users.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Tidings {
    /// Everybody of the sender, in parts.
    Everybody {
        topic: String,
        users: Vec<UserId>,
        first: bool,
        last: bool,
    },
    /// Who came to the sender, and who went.
    Changes {
        topic: String,
        online: Vec<UserId>,
        offline: Vec<UserId>,
    },
}

impl Tidings {
    pub(crate) fn topic(&self) -> &str {
        match self {
            Self::Everybody { topic, .. } | Self::Changes { topic, .. } => topic,
        }
    }
}
