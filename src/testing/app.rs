//! An app that is served in memory.

use std::convert::Infallible;
use std::fmt;
use std::panic::Location;
use std::time::Duration;

use axum_core::body::Body;
use axum_core::response::IntoResponse;
use http::Method;
use tower_service::Service;

use super::request::{Handshake, Request};
use super::server::Server;

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
pub struct App(Server);

impl App {
    /// Serves this router, or any other service that never fails.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<http::Request<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Response: IntoResponse,
        S::Future: Send,
    {
        Self(Server::new(service))
    }

    /// How long its requests and its clients wait for anything, by tokio's time. Default: 10 s, more than a busy machine
    /// needs and less than anybody waits for a test.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.0.deadline = deadline;
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
        Request::new(self.0.clone(), method, path.as_ref(), Location::caller())
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App")
            .field("deadline", &self.0.deadline)
            .finish_non_exhaustive()
    }
}
