//! Nodes that are gone at once, or stand still for long, with histories: nothing is lost and nothing comes twice to whoever comes
//! back with its position (rows H3 and H6).

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use axum_cluster::{Broadcaster, Cluster, History};
use futures::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::TURN;
use crate::node::{Node, WELCOME};
use crate::support::client::{Event, user_header};
use crate::support::redis::free_port;
use crate::support::{Client, RedisServer, until};

const CLIENTS: usize = 1000;
const DESCRIPTORS: u64 = 8192;
/// So long a client is away at least: some rounds of messages.
const AWAY: Duration = Duration::from_millis(500);
const MARK: char = '\u{1}';
/// What each is sent when everything else has been.
const END: &str = "end";
/// Short, so that a node may stand still for more than half of it.
pub const KEPT: History = History {
    messages: 5000,
    keep: Duration::from_secs(20),
};

/// What a page has heard, and whether it was ever told that it missed something.
#[derive(Debug, Default)]
struct Heard {
    texts: Vec<String>,
    missed: Vec<String>,
    sockets: usize,
}

/// Reads until the end, and comes back with its position to the next of these nodes whenever its socket ends; without it, if it is
/// forgetful.
async fn page(user: String, doors: Vec<SocketAddr>, is_forgetful: bool) -> Heard {
    let (mut heard, mut base, mut number) = (Heard::default(), String::new(), String::new());
    for door in doors.iter().cycle() {
        if heard.sockets > 0 {
            // Something is sent meanwhile.
            sleep(AWAY).await;
        }
        let since = match (base.as_str(), number.as_str()) {
            _ if is_forgetful => String::new(),
            (base, "") => base.to_owned(),
            (base, number) => format!("{base}~{number}"),
        };
        let path = match since.as_str() {
            "" => "/ws".to_owned(),
            since => format!("/ws?since={since}"),
        };
        let header = user_header(&user);
        let headers = [
            ("x-user", &*header),
            ("sec-websocket-protocol", "resume.v1"),
        ];
        let Ok(mut client) = Client::try_connect(*door, &path, &headers).await else {
            sleep(Duration::from_millis(fastrand::u64(20..200))).await;
            continue;
        };
        heard.sockets += 1;
        let mut next = String::new();
        while let Event::Text(text) = client.next().await {
            match text.strip_prefix(MARK) {
                None if text == END => return heard,
                None if text == WELCOME => {}
                None => {
                    heard.texts.push(text);
                    if !next.is_empty() {
                        number = std::mem::take(&mut next);
                    }
                }
                Some(said) => match said.split_at(1) {
                    ("=", token) => (base, number) = (token.to_owned(), String::new()),
                    ("!", why) => heard.missed.push(why.to_owned()),
                    _ => next = said.to_owned(),
                },
            }
        }
    }
    heard
}

fn user(n: usize) -> String {
    format!("user-{n}")
}

async fn worker(redis: &RedisServer) -> Cluster {
    let builder = Cluster::builder().redis(redis.url());
    let builder = builder.user_history(KEPT).room_history(KEPT);
    let cluster = builder.start();
    cluster.ready().await.unwrap();
    cluster
}

/// Numbered messages to each in turn; how many rounds there were.
fn talk(to: Broadcaster, users: usize, stop: CancellationToken) -> JoinHandle<usize> {
    tokio::spawn(async move {
        for round in 0.. {
            if stop.is_cancelled() {
                return round;
            }
            let sends = (0..users).map(|n| to.to_user(user(n)).send(round.to_string()));
            for sent in join_all(sends).await {
                sent.unwrap();
            }
            sleep(Duration::from_millis(100)).await;
        }
        unreachable!("there is no last round")
    })
}

async fn everybody_is_there(worker: &Cluster, users: usize) {
    until("everybody is there", async || {
        let count = worker.broadcaster().to_all().count().await;
        count.unwrap().sockets() == users
    })
    .await;
}

async fn end(worker: &Cluster, users: usize) {
    for n in 0..users {
        worker
            .broadcaster()
            .to_user(user(n))
            .send(END)
            .await
            .unwrap();
    }
}

