//! Saying who a message is for.

use std::sync::Arc;

use axum_core::extract::FromRequestParts;
use http::request::Parts;
use serde::Serialize;

use crate::close::Close;
use crate::control::Ask;
use crate::delivery::{Delivery, Outcome};
use crate::error::{ConnectError, QueryError, SendError};
use crate::gap::Gaps;
use crate::id::{InvalidId, RoomId, SocketId, UserId};
use crate::message::Message;
use crate::node::Node;
use crate::presence::Presence;
use crate::rejection::ClusterRejection;
use crate::roster::{Count, Roster};
use crate::scope::Selection;
use crate::topic::Topic;
use crate::worker::BroadcasterBuilder;

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
    /// A publisher without sockets, for a worker, a cron job or another service: in the default
    /// namespace, with all defaults. Waits until the bus is up, at most 5 s. An app that names a namespace
    /// needs [`builder`](Self::builder).
    ///
    /// # Errors
    /// Those of [`Cluster::connect`](crate::Cluster::connect).
    ///
    /// # Cancel safety
    /// Cancelled, nothing is left behind.
    pub async fn connect(redis_url: impl AsRef<str>) -> Result<Self, ConnectError> {
        Self::builder().redis(redis_url).connect().await
    }

    /// A publisher without sockets, with settings of your own. When no node takes what it sends to a user who is
    /// online, its namespace or Redis is not the app's: see [`BroadcasterBuilder`].
    pub fn builder() -> BroadcasterBuilder {
        BroadcasterBuilder::new()
    }

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

    /// One socket.
    pub fn to_socket(&self, socket: SocketId) -> Audience {
        self.audience().to_socket(socket)
    }

    /// Every socket of the cluster.
    pub fn to_all(&self) -> Audience {
        self.audience().to_all()
    }

    /// Whether the user has a socket anywhere, at the price of one question to Redis when it has none
    /// here. For the linger (2 s) after the user's last socket it may still be true. Exact on a single
    /// Redis, which forgets a dead process's subscriptions by itself, and those of a machine that vanished
    /// after its `tcp-keepalive` (300 s by default); another program that subscribes to the user's channel
    /// counts as well.
    ///
    /// # Errors
    /// When the id is unusable or Redis does not answer.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn is_online(&self, user: impl Into<UserId>) -> Result<bool, QueryError> {
        Ok(self.node.online(&[user.into()]).await?[0])
    }

    /// The same for many users in one round trip: those of them who are online, in the order given.
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
        let online = self.node.online(&users).await?;
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
        self.node.presence(Topic::all(), None)
    }

    /// The same for some users only; one whose id is unusable is never online, and the log says so.
    pub fn presence_of<U: Into<UserId>>(&self, users: impl IntoIterator<Item = U>) -> Presence {
        let users = users.into_iter().map(Into::into);
        let usable = |user: &UserId| {
            let checked = user.check().map_err(|error| error.log("presence_of"));
            checked.is_ok()
        };
        let users = users.filter(usable).collect();
        self.node.presence(Topic::all(), Some(users))
    }

    /// Who comes to a room and goes from it, whether or not they stay online: a user is there from the
    /// first socket that joins until the last has left or ended. With an unusable id it ends at once, and the log
    /// says so.
    pub fn presence_in(&self, room: impl Into<RoomId>) -> Presence {
        match Topic::room(room.into().as_str()) {
            Ok(room) => self.node.presence(room, None),
            Err(error) => {
                error.log("presence_in");
                Presence::ended()
            }
        }
    }

    /// When messages may have been missed here: see [`Cluster::gaps`](crate::Cluster::gaps).
    pub fn gaps(&self) -> Gaps {
        self.node.gaps().stream()
    }

    pub(crate) fn of(node: Arc<Node>) -> Self {
        Self { node }
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    fn audience(&self) -> Audience {
        let (selection, invalid, local) = (Selection::default(), None, false);
        Audience {
            node: self.node.clone(),
            selection,
            invalid,
            local,
        }
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

/// Who a message is for: a union, in which every socket is meant once however often it matches.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), axum_cluster::SendError> {
/// # let cluster = axum_cluster::Cluster::builder().start();
/// # let speaker = "00000000000000ff-2a".parse().unwrap();
/// let everybody_else = cluster
///     .broadcaster()
///     .to_room("lobby")
///     .to_users(["alice", "bob"]) // wherever they are
///     .except(speaker)
///     .except_user("mallory");
/// everybody_else.clone().send("hello").await?;
/// let here = everybody_else.local().send("only this node's sockets").await?;
/// assert_eq!((here.local(), here.nodes()), (0, None));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "an audience does nothing until it is sent to, asked or closed"]
pub struct Audience {
    node: Arc<Node>,
    selection: Selection,
    /// The first id that cannot be used; said when it would be.
    invalid: Option<InvalidId>,
    local: bool,
}

impl Audience {
    /// Every socket of this user, too.
    pub fn to_user(self, user: impl Into<UserId>) -> Self {
        self.and(Topic::user(&user.into()))
    }

    /// Every socket of each of these users, too.
    pub fn to_users<U: Into<UserId>>(self, users: impl IntoIterator<Item = U>) -> Self {
        users.into_iter().fold(self, Self::to_user)
    }

    /// Every socket in this room, too.
    pub fn to_room(self, room: impl Into<RoomId>) -> Self {
        self.and(Topic::room(room.into().as_str()))
    }

    /// This socket, too.
    pub fn to_socket(self, socket: SocketId) -> Self {
        self.and(Ok(Topic::socket(socket)))
    }

    /// Every socket of the cluster.
    pub fn to_all(self) -> Self {
        self.and(Ok(Topic::all()))
    }

    /// Not this socket; typically the one that spoke.
    pub fn except(mut self, socket: SocketId) -> Self {
        self.selection.except.push(socket);
        self
    }

    /// No socket of this user.
    pub fn except_user(mut self, user: impl Into<UserId>) -> Self {
        let user = user.into();
        match user.check() {
            Ok(()) => self.selection.except_users.push(user),
            Err(error) => self.refuse(error),
        }
        self
    }

    /// Only sockets of this node, without a word to Redis.
    pub fn local(mut self) -> Self {
        self.local = true;
        self
    }

    /// Delivers to the sockets of this node and publishes once for all others. Messages of one
    /// sender to one audience arrive in the order sent. Never waits for a client; waits for Redis at
    /// most `publish_timeout`.
    ///
    /// # Errors
    /// [`SendError`] says what did happen: how many sockets here took it, and whether other nodes may
    /// have got it. A send that may have gone out is not repeated, so there are no duplicates.
    ///
    /// # Cancel safety
    /// Cancelled, any of the sockets may have it: those of a node are served in turns of 128.
    pub async fn send(self, message: impl Into<Message>) -> Result<Delivery, SendError> {
        let mut audience = self;
        audience.check().map_err(SendError::invalid)?;
        let Self {
            node,
            selection,
            local,
            ..
        } = audience;
        let (local, nodes) = node.send(&selection, &message.into(), local).await?;
        Ok(Delivery { local, nodes })
    }

    /// Sends a value as JSON text.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), axum_cluster::SendError> {
    /// # let cluster = axum_cluster::Cluster::builder().start();
    /// #[derive(serde::Serialize)]
    /// struct Shipped { order: u32 }
    ///
    /// cluster.broadcaster().to_user("alice").send_json(&Shipped { order: 7 }).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`send`](Self::send), and when the value cannot be written as JSON.
    ///
    /// # Cancel safety
    /// That of [`send`](Self::send).
    pub async fn send_json<T: Serialize + ?Sized>(self, value: &T) -> Result<Delivery, SendError> {
        let json = serde_json::to_string(value).map_err(SendError::json)?;
        self.send(json).await
    }

    /// Closes every socket of the audience, on every node, after what was sent to it: logs a user out
    /// everywhere. Returns when every node that holds one has said that it is done, or after
    /// `publish_timeout`; [`Outcome::unanswered`] tells how many did not.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), axum_cluster::SendError> {
    /// # let cluster = axum_cluster::Cluster::builder().start();
    /// use axum_cluster::Close;
    ///
    /// let logged_out = Close::new(4001, "logged out");
    /// cluster.broadcaster().to_user("alice").close(logged_out).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`send`](Self::send), and when the code may not be sent
    /// ([`Close::is_sendable`]).
    ///
    /// # Cancel safety
    /// Cancelled, the sockets here are closing and the others may be.
    pub async fn close(self, close: Close) -> Result<Outcome, SendError> {
        if !close.is_sendable() {
            return Err(SendError::invalid_close(close.code));
        }
        self.command(Ask::from(&close)).await
    }

    /// Puts every socket that is in the audience now into a room, on every node. Returns when what is
    /// sent to the room from any node reaches them, or after `publish_timeout`;
    /// [`Outcome::unanswered`] tells how many nodes did not say so. Joining twice is joining once. Each
    /// waits for an answer of every node: do many at once, with `join_all`.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), axum_cluster::SendError> {
    /// # let cluster = axum_cluster::Cluster::builder().start();
    /// let broadcaster = cluster.broadcaster();
    /// broadcaster.to_user("alice").join("vip").await?; // all her devices that are there now
    /// broadcaster.to_room("vip").send("welcome").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`send`](Self::send), and when the room's id is unusable.
    ///
    /// # Cancel safety
    /// Cancelled, the sockets here have joined and the others may have.
    pub async fn join(self, room: impl Into<RoomId>) -> Result<Outcome, SendError> {
        let room = usable(room)?;
        self.command(Ask::Join { room }).await
    }

    /// Takes every socket of the audience out of a room, on every node. What the same sender sends to
    /// the room afterwards does not reach them.
    ///
    /// # Errors
    /// Those of [`send`](Self::send), and when the room's id is unusable.
    ///
    /// # Cancel safety
    /// Cancelled, the sockets here have left and the others may have.
    pub async fn leave(self, room: impl Into<RoomId>) -> Result<Outcome, SendError> {
        let room = usable(room)?;
        self.command(Ask::Leave { room }).await
    }

    /// Who is in the audience, on every node: a user's devices, a room's members.
    ///
    /// Each node answers once, in at most `publish_timeout`; who did not is in
    /// [`Roster::missing`], and with Redis gone that is every other node. Identical
    /// questions asked at the same time share the work: those that come while one is under way wait for
    /// its end, and share the next. A node that is cut off from Redis, or has died without a goodbye, is missing until
    /// its [`lease`](crate::ClusterBuilder::lease) ends. A node of another namespace is not part of the cluster.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), axum_cluster::QueryError> {
    /// # let cluster = axum_cluster::Cluster::builder().start();
    /// for device in cluster.broadcaster().to_user("alice").sockets().await? {
    ///     println!("{} on node {} since {:?}", device.id, device.node(), device.connected_at);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When an id is unusable, or after [`Cluster::shutdown`](crate::Cluster::shutdown).
    ///
    /// # Cancel safety
    /// Cancel safe: others who ask the same get their answer.
    pub async fn sockets(mut self) -> Result<Roster, QueryError> {
        self.check().map_err(QueryError::invalid)?;
        self.node.roster(self.selection, self.local).await
    }

    /// How many sockets [`sockets`](Self::sockets) would list, without the lists.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), axum_cluster::QueryError> {
    /// # let cluster = axum_cluster::Cluster::builder().start();
    /// let count = cluster.broadcaster().to_room("lobby").count().await?;
    /// let or_more = if count.is_complete() { "" } else { " or more" };
    /// println!("{}{or_more} in the lobby", count.sockets());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When an id is unusable, or after [`Cluster::shutdown`](crate::Cluster::shutdown).
    ///
    /// # Cancel safety
    /// Cancel safe: others who ask the same get their answer.
    pub async fn count(mut self) -> Result<Count, QueryError> {
        self.check().map_err(QueryError::invalid)?;
        self.node.count(self.selection, self.local).await
    }

    fn and(mut self, topic: Result<Topic, InvalidId>) -> Self {
        match topic {
            Ok(topic) => self.selection.add(topic),
            Err(error) => self.refuse(error),
        }
        self
    }

    fn refuse(&mut self, error: InvalidId) {
        self.invalid.get_or_insert(error);
    }

    /// Whether every id can be used. Also removes what is named twice.
    fn check(&mut self) -> Result<(), InvalidId> {
        self.selection.normalize();
        self.invalid.map_or(Ok(()), Err)
    }

    async fn command(mut self, what: Ask) -> Result<Outcome, SendError> {
        self.check().map_err(SendError::invalid)?;
        self.node.command(&self.selection, what, self.local).await
    }
}

/// A room as commands carry it.
fn usable(room: impl Into<RoomId>) -> Result<String, SendError> {
    let room = room.into();
    room.check().map_err(SendError::invalid)?;
    Ok(room.into())
}
