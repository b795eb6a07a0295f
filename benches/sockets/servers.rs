//! The servers that are compared.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::net::TcpListener as BlockingListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::extract::ws::{Message as AxumMessage, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::serve::ListenerExt;
use axum::{Router, routing::any};
use axum_cluster::{Backend, Broadcaster, Cluster, ClusterSocket, OverLimit, UserId};
use futures::future::{join, join_all};
use futures::stream::{self, SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::process::own_figure;

/// Users that sends go to in turn.
const USERS: usize = 1_000;

fn payload() -> String {
    "x".repeat(128)
}

/// About 1 KiB of JSON as a shop has it, different each time.
fn orders(round: usize) -> String {
    let order = |n: usize| {
        let id = (round * 7 + n) as u64 * 0x9e37_79b9_7f4a_7c15;
        serde_json::json!({
            "id": format!("{id:016x}"),
            "customer": format!("user-{}", id % 100_000),
            "status": (["paid", "shipped", "returned"][(id >> 7) as usize % 3]),
            "total": id % 1_000_000,
            "placed_at": format!("2026-11-{:02}T{:02}:{:02}:00Z", 1 + id % 28, id % 24, id % 60),
        })
    };
    serde_json::json!({ "type": "orders", "orders": Vec::from_iter((0..8).map(order)) }).to_string()
}

/// This crate.
pub fn cluster(backend: &str, limited: bool) {
    on_a_worker(cluster_server(backend.to_owned(), limited));
}

/// Runs as a task among others, not on the thread that blocks on it: each wake-up of that costs a switch.
#[tokio::main]
async fn on_a_worker(server: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(server).await.expect("it runs");
}

async fn cluster_server(backend: String, limited: bool) {
    let backend = match backend.as_str() {
        "memory" => Backend::memory(),
        url => Backend::redis(url).expect("a good url"),
    };
    // The raw client answers no ping, and on a busy machine a bench takes its time.
    let mut builder = Cluster::builder()
        .backend(backend)
        .pong_timeout(Duration::from_secs(3600));
    #[cfg(feature = "deflate")]
    {
        builder = builder.compression(axum_cluster::Compression::default());
    }
    if limited {
        builder = builder.max_sockets_per_user_in_cluster(10, OverLimit::Refuse);
    }
    let cluster = builder.start();
    cluster.ready().await.expect("the bus comes up");
    let heard = Arc::new(AtomicU64::new(0));
    let app = Router::new()
        .route("/ws/{user}", any(socket))
        .with_state(heard.clone());
    let app = app
        .layer(cluster.layer())
        .layer(middleware::from_fn(user_of_path));
    tokio::spawn(serve(app, false));
    let broadcaster = cluster.broadcaster();
    let online = Arc::new(AtomicU64::new(0));
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(command)) = commands.next_line().await {
        let answer = match command.split(' ').collect::<Vec<_>>()[..] {
            ["sockets"] => cluster.stats().sockets,
            ["heard"] => heard.load(Relaxed),
            ["follow"] => {
                tokio::spawn(follow(broadcaster.clone(), online.clone()));
                0
            }
            ["online"] => online.load(Relaxed),
            ["roster", count] => {
                let mut sockets = 0;
                for _ in 0..number(count) {
                    let roster = broadcaster.to_user("user-0").sockets().await;
                    sockets = roster.expect("a good id").sockets().len() as u64;
                }
                sockets
            }
            ["big", size] => {
                let message = vec![b'x'; size.parse().expect("a size")];
                broadcaster
                    .to_all()
                    .local()
                    .send(message)
                    .await
                    .expect("local")
                    .local() as u64
            }
            ["local", rounds] => {
                for _ in 0..number(rounds) {
                    broadcaster
                        .to_all()
                        .local()
                        .send(payload())
                        .await
                        .expect("local");
                }
                0
            }
            ["json", rounds] => {
                for round in 0..number(rounds) {
                    let everybody = broadcaster.to_all().local();
                    everybody.send(orders(round)).await.expect("local");
                }
                0
            }
            ["batches", rounds, size] => {
                for _ in 0..number(rounds) {
                    let sends = (0..number(size)).map(|_| broadcaster.to_all().send(payload()));
                    join_all(sends).await;
                }
                0
            }
            ["unicast", count, window] => {
                let user = |n| format!("user-{}", n % USERS);
                in_flight(count, window, |n| send(&broadcaster, Some(user(n)))).await
            }
            ["broadcast", count, window] => {
                in_flight(count, window, |_| send(&broadcaster, None)).await
            }
            _ => own_figure(&command).expect("a known command"),
        };
        println!("{answer}");
    }
}

async fn follow(broadcaster: Broadcaster, online: Arc<AtomicU64>) {
    let mut presence = broadcaster.presence();
    while let Some(change) = presence.next().await {
        if change.is_online() {
            online.fetch_add(1, Relaxed);
        } else {
            online.fetch_sub(1, Relaxed);
        }
    }
}

async fn send(broadcaster: &Broadcaster, user: Option<String>) {
    let audience = match user {
        Some(user) => broadcaster.to_user(user),
        None => broadcaster.to_all(),
    };
    audience.send(payload()).await.expect("the bus is up");
}

