//! Run with `cargo run --example chat`, open both addresses it prints, and talk from one to the other:
//! two nodes in one process. With REDIS_URL it is one node on PORT; two terminals make the cluster.

use std::time::Duration;

use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::{Html, Response};
use axum::{Extension, Router, routing::any, routing::get, routing::post};
use axum_cluster::{Audience, Backend, Broadcaster, Cluster, ClusterSocket, UserId};
use axum_extra::extract::cookie::{Cookie, CookieJar, SameSite};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// What a page says. It is passed on with the speaker's name, which is never taken from the page.
#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Say {
    Direct { to: String, text: String },
    Room { room: String, text: String },
    Join { room: String },
    Leave { room: String },
    Here { to: String },
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port: u16 = std::env::var("PORT").as_deref().unwrap_or("3001").parse()?;
    if let Ok(url) = std::env::var("REDIS_URL") {
        return Ok(serve(Backend::redis(url)?, port).await?);
    }
    let hub = Backend::memory();
    tokio::try_join!(serve(hub.clone(), port), serve(hub, port + 1))?;
    Ok(())
}

async fn serve(backend: Backend, port: u16) -> std::io::Result<()> {
    let cluster = Cluster::builder().backend(backend).start();
    let app = Router::new()
        .route("/", get(Html(include_str!("chat.html"))))
        .route("/login", post(login))
        .route("/ws", any(ws))
        .layer(cluster.layer())
        .layer(from_fn(auth))
        .layer(Extension(port));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("http://127.0.0.1:{port}");
    let stop = async move {
        let _ = tokio::signal::ctrl_c().await;
        cluster.shutdown(Duration::from_millis(500)).await;
    };
    axum::serve(listener, app)
        .with_graceful_shutdown(stop)
        .await
}

/// Cookies do not know ports, so every node names its own: two windows can be two people.
async fn login(port: Extension<u16>, jar: CookieJar, name: String) -> CookieJar {
    let cookie = Cookie::build((format!("name-{}", port.0), name.trim().to_owned()));
    let cookie = cookie.path("/").http_only(true).same_site(SameSite::Lax);
    jar.add(cookie)
}

async fn auth(port: Extension<u16>, jar: CookieJar, mut request: Request, next: Next) -> Response {
    let name = jar.get(&format!("name-{}", port.0)).map(Cookie::value);
    if let Some(Ok(name)) = name.map(UserId::try_new) {
        request.extensions_mut().insert(name);
    }
    next.run(request).await
}

async fn ws(socket: ClusterSocket, port: Extension<u16>, cluster: Broadcaster) -> Response {
    socket.on_upgrade(async move |mut socket| {
        let (id, me) = (socket.id(), (socket.user().clone(), port.0));
        tell(cluster.to_socket(id), &me, json!({ "type": "welcome" })).await;
        // Whoever hears it answers with `here`, so a newcomer learns who is online.
        tell(
            cluster.to_all().except(id),
            &me,
            json!({ "type": "joined" }),
        )
        .await;
        while let Some(message) = socket.recv().await {
            let Ok(say) = serde_json::from_slice(message.as_bytes()) else {
                continue;
            };
            let audience = match &say {
                Say::Direct { to, .. } => cluster.to_user(to).to_user(&me.0),
                Say::Here { to } => cluster.to_user(to),
                Say::Room { room, .. } | Say::Join { room } | Say::Leave { room } => {
                    cluster.to_room(room)
                }
            };
            match &say {
                Say::Join { room } => drop(socket.join(room).await),
                Say::Leave { room } => socket.leave(room),
                _ => {}
            }
            tell(audience, &me, say).await;
        }
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            if !cluster.is_online(&me.0).await.unwrap_or(true) {
                tell(cluster.to_all(), &me, json!({ "type": "left" })).await;
            }
        });
    })
}

async fn tell(audience: Audience, (name, port): &(UserId, u16), say: impl Serialize) {
    let mut message = json!(say);
    message["user"] = json!(name.as_str());
    message["node"] = json!(port);
    if let Err(error) = audience.send_json(&message).await {
        eprintln!("{error}");
    }
}
