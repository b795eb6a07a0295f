//! What others do to the rooms of a socket, told to its handler.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::{Stream, StreamExt};

use crate::model::id::RoomId;
use crate::readers::{News, Reading};

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

/// What others do to the rooms of a socket. A stream, made by [`Socket::moves`](crate::Socket::moves).
#[must_use = "streams do nothing unless polled"]
pub struct Moves(pub(crate) Reading<Move>);

/// Who lags misses the oldest.
impl News for Move {
    const MOST: usize = 64;

    fn make_room(unread: &mut VecDeque<Self>) -> bool {
        unread.pop_front().is_some()
    }
}

impl Stream for Moves {
    type Item = Move;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Move>> {
        self.0.poll_next_unpin(cx)
    }
}

impl fmt::Debug for Moves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Moves").finish_non_exhaustive()
    }
}
