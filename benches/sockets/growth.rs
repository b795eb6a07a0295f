//! What a node and Redis pay as the nodes grow in number, all in one process, so that the machine's mood is the same.

use std::time::Duration;

use axum_cluster::{Backend, Broadcaster, Cluster, PresenceChange, Subscription};
use futures::StreamExt;
use futures::future::join_all;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::process::{Process, median, own_figure};
use crate::redis::RedisServer;
use crate::{RUNS, row};

const SIZES: [usize; 6] = [2, 4, 8, 16, 32, 64];
const SENDS: usize = 50_000;
const CHANGES: usize = 2_000;
const ROSTERS: usize = 100;
/// Long enough for all that comes again and again to have come about equally often.
const IDLE: Duration = Duration::from_secs(15);

/// CPU time of all nodes and of Redis, in µs.
#[derive(Clone, Copy)]
struct Cpu {
    nodes: f64,
    redis: f64,
}

impl Cpu {
    fn so_far(fleet: &mut Process, redis: &RedisServer) -> Self {
        let info = redis.cli(&["INFO", "cpu"]);
        let figure = |name: &str| -> f64 {
            let value = info
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let value = value.and_then(|value| value.trim().parse().ok());
            value.expect("a figure")
        };
        Self {
            nodes: fleet.ask("fine_cpu") as f64 / 1e3,
            redis: 1e6 * (figure("used_cpu_user") + figure("used_cpu_sys")),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            nodes: self.nodes - before.nodes,
            redis: self.redis - before.redis,
        }
    }

    /// Of each of so many, without what passes while nothing happens.
    fn of_each(self, count: usize, idle: Self, elapsed: Duration) -> Self {
        let seconds = elapsed.as_secs_f64();
        let each = |all: f64, idle: f64| (all - idle * seconds) / count as f64;
        Self {
            nodes: each(self.nodes, idle.nodes),
            redis: each(self.redis, idle.redis),
        }
    }
}

/// A send, a change of presence, a roster and a second in which nothing happens, from two nodes to 64.
pub fn growth() {
    let redis = RedisServer::start();
    let mut fleet = Process::start(&["fleet", &redis.url()]);
    for nodes in SIZES {
        fleet.ask(&format!("nodes {nodes}"));
        let mut measure = |command: &str| {
            let (before, start) = (Cpu::so_far(&mut fleet, &redis), Instant::now());
            fleet.ask(command);
            let spent = Cpu::so_far(&mut fleet, &redis).since(before);
            (spent, start.elapsed())
        };
        let (idle, elapsed) = measure(&format!("idle {}", IDLE.as_secs()));
        let idle = idle.of_each(1, Cpu::NONE, Duration::ZERO).per(elapsed);
        row(
            &format!("{nodes} nodes, nothing happens: CPU a second and node"),
            &figures(idle, nodes),
        );
        for (what, command, count, concerned) in [
            ("a send to one other node", "send", SENDS, 1),
            (
                "a send to a socket on every node: for each",
                "send_all",
                SENDS / 10,
                nodes,
            ),
            (
                "a change of presence, followed by one node",
                "change",
                CHANGES,
                1,
            ),
            (
                "a change of presence, followed by all: for each",
                "change_all",
                CHANGES,
                nodes,
            ),
            (
                "a roster of a socket on every node: for each",
                "roster",
                ROSTERS,
                nodes,
            ),
        ] {
            let command = format!("{command} {count}");
            let runs: Vec<Cpu> = (0..RUNS)
                .map(|_| {
                    let (spent, elapsed) = measure(&command);
                    spent.of_each(count, idle, elapsed)
                })
                .collect();
            let spent = Cpu {
                nodes: median(runs.iter().map(|cpu| cpu.nodes).collect()),
                redis: median(runs.iter().map(|cpu| cpu.redis).collect()),
            };
            row(
                &format!("{nodes} nodes, {what}"),
                &figures(spent, concerned),
            );
        }
    }
}

impl Cpu {
    const NONE: Self = Self {
        nodes: 0.0,
        redis: 0.0,
    };

    fn per(self, elapsed: Duration) -> Self {
        let seconds = elapsed.as_secs_f64();
        Self {
            nodes: self.nodes / seconds,
            redis: self.redis / seconds,
        }
    }
}

fn figures(cpu: Cpu, nodes: usize) -> String {
    let each = |all: f64| all / nodes as f64;
    format!(
        "nodes {:.2} µs, Redis {:.2} µs",
        each(cpu.nodes),
        each(cpu.redis)
    )
}

