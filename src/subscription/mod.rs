//! A socket without a WebSocket.

mod reading;

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::Stream;
use serde::Serialize;
use tokio::task::coop::consume_budget;

use self::reading::ReadPosition;
use crate::broadcast::Broadcaster;
use crate::counts::Counted;
use crate::local::admission::RefusedSocket;
use crate::local::registry::Full;
use crate::local::socket::resuming::Telling;
use crate::local::subscription::Streamed;
use crate::model::close::{Close, reason};
use crate::model::description::Description;
use crate::model::error::{DescriptionError, RoomError, SubscribeError};
use crate::model::history::Resumed;
use crate::model::history::position::Position;
use crate::model::id::{RoomId, SocketId, UserId};
use crate::model::message::Message;
use crate::model::topic::Topic;
use crate::node::Node;

/// A socket of a user without a WebSocket: what is sent to her, on whichever node, comes as a stream of messages. For
/// bots, bridges (GraphQL, MQTT) and tests; made by [`Broadcaster::subscribe`]. For server-sent events there is
/// [`ClusterEvents`](crate::ClusterEvents).
///
/// To everybody else it is a socket. Rosters, presence and [`Stats`](crate::Stats) show and count it, limits and
/// seats are its own, it is in rooms, and it is closed by whoever closes the user, by a newer one that takes its seat, or
/// by a [`shutdown`](crate::Cluster::shutdown). From then on nothing more reaches it, and the stream ends after what
/// waits in it; [`close_reason`](Self::close_reason) says why.
///
/// What its reader has not taken waits within [`outbox_messages`](crate::ClusterBuilder::outbox_messages) and
/// [`outbox_bytes`](crate::ClusterBuilder::outbox_bytes); at those limits
/// [`slow_consumer`](crate::ClusterBuilder::slow_consumer) decides, so that by default one that lags ends with 1013. A reader
/// that had taken everything may find four times as much, if it came in one burst. There is no client, so no time is
/// kept: neither a heartbeat nor a `write_timeout`, and no expiry.
///
/// Dropping it closes it, with 1000, or 1011 while panicking, and gives everything back at once.
///
/// With a history, [`Broadcaster::subscribe_since`] goes on where another one's reader was.
///
/// A bot:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let cluster = axum_cluster::Cluster::builder().start();
/// use futures::StreamExt;
///
/// let to = cluster.broadcaster();
/// let mut bot = to.subscribe("bot").await?;
/// bot.join("lobby").await?;
/// # to.to_room("lobby").send("ping").await?;
/// # to.to_user("bot").close(axum_cluster::Close::new(4000, "enough")).await?;
/// while let Some(message) = bot.next().await {
///     if message.as_text() == Some("ping") {
///         to.to_room("lobby").except(bot.id()).send("pong").await?;
///     }
/// }
/// println!("ended: {:?}", bot.close_reason());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping it ends it"]
pub struct Subscription {
    node: Arc<Node>,
    streamed: Streamed,
    resumed: Resumed,
    reading: Option<ReadPosition>,
}

impl Broadcaster {
    /// Subscribes a user: a socket without a WebSocket. When it returns, a send from any node reaches it; what comes
    /// before it is read for the first time waits.
    ///
    /// It waits until the cluster's messages for the user come here, as an upgrade does: at the latest for
    /// `publish_timeout`, and in an outage of the bus not at all. Who may be subscribed is yours to say: no request
    /// is looked at.
    ///
    /// # Errors
    /// A [`SubscribeError`] of kind `InvalidId`, `NodeFull` or `UserFull` at a limit, `Draining`, `RuntimeEnded`, or
    /// `Worker`. Each but the last is counted in [`Stats`](crate::Stats) as for upgrades, and all are logged at debug.
    ///
    /// # Cancel safety
    /// Cancelled, nothing is left behind.
    pub async fn subscribe(&self, user: impl Into<UserId>) -> Result<Subscription, SubscribeError> {
        let subscribed = subscribe(self.node(), user.into(), None).await;
        subscribed.map_err(|error| self.noted(error))
    }

