//! What it costs to keep a message, against sending it plainly, in turns in the same run: see benches/README.md.

#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

#[path = "../../tests/support/redis.rs"]
#[expect(dead_code, unreachable_pub, reason = "shared with the tests")]
mod redis;

use std::time::{Duration, Instant};

use axum_cluster::{Backend, Broadcaster, Cluster, ClusterBuilder, History};
use futures::StreamExt;
use futures::stream;
use redis::RedisServer;

/// Users that have a socket on the other node.
const USERS: usize = 1_000;
/// Messages of one turn, …
const MESSAGES: usize = 60_000;
/// … and so many at once.
const AT_ONCE: usize = 64;
/// Turns of each.
const TURNS: usize = 5;
/// One after the other.
const ALONE: usize = 4_000;
/// Users that get one message each, for what is kept of them.
const ONCE: usize = 20_000;

/// One of them.
type Of = fn(&Figures) -> f64;

struct Figures {
    /// CPU of Redis, in µs a message.
    redis: f64,
    /// CPU of both nodes, sender and receiver, in µs a message.
    nodes: f64,
    /// Median from the call to its return, in µs, one after the other.
    p50: f64,
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let server = RedisServer::start();
    let backend = Backend::redis(server.url()).unwrap();
    let keeping = |builder: ClusterBuilder| builder.user_history(History::default());
    let plain = Cluster::builder()
        .backend(backend.clone())
        .namespace("plain");
    let kept = Cluster::builder()
        .backend(backend.clone())
        .namespace("kept");
    let mut pairs = Vec::new();
    for builder in [plain, keeping(kept)] {
        let (sender, receiver) = (builder.clone().start(), builder.start());
        sender.ready().await.unwrap();
        receiver.ready().await.unwrap();
        listen(&receiver.broadcaster()).await;
        pairs.push((sender, receiver));
    }
    let [mut plain, mut kept] = [Vec::new(), Vec::new()];
    for _ in 0..TURNS {
        plain.push(measure(&pairs[0].0.broadcaster(), &server).await);
        kept.push(measure(&pairs[1].0.broadcaster(), &server).await);
    }
    let median = |figures: &[Figures], of: Of| {
        let mut values: Vec<f64> = figures.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    println!(
        "{:34} {:>9} {:>9} {:>7}",
        "medians of 5", "plain", "kept", "ratio"
    );
    let rows: [(&str, Of); 3] = [
        ("Redis, µs of CPU a message", |it| it.redis),
        ("both nodes, µs of CPU a message", |it| it.nodes),
        ("p50 of a send alone, µs", |it| it.p50),
    ];
    for (name, of) in rows {
        let (plain, kept) = (median(&plain, of), median(&kept, of));
        println!("{name:34} {plain:9.2} {kept:9.2} {:7.2}", kept / plain);
    }
    println!(
        "memory of Redis a user, of whom one message of 128 B is kept: {} B",
        memory(&pairs[1].0, &server).await
    );
}

/// Opens the sockets and reads what comes.
async fn listen(receiver: &Broadcaster) {
    for user in 0..USERS {
        let mut subscription = receiver.subscribe(user.to_string()).await.unwrap();
        tokio::spawn(async move { while subscription.next().await.is_some() {} });
    }
}

async fn measure(sender: &Broadcaster, server: &RedisServer) -> Figures {
    let text = "x".repeat(128);
    let before = (redis_cpu(server), own_cpu());
    let sends = stream::iter(0..MESSAGES).map(|n| {
        let (user, text) = (sender.to_user((n % USERS).to_string()), text.clone());
        async move { user.send(text).await.unwrap() }
    });
    sends.buffered(AT_ONCE).for_each(|_| async {}).await;
    let after = (redis_cpu(server), own_cpu());
    let each =
        |before: Duration, after: Duration| (after - before).as_secs_f64() * 1e6 / MESSAGES as f64;
    let mut times = Vec::with_capacity(ALONE);
    for n in 0..ALONE {
        let user = sender.to_user((n % USERS).to_string());
        let begun = Instant::now();
        user.send(text.clone()).await.unwrap();
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Figures {
        redis: each(before.0, after.0),
        nodes: each(before.1, after.1),
        p50: times[ALONE / 2].as_secs_f64() * 1e6,
    }
}

async fn memory(sender: &Cluster, server: &RedisServer) -> usize {
    let sender = sender.broadcaster();
    let used = || field(&server.cli(&["INFO", "memory"]), "used_memory") as usize;
    let before = used();
    let sends = stream::iter(0..ONCE).map(|n| {
        let user = sender.to_user(format!("once-{n:06}"));
        async move { user.send("x".repeat(128)).await.unwrap() }
    });
    sends.buffered(AT_ONCE).for_each(|_| async {}).await;
    (used() - before) / ONCE
}

fn redis_cpu(server: &RedisServer) -> Duration {
    let info = server.cli(&["INFO", "cpu"]);
    let seconds = field(&info, "used_cpu_user") + field(&info, "used_cpu_sys");
    Duration::from_secs_f64(seconds)
}

fn field(info: &str, name: &str) -> f64 {
    let mut lines = info.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.find(|(field, _)| *field == name).unwrap();
    value.trim().parse().unwrap()
}

/// User and system time of this process, in ticks of 10 ms.
fn own_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11..13]
        .iter()
        .map(|ticks| ticks.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(10 * ticks)
}
