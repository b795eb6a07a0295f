//! A node of the soak: an axum app whose handlers tell their clients of gaps, a sender for every
//! audience, and one who asks. Prints reports, and obeys the lines of its standard input until that ends.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::serve::ListenerExt;
use axum::{Router, routing::any};
use axum_cluster::{Cluster, ClusterSocket, Health, History, OverLimit, Socket, SocketId, UserId};
use futures::StreamExt;
use http::HeaderValue;
use socket2::SockRef;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::dispatch::Report;
use crate::inquirer::Inquirer;
use crate::series::{Bursts, Series};
use crate::words::{
    CHECKED, LIMIT, Life, Target, ToClient, audiences, micros, now, room_name, wide_union,
};

/// The length of a message, so that slow clients fill their buffers.
const PADDED: usize = 256;
/// Of those to a union of many rooms, and of those to single sockets in bursts.
const BIG: usize = 100 * 1024;
const SHORT: usize = 0;
/// Longer than any fault: nothing is lost for being old.
const KEPT: Duration = Duration::from_secs(15 * 60);
/// More than is sent in any fault.
const SPOOLED: usize = 100_000;
const SPOOLED_BYTES: usize = 1 << 28;
/// The kernel's send buffer of a socket: small, for the same reason.
const SEND_BUFFER: usize = 32 * 1024;

/// So often it looks whether something was lost.
const LOOK: Duration = Duration::from_millis(100);

/// What the nodes of a soak do, if that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    pub sabotage: bool,
    /// What is sent is kept, …
    pub history: bool,
    /// … and waits for Redis.
    pub spool: bool,
}

/// A life of a node, in this process.
pub async fn run(life: Life, redis_url: &str, habits: Habits) {
    let Habits {
        sabotage,
        history,
        spool,
    } = habits;
    let limit = LIMIT + if sabotage { 2 } else { 0 };
    let mut builder = Cluster::builder()
        .redis(redis_url)
        .namespace("soak")
        .max_sockets_per_user_in_cluster(limit, OverLimit::Refuse);
    if history {
        let kept = History {
            messages: 2000,
            keep: KEPT,
        };
        builder = builder
            .user_history(kept)
            .room_history(kept)
            .all_history(kept);
    }
    if spool {
        builder = builder.spool(SPOOLED, SPOOLED_BYTES, KEPT);
    }
    let cluster = builder.start();
    let app = Router::new()
        .route("/ws", any(ws))
        .layer(cluster.layer())
        .layer(middleware::from_fn_with_state(
            cluster.clone(),
            authenticate,
        ));
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
    tokio::spawn(report_losses(cluster.clone()));

    let (speaking, speak) = watch::channel(true);
    let series = |audience, targets, length| Series {
        life,
        broadcaster: cluster.broadcaster(),
        audience,
        targets,
        length,
        number: 0,
        spool,
        sabotage,
    };
    let inquirer = Inquirer {
        broadcaster: cluster.broadcaster(),
        node: life.node,
        sabotage,
    };
    let mut speakers = JoinSet::new();
    speakers.spawn(inquirer.clone().run(speak.clone()));
    let all = audiences();
    let wide = series(all.len(), wide_union(), BIG);
    for (audience, targets) in all.into_iter().enumerate() {
        speakers.spawn(series(audience, targets, PADDED).run(speak.clone()));
    }
    let mut bursts = Bursts::new(wide);
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(command)) = commands.next_line().await {
        let words: Vec<&str> = command.split(' ').collect();
        match words.as_slice() {
            ["hush"] => {
                speaking.send_replace(false);
                while speakers.join_next().await.is_some() {}
                say(&Report::Done);
            }
            ["unions", seconds] => {
                bursts.unions(duration(seconds)).await;
                say(&Report::Done);
            }
            ["singles", seconds, sockets @ ..] => {
                let named = sockets.iter().map(|named| single(named));
                let new =
                    |(audience, socket)| series(audience, vec![Target::Socket(socket)], SHORT);
                bursts.singles(duration(seconds), named.map(new)).await;
                say(&Report::Done);
            }
            ["questions", to, sockets @ ..] => {
                let to = to.parse().expect("our driver's words");
                let sockets = sockets.iter().map(|named| single(named).1);
                inquirer.flood(to, sockets.collect()).await;
                say(&Report::Done);
            }
            _ => say(&Report::Stats(stats(&cluster))),
        }
    }
    cluster.shutdown(Duration::from_secs(1)).await;
}

fn duration(seconds: &str) -> Duration {
    Duration::from_secs(seconds.parse().expect("our driver's words"))
}

/// The number of an audience, and the socket that it is.
fn single(named: &str) -> (usize, SocketId) {
    let words = named
        .split_once('=')
        .and_then(|(audience, socket)| Some((audience.parse().ok()?, socket.parse().ok()?)));
    words.expect("our driver's words")
}

pub fn say(report: &Report) {
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
        stats.questions_refused,
        stats.limits_refused,
        stats.limits_unchecked,
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

async fn report_losses(cluster: Cluster) {
    let mut last = (0, 0);
    loop {
        sleep(LOOK).await;
        let stats = cluster.stats();
        let lost = (stats.history_rolled_back, stats.history_missed);
        if lost != last {
            let (rolled_back, missed) = lost;
            say(&Report::Lost {
                at: now(),
                rolled_back,
                missed,
            });
            last = lost;
        }
    }
}

// The sockets ------------------------------------------------------------------------------------------

/// Also tells the client whether its limit was checked. Another's that was not, meanwhile, is taken for its.
async fn authenticate(
    State(cluster): State<Cluster>,
    mut request: Request,
    next: Next,
) -> Response {
    let user = request
        .headers()
        .get("x-user")
        .and_then(|user| user.to_str().ok());
    if let Some(user) = user.map(UserId::from) {
        request.extensions_mut().insert(user);
    }
    let before = cluster.stats().limits_unchecked;
    let mut response = next.run(request).await;
    let is_checked = cluster.stats().limits_unchecked == before;
    let said = HeaderValue::from_static(if is_checked { "true" } else { "false" });
    response.headers_mut().insert(CHECKED, said);
    response
}

async fn ws(socket: ClusterSocket) -> Response {
    socket.on_upgrade(|mut socket| async move {
        serve(&mut socket).await;
        let code = socket
            .close_reason()
            .map_or(1000, |close| close.code.as_u16());
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
