//! An app that is served in memory.

use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use axum_core::body::Body;
use axum_core::response::{IntoResponse, Response};
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Extensions, Method};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::duplex;
use tower_service::Service;

use super::expect::in_time;
use super::request::{Handshake, Request};

/// An app in memory: each request and each socket is a connection of its own to hyper's server, as
/// `axum::serve` has it, but for the port. Cheap to clone.
///
/// It does not own the app's [`Cluster`](crate::Cluster): keep that for its numbers, its health and
/// [`shutdown`](crate::Cluster::shutdown).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use axum::{Router, routing::get};
/// use axum_cluster::testing::App;
///
/// let app = App::new(Router::new().route("/", get("hello")));
/// let response = app.get("/").await;
/// assert_eq!((response.status().as_u16(), response.text()), (200, "hello"));
/// # }
/// ```
#[derive(Clone)]
pub struct App {
    answer: Arc<Answer>,
    deadline: Duration,
}

type Answer = dyn Fn(http::Request<Body>) -> BoxFuture<'static, Response> + Send + Sync;

impl App {
    /// Serves this router, or any other service that never fails.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<http::Request<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Response: IntoResponse,
        S::Future: Send,
    {
        let answer = move |request| {
            let mut service = service.clone();
            async move {
                let Ok(()) = poll_fn(|cx| service.poll_ready(cx)).await;
                let Ok(response) = service.call(request).await;
                response.into_response()
            }
            .boxed()
        };
        Self {
            answer: Arc::new(answer),
            deadline: DEADLINE,
        }
    }

    /// How long its requests and its clients wait for anything, by tokio's time. Default: 10 s, more than a busy machine
    /// needs and less than anybody waits for a test.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// A WebSocket handshake at this path, which is made by `.await`.
    ///
    /// # Panics
    /// When it is no path.
    #[track_caller]
    pub fn socket(&self, path: impl AsRef<str>) -> Handshake {
        Handshake::new(self.request(Method::GET, path))
    }

    /// A GET request for this path, which is made by `.await`.
    ///
    /// # Panics
    /// When it is no path.
    #[track_caller]
    pub fn get(&self, path: impl AsRef<str>) -> Request {
        self.request(Method::GET, path)
    }

    /// A POST request for this path, which is made by `.await`.
    ///
    /// # Panics
    /// When it is no path.
    #[track_caller]
    pub fn post(&self, path: impl AsRef<str>) -> Request {
        self.request(Method::POST, path)
    }

    /// A request of any method for this path, which is made by `.await`.
    ///
    /// # Panics
    /// When it is no path.
    #[track_caller]
    pub fn request(&self, method: Method, path: impl AsRef<str>) -> Request {
        Request::new(self.clone(), method, path.as_ref(), Location::caller())
    }

    pub(super) fn patience(&self) -> Duration {
        self.deadline
    }

    /// Makes a request on a connection of its own; what is in `extensions` is not sent, but there when it arrives.
    pub(super) async fn ask(
        &self,
        request: http::Request<Body>,
        extensions: Extensions,
        at: &'static Location<'static>,
    ) -> http::Response<Incoming> {
        let what = format!("the answer to {} {}", request.method(), request.uri());
        let (ours, theirs) = duplex(PIPE);
        self.serve(theirs, extensions);
        let asking = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(ours)).await?;
            tokio::spawn(connection.with_upgrades());
            sender.send_request(request).await
        };
        match in_time(at, self.deadline, &what, asking).await {
            Ok(response) => response,
            Err(error) => panic!("{at}: {what} did not come, did the app panic? ({error})"),
        }
    }

    fn serve(&self, stream: tokio::io::DuplexStream, extensions: Extensions) {
        let answer = self.answer.clone();
        let service = service_fn(move |request: http::Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().extend(extensions.clone());
            answer(request).map(Ok::<_, Infallible>)
        });
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            let serving = server.serve_connection_with_upgrades(TokioIo::new(stream), service);
            // What goes wrong here the client sees as well.
            let _ = serving.await;
        });
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

const DEADLINE: Duration = Duration::from_secs(10);
/// What a kernel would hold for a client that does not read.
const PIPE: usize = 64 * 1024;