/// Nodes in one process.
#[tokio::main]
pub async fn fleet(redis: &str) {
    println!("0");
    let mut fleet = Fleet {
        redis: redis.to_owned(),
        ..Fleet::default()
    };
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(command)) = commands.next_line().await {
        let answer = match command.split(' ').collect::<Vec<_>>()[..] {
            ["nodes", count] => fleet.grow(number(count)).await,
            ["idle", seconds] => {
                sleep(Duration::from_secs(number(seconds) as u64)).await;
                0
            }
            ["send", count] => fleet.send(number(count)).await,
            ["send_all", count] => fleet.send_all(number(count)).await,
            ["change", count] => fleet.change(number(count), 1).await,
            ["change_all", count] => fleet.change(number(count), usize::MAX).await,
            ["roster", count] => fleet.roster(number(count)).await,
            _ => own_figure(&command).expect("a known command"),
        };
        println!("{answer}");
    }
}

#[derive(Default)]
struct Fleet {
    redis: String,
    nodes: Vec<Cluster>,
    /// Read the sockets of one user who has one on every node.
    everywhere: JoinSet<()>,
    changes: usize,
}

impl Fleet {
    async fn grow(&mut self, count: usize) -> u64 {
        while self.nodes.len() < count {
            let backend = Backend::redis(&self.redis).expect("a good url");
            let builder = Cluster::builder().backend(backend);
            let node = builder.presence_grace(Duration::from_millis(100)).start();
            node.ready().await.expect("redis is there");
            let socket = subscribe(&node.broadcaster(), "everywhere").await;
            self.everywhere.spawn(socket.for_each(async |_| {}));
            self.nodes.push(node);
        }
        for node in &self.nodes {
            while node.nodes().await.expect("redis is there").len() < count {
                sleep(Duration::from_millis(50)).await;
            }
        }
        count as u64
    }

    async fn send(&self, count: usize) -> u64 {
        let socket = subscribe(&self.nodes[1].broadcaster(), "alice").await;
        let reading = tokio::spawn(socket.for_each(async |_| {}));
        self.send_to("alice", count, 1).await;
        reading.abort();
        0
    }

    async fn send_all(&self, count: usize) -> u64 {
        self.send_to("everywhere", count, self.nodes.len() - 1)
            .await;
        0
    }

    async fn send_to(&self, user: &str, count: usize, others: usize) {
        let (sender, payload) = (self.nodes[0].broadcaster(), "x".repeat(128));
        let sends = (0..count).map(|_| sender.to_user(user).send(payload.as_str()));
        let mut sends = futures::stream::iter(sends).buffer_unordered(64);
        while let Some(sent) = sends.next().await {
            assert_eq!(sent.expect("redis is there").nodes(), Some(others));
        }
    }

    /// Half of them come, and half go.
    async fn change(&mut self, count: usize, followers: usize) -> u64 {
        let followers = self.nodes.iter().take(followers);
        let mut presences: Vec<_> = followers
            .map(|node| node.broadcaster().presence())
            .collect();
        let settled = Duration::from_secs(1);
        sleep(settled).await;
        let (half, host) = (count / 2, self.nodes[1].broadcaster());
        self.changes += half;
        let user = |n: usize| format!("user-{}", self.changes + n);
        let sockets = join_all((0..half).map(|n| subscribe(&host, user(n))));
        let sockets: Vec<_> = sockets.await;
        let told = async |presence: &mut axum_cluster::Presence, is_online: bool| {
            let mut left = half;
            while left > 0 {
                let change: PresenceChange = presence.next().await.expect("it goes on");
                let user = change.user().as_str();
                left -= usize::from(user.starts_with("user-") && change.is_online() == is_online);
            }
        };
        join_all(presences.iter_mut().map(|presence| told(presence, true))).await;
        drop(sockets);
        join_all(presences.iter_mut().map(|presence| told(presence, false))).await;
        0
    }

    async fn roster(&self, count: usize) -> u64 {
        let asker = self.nodes[0].broadcaster();
        for _ in 0..count {
            let roster = asker.to_user("everywhere").sockets().await;
            let roster = roster.expect("redis is there");
            let sockets = roster.sockets().len();
            assert!(
                roster.is_complete() && sockets == self.nodes.len(),
                "{sockets}: {:?}",
                roster.missing()
            );
        }
        0
    }
}

async fn subscribe(node: &Broadcaster, user: impl Into<axum_cluster::UserId>) -> Subscription {
    node.subscribe(user).await.expect("a place")
}

fn number(text: &str) -> usize {
    text.parse().expect("a number")
}
