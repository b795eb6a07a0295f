//! The door: from a request to a registered socket.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use futures::future::join;
use futures::{FutureExt, TryFutureExt};
use http::header::SEC_WEBSOCKET_PROTOCOL;
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use hyper::upgrade::OnUpgrade;
use serde::Serialize;
use serde_json::Value;
use tokio::task::unconstrained;
use tokio::time::{Instant, timeout};

use crate::broadcast::Broadcaster;
use crate::close::Close;
use crate::config::{CLOSING, Unauthenticated};
use crate::driver::Driver;
use crate::id::UserId;
use crate::inbox::Inbox;
use crate::node::{Node, Refused, Reservation};
use crate::registry::{Full, Member};
use crate::socket::Socket;
use crate::ws::Opened;
use crate::ws::handshake::{Handshake, HandshakeError, is_wanted};

/// A WebSocket handshake of a known user, for whom the cluster already listens; then
/// [`on_upgrade`](Self::on_upgrade).
///
/// The user is the [`UserId`] that any middleware left in the request's extensions, or what
/// [`Builder::identify`](crate::Builder::identify) makes of the type that the app's auth leaves there.
///
/// Refusals, cheapest first: 500 without the layer, 503 while shutting down, 403 for a foreign
/// origin, 405/426/400 for what is no handshake, 4403 or 401 without a user, 400 for an unusable
/// user id, 429 or 503 at a limit.
///
/// Extract it before an `Extension` of the app's own user type: an upgrade without a user then gets its
/// 4403, and not the 500 of the missing extension.
///
/// `Option<ClusterSocket>` is `None` when the request asks for no WebSocket at all, so that one
/// route can serve both a page and its socket.
///
/// Dropping it gives the user's place back.
#[derive(Debug)]
#[must_use = "a handshake is answered by `on_upgrade`"]
pub struct ClusterSocket {
    reservation: Reservation,
    handshake: Handshake,
    upgrade: OnUpgrade,
    offered: HeaderMap,
    expires_at: Option<SystemTime>,
    /// JSON, or why there is none.
    description: Option<Result<Box<str>, String>>,
}

impl ClusterSocket {
    /// Whose it will be.
    pub fn user(&self) -> &UserId {
        self.reservation.user()
    }

    /// The subprotocols this handler speaks, best first, instead of those of
    /// [`Builder::protocols`](crate::Builder::protocols). The first that the client offers is chosen
    /// and echoed (RFC 6455, section 4.2.2); nothing else that the client offered is, so a token may
    /// be offered beside. An upgrade without a user never gets here: see `Builder::protocols`.
    pub fn protocols<P: AsRef<str>>(mut self, known: impl IntoIterator<Item = P>) -> Self {
        let known: Vec<P> = known.into_iter().collect();
        self.handshake
            .choose_protocol(&self.offered, known.iter().map(AsRef::as_ref));
        self
    }

    /// The subprotocol that was chosen.
    pub fn protocol(&self) -> Option<&str> {
        self.handshake.protocol()
    }

    /// Closes the socket with 4401 when the identity expires: a WebSocket outlives the request that
    /// was authenticated. Default: never.
    pub fn expires_at(mut self, time: SystemTime) -> Self {
        self.expires_at = Some(time);
        self
    }

    /// Says what kind of device this is, for [`Audience::sockets`](crate::Audience::sockets): anything
    /// small that can be written as JSON, at most 1 KiB and 100 levels deep. Default: nothing. What is
    /// more, or cannot be written, is answered with 500 by [`on_upgrade`](Self::on_upgrade).
    ///
    /// ```
    /// # use axum::response::Response;
    /// # use axum_cluster::ClusterSocket;
    /// use serde_json::json;
    ///
    /// async fn ws(socket: ClusterSocket) -> Response {
    ///     let socket = socket.describe(json!({ "device": "phone", "version": "2.1" }));
    ///     socket.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
    /// }
    /// ```
    pub fn describe(mut self, description: impl Serialize) -> Self {
        let json = serde_json::to_string(&description).map_err(|error| error.to_string());
        self.description = Some(json.and_then(|json| match json.len() {
            0..=MAX_DESCRIPTION if is_too_deep(&json) => Err(format!(
                "it is more than {MAX_DEPTH} levels deep, which other nodes cannot read"
            )),
            0..=MAX_DESCRIPTION => Ok(json.into()),
            bytes => Err(format!(
                "it has {bytes} bytes, at most {MAX_DESCRIPTION} are kept"
            )),
        }));
        self
    }

