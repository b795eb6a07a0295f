//! Run with `cargo run -p examples --example echo`: every message comes back, and with `--features deflate` compressed to whom takes
//! that. The conformance suite (`tests/autobahn/run`) talks to it; PORT defaults to 9001.

use axum::response::Response;
use axum::{Extension, Router, routing::any};
use axum_cluster::{Cluster, ClusterSocket, UserId};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port: u16 = std::env::var("PORT").as_deref().unwrap_or("9001").parse()?;
    // The suite sends up to 16 MiB.
    let builder = Cluster::builder().max_message_size(16 << 20);
    #[cfg(feature = "deflate")]
    let builder = builder.compression(axum_cluster::Compression::default());
    let cluster = builder.start();
    let app = Router::new()
        .fallback(any(echo))
        .layer(cluster.layer())
        .layer(Extension(UserId::from("anybody")));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening on ws://127.0.0.1:{port}");
    Ok(axum::serve(listener, app).await?)
}

async fn echo(socket: ClusterSocket) -> Response {
    socket.on_upgrade(|mut socket| async move {
        while let Some(message) = socket.recv().await {
            if socket.send(message).await.is_err() {
                break;
            }
        }
    })
}
