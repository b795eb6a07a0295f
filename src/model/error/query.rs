//! Why a question had no answer.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use axum_core::response::{IntoResponse, Response};
use http::StatusCode;

use super::{Reason, answer};
use crate::model::id::InvalidId;

/// A question to the bus had no answer.
///
/// As a response it is a 503, or 400 when the caller named an unusable id. The body names the class of the
/// failure only; the rest, such as Redis' words, goes to the log at debug.
#[derive(Debug, Clone)]
pub struct QueryError(QueryFailure);

/// What kind of failure a [`QueryError`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QueryErrorKind {
    /// The id of a user or a room cannot be used; the source is an [`InvalidId`].
    InvalidId,
    /// The cluster was shut down.
    Down,
    /// The bus did not answer.
    Bus,
}

#[derive(Debug, Clone)]
enum QueryFailure {
    InvalidId(InvalidId),
    Down,
    Bus(Reason),
}

impl QueryError {
    pub(crate) fn invalid(error: InvalidId) -> Self {
        Self(QueryFailure::InvalidId(error))
    }

    pub(crate) fn down() -> Self {
        Self(QueryFailure::Down)
    }

    pub(crate) fn bus(reason: impl Into<Arc<str>>) -> Self {
        Self(QueryFailure::Bus(Reason(reason.into())))
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> QueryErrorKind {
        match self.0 {
            QueryFailure::InvalidId(_) => QueryErrorKind::InvalidId,
            QueryFailure::Down => QueryErrorKind::Down,
            QueryFailure::Bus(_) => QueryErrorKind::Bus,
        }
    }
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            QueryFailure::InvalidId(error) => error.fmt(f),
            QueryFailure::Down => f.write_str("the cluster was shut down"),
            QueryFailure::Bus(reason) => write!(f, "no answer from the bus: {reason}"),
        }
    }
}

impl Error for QueryError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            QueryFailure::InvalidId(error) => Some(error),
            QueryFailure::Bus(reason) => Some(reason),
            QueryFailure::Down => None,
        }
    }
}

impl IntoResponse for QueryError {
    fn into_response(self) -> Response {
        let (status, class) = match &self.0 {
            QueryFailure::InvalidId(_) => (StatusCode::BAD_REQUEST, self.to_string()),
            QueryFailure::Down => (StatusCode::SERVICE_UNAVAILABLE, self.to_string()),
            QueryFailure::Bus(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "no answer from the bus".to_owned(),
            ),
        };
        answer(status, class, &self)
    }
}
