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
/// As a response it is a 503, 400 when the caller named an unusable id, or 500 when nothing is kept
/// of what was asked for. The body names the class of the
/// failure only; the rest, such as Redis' words, goes to the log at debug.
#[derive(Debug, Clone)]
pub struct QueryError(QueryFailure);

/// What kind of failure a [`QueryError`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QueryErrorKind {
    /// The id of a user or a room cannot be used; the source is an [`InvalidId`].
    InvalidId,
    /// Nothing is kept of such an audience.
    NotKept,
    /// The cluster was shut down.
    Down,
    /// The bus did not answer.
    Bus,
}

#[derive(Debug, Clone)]
enum QueryFailure {
    InvalidId(InvalidId),
    NotKept(&'static str),
    Down,
    Bus(Reason),
}

impl QueryError {
    pub(crate) fn invalid(error: InvalidId) -> Self {
        Self(QueryFailure::InvalidId(error))
    }

    /// The error of a query for what is not kept: of what nothing is, and the fix.
    pub(crate) fn not_kept(why: &'static str) -> Self {
        Self(QueryFailure::NotKept(why))
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
            QueryFailure::NotKept(_) => QueryErrorKind::NotKept,
            QueryFailure::Down => QueryErrorKind::Down,
            QueryFailure::Bus(_) => QueryErrorKind::Bus,
        }
    }
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            QueryFailure::InvalidId(error) => error.fmt(f),
            QueryFailure::NotKept(why) => f.write_str(why),
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
            QueryFailure::NotKept(_) | QueryFailure::Down => None,
        }
    }
}

impl IntoResponse for QueryError {
    fn into_response(self) -> Response {
        let (status, class) = match &self.0 {
            QueryFailure::InvalidId(_) => (StatusCode::BAD_REQUEST, self.to_string()),
            QueryFailure::NotKept(_) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "nothing is kept of this audience".to_owned(),
            ),
            QueryFailure::Down => (StatusCode::SERVICE_UNAVAILABLE, self.to_string()),
            QueryFailure::Bus(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "no answer from the bus".to_owned(),
            ),
        };
        answer(status, class, &self)
    }
}
