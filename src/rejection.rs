//! Why a request got no socket: what its client is told, what the log says, what is counted.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::ALLOW;
use hyper::upgrade::OnUpgrade;
use tokio::time::timeout;

use crate::config::NoUser;
use crate::counts::Counted;
use crate::home::ENDED;
use crate::local::CLOSING;
use crate::local::admission::RefusedSocket;
use crate::local::origin::ForeignOrigin;
use crate::local::registry::Full;
use crate::model::close::Close;
use crate::model::error::ClusterRejectionKind;
use crate::node::Node;
use crate::sse;
use crate::ws::OpenedIo;
use crate::ws::handshake::{HandshakeAnswer, HandshakeError};

/// Why [`ClusterSocket`](crate::ClusterSocket), [`ClusterEvents`](crate::ClusterEvents) or
/// [`Broadcaster`](crate::Broadcaster) could not be extracted. Its response is the refusal; for a missing user that is an
/// upgrade which closes with 4403, or a 204 which has an `EventSource` stop. The response
/// says what its client may know, the log says the rest.
///
/// ```
/// # use axum::{Router, response::Response, routing::any};
/// use axum_cluster::{ClusterRejection, ClusterSocket};
///
/// async fn ws(socket: Result<ClusterSocket, ClusterRejection>) -> Result<Response, ClusterRejection> {
///     let socket = socket.inspect_err(|rejection| println!("{}: {rejection}", rejection.status()))?;
///     Ok(socket.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} }))
/// }
/// # let _app: Router = Router::new().route("/ws", any(ws));
/// ```
#[derive(Debug)]
#[must_use = "a rejection must be returned as the response"]
pub struct ClusterRejection(RejectionKind);

#[derive(Debug)]
pub(crate) enum RejectionKind {
    NoLayer,
    Refused(RefusedSocket),
    Origin(ForeignOrigin),
    Handshake(HandshakeError),
    UpgradeTaken,
    NoUpgrade,
    Unauthenticated(NoUser),
    Close(NoUser, Box<ClosingUpgrade>),
    /// A stream of events without a user: its client is not to come back.
    Nobody(NoUser),
    /// The client of a stream of events was told not to come back, and why.
    Over,
    /// The client of a stream of events is to come back by itself, as no answer but a stream would have it do.
    Later(RefusedSocket),
    MethodNotGet,
}

/// What a client asked for, in the words of the log.
#[derive(Debug, Clone, Copy)]
pub(crate) enum DoorKind {
    Upgrade,
    Events,
}

/// An upgrade whose only message is a Close frame. Never registered.
#[derive(Debug)]
pub(crate) struct ClosingUpgrade {
    pub(crate) node: Arc<Node>,
    pub(crate) handshake: HandshakeAnswer,
    pub(crate) upgrade: OnUpgrade,
    pub(crate) close: Close,
}

impl ClusterRejection {
    pub(crate) fn no_layer() -> Self {
        let rejection = Self(RejectionKind::NoLayer);
        tracing::debug!(reason = %rejection, "request refused with 500");
        rejection
    }

    /// Counts it and says it in the log, once.
    pub(crate) fn noted(kind: RejectionKind, asked: DoorKind, node: &Node) -> Self {
        if let Some(counted) = kind.counted() {
            node.ground.counters.record_refusal(counted);
        }
        let rejection = Self(kind);
        let (node_id, status) = (node.ground.node, rejection.status().as_u16());
        match &rejection.0 {
            RejectionKind::Origin(ForeignOrigin { origin, host }) => {
                let host = host.as_deref().unwrap_or("none that is usable");
                tracing::debug!(node = %node_id, status, origin, host, "{asked} refused: Origin and Host differ; \
                    `allow_origin` or `allow_origin_if` can admit it, and a proxy must hand Host on");
            }
            RejectionKind::Unauthenticated(missing)
            | RejectionKind::Close(missing, _)
            | RejectionKind::Nobody(missing) => {
                let close = rejection.close();
                let status = close.is_none().then_some(status);
                if missing.is_suspicious() && node.says_no_user() {
                    tracing::warn!(node = %node_id, status, close, "{asked} refused: {missing} (harmless where nobody had \
                        logged in; said once, then at debug)");
                } else {
                    tracing::debug!(node = %node_id, status, close, "{asked} refused: {missing}");
                }
            }
            kind => {
                let reason = kind
                    .cause()
                    .map_or_else(|| rejection.to_string(), str::to_owned);
                tracing::debug!(node = %node_id, status, reason, "{asked} refused");
            }
        }
        rejection
    }

