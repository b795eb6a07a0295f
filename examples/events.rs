//! Run with `cargo run --example events` and open the address that it prints in two windows: what one says, both show. The
//! page only has the browser's own `EventSource`. With REDIS_URL several are one cluster; PORT defaults to 3001.

use axum::response::{Html, Response};
use axum::{Extension, Router, routing};
use axum_cluster::{
    Backend, Broadcaster, Close, Cluster, ClusterEvents, History, SendError, UserId,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port: u16 = std::env::var("PORT").as_deref().unwrap_or("3001").parse()?;
    let backend = match std::env::var("REDIS_URL") {
        Ok(url) => Backend::redis(url)?,
        Err(_) => Backend::memory(),
    };
    let cluster = Cluster::builder().backend(backend);
    // A page that comes back is sent what it missed.
    let cluster = cluster.room_history(History::default()).start();
    let app = Router::new()
        .route("/", routing::get(Html(PAGE)))
        .route("/events", routing::get(events))
        .route("/say", routing::post(say))
        .route("/end", routing::post(end))
        .layer(cluster.layer())
        .layer(Extension(UserId::from("anybody")));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("http://127.0.0.1:{port}");
    let stop = async move {
        let _ = tokio::signal::ctrl_c().await;
        let window = std::time::Duration::from_millis(500);
        cluster.shutdown(window).await;
    };
    let server = axum::serve(listener, app);
    Ok(server.with_graceful_shutdown(stop).await?)
}

async fn events(events: ClusterEvents) -> Response {
    events.join("news").stream()
}

async fn say(cluster: Broadcaster, text: String) -> Result<(), SendError> {
    cluster.to_room("news").send(text).await?;
    Ok(())
}

/// For good: no page comes back by itself.
async fn end(cluster: Broadcaster) -> Result<(), SendError> {
    let close = Close::new(4400, "that was all");
    cluster.to_room("news").close(close).await?;
    Ok(())
}

const PAGE: &str = r#"<!doctype html><meta charset="utf-8"><title>Events</title>
<form><input name="text" aria-label="Say" autofocus></form><p id="state">connecting</p><ol></ol>
<script>
  const show = (where, text) => document.querySelector(where).textContent = text;
  const events = new EventSource('/events');
  events.onopen = () => show('#state', 'connected');
  events.onerror = () => show('#state', events.readyState === EventSource.CLOSED ? 'over' : 'comes back');
  events.onmessage = ({ data }) => {
    document.querySelector('ol').append(Object.assign(document.createElement('li'), { textContent: data }));
  };
  document.forms[0].onsubmit = event => {
    event.preventDefault();
    fetch('/say', { method: 'POST', body: event.target.text.value });
    event.target.reset();
  };
</script>
"#;
