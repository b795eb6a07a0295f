//! A little app with its tests, as its authors would write them (`app`, `suite`), and what the kit itself promises.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod app;
#[cfg(feature = "dashboard")]
mod dashboard;
mod faults;
mod guide;
mod inbound;
mod promises;
mod protocols;
mod resume;
mod subscriptions;
mod suite;
mod typed;

use axum::response::Response;
use axum::{Router, routing::any};
use axum_cluster::testing::App;
use axum_cluster::{Cluster, ClusterBuilder, ClusterSocket, Socket};

/// An app of one handler.
fn app_of<F, Fut>(cluster: &Cluster, handler: F) -> App
where
    F: FnOnce(Socket) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let ws = async move |socket: ClusterSocket| -> Response { socket.on_upgrade(handler) };
    App::new(Router::new().route("/ws", any(ws)).layer(cluster.layer()))
}

/// An app that echoes, and its node.
fn echo(builder: ClusterBuilder) -> (App, Cluster) {
    let cluster = builder.start();
    let app = app_of(&cluster, |mut socket| async move {
        while let Some(message) = socket.recv().await {
            let _ = socket.send(message).await;
        }
    });
    (app, cluster)
}
