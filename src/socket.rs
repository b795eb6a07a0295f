//! The handler's end of one registered WebSocket.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use futures::{Sink, Stream};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::broadcast::Broadcaster;
use crate::bus::gaps::Gaps;
use crate::local::expiry::{Expiry, Times};
use crate::local::moves::Moves;
use crate::local::socket::{HandlerEnd, Sender};
use crate::model::close::{Close, reason};
use crate::model::description::Description;
use crate::model::error::{BadMessage, Closed, DescriptionError, RoomError, SendJsonError};
use crate::model::history::Resumed;
use crate::model::history::position::Position;
use crate::model::id::{RoomId, SocketId, UserId};
use crate::model::message::Message;
use crate::model::topic::Topic;
use crate::node::Node;

/// A registered WebSocket: as long as you hold it, every node reaches it.
///
/// It is a `Stream<Item = Message>` and a `Sink<Message>` too, so it can be split and forwarded. Pings
/// are answered and the heartbeat is kept by the socket itself. Only when 16 messages wait that the handler
/// has not read is nothing more read from the client, its pings neither, and no pong expected of it: let a
/// handler that works for long do so in a task of its own.
///
/// Dropping it closes normally (1000), or with 1011 while panicking; what was sent before still goes
/// out.
///
/// It is not cloned: to send to it from elsewhere, hand on its [`id`](Self::id) and a
/// [`Broadcaster`], which reach it from any node.
///
/// ```
/// # use axum::response::Response;
/// use axum_cluster::{ClusterSocket, Message};
///
/// async fn ws(socket: ClusterSocket) -> Response {
///     socket.on_upgrade(|mut socket| async move {
///         while let Some(message) = socket.recv().await {
///             if message.as_text() == Some("bye") {
///                 break;
///             }
///             if socket.send(message).await.is_err() {
///                 break;
///             }
///         }
///     })
/// }
/// ```
#[derive(Debug)]
pub struct Socket {
    node: Arc<Node>,
    end: HandlerEnd,
    resumed: Resumed,
}

impl Socket {
    pub(crate) fn new(node: Arc<Node>, end: HandlerEnd) -> Self {
        Self {
            node,
            end,
            resumed: Resumed::New,
        }
    }

    /// Its identity in the whole cluster.
    pub fn id(&self) -> SocketId {
        self.end.id()
    }

    /// Whose it is.
    pub fn user(&self) -> &UserId {
        self.end.user()
    }

    /// Whether its client came back with a position ([`ClusterSocket::position`](crate::ClusterSocket::position)), and has everything
    /// since. What it had missed is on its way before anything newer.
    pub fn resumed(&self) -> Resumed {
        self.resumed
    }

    /// Up to where it was handed everything: for a page, or for your own store. Whoever comes back with it goes on there. Only of a
    /// socket that goes on itself ([`ClusterSocket::since`](crate::ClusterSocket::since)), or whose client offered `resume.v1`; that of
    /// any other, and of one that has ended, says nothing: whoever comes back with it is told
    /// [`Missed::Foreign`](crate::Missed::Foreign).
    pub fn position(&self) -> Position {
        let position = self.end.sender().resuming(|it| it.position());
        position.unwrap_or_else(Position::nothing)
    }

    /// The client's next message. `None` when the socket has ended;
    /// [`close_reason`](Self::close_reason) then says why.
    ///
    /// A handler that does not read stops the reading from the network, so that a client cannot fill
    /// the memory.
    ///
    /// # Cancel safety
    /// Cancel safe: a message is either returned or still there.
    pub async fn recv(&mut self) -> Option<Message> {
        poll_fn(|cx| self.end.poll_recv(cx)).await
    }

