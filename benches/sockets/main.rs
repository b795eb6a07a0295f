//! Memory and CPU per socket and per message, in real processes, against a loop of `send(2)` and against
//! a plain axum handler. `cargo bench --bench sockets`; see benches/README.md.

use std::time::Instant;

#[cfg(feature = "deflate")]
mod compression;
mod growth;
mod load;
mod primaries;
mod process;
mod servers;
mod who;

#[path = "../../tests/support/redis.rs"]
#[expect(dead_code, reason = "shared with the tests, which use more of it")]
mod redis;

use process::{Process, median};
use redis::RedisServer;

/// Times each figure is taken; the median is reported.
const RUNS: usize = 5;

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["load", targets @ ..] => load::run(targets),
        ["cluster", backend] => servers::cluster(backend, false),
        ["limited", backend] => servers::cluster(backend, true),
        ["axum"] => servers::plain_axum(false),
        ["axum", "nodelay"] => servers::plain_axum(true),
        ["floor"] => servers::floor(),
        ["fleet", redis] => growth::fleet(redis),
        wanted => {
            let all = [
                ("memory", memory as fn()),
                ("fanout", fan_out),
                ("workers", workers),
                ("batches", batches),
                ("unicast", unicast),
                ("broadcast", broadcast),
                ("nodes", growing_nodes),
                ("primaries", primaries::against_one),
                ("connects", connects),
                ("herd", herd),
                ("presence", who::presence),
                ("rosters", who::rosters),
                ("edges", who::edges),
                ("growth", growth::growth),
                #[cfg(feature = "deflate")]
                ("compression", compression::compression),
            ];
            println!("| what | figure |\n|---|---:|");
            for (name, bench) in all {
                if wanted.is_empty() || wanted.contains(&name) {
                    bench();
                }
            }
        }
    }
}

fn row(what: &str, figure: &str) {
    println!("| {what} | {figure} |");
}

/// RSS growth per registered idle socket, and after big messages in both directions.
fn memory() {
    const SOCKETS: usize = 10_000;
    let mut runs = [Vec::new(), Vec::new()];
    let redis = RedisServer::start();
    for _ in 0..RUNS {
        let mut server = Process::start(&["cluster", &redis.url()]);
        let warm_up = Process::load(&[(&server, "user-", 0..200)]);
        drop(warm_up);
        server.until("sockets", 0);
        let before = server.ask("rss");
        let mut load = Process::load(&[(&server, "sixteen-by-", 10_000..10_000 + SOCKETS)]);
        server.until("sockets", SOCKETS as u64);
        let idle = server.ask("rss") - before;
        runs[0].push(idle as f64 / SOCKETS as f64);
        server.ask("big 1000000");
        load.until("bytes", SOCKETS as u64 * 1_000_010);
        load.ask("shout 60000");
        server.until("heard", SOCKETS as u64 * 60_000);
        std::thread::sleep(std::time::Duration::from_secs(1));
        runs[1].push((server.ask("rss") - before) as f64 / idle as f64);
    }
    let [idle, after] = runs.map(median);
    row(
        "RSS growth per idle socket at 10,000",
        &format!("{idle:.0} B"),
    );
    row(
        "the same after 1 MB to each and 60 KB from each",
        &format!("{after:.2}x idle"),
    );
}

/// CPU per delivered message, one message at a time to every socket.
fn fan_out() {
    for (sockets, rounds) in [(1_000, 300), (10_000, 40)] {
        let mut server = Process::start(&["cluster", "memory"]);
        let mut floor = Process::start(&["floor"]);
        // A process each, for the limit of open files.
        let _loads = [
            Process::load(&[(&server, "user-", 0..sockets)]),
            Process::load(&[(&floor, "raw", 0..sockets)]),
        ];
        let delivered = (sockets * rounds) as f64;
        let mut ratios = Vec::new();
        let mut costs = Vec::new();
        for _ in 0..RUNS {
            let own = server.cpu_of(&format!("local {rounds}")) / delivered;
            let bare = floor.cpu_of(&format!("send {rounds} 1")) / delivered;
            ratios.push(own / bare);
            costs.push(own);
        }
        let (ratio, cost) = (median(ratios), median(costs));
        row(
            &format!("1 message to each of {sockets}, against send(2)"),
            &format!("{ratio:.2}x ({cost:.2} µs)"),
        );
    }
}

