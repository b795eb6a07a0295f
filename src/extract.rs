//! From a WebSocket handshake to a registered socket.

use std::sync::Arc;
use std::time::SystemTime;

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::Response;
use futures::future::join;
use http::HeaderMap;
use http::header::SEC_WEBSOCKET_PROTOCOL;
use http::request::Parts;
use hyper::upgrade::OnUpgrade;
use serde::Serialize;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

use crate::config::Unauthenticated;
use crate::door::{self, Newcomer};
use crate::layer::CameWithUpgrade;
use crate::local::admission::Registration;
use crate::local::socket::resuming::Telling;
use crate::local::socket::{Driver, DriverEnd, Together, span};
use crate::model::close::reason;
use crate::model::history::Resumed;
use crate::model::history::position::Position;
use crate::model::id::{RoomId, UserId};
use crate::node::Node;
use crate::rejection::{ClosingUpgrade, ClusterRejection, DoorKind, RejectionKind, opened};
use crate::socket::Socket;
use crate::ws::handshake::{HandshakeAnswer, is_wanted};

/// A WebSocket handshake of a known user, for whom the cluster already listens; then
/// [`on_upgrade`](Self::on_upgrade).
///
/// The user is the [`UserId`] that any middleware left in the request's extensions, or what
/// [`ClusterBuilder::identify`](crate::ClusterBuilder::identify) makes of the type that the app's auth leaves there.
///
/// Refusals, cheapest first: 500 without the layer, 503 while shutting down, 403 for a foreign
/// origin, 405/426/400 for what is no handshake, 500 where nothing can be upgraded, 4403 or 401 without a
/// user, 400 for an unusable user id, 429 or 503 at a limit. Each is counted in [`Stats`](crate::Stats) and
/// logged at debug with its reason; a missing user type, and a server that does not upgrade, once at warn.
///
/// Extract it before an `Extension` of the app's own user type: an upgrade without a user then gets its
/// 4403, and not the 500 of the missing extension.
///
/// `Option<ClusterSocket>` is `None` when the request asks for no WebSocket at all, so that one
/// route can serve both a page and its socket.
///
/// Dropping it gives the user's place back.
///
/// ```
/// # use axum::{Extension, Router, response::Response, routing::any};
/// use std::time::SystemTime;
/// use axum_cluster::ClusterSocket;
///
/// #[derive(Clone)]
/// struct Login { until: SystemTime } // what your auth middleware leaves in the extensions, beside the `UserId`
///
/// async fn ws(socket: ClusterSocket, Extension(login): Extension<Login>) -> Response {
///     println!("{} connects", socket.user());
///     socket
///         .protocols(["chat"])
///         .expires_at(login.until) // else it would outlive the login
///         .on_upgrade(|mut socket| async move {
///             while let Some(message) = socket.recv().await {
///                 let _ = socket.send(message).await;
///             }
///         })
/// }
/// # let _app: Router = Router::new().route("/ws", any(ws));
/// ```
#[derive(Debug)]
#[must_use = "a handshake is answered by `on_upgrade`"]
pub struct ClusterSocket {
    newcomer: Newcomer,
    handshake: HandshakeAnswer,
    upgrade: OnUpgrade,
    offered: HeaderMap,
}

impl ClusterSocket {
    /// Whose it will be.
    pub fn user(&self) -> &UserId {
        self.newcomer.user()
    }

    /// Where the client was when it left: the position in the URL (`?since=`), or that of [`since`](Self::since).
    pub fn position(&self) -> Option<&Position> {
        self.newcomer.position()
    }

    /// Goes on from this position instead of the one in the URL, or from none: what was kept
    /// ([`ClusterBuilder::user_history`](crate::ClusterBuilder::user_history)) since then for the user, and for the rooms in which it
    /// was then and is again, comes first, in order and once. [`Socket::resumed`] says whether it is whole.
    ///
    /// A client that offers the subprotocol `resume.v1` is told its position with each message. It is given that protocol before
    /// those of the app, or where the app [names it among them](Self::protocols).
    pub fn since(mut self, position: Option<Position>) -> Self {
        self.newcomer.since(position);
        self
    }

