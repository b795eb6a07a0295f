//! A primary, its replicas, and the sentinels that watch them.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{RedisServer, START};

/// The name under which the sentinels know the primary.
pub const SERVICE: &str = "mymaster";
/// So long a primary is silent before a sentinel takes it for gone, in milliseconds.
const DOWN_AFTER: u32 = 1000;

#[derive(Debug)]
pub struct Sentinels {
    /// The first is the primary at the start.
    pub servers: Vec<RedisServer>,
    pub sentinels: Vec<RedisServer>,
}

impl Sentinels {
    /// Waits until the sentinels know one another and every replica, so that a failover may begin.
    pub fn start(replicas: usize, sentinels: usize) -> Self {
        let primary = RedisServer::start();
        let port = primary.port().to_string();
        let mut servers = vec![primary];
        for _ in 0..replicas {
            let replica = ["--replicaof", "127.0.0.1", &port];
            servers.push(RedisServer::with_options(&replica));
        }
        for server in &servers {
            server.cli(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]);
        }
        for replica in &servers[1..] {
            wait("the replica follows", || {
                let state = replica.cli(&["INFO", "replication"]);
                state.contains("master_link_status:up")
            });
        }
        let lines = watching(servers[0].port(), sentinels / 2 + 1);
        let sentinels = (0..sentinels).map(|_| RedisServer::sentinel(&lines));
        let started = Self {
            sentinels: sentinels.collect(),
            servers,
        };
        started.wait_for_one_another(replicas);
        started
    }

    fn wait_for_one_another(&self, replicas: usize) {
        let usable = format!("OK {} usable Sentinels", self.sentinels.len());
        for sentinel in &self.sentinels {
            wait("the sentinels know one another", || {
                let quorum = sentinel.cli(&["SENTINEL", "CKQUORUM", SERVICE]);
                let known = sentinel.cli(&["SENTINEL", "REPLICAS", SERVICE]);
                quorum.starts_with(&usable)
                    && known.matches("master-link-status\nok").count() == replicas
            });
        }
    }

    /// What a node is given.
    pub fn url(&self) -> String {
        let hosts = self.sentinels.iter();
        let hosts: Vec<_> = hosts.map(|s| format!("127.0.0.1:{}", s.port())).collect();
        format!("redis-sentinel://{}/{SERVICE}", hosts.join(","))
    }

    /// Where this sentinel says that the primary is.
    pub fn named_by(&self, sentinel: usize) -> Option<u16> {
        named_by(&self.sentinels[sentinel])
    }

    /// Asks for a graceful failover. The old primary goes on as such until it is told.
    pub fn fail_over(&self) {
        wait("a failover begins", || {
            self.sentinels[0].cli(&["SENTINEL", "FAILOVER", SERVICE]) == "OK"
        });
    }
}

/// The lines that make a sentinel watch the server on this port.
pub fn watching(port: u16, quorum: usize) -> String {
    format!(
        "sentinel monitor {SERVICE} 127.0.0.1 {port} {quorum}\n\
         sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER}\n\
         sentinel failover-timeout {SERVICE} 20000\n"
    )
}

/// Where this sentinel says that the primary is.
pub fn named_by(sentinel: &RedisServer) -> Option<u16> {
    let address = sentinel.cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE]);
    address.lines().nth(1)?.parse().ok()
}

fn wait(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + START;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        sleep(Duration::from_millis(10));
    }
}
