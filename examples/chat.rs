//! Run with `cargo run -p examples --example chat`, open both addresses it prints, and talk from one to the other:
//! two nodes in one process. With REDIS_URL it is one node on PORT; two terminals make the cluster.

use std::collections::HashMap;

use axum::http::{HeaderMap, header::CONTENT_TYPE, header::COOKIE, header::SET_COOKIE};
use axum::response::{AppendHeaders, Html, IntoResponse, Response};
use axum::{Extension, Router, extract::Request, middleware, routing};
use axum_cluster::{
    Backend, Broadcaster, Close, Cluster, ClusterSocket, Presence, PresenceChange, Socket, UserId,
};
use futures::StreamExt;
use futures::stream::select_all;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What a page says. Who said it and at which node is added here, never believed.
#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Say {
    Direct { to: String, text: String },
    Room { room: String, text: String },
    Join { room: String },
    Leave { room: String },
    Devices,
    SignOut,
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
    let script = (
        [(CONTENT_TYPE, "text/javascript")],
        include_str!("client/cluster.js"),
    );
    let app = Router::new()
        .route("/", routing::get(Html(include_str!("chat.html"))))
        .route("/cluster.js", routing::get(script))
        .route("/login", routing::post(login))
        .route("/ws", routing::any(ws))
        .layer(cluster.layer())
        .layer(middleware::map_request(identify))
        .layer(Extension(port));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("http://127.0.0.1:{port}");
    let stop = async move {
        let _ = tokio::signal::ctrl_c().await;
        cluster
            .shutdown(std::time::Duration::from_millis(500))
            .await;
    };
    let server = axum::serve(listener, app);
    server.with_graceful_shutdown(stop).await
}

/// Cookies do not know ports, so every node names its own: two windows can be two people.
async fn login(port: Extension<u16>, name: String) -> impl IntoResponse {
    let name = utf8_percent_encode(name.trim(), NON_ALPHANUMERIC);
    let cookie = format!("name-{}={name}; Path=/; HttpOnly; SameSite=Lax", *port);
    AppendHeaders([(SET_COOKIE, cookie)])
}

async fn identify(port: Extension<u16>, headers: HeaderMap, mut request: Request) -> Request {
    let ours = format!("name-{}=", *port);
    let cookies = headers.get_all(COOKIE).iter();
    let mut cookies = cookies.flat_map(|line| line.to_str().unwrap_or_default().split("; "));
    let name = cookies.find_map(|cookie| cookie.strip_prefix(&*ours));
    let name = name.and_then(|name| percent_decode_str(name).decode_utf8().ok());
    if let Some(Ok(name)) = name.map(UserId::try_new) {
        request.extensions_mut().insert(name);
    }
    request
}

async fn ws(socket: ClusterSocket, port: Extension<u16>, cluster: Broadcaster) -> Response {
    let socket = socket.describe(json!({ "node": *port })); // for the list of devices
    socket.on_upgrade(async move |mut socket| {
        let by = json!({ "type": "welcome", "user": socket.user(), "id": socket.id(), "node": *port });
        let _ = socket.send(by.to_string()).await;
        // A stream begins with who is there, so that a newcomer needs no list; each room has its own.
        let mut presence = HashMap::from([(None, cluster.presence())]);
        loop {
            let answer = tokio::select! {
                message = socket.recv() => match message.map(|said| serde_json::from_slice(said.as_bytes())) {
                    Some(Ok(Say::Join { room })) => {
                        presence.insert(Some(room.clone()), cluster.presence_in(&room));
                        socket.join(room).await.err().map(|error| json!(error.to_string()))
                    }
                    Some(Ok(Say::Leave { room })) => {
                        socket.leave(&room);
                        presence.remove(&Some(room));
                        None
                    }
                    Some(Ok(say)) => act(say, &socket, by.clone(), &cluster).await,
                    _ => return,
                },
                Some((room, change)) = next_of(&mut presence) => Some(
                    json!({ "type": "presence", "room": room, "user": change.user(), "online": change.is_online() }),
                ),
            };
            if let Some(answer) = answer {
                let _ = socket.send(answer.to_string()).await;
            }
        }
    })
}

/// What comes next of any of them, and in which room.
async fn next_of(
    presence: &mut HashMap<Option<String>, Presence>,
) -> Option<(Option<String>, PresenceChange)> {
    let streams = presence.iter_mut();
    let streams = streams.map(|(room, changes)| changes.map(|change| (room.clone(), change)));
    select_all(streams).next().await
}

/// Does what reaches others; returns what the page itself is told.
async fn act(say: Say, socket: &Socket, by: Value, cluster: &Broadcaster) -> Option<Value> {
    let me = cluster.to_user(socket.user());
    let mut said = json!(say);
    said["user"] = by["user"].clone();
    said["node"] = by["node"].clone();
    let audience = match say {
        Say::Direct { to, .. } => me.to_user(to),
        Say::Room { room, .. } => cluster.to_room(room),
        Say::SignOut => {
            let signed_out = Close::new(4001, "signed out at another device");
            let done = me.except(socket.id()).close(signed_out).await;
            return done.err().map(|error| json!(error.to_string()));
        }
        _ => {
            said["sockets"] = json!(me.sockets().await.unwrap_or_default().sockets());
            return Some(said);
        }
    };
    let sent = audience.send_json(&said).await;
    sent.err().map(|error| json!(error.to_string()))
}