    /// Subscribes a user and goes on from this position, as a client does that comes back with one
    /// ([`ClusterSocket::since`](crate::ClusterSocket::since)): what was kept since then
    /// ([`ClusterBuilder::user_history`](crate::ClusterBuilder::user_history)) comes first, in order and once; of a room in which it
    /// was, when it is joined again within 30 s. [`Subscription::resumed`] says whether it is whole. Without a position it begins
    /// now. Either way [`Subscription::position`] says from then on how far its reader is, for your own store.
    ///
    /// In all else it is as [`subscribe`](Self::subscribe) does, but for a reader that lags: nothing of what is kept is dropped for
    /// it, so that it ends with 1013, whatever [`slow_consumer`](crate::ClusterBuilder::slow_consumer) says, and goes on from its
    /// position.
    ///
    /// A bridge that loses nothing when it is restarted:
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use axum_cluster::{Cluster, History, Position};
    /// use futures::StreamExt;
    ///
    /// let cluster = Cluster::builder().user_history(History::default()).start();
    /// let to = cluster.broadcaster();
    /// # fn read() -> Option<Position> { None }
    /// # fn write(position: Position) {}
    /// let stored: Option<Position> = read(); // nothing, the first time
    /// let mut bridge = to.subscribe_since("bridge", stored).await?;
    /// # to.to_user("bridge").send("x").await?;
    /// while let Some(message) = bridge.next().await {
    ///     println!("{message:?}"); // whatever a bridge does with it
    ///     write(bridge.position());
    /// #   cluster.shutdown(std::time::Duration::ZERO).await;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe). A position that is of no use is none: [`Resumed::Missed`] says why.
    ///
    /// # Cancel safety
    /// Cancelled, nothing is left behind.
    pub async fn subscribe_since(
        &self,
        user: impl Into<UserId>,
        position: impl Into<Option<Position>>,
    ) -> Result<Subscription, SubscribeError> {
        let since = Some(position.into());
        let subscribed = subscribe(self.node(), user.into(), since).await;
        subscribed.map_err(|error| self.noted(error))
    }

    fn noted(&self, error: SubscribeError) -> SubscribeError {
        let node = self.node().ground.node;
        tracing::debug!(%node, reason = %error, "subscription refused");
        error
    }
}

/// Of one that goes on, since when, if it says so.
async fn subscribe(
    node: &Arc<Node>,
    user: UserId,
    since: Option<Option<Position>>,
) -> Result<Subscription, SubscribeError> {
    if node.config.worker {
        return Err(SubscribeError::worker());
    }
    // At home, since the caller may have no timer.
    let reserving = {
        let node = node.clone();
        async move { node.reserve(user).await }
    };
    let reservation = at_home(node, reserving).await?;
    let reservation = reservation.map_err(|why| refused(node, why))?;
    let holding = since.as_ref().map(|_| Telling::Told);
    let holding = holding.filter(|_| node.resumes());
    let mut subscription = Subscription {
        node: node.clone(),
        streamed: reservation.subscribe(holding),
        resumed: Resumed::New,
        reading: None,
    };
    if let Some(since) = since {
        subscription.go_on(holding, since).await?;
    }
    Ok(subscription)
}

async fn at_home<T: Send + 'static>(
    node: &Node,
    task: impl Future<Output = T> + Send + 'static,
) -> Result<T, SubscribeError> {
    let home = &node.ground.home;
    let done = match home.has_lost_its_runtime() {
        true => None,
        false => home.run(task).await,
    };
    done.ok_or_else(|| {
        node.ground.counters.record_refusal(Counted::Draining);
        SubscribeError::runtime_ended(home.unfinished())
    })
}

/// Counts it; limits are counted where they are checked.
fn refused(node: &Node, why: RefusedSocket) -> SubscribeError {
    let counters = &node.ground.counters;
    match why {
        RefusedSocket::InvalidUser(error) => {
            counters.record_refusal(Counted::Id);
            SubscribeError::invalid(error)
        }
        RefusedSocket::Draining => {
            counters.record_refusal(Counted::Draining);
            SubscribeError::draining()
        }
        RefusedSocket::RuntimeEnded => {
            counters.record_refusal(Counted::Draining);
            SubscribeError::runtime_ended(node.ground.home.unfinished())
        }
        RefusedSocket::Full(Full::Node) => SubscribeError::node_full(),
        RefusedSocket::Full(Full::User) => SubscribeError::user_full(),
    }
}

impl Subscription {
    /// Its identity in the whole cluster.
    pub fn id(&self) -> SocketId {
        self.streamed.end.id()
    }

    /// Whose it is.
    pub fn user(&self) -> &UserId {
        self.streamed.end.user()
    }

    /// Whether one that [goes on](Broadcaster::subscribe_since) has everything since its position. What it had missed comes before
    /// anything newer that is kept. A hole that is found later, in a room that it joins again or when the bus is back, is told here when
    /// its reader comes to it.
    pub fn resumed(&self) -> Resumed {
        self.resumed
    }

