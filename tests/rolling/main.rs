//! Nodes are restarted one after the other behind the proxies of docs/guide/proxies.md (row S11). A binary of its
//! own, since its nodes are processes of this program.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod crash;
mod log;
mod node;
mod page;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum_cluster::Broadcaster;
use futures::future::join_all;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use log::{Audience, Log};
use node::{NEWS, Node};
use page::{Habit, Page, Tale};
use support::balancer::{Balancer, Brand, ENVOY, HAPROXY, NGINX};
use support::redis::free_port;
use support::{Client, RedisServer, soon, until};

const PAGES: usize = 300;
/// That many more read before they upgrade.
const WRONG: usize = 30;
const ROUNDS: usize = 2;
/// Between two messages to a user each; to everybody goes one in `WIDE`.
const PACE: Duration = Duration::from_millis(5);
const WIDE: usize = 10;
/// Enough for a proxy, which holds two for each client and inherits the limit.
const DESCRIPTORS: u64 = 2048;
const PASSER_BY: &str = "passer-by";

/// One after the other: each has hundreds of clients.
static TURN: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread")]
async fn a_roll_behind_the_documented_nginx_refuses_nobody_and_loses_nothing() {
    roll_behind(&NGINX).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_roll_behind_the_documented_haproxy_refuses_nobody_and_loses_nothing() {
    roll_behind(&HAPROXY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_roll_behind_the_documented_envoy_refuses_nobody_and_loses_nothing() {
    roll_behind(&ENVOY).await;
}

async fn roll_behind(brand: &Brand) {
    let _turn = TURN.lock().await;
    rlimit::increase_nofile_limit(DESCRIPTORS).unwrap();
    let ports = [free_port(), free_port()];
    let Some(proxy) = Balancer::start(brand, ports).await else {
        return;
    };
    let redis = RedisServer::start();
    let mut nodes = [
        Node::start(ports[0], &redis.url()).await,
        Node::start(ports[1], &redis.url()).await,
    ];
    let worker = Broadcaster::connect(redis.url()).await.unwrap();
    let log = Arc::new(Log::of(PAGES + WRONG));
    let pages = open_pages(proxy.addr(), &log);
    everybody_is_there(&worker).await;

    let stop = CancellationToken::new();
    let talking = tokio::spawn(talk(worker.clone(), log, stop.clone()));
    let mut passed_by = Vec::new();
    for _ in 0..ROUNDS {
        for node in &mut nodes {
            node.drain().await;
            passed_by.extend(pass_by(proxy.addr()).await);
            node.start_again().await;
        }
    }
    everybody_is_there(&worker).await;
    stop.cancel();
    talking.await.unwrap();
    let tales = soon("everybody is told the last message", join_all(pages)).await;
    let tales: Vec<Tale> = tales.into_iter().map(Result::unwrap).collect();
    judge(brand, &proxy, &tales, passed_by);
}

fn open_pages(door: SocketAddr, log: &Arc<Log>) -> Vec<JoinHandle<Tale>> {
    let page = |user| {
        let habit = match user {
            ..PAGES => Habit::UpgradeFirst,
            _ => Habit::ReadFirst,
        };
        tokio::spawn(Page::new(door, user, habit, log.clone()).live())
    };
    (0..PAGES + WRONG).map(page).collect()
}

async fn everybody_is_there(worker: &Broadcaster) {
    let pages = worker.to_room(NEWS).except_user(PASSER_BY);
    until("everybody is there", async || {
        let count = pages.clone().count().await;
        count.unwrap().sockets() == PAGES + WRONG
    })
    .await;
}

/// Numbered messages to users and to everybody, until it is told to stop: then a last one to each.
async fn talk(worker: Broadcaster, log: Arc<Log>, stop: CancellationToken) {
    let say = async |audience| {
        let number = log.write(audience);
        log::send(&worker, audience, number).await;
    };
    for n in 0.. {
        if stop.is_cancelled() {
            break;
        }
        say(Audience::User(n % (PAGES + WRONG))).await;
        if n % WIDE == 0 {
            say(Audience::News).await;
        }
        sleep(PACE).await;
    }
    let users = (0..PAGES + WRONG).map(Audience::User);
    let last = users.chain([Audience::News]).map(|to| (to, log.write(to)));
    let last: Vec<_> = last.collect();
    log.close();
    for (audience, number) in last {
        log::send(&worker, audience, number).await;
    }
}

/// So many handshakes that each worker of a proxy, which take turns, offers one to the node that is gone.
/// Returns the statuses of those that were refused.
async fn pass_by(door: SocketAddr) -> Vec<u16> {
    let mut refused = Vec::new();
    for _ in 0..8 {
        let passed = Client::try_connect(door, "/ws", &[("x-user", PASSER_BY)]).await;
        refused.extend(passed.err().map(|(status, _)| status));
    }
    refused
}

fn judge(brand: &Brand, proxy: &Balancer, tales: &[Tale], passed_by: Vec<u16>) {
    let sum = |tales: &[Tale], of: fn(&Tale) -> u64| tales.iter().map(of).sum::<u64>();
    let refused = tales.iter().flat_map(|tale| &tale.refused);
    let refused: Vec<&u16> = refused.chain(&passed_by).collect();
    let (count, complaints) = (refused.len(), proxy.complaints());
    assert_eq!(count, 0, "{count} handshakes were refused: {complaints}");

    let (right, wrong) = tales.split_at(PAGES);
    let retried = brand.retried.iter();
    let retried = retried.map(|(line, what)| (proxy.logged(line), *what));
    let pages = [
        (sum(right, |tale| tale.read), "messages read"),
        (sum(wrong, |tale| tale.lost), "lost by reading first"),
    ];
    for (times, what) in retried.chain(pages) {
        println!("{times} {what}");
        assert!(times > 0, "control: no {what}");
    }
    for tale in tales {
        assert!(tale.sockets > ROUNDS, "control: it did not move: {tale:?}");
        assert!(tale.again.is_empty(), "twice or out of order: {tale:?}");
    }
    for tale in right {
        assert_eq!(tale.lost, 0, "{tale:?}");
    }
}