    /// The client's next message, read as JSON. `None` when the socket has ended. A message that is not what was
    /// expected is an error and no end: the handler answers it, or closes with
    /// [`BadMessage::close`], or reads on.
    ///
    /// ```
    /// # use axum::response::Response;
    /// # use axum_cluster::ClusterSocket;
    /// #[derive(serde::Serialize, serde::Deserialize)]
    /// #[serde(tag = "type")]
    /// enum Say {
    ///     Ping { n: u64 },
    ///     Pong { n: u64 },
    /// }
    ///
    /// async fn ws(socket: ClusterSocket) -> Response {
    ///     socket.on_upgrade(|mut socket| async move {
    ///         while let Some(said) = socket.recv_json().await {
    ///             match said {
    ///                 Ok(Say::Ping { n }) => _ = socket.send_json(&Say::Pong { n }).await,
    ///                 Ok(Say::Pong { .. }) => {}
    ///                 Err(bad) => return socket.close(bad.close()).await, // 1008
    ///             }
    ///         }
    ///     })
    /// }
    /// ```
    ///
    /// # Errors
    /// A [`BadMessage`] for a message that is no JSON, or JSON of another shape than that of `T`; it is gone.
    ///
    /// # Cancel safety
    /// Cancel safe: a message is either returned or still there.
    pub async fn recv_json<T: DeserializeOwned>(&mut self) -> Option<Result<T, BadMessage>> {
        self.recv().await.map(|message| message.json())
    }

    /// Sends to this client alone. Waits for room in the outbox, so a fast handler is slowed down to
    /// the speed of its client instead of being closed as a slow consumer.
    ///
    /// # Errors
    /// [`Closed`] when the socket has ended; nothing was sent.
    ///
    /// # Cancel safety
    /// Cancelled while it waits, the message is not sent.
    pub async fn send(&mut self, message: impl Into<Message>) -> Result<(), Closed> {
        let message = message.into();
        poll_fn(|cx| self.poll_room(cx)).await?;
        self.push(&message)
    }

    /// Sends a value to this client alone, as JSON in a text message; like [`send`](Self::send) otherwise.
    ///
    /// # Errors
    /// A [`SendJsonError`] when the value cannot be written as JSON, or the socket has ended; nothing was sent.
    ///
    /// # Cancel safety
    /// Cancelled while it waits, the message is not sent.
    pub async fn send_json<T: Serialize + ?Sized>(
        &mut self,
        value: &T,
    ) -> Result<(), SendJsonError> {
        let json = serde_json::to_string(value).map_err(SendJsonError::json)?;
        Ok(self.send(json).await?)
    }

    /// Joins a room, which exists while somebody is in it. Returns when messages to the room from
    /// any node come here; in an outage of the bus it does not wait for that. Joining twice is
    /// joining once.
    ///
    /// Each waits a round trip to Redis where this node does not hear the room yet: over a slow link join
    /// many at once, with [`join_all`](futures::future::join_all), and they wait about as long as one.
    ///
    /// ```
    /// # async fn join(socket: &axum_cluster::Socket) {
    /// use futures::future::join_all;
    ///
    /// let rooms = ["lobby", "news", "team-7"];
    /// for joined in join_all(rooms.map(|room| socket.join(room))).await {
    ///     joined.expect("a usable name, and the client is there");
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the room's id is empty or longer than 256 bytes, or the socket has ended.
    ///
    /// # Cancel safety
    /// Cancelled, the socket is in the room, though perhaps not yet for other nodes.
    pub async fn join(&self, room: impl Into<RoomId>) -> Result<(), RoomError> {
        let room = Topic::room(room.into().as_str()).map_err(RoomError::invalid)?;
        let joined = self.node.join(&self.end.sender(), &room).await;
        joined.ok_or_else(|| RoomError::closed(self.ending()))
    }

    /// Leaves a room, at once. A room it is not in is left already, and so is one whose id is unusable, of which the
    /// log tells.
    pub fn leave(&self, room: impl Into<RoomId>) {
        self.node.local.leave_room(&self.end.sender(), &room.into());
    }

    /// The rooms it is in, in no order; when it has ended, those it was in at its end.
    pub fn rooms(&self) -> Vec<RoomId> {
        self.node.local.rooms(&self.end.sender())
    }

