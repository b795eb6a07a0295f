//! A node of the soak: an axum app whose handlers tell their clients of gaps, and a sender for every
//! audience. Prints reports, and obeys the lines of its standard input until that ends.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::serve::ListenerExt;
use axum::{Router, routing::any};
use axum_cluster::{Cluster, ClusterSocket, Health, Socket, UserId};
use futures::StreamExt;
use socket2::SockRef;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::words::{
    Kind, Life, Outcome, Report, Stamp, Target, ToClient, address, audiences, kind, micros, now,
    room_name,
};

/// The length of a message, so that slow clients fill their buffers.
const PADDED: usize = 256;
/// The kernel's send buffer of a socket: small, for the same reason.
const SEND_BUFFER: usize = 32 * 1024;

/// A life of a node, in this process.
pub async fn run(life: Life, redis_url: &str, sabotage: bool) {
    let cluster = Cluster::builder()
        .redis(redis_url)
        .namespace("soak")
        .start();
    let app = Router::new()
        .route("/ws", any(ws))
        .layer(cluster.layer())
        .layer(middleware::from_fn(authenticate));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("it is bound");
    say(&Report::Port(addr.port()));
    let listener = listener.tap_io(|stream| {
        let shrunk = SockRef::from(&*stream).set_send_buffer_size(SEND_BUFFER);
        shrunk.expect("linux lets us");
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    tokio::spawn(report_health(cluster.clone()));
    tokio::spawn(report_gaps(cluster.clone()));

    let (speaking, speak) = watch::channel(true);
    let mut senders = JoinSet::new();
    for (audience, targets) in audiences().into_iter().enumerate() {
        let sender = Sender {
            life,
            cluster: cluster.clone(),
            audience,
            targets,
            sabotage,
        };
        senders.spawn(sender.run(speak.clone()));
    }
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(command)) = commands.next_line().await {
        match command.as_str() {
            "hush" => {
                speaking.send_replace(false);
                while senders.join_next().await.is_some() {}
                say(&Report::Silent);
            }
            _ => say(&Report::Stats(stats(&cluster))),
        }
    }
    cluster.shutdown(Duration::from_secs(1)).await;
}

fn say(report: &Report) {
    println!("{report}");
}

fn stats(cluster: &Cluster) -> String {
    let stats = cluster.stats();
    let figures = [
        stats.sockets,
        stats.sent,
        stats.delivered,
        stats.slow_closed,
        stats.bus_gaps,
        stats.bus_garbage,
        stats.bus_publish_failures,
    ];
    figures.map(|figure| figure.to_string()).join(" ")
}

async fn report_health(cluster: Cluster) {
    let mut changes = cluster.health_changes();
    while let Some(health) = changes.next().await {
        say(&match health {
            Health::Up => Report::Up(now()),
            _ => Report::Degraded(now()),
        });
    }
}

async fn report_gaps(cluster: Cluster) {
    let mut gaps = cluster.gaps();
    while let Some(gap) = gaps.next().await {
        say(&Report::Gap {
            from: micros(gap.from),
            until: micros(gap.until),
        });
    }
}

// The sockets ------------------------------------------------------------------------------------------

async fn authenticate(mut request: Request, next: Next) -> Response {
    let user = request
        .headers()
        .get("x-user")
        .and_then(|user| user.to_str().ok());
    if let Some(user) = user.map(UserId::from) {
        request.extensions_mut().insert(user);
    }
    next.run(request).await
}

async fn ws(socket: ClusterSocket) -> Response {
    socket.on_upgrade(|mut socket| async move {
        serve(&mut socket).await;
        let code = socket.close_reason().map_or(1000, |close| close.code);
        let socket = socket.id();
        say(&Report::Ended { socket, code });
    })
}

/// Does what the client says, and tells it what it may have missed.
async fn serve(socket: &mut Socket) -> Option<()> {
    let mut gaps = socket.gaps();
    let mut answer = ToClient::Welcome(socket.id());
    loop {
        socket.send(answer.to_string()).await.ok()?;
        answer = tokio::select! {
            gap = gaps.next() => {
                let gap = gap?;
                ToClient::Gap { from: micros(gap.from), until: micros(gap.until) }
            }
            message = socket.recv() => obey(socket, message?.as_text()?).await?,
        };
    }
}

async fn obey(socket: &Socket, command: &str) -> Option<ToClient> {
    if command == "fence" {
        return Some(ToClient::Fence);
    }
    let (verb, room) = command.split_once(' ')?;
    let room: u16 = room.parse().ok()?;
    match verb {
        "join" => {
            socket.join(room_name(room)).await.ok()?;
            Some(ToClient::Joined(room))
        }
        "leave" => {
            socket.leave(room_name(room));
            Some(ToClient::Left(room))
        }
        _ => None,
    }
}

// The senders ------------------------------------------------------------------------------------------

/// Sends to one audience, one message after the other.
struct Sender {
    life: Life,
    cluster: Cluster,
    audience: usize,
    targets: Vec<Target>,
    /// Now and then a message is lost, doubled or late, to see whether the soak finds it.
    sabotage: bool,
}

impl Sender {
    async fn run(self, speak: watch::Receiver<bool>) {
        let pause = match kind(&self.targets) {
            Kind::All => 250,
            Kind::Room => 1000,
            Kind::User | Kind::Union => 2000,
        };
        let broadcaster = self.cluster.broadcaster();
        let targets: Arc<[Target]> = self.targets.into();
        // Restarted nodes and their audiences do not speak in step.
        let mut pauses = fastrand::Rng::new();
        for number in 1.. {
            sleep(Duration::from_millis(pauses.u64(pause / 2..pause * 3 / 2))).await;
            if !*speak.borrow() {
                return;
            }
            let sent = now();
            let written = match (self.sabotage, number % 50) {
                (true, 1) => number + 1,
                (true, 2) => number - 1,
                _ => number,
            };
            let stamp = Stamp {
                sender: self.life,
                audience: self.audience,
                number: written,
                sent,
            };
            let text = format!("{:PADDED$}", stamp.to_string());
            let mut audience = address(&broadcaster, &targets);
            if self.sabotage && number % 50 == 10 {
                audience = audience.local();
            }
            if self.sabotage && number % 50 == 20 {
                // What it tells is told by the second.
                let _ = audience.clone().send(text.clone()).await;
            }
            let outcome = match audience.send(text).await {
                Ok(_) => Outcome::Taken,
                Err(error) if error.maybe_sent() => Outcome::Unsure,
                Err(_) => Outcome::Refused,
            };
            say(&Report::Sent {
                audience: self.audience,
                number,
                sent,
                done: now(),
                outcome,
            });
        }
    }
}
