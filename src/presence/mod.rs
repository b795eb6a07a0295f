//! Who comes online and goes offline, as a stream.

mod directory;
mod reader;
mod told;
mod word;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;

pub(crate) use self::directory::Directory;
pub(crate) use self::reader::Reader;
pub(crate) use self::told::Told;
pub(crate) use self::word::{Report, WatchRequest};
use crate::id::UserId;

/// A user came or went.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
/// A reconnect within the grace period ([`Builder::presence_grace`](crate::Builder::presence_grace), 5 s)
/// is no change. That a node died is noticed with the first hello and probe of this one after its
/// [`lease`](crate::Builder::lease) (15 s), at most 10 s later by default; from then on its users have the
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
