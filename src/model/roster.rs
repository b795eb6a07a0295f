//! Who is there: sockets, and the nodes that hold them.

use std::slice;
use std::time::SystemTime;
use std::vec;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::model::id::{NodeId, RoomId, SocketId, UserId};
use crate::model::millis;

/// The sockets of an audience, as the nodes told at the moment they were asked.
///
/// Never all or nothing: what was answered in time is here, and [`missing`](Self::missing) says which
/// nodes did not answer.
///
/// As JSON: `sockets`, `missing`, `complete`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Roster {
    pub(crate) sockets: Vec<SocketInfo>,
    pub(crate) missing: Vec<NodeId>,
    #[serde(rename = "complete", serialize_with = "negated")]
    pub(crate) partial: bool,
}

impl Roster {
    /// The sockets, oldest first.
    pub fn sockets(&self) -> &[SocketInfo] {
        &self.sockets
    }

    /// The sockets one by one, oldest first.
    pub fn iter(&self) -> slice::Iter<'_, SocketInfo> {
        self.sockets.iter()
    }

    /// How many sockets are listed.
    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Whether no socket is listed; nobody is there only if the list [is complete](Self::is_complete), too.
    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
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
    type IntoIter = vec::IntoIter<SocketInfo>;

    fn into_iter(self) -> Self::IntoIter {
        self.sockets.into_iter()
    }
}

impl<'a> IntoIterator for &'a Roster {
    type Item = &'a SocketInfo;
    type IntoIter = slice::Iter<'a, SocketInfo>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// One socket somewhere in the cluster. As JSON: `id`, `user`, `connected_at` (milliseconds since 1970),
/// `rooms`, `description`, and `expires_at` (likewise) where the app said it.
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
    pub rooms: Vec<RoomId>,
    /// What the app said of it by [`ClusterSocket::describe`](crate::ClusterSocket::describe).
    #[serde(default)]
    pub description: Option<Value>,
    /// When its identity ends, as [`ClusterSocket::expires_at`](crate::ClusterSocket::expires_at) or
    /// [`Socket::expires_at`](crate::Socket::expires_at) said last; nodes of versions that do not tell it are none of these.
    #[serde(
        default,
        with = "millis::known",
        skip_serializing_if = "Option::is_none"
    )]
    pub expires_at: Option<SystemTime>,
}

impl SocketInfo {
    /// The node that holds it.
    pub fn node(&self) -> NodeId {
        self.id.node()
    }
}

/// How many sockets an audience has. As JSON: `sockets`, `missing`, `complete`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize)]
pub struct Count {
    pub(crate) sockets: usize,
    pub(crate) missing: Vec<NodeId>,
    #[serde(rename = "complete", serialize_with = "negated")]
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
///
/// How it stands with each Redis is not in it, since that would be as old as the last description: its own
/// [`Health`](crate::Health) names the address of the worst, its [`Stats`](crate::Stats) count them (`bus_shards`, `bus_shards_up`), and
/// a dashboard shows both of all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

/// A partial answer is not complete.
fn negated<S: Serializer>(partial: &bool, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_bool(!partial)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::json;

    use super::*;

    #[test]
    fn a_roster_is_shown_and_walked() {
        let socket = SocketInfo {
            id: "0000000000000001-2".parse().unwrap(),
            user: "alice".into(),
            connected_at: UNIX_EPOCH + Duration::from_millis(7),
            rooms: vec!["lobby".into()],
            description: None,
            expires_at: None,
        };
        let roster = Roster {
            sockets: vec![socket.clone()],
            missing: vec![NodeId(3)],
            partial: true,
        };
        assert_eq!((roster.len(), roster.is_empty()), (1, false));
        for (by_reference, by_iter) in (&roster).into_iter().zip(roster.iter()) {
            assert_eq!((by_reference, by_iter), (&socket, &socket));
        }
        let shown = json!({
            "sockets": [{
                "id": "0000000000000001-2", "user": "alice", "connected_at": 7, "rooms": ["lobby"], "description": null
            }],
            "missing": ["0000000000000003"],
            "complete": false,
        });
        assert_eq!(serde_json::to_value(&roster).unwrap(), shown);
        let expiring = SocketInfo {
            expires_at: Some(UNIX_EPOCH + Duration::from_millis(9)),
            ..socket.clone()
        };
        let told = serde_json::to_value(&expiring).unwrap();
        assert_eq!(told["expires_at"], 9);
        for socket in [&socket, &expiring] {
            let told = serde_json::to_string(socket).unwrap();
            assert_eq!(&serde_json::from_str::<SocketInfo>(&told).unwrap(), socket);
        }
        assert_eq!(Vec::from_iter(roster), [socket]);
        let count = serde_json::to_value(Count::default()).unwrap();
        assert_eq!(
            count,
            json!({ "sockets": 0, "missing": [], "complete": true })
        );
    }
}