/// How long it takes until every 64th of many has a message, with two workers against one. The clients' kernel takes it.
fn workers() {
    const ROUNDS: usize = 5;
    let servers = [RedisServer::start(), RedisServer::start()];
    for sockets in [200, 1_000, 10_000] {
        let mut workers = 0;
        let mut clusters = servers.each_ref().map(|redis| {
            workers += 1;
            let [sender, node] = [1, workers]
                .map(|workers| Process::on_workers(workers, &["cluster", &redis.url()]));
            let load = Process::load(&[(&node, load::DEAF, 0..sockets)]);
            (sender, node, load)
        });
        for what in ["a local broadcast", "a message from the bus"] {
            let (mut ratios, mut times) = (Vec::new(), Vec::new());
            for _ in 0..RUNS {
                let mut took = [0.0; 2];
                for _ in 0..ROUNDS {
                    for ((sender, node, load), took) in clusters.iter_mut().zip(&mut took) {
                        let start = Instant::now();
                        match what {
                            "a local broadcast" => node.ask("local 1"),
                            _ => sender.ask("broadcast 1 1"),
                        };
                        load.ask("taken 64");
                        *took += start.elapsed().as_secs_f64() * 1000.0 / ROUNDS as f64;
                        load.ask("taken 1");
                        assert_eq!(load.ask("drain"), sockets as u64 * 132);
                    }
                }
                ratios.push(took[1] / took[0]);
                times.push(took[1]);
            }
            let (ratio, time) = (median(ratios), median(times));
            row(
                &format!("{what}, to {sockets}, until all have it, 2 workers against 1"),
                &format!("{ratio:.2}x ({time:.1} ms)"),
            );
        }
    }
}

/// Eight messages of one wake of the bus, against eight frames in one `send`.
fn batches() {
    const ROUNDS: usize = 60;
    let redis = RedisServer::start();
    for sockets in [1_000, 10_000] {
        let mut server = Process::start(&["cluster", &redis.url()]);
        let mut sender = Process::start(&["cluster", &redis.url()]);
        let mut floor = Process::start(&["floor"]);
        let mut load = Process::load(&[(&server, "user-", 0..sockets)]);
        let _raw = Process::load(&[(&floor, "raw", 0..sockets)]);
        let rounds = ROUNDS * 1_000 / sockets;
        let delivered = (sockets * rounds * 8) as f64;
        let mut ratios = Vec::new();
        for _ in 0..RUNS {
            let expected = load.ask("bytes") + (delivered as u64) * 132;
            let before = server.ask("cpu");
            sender.ask(&format!("batches {rounds} 8"));
            load.until("bytes", expected);
            let own = (server.ask("cpu") - before) as f64;
            ratios.push(own / delivered / (floor.cpu_of(&format!("send {rounds} 8")) / delivered));
        }
        let ratio = median(ratios);
        row(
            &format!("batches of 8 to each of {sockets}, against 8 frames in one send"),
            &format!("{ratio:.2}x"),
        );
    }
}

/// Two nodes and Redis against one plain axum process without, doing the same deliveries.
fn against_axum(
    what: &str,
    plain: &[&str],
    sockets: usize,
    kind: &str,
    sends: usize,
    window: usize,
    deliveries: usize,
) {
    let redis = RedisServer::start();
    let mut nodes = [
        Process::start(&["cluster", &redis.url()]),
        Process::start(&["cluster", &redis.url()]),
    ];
    let mut axum = Process::start(plain);
    let mut load = Process::load(&[
        (&nodes[0], "user-", 0..sockets),
        (&nodes[1], "user-", 0..sockets),
        (&axum, "user-", 0..sockets),
        (&axum, "user-", 0..sockets),
    ]);
    let bytes = deliveries as u64 * 132;
    let [mut ratios, mut costs, mut plains, mut rates] = [const { Vec::new() }; 4];
    for _ in 0..RUNS {
        let before: u64 = nodes.iter_mut().map(|node| node.ask("cpu")).sum();
        let expected = load.ask("bytes") + bytes;
        let start = std::time::Instant::now();
        nodes[0].ask(&format!("{kind} {sends} {window}"));
        load.until("bytes", expected);
        let elapsed = start.elapsed().as_secs_f64();
        rates.push(deliveries as f64 / elapsed / 1000.0);
        let own = (nodes.iter_mut().map(|node| node.ask("cpu")).sum::<u64>() - before) as f64;
        let expected = expected + bytes;
        let before = axum.ask("cpu");
        // At the same rate: flooded, a client that is never idle needs no waking, which costs as much as
        // all the rest.
        let rate = sends as f64 / elapsed;
        axum.ask(&format!("{kind} {sends} {rate:.0}"));
        load.until("bytes", expected);
        let plain = (axum.ask("cpu") - before) as f64;
        ratios.push(own / plain);
        costs.push(own / deliveries as f64);
        plains.push(plain / deliveries as f64);
    }
    let [ratio, cost, plain, rate] = [ratios, costs, plains, rates].map(median);
    row(
        what,
        &format!("{ratio:.2}x ({cost:.2} µs against {plain:.2}, {rate:.0} k/s)"),
    );
}

