//! Why a send did not do all it was asked for.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use axum_core::response::{IntoResponse, Response};
use http::StatusCode;

use super::answer;
use crate::model::code::CloseCode;
use crate::model::id::InvalidId;

/// A send did not do all it was asked for; it says what it did do.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let broadcaster = axum_cluster::Cluster::builder().start().broadcaster();
/// use axum_cluster::SendErrorKind;
///
/// match broadcaster.to_user("alice").send("hello").await {
///     Ok(delivery) => println!("{} sockets here have it", delivery.local()),
///     Err(error) if error.kind() == SendErrorKind::TooLarge => println!("send less: {error}"),
///     Err(error) if error.maybe_sent() => println!("others may have it: {error}"),
///     Err(error) => println!("{} sockets here have it, no others: {error}", error.local()),
/// }
/// # }
/// ```
///
/// As a response, so that `?` works in handlers: 503 when the bus failed or the cluster was shut down, 400
/// when the caller named an unusable id or close code, 413 when the message is too large for the bus, 500
/// when a value could not be written as JSON. The body names the class of the failure, and that this
/// node's sockets were served when only the bus failed; the rest, such as Redis' words, goes to the log at debug.
#[derive(Debug, Clone)]
pub struct SendError {
    local: usize,
    failure: SendFailure,
}

/// What kind of failure a [`SendError`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SendErrorKind {
    /// The id of a user or a room cannot be used; the source is an [`InvalidId`]. Nothing was sent.
    InvalidId,
    /// The close code may not be sent ([`CloseCode::is_sendable`]). Nothing was closed.
    InvalidClose,
    /// The message is larger than what travels between nodes, 16 MiB. Nothing was sent.
    TooLarge,
    /// The value cannot be written as JSON; the source is a [`serde_json::Error`]. Nothing was sent.
    Json,
    /// The cluster was shut down. Nothing was sent.
    Down,
    /// The bus failed. The sockets of this node were served ([`SendError::local`]); whether others may have been
    /// reached says [`SendError::maybe_sent`].
    Bus,
    /// It waited in the [`spool`](crate::ClusterBuilder::spool), and was dropped. Nobody has it, unless
    /// [`SendError::maybe_sent`].
    Dropped,
}

#[derive(Debug, Clone)]
enum SendFailure {
    InvalidId(InvalidId),
    InvalidClose(CloseCode),
    TooLarge { bytes: usize, limit: usize },
    Json(Arc<serde_json::Error>),
    Down,
    Bus(PublishError),
    Dropped(PublishError),
}

impl SendError {
    pub(crate) fn invalid(error: InvalidId) -> Self {
        Self::refused(SendFailure::InvalidId(error))
    }

    pub(crate) fn invalid_close(code: CloseCode) -> Self {
        Self::refused(SendFailure::InvalidClose(code))
    }

    pub(crate) fn too_large(bytes: usize, limit: usize) -> Self {
        Self::refused(SendFailure::TooLarge { bytes, limit })
    }

    pub(crate) fn json(error: serde_json::Error) -> Self {
        Self::refused(SendFailure::Json(Arc::new(error)))
    }

    pub(crate) fn down() -> Self {
        Self::refused(SendFailure::Down)
    }

    /// What the bus did not take, after so many sockets here took it.
    pub(crate) fn bus(local: usize, error: PublishError) -> Self {
        let failure = SendFailure::Bus(error);
        Self { local, failure }
    }

    /// What waited for the bus to be back, in vain.
    pub(crate) fn dropped(error: PublishError) -> Self {
        Self::refused(SendFailure::Dropped(error))
    }

    fn refused(failure: SendFailure) -> Self {
        Self { local: 0, failure }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> SendErrorKind {
        match self.failure {
            SendFailure::InvalidId(_) => SendErrorKind::InvalidId,
            SendFailure::InvalidClose(_) => SendErrorKind::InvalidClose,
            SendFailure::TooLarge { .. } => SendErrorKind::TooLarge,
            SendFailure::Json(_) => SendErrorKind::Json,
            SendFailure::Down => SendErrorKind::Down,
            SendFailure::Bus(_) => SendErrorKind::Bus,
            SendFailure::Dropped(_) => SendErrorKind::Dropped,
        }
    }

    /// Sockets of this node that took the message.
    pub fn local(&self) -> usize {
        self.local
    }

    /// Whether other nodes may have received it all the same: the bus failed after the message may
    /// have been written. When `false` it certainly was not sent, and sending it again to the
    /// other nodes cannot make a duplicate.
    pub fn maybe_sent(&self) -> bool {
        match &self.failure {
            SendFailure::Bus(error) | SendFailure::Dropped(error) => error.maybe_sent,
            _ => false,
        }
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.failure {
            SendFailure::InvalidId(error) => error.fmt(f),
            SendFailure::InvalidClose(code) => write!(
                f,
                "close code {code} may not be sent: use 1000-1003, 1007-1014 or 3000-4999"
            ),
            SendFailure::TooLarge { bytes, limit } => {
                write!(
                    f,
                    "the message has {bytes} bytes: at most {limit} travel between nodes"
                )
            }
            SendFailure::Json(error) => write!(f, "the value cannot be written as JSON: {error}"),
            SendFailure::Down => f.write_str("the cluster was shut down"),
            SendFailure::Bus(error) => {
                write!(
                    f,
                    "delivered to {} sockets here; other nodes: {error}",
                    self.local
                )
            }
            SendFailure::Dropped(error) => write!(f, "dropped from the spool: {error}"),
        }
    }
}

impl Error for SendError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.failure {
            SendFailure::InvalidId(error) => Some(error),
            SendFailure::Json(error) => Some(&**error),
            SendFailure::Bus(error) | SendFailure::Dropped(error) => Some(error),
            SendFailure::InvalidClose(_) | SendFailure::TooLarge { .. } | SendFailure::Down => None,
        }
    }
}

impl IntoResponse for SendError {
    fn into_response(self) -> Response {
        let status = match self.failure {
            SendFailure::InvalidId(_) | SendFailure::InvalidClose(_) => StatusCode::BAD_REQUEST,
            SendFailure::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            SendFailure::Json(_) => StatusCode::INTERNAL_SERVER_ERROR,
            SendFailure::Down | SendFailure::Bus(_) | SendFailure::Dropped(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        let class = match &self.failure {
            SendFailure::Json(_) => "the value cannot be written as JSON".to_owned(),
            SendFailure::Bus(PublishError {
                maybe_sent: false, ..
            }) => "the bus is not usable: sockets of this node were served; other nodes were not reached"
                .to_owned(),
            SendFailure::Bus(_) => {
                "the bus is not usable: sockets of this node were served; other nodes may not have been reached"
                    .to_owned()
            }
            SendFailure::Dropped(_) => {
                "the bus is not usable: the message waited for it and was dropped".to_owned()
            }
            SendFailure::InvalidId(_)
            | SendFailure::InvalidClose(_)
            | SendFailure::TooLarge { .. }
            | SendFailure::Down => self.to_string(),
        };
        answer(status, class, &self)
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

impl Error for PublishError {}