    /// Answers the handshake and runs the handler with the socket. From this call on the socket is
    /// registered; what is sent to it before the client has its answer waits in the outbox.
    ///
    /// When the handler returns, the socket closes with 1000; when it panics, with 1011.
    #[must_use = "the returned response completes the upgrade"]
    pub fn on_upgrade<F, Fut>(self, handler: F) -> Response
    where
        F: FnOnce(Socket) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let node = self.reservation.node().clone();
        // A time too far off to be named is never.
        let expires_at = self.expires_at.and_then(|time| {
            let left = time
                .duration_since(SystemTime::now())
                .unwrap_or(Duration::ZERO);
            Instant::now().checked_add(left)
        });
        let description = match self.description.transpose() {
            Ok(description) => description,
            Err(problem) => {
                let problem = format!("the description of the socket is unusable: {problem}");
                tracing::error!("{problem}");
                return (StatusCode::INTERNAL_SERVER_ERROR, problem).into_response();
            }
        };
        let (outbox, registration) = self.reservation.register(expires_at, description);
        let inbox = Arc::new(Inbox::default());
        let socket = Socket::new(node.clone(), outbox.clone(), inbox.clone());
        let (upgrade, limit) = (self.upgrade, node.config().max_message_size);
        let tasks = node.tasks().clone();
        node.tasks().spawn(async move {
            let Some(opened) = opened(upgrade).await else {
                // The client left during the handshake.
                outbox.abandon(Close::from_static(
                    Close::ABNORMAL,
                    "the handshake was not completed",
                ));
                outbox.finish();
                return;
            };
            let (id, user) = (outbox.id(), outbox.user().clone());
            let driver = Driver::new(opened, outbox, inbox, registration, limit);
            let driver = unconstrained(driver);
            let panicked = move |_| tracing::error!(socket = %id, user = user.as_str(), "the handler panicked: its socket is closed with 1011, the node goes on");
            // A task of their own, which holds nothing of the handshake. The handler comes first: what
            // it says leaves in the same turn.
            match catch_unwind(AssertUnwindSafe(|| handler(socket))) {
                Ok(handling) => {
                    let handling = AssertUnwindSafe(handling).catch_unwind();
                    tasks.spawn(join(handling.unwrap_or_else(panicked), driver));
                }
                Err(panic) => {
                    panicked(panic);
                    tasks.spawn(driver);
                }
            }
        });
        self.handshake.response()
    }
}

/// Kept for every socket, and sent with every roster.
pub(crate) const MAX_DESCRIPTION: usize = 1024;
/// Parsers of JSON give up below 128 levels, and every answer puts some around a description.
const MAX_DEPTH: usize = 100;

/// Whether no node could read this valid JSON within an answer.
fn is_too_deep(json: &str) -> bool {
    let around = 127 - MAX_DEPTH;
    let nested = format!("{}{json}{}", "[".repeat(around), "]".repeat(around));
    serde_json::from_str::<Value>(&nested).is_err()
}

/// The stream, when the client has its answer.
async fn opened(upgrade: OnUpgrade) -> Option<Opened> {
    timeout(CLOSING, upgrade).await.ok()?.ok().map(Opened::new)
}

impl<S: Sync> FromRequestParts<S> for ClusterSocket {
    type Rejection = ClusterRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ClusterRejection> {
        let broadcaster: Option<Broadcaster> = parts.extensions.get().cloned();
        let broadcaster = broadcaster.ok_or_else(ClusterRejection::no_layer)?;
        let node = broadcaster.node();
        let config = node.config();
        if node.is_draining() {
            return Err(Refused::Draining.into());
        }
        if !config.origins.admits(&parts.headers, &parts.uri) {
            node.count_refused_origin();
            return Err(Kind::Origin.into());
        }
        let mut handshake = Handshake::check(parts).map_err(Kind::Handshake)?;
        let protocols = config.protocols.iter().map(String::as_str);
        handshake.choose_protocol(&parts.headers, protocols);
        let upgrade = parts
            .extensions
            .remove::<OnUpgrade>()
            .ok_or(Kind::UpgradeTaken)?;
        let Some(user) = config.identify.user(&parts.extensions) else {
            let close = match &config.unauthenticated {
                Unauthenticated::Reject => return Err(Kind::Unauthenticated.into()),
                Unauthenticated::Close => {
                    Close::from_static(Close::UNAUTHENTICATED, "authentication required")
                }
                Unauthenticated::CloseWith(close) => close.clone(),
            };
            let node = node.clone();
            return Err(Kind::Close(Box::new(Refusal {
                node,
                handshake,
                upgrade,
                close,
            }))
            .into());
        };
        let reservation = node.reserve(user).await?;
        let mut offered = HeaderMap::new();
        for value in parts.headers.get_all(SEC_WEBSOCKET_PROTOCOL) {
            let mut value = value.clone();
            // It may hold a token, which `Debug` must not show.
            value.set_sensitive(true);
            offered.append(SEC_WEBSOCKET_PROTOCOL, value);
        }
        Ok(Self {
            reservation,
            handshake,
            upgrade,
            offered,
            expires_at: None,
            description: None,
        })
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for ClusterSocket {
    type Rejection = ClusterRejection;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &S,
    ) -> Result<Option<Self>, ClusterRejection> {
        if !is_wanted(parts) {
            return Ok(None);
        }
        <Self as FromRequestParts<S>>::from_request_parts(parts, state)
            .await
            .map(Some)
    }
}

/// Why [`ClusterSocket`] or [`Broadcaster`] could not be extracted. Its response is the refusal; for a
/// missing user that is an upgrade which closes with 4403.
#[derive(Debug)]
#[must_use = "a rejection must be returned as the response"]
pub struct ClusterRejection(Kind);

#[derive(Debug)]
enum Kind {
    NoLayer,
    Refused(Refused),
    Origin,
    Handshake(HandshakeError),
    UpgradeTaken,
    Unauthenticated,
    Close(Box<Refusal>),
}

/// An upgrade whose only message is a Close frame. Never registered, never counted.
#[derive(Debug)]
struct Refusal {
    node: Arc<Node>,
    handshake: Handshake,
    upgrade: OnUpgrade,
    close: Close,
}

impl ClusterRejection {
    pub(crate) fn no_layer() -> Self {
        Self(Kind::NoLayer)
    }

