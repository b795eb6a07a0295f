//! Run with `cargo run --release --example soak -- --minutes 30`
//!
//! Three node processes and a Redis (or one with sentinels, or a Redis Cluster), hundreds of clients that check every message they get, and random
//! faults; docs/soak.md says how it judges. Ends with a table, and unsuccessfully if a message was lost
//! in silence, doubled, out of order or misdirected, an answer was wrongly complete, or a limit passed.
//!
//! Further arguments: `--topology single|sentinel|cluster`, `--seed N`, `--sockets N`, `--only NAME` (faults whose name contains it),
//! `--history`, with which what is kept may not be lost inside gaps either, `--spool`, with which it waits for Redis as well, `--log`,
//! with which nodes say what they do, and `--sabotage`, with which it has to fail.

mod answer;
mod crowd;
mod dispatch;
mod entry;
mod faults;
mod fleet;
mod ground;
mod inquirer;
mod ledger;
mod missing;
mod node;
#[path = "../../tests/support/proxy.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod proxy;
mod pusher;
mod receiver;
#[path = "../../tests/support/redis.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod redis;
mod referee;
mod report;
mod series;
mod tally;
mod words;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, interval, sleep};

use crate::crowd::Crowd;
use crate::dispatch::Report;
use crate::faults::{Fault, LONG, Lab};
use crate::fleet::{Door, NodeProcess};
use crate::ground::{Ground, Topology};
use crate::node::Habits;
use crate::referee::Referee;
use crate::report::NodeFigures;
use crate::tally::Occasion;
use crate::words::{Life, NODES, clock, now};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["node", life, redis_url, rest @ ..] = words.as_slice() {
        let life: Life = life.parse().expect("our own argument");
        let is = |word| rest.contains(&word);
        if is("log") {
            let log = tracing_subscriber::fmt().with_writer(std::io::stderr);
            log.with_target(false).init();
        }
        let habits = Habits {
            sabotage: is("sabotage"),
            history: is("history"),
            spool: is("spool"),
        };
        node::run(life, redis_url, habits).await;
        return ExitCode::SUCCESS;
    }
    match Plan::parse(&words) {
        Some(plan) => soak(plan).await,
        None => {
            eprintln!(
                "usage: soak --minutes N [--topology single|sentinel|cluster] [--seed N] [--sockets N] [--only FAULT] [--history] [--spool] [--log] [--sabotage]"
            );
            ExitCode::FAILURE
        }
    }
}

/// What was asked for.
#[derive(Debug)]
struct Plan {
    lasts: Duration,
    topology: Topology,
    seed: u64,
    sockets: usize,
    only: String,
    sabotage: bool,
    history: bool,
    spool: bool,
    log: bool,
}

impl Plan {
    fn parse(words: &[&str]) -> Option<Self> {
        let mut plan = Self {
            lasts: Duration::from_secs(5 * 60),
            topology: Topology::Single,
            seed: fastrand::u64(..1_000_000),
            sockets: 300,
            only: String::new(),
            sabotage: false,
            history: false,
            spool: false,
            log: false,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--minutes" => {
                    let minutes: f64 = words.next()?.parse().ok()?;
                    plan.lasts = Duration::try_from_secs_f64(minutes * 60.0).ok()?;
                }
                "--topology" => plan.topology = words.next()?.parse().ok()?,
                "--seed" => plan.seed = words.next()?.parse().ok()?,
                "--sockets" => plan.sockets = words.next()?.parse().ok()?,
                "--only" => plan.only = (*words.next()?).to_owned(),
                "--sabotage" => plan.sabotage = true,
                "--history" => plan.history = true,
                "--spool" => (plan.history, plan.spool) = (true, true),
                "--log" => plan.log = true,
                _ => return None,
            }
        }
        Some(plan)
    }
}

