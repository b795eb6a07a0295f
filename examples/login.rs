//! Run with `cargo run --example login`: sessions of tower-sessions, users of axum-login.
//! `curl -c jar -d 'name=alice&password=secret' localhost:3001/login`, and `-b jar` from then on. POST /logout ends
//! this session with all its tabs, POST /logout/everywhere every session of the user. Settings: PORT, REDIS_URL
//! (none: memory), SESSION_SECONDS (3600). Several nodes need a store that they share, in place of `MemoryStore`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use axum::response::{Response, Result};
use axum::{Form, Router, http::StatusCode, routing};
use axum_cluster::{Broadcaster, Close, Cluster, ClusterSocket, UserId};
use axum_login::{AuthManagerLayerBuilder, AuthSession, AuthUser, AuthnBackend};
use serde::Deserialize;
use tower_sessions::cookie::{SameSite, time::Duration};
use tower_sessions::{Expiry, MemoryStore, Session, SessionManagerLayer, session::Id};

/// Where a session keeps the room of its sockets. Its own id is a secret and names nothing.
const ROOM: &str = "room";

#[derive(Debug, Clone, PartialEq)]
struct User {
    name: String,
    /// Another one ends the sessions that were begun with this. In a real app: the hash of the password.
    key: String,
}

impl AuthUser for User {
    type Id = String;

    fn id(&self) -> String {
        self.name.clone()
    }

    fn session_auth_hash(&self) -> &[u8] {
        self.key.as_bytes()
    }
}

/// Stands for a table of users: each with the key of now.
#[derive(Clone, Default)]
struct Users(Arc<Mutex<HashMap<String, String>>>);

impl Users {
    fn find(&self, name: &str) -> User {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = keys.entry(name.into()).or_insert_with(random).clone();
        let name = name.into();
        User { name, key }
    }

    fn end_sessions(&self, name: &str) {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.insert(name.into(), random());
    }
}

#[derive(Deserialize)]
struct Credentials {
    name: String,
    password: String,
}

impl AuthnBackend for Users {
    type User = User;
    type Credentials = Credentials;
    type Error = Infallible;

    async fn authenticate(&self, by: Credentials) -> Result<Option<User>, Infallible> {
        Ok((by.password == "secret").then(|| self.find(&by.name)))
    }

    async fn get_user(&self, name: &String) -> Result<Option<User>, Infallible> {
        Ok(Some(self.find(name)))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let port: u16 = std::env::var("PORT").as_deref().unwrap_or("3001").parse()?;
    let lasts = std::env::var("SESSION_SECONDS").unwrap_or("3600".into());
    let lasts = Expiry::OnInactivity(Duration::seconds(lasts.parse()?));
    let mut cluster = Cluster::builder().identify(|auth: &AuthSession<Users>| {
        let user = auth.user.as_ref();
        user.map(|user| UserId::from(&user.name))
    });
    if let Ok(url) = std::env::var("REDIS_URL") {
        cluster = cluster.redis(url);
    }
    let sessions = SessionManagerLayer::new(MemoryStore::default())
        .with_expiry(lasts)
        .with_same_site(SameSite::Lax)
        .with_secure(false); // without TLS, for the demo alone
    let app = Router::new()
        .route("/ws", routing::any(ws))
        .route("/login", routing::post(log_in))
        .route("/logout", routing::post(log_out))
        .route("/logout/everywhere", routing::post(log_out_everywhere))
        .layer(cluster.try_start()?.layer())
        .layer(AuthManagerLayerBuilder::new(Users::default(), sessions).build());
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening on ws://127.0.0.1:{port}/ws");
    Ok(axum::serve(listener, app).await?)
}

async fn ws(socket: ClusterSocket, auth: AuthSession<Users>, session: Session) -> Result<Response> {
    let room: Option<String> = session.get(ROOM).await.map_err(failed)?;
    let left = session.expiry_age().unsigned_abs();
    let socket = socket.expires_at(SystemTime::now() + left);
    let socket = socket.join(room.ok_or(StatusCode::UNAUTHORIZED)?);
    Ok(socket.on_upgrade(async move |mut socket| {
        // A log-out closes what it finds, and from here on it finds this socket: was there one before?
        if !is_logged_in(&auth, &session).await {
            return socket.close(Close::new(4001, "logged out")).await;
        }
        while let Some(message) = socket.recv().await {
            let _ = socket.send(message).await;
        }
    }))
}

/// Asks the stores anew: the request knows what they held when it came.
async fn is_logged_in(auth: &AuthSession<Users>, session: &Session) -> bool {
    let is_current = |user: &User| auth.backend.find(&user.name) == *user;
    let session_is_there = async || {
        session.load().await?;
        session.get::<String>(ROOM).await
    };
    auth.user.as_ref().is_some_and(is_current) && matches!(session_is_there().await, Ok(Some(_)))
}

async fn log_in(
    mut auth: AuthSession<Users>,
    session: Session,
    cluster: Broadcaster,
    Form(credentials): Form<Credentials>,
) -> Result<()> {
    let user = auth.authenticate(credentials).await.map_err(failed)?;
    let user = user.ok_or(StatusCode::UNAUTHORIZED)?;
    log_out(session.clone(), cluster).await?; // whoever was here
    auth.login(&user).await.map_err(failed)?;
    session.insert(ROOM, random()).await.map_err(failed)?;
    Ok(())
}

/// First the session ends, then its sockets: the other way round one may come back in between.
async fn log_out(session: Session, cluster: Broadcaster) -> Result<()> {
    let room: Option<String> = session.get(ROOM).await.map_err(failed)?;
    session.flush().await.map_err(failed)?;
    if let Some(room) = room {
        let its_tabs = cluster.to_room(room);
        its_tabs.close(Close::new(4001, "logged out")).await?;
    }
    Ok(())
}

async fn log_out_everywhere(mut auth: AuthSession<Users>, cluster: Broadcaster) -> Result<()> {
    let user = auth.logout().await.map_err(failed)?;
    let user = user.ok_or(StatusCode::UNAUTHORIZED)?;
    auth.backend.end_sessions(&user.name);
    let all_devices = cluster.to_user(&user.name);
    all_devices.close(Close::new(4001, "logged out")).await?;
    Ok(())
}

fn random() -> String {
    Id::default().to_string()
}

fn failed(_: impl Error) -> StatusCode {
    StatusCode::INTERNAL_SERVER_ERROR
}