    /// The status of the response.
    pub fn status(&self) -> StatusCode {
        match &self.0 {
            Kind::NoLayer | Kind::UpgradeTaken => StatusCode::INTERNAL_SERVER_ERROR,
            Kind::Refused(
                Refused::Draining | Refused::RuntimeEnded | Refused::Full(Full::Node),
            ) => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Refused(Refused::Full(Full::User)) => StatusCode::TOO_MANY_REQUESTS,
            Kind::Refused(Refused::InvalidUser(_)) => StatusCode::BAD_REQUEST,
            Kind::Origin => StatusCode::FORBIDDEN,
            Kind::Handshake(error) => error.status(),
            Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
            Kind::Close(refusal) => refusal.handshake.status(),
        }
    }
}

impl fmt::Display for ClusterRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::NoLayer => f.write_str(
                "no cluster in this request: add `.layer(ClusterLayer::new(redis_url))` around the route",
            ),
            Kind::Refused(Refused::Draining) => f.write_str("the server is shutting down, try again"),
            Kind::Refused(Refused::RuntimeEnded) => f.write_str(
                "the tokio runtime on which the server's cluster was started has ended: start it on the one that serves",
            ),
            Kind::Refused(Refused::Full(Full::Node)) => f.write_str("the server is full, try again later"),
            Kind::Refused(Refused::Full(Full::User)) => f.write_str("too many sockets of this user"),
            Kind::Refused(Refused::InvalidUser(error)) => write!(f, "user id: {error}"),
            Kind::Origin => f.write_str(
                "this origin may not open a socket here; the server's `allow_origin` can admit it",
            ),
            Kind::Handshake(error) => error.fmt(f),
            Kind::UpgradeTaken => f.write_str(
                "the upgrade of this request was taken already: extract `ClusterSocket` alone, without \
                 `WebSocketUpgrade` beside it, on a server that supports upgrades",
            ),
            Kind::Unauthenticated => f.write_str("authentication required"),
            Kind::Close(refusal) => refusal.close.fmt(f),
        }
    }
}

impl std::error::Error for ClusterRejection {}

impl IntoResponse for ClusterRejection {
    fn into_response(self) -> Response {
        match self.0 {
            Kind::Close(refusal) => refusal.into_response(),
            Kind::Handshake(error) => error.into_response(),
            _ => (self.status(), self.to_string()).into_response(),
        }
    }
}

impl Refusal {
    fn into_response(self) -> Response {
        let Self {
            node,
            handshake,
            upgrade,
            close,
        } = self;
        node.tasks().spawn(async move {
            let refusing = async {
                if let Some(opened) = opened(upgrade).await {
                    opened.refuse(&close).await;
                }
            };
            let _ = timeout(CLOSING, refusing).await;
        });
        handshake.response()
    }
}

impl From<Kind> for ClusterRejection {
    fn from(kind: Kind) -> Self {
        Self(kind)
    }
}

impl From<Refused> for ClusterRejection {
    fn from(refused: Refused) -> Self {
        Self(Kind::Refused(refused))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_so_deep_that_every_node_can_read_it() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(!is_too_deep(&nested(MAX_DEPTH)) && is_too_deep(&nested(MAX_DEPTH + 1)));
        assert!(!is_too_deep(&format!("\"{}\"", nested(400))), "no levels");
    }
}
