//! The Tower layer: puts the cluster into every request.

use std::task::{Context, Poll};

use http::Request;
use hyper::upgrade::OnUpgrade;
use tower_layer::Layer;
use tower_service::Service;

use crate::broadcast::Broadcaster;
use crate::cluster::Cluster;
#[cfg(feature = "redis")]
use crate::model::error::ConnectError;

/// Makes everything behind it part of the cluster: every request carries the [`Broadcaster`], and
/// [`ClusterSocket`](crate::ClusterSocket) can be extracted.
///
/// It fits any tower service over `http::Request<B>`. Its place relative to the auth middleware
/// does not matter, as long as both wrap the route. Clones share one node.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use axum::{Router, routing::post};
/// use axum_cluster::{Broadcaster, Cluster, SendError};
///
/// async fn greet(cluster: Broadcaster) -> Result<(), SendError> {
///     cluster.to_all().send("hello").await?;
///     Ok(())
/// }
///
/// let cluster = Cluster::builder().start(); // no Redis named: in memory
/// let app: Router = Router::new().route("/greet", post(greet)).layer(cluster.layer());
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is put around a service, as by `Router::layer`"]
pub struct ClusterLayer {
    cluster: Cluster,
    broadcaster: Broadcaster,
}

impl Cluster {
    /// The layer that puts this node into every request.
    pub fn layer(&self) -> ClusterLayer {
        ClusterLayer::of(self.clone())
    }
}

impl ClusterLayer {
    /// The short form of [`Cluster::builder()`](Cluster::builder)`.redis(url).start().layer()`. Connects
    /// in the background; until Redis is there, the node serves its own sockets.
    ///
    /// # Panics
    /// When the URL is malformed or unsupported ([`try_new`](Self::try_new) returns the error), or
    /// outside a tokio runtime.
    #[cfg(feature = "redis")]
    pub fn new(redis_url: impl AsRef<str>) -> Self {
        Cluster::builder().redis(redis_url).start().layer()
    }

    /// Like [`new`](Self::new), but returns what is wrong with the URL.
    ///
    /// # Errors
    /// A [`ConnectError`] of kind `Url` that names the part of the URL that is wrong.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[cfg(feature = "redis")]
    pub fn try_new(redis_url: impl AsRef<str>) -> Result<Self, ConnectError> {
        Ok(Cluster::builder().redis(redis_url).try_start()?.layer())
    }

    /// The node behind it: health, statistics, shutdown.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    pub(crate) fn of(cluster: Cluster) -> Self {
        let broadcaster = cluster.broadcaster();
        Self {
            cluster,
            broadcaster,
        }
    }
}

impl<S> Layer<S> for ClusterLayer {
    type Service = ClusterService<S>;

    fn layer(&self, inner: S) -> ClusterService<S> {
        ClusterService {
            inner,
            broadcaster: self.broadcaster.clone(),
        }
    }
}

/// What [`ClusterLayer`] makes of a service: the same response, error and future.
#[derive(Clone, Debug)]
pub struct ClusterService<S> {
    inner: S,
    broadcaster: Broadcaster,
}

impl<S> ClusterService<S> {
    /// The service behind it.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The service behind it.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The service behind it, without the cluster.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, B> Service<Request<B>> for ClusterService<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        let extensions = request.extensions_mut();
        extensions.insert(self.broadcaster.clone());
        if extensions.get::<OnUpgrade>().is_some() {
            extensions.insert(CameWithUpgrade);
        }
        self.inner.call(request)
    }
}

/// The request's connection can be upgraded, unless somebody behind the layer has done it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CameWithUpgrade;
