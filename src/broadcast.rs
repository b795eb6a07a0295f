//! Sending from anywhere in the process.

use std::sync::Arc;

use axum_core::extract::FromRequestParts;
use http::request::Parts;

use crate::audience::Audience;
use crate::bus::gaps::Gaps;
use crate::model::error::QueryError;
use crate::model::id::{RoomId, SocketId, UserId};
use crate::model::topic::Topic;
use crate::node::Node;
use crate::presence::Presence;
use crate::rejection::ClusterRejection;

/// Sends to users, rooms and sockets wherever in the cluster they are.
///
/// An extractor in handlers behind the layer; just as good in `State` and in background tasks. Cheap to
/// clone.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), axum_cluster::SendError> {
/// # let cluster = axum_cluster::Cluster::builder().start();
/// let broadcaster = cluster.broadcaster();
/// let delivery = broadcaster.to_user("alice").to_room("lobby").send("hello").await?;
/// assert_eq!(delivery.local(), 0); // nobody is here yet
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Broadcaster {
    node: Arc<Node>,
}

impl Broadcaster {
    /// Every socket of a user.
    pub fn to_user(&self, user: impl Into<UserId>) -> Audience {
        self.audience().to_user(user)
    }

    /// Every socket of each of these users.
    pub fn to_users<U: Into<UserId>>(&self, users: impl IntoIterator<Item = U>) -> Audience {
        self.audience().to_users(users)
    }

    /// Every socket in a room.
    pub fn to_room(&self, room: impl Into<RoomId>) -> Audience {
        self.audience().to_room(room)
    }

    /// Every socket in each of these rooms.
    pub fn to_rooms<R: Into<RoomId>>(&self, rooms: impl IntoIterator<Item = R>) -> Audience {
        self.audience().to_rooms(rooms)
    }

    /// One socket.
    pub fn to_socket(&self, socket: SocketId) -> Audience {
        self.audience().to_socket(socket)
    }

    /// Every socket of the cluster.
    pub fn to_all(&self) -> Audience {
        self.audience().to_all()
    }

    /// Whether the user has a socket anywhere that a message would reach now, at the price of one question to Redis when it
    /// has none here. For the linger (2 s) after the user's last socket it may still be true. Exact on a single
    /// Redis, which forgets a dead process's subscriptions by itself, and those of a machine that vanished
    /// after its `tcp-keepalive` (300 s by default); another program that subscribes to the user's channel
    /// counts as well.
    ///
    /// A node whose link to the user's Redis is down just now serves the user and hears nobody: to all others the user is
    /// offline, as no message of theirs arrives. [`count`](Audience::count) asks the nodes themselves, and names as missing those
    /// that cannot be asked.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let cluster = axum_cluster::Cluster::builder().start();
    /// let broadcaster = cluster.broadcaster();
    /// match broadcaster.is_online("alice").await? {
    ///     true => drop(broadcaster.to_user("alice").send("hello").await?),
    ///     false => println!("send a mail"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the id is unusable or Redis does not answer.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn is_online(&self, user: impl Into<UserId>) -> Result<bool, QueryError> {
        Ok(self.node.peers.queries().online(&[user.into()]).await?[0])
    }

    /// Which of many users are online, in the order given, in one round trip.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), axum_cluster::QueryError> {
    /// # let cluster = axum_cluster::Cluster::builder().start();
    /// let friends = cluster.broadcaster().which_online(["bob", "carol"]).await?;
    /// assert!(friends.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When an id is unusable or Redis does not answer.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn which_online<U: Into<UserId>>(
        &self,
        users: impl IntoIterator<Item = U>,
    ) -> Result<Vec<UserId>, QueryError> {
        let users: Vec<UserId> = users.into_iter().map(Into::into).collect();
        let online = self.node.peers.queries().online(&users).await?;
        let online = users.into_iter().zip(online).filter(|(_, online)| *online);
        Ok(online.map(|(user, _)| user).collect())
    }

    /// Who comes online and goes offline in the whole cluster, beginning with everybody who is online.
    /// Costs a message per change, to the nodes that listen, and nothing while no node does.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let cluster = axum_cluster::Cluster::builder().start();
    /// use axum_cluster::PresenceChange;
    /// use futures::StreamExt;
    ///
    /// let mut presence = cluster.broadcaster().presence();
    /// # cluster.shutdown(std::time::Duration::ZERO).await;
    /// while let Some(change) = presence.next().await {
    ///     match change {
    ///         PresenceChange::Online(user) => println!("{user} is online"),
    ///         PresenceChange::Offline(user) => println!("{user} has gone"),
    ///         _ => {} // what later versions may tell
    ///     }
    /// }
    /// # }
    /// ```
    pub fn presence(&self) -> Presence {
        self.node.presence.reader(Topic::all(), None)
    }

    /// Who of these users comes and goes; one whose id is unusable is never online, and the log says so.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let cluster = axum_cluster::Cluster::builder().start();
    /// use futures::StreamExt;
    ///
    /// let mut friends = cluster.broadcaster().presence_of(["bob", "carol"]);
    /// # cluster.shutdown(std::time::Duration::ZERO).await;
    /// while let Some(change) = friends.next().await {
    ///     println!("{}: {}", change.user(), if change.is_online() { "here" } else { "gone" });
    /// }
    /// # }
    /// ```
    pub fn presence_of<U: Into<UserId>>(&self, users: impl IntoIterator<Item = U>) -> Presence {
        let users = users.into_iter().map(Into::into);
        let usable = |user: &UserId| {
            let checked = user.check().map_err(|error| error.log("presence_of"));
            checked.is_ok()
        };
        let users = users.filter(usable).collect();
        self.node.presence.reader(Topic::all(), Some(users))
    }

    /// Who comes to a room and goes from it, whether or not they stay online: a user is there from the
    /// first socket that joins until the last has left or ended. With an unusable id it ends at once, and the log
    /// says so.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let cluster = axum_cluster::Cluster::builder().start();
    /// use futures::StreamExt;
    ///
    /// let mut lobby = cluster.broadcaster().presence_in("lobby");
    /// # cluster.shutdown(std::time::Duration::ZERO).await;
    /// while let Some(change) = lobby.next().await {
    ///     let change = serde_json::to_string(&change).unwrap(); // {"online":"alice"}
    ///     println!("{change}");
    /// }
    /// # }
    /// ```
    pub fn presence_in(&self, room: impl Into<RoomId>) -> Presence {
        match Topic::room(room.into().as_str()) {
            Ok(room) => self.node.presence.reader(room, None),
            Err(error) => {
                error.log("presence_in");
                Presence::ended()
            }
        }
    }

    /// When messages may have been missed here: see [`Cluster::gaps`](crate::Cluster::gaps).
    pub fn gaps(&self) -> Gaps {
        self.node.ground.reception.gaps()
    }

    pub(crate) fn of(node: Arc<Node>) -> Self {
        Self { node }
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    fn audience(&self) -> Audience {
        Audience::of_nobody(self.node.clone())
    }
}

/// Needs a [`ClusterLayer`](crate::ClusterLayer) around the route; without one it answers 500.
impl<S: Sync> FromRequestParts<S> for Broadcaster {
    type Rejection = ClusterRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ClusterRejection> {
        parts
            .extensions
            .get()
            .cloned()
            .ok_or_else(ClusterRejection::no_layer)
    }
}
