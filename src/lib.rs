//! One layer makes the WebSockets of any axum app work across a cluster: a handler says *who* a message
//! is for, and it reaches every device of that user on whichever process holds it, through Redis.
//!
//! Plain [RFC 6455](https://www.rfc-editor.org/rfc/rfc6455) on the wire: no client library, no sticky
//! sessions, no protocol of its own. It needs axum 0.8 and tokio: `cargo add axum-cluster axum@0.8` and
//! `cargo add tokio --features macros,net,rt-multi-thread`.
//!
#![cfg_attr(feature = "redis", doc = "```no_run")]
#![cfg_attr(not(feature = "redis"), doc = "```ignore")]
//! use axum::extract::{Path, Request};
//! use axum::middleware::{self, Next};
//! use axum::response::Response;
//! use axum::{Router, routing::{any, post}};
//! use axum_cluster::{Broadcaster, ClusterLayer, ClusterSocket, SendError, UserId};
//!
//! #[tokio::main]
//! async fn main() -> std::io::Result<()> {
//!     let app = Router::new()
//!         .route("/ws", any(ws))
//!         .route("/notify/{user}", post(notify))
//!         .layer(ClusterLayer::new("redis://127.0.0.1:6379")) // connects in the background
//!         .layer(middleware::from_fn(auth));
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//!     axum::serve(listener, app).await
//! }
//!
//! async fn ws(socket: ClusterSocket) -> Response {
//!     socket.on_upgrade(|mut socket| async move {
//!         while let Some(message) = socket.recv().await {
//!             let _ = socket.send(message).await;
//!         }
//!     })
//! }
//!
//! async fn notify(cluster: Broadcaster, Path(user): Path<String>, text: String) -> Result<String, SendError> {
//!     let delivery = cluster.to_user(user).send(text).await?;
//!     Ok(format!("{} sockets here, {:?} other nodes", delivery.local(), delivery.nodes()))
//! }
//!
//! /// Stands for your own: anything that puts a `UserId` into the extensions.
//! async fn auth(mut request: Request, next: Next) -> Response {
//!     request.extensions_mut().insert(UserId::from("alice"));
//!     next.run(request).await
//! }
//! ```
//!
//! It needs a Redis on 6379: without one this node's sockets still work, `notify` answers with an error, and
//! everything comes right by itself when Redis is there. To hear what it says, `cargo add tracing-subscriber
//! --features env-filter`, begin `main` with `tracing_subscriber::fmt::init();`, and run it with
//! `RUST_LOG=axum_cluster=debug`.
//!
//! # How it fits together
//! - [`ClusterLayer`] puts a [`Broadcaster`] into every request. It and the auth middleware must both wrap
//!   the routes, so they come after them; which of the two is outside does not matter.
//! - [`ClusterSocket`] is the extractor: it knows the user, checks the origin and the handshake, and waits
//!   until the cluster's messages for the user come here. `on_upgrade` makes it a [`Socket`].
//! - [`Broadcaster`] says who: [`to_user`](Broadcaster::to_user), [`to_room`](Broadcaster::to_room),
//!   [`to_socket`](Broadcaster::to_socket), [`to_all`](Broadcaster::to_all), in any union, with exceptions.
//! - An [`Audience`] can also be listed ([`sockets`](Audience::sockets)), counted, closed, and moved into rooms
//!   ([`join`](Audience::join)), on every node; [`Broadcaster::presence`] tells who comes and goes.
//! - [`ClusterEvents`] is a socket over plain HTTP, for the browser's own `EventSource`.
//! - [`Broadcaster::subscribe`] is a socket without a WebSocket, for bots and bridges: a stream of messages.
//! - [`Cluster`] is the node itself: [`health`](Cluster::health), [`stats`](Cluster::stats),
//!   [`shutdown`](Cluster::shutdown); [`Cluster::builder`] has the settings.
//!
//! # Rooms, commands and presence
//! A handler puts its own socket into rooms ([`Socket::join`]); from anywhere the same is a command to an audience,
//! carried out on every node, as is a close. A [`Delivery`] tells what became of a send, an [`Outcome`] what became of a
//! command.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use axum_cluster::{Close, Cluster};
//!
//! let cluster = Cluster::builder().start(); // no Redis named: in memory
//! let to = cluster.broadcaster();
//! to.to_user("alice").join("lobby").await?; // all her devices that are there now
//! to.to_room("lobby").except_user("alice").send("alice is here").await?;
//! let roster = to.to_room("lobby").sockets().await?;
//! for device in &roster {
//!     println!("{} with {:?}", device.user, device.description);
//! }
//! if !roster.is_complete() {
//!     println!("and those of {:?}, which did not answer", roster.missing());
//! }
//! let logged_out = to.to_user("alice").close(Close::new(4001, "logged out")).await?;
//! assert_eq!((logged_out.local(), logged_out.unanswered()), (0, 0)); // she was not there
//! # Ok(())
//! # }
//! ```
//!
//! # Ids and errors
//! Users ([`UserId`]) and rooms ([`RoomId`]) are named by text or by a number. Making an id never fails; one that cannot be
//! used is refused where it is used, in one way everywhere ([`InvalidId`]). Every error has a `kind()` to match on, a
//! `source()`, and a text for your log that is whole; returned from a handler it names the class of the failure, and
//! Redis' words stay in the log.
//!
//! # What it promises
//! 1. Every socket of the addressed user, on every node, exactly once each, while the bus is up. Messages
//!    of one sender to one audience arrive in the order sent. Text stays text and binary binary.
//! 2. Existing means reachable: when a handler holds a `Socket`, a send from any node reaches it, by its user and by
//!    every room it was admitted to.
//! 3. Local delivery never depends on Redis. Without Redis the process serves its own sockets, says that it
//!    is [`Degraded`](Health::Degraded), and returns by itself. A probe proves the bus from end to end;
//!    a [`Gap`] is told, never hidden.
//! 4. One slow or dead client hurts nobody else: bounded memory per socket, in messages and bytes.
//! 5. Nothing leaks: every ending is one [`Close`], after which everything is back where it was.
//! 6. One Redis command per send, whatever the number of nodes. Never KEYS, SCAN or PSUBSCRIBE.
//! 7. An answer that is not whole says so: rosters, counts, limits, health, sends. What could not be checked is counted
//!    as unchecked.
//! 8. With a history ([`ClusterBuilder::user_history`] and its siblings), what was sent while a node was cut off, or while a
//!    client was away and comes back with its [`Position`], is delivered then, in order and once, within the history's
//!    window; past it whoever missed something is told.
//! 9. Every Redis that people run: single, watched by Sentinel, a Redis Cluster, several; the same API and promises.
//!
//! # What it does not promise
//! Without a history, Redis pub/sub delivers at most once: what is sent while a node is cut off does not reach its sockets
//! later. Afterwards every handler that asks is told the [`Gap`]: [`Socket::gaps`], [`Broadcaster::gaps`],
//! [`Cluster::gaps`]. [`Cluster::health_changes`] tells of the outage itself, and [`Stats::bus_gaps`] counts.
//!
//! # Features
//! | feature | | what it brings |
//! |---|---|---|
//! | `redis` | default | nodes in several processes. `Backend::redis`, `Redis`, `ClusterLayer::new` and `try_new`, `Cluster::connect`, `Broadcaster::connect` and `redis` of the builders exist with it only |
//! | `tls-ring` | default | `rediss://`, `rediss-sentinel://` and `rediss-cluster://`, with the cryptography of ring |
//! | `tls-aws-lc` | | `rediss://`, with that of AWS-LC, also where `tls-ring` is on as well |
//! | `dashboard` | | `Cluster::dashboard`: a page on which the whole cluster is watched, live |
//! | `deflate` | | `ClusterBuilder::compression`: messages are compressed, once for all who get them |
//! | `metrics` | | `Cluster::record_metrics`: numbers and times for the recorder of the crate `metrics` |
//! | `testing` | | the module `testing`: an app served in memory, and clients for it; for `[dev-dependencies]` |
//! | `uuid` | | `From<Uuid>` for [`UserId`] and [`RoomId`] |
//!
//! `default-features = false` is a cluster within one process ([`Backend::memory`]): two fifths fewer
//! dependencies, and none that needs a C compiler, as both of TLS do. With `features = ["redis"]` and no TLS, a
//! `rediss://` is refused at the start.
//!
//! # When nobody gets in
//! Every refused upgrade is logged with its reason and the fix: `RUST_LOG=axum_cluster=debug` shows them, and
//! [`Stats`] counts each kind. Mostly it is a user type other than the middleware inserts (4403, said once at
//! warn), a page of another origin ([`ClusterBuilder::allow_origin`]), or a proxy that does not hand `Host`, `Upgrade`
//! and `Connection` on, or speaks HTTP/1.0.
//!
//! # Testing
//! With the feature `testing` in `[dev-dependencies]` an app is served in memory: no port, no Redis and no sleep, and
//! upgrades are real all the same.
//!
#![cfg_attr(feature = "testing", doc = "```")]
#![cfg_attr(not(feature = "testing"), doc = "```ignore")]
//! # use axum::{Router, response::Response, routing::any};
//! # use axum_cluster::ClusterSocket;
//! # async fn ws(socket: ClusterSocket) -> Response {
//! #     socket.on_upgrade(|mut socket| async move {
//! #         while let Some(message) = socket.recv().await { let _ = socket.send(message).await; }
//! #     })
//! # }
//! # fn router(cluster: &axum_cluster::Cluster) -> Router {
//! #     Router::new().route("/ws", any(ws)).layer(cluster.layer())
//! # }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), axum_cluster::testing::Refused> {
//! use axum_cluster::{Cluster, testing::App};
//!
//! let app = App::new(router(&Cluster::builder().start())); // no Redis named: in memory
//! let mut alice = app.socket("/ws").user("alice").await?;
//! alice.send_text("hello").await;
//! assert_eq!(alice.recv_text().await, "hello");
//! # Ok(())
//! # }
//! ```
//!
//! Clients also bring headers or extensions, wait for the end (`closed_with(4401)`) or for silence; nodes on one
//! `MemoryHub` are a cluster, in which a test may cut one off, and where a client comes back to another; time may be paused, so that an hour costs nothing. The guide
//! is [`docs::testing`].
//!
//! # Names on the bus
//! Other programs may send as well: `PUBLISH cluster:u:alice '{"text": "hello"}'` reaches every device of
//! alice. Channels are `{namespace}:u:{user}`, `{namespace}:r:{room}` and `{namespace}:all`, with bytes
//! outside `A-Z a-z 0-9 - . _ ~` as upper-case `%XX`; a message is one of `{"text": ".."}`, `{"json": ..}`,
//! `{"base64": ".."}` (binary) and `{"close": {"code": 4001, "reason": ".."}}`.
//!
//! From axum's own WebSockets to a cluster, auth, rooms, missed messages, the front end, proxies, sizing: [`guide`]. How to
//! operate a cluster, how to test an app, and whom it trusts: [`docs`].

