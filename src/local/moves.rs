//! What others do to the rooms of a socket, told to its handler.

use std::collections::VecDeque;

use crate::model::id::RoomId;
use crate::readers::{News, named};

/// What somebody else did with a socket: [`Audience::join`](crate::Audience::join) and
/// [`leave`](crate::Audience::leave), on whichever node. That it was closed says
/// [`close_reason`](crate::Socket::close_reason).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Move {
    /// It is in this room now.
    Joined(RoomId),
    /// It is in this room no longer.
    Left(RoomId),
}

named! {
    /// What others do to the rooms of a socket. A stream, made by [`Socket::moves`](crate::Socket::moves).
    Moves of Move
}

/// Who lags misses the oldest.
impl News for Move {
    const MOST: usize = 64;

    fn make_room(unread: &mut VecDeque<Self>) -> bool {
        unread.pop_front().is_some()
    }
}
