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
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation, decode, encode};
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

/// Every node needs the same secret; this one is for the demo alone.
static SECRET: LazyLock<String> =
    LazyLock::new(|| env_or("JWT_SECRET", "a demo secret that everybody knows"));

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt::init();
    let port: u16 = env_or("PORT", "3001").parse()?;
    let builder = Cluster::builder()
        .protocols(["chat"])
        .identify(|user: &CurrentUser| Some(UserId::from(&user.id)));
    let cluster = match std::env::var("REDIS_URL") {
        Ok(url) => builder.redis(url).try_start()?,
        Err(_) => builder.start(),
    };
    let app = Router::new()
        .route("/ws", any(ws))
        .route("/login/{user}", post(login))
        .route("/logout", post(logout))
        .layer(cluster.layer())
        .layer(middleware::from_fn(authenticate));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening on ws://127.0.0.1:{port}/ws");
    Ok(axum::serve(listener, app).await?)
}

/// Verifies the token, if there is one; whoever needs a user refuses without.
async fn authenticate(jar: CookieJar, mut request: Request, next: Next) -> Response {
    let cookie = jar.get("token").map(|cookie| cookie.value().to_owned());
    if let Some(token) = cookie.or_else(|| bearer(request.headers()))
        && let Ok(token) = decode::<Claims>(
            &token,
            &DecodingKey::from_secret(SECRET.as_bytes()),
            &Validation::default(),
        )
    {
        let expires = UNIX_EPOCH + Duration::from_secs(token.claims.exp);
        request.extensions_mut().insert(CurrentUser {
            id: token.claims.sub,
            expires,
        });
    }
    next.run(request).await
}

/// A browser cannot set headers on a WebSocket; the offer `bearer, <token>` is the usual way out.
fn bearer(headers: &HeaderMap) -> Option<String> {
    let offered = headers.get(SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let mut offered = offered.split(',').map(str::trim);
    offered.find(|protocol| *protocol == "bearer")?;
    offered.next().map(str::to_owned)
}

async fn ws(socket: ClusterSocket, Extension(user): Extension<CurrentUser>) -> Response {
    socket
        .expires_at(user.expires)
        .on_upgrade(|mut socket| async move {
            while let Some(message) = socket.recv().await {
                let _ = socket.send(message).await;
            }
        })
}

async fn login(Path(user): Path<String>, jar: CookieJar) -> Result<Response, StatusCode> {
    let ttl = env_or("TTL_SECONDS", "60").parse().unwrap_or(60);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let claims = Claims {
        sub: user,
        exp: (now + Duration::from_secs(ttl)).as_secs(),
    };
    let token = encode(
        &Header::default(),
        &claims,
        &EncodingKey::from_secret(SECRET.as_bytes()),
    )
    .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    let cookie = Cookie::build(("token", token.clone()))
        .path("/")
        .http_only(true);
    Ok((jar.add(cookie.same_site(SameSite::Lax)), token).into_response())
}

async fn logout(
    cluster: Broadcaster,
    user: Option<Extension<CurrentUser>>,
    jar: CookieJar,
) -> Response {
    let Some(Extension(user)) = user else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    let jar = jar.remove(Cookie::build("token").path("/"));
    match cluster
        .to_user(user.id)
        .close(Close::new(4001, "logged out"))
        .await
    {
        Ok(_) => (jar, "logged out").into_response(),
        Err(error) => (jar, error).into_response(),
    }
}

fn env_or(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or(default.into())
}
