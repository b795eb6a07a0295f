//! Why a socket did not do what its handler asked.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use axum_core::response::{IntoResponse, Response};
use http::StatusCode;

use super::answer;
use crate::model::close::Close;
use crate::model::code::CloseCode;
use crate::model::id::InvalidId;

/// The socket has ended; nothing was sent.
///
/// As a response it is a 410 that says no more than this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    pub(crate) close: Close,
}

/// What kind of ending a [`Closed`] tells of: that of its code, in the words of [`Stats`](crate::Stats).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClosedKind {
    /// 1000: the handler or the client said goodbye.
    Normal,
    /// 1001: the browser left the page.
    GoingAway,
    /// 1005: the client gave no code.
    NoStatus,
    /// 1006: the client vanished or stayed silent.
    Abnormal,
    /// 1002 or 1007: the client broke the protocol.
    Protocol,
    /// 1008: the client sent more than `inbound_limit` allows, or what the handler does not understand.
    Policy,
    /// 1009: the client sent more than `max_message_size`.
    TooBig,
    /// 1011: the handler panicked.
    Panicked,
    /// 1012: the node was shut down.
    Restart,
    /// 1013: the client read too slowly.
    Slow,
    /// 4401: the identity expired.
    Expired,
    /// 4409: replaced by a newer socket of the user.
    Replaced,
    /// Any other code, such as those of your own.
    Other,
}

impl Closed {
    /// What ended it.
    pub fn close(&self) -> &Close {
        &self.close
    }

    /// What kind of ending it was, by its code.
    pub fn kind(&self) -> ClosedKind {
        match self.close.code {
            CloseCode::NORMAL => ClosedKind::Normal,
            CloseCode::GOING_AWAY => ClosedKind::GoingAway,
            CloseCode::NO_STATUS => ClosedKind::NoStatus,
            CloseCode::ABNORMAL => ClosedKind::Abnormal,
            CloseCode::PROTOCOL_ERROR | CloseCode::INVALID_DATA => ClosedKind::Protocol,
            CloseCode::POLICY_VIOLATION => ClosedKind::Policy,
            CloseCode::TOO_BIG => ClosedKind::TooBig,
            CloseCode::INTERNAL_ERROR => ClosedKind::Panicked,
            CloseCode::RESTART => ClosedKind::Restart,
            CloseCode::TRY_AGAIN_LATER => ClosedKind::Slow,
            CloseCode::EXPIRED => ClosedKind::Expired,
            CloseCode::REPLACED => ClosedKind::Replaced,
            _ => ClosedKind::Other,
        }
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the socket has ended: {}", self.close)
    }
}

impl Error for Closed {}

impl IntoResponse for Closed {
    fn into_response(self) -> Response {
        answer(StatusCode::GONE, ENDED, &self)
    }
}

/// Why a socket could not join a room.
///
/// ```
/// # async fn join(socket: &axum_cluster::Socket, room: &str) {
/// use axum_cluster::RoomErrorKind;
///
/// match socket.join(room).await {
///     Ok(()) => println!("joined {room}"),
///     Err(error) if error.kind() == RoomErrorKind::InvalidId => println!("no room: {error}"),
///     Err(error) => println!("the client has left: {error}"),
/// }
/// # }
/// ```
///
/// As a response it is a 400 for an unusable id, and a 410 for a socket that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomError(RoomFailure);

/// What kind of failure a [`RoomError`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RoomErrorKind {
    /// The room's id is empty or longer than 256 bytes; the source is an [`InvalidId`].
    InvalidId,
    /// The socket has ended; the source is a [`Closed`].
    Closed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum RoomFailure {
    InvalidId(InvalidId),
    Closed(Closed),
}

impl RoomError {
    pub(crate) fn invalid(error: InvalidId) -> Self {
        Self(RoomFailure::InvalidId(error))
    }

    pub(crate) fn closed(close: Close) -> Self {
        Self(RoomFailure::Closed(Closed { close }))
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> RoomErrorKind {
        match self.0 {
            RoomFailure::InvalidId(_) => RoomErrorKind::InvalidId,
            RoomFailure::Closed(_) => RoomErrorKind::Closed,
        }
    }

    /// What ended the socket, if it has ended.
    pub fn close(&self) -> Option<&Close> {
        match &self.0 {
            RoomFailure::Closed(closed) => Some(closed.close()),
            RoomFailure::InvalidId(_) => None,
        }
    }
}

impl fmt::Display for RoomError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            RoomFailure::InvalidId(error) => write!(f, "room: {error}"),
            RoomFailure::Closed(error) => error.fmt(f),
        }
    }
}

impl Error for RoomError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(match &self.0 {
            RoomFailure::InvalidId(error) => error,
            RoomFailure::Closed(error) => error,
        })
    }
}

impl IntoResponse for RoomError {
    fn into_response(self) -> Response {
        match &self.0 {
            RoomFailure::InvalidId(_) => answer(StatusCode::BAD_REQUEST, self.to_string(), &self),
            RoomFailure::Closed(_) => answer(StatusCode::GONE, ENDED, &self),
        }
    }
}

/// Why a socket did not send a value as JSON. Nothing was sent.
///
/// As a response it is a 500 for a value that cannot be written, and a 410 for a socket that has ended.
#[derive(Debug, Clone)]
pub struct SendJsonError(SendJsonFailure);

/// What kind of failure a [`SendJsonError`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SendJsonErrorKind {
    /// The value cannot be written as JSON; the source is a [`serde_json::Error`].
    Json,
    /// The socket has ended; the source is a [`Closed`].
    Closed,
}

#[derive(Debug, Clone)]
enum SendJsonFailure {
    Json(Arc<serde_json::Error>),
    Closed(Closed),
}

impl SendJsonError {
    pub(crate) fn json(error: serde_json::Error) -> Self {
        Self(SendJsonFailure::Json(Arc::new(error)))
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> SendJsonErrorKind {
        match self.0 {
            SendJsonFailure::Json(_) => SendJsonErrorKind::Json,
            SendJsonFailure::Closed(_) => SendJsonErrorKind::Closed,
        }
    }

    /// What ended the socket, if it has ended.
    pub fn close(&self) -> Option<&Close> {
        match &self.0 {
            SendJsonFailure::Closed(closed) => Some(closed.close()),
            SendJsonFailure::Json(_) => None,
        }
    }
}

impl From<Closed> for SendJsonError {
    fn from(closed: Closed) -> Self {
        Self(SendJsonFailure::Closed(closed))
    }
}

impl fmt::Display for SendJsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            SendJsonFailure::Json(error) => write!(f, "{NOT_WRITTEN}: {error}"),
            SendJsonFailure::Closed(error) => error.fmt(f),
        }
    }
}

impl Error for SendJsonError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(match &self.0 {
            SendJsonFailure::Json(error) => &**error,
            SendJsonFailure::Closed(error) => error,
        })
    }
}

impl IntoResponse for SendJsonError {
    fn into_response(self) -> Response {
        match &self.0 {
            SendJsonFailure::Json(_) => {
                answer(StatusCode::INTERNAL_SERVER_ERROR, NOT_WRITTEN, &self)
            }
            SendJsonFailure::Closed(_) => answer(StatusCode::GONE, ENDED, &self),
        }
    }
}

const NOT_WRITTEN: &str = "the value cannot be written as JSON";
/// All that a response says of a socket's end.
const ENDED: &str = "the socket has ended";
