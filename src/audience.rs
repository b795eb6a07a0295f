//! Who a message is for, and what can be done with them.

use std::sync::Arc;

use futures::future::join;
use serde::Serialize;

use crate::bus::control::Ask;
use crate::bus::scope::{Reach, Selection};
use crate::bus::uplink::How;
use crate::model::close::Close;
use crate::model::delivery::{Delivery, Outcome};
use crate::model::error::{QueryError, SendError};
use crate::model::form::Form;
use crate::model::history::Kept;
use crate::model::id::{InvalidId, RoomId, SocketId, UserId};
use crate::model::manner::Manner;
use crate::model::message::Message;
use crate::model::roster::{Count, Roster};
use crate::model::topic::Topic;
use crate::node::Node;

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
    reach: Reach,
    manner: Manner,
    /// Not kept, whatever is.
    is_ephemeral: bool,
    form: Form,
}

impl Audience {
    pub(crate) fn of_nobody(node: Arc<Node>) -> Self {
        Self {
            node,
            selection: Selection::default(),
            invalid: None,
            reach: Reach::Everywhere,
            manner: Manner::InTurn,
            is_ephemeral: false,
            form: Form::Any,
        }
    }

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

    /// Every socket in each of these rooms, too.
    pub fn to_rooms<R: Into<RoomId>>(self, rooms: impl IntoIterator<Item = R>) -> Self {
        rooms.into_iter().fold(self, Self::to_room)
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
        self.reach = Reach::Here;
        self
    }