// Not in Cargo.toml: nothing of a test, a bench or an example can be reached.
#![warn(unreachable_pub)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(feature = "redis"),
    expect(
        dead_code,
        reason = "in memory nothing is lost, and the bus has to say less"
    )
)]

/// How to operate a cluster and to test an app, whom it trusts, and what it costs: the documents of the package.
#[cfg(doc)]
pub mod docs {
    // Of two definitions of a link the first holds: here it leads to the module, elsewhere to the file.
    #[doc = "[Behind a proxy]: crate::guide::proxies"]
    #[doc = "[SECURITY.md]: security"]
    #[doc = "[dashboard]: crate::guide::dashboard"]
    #[doc = "[measured]: figures"]
    #[doc = ""]
    #[doc = include_str!("../docs/operating.md")]
    pub mod operating {}
    #[doc = "[chat with a shop]: self::testing::app"]
    #[doc = "[what is missed]: crate::guide::missed"]
    #[doc = "[all of them]: self::testing::suite"]
    #[doc = ""]
    #[doc = include_str!("../docs/testing.md")]
    pub mod testing {
        #[doc = "The app of the guide.\n\n```ignore"]
        #[doc = include_str!("../tests/kit/app.rs")]
        #[doc = "```"]
        pub mod app {}
        #[doc = "The tests of the guide.\n\n```ignore"]
        #[doc = include_str!("../tests/kit/suite.rs")]
        #[doc = "```"]
        pub mod suite {}
    }
    #[doc = "[operating]: self::operating"]
    #[doc = ""]
    #[doc = include_str!("../SECURITY.md")]
    pub mod security {}
    #[doc = include_str!("../benches/README.md")]
    pub mod figures {}
    #[doc = "[sizing]: crate::guide::sizing"]
    #[doc = "[measured]: self::figures"]
    #[doc = "[figures]: self::figures"]
    #[doc = "[missed messages]: crate::guide::missed"]
    #[doc = ""]
    #[doc = include_str!("../docs/scale.md")]
    pub mod scale {}
}

