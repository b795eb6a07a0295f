//! Run with `cargo run --example chat`, open both addresses it prints, and talk from one to the other:
//! two nodes in one process. With REDIS_URL it is one node on PORT; two terminals make the cluster.

use std::time::Duration;

use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::{Extension, Form, Router, routing::any, routing::get, routing::post};
use axum_cluster::{Backend, Broadcaster, Cluster, ClusterSocket, Socket, UserId};
use axum_extra::extract::cookie::{Cookie, CookieJar, SameSite};
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

/// What a page says.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Say {
    Direct { to: String, text: String },
    Room { room: String, text: String },
    Join { room: String },
    Leave { room: String },
    Here { to: String },
}

/// What a page hears.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Hear<'a> {
    Welcome {
        name: &'a str,
        port: u16,
    },
    Direct {
        from: &'a str,
        to: &'a str,
        text: &'a str,
    },
    Room {
        room: &'a str,
        from: &'a str,
        text: &'a str,
    },
    /// Somebody came; whoever is there answers with `Here`, so the newcomer learns who is online.
    Joined {
        user: &'a str,
    },
    Here {
        user: &'a str,
    },
    Left {
        user: &'a str,
    },
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port: u16 = std::env::var("PORT").as_deref().unwrap_or("3001").parse()?;
    let (backend, ports) = match std::env::var("REDIS_URL") {
        Ok(url) => (Backend::redis(url)?, vec![port]),
        Err(_) => (Backend::memory(), vec![port, port + 1]),
    };
    try_join_all(ports.into_iter().map(|port| serve(backend.clone(), port))).await?;
    Ok(())
}

async fn serve(backend: Backend, port: u16) -> std::io::Result<()> {
    let cluster = Cluster::builder()
        .namespace("chat")
        .backend(backend)
        .start();
    let app = Router::new()
        .route("/", get(Html(include_str!("chat.html"))))
        .route("/login", post(login))
        .route("/ws", any(ws))
        .layer(cluster.layer())
        .layer(middleware::from_fn(authenticate))
        .layer(Extension(port));
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    println!("http://127.0.0.1:{port}");
    axum::serve(listener, app)
        .with_graceful_shutdown(async move {
            let _ = tokio::signal::ctrl_c().await;
            cluster.shutdown(Duration::from_millis(500)).await;
        })
        .await
}

#[derive(Deserialize)]
struct Login {
    name: String,
}

/// Cookies do not know ports, so each node has its own: two windows can be two people.
async fn login(
    Extension(port): Extension<u16>,
    jar: CookieJar,
    Form(login): Form<Login>,
) -> Response {
    let cookie = Cookie::build((format!("name-{port}"), login.name))
        .path("/")
        .http_only(true);
    (jar.add(cookie.same_site(SameSite::Lax)), Redirect::to("/")).into_response()
}

async fn authenticate(
    Extension(port): Extension<u16>,
    jar: CookieJar,
    mut request: Request,
    next: Next,
) -> Response {
    if let Some(name) = jar.get(&format!("name-{port}"))
        && let Ok(name) = UserId::try_new(name.value())
    {
        request.extensions_mut().insert(name);
    }
    next.run(request).await
}

async fn ws(
    socket: ClusterSocket,
    Extension(port): Extension<u16>,
    cluster: Broadcaster,
) -> Response {
    socket.on_upgrade(move |mut socket| async move {
        let name = socket.user().to_string();
        hear(
            cluster.to_socket(socket.id()),
            Hear::Welcome { name: &name, port },
        )
        .await;
        hear(
            cluster.to_all().except(socket.id()),
            Hear::Joined { user: &name },
        )
        .await;
        while let Some(message) = socket.recv().await {
            if let Ok(say) = serde_json::from_slice(message.as_bytes()) {
                obey(say, &name, &socket, &cluster).await;
            }
        }
        drop(socket);
        // Longer than the linger: a reload is no good-bye.
        tokio::time::sleep(Duration::from_secs(3)).await;
        if !cluster.is_online(&name).await.unwrap_or(true) {
            hear(cluster.to_all(), Hear::Left { user: &name }).await;
        }
    })
}

async fn obey(say: Say, name: &str, socket: &Socket, cluster: &Broadcaster) {
    match say {
        Say::Direct { to, text } => {
            let message = Hear::Direct {
                from: name,
                to: &to,
                text: &text,
            };
            hear(cluster.to_users([to.as_str(), name]), message).await;
        }
        Say::Room { room, text } => {
            hear(
                cluster.to_room(&room),
                Hear::Room {
                    room: &room,
                    from: name,
                    text: &text,
                },
            )
            .await;
        }
        Say::Join { room } => drop(socket.join(room).await),
        Say::Leave { room } => socket.leave(room),
        Say::Here { to } => hear(cluster.to_user(to), Hear::Here { user: name }).await,
    }
}

/// A chat goes on when a node is cut off: what failed is printed, not fatal.
async fn hear(audience: axum_cluster::Audience, message: Hear<'_>) {
    if let Err(error) = audience.send_json(&message).await {
        eprintln!("{error}");
    }
}
