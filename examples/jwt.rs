//! Run with `cargo run --example jwt`; `curl -X POST localhost:3001/login/alice` answers with a token. Offer
//! it as the cookie `token` or as a subprotocol: `new WebSocket(url, ["chat", "bearer", token])`; the text `bearer
//! <token>` renews a socket. POST /logout closes the user's sockets everywhere. Settings: PORT, REDIS_URL (none:
//! memory), JWT_SECRET, TTL_SECONDS.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{Extensions, HeaderMap, StatusCode, header::SEC_WEBSOCKET_PROTOCOL};
use axum::response::{Response, Result};
use axum::{Extension, Router, extract::Path, extract::Request, middleware, routing};
use axum_cluster::{Broadcaster, Close, Cluster, ClusterSocket, UserId};
use axum_extra::extract::cookie::{Cookie, CookieJar, SameSite};
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation, get_current_timestamp};
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
static SECRET: LazyLock<String> =
    LazyLock::new(|| std::env::var("JWT_SECRET").unwrap_or("everybody knows this".into()));

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port: u16 = std::env::var("PORT").as_deref().unwrap_or("3001").parse()?;
    let mut cluster = Cluster::builder()
        .protocols(["chat"]) // the only one ever echoed, so the token is not
        .identify(|user: &CurrentUser| Some(UserId::from(&user.id)));
    if let Ok(url) = std::env::var("REDIS_URL") {
        cluster = cluster.redis(url);
    }
    let app = Router::new()
        .route("/ws", routing::any(ws))
        .route("/login/{user}", routing::post(login))
        .route("/logout", routing::post(logout))
        .layer(cluster.try_start()?.layer())
        .layer(middleware::from_fn(authenticate));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening on ws://127.0.0.1:{port}/ws");
    Ok(axum::serve(listener, app).await?)
}

/// Verifies the token if there is one; what needs a user refuses a request without.
async fn authenticate(jar: CookieJar, mut request: Request, next: middleware::Next) -> Response {
    let cookie = jar.get("token").map(Cookie::value);
    let token = cookie.or_else(|| bearer(request.headers()));
    if let Some(user) = token.and_then(verify) {
        request.extensions_mut().insert(user);
    }
    next.run(request).await
}

fn verify(token: &str) -> Option<CurrentUser> {
    let key = DecodingKey::from_secret(SECRET.as_bytes());
    let token = jsonwebtoken::decode::<Claims>(token, &key, &Validation::default());
    let Claims { sub: id, exp } = token.ok()?.claims;
    let expires = UNIX_EPOCH + Duration::from_secs(exp);
    Some(CurrentUser { id, expires })
}

/// A browser cannot set headers on a WebSocket; offering `bearer, <token>` is the usual way out.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let offers = headers.get(SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let mut offers = offers.split(',').map(str::trim);
    offers.find(|offer| *offer == "bearer").and(offers.next())
}

/// The socket comes first: it is what closes an upgrade without a user with 4403.
async fn ws(socket: ClusterSocket, user: Extension<CurrentUser>) -> Response {
    let socket = socket.expires_at(user.expires);
    socket.on_upgrade(async |mut socket| {
        while let Some(message) = socket.recv().await {
            let token = message
                .as_text()
                .and_then(|text| text.strip_prefix("bearer "));
            let Some(token) = token else {
                let _ = socket.send(message).await;
                continue;
            };
            // A token of somebody else renews nothing.
            match verify(token).filter(|user| socket.user().as_str() == user.id) {
                Some(user) => socket.expires_at(user.expires),
                None => {
                    return socket
                        .close(Close::new(4401, "no token of this user"))
                        .await;
                }
            }
        }
    })
}

async fn login(Path(sub): Path<String>, jar: CookieJar) -> Result<(CookieJar, String)> {
    let ttl = std::env::var("TTL_SECONDS").unwrap_or("60".into());
    let exp = get_current_timestamp() + ttl.parse().unwrap_or(60);
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let token = jsonwebtoken::encode(&Header::default(), &Claims { sub, exp }, &key);
    let token = token.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    let cookie = Cookie::build(("token", token.clone())).path("/");
    let cookie = cookie.http_only(true).same_site(SameSite::Lax);
    Ok((jar.add(cookie), token))
}

async fn logout(cluster: Broadcaster, user: Extensions, jar: CookieJar) -> Result<CookieJar> {
    let user = user.get::<CurrentUser>().ok_or(StatusCode::UNAUTHORIZED)?;
    let goodbye = Close::new(4001, "logged out");
    cluster.to_user(&user.id).close(goodbye).await?;
    Ok(jar.remove(Cookie::build("token").path("/")))
}