/// From what you have to what works. The programs are compiled, and the examples named here are run, by the tests.
///
/// - [From `WebSocketUpgrade`](guide::from_websocketupgrade), axum's own, to [`ClusterSocket`]
/// - [Authentication](guide::auth): sessions, tokens, renewal, log-out
/// - [Rooms and presence](guide::rooms)
/// - [Missed messages](guide::missed): upgrade first, then read
/// - [The front end](guide::front_end): what to do at which close code
/// - [Testing your app](docs::testing)
/// - [Behind a proxy](guide::proxies): nginx, HAProxy, Envoy, Kubernetes
/// - [Sizing](guide::sizing)
/// - [Compression](guide::compression): when it pays, and what must not be compressed
/// - [The dashboard](guide::dashboard)
/// - [Sending from other programs](guide::other_programs)
#[cfg(any(doc, doctest))]
pub mod guide {
    #[doc = "[login]: self::auth::login"]
    #[doc = "[jwt]: self::auth::jwt"]
    #[doc = ""]
    #[doc = include_str!("../docs/guide/auth.md")]
    pub mod auth {
        #[doc = "Sessions of tower-sessions, users of axum-login.\n\n```ignore"]
        #[doc = include_str!("../examples/login.rs")]
        #[doc = "```"]
        pub mod login {}
        #[doc = "A signed token.\n\n```ignore"]
        #[doc = include_str!("../examples/jwt.rs")]
        #[doc = "```"]
        pub mod jwt {}
    }
    #[doc = "[measured]: crate::docs::figures"]
    #[doc = "[missed]: self::missed"]
    #[doc = ""]
    #[doc = include_str!("../docs/guide/compression.md")]
    pub mod compression {}
    #[doc = "[metrics]: crate::docs::operating"]
    #[doc = "[revoke first, then close]: self::auth"]
    #[doc = ""]
    #[doc = include_str!("../docs/guide/dashboard.md")]
    pub mod dashboard {}
    #[doc = "[auth]: self::auth"]
    #[doc = "[history]: self::missed"]
    #[doc = "[`cluster.js`]: self::front_end::cluster_js"]
    #[doc = "[`cluster.d.ts`]: self::front_end::cluster_d_ts"]
    #[doc = "[read what you missed]: self::missed"]
    #[doc = ""]
    #[doc = include_str!("../docs/guide/front-end.md")]
    pub mod front_end {
        #[doc = "The module for pages.\n\n```js"]
        #[doc = include_str!("../examples/client/cluster.js")]
        #[doc = "```"]
        pub mod cluster_js {}
        #[doc = "Its types.\n\n```ts"]
        #[doc = include_str!("../examples/client/cluster.d.ts")]
        #[doc = "```"]
        pub mod cluster_d_ts {}
    }
    #[doc = "[defaults]: crate::ClusterBuilder"]
    #[doc = ""]
    #[doc = include_str!("../docs/guide/from-websocketupgrade.md")]
    pub mod from_websocketupgrade {}
    #[doc = "[measured]: crate::docs::figures"]
    #[doc = "[rolls nodes]: self::proxies"]
    #[doc = "[test]: crate::docs::testing"]
    #[doc = "[the front end]: self::front_end"]
    #[doc = ""]
    #[doc = include_str!("../docs/guide/missed.md")]
    pub mod missed {}
    #[doc = "[compressed]: self::compression"]
    #[doc = "[trust]: crate::docs::security"]
    #[doc = "[SECURITY]: crate::docs::security"]
    #[doc = ""]
    #[doc = include_str!("../docs/guide/other-programs.md")]
    pub mod other_programs {}
    #[doc = "[front end]: self::front_end"]
    #[doc = "[upgrades first and then reads]: self::missed"]
    #[doc = ""]
    #[doc = include_str!("../docs/guide/proxies.md")]
    pub mod proxies {}
    #[doc = "[auth]: self::auth"]
    #[doc = ""]
    #[doc = include_str!("../docs/guide/rooms.md")]
    pub mod rooms {}
    #[doc = "[figures]: crate::docs::figures"]
    #[doc = "[scale]: crate::docs::scale"]
    #[doc = ""]
    #[doc = include_str!("../docs/guide/sizing.md")]
    pub mod sizing {}
}

