//! What can go wrong, one error per operation.

use std::fmt;
use std::sync::Arc;

use axum_core::response::{IntoResponse, Response};
use http::StatusCode;

use crate::close::Close;
use crate::id::InvalidId;

/// Why a cluster could not be started, or did not come up in time.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ConnectError {
    /// The Redis URL is malformed or names something unsupported. The text names the part; a password
    /// is never shown.
    Url(String),
    /// A setting makes no sense. The text says which and why.
    Setting(String),
    /// The bus did not come up in time; the reason is Redis' own where it has spoken.
    Unreachable(Arc<str>),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(problem) => write!(f, "redis url: {problem}"),
            Self::Setting(problem) => write!(f, "cluster setting: {problem}"),
            Self::Unreachable(reason) => write!(f, "the bus is not up: {reason}"),
        }
    }
}

impl std::error::Error for ConnectError {}

/// A send did not do all it was asked for; it says what it did do.
///
/// As a response, so that `?` works in handlers: 503 when the bus failed or the cluster was shut down, 400
/// when the caller named an unusable id or close code, 413 when the message is too large for the bus, 500
/// when a value could not be written as JSON. The body names the class of the failure, and that this
/// node's sockets were served when only the bus failed; the rest, such as Redis' words, goes to the log at debug.
#[derive(Debug, Clone)]
pub struct SendError {
    pub(crate) local: usize,
    pub(crate) kind: SendErrorKind,
}

#[derive(Debug, Clone)]
pub(crate) enum SendErrorKind {
    InvalidId(InvalidId),
    InvalidClose(u16),
    TooLarge { bytes: usize, limit: usize },
    Json(Arc<serde_json::Error>),
    Down,
    Bus(PublishError),
}

impl SendError {
    pub(crate) fn refused(kind: SendErrorKind) -> Self {
        Self { local: 0, kind }
    }

    pub(crate) fn invalid(error: InvalidId) -> Self {
        Self::refused(SendErrorKind::InvalidId(error))
    }

    /// Sockets of this node that took the message.
    pub fn local(&self) -> usize {
        self.local
    }

    /// Whether other nodes may have received it all the same: the bus failed after the message may
    /// have been written. When `false` it certainly was not sent, and sending it again to the
    /// other nodes cannot make a duplicate.
    pub fn maybe_sent(&self) -> bool {
        matches!(&self.kind, SendErrorKind::Bus(error) if error.maybe_sent)
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            SendErrorKind::InvalidId(error) => error.fmt(f),
            SendErrorKind::InvalidClose(code) => write!(
                f,
                "close code {code} may not be sent: use 1000-1003, 1007-1014 or 3000-4999"
            ),
            SendErrorKind::TooLarge { bytes, limit } => {
                write!(
                    f,
                    "the message has {bytes} bytes: at most {limit} travel between nodes"
                )
            }
            SendErrorKind::Json(error) => write!(f, "the value cannot be written as JSON: {error}"),
            SendErrorKind::Down => f.write_str("the cluster was shut down"),
            SendErrorKind::Bus(error) => {
                write!(
                    f,
                    "delivered to {} sockets here; other nodes: {error}",
                    self.local
                )
            }
        }
    }
}

impl std::error::Error for SendError {}

impl IntoResponse for SendError {
    fn into_response(self) -> Response {
        let status = match self.kind {
            SendErrorKind::InvalidId(_) | SendErrorKind::InvalidClose(_) => StatusCode::BAD_REQUEST,
            SendErrorKind::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            SendErrorKind::Json(_) => StatusCode::INTERNAL_SERVER_ERROR,
            SendErrorKind::Down | SendErrorKind::Bus(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        let class = match &self.kind {
            SendErrorKind::Json(_) => "the value cannot be written as JSON".to_owned(),
            SendErrorKind::Bus(PublishError {
                maybe_sent: false, ..
            }) => "the bus is not usable: sockets of this node were served; other nodes were not reached"
                .to_owned(),
            SendErrorKind::Bus(_) => {
                "the bus is not usable: sockets of this node were served; other nodes may not have been reached"
                    .to_owned()
            }
            SendErrorKind::InvalidId(_)
            | SendErrorKind::InvalidClose(_)
            | SendErrorKind::TooLarge { .. }
            | SendErrorKind::Down => self.to_string(),
        };
        tracing::debug!(status = status.as_u16(), error = %self, "a failed send was answered");
        (status, class).into_response()
    }
}

/// Why the bus did not take a publication.
#[derive(Debug, Clone)]
pub(crate) struct PublishError {
    pub(crate) maybe_sent: bool,
    /// The publisher stood on a replica: its subscriber may as well.
    pub(crate) on_replica: bool,
    pub(crate) reason: Arc<str>,
}

impl PublishError {
    pub(crate) fn not_sent(reason: impl Into<Arc<str>>) -> Self {
        Self {
            maybe_sent: false,
            on_replica: false,
            reason: reason.into(),
        }
    }

    pub(crate) fn maybe_sent(reason: impl Into<Arc<str>>) -> Self {
        Self {
            maybe_sent: true,
            on_replica: false,
            reason: reason.into(),
        }
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let certainty = if self.maybe_sent {
            "maybe sent"
        } else {
            "not sent"
        };
        write!(f, "{certainty}: {}", self.reason)
    }
}

/// A question to the bus had no answer.
///
/// As a response it is a 503, or 400 when the caller named an unusable id. The body names the class of the
/// failure only; the rest, such as Redis' words, goes to the log at debug.
#[derive(Debug, Clone)]
pub struct QueryError {
    pub(crate) kind: QueryErrorKind,
}

#[derive(Debug, Clone)]
pub(crate) enum QueryErrorKind {
    InvalidId(InvalidId),
    Down,
    Bus(Arc<str>),
}

impl QueryError {
    pub(crate) fn invalid(error: InvalidId) -> Self {
        let kind = QueryErrorKind::InvalidId(error);
        Self { kind }
    }
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            QueryErrorKind::InvalidId(error) => error.fmt(f),
            QueryErrorKind::Down => f.write_str("the cluster was shut down"),
            QueryErrorKind::Bus(reason) => write!(f, "no answer from the bus: {reason}"),
        }
    }
}

impl std::error::Error for QueryError {}

impl IntoResponse for QueryError {
    fn into_response(self) -> Response {
        let status = match self.kind {
            QueryErrorKind::InvalidId(_) => StatusCode::BAD_REQUEST,
            QueryErrorKind::Down | QueryErrorKind::Bus(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        let class = match &self.kind {
            QueryErrorKind::Bus(_) => "no answer from the bus".to_owned(),
            QueryErrorKind::InvalidId(_) | QueryErrorKind::Down => self.to_string(),
        };
        tracing::debug!(status = status.as_u16(), error = %self, "a failed question was answered");
        (status, class).into_response()
    }
}

/// The socket has ended; nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    pub(crate) close: Close,
}

impl Closed {
    /// What ended it.
    pub fn close(&self) -> &Close {
        &self.close
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the socket has ended: {}", self.close)
    }
}

impl std::error::Error for Closed {}

/// Why a socket could not join a room.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum JoinError {
    /// The room's name is empty or longer than 256 bytes.
    InvalidRoom(InvalidId),
    /// The socket has ended.
    Closed(Closed),
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidRoom(error) => write!(f, "room name: {error}"),
            Self::Closed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for JoinError {}
