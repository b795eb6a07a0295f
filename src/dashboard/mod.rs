//! A page on which the whole cluster is watched.

mod live;
mod visit;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use axum_core::body::Body;
use axum_core::response::{IntoResponse, Response};
use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;
use http::{HeaderValue, Request, StatusCode};
use serde::Serialize;
use tower_service::Service;

use self::live::live;
use self::visit::{NoVisit, Visit};
use crate::audience::Audience;
use crate::broadcast::Broadcaster;
use crate::cluster::Cluster;
use crate::local::origin::is_of_same_origin;
use crate::model::close::Close;
use crate::model::code::CloseCode;
use crate::model::id::{NodeId, UserId};
use crate::model::roster::SocketInfo;
use crate::node::Node;

const PAGE: &str = include_str!("page.html");
/// The page, its script and its style, and nothing else from anywhere.
const POLICY: &str = "default-src 'none'; script-src 'sha256-yiUmQWLre16bblibzE7Yp6gtnh1+Jxb3SPOmpg68Z6M='; style-src 'sha256-yYJopAEsRb9UnkgW8bQFaxBrjPomCtt9t++QW9jg6jw='; img-src data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const CLOSED: Close = Close::from_static(CloseCode(4001), "closed by an operator");
/// Devices of a user that are shown: nobody looks through more.
const SHOWN: usize = 500;

/// A page on which the whole cluster is watched, live: made by [`Cluster::dashboard`], and mounted behind the app's own
/// auth.
///
/// It shows every node with its health and version, sockets, users, rooms and rates, how long its word takes through the
/// bus, and what goes wrong, as it happens; and it finds the sockets of a user on all nodes. With the feature `metrics`
/// there are the times of publishing, confirming, delivering and probing as well. It is one page without foreign assets.
///
/// **Who may open it is yours to say.** It shows user ids, rooms and descriptions, and asks nobody who he is: mount it behind
/// whatever knows your operators. It is a tower service of all that is below its path, so it is nested as one:
///
/// ```
/// use axum::extract::Request;
/// use axum::http::StatusCode;
/// use axum::middleware::{self, Next};
/// use axum::response::Response;
/// use axum::Router;
/// use axum_cluster::Cluster;
///
/// /// Stands for your own.
/// async fn operators_only(request: Request, next: Next) -> Result<Response, StatusCode> {
///     let authorization = request.headers().get("authorization");
///     match authorization.is_some_and(|it| it == "Basic b3BzOnNlY3JldA==") {
///         true => Ok(next.run(request).await),
///         false => Err(StatusCode::UNAUTHORIZED),
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let cluster = Cluster::builder().start();
/// let admin: Router = Router::new()
///     .nest_service("/admin/cluster", cluster.dashboard())
///     .layer(middleware::from_fn(operators_only));
/// # let _ = admin;
/// # }
/// ```
///
/// What it shows is from all nodes, whichever serves the page, and these need neither the feature nor a dashboard of their
/// own. While somebody looks, each node says how it does once a second to the node that serves the page, in about 1 KB;
/// while nobody does, nothing is said and nothing is kept, so that the charts begin when the page is opened. A page comes
/// again once a minute, so that your auth sees it anew. It is no socket of the cluster.
#[derive(Clone, Debug)]
#[must_use = "a dashboard is mounted by `Router::nest_service`, behind your auth"]
pub struct Dashboard {
    node: Arc<Node>,
    actions: bool,
    close: Close,
}

impl Cluster {
    /// A page on which the whole cluster is watched, for `Router::nest_service` behind your own auth. It changes nothing,
    /// unless [`allow_actions`](Dashboard::allow_actions) is called.
    pub fn dashboard(&self) -> Dashboard {
        Dashboard {
            node: self.broadcaster().node().clone(),
            actions: false,
            close: CLOSED,
        }
    }
}

impl Dashboard {
    /// Lets whoever sees the page close single sockets, and all of a user, on every node. Default: nobody can, and who tries
    /// gets 403.
    ///
    /// Each close is logged at info, with the [`UserId`] that your auth left in the request, if it did. Requests of
    /// another origin get 403, whatever [`allow_origin`](crate::ClusterBuilder::allow_origin) says. What is refused is counted in
    /// [`Stats::actions_refused`](crate::Stats::actions_refused), and logged at debug.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let cluster = axum_cluster::Cluster::builder().start();
    /// let dashboard = cluster.dashboard().allow_actions();
    /// # let _: axum::Router = axum::Router::new().nest_service("/admin/cluster", dashboard);
    /// # }
    /// ```
    pub fn allow_actions(self) -> Self {
        Self {
            actions: true,
            ..self
        }
    }

