//! Tests of an app that uses this crate: served in memory, with real upgrades, and clients that speak frames.
//!
//! It needs no port, no Redis and no sleep. `App` takes the router as it is; a client may bring headers, or put what an
//! auth layer would leave straight into the request's extensions.
//!
//! ```
//! # use axum::{Router, response::Response, routing::any};
//! # use axum_cluster::{Cluster, ClusterSocket};
//! use axum_cluster::testing::App;
//!
//! # async fn ws(socket: ClusterSocket) -> Response {
//! #     socket.on_upgrade(|mut socket| async move {
//! #         while let Some(message) = socket.recv().await { let _ = socket.send(message).await; }
//! #     })
//! # }
//! fn app(cluster: &Cluster) -> Router {
//!     Router::new().route("/ws", any(ws)).layer(cluster.layer())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), axum_cluster::testing::Refused> {
//! let app = App::new(app(&Cluster::builder().start()));
//! let mut alice = app.socket("/ws").user("alice").await?;
//! alice.send_text("hello").await;
//! assert_eq!(alice.recv_text().await, "hello");
//! # Ok(())
//! # }
//! ```
//!
//! # Waiting
//! Everything that waits has a deadline, 10 s unless [`App::deadline`] says otherwise, and panics past it. So does
//! what gets another thing than it waits for; the panic names the line of your test and shows what came instead.
//!
//! # Paused time
//! Under `#[tokio::test(start_paused = true)]` (tokio's feature `test-util`, and its default, the current-thread
//! runtime) time passes only while every task waits, and then at once: [`Client::expect_silence`], a heartbeat or an
//! identity that expires in an hour cost a test nothing. Clients answer pings meanwhile, as browsers do. Let time pass by
//! `tokio::time::sleep`, not by `tokio::time::advance`: a jump looks like a process that did not run, for which no
//! client is given up. It goes with a [`MemoryHub`] or the memory backend only: whoever waits for a real socket lets
//! every deadline pass meanwhile.
//!
//! # Several nodes, and faults
//! Nodes whose clusters share the backend of a [`MemoryHub`] are a cluster; it can cut one off, and delay what
//! they send. A client that offers `resume.v1` ([`Handshake::resumes`]) goes on at another of them with its
//! [position](Client::position) ([`Handshake::since`]). The guide is in [`docs::testing`](crate::docs::testing).

mod app;
mod client;
mod codec;
mod expect;
mod hub;
mod reading;
mod request;
mod server;

pub use self::app::App;
pub use self::client::Client;
pub use self::hub::MemoryHub;
pub use self::request::{Handshake, Refused, Request, Response};