    /// What others do to its rooms from now on, by [`Audience::join`](crate::Audience::join) and
    /// [`leave`](crate::Audience::leave) on whichever node; its own [`join`](Self::join) and [`leave`](Self::leave) are not
    /// told. A reader that lags more than 64 behind misses the oldest, and [`rooms`](Self::rooms) says what holds. Ends with
    /// the socket. Each says by which node. The stream borrows nothing; a socket that does not ask pays nothing. That somebody closed the
    /// socket says [`close_reason`](Self::close_reason).
    ///
    /// ```
    /// # use axum::response::Response;
    /// use axum_cluster::{ClusterSocket, Move};
    /// use futures::StreamExt;
    ///
    /// async fn ws(socket: ClusterSocket) -> Response {
    ///     socket.on_upgrade(|mut socket| async move {
    ///         let mut moves = socket.moves();
    ///         loop {
    ///             let line = tokio::select! {
    ///                 message = socket.recv() => match message {
    ///                     Some(_) => continue,
    ///                     None => break,
    ///                 },
    ///                 Some(moved) = moves.next() => match moved {
    ///                     Move::Joined { room, .. } => format!("you are in {room}"),
    ///                     Move::Left { room, by } => format!("you were removed from {room} by {by}"),
    ///                     _ => continue,
    ///                 },
    ///             };
    ///             if socket.send(line).await.is_err() {
    ///                 break;
    ///             }
    ///         }
    ///     })
    /// }
    /// ```
    pub fn moves(&self) -> Moves {
        self.node.local.moves(self.id())
    }

    /// Says anew when the identity ends, after a refreshed token for one; what
    /// [`ClusterSocket::expires_at`](crate::ClusterSocket::expires_at) said counts no longer. Then the socket closes with 4401,
    /// at once for a time that is over. Rosters that are asked for from now on show it ([`SocketInfo::expires_at`](crate::SocketInfo::expires_at)).
    pub fn expires_at(&self, time: SystemTime) {
        self.end.expire_at(Expiry::at(time, Times::now()));
    }

    /// Says anew what kind of device this is, for [`Audience::sockets`](crate::Audience::sockets), as
    /// [`ClusterSocket::describe`](crate::ClusterSocket::describe) does: rosters that are asked for from now on show it, and
    /// who asks presence for it is told ([`Presence::described`](crate::Presence::described)).
    ///
    /// # Errors
    /// A [`DescriptionError`] when it is more than 1 KiB or 100 levels of JSON, or cannot be written so, and what was said
    /// before stays; or when the socket has ended.
    pub fn describe(&self, description: impl Serialize) -> Result<(), DescriptionError> {
        let description = Description::of(&description)?;
        let described = self.node.local.redescribe(&self.end.sender(), description);
        described.ok_or_else(|| DescriptionError::closed(self.ending()))
    }

    /// Sends to others from here.
    pub fn broadcaster(&self) -> Broadcaster {
        Broadcaster::of(self.node.clone())
    }

