//! The app: people talk in rooms, and a shop tells its customers of their orders.

use std::time::{Duration, SystemTime};

use axum::extract::{Path, Request};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::{Extension, Json, Router, routing::any, routing::post};
use axum_cluster::{Broadcaster, Close, Cluster, ClusterSocket, SendError, Socket, UserId};
use axum_extra::extract::CookieJar;
use futures::StreamExt;
use serde::{Deserialize, Serialize};

pub const SESSION: Duration = Duration::from_secs(3600);

/// What a page says.
#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Say {
    Join { room: String },
    Post { room: String, text: String },
}

/// What a page is told.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Told {
    Joined {
        room: String,
    },
    Posted {
        by: String,
        text: String,
    },
    Shipped {
        order: u32,
    },
    /// Something was missed.
    Reload,
}

/// Takes its cluster, so that a test can bring its own.
pub fn router(cluster: &Cluster) -> Router {
    Router::new()
        .route("/ws", any(ws))
        .route("/shipped/{user}", post(shipped))
        .route("/logout", post(log_out))
        .layer(middleware::from_fn(authenticate))
        .layer(cluster.layer())
}

/// A real one would verify it.
async fn authenticate(cookies: CookieJar, mut request: Request, next: Next) -> Response {
    if let Some(user) = cookies.get("user") {
        let user = UserId::from(user.value());
        request.extensions_mut().insert(user);
    }
    next.run(request).await
}

async fn ws(socket: ClusterSocket, cluster: Broadcaster) -> Response {
    let socket = socket.expires_at(SystemTime::now() + SESSION);
    socket.on_upgrade(async move |mut socket| {
        let mut gaps = socket.gaps();
        loop {
            let told = tokio::select! {
                said = socket.recv_json() => match said {
                    Some(Ok(said)) => act(&socket, said, &cluster).await,
                    Some(Err(bad)) => return socket.close(bad.close()).await,
                    None => return,
                },
                Some(_) = gaps.next() => Some(Told::Reload),
            };
            if let Some(told) = told {
                let _ = socket.send_json(&told).await;
            }
        }
    })
}

async fn act(socket: &Socket, said: Say, cluster: &Broadcaster) -> Option<Told> {
    match said {
        Say::Join { room } => match socket.join(&room).await {
            Ok(()) => Some(Told::Joined { room }),
            Err(_) => None,
        },
        Say::Post { room, text } => {
            let by = socket.user().to_string();
            let posted = Told::Posted { by, text };
            // Whoever is on this node has it in any case.
            let _ = cluster.to_room(room).send_json(&posted).await;
            None
        }
    }
}

async fn shipped(
    cluster: Broadcaster,
    Path(user): Path<String>,
    Json(order): Json<u32>,
) -> Result<(), SendError> {
    let shipped = Told::Shipped { order };
    cluster.to_user(user).send_json(&shipped).await.map(drop)
}

async fn log_out(
    cluster: Broadcaster,
    Extension(user): Extension<UserId>,
) -> Result<(), SendError> {
    let logged_out = Close::new(4001, "logged out");
    cluster.to_user(user).close(logged_out).await.map(drop)
}