    /// The code of the only frame, where it comes as one: the 101 before it says nothing.
    fn close(&self) -> Option<u16> {
        match &self.0 {
            RejectionKind::Close(_, refusal) => Some(refusal.close.code.0),
            _ => None,
        }
    }

    /// What kind of refusal it is.
    pub fn kind(&self) -> ClusterRejectionKind {
        match &self.0 {
            RejectionKind::NoLayer => ClusterRejectionKind::NoLayer,
            RejectionKind::UpgradeTaken | RejectionKind::NoUpgrade => {
                ClusterRejectionKind::NoUpgrade
            }
            RejectionKind::Handshake(_) | RejectionKind::MethodNotGet => {
                ClusterRejectionKind::Handshake
            }
            RejectionKind::Origin(_) => ClusterRejectionKind::Origin,
            RejectionKind::Unauthenticated(_)
            | RejectionKind::Close(..)
            | RejectionKind::Nobody(_) => ClusterRejectionKind::Unauthenticated,
            RejectionKind::Over => ClusterRejectionKind::Over,
            RejectionKind::Refused(refused) | RejectionKind::Later(refused) => match refused {
                RefusedSocket::Draining => ClusterRejectionKind::Draining,
                RefusedSocket::RuntimeEnded => ClusterRejectionKind::RuntimeEnded,
                RefusedSocket::Full(Full::Node) => ClusterRejectionKind::NodeFull,
                RefusedSocket::Full(Full::User) => ClusterRejectionKind::UserFull,
                RefusedSocket::InvalidUser(_) => ClusterRejectionKind::InvalidId,
            },
        }
    }

    /// The status of the response.
    pub fn status(&self) -> StatusCode {
        match &self.0 {
            RejectionKind::NoLayer | RejectionKind::UpgradeTaken | RejectionKind::NoUpgrade => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            RejectionKind::Refused(
                RefusedSocket::Draining
                | RefusedSocket::RuntimeEnded
                | RefusedSocket::Full(Full::Node),
            ) => StatusCode::SERVICE_UNAVAILABLE,
            RejectionKind::Refused(RefusedSocket::Full(Full::User)) => {
                StatusCode::TOO_MANY_REQUESTS
            }
            RejectionKind::Refused(RefusedSocket::InvalidUser(_)) => StatusCode::BAD_REQUEST,
            RejectionKind::Origin(_) => StatusCode::FORBIDDEN,
            RejectionKind::Handshake(error) => error.status(),
            RejectionKind::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            RejectionKind::Close(_, refusal) => refusal.handshake.status(),
            RejectionKind::Nobody(_) | RejectionKind::Over => StatusCode::NO_CONTENT,
            RejectionKind::Later(_) => StatusCode::OK,
            RejectionKind::MethodNotGet => StatusCode::METHOD_NOT_ALLOWED,
        }
    }
}

impl RejectionKind {
    /// What it counts as; limits are counted where they are checked.
    fn counted(&self) -> Option<Counted> {
        Some(match self {
            Self::NoLayer => return None,
            Self::Refused(refused) | Self::Later(refused) => match refused {
                RefusedSocket::Full(_) => return None,
                RefusedSocket::Draining | RefusedSocket::RuntimeEnded => Counted::Draining,
                RefusedSocket::InvalidUser(_) => Counted::Id,
            },
            Self::Origin(_) => Counted::Origin,
            Self::Handshake(_) | Self::MethodNotGet => Counted::Handshake,
            Self::UpgradeTaken | Self::NoUpgrade => Counted::Upgrade,
            Self::Unauthenticated(_) | Self::Close(..) | Self::Nobody(_) => {
                Counted::Unauthenticated
            }
            Self::Over => Counted::Over,
        })
    }

    /// For a client that had a stream of events, and would give up for ever at a status.
    pub(crate) fn later(self) -> Self {
        match self {
            Self::Refused(refused) if refused.is_passing() => Self::Later(refused),
            lasting => lasting,
        }
    }

    /// The setting or the mistake that refused it, which is no client's business.
    fn cause(&self) -> Option<&'static str> {
        let (Self::Refused(refused) | Self::Later(refused)) = self else {
            return None;
        };
        match refused {
            RefusedSocket::Full(Full::Node) => Some("`max_sockets` is reached"),
            RefusedSocket::Full(Full::User) => {
                Some("`max_sockets_per_user` or `max_sockets_per_user_in_cluster` is reached")
            }
            RefusedSocket::RuntimeEnded => Some(ENDED),
            RefusedSocket::Draining | RefusedSocket::InvalidUser(_) => None,
        }
    }
}

