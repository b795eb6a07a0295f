//! Who is there: sockets, and the nodes that hold them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::id::{NodeId, SocketId, UserId};

/// The sockets of an audience, as the nodes told at the moment they were asked.
///
/// Never all or nothing: what was answered in time is here, and [`missing`](Self::missing) says which
/// nodes did not answer.
#[derive(Debug, Clone, Default)]
pub struct Roster {
    pub(crate) sockets: Vec<SocketInfo>,
    pub(crate) missing: Vec<NodeId>,
    pub(crate) partial: bool,
}

impl Roster {
    /// The sockets, oldest first.
    pub fn sockets(&self) -> &[SocketInfo] {
        &self.sockets
    }

    /// Nodes that are there and did not answer within `publish_timeout` (2 s): what they hold is not
    /// in the list.
    pub fn missing(&self) -> &[NodeId] {
        &self.missing
    }

    /// Whether every node has answered. `false` without a missing node when nobody could be asked, and so
    /// nobody knows whether others are there.
    pub fn is_complete(&self) -> bool {
        !self.partial
    }
}

impl IntoIterator for Roster {
    type Item = SocketInfo;
    type IntoIter = std::vec::IntoIter<SocketInfo>;

    fn into_iter(self) -> Self::IntoIter {
        self.sockets.into_iter()
    }
}

/// One socket somewhere in the cluster. As JSON: `id`, `user`, `connected_at` (milliseconds since 1970),
/// `rooms`, `description`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SocketInfo {
    /// Its identity.
    pub id: SocketId,
    /// Whose it is.
    pub user: UserId,
    /// Since when it is registered, by the clock of its node.
    #[serde(with = "millis")]
    pub connected_at: SystemTime,
    /// The rooms it is in.
    #[serde(default)]
    pub rooms: Vec<String>,
    /// What the app said of it by [`ClusterSocket::describe`](crate::ClusterSocket::describe).
    #[serde(default)]
    pub description: Option<Value>,
}

impl SocketInfo {
    /// The node that holds it.
    pub fn node(&self) -> NodeId {
        self.id.node()
    }
}

/// How many sockets an audience has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Count {
    pub(crate) sockets: usize,
    pub(crate) missing: Vec<NodeId>,
    pub(crate) partial: bool,
}

impl Count {
    /// The sockets of all nodes that answered.
    pub fn sockets(&self) -> usize {
        self.sockets
    }

    /// Nodes that are there and did not answer within `publish_timeout` (2 s).
    pub fn missing(&self) -> &[NodeId] {
        &self.missing
    }

    /// Whether every node has answered. `false` without a missing node when nobody could be asked, and so
    /// nobody knows whether others are there.
    pub fn is_complete(&self) -> bool {
        !self.partial
    }
}

/// One node of the cluster, as it last described itself. As JSON: `id`, `name`, `started_at` (milliseconds
/// since 1970), `sockets`, `users`, `version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NodeInfo {
    /// Its identity, new at every start.
    pub id: NodeId,
    /// What [`ClusterBuilder::name`](crate::ClusterBuilder::name) called it.
    pub name: String,
    /// When it started, by its own clock.
    #[serde(with = "millis")]
    pub started_at: SystemTime,
    /// Sockets registered there.
    pub sockets: u64,
    /// Users with a socket there.
    pub users: u64,
    /// The version of this crate that it runs.
    pub version: String,
}

/// Milliseconds since 1970: what every language reads.
mod millis {
    use super::*;

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        to.serialize_u64(since.as_millis() as u64)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        // A century that no clock names is as good as any other.
        let millis = Duration::from_millis(u64::deserialize(from)?);
        Ok(UNIX_EPOCH.checked_add(millis).unwrap_or(UNIX_EPOCH))
    }
}
