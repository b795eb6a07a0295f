//! What can go wrong, one error per operation.
//!
//! Each has a kind to match on, and a text that is whole: it says what its `source()` says as well, so that one line
//! of a log suffices. A response names the class of the failure only; who reads it is not who runs the server.

mod connect;
mod description;
mod message;
mod query;
mod rejection;
mod send;
mod socket;
mod subscribe;

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use axum_core::response::{IntoResponse, Response};
use http::StatusCode;

pub use self::connect::{ConnectError, ConnectErrorKind};
pub use self::description::{DescriptionError, DescriptionErrorKind};
pub use self::message::{BadMessage, BadMessageKind};
pub use self::query::{QueryError, QueryErrorKind};
pub use self::rejection::ClusterRejectionKind;
pub(crate) use self::send::PublishError;
pub use self::send::{SendError, SendErrorKind};
pub use self::socket::{
    Closed, ClosedKind, RoomError, RoomErrorKind, SendJsonError, SendJsonErrorKind,
};
pub use self::subscribe::{SubscribeError, SubscribeErrorKind};

/// What the other side said, such as Redis.
#[derive(Debug, Clone)]
pub(crate) struct Reason(pub(crate) Arc<str>);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Reason {}

/// The class of a failure as a response; the rest goes to the log at debug.
fn answer(status: StatusCode, class: impl Into<Cow<'static, str>>, error: &dyn Error) -> Response {
    let code = status.as_u16();
    tracing::debug!(status = code, %error, "a failure was answered");
    (status, class.into()).into_response()
}