impl fmt::Display for ClusterRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            RejectionKind::NoLayer => f.write_str(
                "no cluster in this request: add `.layer(ClusterLayer::new(redis_url))` around the route",
            ),
            RejectionKind::Refused(refused) | RejectionKind::Later(refused) => refused.fmt(f),
            RejectionKind::Origin(_) => f.write_str(
                "this origin may not open a socket here: the server's `allow_origin` can admit it, or a proxy in front \
                 does not hand `Host` on",
            ),
            RejectionKind::Handshake(error) => error.fmt(f),
            RejectionKind::UpgradeTaken => f.write_str(
                "the upgrade of this request was taken already: extract `ClusterSocket` alone, without \
                 `WebSocketUpgrade` beside it",
            ),
            RejectionKind::NoUpgrade => f.write_str(
                "this request did not come through a server that supports upgrades: serve the app with `axum::serve` \
                 for one, in tests with `axum_cluster::testing::App` (feature `testing`)",
            ),
            RejectionKind::Unauthenticated(_) | RejectionKind::Nobody(_) => {
                f.write_str("authentication required")
            }
            RejectionKind::Over => f.write_str("this stream of events ended for good"),
            RejectionKind::MethodNotGet => f.write_str("a stream of events must be asked for by GET"),
            RejectionKind::Close(_, refusal) => refusal.close.fmt(f),
        }
    }
}

impl fmt::Display for DoorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Upgrade => "upgrade",
            Self::Events => "stream of events",
        })
    }
}

impl Error for ClusterRejection {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            RejectionKind::Refused(RefusedSocket::InvalidUser(error)) => Some(error),
            _ => None,
        }
    }
}

impl IntoResponse for ClusterRejection {
    fn into_response(self) -> Response {
        match self.0 {
            RejectionKind::Close(_, refusal) => refusal.into_response(),
            RejectionKind::Handshake(error) => error.into_response(),
            RejectionKind::Nobody(_) | RejectionKind::Over => self.status().into_response(),
            RejectionKind::Later(_) => later(),
            RejectionKind::MethodNotGet => {
                (self.status(), [(ALLOW, "GET")], self.to_string()).into_response()
            }
            _ => (self.status(), self.to_string()).into_response(),
        }
    }
}

impl ClosingUpgrade {
    fn into_response(self) -> Response {
        let Self {
            node,
            handshake,
            upgrade,
            close,
        } = self;
        let tasks = node.ground.home.tracker().clone();
        tasks.spawn(async move {
            let refusing = async {
                if let Some(opened) = opened(upgrade, &node).await {
                    opened.refuse(&close).await;
                }
            };
            let _ = timeout(CLOSING, refusing).await;
        });
        handshake.response()
    }
}

/// The stream, when the client has its answer.
pub(crate) async fn opened(upgrade: OnUpgrade, node: &Node) -> Option<OpenedIo> {
    match timeout(CLOSING, upgrade).await {
        Ok(Ok(upgraded)) => Some(OpenedIo::new(upgraded)),
        // Whoever serves the connection keeps the stream to himself.
        Ok(Err(error)) if error.is_user() => {
            let first = node.ground.counters.record_refusal(Counted::Upgrade);
            let (node, fix) = (
                node.ground.node,
                "serve with `axum::serve`, or with hyper's `with_upgrades` or \
                `serve_connection_with_upgrades`",
            );
            if first {
                tracing::warn!(%node, %error, fix, "this server answers upgrades and does not do them: no socket can be opened. \
                    Said once, then at debug");
            } else {
                tracing::debug!(%node, %error, fix, "this server does not do upgrades");
            }
            None
        }
        Ok(Err(_)) | Err(_) => {
            tracing::debug!(node = %node.ground.node, "the client left during the handshake");
            None
        }
    }
}

/// A stream that says no more than when to come back.
fn later() -> Response {
    let mut said = Vec::new();
    sse::write_later(sse::retry(fastrand::f64()), &mut said);
    sse::response(said.into())
}

impl From<RefusedSocket> for RejectionKind {
    fn from(refused: RefusedSocket) -> Self {
        Self::Refused(refused)
    }
}