    /// For what is worth nothing later, such as typing indicators and cursors: not kept where messages to these audiences are
    /// ([`ClusterBuilder::user_history`](crate::ClusterBuilder::user_history)), but delivered here at once and published with one
    /// plain command. It may overtake what is kept. Default: kept, where anything is. Has no effect on closes, joins and
    /// questions.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), axum_cluster::SendError> {
    /// # let cluster = axum_cluster::Cluster::builder().start();
    /// cluster.broadcaster().to_room("lobby").ephemeral().send("alice is typing").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn ephemeral(mut self) -> Self {
        self.is_ephemeral = true;
        self
    }

    /// For messages that are worth nothing later, such as positions of a game: whose client is behind, since messages
    /// wait for it already, gets it left out. It never fills an outbox, and so never closes anybody. Left-out
    /// messages are counted ([`Stats::left_out`](crate::Stats)), and their sockets are not in
    /// [`Delivery::local`]. It is not kept, as if it were [`ephemeral`](Self::ephemeral). Default: every message waits in its turn. Has no effect on closes, joins and questions.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), axum_cluster::SendError> {
    /// # let cluster = axum_cluster::Cluster::builder().start();
    /// let everybody = cluster.broadcaster().to_room("game-7").volatile();
    /// everybody.send_json(&[12, 34]).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn volatile(mut self) -> Self {
        self.manner = Manner::Volatile;
        self
    }

    /// For messages of which only the newest counts, such as a cursor or a price: one that still waits for a slow client,
    /// and has the same key, is replaced by this one in its place, on every node. So a client that is behind gets the last
    /// of each key, and nothing of one key piles up. Replaced messages are counted
    /// ([`Stats::superseded`](crate::Stats)). In the place of the older one means that it may overtake what was sent
    /// between the two. It is not kept, as if it were [`ephemeral`](Self::ephemeral). Instead of [`volatile`](Self::volatile), and that
    /// instead of this: the last one named holds.
    ///
    /// A key is named as rooms are: an empty one, or one of more than 256 bytes, is refused by the send with an
    /// [`InvalidId`]. Keys are those of a socket, whoever sends.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), axum_cluster::SendError> {
    /// # let cluster = axum_cluster::Cluster::builder().start();
    /// let board = cluster.broadcaster().to_room("board").latest("cursor:alice");
    /// board.send_json(&[12, 34]).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn latest(mut self, key: impl AsRef<str>) -> Self {
        let key = RoomId::from(key.as_ref());
        match key.check() {
            Ok(()) => self.manner = Manner::Latest(key.as_str().into()),
            Err(error) => self.refuse(error),
        }
        self
    }

    /// For messages that hold a secret, such as a token, beside text that others choose: they go to every client as they are,
    /// from every node, also to those with which compression was agreed on (the feature `deflate`,
    /// `ClusterBuilder::compression`). Compressed, their length would tell whoever sees the traffic how much of that
    /// text is in the secret as well, and so the secret, guess by guess (CRIME, BREACH). Default: compressed where that is on. Has no
    /// effect on closes, joins and questions.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), axum_cluster::SendError> {
    /// # let cluster = axum_cluster::Cluster::builder().start();
    /// let page = r#"{"csrf": "9f86d081884c7d65", "search": "what anybody put into the link"}"#;
    /// cluster.broadcaster().to_user("alice").uncompressed().send(page).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn uncompressed(mut self) -> Self {
        self.form = Form::Plain;
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
    /// Cancelled, any of the sockets may have it: those of a node are served in turns of 128. With a
    /// [`spool`](crate::ClusterBuilder::spool) it may leave later.
    pub async fn send(self, message: impl Into<Message>) -> Result<Delivery, SendError> {
        let mut audience = self;
        audience.check().map_err(SendError::invalid)?;
        let Self {
            node,
            selection,
            reach,
            manner,
            is_ephemeral,
            form,
            ..
        } = audience;
        let how = How {
            reach,
            // Nothing that is kept is left out or replaced.
            is_ephemeral: is_ephemeral || manner != Manner::InTurn,
            form,
        };
        let message = message.into();
        let (local, sent) = node.send(&selection, &message, &manner, how).await?;
        Ok(Delivery {
            local,
            nodes: sent.nodes,
            mark: sent.mark,
            key: sent.key,
            spooled: sent.spooled,
        })
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
    /// To log out one session, with all its tabs, and leave the user's other devices alone, let every socket of it be in
    /// a room of its own from the first moment:
    ///
    /// ```
    /// # use axum::{Extension, response::Response};
    /// # use axum_cluster::{Broadcaster, Close, ClusterSocket, SendError};
    /// #[derive(Clone)]
    /// struct Session { room: String } // a random word that your auth middleware leaves in the extensions, beside the `UserId`
    ///
    /// async fn ws(Extension(session): Extension<Session>, socket: ClusterSocket) -> Response {
    ///     let socket = socket.join(session.room);
    ///     socket.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
    /// }
    ///
    /// async fn log_out(Extension(session): Extension<Session>, cluster: Broadcaster) -> Result<(), SendError> {
    ///     let its_tabs = cluster.to_room(session.room);
    ///     its_tabs.close(Close::new(4001, "logged out")).await?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// Where what is sent to the audience is kept ([`ClusterBuilder::user_history`](crate::ClusterBuilder::user_history) and
    /// its siblings), so is the close, within the same limits: a node that was cut off carries it out when its link is back,
    /// late, on those of its sockets that were there before the outage. It is not in [`Outcome::nodes`] then. Without a
    /// history it does not reach such a node.
    ///
    /// # Errors
    /// Those of [`send`](Self::send), and when the code may not be sent ([`Close::is_sendable`]). With a history also when
    /// the close could not be kept ([`SendErrorKind::Bus`](crate::SendErrorKind::Bus)): every node that hears has carried it
    /// out all the same, and only one that is cut off may not do so later. After any failure of the bus the sockets of this
    /// node are closing ([`SendError::local`] of them).
    ///
    /// # Cancel safety
    /// Cancelled, the sockets here are closing and the others may be; with a history it may or may not be kept.
    pub async fn close(self, close: Close) -> Result<Outcome, SendError> {
        if !close.is_sendable() {
            return Err(SendError::invalid_close(close.code));
        }
        let mut audience = self;
        audience.check().map_err(SendError::invalid)?;
        let keeping = match audience.reach {
            Reach::Everywhere => audience.node.uplink.keep_close(&audience.selection, &close),
            Reach::Here => None,
        };
        let closing = audience.command(Ask::from(&close));
        let Some(keeping) = keeping else {
            return closing.await;
        };
        let (closed, kept) = join(closing, keeping).await;
        let closed = closed?;
        match kept {
            Ok(_) => Ok(closed),
            Err(error) => Err(SendError::bus(closed.local(), error)),
        }
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
        self.node
            .peers
            .queries()
            .roster(self.selection, self.reach)
            .await
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
        self.node
            .peers
            .queries()
            .count(self.selection, self.reach)
            .await
    }

    /// What is kept of the audience, one user, one room or all: for a page that loads. Everything that is sent later comes to a
    /// socket that goes on from [`Kept::position`], so that nothing is missed between the two. At most
    /// [`History::messages`](crate::History::messages), the last ones; whom a message excepted is not looked at.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use axum_cluster::{Cluster, History};
    ///
    /// let cluster = Cluster::builder().room_history(History::default()).start();
    /// let lobby = cluster.broadcaster().to_room("lobby");
    /// lobby.clone().send("hello").await?;
    /// let kept = lobby.history().await?;
    /// assert_eq!(kept.messages, ["hello".into()]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the id is unusable, when nothing is kept of such an audience, when Redis does not answer in time, also while a slot of
    /// its cluster is on its way, or after [`Cluster::shutdown`](crate::Cluster::shutdown).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn history(mut self) -> Result<Kept, QueryError> {
        self.check().map_err(QueryError::invalid)?;
        if self.node.ground.home.is_stopped() {
            return Err(QueryError::down());
        }
        self.node.uplink.kept(&self.selection).await
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
        self.node
            .peers
            .commands()
            .run(&self.selection, what, self.reach)
            .await
    }
}

/// A room as commands carry it.
fn usable(room: impl Into<RoomId>) -> Result<String, SendError> {
    let room = room.into();
    room.check().map_err(SendError::invalid)?;
    Ok(room.into())
}
