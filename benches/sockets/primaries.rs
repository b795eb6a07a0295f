//! A Redis Cluster of three primaries against one Redis, which takes turns with it.

use std::time::Instant;

use crate::process::{Process, median};
use crate::redis::RedisServer;
use crate::redis::redis_cluster::RedisCluster;
use crate::{RUNS, row};

const USERS: usize = 1_000;
const SENDS: usize = 150_000;

/// Two nodes, each with a socket of every user.
struct Fleet {
    nodes: [Process; 2],
    load: Process,
}

/// What one run took.
struct Run {
    /// CPU microseconds of both nodes for one delivery.
    cost: f64,
    /// Thousand deliveries a second.
    rate: f64,
}

impl Fleet {
    fn at(url: &str) -> Self {
        let nodes = [(); 2].map(|()| Process::start(&["cluster", url]));
        let [a, b] = &nodes;
        let load = Process::load(&[(a, "user-", 0..USERS), (b, "user-", 0..USERS)]);
        Self { nodes, load }
    }

    fn cpu(&mut self) -> u64 {
        self.nodes.iter_mut().map(|node| node.ask("cpu")).sum()
    }

    fn run(&mut self) -> Run {
        let deliveries = 2 * SENDS;
        let (before, begun) = (self.cpu(), Instant::now());
        let expected = self.load.ask("bytes") + deliveries as u64 * 132;
        self.nodes[0].ask(&format!("unicast {SENDS} 256"));
        self.load.until("bytes", expected);
        let elapsed = begun.elapsed().as_secs_f64();
        Run {
            cost: (self.cpu() - before) as f64 / deliveries as f64,
            rate: deliveries as f64 / elapsed / 1000.0,
        }
    }
}

pub fn against_one() {
    let (single, cluster) = (RedisServer::start(), RedisCluster::start(3, 0));
    let (mut one, mut three) = (Fleet::at(&single.url()), Fleet::at(&cluster.url()));
    // Once for nothing: buffers grow, and pages come.
    one.run();
    three.run();
    let [mut costs, mut rates, mut ratios, mut gains] = [const { Vec::new() }; 4];
    for _ in 0..RUNS {
        let (one, three) = (one.run(), three.run());
        costs.push(three.cost);
        rates.push(three.rate);
        ratios.push(three.cost / one.cost);
        gains.push(three.rate / one.rate);
    }
    let [cost, rate, ratio, gain] = [costs, rates, ratios, gains].map(median);
    row(
        "unicast on 2 nodes through three primaries, CPU against one Redis",
        &format!("{ratio:.2}x ({cost:.2} µs)"),
    );
    row(
        "the same, deliveries a second",
        &format!("{gain:.2}x ({rate:.0} k/s)"),
    );
}
