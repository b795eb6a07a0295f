//! What a node sends over a long link, and over a short one: see benches/README.md.

#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

#[path = "../../tests/support/line.rs"]
#[expect(dead_code, unreachable_pub, reason = "shared with the tests")]
mod line;
#[path = "../../tests/support/redis.rs"]
#[expect(dead_code, unreachable_pub, reason = "shared with the tests")]
mod redis;

use std::time::{Duration, Instant};

use axum_cluster::{Backend, Broadcaster, Cluster, Utf8Bytes};
use line::Line;
use redis::RedisServer;

const USERS: usize = 1_000;
/// From here to Redis and back.
const ROUND_TRIP: Duration = Duration::from_millis(10);
/// Time of one turn, …
const TURN: Duration = Duration::from_secs(2);
/// … and turns of each.
const TURNS: usize = 5;
const MANY: usize = 4_096;
const FEW: usize = 64;

#[tokio::main(worker_threads = 2)]
async fn main() {
    let server = RedisServer::start();
    let line = Line::to(server.port(), ROUND_TRIP);
    let mut nodes = Vec::new();
    for url in [line.url(), server.url()] {
        let backend = Backend::redis(url).unwrap();
        let node = Cluster::builder().backend(backend).start();
        node.ready().await.unwrap();
        nodes.push(node);
    }
    let [far, near] = [0, 1].map(|at| nodes[at].broadcaster());
    let mut rows: [(&str, Vec<f64>); 5] = [
        (
            "10 ms: thousand sends a second, 4,096 in flight",
            Vec::new(),
        ),
        ("10 ms: a send alone, ms", Vec::new()),
        ("10 ms: a send of 64 in flight, in round trips", Vec::new()),
        (
            "loopback: thousand sends a second, 4,096 in flight",
            Vec::new(),
        ),
        (
            "loopback: thousand sends a second, 64 in flight",
            Vec::new(),
        ),
    ];
    for _ in 0..TURNS {
        let alone = send(&far, 1).await.0;
        let few = send(&far, FEW).await.0;
        let figures = [
            send(&far, MANY).await.1,
            alone * 1e3,
            few / alone,
            send(&near, MANY).await.1,
            send(&near, FEW).await.1,
        ];
        rows.iter_mut()
            .zip(figures)
            .for_each(|((_, row), figure)| row.push(figure));
    }
    for (name, mut figures) in rows {
        figures.sort_by(f64::total_cmp);
        let (least, most) = (figures[0], figures[TURNS - 1]);
        println!(
            "{name:52} {:8.2} ({least:.2} to {most:.2})",
            figures[TURNS / 2]
        );
    }
}

/// So many at once, each in a task of its own: the time of a send in seconds, the mean, and thousand sends a second.
async fn send(sender: &Broadcaster, at_once: usize) -> (f64, f64) {
    let (begun, end) = (Instant::now(), Instant::now() + TURN);
    let tasks: Vec<_> = (0..at_once)
        .map(|n| {
            let user = sender.to_user((n % USERS).to_string());
            tokio::spawn(async move {
                let text = Utf8Bytes::from("x".repeat(128));
                let (mut count, mut sum) = (0, Duration::ZERO);
                let mut now = Instant::now();
                while now < end {
                    user.clone().send(text.clone()).await.unwrap();
                    sum += now.elapsed();
                    count += 1;
                    now = Instant::now();
                }
                (count, sum)
            })
        })
        .collect();
    let (mut count, mut sum) = (0, Duration::ZERO);
    for task in tasks {
        let (sent, took) = task.await.unwrap();
        count += sent;
        sum += took;
    }
    let count = f64::from(count);
    let rate = count / begun.elapsed().as_secs_f64() / 1e3;
    (sum.as_secs_f64() / count, rate)
}