async fn in_flight<F: Future>(count: &str, window: &str, one: impl Fn(usize) -> F) -> u64 {
    let all = stream::iter(0..number(count))
        .map(one)
        .buffer_unordered(number(window));
    all.count().await as u64
}

async fn socket(State(heard): State<Arc<AtomicU64>>, socket: ClusterSocket) -> Response {
    socket.on_upgrade(move |mut socket| async move {
        while let Some(message) = socket.recv().await {
            heard.fetch_add(message.len() as u64, Relaxed);
        }
    })
}

async fn user_of_path(mut request: Request, next: Next) -> Response {
    let user = request.uri().path().rsplit('/').next().unwrap_or_default();
    let user = UserId::from(user);
    request.extensions_mut().insert(user);
    next.run(request).await
}

type Sockets = Arc<Mutex<HashMap<String, Vec<mpsc::Sender<AxumMessage>>>>>;

/// What one would write by hand, for one process and without a bus. With `nodelay` it sends every message at
/// once, as this crate does; without, as servers do unless told otherwise, a message waits until the client
/// has acknowledged the one before, and may leave with others.
pub fn plain_axum(nodelay: bool) {
    on_a_worker(plain_server(nodelay));
}

async fn plain_server(nodelay: bool) {
    let sockets = Sockets::default();
    let app = Router::new()
        .route("/ws/{user}", any(plain_socket))
        .with_state(sockets.clone());
    tokio::spawn(serve(app, nodelay));
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(command)) = commands.next_line().await {
        let answer = match command.split(' ').collect::<Vec<_>>()[..] {
            ["unicast", count, rate] => {
                let user = |n| format!("user-{}", n % USERS);
                at_rate(count, rate, |n| plain_send(&sockets, Some(user(n)))).await
            }
            ["broadcast", count, rate] => {
                at_rate(count, rate, |_| plain_send(&sockets, None)).await
            }
            _ => own_figure(&command).expect("a known command"),
        };
        println!("{answer}");
    }
}

/// One after the other, but not faster than so many a second.
async fn at_rate<F: Future>(count: &str, rate: &str, one: impl Fn(usize) -> F) -> u64 {
    let start = Instant::now();
    let pause = Duration::from_secs(1).div_f64(number(rate) as f64);
    for n in 0..number(count) {
        let due = start + pause * n as u32;
        if due > Instant::now() {
            sleep_until(due).await;
        }
        one(n).await;
    }
    count.parse().unwrap_or(0)
}

async fn plain_send(sockets: &Sockets, user: Option<String>) {
    let senders: Vec<_> = match user {
        Some(user) => sockets.lock().get(&user).cloned().unwrap_or_default(),
        None => sockets.lock().values().flatten().cloned().collect(),
    };
    let message = AxumMessage::from(payload());
    for sender in senders {
        // Ended meanwhile.
        let _ = sender.send(message.clone()).await;
    }
}

async fn plain_socket(
    State(sockets): State<Sockets>,
    Path(user): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Response {
    upgrade
        .read_buffer_size(4096)
        .on_upgrade(|socket| async move {
            let (sender, messages) = mpsc::channel(256);
            sockets.lock().entry(user).or_default().push(sender);
            let (sink, stream) = socket.split();
            join(plain_write(sink, messages), plain_read(stream)).await;
        })
}

async fn plain_write(
    mut sink: SplitSink<WebSocket, AxumMessage>,
    mut messages: mpsc::Receiver<AxumMessage>,
) {
    while let Some(message) = messages.recv().await {
        if sink.send(message).await.is_err() {
            return;
        }
    }
}

async fn plain_read(mut stream: SplitStream<WebSocket>) {
    while let Some(Ok(_)) = stream.next().await {}
}

async fn serve(app: Router, nodelay: bool) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    println!("{}", listener.local_addr().expect("bound").port());
    let listener = listener.tap_io(move |stream| stream.set_nodelay(nodelay).expect("tcp"));
    axum::serve(listener, app).await.expect("it serves");
}

/// Nothing but `send(2)`.
pub fn floor() {
    let listener = BlockingListener::bind("127.0.0.1:0").expect("a free port");
    println!("{}", listener.local_addr().expect("bound").port());
    let streams = Arc::new(Mutex::new(Vec::new()));
    let accepted = streams.clone();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nodelay(true).expect("tcp");
            accepted.lock().push(stream);
        }
    });
    let mut frame = vec![0x81, 126, 0, 128];
    frame.extend(payload().into_bytes());
    for command in std::io::stdin().lock().lines().map_while(Result::ok) {
        let answer = match command.split(' ').collect::<Vec<_>>()[..] {
            ["send", rounds, size] => {
                let frames = frame.repeat(number(size));
                for _ in 0..number(rounds) {
                    for stream in streams.lock().iter_mut() {
                        stream.write_all(&frames).expect("the client reads");
                    }
                }
                0
            }
            _ => own_figure(&command).expect("a known command"),
        };
        println!("{answer}");
    }
}

fn number(text: &str) -> usize {
    text.parse().expect("a number")
}
