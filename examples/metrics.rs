//! Run with `cargo run --example metrics --features metrics`, then `curl localhost:3001/metrics`: a node whose numbers and
//! times Prometheus scrapes. Everybody at `/ws` is in one room. Settings: PORT (3001), REDIS_URL.

use axum::response::Response;
use axum::routing::{any, get};
use axum::{Extension, Router};
use axum_cluster::{Cluster, ClusterSocket, UserId};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};

/// Without buckets the exporter makes quantiles, which nobody can add up over nodes.
const SECONDS: [f64; 9] = [0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0];
const SOCKETS: [f64; 5] = [1.0, 10.0, 100.0, 1_000.0, 10_000.0];

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt::init();
    let setting = |name, default: &str| std::env::var(name).unwrap_or(default.into());
    let port: u16 = setting("PORT", "3001").parse()?;
    let redis_url = setting("REDIS_URL", "redis://127.0.0.1:6379");
    let prometheus = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_sockets".into()), &SOCKETS)?
        .install_recorder()?;
    let cluster = Cluster::builder().redis(redis_url).try_start()?;
    let app = Router::new()
        .route("/ws", any(ws))
        .layer(cluster.layer())
        .layer(Extension(UserId::from("anybody"))); // here goes your auth
    let metrics = get(move || async move {
        cluster.record_metrics(); // else they are up to 5 s old
        prometheus.render()
    });
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", port)).await?;
    Ok(axum::serve(listener, app.route("/metrics", metrics)).await?)
}

async fn ws(socket: ClusterSocket) -> Response {
    socket.join("lobby").on_upgrade(|mut socket| async move {
        let lobby = socket.broadcaster().to_room("lobby");
        while let Some(message) = socket.recv().await {
            let _ = lobby.clone().send(message).await;
        }
    })
}
