//! Saying who a message is for.

use std::sync::Arc;

use axum_core::extract::FromRequestParts;
use futures::Stream;
use http::request::Parts;
use serde::Serialize;

use crate::close::Close;
use crate::control::Ask;
use crate::error::{ConnectError, QueryError, SendError, SendErrorKind};
use crate::gap::Gap;
use crate::id::{InvalidId, SocketId, UserId, check_name};
use crate::message::Message;
use crate::node::Node;
use crate::presence::Presence;
use crate::rejection::ClusterRejection;
use crate::roster::{Count, Roster};
use crate::scope::{Reach, Selection};
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
    pub fn to_room(&self, room: impl AsRef<str>) -> Audience {
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
    ///     }
    /// }
    /// # }
    /// ```
    pub fn presence(&self) -> Presence {
        self.node.presence(Topic::all(), None)
    }

    /// The same for some users only; one whose id is unusable is never online.
    pub fn presence_of<U: Into<UserId>>(&self, users: impl IntoIterator<Item = U>) -> Presence {
        let users = users.into_iter().map(Into::into).collect();
        self.node.presence(Topic::all(), Some(users))
    }

    /// Who comes to a room and goes from it, whether or not they stay online: a user is there from the
    /// first socket that joins until the last has left or ended.
    ///
    /// # Errors
    /// When the room's name is empty or longer than 256 bytes.
    pub fn presence_in(&self, room: impl AsRef<str>) -> Result<Presence, InvalidId> {
        Ok(self.node.presence(Topic::room(room.as_ref())?, None))
    }

    /// When messages may have been missed here: see [`Cluster::gaps`](crate::Cluster::gaps).
    pub fn gaps(&self) -> impl Stream<Item = Gap> + Send + Unpin + use<> {
        self.node.gaps().stream()
    }

    pub(crate) fn of(node: Arc<Node>) -> Self {
        Self { node }
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    fn audience(&self) -> Audience {
        Audience {
            node: self.node.clone(),
            selection: Selection::default(),
            invalid: None,
            reach: Reach::Everywhere,
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
#[derive(Clone, Debug)]
#[must_use = "an audience does nothing until it is sent to, asked or closed"]
pub struct Audience {
    node: Arc<Node>,
    selection: Selection,
    /// The first id that cannot be used; said when it would be.
    invalid: Option<InvalidId>,
    reach: Reach,
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
    pub fn to_room(self, room: impl AsRef<str>) -> Self {
        self.and(Topic::room(room.as_ref()))
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
        self.selection.except_users.push(user.into());
        self
    }

    /// Only sockets of this node, without a word to Redis.
    pub fn local(mut self) -> Self {
        self.reach = Reach::Here;
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
            reach,
            ..
        } = audience;
        let (local, nodes) = node.send(&selection, &message.into(), reach).await?;
        Ok(Delivery {
            local,
            nodes,
            unanswered: 0,
        })
    }

    /// Sends a value as JSON text.
    ///
    /// # Errors
    /// Those of [`send`](Self::send), and when the value cannot be written as JSON.
    pub async fn send_json<T: Serialize + ?Sized>(self, value: &T) -> Result<Delivery, SendError> {
        let json = serde_json::to_string(value)
            .map_err(|error| SendError::refused(SendErrorKind::Json(Arc::new(error))))?;
        self.send(json).await
    }

    /// Closes every socket of the audience, on every node, after what was sent to it: logs a user out
    /// everywhere. Returns when every node that holds one has said that it is done, or after
    /// `publish_timeout`; [`Delivery::unanswered`] tells how many did not.
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
    pub async fn close(self, close: Close) -> Result<Delivery, SendError> {
        if !close.is_sendable() {
            return Err(SendError::refused(SendErrorKind::InvalidClose(close.code)));
        }
        self.command(Ask::from(&close)).await
    }

    /// Puts every socket that is in the audience now into a room, on every node. Returns when what is
    /// sent to the room from any node reaches them, or after `publish_timeout`;
    /// [`Delivery::unanswered`] tells how many nodes did not say so. Joining twice is joining once. Each
    /// waits for an answer of every node: do many at once, with `join_all`.
    ///
    /// # Errors
    /// Those of [`send`](Self::send), and when the room's name is unusable.
    ///
    /// # Cancel safety
    /// Cancelled, the sockets here have joined and the others may have.
    pub async fn join(self, room: impl AsRef<str>) -> Result<Delivery, SendError> {
        let room = valid_room(room.as_ref())?;
        self.command(Ask::Join { room }).await
    }

    /// Takes every socket of the audience out of a room, on every node. What the same sender sends to
    /// the room afterwards does not reach them.
    ///
    /// # Errors
    /// Those of [`send`](Self::send), and when the room's name is unusable.
    ///
    /// # Cancel safety
    /// Cancelled, the sockets here have left and the others may have.
    pub async fn leave(self, room: impl AsRef<str>) -> Result<Delivery, SendError> {
        let room = valid_room(room.as_ref())?;
        self.command(Ask::Leave { room }).await
    }

    /// Who is in the audience, on every node: a user's devices, a room's members.
    ///
    /// Each node answers once, in at most `publish_timeout`; who did not is in
    /// [`Roster::missing`], and with Redis gone that is every other node. Identical
    /// questions asked at the same time share the work: those that come while one is under way wait for
    /// its end, and share the next. A node that is cut off from Redis, or has died without a goodbye, is missing until
    /// its [`lease`](crate::Builder::lease) ends. A node of another namespace is not part of the cluster.
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
    pub async fn sockets(mut self) -> Result<Roster, QueryError> {
        self.check().map_err(QueryError::invalid)?;
        self.node.roster(self.selection, self.reach).await
    }

    /// How many sockets [`sockets`](Self::sockets) would list, without the lists.
    ///
    /// # Errors
    /// When an id is unusable, or after [`Cluster::shutdown`](crate::Cluster::shutdown).
    pub async fn count(mut self) -> Result<Count, QueryError> {
        self.check().map_err(QueryError::invalid)?;
        self.node.count(self.selection, self.reach).await
    }

    fn and(mut self, topic: Result<Topic, InvalidId>) -> Self {
        match topic {
            Ok(topic) => self.selection.add(topic),
            Err(error) => {
                self.invalid.get_or_insert(error);
            }
        }
        self
    }

    /// Whether every id can be used. Also removes what is named twice.
    fn check(&mut self) -> Result<(), InvalidId> {
        self.selection.normalize();
        self.invalid.map_or(Ok(()), Err)
    }

    async fn command(mut self, what: Ask) -> Result<Delivery, SendError> {
        self.check().map_err(SendError::invalid)?;
        let reach = self.reach;
        let outcome = self.node.command(&self.selection, what, reach).await?;
        Ok(Delivery {
            local: outcome.local,
            nodes: (reach == Reach::Everywhere).then_some(outcome.nodes),
            unanswered: outcome.unanswered,
        })
    }
}

fn valid_room(room: &str) -> Result<String, SendError> {
    match check_name(room) {
        Ok(()) => Ok(room.to_owned()),
        Err(error) => Err(SendError::invalid(error)),
    }
}

/// What became of a send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    local: usize,
    nodes: Option<usize>,
    unanswered: usize,
}

impl Delivery {
    /// Sockets of this node that took it.
    pub fn local(&self) -> usize {
        self.local
    }

    /// Other nodes that took a message, of which each delivers to its own sockets; or that said they
    /// carried out a command ([`close`](Audience::close), [`join`](Audience::join),
    /// [`leave`](Audience::leave)). `None` after [`local()`](Audience::local), and for a message to a
    /// union of several targets, where it is not known. For a message, another program that subscribes
    /// to the channel counts as a node, and so does a node in its linger.
    pub fn nodes(&self) -> Option<usize> {
        self.nodes
    }

    /// Other nodes that are there and did not say within `publish_timeout` that they carried the
    /// command out; they may have. Always 0 for a message.
    pub fn unanswered(&self) -> usize {
        self.unanswered
    }
}
