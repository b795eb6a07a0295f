//! Serves each request on a connection of its own, over a pipe.

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
use http::Extensions;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{DuplexStream, duplex};
use tower_service::Service;

use super::expect::in_time;

#[derive(Clone)]
pub(super) struct Server {
    answer: Arc<AnswerFn>,
    pub(super) deadline: Duration,
}

type AnswerFn = dyn Fn(http::Request<Body>) -> BoxFuture<'static, Response> + Send + Sync;

impl Server {
    pub(super) fn new<S>(service: S) -> Self
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

    fn serve(&self, stream: DuplexStream, extensions: Extensions) {
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

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

const DEADLINE: Duration = Duration::from_secs(10);
/// What a kernel would hold for a client that does not read.
const PIPE: usize = 64 * 1024;
