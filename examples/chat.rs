//! Run with `cargo run --example chat`, open both addresses it prints, and talk from one to the other:
//! two nodes in one process. With REDIS_URL it is one node on PORT; two terminals make the cluster.

use axum::response::{Html, Response};
use axum::{Extension, Router, extract::Request, middleware, routing};
use axum_cluster::{Audience, Backend, Broadcaster, Cluster, ClusterSocket, UserId};
use axum_extra::extract::cookie::{Cookie, CookieJar, SameSite};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Duration, sleep};

/// What a page says. Who said it and at which node is added here, never believed.
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
        .route("/", routing::get(Html(include_str!("chat.html"))))
        .route("/login", routing::post(login))
        .route("/ws", routing::any(ws))
        .layer(cluster.layer())
        .layer(middleware::map_request(identify))
        .layer(Extension(port));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("http://127.0.0.1:{port}");
    let stop = async move {
        let _ = tokio::signal::ctrl_c().await;
        cluster.shutdown(Duration::from_millis(500)).await;
    };
    let server = axum::serve(listener, app);
    server.with_graceful_shutdown(stop).await
}

/// Cookies do not know ports, so every node names its own: two windows can be two people.
async fn login(port: Extension<u16>, jar: CookieJar, name: String) -> CookieJar {
    let cookie = Cookie::build((format!("name-{}", *port), name.trim().to_owned()));
    jar.add(cookie.path("/").http_only(true).same_site(SameSite::Lax))
}

async fn identify(port: Extension<u16>, jar: CookieJar, mut request: Request) -> Request {
    let name = jar.get(&format!("name-{}", *port)).map(Cookie::value);
    if let Some(Ok(name)) = name.map(UserId::try_new) {
        request.extensions_mut().insert(name);
    }
    request
}

async fn ws(socket: ClusterSocket, port: Extension<u16>, cluster: Broadcaster) -> Response {
    socket.on_upgrade(async move |mut socket| {
        let (id, me) = (socket.id(), (socket.user().to_string(), *port));
        tell(cluster.to_socket(id), &me, json!({ "type": "welcome" })).await;
        // Every page answers with `here`, so a newcomer learns who is online.
        tell(cluster.to_all(), &me, json!({ "type": "joined" })).await;
        while let Some(message) = socket.recv().await
            && let Ok(say) = serde_json::from_slice(message.as_bytes())
        {
            match say {
                Say::Direct { ref to, .. } => tell(cluster.to_users([to, &me.0]), &me, say).await,
                Say::Room { ref room, .. } => tell(cluster.to_room(room), &me, say).await,
                Say::Here { ref to } => tell(cluster.to_user(to), &me, say).await,
                Say::Join { room } => drop(socket.join(room).await),
                Say::Leave { room } => socket.leave(room),
            }
        }
        tokio::spawn(async move {
            sleep(Duration::from_secs(3)).await;
            if let Ok(false) = cluster.is_online(&me.0).await {
                tell(cluster.to_all(), &me, json!({ "type": "left" })).await;
            }
        });
    })
}

async fn tell(audience: Audience, (user, node): &(String, u16), say: impl Serialize) {
    let mut message = json!(say);
    message["user"] = json!(user);
    message["node"] = json!(node);
    if let Err(error) = audience.send_json(&message).await {
        eprintln!("{error}");
    }
}