    /// The subprotocols this handler speaks, best first, instead of those of
    /// [`ClusterBuilder::protocols`](crate::ClusterBuilder::protocols). The first that the client offers is chosen
    /// and echoed (RFC 6455, section 4.2.2); nothing else that the client offered is, so a token may
    /// be offered beside. An upgrade without a user never gets here: see `ClusterBuilder::protocols`.
    ///
    /// With a history there is one more, `resume.v1`, with which a client goes on where it was; one that offers it beside the
    /// app's own speaks that within it. So it is the first, unless the app says otherwise: where it is named here, that is its place.
    /// An app that tells several protocols apart by what was chosen names it last, and clients that offer one of those do not resume.
    ///
    /// ```
    /// # use axum::response::Response;
    /// # use axum_cluster::ClusterSocket;
    /// async fn ws(socket: ClusterSocket) -> Response {
    ///     let socket = socket.protocols(["chat.v2", "chat.v1", "resume.v1"]);
    ///     let speaks_v2 = socket.protocol() == Some("chat.v2");
    ///     socket.on_upgrade(async move |mut socket| {
    ///         let _ = socket.send(if speaks_v2 { "welcome" } else { "hello" }).await;
    ///     })
    /// }
    /// ```
    pub fn protocols<P: AsRef<str>>(mut self, known: impl IntoIterator<Item = P>) -> Self {
        let known: Vec<P> = known.into_iter().collect();
        let spoken = spoken(self.newcomer.node(), known.iter().map(AsRef::as_ref));
        self.handshake.choose_protocol(&self.offered, spoken);
        self
    }

    /// The subprotocol that was chosen.
    pub fn protocol(&self) -> Option<&str> {
        self.handshake.protocol()
    }

    /// Closes the socket with 4401 when the identity expires: a WebSocket outlives the request that
    /// was authenticated. Default: never. It ends when the system's clock says so, or when so much time has
    /// passed as was left at the upgrade, whichever is first: neither a machine that slept nor a corrected
    /// clock lets it live longer.
    pub fn expires_at(mut self, time: SystemTime) -> Self {
        self.newcomer.expires_at(time);
        self
    }

    /// Says what kind of device this is, for [`Audience::sockets`](crate::Audience::sockets) and
    /// [`Presence::described`](crate::Presence::described): anything
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
        self.newcomer.describe(description);
        self
    }

    /// Puts the socket into a room from its first moment: when the handler holds it, what is sent to the room from any
    /// node reaches it, as what is sent to its user does. Say it again for each room.
    ///
    /// The handler begins when the room is heard, at the latest after `publish_timeout`; what comes meanwhile waits in
    /// the outbox. In an outage of the bus it does not wait for that. A room whose id is empty or longer than 256 bytes
    /// is answered with 400 by [`on_upgrade`](Self::on_upgrade).
    ///
    /// ```
    /// # use axum::{extract::Path, response::Response};
    /// # use axum_cluster::ClusterSocket;
    /// async fn ws(Path(team): Path<String>, socket: ClusterSocket) -> Response {
    ///     let socket = socket.join(format!("team-{team}")).join("news");
    ///     socket.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
    /// }
    /// ```
    pub fn join(mut self, room: impl Into<RoomId>) -> Self {
        self.newcomer.join(room.into());
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
        let ready = match self.newcomer.ready() {
            Ok(ready) => ready,
            Err(refusal) => return *refusal,
        };
        let (node, mut reservation) = (ready.node, ready.reservation);
        reservation.agree(self.handshake.agreed());
        let is_told = self.handshake.protocol() == Some(RESUME);
        let holding = match is_told {
            true => Some(Telling::Told),
            false => ready.position.as_ref().map(|_| Telling::Untold),
        };
        let holding = holding.filter(|_| node.resumes());
        let (handler_end, driver_end, registration) =
            reservation.register(ready.expiry, ready.description, holding);
        let sender = handler_end.sender();
        let heard = node.local.begin_joins(&sender, &ready.rooms);
        let resumed = {
            let node = node.clone();
            async move {
                heard.await;
                node.resumed(&sender, holding, &ready.rooms, ready.position)
                    .await
            }
        };
        let span = span::of_socket(driver_end.id(), driver_end.user());
        let opening = Opening {
            socket: Socket::new(node.clone(), handler_end),
            upgrade: self.upgrade,
            driver_end,
            registration,
            span,
        };
        node.ground
            .home
            .tracker()
            .spawn(opening.run(node.clone(), resumed, handler));
        self.handshake.response()
    }
}

/// A registered socket whose client has no answer yet.
struct Opening {
    socket: Socket,
    upgrade: OnUpgrade,
    driver_end: DriverEnd,
    registration: Registration,
    span: Span,
}