    /// When messages for this socket may have been missed: each outage of the bus that is over, as a
    /// [`Gap`](crate::Gap), but for those that concern neither its user nor a room that it is in, and those in which everything
    /// for it was kept and came after all. A socket that was opened in an outage is told of it: what came before it was there is
    /// not told again. Tell the client, or send again what it may lack. The stream borrows nothing, so that it can
    /// stand beside [`recv`](Self::recv); a socket that does not ask pays nothing. More at
    /// [`Cluster::gaps`](crate::Cluster::gaps).
    ///
    /// ```
    /// # use axum::{Router, response::Response, routing::any};
    /// use axum_cluster::{ClusterSocket, Message};
    /// use futures::StreamExt;
    ///
    /// async fn ws(socket: ClusterSocket) -> Response {
    ///     socket.on_upgrade(|mut socket| async move {
    ///         let mut gaps = socket.gaps();
    ///         loop {
    ///             let answer = tokio::select! {
    ///                 message = socket.recv() => match message {
    ///                     Some(message) => message,
    ///                     None => break,
    ///                 },
    ///                 Some(gap) = gaps.next() => {
    ///                     let seconds = gap.span().as_secs() + 1;
    ///                     Message::from(format!(r#"{{"resync": {seconds}}}"#))
    ///                 }
    ///             };
    ///             if socket.send(answer).await.is_err() {
    ///                 break;
    ///             }
    ///         }
    ///     })
    /// }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let cluster = axum_cluster::Cluster::builder().start();
    /// # let _app: Router = Router::new().route("/ws", any(ws)).layer(cluster.layer());
    /// # }
    /// ```
    pub fn gaps(&self) -> Gaps {
        let (local, socket) = (Arc::downgrade(&self.node.local), self.end.sender());
        let gaps = self.node.ground.reception.gaps();
        gaps.that_concern(move |gap| {
            let local = local.upgrade();
            local.is_none_or(|local| local.is_concerned(&socket, gap))
        })
    }

    /// Closes after what was sent, and waits until the client has answered, at most 5 s.
    ///
    /// # Cancel safety
    /// Cancelled, the closing goes on without you.
    pub async fn close(&mut self, close: Close) {
        self.begin_close(close);
        poll_fn(|cx| self.poll_finished(cx)).await;
    }

    /// What ended the socket, whoever began it, as it was on the wire: a reason of more than 123 bytes is
    /// cut, and of a code that may not be sent the client sees nothing (1005). `None` while it lives.
    ///
    /// ```
    /// # use axum::response::Response;
    /// use axum_cluster::{CloseCode, ClusterSocket};
    ///
    /// async fn ws(socket: ClusterSocket) -> Response {
    ///     socket.on_upgrade(|mut socket| async move {
    ///         while socket.recv().await.is_some() {}
    ///         match socket.close_reason() {
    ///             Some(close) if close.code == CloseCode::GOING_AWAY => println!("left the page"),
    ///             Some(close) => println!("ended: {close}"),
    ///             None => unreachable!("recv() returned None"),
    ///         }
    ///     })
    /// }
    /// ```
    pub fn close_reason(&self) -> Option<Close> {
        self.end.close_reason()
    }

    fn ending(&self) -> Close {
        self.close_reason().unwrap_or(reason::DONE)
    }
}

/// What it shares with a stream of events.
impl Socket {
    /// How it goes on, before its handler has it.
    pub(crate) fn came_back(&mut self, resumed: Resumed) {
        self.resumed = resumed;
    }

    pub(crate) fn sender(&self) -> Sender {
        self.end.sender()
    }

    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let room = self.end.poll_room(cx, self.node.local.outbox());
        room.map_err(|close| Closed { close })
    }

    /// Queues a message into the room that there was.
    pub(crate) fn push(&self, message: &Message) -> Result<(), Closed> {
        let frame = self.node.local.frame_for(&self.end, message);
        let pushed = self.end.push(frame);
        pushed.map_err(|close| Closed { close })
    }

    pub(crate) fn begin_close(&self, close: Close) {
        self.end.close(close);
    }

    pub(crate) fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.end.poll_ended(cx)
    }

    pub(crate) fn poll_finished(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.end.poll_finished(cx)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.end.close(if std::thread::panicking() {
            reason::PANICKED
        } else {
            reason::DONE
        });
    }
}

impl Stream for Socket {
    type Item = Message;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        self.end.poll_recv(cx)
    }
}

/// Flushing is immediate: what the outbox took is on its way.
impl Sink<Message> for Socket {
    type Error = Closed;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        self.poll_room(cx)
    }

    fn start_send(self: Pin<&mut Self>, message: Message) -> Result<(), Closed> {
        self.push(&message)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        self.end.close(reason::DONE);
        self.end.poll_finished(cx).map(Ok)
    }
}
