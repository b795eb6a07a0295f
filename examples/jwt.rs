//! Run with `cargo run --example jwt`, then `curl -X POST localhost:3001/login/alice` for a token. Offer it
//! as the cookie `token` or as a subprotocol: `new WebSocket(url, ["chat", "bearer", token])`.
//! `curl -X POST -H "Cookie: token=.." localhost:3001/logout` closes the user's sockets everywhere.
//! PORT, REDIS_URL (default: one node in memory), JWT_SECRET and TTL_SECONDS come from the environment.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::{Path, Request};
use axum::http::{HeaderMap, StatusCode, header::SEC_WEBSOCKET_PROTOCOL};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router, routing::any, routing::post};
use axum_cluster::{Broadcaster, Close, Cluster, ClusterSocket, UserId};
use axum_extra::extract::cookie::{Cookie, CookieJar, SameSite};
use jsonwebtoken::{DecodingKey, EncodingKey, Validation, get_current_timestamp};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
}

/// What the auth layer leaves for everything behind it.
#[derive(Clone)]
struct CurrentUser {
    id: String,
    expires: SystemTime,
}

/// Every node needs the same secret; the default is for the demo alone.
static SECRET: LazyLock<String> = LazyLock::new(|| env_or("JWT_SECRET", "everybody knows this"));

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port: u16 = env_or("PORT", "3001").parse()?;
    let mut cluster = Cluster::builder()
        .protocols(["chat"]) // the only one ever echoed, so the token is not
        .identify(|user: &CurrentUser| Some(UserId::from(&user.id)));
    if let Ok(url) = std::env::var("REDIS_URL") {
        cluster = cluster.redis(url);
    }
    let app = Router::new()
        .route("/ws", any(ws))
        .route("/login/{user}", post(login))
        .route("/logout", post(logout))
        .layer(cluster.try_start()?.layer())
        .layer(middleware::from_fn(authenticate));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening on ws://127.0.0.1:{port}/ws");
    Ok(axum::serve(listener, app).await?)
}

/// Verifies the token if there is one; what needs a user refuses a request without.
async fn authenticate(jar: CookieJar, mut request: Request, next: Next) -> Response {
    let (key, rules) = (
        DecodingKey::from_secret(SECRET.as_bytes()),
        Validation::default(),
    );
    let cookie = jar.get("token").map(Cookie::value);
    if let Some(token) = cookie.or_else(|| bearer(request.headers()))
        && let Ok(token) = jsonwebtoken::decode::<Claims>(token, &key, &rules)
    {
        let (id, expires) = (token.claims.sub, Duration::from_secs(token.claims.exp));
        let expires = UNIX_EPOCH + expires;
        request.extensions_mut().insert(CurrentUser { id, expires });
    }
    next.run(request).await
}

/// A browser cannot set headers on a WebSocket; offering `bearer, <token>` is the usual way out.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let offered = headers.get(SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let mut offered = offered.split(',').map(str::trim);
    offered.find(|protocol| *protocol == "bearer")?;
    offered.next()
}

async fn ws(socket: ClusterSocket, user: Extension<CurrentUser>) -> Response {
    let socket = socket.expires_at(user.expires);
    socket.on_upgrade(async |mut socket| {
        while let Some(message) = socket.recv().await {
            let _ = socket.send(message).await;
        }
    })
}

async fn login(Path(sub): Path<String>, jar: CookieJar) -> Result<impl IntoResponse, StatusCode> {
    let ttl: u64 = env_or("TTL_SECONDS", "60").parse().unwrap_or(60);
    let exp = get_current_timestamp() + ttl;
    let (header, key) = (
        Default::default(),
        EncodingKey::from_secret(SECRET.as_bytes()),
    );
    let token = jsonwebtoken::encode(&header, &Claims { sub, exp }, &key);
    let token = token.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    let cookie = Cookie::build(("token", token.clone())).path("/");
    Ok((
        jar.add(cookie.http_only(true).same_site(SameSite::Lax)),
        token,
    ))
}

async fn logout(
    cluster: Broadcaster,
    user: Option<Extension<CurrentUser>>,
    jar: CookieJar,
) -> Result<impl IntoResponse, StatusCode> {
    let Extension(user) = user.ok_or(StatusCode::UNAUTHORIZED)?;
    let goodbye = Close::new(4001, "logged out");
    let closed = cluster.to_user(user.id).close(goodbye).await;
    let jar = jar.remove(Cookie::build("token").path("/"));
    Ok((jar, closed.map(|_| "logged out")))
}

fn env_or(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or(default.into())
}