async fn soak(plan: Plan) -> ExitCode {
    let start = Instant::now();
    let mut rng = fastrand::Rng::with_seed(plan.seed);
    let is_spread = plan.topology == Topology::Cluster;
    let referee = Arc::new(Mutex::new(Referee::new(plan.history, is_spread)));
    let ground = Ground::start(plan.topology, plan.history).await;
    let mut words = Vec::new();
    words.extend(plan.sabotage.then_some("sabotage"));
    words.extend(plan.history.then_some("history"));
    words.extend(plan.spool.then_some("spool"));
    words.extend(plan.log.then_some("log"));
    let start_node = |(node, url)| NodeProcess::start(node, url, words.clone(), referee.clone());
    let nodes: Vec<NodeProcess> = ground
        .urls()
        .into_iter()
        .enumerate()
        .map(start_node)
        .collect();
    let doors: Vec<Door> = nodes.iter().map(NodeProcess::door).collect();
    let crowd = Crowd::gather(plan.sockets, &doors, &referee, &mut rng);
    let watching = tokio::spawn(watch(referee.clone(), start));
    let mut lab = Lab {
        ground,
        nodes,
        crowd,
        referee,
        rng,
    };
    let mut start_kib = vec![(0, 0); NODES];
    let all_heal = break_things(&mut lab, &plan, start + plan.lasts, &mut start_kib).await;

    let figures = calm_down(&mut lab, &start_kib).await;
    let Lab {
        crowd,
        nodes,
        referee,
        ..
    } = lab;
    crowd.disperse().await;
    watching.abort();
    for node in nodes {
        node.finish().await;
    }
    let mut referee = referee.lock();
    referee.judge(now(), true);
    let title = format!(
        "{:.1} minutes, {:?}, seed {}, {NODES} nodes, {} clients",
        start.elapsed().as_secs_f64() / 60.0,
        plan.topology,
        plan.seed,
        plan.sockets
    );
    report::print(&title, &referee, &figures);
    match referee.tally.is_clean() && all_heal && referee.tally.delivered > 0 {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// One fault after another until it is time; whether everything healed.
async fn break_things(
    lab: &mut Lab,
    plan: &Plan,
    end: Instant,
    start_kib: &mut [(usize, u64)],
) -> bool {
    if lab.heals().await.is_none() {
        eprintln!("the cluster does not come up");
        return false;
    }
    lab.referee.lock().excuse_limits(now());
    sleep(Duration::from_secs(3)).await;
    let middle = Instant::now() + (end - Instant::now()) / 2;
    let mut has_long =
        plan.topology == Topology::Single && plan.lasts >= 4 * LONG && plan.only.is_empty();
    let mut deck: Vec<Fault> = Vec::new();
    while Instant::now() < end {
        note_memory(lab, start_kib);
        if deck.is_empty() {
            deck.extend(
                Fault::often(plan.topology)
                    .iter()
                    .copied()
                    .filter(|fault| fault.name().contains(&plan.only)),
            );
            lab.rng.shuffle(&mut deck);
        }
        let fault = match has_long && Instant::now() > middle {
            true => {
                has_long = false;
                Fault::RedisGoneLong
            }
            false => deck.pop().expect("some fault has this name"),
        };
        eprintln!("{:.3} {}", clock(now()), fault.name());
        let occasion = Occasion {
            name: fault.name(),
            destroys: fault.destroys(plan.topology),
            from: now(),
            noticed: None,
            healed: None,
            until: None,
            answers: [(0, 0); 2],
            inside: 0,
            outside: 0,
        };
        lab.referee.lock().occasions.push(occasion);
        if fault.excuses_limits() {
            lab.referee.lock().excuse_limits(u64::MAX);
        }
        let healed = fault.happen(lab).await;
        if fault.excuses_limits() {
            lab.referee.lock().excuse_limits(now());
        }
        if let Some(occasion) = lab.referee.lock().occasions.last_mut() {
            occasion.healed = healed;
            occasion.until = healed.map(|_| now());
        }
        if healed.is_none() {
            eprintln!("this did not heal");
            return false;
        }
        let pause = Duration::from_millis(lab.rng.u64(500..6000));
        sleep(pause).await;
    }
    true
}

/// The memory of every life of a node, once it has its sockets.
fn note_memory(lab: &Lab, start_kib: &mut [(usize, u64)]) {
    for (node, noted) in lab.nodes.iter().zip(start_kib) {
        if noted.0 != node.life.life {
            *noted = (node.life.life, node.resident_kib());
        }
    }
}

/// Ends the sending, so that everything sent can arrive.
async fn calm_down(lab: &mut Lab, start_kib: &[(usize, u64)]) -> Vec<NodeFigures> {
    let mut figures = Vec::new();
    for (node, (lives, start_kib)) in lab.nodes.iter_mut().zip(start_kib) {
        let stats = match node.ask("stats").await {
            Report::Stats(stats) => stats,
            other => panic!("{other} is no answer"),
        };
        figures.push(NodeFigures {
            lives: *lives,
            start_kib: *start_kib,
            end_kib: node.resident_kib(),
            stats,
        });
    }
    for node in &mut lab.nodes {
        node.ask("hush").await;
    }
    figures
}

/// Judges as time goes by, and tells how it goes.
async fn watch(referee: Arc<Mutex<Referee>>, start: Instant) {
    let mut tick = interval(Duration::from_secs(1));
    for n in 0.. {
        tick.tick().await;
        let mut referee = referee.lock();
        referee.judge(now(), false);
        if n % 10 == 0 {
            let tally = &referee.tally;
            eprintln!(
                "{:4} s: {} sockets, {} sent, {} delivered, {} lost inside gaps, {} by redis, outside {}, twice {}, out of order {}; {} answers, wrong {}; over the limit {}",
                start.elapsed().as_secs(),
                referee.sockets(),
                tally.taken,
                tally.delivered,
                tally.inside,
                tally.destroyed,
                tally.outside + tally.uncounted,
                tally.duplicates,
                tally.disorder,
                tally.answers,
                tally.wrongly_complete + tally.wrongly_offline + tally.unanswered,
                tally.over_limit
            );
        }
    }
}