fn unicast() {
    let what = "unicast, 2 nodes and Redis, 256 in flight, against plain axum on one node";
    against_axum(what, &["axum"], 1_000, "unicast", 150_000, 256, 300_000);
    let what = "the same, against plain axum with TCP_NODELAY";
    against_axum(
        what,
        &["axum", "nodelay"],
        1_000,
        "unicast",
        150_000,
        256,
        300_000,
    );
}

fn broadcast() {
    let what = "broadcast to 2,000 on 2 nodes, 8 in flight, against plain axum on one node";
    against_axum(what, &["axum"], 1_000, "broadcast", 150, 8, 300_000);
}

/// What a send costs its node when the others do not hold the user.
fn growing_nodes() {
    const SENDS: usize = 100_000;
    let redis = RedisServer::start();
    let mut nodes = vec![
        Process::start(&["cluster", &redis.url()]),
        Process::start(&["cluster", &redis.url()]),
    ];
    let mut costs = Vec::new();
    for count in [2, 16] {
        while nodes.len() < count {
            nodes.push(Process::start(&["cluster", &redis.url()]));
        }
        let command = format!("unicast {SENDS} 256");
        let runs = (0..RUNS)
            .map(|_| nodes[0].cpu_of(&command) / SENDS as f64)
            .collect();
        costs.push(median(runs));
    }
    row(
        "a send with 16 nodes, against 2",
        &format!("{:.2}x ({:.2} µs)", costs[1] / costs[0], costs[1]),
    );
}

/// Handshakes per second, subscriptions confirmed, against plain axum.
fn connects() {
    let redis = RedisServer::start();
    let mut ratios = Vec::new();
    for _ in 0..RUNS {
        let rate = |server: &Process| {
            let mut load = Process::load(&[(server, "user-", 0..5_000)]);
            5_000_000_000.0 / load.ask("connected") as f64
        };
        let own = rate(&Process::start(&["cluster", &redis.url()]));
        let plain = rate(&Process::start(&["axum"]));
        ratios.push((own / plain, own));
    }
    let ratio = median(ratios.iter().map(|(ratio, _)| *ratio).collect());
    let own = median(ratios.iter().map(|(_, own)| *own).collect());
    row(
        "5,000 connects, 100 at a time, against plain axum",
        &format!("{ratio:.2}x its rate ({own:.0}/s)"),
    );
}

/// As many sockets as one process may have, all at once: what the node needs beyond what they need
/// afterwards.
fn herd() {
    const SOCKETS: usize = 19_000;
    let redis = RedisServer::start();
    for _ in 0..3 {
        let mut server = Process::start(&["cluster", &redis.url()]);
        let before = server.ask("rss");
        let mut load = Process::herd(&server, SOCKETS);
        server.until("sockets", SOCKETS as u64);
        let seconds = load.ask("connected") as f64 / 1e6;
        let mib = |bytes: u64| (bytes - before) as f64 / (1 << 20) as f64;
        let (peak, idle) = (mib(server.ask("peak")), mib(server.ask("rss")));
        row(
            &format!("{SOCKETS} connects in the same moment"),
            &format!(
                "all there after {seconds:.1} s; {peak:.0} MiB at most, {idle:.0} MiB afterwards"
            ),
        );
    }
}
