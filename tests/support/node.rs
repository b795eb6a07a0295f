//! A node behind a real server, with a small app around it.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::{Router, routing::any};
use axum_cluster::{
    Broadcaster, Close, Cluster, ClusterEvents, ClusterSocket, Health, NodeId, Socket, SocketId,
    UserId,
};
use futures::StreamExt;
use serde_json::json;
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::client::Client;
use super::{soon, until};

/// A handler has ended; the reason its socket gave.
#[derive(Debug, PartialEq)]
pub struct Ended {
    pub user: String,
    pub close: Option<Close>,
}

#[derive(Debug)]
pub struct TestNode {
    pub cluster: Cluster,
    pub broadcaster: Broadcaster,
    pub addr: SocketAddr,
    pub ended: mpsc::UnboundedReceiver<Ended>,
    server: JoinHandle<()>,
}

impl TestNode {
    pub async fn start(cluster: Cluster) -> Self {
        let (sender, ended) = mpsc::unbounded_channel();
        let app = Router::new()
            .route("/ws", any(ws))
            .route("/events", any(events))
            .route("/gaps", any(gaps))
            .with_state(sender);
        let app = app
            .layer(cluster.layer())
            .layer(middleware::from_fn(authenticate));
        let (addr, server) = serve(app).await;
        let broadcaster = cluster.broadcaster();
        Self {
            cluster,
            broadcaster,
            addr,
            ended,
            server,
        }
    }

    pub fn id(&self) -> NodeId {
        self.cluster.id()
    }

    pub async fn client(&self, user: &str) -> Client {
        Client::connect(self.addr, user).await
    }

    /// Waits until the bus is up: longer than `Cluster::ready`, where a busy machine starts whatever is behind it.
    pub async fn until_up(&self) {
        until("the bus is up", async || {
            self.cluster.health() == Health::Up
        })
        .await;
    }

    /// How the next handler ends.
    pub async fn next_end(&mut self) -> Ended {
        soon("a handler's end", self.ended.recv())
            .await
            .expect("the app lives")
    }

    /// Waits until this user has no socket here.
    pub async fn until_empty_of(&self, user: &str) {
        until("the user is gone", async || {
            let count = self.broadcaster.to_user(user).local().count().await;
            count.expect("the node lives").sockets() == 0
        })
        .await;
    }

    /// Waits until no socket is registered here.
    pub async fn until_empty(&self) {
        until("no socket here", async || self.cluster.stats().sockets == 0).await;
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// With room for a herd of connections that are not accepted yet: the kernel resets some of those that find
/// none.
pub async fn serve(app: Router) -> (SocketAddr, JoinHandle<()>) {
    let socket = TcpSocket::new_v4().expect("a socket");
    let any_port = ([127, 0, 0, 1], 0).into();
    socket.bind(any_port).expect("a free port");
    let listener = socket.listen(4096).expect("it is bound");
    let addr = listener.local_addr().expect("it is bound");
    let server = tokio::spawn(async move { axum::serve(listener, app).await.expect("it serves") });
    (addr, server)
}

/// Takes the user from a percent-encoded header.
pub async fn authenticate(mut request: Request, next: Next) -> Response {
    if let Some(user) = request.headers().get("x-user") {
        let user = percent_encoding::percent_decode(user.as_bytes()).decode_utf8();
        let user = UserId::from(&*user.expect("the test sends UTF-8"));
        request.extensions_mut().insert(user);
    }
    next.run(request).await
}

async fn ws(
    State(ended): State<mpsc::UnboundedSender<Ended>>,
    headers: HeaderMap,
    mut socket: ClusterSocket,
) -> Response {
    if let Some(room) = headers.get("x-room") {
        socket = socket.join(room.to_str().expect("the test sends ASCII"));
    }
    socket
        .protocols(["chat", "superchat"])
        .describe(json!({ "device": "test" }))
        .on_upgrade(|mut socket| async move {
            obey(&mut socket).await;
            let end = Ended {
                user: socket.user().to_string(),
                close: socket.close_reason(),
            };
            // Nobody may be interested.
            let _ = ended.send(end);
        })
}

async fn events(events: ClusterEvents) -> Response {
    events.stream()
}

/// Tells its client of its gaps, and joins the rooms that this names.
async fn gaps(socket: ClusterSocket) -> Response {
    socket.on_upgrade(|mut socket| async move {
        let mut gaps = socket.gaps();
        loop {
            let told = tokio::select! {
                biased;
                Some(gap) = gaps.next() => json!(gap).to_string(),
                message = socket.recv() => {
                    let Some(room) = message else {
                        return;
                    };
                    let room = room.as_text().unwrap_or_default();
                    socket.join(room).await.expect("a good name");
                    "joined".to_owned()
                }
            };
            if socket.send(told).await.is_err() {
                return;
            }
        }
    })
}

/// Does what the client says, and echoes what is no command.
async fn obey(socket: &mut Socket) {
    while let Some(message) = socket.recv().await {
        let command = message.as_text().unwrap_or_default().to_owned();
        let answer = match command.split_once(' ').unwrap_or((&command, "")) {
            ("id", _) => socket.id().to_string().into(),
            ("join", room) => match socket.join(room).await {
                Ok(()) => "joined".into(),
                Err(error) => error.to_string().into(),
            },
            ("leave", room) => {
                socket.leave(room);
                "left".into()
            }
            ("close", code) => {
                let code: u16 = code.parse().expect("a code");
                return socket.close(Close::new(code, "asked")).await;
            }
            ("return", _) => return,
            ("panic", _) => panic!("the client asked for it"),
            ("sleep", _) => std::future::pending().await,
            _ => message,
        };
        if socket.send(answer).await.is_err() {
            return;
        }
    }
}

/// The socket id that the app tells.
pub async fn id_of(client: &mut Client) -> SocketId {
    client.ask("id").await.parse().expect("an id")
}

/// Long enough to be no reason for anything.
pub const NEVER: Duration = Duration::from_secs(3600);
