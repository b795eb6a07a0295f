//! What a bus does about slots: the places for a user's sockets in the whole cluster.

use futures::future::BoxFuture;

use crate::bus::topic::Topic;
use crate::model::id::SocketId;

/// What became of a claim.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The sockets of other nodes that lost their slot to this one, to be closed; `None`: refused.
    pub(crate) granted: Option<Vec<SocketId>>,
    /// Whether the whole cluster was counted; not when the bus did not answer, or has lost what others held.
    pub(crate) checked: bool,
}

/// The slots as one node sees them. A node's slots vanish with it.
pub(crate) trait Slots: Send + Sync {
    /// Takes a slot for a socket of this node. Every call is paired with a [`release`](Self::release),
    /// whatever came of it. Sockets of this node that lose theirs are told to the listener.
    fn claim(&self, user: &Topic, number: u64) -> BoxFuture<'_, Claim>;

    /// Gives it back.
    fn release(&self, user: &Topic, number: u64);

    /// Whether the socket's slot was not lost to a newer one.
    fn holds(&self, user: &Topic, number: u64) -> bool;
}
