//! What a bus does about seats: the places for a user's sockets in the whole cluster.

use futures::future::BoxFuture;

use crate::model::id::SocketId;
use crate::model::topic::Topic;

/// What became of a claim.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    /// The sockets of other nodes that lost their seat to this one, to be closed; `None`: refused.
    pub(crate) granted: Option<Vec<SocketId>>,
    /// Whether the whole cluster was counted; not when the bus did not answer, or has lost what others held.
    pub(crate) checked: bool,
}

/// The seats as one node sees them. A node's seats vanish with it.
pub(crate) trait Seats: Send + Sync {
    /// Takes a seat for a socket of this node. Every call is paired with a [`release`](Self::release),
    /// whatever came of it. Sockets of this node that lose theirs are told to the listener.
    fn claim(&self, user: &Topic, number: u64) -> BoxFuture<'_, Decision>;

    /// Gives the seat back, or the claim up.
    fn release(&self, user: &Topic, number: u64);

    /// Whether the socket's seat was not lost to a newer one.
    fn holds(&self, user: &Topic, number: u64) -> bool;
}
