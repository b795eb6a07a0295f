//! A node with thousands of sockets shuts down (row L8).

use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::runtime::Handle;

use crate::support::figures::Figures;
use crate::support::raw::{RawClient, Said};
use crate::support::{Lab, RedisServer, TestNode, soon, until};

const POLITE: usize = 1700;
/// Read their Close and never answer it.
const SILENT: usize = 200;
/// Never read at all.
const DEAD: usize = 100;
const WINDOW: Duration = Duration::from_secs(3);
/// What the documentation of `shutdown` grants beyond the window.
const GRACE: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_of_thousands_is_spread_and_leaves_nothing() {
    let _turn = crate::alone(crate::DESCRIPTORS).await;
    let server = RedisServer::start();
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let node = TestNode::start(Lab::memory().builder().redis(server.url()).start()).await;
    node.cluster.ready().await.unwrap();
    let before = tasks();
    let connect = async |n: usize| {
        RawClient::connect(node.addr, &format!("user-{n}"))
            .await
            .unwrap()
    };
    let mut polite = Vec::new();
    for n in 0..POLITE {
        polite.push(connect(n).await);
    }
    let silent = join_all((0..SILENT).map(connect)).await;
    let dead = join_all((0..DEAD).map(connect)).await;
    assert_eq!(
        node.cluster.stats().sockets as usize,
        POLITE + SILENT + DEAD
    );

    let mut figures = Figures::of("L8");
    let begun = Instant::now();
    let (cluster, addr) = (node.cluster.clone(), node.addr);
    let draining = tokio::spawn(async move {
        cluster.shutdown(WINDOW).await;
        begun.elapsed()
    });
    until("upgrades are refused", async || {
        RawClient::connect(addr, "late").await.err() == Some(503)
    })
    .await;
    figures.noticed();
    let farewells = polite.into_iter().map(|client| farewell(client, begun));
    let moments = join_all(farewells.map(tokio::spawn)).await;
    let moments: Vec<Duration> = moments.into_iter().map(Result::unwrap).collect();
    let silent = silent.into_iter().map(|mut client| async move {
        assert_eq!(client.next().await, Said::Close(1012));
        client
    });
    let _silent = soon("the silent hear it too", join_all(silent)).await;
    let took = soon("the end of the drain", draining).await.unwrap();
    figures.healed();

    // A quarter of them in each quarter of the window, as far as a busy machine allows.
    for quarter in 0..4 {
        let (from, to) = (WINDOW * quarter / 4, WINDOW * (quarter + 1) / 4);
        let here = moments
            .iter()
            .filter(|moment| (from..to).contains(moment))
            .count();
        assert!(
            here > POLITE / 10,
            "{here} of {POLITE} closes between {from:?} and {to:?}"
        );
    }
    assert!(
        took >= GRACE,
        "control: {took:?} is too short for those who never answer"
    );
    // Timers of a busy machine are late, but not by half.
    assert!(
        took < (WINDOW + GRACE).mul_f64(1.5),
        "the drain took {took:?}"
    );
    assert_eq!(server.cli(&["PUBSUB", "CHANNELS"]), "");
    assert_eq!(server.connections(), 0);
    let stats = node.cluster.stats();
    assert_eq!((stats.sockets, stats.users, stats.rooms), (0, 0, 0));
    until("no task of a socket is left", async || tasks() < before).await;
    drop(dead);
}

/// Answers the Close; returns when it came.
async fn farewell(mut client: RawClient, begun: Instant) -> Duration {
    assert_eq!(soon("a close", client.next()).await, Said::Close(1012));
    let moment = begun.elapsed();
    client.answer_close().await;
    assert_eq!(soon("the end", client.next()).await, Said::Nothing);
    moment
}