impl Opening {
    /// Runs the handler beside the socket's task, when the client has its answer and the rooms are heard.
    async fn run<F, Fut>(self, node: Arc<Node>, resumed: impl Future<Output = Resumed>, handler: F)
    where
        F: FnOnce(Socket) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (driver_end, span, mut socket) = (self.driver_end, self.span, self.socket);
        let (opened, resumed) = join(opened(self.upgrade, &node), resumed).await;
        socket.came_back(resumed);
        let Some(opened) = opened else {
            driver_end.abandon(reason::NOT_OPENED);
            span.in_scope(|| span::record_end(&reason::NOT_OPENED));
            return;
        };
        let inbound = node.config.inbound;
        let driver = Driver::new(opened, driver_end, self.registration, inbound);
        let handler = || handler(socket);
        let task = span.in_scope(|| Together::begin(handler, driver));
        // A task of its own, which holds nothing of the handshake.
        spawn(node.ground.home.tracker(), span, task);
    }
}

/// Runs a socket's task in its span. Most apps enable none, and then it would be 40 bytes of each socket.
fn spawn(tasks: &TaskTracker, span: Span, task: impl Future<Output = ()> + Send + 'static) {
    if span.is_disabled() {
        tasks.spawn(task);
    } else {
        tasks.spawn(task.instrument(span));
    }
}

impl<S: Sync> FromRequestParts<S> for ClusterSocket {
    type Rejection = ClusterRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ClusterRejection> {
        let node = door::node_of(parts)?.clone();
        let admitted = Self::admit(&node, parts).await;
        admitted.map_err(|kind| ClusterRejection::noted(kind, DoorKind::Upgrade, &node))
    }
}

impl ClusterSocket {
    async fn admit(node: &Arc<Node>, parts: &mut Parts) -> Result<Self, RejectionKind> {
        let config = &node.config;
        door::check(node, parts)?;
        let mut handshake = HandshakeAnswer::check(parts).map_err(RejectionKind::Handshake)?;
        let protocols = config.protocols.iter().map(String::as_str);
        handshake.choose_protocol(&parts.headers, spoken(node, protocols));
        let upgrade = take_upgrade(parts)?;
        let user = match config.identify.user(&parts.extensions) {
            Ok(user) => user,
            Err(missing) => {
                let close = match &config.unauthenticated {
                    Unauthenticated::Reject => return Err(RejectionKind::Unauthenticated(missing)),
                    Unauthenticated::Close => reason::UNAUTHENTICATED,
                    Unauthenticated::CloseWith(close) => close.clone(),
                };
                let refusal = ClosingUpgrade {
                    node: node.clone(),
                    handshake,
                    upgrade,
                    close,
                };
                return Err(RejectionKind::Close(missing, Box::new(refusal)));
            }
        };
        handshake.agree(&parts.headers, config.deflating);
        Ok(Self {
            newcomer: Newcomer::of(node, user, door::position_in(&parts.uri)).await?,
            handshake,
            upgrade,
            offered: offered(&parts.headers),
        })
    }
}

/// The subprotocol of clients that are told positions.
pub(crate) const RESUME: &str = "resume.v1";

/// The subprotocols of a node, best first. That by which clients go on is no app's, so that it excludes none; a node
/// that keeps nothing does not speak it, whoever names it.
fn spoken<'a>(node: &Node, app: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut spoken: Vec<&str> = app.collect();
    match node.resumes() {
        true if !spoken.contains(&RESUME) => spoken.insert(0, RESUME),
        true => {}
        false => spoken.retain(|protocol| *protocol != RESUME),
    }
    spoken
}

fn take_upgrade(parts: &mut Parts) -> Result<OnUpgrade, RejectionKind> {
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    upgrade.ok_or_else(|| match parts.extensions.get() {
        Some(CameWithUpgrade) => RejectionKind::UpgradeTaken,
        None => RejectionKind::NoUpgrade,
    })
}

/// The subprotocols that the client offers.
fn offered(headers: &HeaderMap) -> HeaderMap {
    let mut offered = HeaderMap::new();
    for value in headers.get_all(SEC_WEBSOCKET_PROTOCOL) {
        let mut value = value.clone();
        // It may hold a token, which `Debug` must not show.
        value.set_sensitive(true);
        offered.append(SEC_WEBSOCKET_PROTOCOL, value);
    }
    offered
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
