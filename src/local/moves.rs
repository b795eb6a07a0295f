//! What others do to the rooms of a socket, told to its handler.

use std::collections::VecDeque;

use crate::model::id::{NodeId, RoomId};
use crate::readers::{ReaderNews, named};

/// What somebody else did with a socket: [`Audience::join`](crate::Audience::join) and
/// [`leave`](crate::Audience::leave), on whichever node. That it was closed says
/// [`close_reason`](crate::Socket::close_reason).
///
/// `by` is the node on which that was called, this one or another, or a worker;
/// [`Cluster::nodes`](crate::Cluster::nodes) knows its name. Which user it was there, if any, only the app can know.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Move {
    /// It is in this room now.
    Joined {
        /// Where it is.
        room: RoomId,
        /// The node that said so.
        by: NodeId,
    },
    /// It is in this room no longer.
    Left {
        /// Where it was.
        room: RoomId,
        /// The node that said so.
        by: NodeId,
    },
}

named! {
    /// What others do to the rooms of a socket. A stream, made by [`Socket::moves`](crate::Socket::moves).
    Moves of Move
}

/// Who lags misses the oldest.
impl ReaderNews for Move {
    const MOST: usize = 64;

    fn make_room(unread: &mut VecDeque<Self>) -> bool {
        unread.pop_front().is_some()
    }
}
