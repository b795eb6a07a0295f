//! Why a cluster could not be started.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use axum_core::response::{IntoResponse, Response};
use http::StatusCode;

use super::{Reason, answer};

/// Why a cluster could not be started, or did not come up in time.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use axum_cluster::{Cluster, ConnectErrorKind};
///
/// let error = Cluster::builder().namespace("my shop").try_start().unwrap_err();
/// assert_eq!(error.kind(), ConnectErrorKind::Setting);
/// assert!(error.to_string().contains("A-Z a-z 0-9 . _ - are needed"));
/// # }
/// ```
///
/// As a response it is a 503 when the bus is not up, else a 500. The body names the class of the failure only; the
/// rest, such as Redis' words, goes to the log at debug.
#[derive(Debug, Clone)]
pub struct ConnectError {
    kind: ConnectErrorKind,
    reason: Reason,
}

/// What kind of failure a [`ConnectError`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectErrorKind {
    /// The Redis URL is malformed or names something unsupported. The text names the part; a password is never
    /// shown.
    Url,
    /// A setting makes no sense. The text says which and why.
    Setting,
    /// The bus did not come up in time, or the cluster was shut down meanwhile; the reason is Redis' own where it has
    /// spoken.
    Unreachable,
}

impl ConnectError {
    pub(crate) fn url(problem: impl Into<Arc<str>>) -> Self {
        Self::of(ConnectErrorKind::Url, problem)
    }

    pub(crate) fn setting(problem: impl Into<Arc<str>>) -> Self {
        Self::of(ConnectErrorKind::Setting, problem)
    }

    pub(crate) fn unreachable(reason: impl Into<Arc<str>>) -> Self {
        Self::of(ConnectErrorKind::Unreachable, reason)
    }

    fn of(kind: ConnectErrorKind, reason: impl Into<Arc<str>>) -> Self {
        Self {
            kind,
            reason: Reason(reason.into()),
        }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ConnectErrorKind {
        self.kind
    }

    fn class(&self) -> &'static str {
        match self.kind {
            ConnectErrorKind::Url => "redis url",
            ConnectErrorKind::Setting => "cluster setting",
            ConnectErrorKind::Unreachable => "the bus is not up",
        }
    }
}

/// Of what cannot fail.
impl From<Infallible> for ConnectError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class(), self.reason)
    }
}

/// The source is the reason without the class.
impl Error for ConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.reason)
    }
}

impl IntoResponse for ConnectError {
    fn into_response(self) -> Response {
        let (status, class) = match self.kind {
            ConnectErrorKind::Unreachable => (StatusCode::SERVICE_UNAVAILABLE, self.class()),
            ConnectErrorKind::Url | ConnectErrorKind::Setting => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "the cluster cannot be started",
            ),
        };
        answer(status, class, &self)
    }
}
