//! Run with `cargo run --example kubernetes`: a node with probes, metrics, and a drain on SIGTERM.
//! docs/operating.md has the manifest. Settings: PORT (3001), REDIS_URL, DRAIN_SECONDS (20).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{any, get};
use axum::{Extension, Router};
use axum_cluster::{Cluster, ClusterSocket, Health, StatKind, UserId};
use futures::StreamExt;
use tokio::signal::unix::{SignalKind, signal};

/// The cluster, and whether the bus has been up at least once.
type Node = (Cluster, Arc<AtomicBool>);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt::init();
    let setting = |name, default: &str| std::env::var(name).unwrap_or(default.into());
    let port: u16 = setting("PORT", "3001").parse()?;
    let window = Duration::from_secs(setting("DRAIN_SECONDS", "20").parse()?);
    let redis_url = setting("REDIS_URL", "redis://127.0.0.1:6379");
    let cluster = Cluster::builder().redis(redis_url).try_start()?;
    let connected = Arc::new(AtomicBool::new(false));
    tokio::spawn(watch(cluster.clone(), connected.clone()));

    let probes = Router::new()
        .route("/live", get(StatusCode::OK))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state((cluster.clone(), connected));
    let app = Router::new()
        .route("/ws", any(ws))
        .layer(cluster.layer())
        .layer(Extension(UserId::from("anybody"))); // here goes your auth
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", port)).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    // The server goes on answering while the sockets are closed, /ready with 503.
    let drained = async move {
        terminate.recv().await;
        cluster.shutdown(window).await;
    };
    let server = axum::serve(listener, app.merge(probes));
    Ok(server.with_graceful_shutdown(drained).await?)
}

async fn watch(cluster: Cluster, connected: Arc<AtomicBool>) {
    let mut changes = cluster.health_changes();
    drop(cluster);
    while let Some(health) = changes.next().await {
        connected.fetch_or(health == Health::Up, Relaxed);
    }
}

/// A degraded node still serves its own sockets, and an outage of Redis is no reason to take all nodes
/// out of service at once: it stays ready. One that never was up mostly has a wrong URL or password:
/// not ready, so a rollout stops there. /live asks nobody: no restart can repair Redis.
async fn ready(State((cluster, connected)): State<Node>) -> Result<String, (StatusCode, String)> {
    let health = cluster.health();
    let ready = match health {
        Health::Up => true,
        Health::Degraded { .. } => connected.load(Relaxed),
        _ => false,
    };
    match ready {
        true => Ok(health.to_string()),
        false => Err((StatusCode::SERVICE_UNAVAILABLE, health.to_string())),
    }
}

/// The node's numbers in the text format of Prometheus.
async fn metrics(State((cluster, _)): State<Node>) -> String {
    let up = u64::from(cluster.health() == Health::Up);
    let mut text = format!("# TYPE cluster_up gauge\ncluster_up {up}\n");
    for (name, kind, value) in cluster.stats().iter() {
        let (name, kind) = match kind {
            StatKind::Counter => (format!("{name}_total"), "counter"),
            _ => (name.to_owned(), "gauge"),
        };
        text += &format!("# TYPE cluster_{name} {kind}\ncluster_{name} {value}\n");
    }
    text
}

async fn ws(socket: ClusterSocket) -> Response {
    socket.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
}
