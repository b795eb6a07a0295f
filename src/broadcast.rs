//! Saying who a message is for.

use std::sync::Arc;

use axum_core::extract::FromRequestParts;
use futures::Stream;
use http::request::Parts;
use serde::Serialize;

use crate::close::Close;
use crate::cluster::Cluster;
use crate::error::{ConnectError, QueryError, SendError, SendErrorKind};
use crate::extract::ClusterRejection;
use crate::gap::Gap;
use crate::id::{InvalidId, SocketId, UserId};
use crate::message::Message;
use crate::node::{Node, Parcel};
use crate::scope::Selection;
use crate::topic::Topic;

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
    /// namespace, with all defaults. Waits until the bus is up, at most 5 s. For other settings use
    /// [`Cluster::builder`].
    ///
    /// # Errors
    /// Those of [`Cluster::connect`].
    pub async fn connect(redis_url: impl AsRef<str>) -> Result<Self, ConnectError> {
        Ok(Cluster::connect(redis_url).await?.broadcaster())
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
    /// here. For the linger (2 s) after the user's last socket it may still be true.
    ///
    /// # Errors
    /// When the id is unusable or Redis does not answer.
    pub async fn is_online(&self, user: impl Into<UserId>) -> Result<bool, QueryError> {
        self.node.is_online(&user.into()).await
    }

    /// When messages may have been missed here: see [`Cluster::gaps`].
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
#[derive(Clone, Debug)]
#[must_use = "an audience does nothing until `send` or `close`"]
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
        self.local = true;
        self
    }

    /// Delivers to the sockets of this node, then publishes once for all others. Messages of one
    /// sender to one audience arrive in the order sent. Never waits for a client; waits for Redis at
    /// most `publish_timeout`.
    ///
    /// # Errors
    /// [`SendError`] says what did happen: how many sockets here took it, and whether other nodes may
    /// have got it. A send that may have gone out is not repeated, so there are no duplicates.
    ///
    /// # Cancel safety
    /// Cancelled, the sockets here have it and the other nodes may.
    pub async fn send(self, message: impl Into<Message>) -> Result<Delivery, SendError> {
        self.dispatch(Parcel::Message(message.into())).await
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
    /// everywhere.
    ///
    /// # Errors
    /// Those of [`send`](Self::send), and when the code may not be sent
    /// ([`Close::is_sendable`]).
    pub async fn close(self, close: Close) -> Result<Delivery, SendError> {
        if !close.is_sendable() {
            return Err(SendError::refused(SendErrorKind::InvalidClose(close.code)));
        }
        self.dispatch(Parcel::Close(close)).await
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

    async fn dispatch(mut self, parcel: Parcel) -> Result<Delivery, SendError> {
        if let Some(error) = self.invalid {
            return Err(SendError::refused(SendErrorKind::InvalidId(error)));
        }
        self.selection.normalize();
        let (local, nodes) = self.node.send(&self.selection, parcel, self.local).await?;
        Ok(Delivery { local, nodes })
    }
}

/// What became of a send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    local: usize,
    nodes: Option<usize>,
}

impl Delivery {
    /// Sockets of this node that took it.
    pub fn local(&self) -> usize {
        self.local
    }

    /// Other nodes that took it, of which each delivers to its own sockets. `None` for a union of
    /// several targets and after [`local()`](Audience::local), where it is not known. Another
    /// program that subscribes to the channel counts as a node, and so does a node in its linger.
    pub fn nodes(&self) -> Option<usize> {
        self.nodes
    }
}
