//! Why there is no subscription.

use std::error::Error;
use std::fmt;

use axum_core::response::{IntoResponse, Response};
use http::StatusCode;

use super::answer;
use crate::model::id::InvalidId;

/// Why a user could not be subscribed: what refuses an upgrade as well. Nothing is left behind.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use axum_cluster::{Cluster, SubscribeErrorKind};
///
/// let cluster = Cluster::builder().max_sockets_per_user(1).start();
/// let only = cluster.broadcaster().subscribe("alice").await.unwrap();
/// let error = cluster.broadcaster().subscribe("alice").await.unwrap_err();
/// assert_eq!(error.kind(), SubscribeErrorKind::UserFull);
/// drop(only);
/// assert!(cluster.broadcaster().subscribe("alice").await.is_ok());
/// # }
/// ```
///
/// As a response it is a 400 for an unusable id, 429 at a limit of the user's sockets, 500 for a worker, and 503 otherwise.
/// The body names the class of the failure only; the rest goes to the log at debug.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribeError(SubscribeFailure);

/// What kind of failure a [`SubscribeError`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SubscribeErrorKind {
    /// The user's id is empty or longer than 256 bytes; the source is an [`InvalidId`].
    InvalidId,
    /// This is a worker ([`Broadcaster::builder`](crate::Broadcaster::builder)), which sends and holds no sockets.
    Worker,
    /// The cluster is being shut down, or was.
    Draining,
    /// The runtime on which the cluster was started has ended, or does not run.
    RuntimeEnded,
    /// The node holds [`max_sockets`](crate::ClusterBuilder::max_sockets).
    NodeFull,
    /// The user has [`max_sockets_per_user`](crate::ClusterBuilder::max_sockets_per_user), or
    /// [`max_sockets_per_user_in_cluster`](crate::ClusterBuilder::max_sockets_per_user_in_cluster).
    UserFull,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum SubscribeFailure {
    InvalidId(InvalidId),
    Worker,
    Draining,
    RuntimeEnded(&'static str),
    NodeFull,
    UserFull,
}

impl SubscribeError {
    pub(crate) fn invalid(error: InvalidId) -> Self {
        Self(SubscribeFailure::InvalidId(error))
    }

    pub(crate) fn worker() -> Self {
        Self(SubscribeFailure::Worker)
    }

    pub(crate) fn draining() -> Self {
        Self(SubscribeFailure::Draining)
    }

    pub(crate) fn runtime_ended(reason: &'static str) -> Self {
        Self(SubscribeFailure::RuntimeEnded(reason))
    }

    pub(crate) fn node_full() -> Self {
        Self(SubscribeFailure::NodeFull)
    }

    pub(crate) fn user_full() -> Self {
        Self(SubscribeFailure::UserFull)
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> SubscribeErrorKind {
        match self.0 {
            SubscribeFailure::InvalidId(_) => SubscribeErrorKind::InvalidId,
            SubscribeFailure::Worker => SubscribeErrorKind::Worker,
            SubscribeFailure::Draining => SubscribeErrorKind::Draining,
            SubscribeFailure::RuntimeEnded(_) => SubscribeErrorKind::RuntimeEnded,
            SubscribeFailure::NodeFull => SubscribeErrorKind::NodeFull,
            SubscribeFailure::UserFull => SubscribeErrorKind::UserFull,
        }
    }
}

impl fmt::Display for SubscribeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            SubscribeFailure::InvalidId(error) => write!(f, "user id: {error}"),
            SubscribeFailure::Worker => f.write_str(
                "a worker holds no sockets and hears no messages: subscribe at a node, which `Cluster::builder` starts",
            ),
            SubscribeFailure::Draining => f.write_str("the cluster is being shut down, or was"),
            SubscribeFailure::RuntimeEnded(reason) => f.write_str(reason),
            SubscribeFailure::NodeFull => f.write_str("this node is full: `max_sockets` is reached"),
            SubscribeFailure::UserFull => f.write_str(
                "too many sockets of this user: `max_sockets_per_user` or `max_sockets_per_user_in_cluster` is reached",
            ),
        }
    }
}

impl Error for SubscribeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            SubscribeFailure::InvalidId(error) => Some(error),
            _ => None,
        }
    }
}

impl IntoResponse for SubscribeError {
    fn into_response(self) -> Response {
        let (status, class) = match self.0 {
            SubscribeFailure::InvalidId(_) => (StatusCode::BAD_REQUEST, self.to_string()),
            SubscribeFailure::Worker => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "this process holds no sockets".to_owned(),
            ),
            SubscribeFailure::UserFull => (
                StatusCode::TOO_MANY_REQUESTS,
                "too many sockets of this user".to_owned(),
            ),
            SubscribeFailure::Draining
            | SubscribeFailure::RuntimeEnded(_)
            | SubscribeFailure::NodeFull => (
                StatusCode::SERVICE_UNAVAILABLE,
                "the server cannot open sockets now, try again later".to_owned(),
            ),
        };
        answer(status, class, &self)
    }
}
