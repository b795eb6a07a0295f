//! What a test asks of an app: requests, and handshakes.

use std::error::Error;
use std::fmt;
use std::future::IntoFuture;
use std::panic::Location;

use axum_core::body::Body;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use http::header::{
    CONNECTION, CONTENT_TYPE, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::client::Client;
use super::expect::in_time;
use super::server::Server;
use crate::extract::RESUME;
use crate::model::history::position::Position;
use crate::model::id::UserId;
use crate::ws::handshake::accept;

/// An HTTP request, made by `.await`, which gives its [`Response`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # use axum::{Router, routing::post};
/// # use axum_cluster::testing::App;
/// # let app = App::new(Router::new().route("/notify/{user}", post(|text: String| async { text })));
/// let response = app.post("/notify/alice").header("cookie", "token=bob").body("hello").await;
/// assert_eq!(response.text(), "hello");
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a request is made by `.await`"]
pub struct Request {
    server: Server,
    head: Parts,
    body: Body,
    /// What is there when the request arrives.
    extensions: Extensions,
    at: &'static Location<'static>,
}

impl Request {
    pub(super) fn new(
        server: Server,
        method: Method,
        path: &str,
        at: &'static Location<'static>,
    ) -> Self {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .body(());
        let Ok(request) = request else {
            panic!("{at}: {path:?} is no path: `/ws` would be one, without a host");
        };
        Self {
            server,
            head: request.into_parts().0,
            body: Body::empty(),
            extensions: Extensions::new(),
            at,
        }
    }

    /// Adds a header. `host` is `localhost` unless it is named here.
    ///
    /// # Panics
    /// When it can be no header.
    #[track_caller]
    pub fn header(mut self, name: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        let (name, value) = (name.as_ref(), value.as_ref());
        let header = (name.parse::<HeaderName>(), HeaderValue::from_str(value));
        let (Ok(name), Ok(value)) = header else {
            panic!("{name}: {value:?} can be no header");
        };
        if name == HOST {
            self.head.headers.remove(HOST);
        }
        self.head.headers.append(name, value);
        self
    }

    /// Puts a value into the request's extensions, before any layer of the app sees it: what an auth layer would leave
    /// there, for an app that has none, or whose layer lets such a request pass.
    pub fn extension<T: Clone + Send + Sync + 'static>(mut self, value: T) -> Self {
        self.extensions.insert(value);
        self
    }

    /// The request of this user: [`extension`](Self::extension) with a [`UserId`].
    pub fn user(self, user: impl Into<UserId>) -> Self {
        self.extension(user.into())
    }

    /// Sends this body. Default: none.
    pub fn body(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends this value as JSON, and its content type.
    ///
    /// # Panics
    /// When it cannot be written as JSON.
    #[track_caller]
    pub fn json<T: Serialize + ?Sized>(mut self, value: &T) -> Self {
        let json = serde_json::to_string(value).expect("the value can be written as JSON");
        let content = HeaderValue::from_static("application/json");
        self.head.headers.insert(CONTENT_TYPE, content);
        self.body(json)
    }

    async fn make(self) -> (Server, http::Response<Incoming>) {
        let request = http::Request::from_parts(self.head, self.body);
        let response = self.server.ask(request, self.extensions, self.at).await;
        (self.server, response)
    }
}

/// # Panics
/// When no answer comes within the deadline, or none at all, since the app panicked.
impl IntoFuture for Request {
    type Output = Response;
    type IntoFuture = BoxFuture<'static, Response>;

    fn into_future(self) -> Self::IntoFuture {
        let at = self.at;
        async move {
            let (server, response) = self.make().await;
            Response::read(&server, response, at).await
        }
        .boxed()
    }
}

/// The whole answer to a [`Request`].
#[derive(Debug, Clone)]
pub struct Response {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Response {
    async fn read(
        server: &Server,
        response: http::Response<Incoming>,
        at: &'static Location<'static>,
    ) -> Self {
        let (head, body) = response.into_parts();
        let mut pieces = Body::new(body).into_data_stream();
        let whole = async {
            let mut body = Vec::new();
            while let Some(piece) = pieces.next().await {
                match piece {
                    Ok(piece) => body.extend(piece),
                    Err(error) => panic!("{at}: the body of the answer broke off: {error}"),
                }
            }
            body
        };
        Self {
            status: head.status,
            headers: head.headers,
            body: in_time(at, server.deadline, "the end of the answer", whole)
                .await
                .into(),
        }
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Its headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Its body.
    pub fn bytes(&self) -> &Bytes {
        &self.body
    }

    /// Its body as text.
    ///
    /// # Panics
    /// When it is not UTF-8.
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }

    /// Its body, read as JSON.
    ///
    /// # Panics
    /// With status and body, when it is no JSON, or JSON of another shape.
    #[track_caller]
    pub fn json<T: DeserializeOwned>(&self) -> T {
        match serde_json::from_slice(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("{error}: {} {}", self.status, self.lossy()),
        }
    }

    fn lossy(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }
}

/// A WebSocket handshake, made by `.await`, which gives the [`Client`] or says why it was [`Refused`].
///
/// ```
/// # use axum::{Router, response::Response, routing::any};
/// # use axum_cluster::{Cluster, ClusterSocket};
/// # use axum_cluster::testing::App;
/// # async fn ws(socket: ClusterSocket) -> Response {
/// #     socket.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
/// # }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let cluster = Cluster::builder().start();
/// # let app = App::new(Router::new().route("/ws", any(ws)).layer(cluster.layer()));
/// let foreign = app.socket("/ws").user("alice").header("origin", "https://evil.example");
/// let refused = foreign.await.unwrap_err();
/// assert_eq!(refused.status(), 403);
/// assert!(refused.body().contains("origin"));
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a handshake is made by `.await`"]
pub struct Handshake {
    request: Request,
    /// The client keeps what `resume.v1` says for itself.
    resumes: bool,
}

impl Handshake {
    pub(super) fn new(mut request: Request) -> Self {
        let key = BASE64_STANDARD.encode(fastrand::u128(..).to_ne_bytes());
        let key = HeaderValue::from_str(&key).expect("base64 is ASCII");
        let headers = &mut request.head.headers;
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.insert(SEC_WEBSOCKET_KEY, key);
        Self {
            request,
            resumes: false,
        }
    }

    /// Adds a header, such as `cookie`, `origin` or `sec-websocket-protocol`. Default: no `origin`, as of a client that is
    /// no browser; `host` is `localhost`.
    ///
    /// # Panics
    /// When it can be no header.
    #[track_caller]
    pub fn header(mut self, name: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    /// Puts a value into the request's extensions: [`Request::extension`].
    pub fn extension<T: Clone + Send + Sync + 'static>(mut self, value: T) -> Self {
        self.request = self.request.extension(value);
        self
    }

    /// The socket of this user: [`extension`](Self::extension) with a [`UserId`].
    pub fn user(self, user: impl Into<UserId>) -> Self {
        self.extension(user.into())
    }

    /// The socket of a page that may come back: it offers `resume.v1`, and its [`Client::position`] says where it is.
    /// What that protocol says the client keeps for itself, so that the test reads what the app sent.
    pub fn resumes(mut self) -> Self {
        self.resumes = true;
        self
    }

    /// The socket of a page that comes back, to this node or another, and gets what it missed since then. It
    /// [resumes](Self::resumes), and its position is the `since` of its query.
    pub fn since(mut self, position: Position) -> Self {
        let uri = &mut self.request.head.uri;
        let separator = if uri.query().is_some() { '&' } else { '?' };
        let since = format!("{uri}{separator}since={position}");
        *uri = since.parse().expect("a position may stand in a URL");
        self.resumes()
    }
}

/// # Panics
/// When no answer comes within the deadline, or none at all, since the app panicked; and when the answer is no
/// handshake's, or the server does not upgrade.
impl IntoFuture for Handshake {
    type Output = Result<Client, Refused>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self {
            mut request,
            resumes,
        } = self;
        let at = request.at;
        if resumes {
            let resume = HeaderValue::from_static(RESUME);
            request.head.headers.append(SEC_WEBSOCKET_PROTOCOL, resume);
        }
        async move {
            let accepted = accept(&request.head.headers);
            let (server, response) = request.make().await;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                return Err(Refused(Response::read(&server, response, at).await));
            }
            let headers = response.headers().clone();
            assert!(
                headers.get(SEC_WEBSOCKET_ACCEPT) == accepted.as_ref(),
                "{at}: the app answered another handshake: `Sec-WebSocket-Accept` is wrong"
            );
            let upgrading = hyper::upgrade::on(response);
            match in_time(at, server.deadline, "the upgrade", upgrading).await {
                Ok(upgraded) => {
                    let protocol = headers.get(SEC_WEBSOCKET_PROTOCOL);
                    let is_told = resumes && protocol.is_some_and(|it| it == RESUME);
                    Ok(Client::new(upgraded, headers, is_told, server.deadline))
                }
                Err(error) => panic!("{at}: the app does not upgrade: {error}"),
            }
        }
        .boxed()
    }
}

/// A handshake was answered, and not with an upgrade. Its text has status and body, so that `unwrap()` and `?` show them.
#[derive(Clone)]
pub struct Refused(Response);

impl Refused {
    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.0.status()
    }

    /// Its headers.
    pub fn headers(&self) -> &HeaderMap {
        self.0.headers()
    }

    /// Its body.
    ///
    /// # Panics
    /// When it is not UTF-8.
    #[track_caller]
    pub fn body(&self) -> &str {
        self.0.text()
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (status, body) = (self.status(), self.0.lossy());
        write!(f, "the handshake was refused with {status}: {body}")
    }
}

impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Refused");
        shown.field("status", &self.status());
        shown.field("body", &self.0.lossy()).finish()
    }
}

impl Error for Refused {}
