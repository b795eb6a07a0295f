//! Run with `cargo run -p examples --example resync`, and `PORT` and `REDIS_URL` if you like. Connect with any WebSocket
//! client to `/{user}`, then stop Redis for a while: afterwards the client is told that it may have missed
//! something, and since when.

use std::time::Duration;

use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::{Router, routing::any};
use axum_cluster::{Cluster, ClusterSocket, Message, UserId};
use futures::StreamExt;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".into());
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".into());
    // Shorter than the defaults, to see it happen soon.
    let second = Duration::from_secs(1);
    let cluster = Cluster::builder()
        .redis(url)
        .probe_interval(second)
        .ping_interval(second)
        .pong_timeout(2 * second)
        .try_start()?;
    let app = Router::new()
        .route("/{user}", any(ws))
        .layer(cluster.layer())
        .layer(middleware::from_fn(user_of_path));
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("ws://127.0.0.1:{port}/alice");
    axum::serve(listener, app).await?;
    Ok(())
}

async fn ws(socket: ClusterSocket) -> Response {
    socket.on_upgrade(|mut socket| async move {
        let mut gaps = socket.gaps();
        loop {
            let answer = tokio::select! {
                message = socket.recv() => match message {
                    Some(message) => message,
                    None => break,
                },
                // A real app would send what the user lacks, from its database.
                Some(gap) = gaps.next() => {
                    let since = gap.from.duration_since(std::time::UNIX_EPOCH);
                    let since = since.unwrap_or_default().as_secs();
                    Message::from(format!(r#"{{"resync": {{"since": {since}}}}}"#))
                }
            };
            if socket.send(answer).await.is_err() {
                break;
            }
        }
    })
}

/// Stands for authentication.
async fn user_of_path(mut request: Request, next: Next) -> Response {
    let user = request.uri().path().trim_start_matches('/').to_owned();
    request.extensions_mut().insert(UserId::from(user));
    next.run(request).await
}
