//! Why a socket cannot be described so.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use axum_core::response::{IntoResponse, Response};
use http::StatusCode;

use super::{Closed, answer};
use crate::model::close::Close;

/// Why a socket cannot be described so.
///
/// As a response it is a 500 for an unusable description, and a 410 for a socket that has ended.
#[derive(Debug, Clone)]
pub struct DescriptionError(Failure);

/// What kind of failure a [`DescriptionError`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DescriptionErrorKind {
    /// It cannot be written as JSON; the source says why.
    Unwritable,
    /// It has more than 1 KiB of JSON.
    TooLong,
    /// It is more than 100 levels deep, which other nodes cannot read.
    TooDeep,
    /// The socket has ended; the source is a [`Closed`].
    Closed,
}

#[derive(Debug, Clone)]
enum Failure {
    Unwritable(Arc<serde_json::Error>),
    TooLong { bytes: usize, most: usize },
    TooDeep { most: usize },
    Closed(Closed),
}

impl DescriptionError {
    pub(crate) fn unwritable(error: serde_json::Error) -> Self {
        Self(Failure::Unwritable(Arc::new(error)))
    }

    pub(crate) fn too_long(bytes: usize, most: usize) -> Self {
        Self(Failure::TooLong { bytes, most })
    }

    pub(crate) fn too_deep(most: usize) -> Self {
        Self(Failure::TooDeep { most })
    }

    pub(crate) fn closed(close: Close) -> Self {
        Self(Failure::Closed(Closed { close }))
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> DescriptionErrorKind {
        match self.0 {
            Failure::Unwritable(_) => DescriptionErrorKind::Unwritable,
            Failure::TooLong { .. } => DescriptionErrorKind::TooLong,
            Failure::TooDeep { .. } => DescriptionErrorKind::TooDeep,
            Failure::Closed(_) => DescriptionErrorKind::Closed,
        }
    }
}

impl fmt::Display for DescriptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Failure::Unwritable(error) => {
                write!(f, "the description cannot be written as JSON: {error}")
            }
            Failure::TooLong { bytes, most } => {
                write!(
                    f,
                    "the description has {bytes} bytes, at most {most} are kept"
                )
            }
            Failure::TooDeep { most } => write!(
                f,
                "the description is more than {most} levels deep, which other nodes cannot read"
            ),
            Failure::Closed(closed) => closed.fmt(f),
        }
    }
}

impl Error for DescriptionError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Failure::Unwritable(error) => Some(error),
            Failure::TooLong { .. } | Failure::TooDeep { .. } => None,
            Failure::Closed(closed) => Some(closed),
        }
    }
}

impl IntoResponse for DescriptionError {
    fn into_response(self) -> Response {
        match self.0 {
            Failure::Closed(closed) => closed.into_response(),
            _ => {
                let unusable =
                    "the description of the socket is unusable: the server's log says why";
                answer(StatusCode::INTERNAL_SERVER_ERROR, unusable, &self)
            }
        }
    }
}