    /// Up to where its reader has taken what is kept: whatever waits in it yet comes again to whoever goes on from here. Only of
    /// one that [goes on](Broadcaster::subscribe_since) itself, where a history is kept; that of any other is one by which nothing is
    /// missed honestly: [`Missed::Foreign`](crate::Missed::Foreign).
    pub fn position(&self) -> Position {
        let reading = self.reading.as_ref();
        reading.map_or_else(Position::nothing, ReadPosition::position)
    }

    /// Joins a room, as [`Socket::join`](crate::Socket::join) does: when it returns, messages to the room from any node come
    /// here.
    ///
    /// # Errors
    /// When the room's id is empty or longer than 256 bytes, or the subscription has ended.
    ///
    /// # Cancel safety
    /// Cancelled, it is in the room, though perhaps not yet for other nodes.
    pub async fn join(&self, room: impl Into<RoomId>) -> Result<(), RoomError> {
        let room = Topic::room(room.into().as_str()).map_err(RoomError::invalid)?;
        let (node, socket) = (self.node.clone(), self.streamed.end.sender());
        let joining = node.begin_join(&socket, &room);
        let joined = joining.ok_or_else(|| RoomError::closed(self.ending()))?;
        self.node.ground.home.run(joined).await;
        Ok(())
    }

    /// Leaves a room, at once. A room it is not in is left already, and so is one whose id is unusable, of which the
    /// log tells.
    pub fn leave(&self, room: impl Into<RoomId>) {
        self.node
            .local
            .leave_room(&self.streamed.end.sender(), &room.into());
    }

    /// The rooms it is in, in no order; when it has ended, those it was in at its end.
    pub fn rooms(&self) -> Vec<RoomId> {
        self.node.local.rooms(&self.streamed.end.sender())
    }

    /// Says what kind of device this is, for [`Audience::sockets`](crate::Audience::sockets) and
    /// [`Presence::described`](crate::Presence::described), as [`Socket::describe`](crate::Socket::describe) does. Default: nothing.
    ///
    /// # Errors
    /// A [`DescriptionError`] when it is more than 1 KiB or 100 levels of JSON, or cannot be written so, and what was said
    /// before stays; or when the subscription has ended.
    pub fn describe(&self, description: impl Serialize) -> Result<(), DescriptionError> {
        let description = Description::of(&description)?;
        let socket = self.streamed.end.sender();
        let described = self.node.local.redescribe(&socket, description);
        described.ok_or_else(|| DescriptionError::closed(self.ending()))
    }

    /// What ended it, whoever began it. `None` while it lives. The stream may still have messages that came before.
    pub fn close_reason(&self) -> Option<Close> {
        self.streamed.end.close_reason()
    }

    fn ending(&self) -> Close {
        self.close_reason().unwrap_or(reason::DONE)
    }

    /// Reads what it missed, before anybody has it.
    async fn go_on(
        &mut self,
        holding: Option<Telling>,
        since: Option<Position>,
    ) -> Result<(), SubscribeError> {
        let (node, socket) = (self.node.clone(), self.streamed.end.sender());
        let brought = since.clone();
        let resuming = async move { node.resumed(&socket, holding, &[], brought).await };
        self.resumed = at_home(&self.node, resuming).await?;
        if holding.is_some() {
            // Where it begins is known before it is read.
            let first = self.streamed.end.next_waiting();
            let reading = ReadPosition::begin(since, first, &mut self.resumed);
            self.reading = Some(reading);
        }
        Ok(())
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.streamed.end.close(match std::thread::panicking() {
            true => reason::PANICKED,
            false => reason::DONE,
        });
    }
}

/// Ends after what came before the subscription's end.
impl Stream for Subscription {
    type Item = Message;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        // Who reads what never ends must let others run.
        ready!(pin!(consume_budget()).poll(cx));
        let this = self.get_mut();
        let Some(reading) = &mut this.reading else {
            return this.streamed.end.poll_recv(cx);
        };
        if let Some(first) = reading.take_first() {
            return Poll::Ready(Some(first));
        }
        loop {
            let frame = ready!(this.streamed.end.poll_frame(cx));
            match frame.and_then(|frame| reading.heard(frame, &mut this.resumed)) {
                Some(None) => {}
                Some(message) => return Poll::Ready(message),
                None => return Poll::Ready(None),
            }
        }
    }
}
