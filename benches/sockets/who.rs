//! What it costs to know who is there, in Redis' own counts.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use axum_cluster::{Cluster, PresenceChange};
use futures::StreamExt;

use crate::process::{Process, median};
use crate::redis::RedisServer;
use crate::row;

/// Commands that Redis has served, and bytes in both directions.
#[derive(Clone, Copy)]
struct Traffic {
    commands: f64,
    bytes: f64,
}

impl Traffic {
    fn so_far(redis: &RedisServer) -> Self {
        let info = redis.cli(&["INFO", "stats"]);
        let figure = |name: &str| -> f64 {
            let value = info
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value
                .and_then(|value| value.parse().ok())
                .expect("a figure")
        };
        Self {
            commands: figure("total_commands_processed"),
            bytes: figure("total_net_input_bytes") + figure("total_net_output_bytes"),
        }
    }

    /// Since then, for each of so many; asking costs a command itself.
    fn since(self, redis: &RedisServer, count: usize) -> String {
        let now = Self::so_far(redis);
        let commands = (now.commands - self.commands - 1.0) / count as f64;
        let bytes = (now.bytes - self.bytes) / count as f64;
        format!("{commands:.2} commands, {bytes:.0} B")
    }
}

/// Connects and disconnects, with and without a node that follows presence, or a limit of sockets per user
/// in the cluster; and the rest at 10,000 users.
pub fn presence() {
    for (followed, kind, how) in [
        (false, "cluster", "presence not followed"),
        (true, "cluster", "presence followed"),
        (false, "limited", "a limit in the cluster"),
    ] {
        let redis = RedisServer::start();
        let mut server = Process::start(&[kind, &redis.url()]);
        let mut follower = Process::start(&[kind, &redis.url()]);
        if followed {
            follower.ask("follow");
        }
        let users = 5_000;
        let before = Traffic::so_far(&redis);
        let load = Process::load(&[(&server, "user-", 0..users)]);
        if followed {
            follower.until("online", users as u64);
        }
        row(&format!("a connect, {how}"), &before.since(&redis, users));
        let before = Traffic::so_far(&redis);
        drop(load);
        server.until("sockets", 0);
        // The linger of 2 s, then the grace period of 5 s.
        std::thread::sleep(Duration::from_secs(3));
        if followed {
            follower.until("online", 0);
        }
        row(
            &format!("a disconnect, {how}"),
            &before.since(&redis, users),
        );

        let load = Process::load(&[(&server, "user-", 0..10_000)]);
        server.until("sockets", 10_000);
        std::thread::sleep(Duration::from_secs(1));
        let before = Traffic::so_far(&redis);
        std::thread::sleep(Duration::from_secs(15));
        row(
            &format!("a lease of 15 s, two nodes, 10,000 users, {how}"),
            &before.since(&redis, 1),
        );
        drop(load);
    }
}

/// One user's devices, one on each node.
pub fn rosters() {
    const ROSTERS: usize = 500;
    for count in [3, 16] {
        let redis = RedisServer::start();
        let mut nodes: Vec<_> = (0..count)
            .map(|_| Process::start(&["cluster", &redis.url()]))
            .collect();
        let targets: Vec<_> = nodes.iter().map(|node| (node, "user-", 0..1)).collect();
        let _load = Process::load(&targets);
        assert_eq!(nodes[0].ask("roster 1"), count as u64);
        let before = Traffic::so_far(&redis);
        let start = Instant::now();
        nodes[0].ask(&format!("roster {ROSTERS}"));
        let each = start.elapsed() / ROSTERS as u32;
        let traffic = before.since(&redis, ROSTERS);
        row(
            &format!("a roster of {count} nodes"),
            &format!("{traffic}, {each:.0?} one after the other"),
        );
    }
}

/// From the client's handshake until a reader on another node is told.
#[tokio::main]
pub async fn edges() {
    const EDGES: usize = 200;
    let redis = RedisServer::start();
    let server = Process::start(&["cluster", &redis.url()]);
    let here = Cluster::connect(redis.url()).await.expect("redis is there");
    let mut presence = here.broadcaster().presence();
    let (mut times, mut clients) = (Vec::new(), Vec::new());
    for n in 0..EDGES {
        let start = Instant::now();
        clients.push(handshake(server.port, n));
        let answered = start.elapsed();
        while presence.next().await != Some(PresenceChange::Online(format!("user-{n}").into())) {}
        times.push((start.elapsed() - answered).as_secs_f64() * 1000.0);
    }
    row(
        "from the answered handshake to the edge on another node, median",
        &format!("{:.1} ms", median(times)),
    );
}

fn handshake(port: u64, n: usize) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port as u16)).expect("the server listens");
    let request = format!(
        "GET /ws/user-{n} HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("it answers");
    assert_eq!(&answer, b"HTTP/1.1 101");
    stream
}
