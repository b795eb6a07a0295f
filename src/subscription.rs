//! A socket without a WebSocket.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::Stream;
use tokio::task::coop::consume_budget;

use crate::broadcast::Broadcaster;
use crate::counts::Counted;
use crate::local::admission::Refused;
use crate::local::registry::Full;
use crate::local::subscription::Streamed;
use crate::model::close::{Close, reason};
use crate::model::error::{RoomError, SubscribeError};
use crate::model::id::{RoomId, SocketId, UserId};
use crate::model::message::Message;
use crate::model::topic::Topic;
use crate::node::Node;

/// A socket of a user without a WebSocket: what is sent to her, on whichever node, comes as a stream of messages. For
/// bots, bridges (GraphQL, MQTT) and tests; made by [`Broadcaster::subscribe`]. For server-sent events there is
/// [`ClusterEvents`](crate::ClusterEvents).
///
/// In all else it is a [`Socket`](crate::Socket). Rosters, presence and [`Stats`](crate::Stats) show and count it, limits and
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
        let subscribed = subscribe(self.node(), user.into()).await;
        subscribed.inspect_err(|error| {
            let node = self.node().ground.node;
            tracing::debug!(%node, reason = %error, "subscription refused");
        })
    }
}

async fn subscribe(node: &Arc<Node>, user: UserId) -> Result<Subscription, SubscribeError> {
    if node.config.worker {
        return Err(SubscribeError::worker());
    }
    let home = &node.ground.home;
    // At home, since the caller may have no timer.
    let reserving = home.run({
        let node = node.clone();
        async move { node.reserve(user).await }
    });
    let reserved = match home.has_lost_its_runtime() {
        true => None,
        false => reserving.await,
    };
    let unfinished = || {
        node.ground.counters.record_refusal(Counted::Draining);
        SubscribeError::runtime_ended(home.unfinished())
    };
    let reservation = reserved.ok_or_else(unfinished)?;
    Ok(Subscription {
        node: node.clone(),
        streamed: reservation.map_err(|why| refused(node, why))?.subscribe(),
    })
}

/// Counts it; limits are counted where they are checked.
fn refused(node: &Node, why: Refused) -> SubscribeError {
    let counters = &node.ground.counters;
    match why {
        Refused::InvalidUser(error) => {
            counters.record_refusal(Counted::Id);
            SubscribeError::invalid(error)
        }
        Refused::Draining => {
            counters.record_refusal(Counted::Draining);
            SubscribeError::draining()
        }
        Refused::RuntimeEnded => {
            counters.record_refusal(Counted::Draining);
            SubscribeError::runtime_ended(node.ground.home.unfinished())
        }
        Refused::Full(Full::Node) => SubscribeError::node_full(),
        Refused::Full(Full::User) => SubscribeError::user_full(),
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
        let local = &self.node.local;
        let joined = local.begin_join(&self.streamed.end.sender(), &room);
        let joined = joined.ok_or_else(|| RoomError::closed(self.ending()))?;
        let local = local.clone();
        let heard = async move { local.wait_confirmed(joined.confirmation).await };
        self.node.ground.home.run(heard).await;
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

    /// What ended it, whoever began it. `None` while it lives. The stream may still have messages that came before.
    pub fn close_reason(&self) -> Option<Close> {
        self.streamed.end.close_reason()
    }

    fn ending(&self) -> Close {
        self.close_reason().unwrap_or(reason::DONE)
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
        self.streamed.end.poll_recv(cx)
    }
}