mod audience;
mod broadcast;
mod builder;
mod bus;
mod cluster;
mod config;
mod counts;
#[cfg(feature = "dashboard")]
mod dashboard;
mod door;
mod events;
mod extract;
mod home;
#[cfg(any(fuzzing, axum_cluster_internals))]
#[doc(hidden)]
pub mod internals;
mod layer;
mod local;
mod measures;
#[cfg(feature = "metrics")]
mod metrics;
mod model;
mod node;
mod peers;
mod presence;
mod quota;
mod readers;
mod rejection;
mod socket;
mod sse;
mod subscription;
mod tasks;
#[cfg(feature = "testing")]
pub mod testing;
mod to_nodes;
mod waker;
mod worker;
mod ws;

pub use audience::Audience;
pub use broadcast::Broadcaster;
pub use builder::ClusterBuilder;
pub use bus::Backend;
pub use bus::gaps::Gaps;
pub use bus::health::HealthChanges;
#[cfg(feature = "redis")]
pub use bus::redis::Redis;
pub use cluster::Cluster;
pub use config::Unauthenticated;
pub use counts::{StatKind, Stats};
#[cfg(feature = "dashboard")]
pub use dashboard::Dashboard;
pub use events::{ClusterEvents, Events};
pub use extract::ClusterSocket;
pub use layer::{ClusterLayer, ClusterService};
pub use local::moves::{Move, Moves};
pub use model::close::Close;
pub use model::code::CloseCode;
#[cfg(feature = "deflate")]
pub use model::compression::Compression;
pub use model::delivery::{Delivery, Outcome};
pub use model::error::{
    BadMessage, BadMessageKind, Closed, ClosedKind, ClusterRejectionKind, ConnectError,
    ConnectErrorKind, DescriptionError, DescriptionErrorKind, QueryError, QueryErrorKind,
    RoomError, RoomErrorKind, SendError, SendErrorKind, SendJsonError, SendJsonErrorKind,
    SubscribeError, SubscribeErrorKind,
};
pub use model::gap::Gap;
pub use model::health::Health;
pub use model::history::position::{InvalidPosition, Position};
pub use model::history::{History, Kept, Missed, Resumed};
pub use model::id::{InvalidId, InvalidNodeId, InvalidSocketId, NodeId, RoomId, SocketId, UserId};
pub use model::limits::SlowConsumer;
pub use model::message::Message;
pub use model::roster::{Count, NodeInfo, Roster, SocketInfo};
pub use model::utf8::Utf8Bytes;
pub use peers::messages::{NodeMessage, NodeMessages};
pub use presence::{Presence, PresenceChange};
pub use quota::OverLimit;
pub use rejection::ClusterRejection;
pub use socket::Socket;
pub use subscription::Subscription;
pub use to_nodes::ToNodes;
pub use worker::BroadcasterBuilder;

/// Compiles the programs of the README.
#[cfg(all(doctest, feature = "redis"))]
#[doc = include_str!("../README.md")]
struct Readme;