/// H6: a thousand clients, whose node is killed, come back to two others.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_clients_of_a_killed_node_have_everything_once_at_two_others() {
    let _turn = TURN.lock().await;
    rlimit::increase_nofile_limit(DESCRIPTORS).unwrap();
    let redis = RedisServer::start();
    let ports = [free_port(), free_port(), free_port()];
    let [doomed, one, other] = ports.map(|port| Node::keeping(port, redis.url()));
    let (doomed, _one, _other) = (doomed.await, one.await, other.await);
    let worker = worker(&redis).await;
    let door = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let pages = (0..CLIENTS + 1).map(|n| {
        let later = [door(ports[1 + n % 2]), door(ports[1 + (n + 1) % 2])];
        let doors = [&[door(ports[0])][..], &later.repeat(50)].concat();
        // The last one is the control: it shares its user with the first.
        let is_forgetful = n == CLIENTS;
        tokio::spawn(page(user(n % CLIENTS), doors, is_forgetful))
    });
    let pages: Vec<_> = pages.collect();
    everybody_is_there(&worker, CLIENTS + 1).await;
    let stop = CancellationToken::new();
    let talking = talk(worker.broadcaster(), CLIENTS, stop.clone());
    sleep(Duration::from_secs(1)).await;
    drop(doomed);
    let killed = Instant::now();
    everybody_is_there(&worker, CLIENTS + 1).await;
    println!("back\tH6\t{:?}", killed.elapsed());
    stop.cancel();
    let rounds = talking.await.unwrap();
    end(&worker, CLIENTS).await;
    let mut heard: Vec<Heard> = Vec::new();
    for page in pages {
        heard.push(page.await.unwrap());
    }
    let all: Vec<String> = (0..rounds).map(|round| round.to_string()).collect();
    let forgetful = heard.pop().unwrap();
    assert_eq!(forgetful.sockets, 2, "control");
    assert!(
        forgetful.texts.len() < all.len(),
        "control: nothing was lost"
    );
    for (n, heard) in heard.iter().enumerate() {
        assert_eq!(heard.texts, all, "{n}, of {} sockets", heard.sockets);
        assert_eq!((heard.sockets, &heard.missed[..]), (2, &[][..]), "{n}");
    }
}

/// H3: a node that stands still for more than half of what is kept, and which Redis has cut off meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stood_still_for_long_has_lost_nothing() {
    const USERS: usize = 20;
    let _turn = TURN.lock().await;
    let redis = RedisServer::start();
    let port = free_port();
    let node = Node::keeping(port, redis.url()).await;
    let worker = worker(&redis).await;
    let doors = vec![SocketAddr::from(([127, 0, 0, 1], port)); 2];
    let pages = (0..USERS).map(|n| tokio::spawn(page(user(n), doors.clone(), false)));
    let pages: Vec<_> = pages.collect();
    everybody_is_there(&worker, USERS).await;
    let stop = CancellationToken::new();
    let talking = talk(worker.broadcaster(), USERS, stop.clone());
    let signal = |signal: &str| {
        let pid = node.pid().to_string();
        let told = Command::new("kill").args([signal, &pid]).status();
        assert!(told.expect("kill runs").success());
    };
    sleep(Duration::from_millis(500)).await;
    signal("-STOP");
    let killed = redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    assert_eq!(killed, "2", "control: the worker, and the node");
    sleep(KEPT.keep * 3 / 5).await;
    signal("-CONT");
    sleep(Duration::from_millis(500)).await;
    stop.cancel();
    let rounds = talking.await.unwrap();
    everybody_is_there(&worker, USERS).await;
    until("its link is back", async || {
        let numsub = redis.cli(&["PUBSUB", "NUMSUB", "cluster:u:user-0"]);
        numsub.ends_with('1')
    })
    .await;
    end(&worker, USERS).await;
    let all: Vec<String> = (0..rounds).map(|round| round.to_string()).collect();
    for page in pages {
        let heard = page.await.unwrap();
        assert_eq!((heard.texts, heard.sockets), (all.clone(), 1));
    }
}
