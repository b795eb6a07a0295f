//! Who comes online and goes offline, as a stream.
//!
//! Every node tells the others who comes and goes among its own sockets, of those topics only that somebody watches
//! there, and puts together for its readers what all of them tell.
//!
//! ```text
//!  sockets: touch ----+                                                   +--> readers (streams)
//!  readers: new, gone +--> mailbox --> task --> machine: told, directory -+
//!  the bus: words ----+    (a lock)    (waits)  (rules)         |
//!                                        ^ says, one by one     | what to do next
//!                                        +----------------------+
//! ```
//!
//! One task for all topics, since order is what keeps it true: see [`machine`]. The rules know no bus and no clock: a
//! test plays three of them against one another over a channel that loses, delays and repeats (`world`).

mod act;
mod directory;
mod feed;
mod machine;
mod mailbox;
mod reader;
mod task;
mod told;
mod unsaid;
mod word;
#[cfg(test)]
mod world;

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use serde::Serialize;
use serde_json::Value;

pub(crate) use self::mailbox::Mailbox;
use self::reader::Reader;
pub(crate) use self::task::PresenceTask;
pub(crate) use self::word::Word;
use crate::model::description::Descriptions;
use crate::model::id::{NodeId, UserId};
use crate::model::topic::Topic;

/// A user came or went, or is described anew. As JSON: `{"online": ".."}`, `{"offline": ".."}`, or
/// `{"described": {"user": "..", "descriptions": [..]}}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PresenceChange {
    /// The user's first socket in the whole cluster.
    Online(UserId),
    /// The user's last socket ended, and for the grace period none followed.
    Offline(UserId),
    /// What the user's sockets are said to be ([`Socket::describe`](crate::Socket::describe)) is new. Only where it is
    /// [asked for](Presence::described).
    #[non_exhaustive]
    Described {
        /// Who is online.
        user: UserId,
        /// What her sockets on all nodes are described as, each description once, in no order of theirs; nothing, if no socket is
        /// described any more. Of more than 16 the first by their JSON.
        descriptions: Vec<Value>,
    },
}

impl PresenceChange {
    /// Whose change it is.
    pub fn user(&self) -> &UserId {
        match self {
            Self::Online(user) | Self::Offline(user) | Self::Described { user, .. } => user,
        }
    }

    /// Whether the user is online now.
    pub fn is_online(&self) -> bool {
        matches!(self, Self::Online(_) | Self::Described { .. })
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
    fn new(reader: Arc<Reader>) -> Self {
        Self { reader }
    }

    /// Tells also what the users' sockets are said to be: [`PresenceChange::Described`] follows the
    /// [`Online`](PresenceChange::Online) of everybody who is described, and comes again whenever that is new, by
    /// [`Socket::describe`](crate::Socket::describe) or since a device came or went. In a room it is about the sockets there.
    ///
    /// Costs a message per change, to the nodes that ask for it, and nothing while no node does. Who is away for less than the grace
    /// period and comes back as what she was is no news. Nodes of a version before this word tell nothing of it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let cluster = axum_cluster::Cluster::builder().start();
    /// use axum_cluster::PresenceChange;
    /// use futures::StreamExt;
    ///
    /// let mut lobby = cluster.broadcaster().presence_in("lobby").described();
    /// # cluster.shutdown(std::time::Duration::ZERO).await;
    /// while let Some(change) = lobby.next().await {
    ///     match change {
    ///         PresenceChange::Online(user) => println!("{user} is here"),
    ///         PresenceChange::Offline(user) => println!("{user} has left"),
    ///         PresenceChange::Described { user, descriptions, .. } => {
    ///             let away = descriptions.iter().all(|device| device["away"] == true);
    ///             println!("{user} is {}", if away { "away" } else { "at her desk" });
    ///         }
    ///         _ => {} // what later versions may tell
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn described(self) -> Self {
        self.reader.ask_described();
        self
    }

    /// The presence of a room that cannot be: it ends at once.
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

/// What the rules ask of their node.
pub(crate) trait Here {
    /// From now on the mailbox is told of who comes to a topic and goes; and who is on it now. First the one, then the
    /// other, or somebody falls in between.
    fn watch(&self, topic: &Topic) -> HashMap<UserId, Descriptions>;

    /// The mailbox is told of it no more.
    fn unwatch(&self, topic: &Topic);

    /// As what a user is described that has a socket on a topic.
    fn user_on(&self, user: &UserId, topic: &Topic) -> Option<Descriptions>;

    /// Whether another node says hello, so that its end will be noticed.
    fn knows(&self, node: NodeId) -> bool;

    /// The other nodes that may hold sockets.
    fn nodes(&self) -> Vec<NodeId>;
}

/// What the task does through its node.
pub(crate) trait Host: Here + Send + Sync {
    fn mailbox(&self) -> &Mailbox;

    /// Says something on a topic's channel; how many nodes took it, and none if it may be lost.
    fn say(&self, to: &Topic, word: &Word) -> impl Future<Output = Option<usize>> + Send;

    /// Begins to hear a topic's presence, and waits until it is heard, if that is possible now.
    fn hear(&self, topic: &Topic) -> impl Future<Output = ()> + Send;

    /// One `hear` less.
    fn release(&self, topic: &Topic);
}
