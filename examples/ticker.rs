//! Run with `PORT=3001 cargo run --example ticker`, and once more with another PORT: with REDIS_URL
//! (default `redis://127.0.0.1:6379`) both are one cluster. A client with `Cookie: token=user1` at
//! either port hears the ticks of both.

use std::time::{Duration, SystemTime};

use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::{Router, routing::any};
use axum_cluster::{Broadcaster, Close, Cluster, ClusterSocket, Unauthenticated, UserId};
use axum_extra::extract::CookieJar;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt::init();
    let port: u16 = std::env::var("PORT").as_deref().unwrap_or("3001").parse()?;
    let redis_url = std::env::var("REDIS_URL").unwrap_or("redis://127.0.0.1:6379".into());
    let cluster = Cluster::builder()
        .redis(redis_url)
        .unauthenticated(Unauthenticated::CloseWith(Close::new(
            Close::UNAUTHENTICATED,
            "set JWT cookie to authenticate",
        )))
        .try_start()?;

    tokio::spawn(tick(cluster.broadcaster(), port));

    let app = Router::new()
        .route("/", any(ws))
        .route("/ws", any(ws))
        .layer(cluster.layer())
        .layer(middleware::from_fn(authenticate));
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening on ws://127.0.0.1:{port}/ws");
    axum::serve(listener, app)
        .with_graceful_shutdown(async move {
            let _ = tokio::signal::ctrl_c().await;
            cluster.shutdown(Duration::from_secs(1)).await;
        })
        .await?;
    Ok(())
}

/// The token is the user id, as in the tutorial; a real app verifies it (see the `jwt` example).
async fn authenticate(cookies: CookieJar, mut request: Request, next: Next) -> Response {
    if let Some(token) = cookies
        .get("token")
        .filter(|token| !token.value().is_empty())
    {
        request.extensions_mut().insert(UserId::from(token.value()));
    }
    next.run(request).await
}

async fn ws(socket: ClusterSocket) -> Response {
    socket.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
}

async fn tick(broadcaster: Broadcaster, port: u16) {
    let mut every = tokio::time::interval(Duration::from_secs(3));
    loop {
        every.tick().await;
        let now = humantime::format_rfc3339_seconds(SystemTime::now());
        let tick = format!("{now} | from server on port {port}");
        if let Err(error) = broadcaster.to_user("user1").send(tick).await {
            tracing::warn!(%error, "this tick reached only this node");
        }
    }
}
