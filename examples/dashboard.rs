//! Run with `cargo run -p examples --example dashboard -- --nodes 50`, open the address it prints, and watch a cluster: by
//! default 3 nodes in this process, with a device of each of 20 users (`--users`) that come, talk and go. With `--actions 0`
//! nobody can close anybody. Settings: PORT (3001), REDIS_URL; with that, each terminal with `--nodes 1` is a node among others.

use std::time::{Duration, SystemTime};

use axum::extract::Request;
use axum::http::{StatusCode, header::AUTHORIZATION, header::WWW_AUTHENTICATE};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing::any};
use axum_cluster::{Backend, Broadcaster, Cluster, ClusterSocket, UserId};
use futures::StreamExt;
use percent_encoding::percent_decode_str;
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port: u16 = std::env::var("PORT").as_deref().unwrap_or("3001").parse()?;
    let backend = match std::env::var("REDIS_URL") {
        Ok(url) => Backend::redis(url)?,
        Err(_) => Backend::memory(),
    };
    let (nodes, users) = (argument("--nodes", 3)?, argument("--users", 20)?);
    let mut clusters = Vec::new();
    for n in 1..=nodes.max(1) {
        let name = format!("node-{port}-{n}");
        let cluster = Cluster::builder().backend(backend.clone()).name(name);
        clusters.push(cluster.start());
        for user in 0..users {
            let seed = (n * 1_000 + user) as u64;
            tokio::spawn(live(clusters[n - 1].broadcaster(), user, seed));
        }
    }
    let cluster = &clusters[0];
    let dashboard = match argument("--actions", 1)? {
        0 => cluster.dashboard(),
        _ => cluster.dashboard().allow_actions(),
    };
    let admin = Router::new()
        .nest_service("/admin/cluster", dashboard)
        .layer(middleware::from_fn(operators_only));
    let app = Router::new()
        .route("/ws", any(ws))
        .layer(cluster.layer())
        .layer(middleware::map_request(identify))
        .merge(admin);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("http://ops:secret@127.0.0.1:{port}/admin/cluster");
    Ok(axum::serve(listener, app).await?)
}

fn argument(name: &str, default: usize) -> Result<usize, std::num::ParseIntError> {
    let given = std::env::args().skip_while(|it| it != name).nth(1);
    given.map_or(Ok(default), |given| given.parse())
}

/// Stands for your own auth of operators: the dashboard asks nobody who he is.
async fn operators_only(request: Request, next: Next) -> Response {
    let authorization = request.headers().get(AUTHORIZATION);
    match authorization.is_some_and(|it| it == "Basic b3BzOnNlY3JldA==") {
        true => next.run(request).await,
        false => (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Basic")]).into_response(),
    }
}

/// Stands for your own auth of users.
async fn identify(mut request: Request) -> Request {
    let user = request
        .uri()
        .query()
        .and_then(|it| it.strip_prefix("user="));
    let user = user.and_then(|it| percent_decode_str(it).decode_utf8().ok());
    if let Some(user) = user.map(|it| UserId::from(&*it)) {
        request.extensions_mut().insert(user);
    }
    request
}

async fn ws(socket: ClusterSocket) -> Response {
    let socket = socket
        .describe(json!({ "device": "browser" }))
        .expires_at(SystemTime::now() + Duration::from_secs(3600))
        .join("lobby");
    socket.on_upgrade(|mut socket| async move {
        let lobby = socket.broadcaster().to_room("lobby");
        while let Some(message) = socket.recv().await {
            let _ = lobby.clone().send(message).await;
        }
    })
}

/// A user's device that comes, talks in a room, and goes, again and again.
async fn live(cluster: Broadcaster, user: usize, mut seed: u64) {
    let mut up_to = |seconds: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        Duration::from_millis((seed >> 33) % (1_000 * seconds))
    };
    loop {
        tokio::time::sleep(up_to(20)).await;
        let Ok(mut device) = cluster.subscribe(format!("user-{user}")).await else {
            continue;
        };
        let room = format!("room-{}", user % 40);
        let _ = device.join(&*room).await;
        let leave_at = tokio::time::Instant::now() + up_to(120);
        while tokio::time::Instant::now() < leave_at {
            let reading = async { while device.next().await.is_some() {} };
            if tokio::time::timeout(up_to(10), reading).await.is_ok() {
                break; // closed, by you perhaps
            }
            let _ = cluster.to_room(&*room).send("how are you?").await;
        }
    }
}