    /// What the sockets that are closed here are told. Default: 4001 "closed by an operator". The front end must know what to
    /// do with it; a user who may not come back has to be refused by your auth first. With a code that may not be sent
    /// ([`Close`]) every such action fails, and says so.
    pub fn close_with(self, close: Close) -> Self {
        Self { close, ..self }
    }

    async fn answer(self, parts: Parts) -> Response {
        let (method, uri) = (&parts.method, &parts.uri);
        match Visit::of(method, uri.path(), uri.query()) {
            Ok(Visit::Page) => page(),
            Ok(Visit::Live) => events(live(&self.node, self.actions)),
            Ok(Visit::Devices(user)) => self.devices(user).await,
            Ok(Visit::CloseUser(user)) => {
                let audience = self.broadcaster().to_user(user.clone());
                self.close(&parts, audience, &user).await
            }
            Ok(Visit::CloseSocket(socket)) => {
                let audience = self.broadcaster().to_socket(socket);
                self.close(&parts, audience, &socket).await
            }
            Err(no) => no.into_response(),
        }
    }

    async fn devices(&self, user: UserId) -> Response {
        let roster = match self.broadcaster().to_user(user).sockets().await {
            Ok(roster) => roster,
            Err(error) => return error.into_response(),
        };
        json(&Devices {
            sockets: &roster.sockets()[..roster.len().min(SHOWN)],
            total: roster.len(),
            missing: roster.missing(),
            complete: roster.is_complete(),
        })
    }

    async fn close(&self, parts: &Parts, audience: Audience, whom: &impl ToString) -> Response {
        if !self.actions {
            return self.refused("this dashboard allows no actions: `allow_actions` would");
        }
        if !is_of_same_origin(&parts.headers, &parts.uri) {
            return self.refused("a page of another origin, or no browser, asks");
        }
        let close = self.close.clone();
        let (node, whom) = (self.node.ground.node, whom.to_string());
        let by = self.node.config.identify.user(&parts.extensions).ok();
        let by = by.as_ref().map(UserId::as_str);
        tracing::info!(%node, by, whom, code = close.code.0, "a close is asked for at a dashboard");
        match audience.close(close).await {
            Ok(outcome) => json(&outcome),
            Err(error) => error.into_response(),
        }
    }

    fn refused(&self, reason: &'static str) -> Response {
        let ground = &self.node.ground;
        ground.counters.actions_refused.fetch_add(1, Relaxed);
        tracing::debug!(node = %ground.node, reason, "an action at a dashboard is refused with 403");
        (StatusCode::FORBIDDEN, reason).into_response()
    }

    fn broadcaster(&self) -> Broadcaster {
        Broadcaster::of(self.node.clone())
    }
}

/// The sockets of a user as the page is told, the oldest first.
#[derive(Debug, Serialize)]
struct Devices<'a> {
    sockets: &'a [SocketInfo],
    /// Of which these are the first.
    total: usize,
    missing: &'a [NodeId],
    complete: bool,
}

/// All that is below the path at which it is mounted.
impl<B> Service<Request<B>> for Dashboard {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (parts, _) = request.into_parts();
        self.clone().answer(parts).map(Ok).boxed()
    }
}

impl IntoResponse for NoVisit {
    fn into_response(self) -> Response {
        match self {
            Self::Unknown => StatusCode::NOT_FOUND.into_response(),
            Self::Method(allowed) => {
                (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, allowed)]).into_response()
            }
            Self::Query(wanted) => {
                let body = format!("the query must be {wanted}, percent-encoded");
                (StatusCode::BAD_REQUEST, body).into_response()
            }
        }
    }
}

fn page() -> Response {
    let mut response = of_type("text/html; charset=utf-8", PAGE);
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn events(events: Body) -> Response {
    let mut response = of_type("text/event-stream", events);
    // nginx would collect them.
    let no = HeaderValue::from_static("no");
    response.headers_mut().insert("x-accel-buffering", no);
    response
}

fn json(value: &impl Serialize) -> Response {
    let json = serde_json::to_string(value).expect("it is plain data");
    of_type("application/json", json)
}

/// Kept by nobody on the way, and taken for nothing else.
fn of_type(content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests;
