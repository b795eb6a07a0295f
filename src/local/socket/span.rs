//! What traces tell of a socket.

use tracing::field::Empty;
use tracing::{Span, debug_span};

use crate::model::close::Close;
use crate::model::id::{SocketId, UserId};

const NAME: &str = "socket";

/// In which a socket's handler and task run. It follows from the span of its request, which is over long before.
pub(crate) fn of_socket(id: SocketId, user: &UserId) -> Span {
    let request = Span::current();
    let span = debug_span!(parent: None, NAME, socket = %id, user = user.as_str(), code = Empty);
    span.follows_from(request.id());
    span
}

/// Records how a socket ended in its span, in which this runs. Where that is not enabled, the one around it is another's.
pub(crate) fn record_end(close: &Close) {
    let span = Span::current();
    let is_of_socket =
        |it: &tracing::Metadata<'_>| (it.target(), it.name()) == (module_path!(), NAME);
    if span.metadata().is_some_and(is_of_socket) {
        span.record("code", close.code.0);
    }
}

/// A handler of the app panicked, which ends its own socket only.
pub(crate) fn record_panic(socket: SocketId, user: &UserId) {
    tracing::error!(%socket, user = user.as_str(), "the handler panicked: its socket is closed with 1011, the node goes on");
}
