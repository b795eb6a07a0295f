//! Everybody connects at once (rows C8, B2): after a restart of a node, with and without Redis, and
//! against limits.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;

use crate::DESCRIPTORS;
use crate::support::figures::Figures;
use crate::support::raw::{RawClient, Said};
use crate::support::{Lab, TestNode, soon, until};

const SOCKETS: usize = 2000;
/// What a socket may hold while it connects: hyper's buffers, the client's own, and the rest.
const UPGRADE: usize = 48 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_herd_that_returns_at_once_is_served_whole() {
    let _turn = crate::alone(DESCRIPTORS).await;
    herd(SOCKETS).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs 20,000 descriptors"]
async fn a_herd_of_nine_thousand_is_served_whole() {
    let _turn = crate::alone(20_000).await;
    herd(9_000).await;
}

/// All sockets of a node that ends come to another one, with and without Redis.
async fn herd(sockets: usize) {
    for redis_is_up in [true, false] {
        let mut lab = Lab::redis();
        let [old, new, other] = lab.nodes().await;
        let mut herd = Vec::new();
        for n in 0..sockets {
            herd.push(connect(old.addr, n).await.unwrap());
        }
        if !redis_is_up {
            lab.server().kill();
            until("the outage is noticed", async || {
                new.cluster.health() != axum_cluster::Health::Up
            })
            .await;
        }
        let row = if redis_is_up {
            "herd"
        } else {
            "herd, no Redis"
        };
        let mut figures = Figures::of(row);
        let leaving = old.cluster.clone();
        let leaving = tokio::spawn(async move { leaving.shutdown(Duration::ZERO).await });
        let returning = herd.into_iter().enumerate().map(|(n, mut client)| {
            let addr = new.addr;
            tokio::spawn(async move {
                assert_eq!(soon("a close", client.next()).await, Said::Close(1012));
                client.answer_close().await;
                drop(client);
                connect(addr, n).await.unwrap()
            })
        });
        let returning: Vec<_> = returning.collect();
        let (herd, growth) = crate::growth(row, join_all(returning)).await;
        figures.healed();
        let mut herd: Vec<RawClient> = herd.into_iter().map(Result::unwrap).collect();
        assert_eq!(new.cluster.stats().sockets as usize, sockets);
        assert!(
            growth < sockets * UPGRADE,
            "{} bytes per socket",
            growth / sockets
        );
        soon("the old node's end", leaving).await.unwrap();

        if !redis_is_up {
            lab.server().restart();
        }
        until("everybody is reached from another node", async || {
            let sent = other.broadcaster.to_all().send("back").await;
            sent.is_ok_and(|sent| sent.nodes() == Some(1))
        })
        .await;
        let heard = herd.iter_mut().map(|client| client.next());
        let heard = soon("everybody hears", join_all(heard)).await;
        assert!(heard.iter().all(|said| *said == Said::Text("back".into())));
        drop(herd);
        new.until_empty().await;
    }
}

/// C8: exact, whoever comes first.
#[tokio::test(flavor = "multi_thread")]
async fn limits_are_exact_in_a_storm() {
    const PER_USER: usize = 3;
    const PER_NODE: usize = 500;
    const USERS: usize = 250;
    let _turn = crate::alone(DESCRIPTORS).await;
    let builder = Lab::memory().builder();
    let builder = builder.max_sockets(PER_NODE).max_sockets_per_user(PER_USER);
    let node = TestNode::start(builder.start()).await;
    for round in 1..=2 {
        let storm = (0..SOCKETS).map(|n| {
            let addr = node.addr;
            tokio::spawn(async move { (n % USERS, connect(addr, n % USERS).await) })
        });
        let mut admitted: HashMap<usize, Vec<RawClient>> = HashMap::new();
        let (mut user_is_full, mut node_is_full) = (0, 0);
        for attempt in join_all(storm.collect::<Vec<_>>()).await {
            match attempt.unwrap() {
                (user, Ok(client)) => admitted.entry(user).or_default().push(client),
                (_, Err(429)) => user_is_full += 1,
                (_, Err(503)) => node_is_full += 1,
                (_, Err(status)) => panic!("refused with {status}"),
            }
        }
        let sockets: usize = admitted.values().map(Vec::len).sum();
        assert_eq!(sockets, PER_NODE);
        assert!(admitted.values().all(|sockets| sockets.len() <= PER_USER));
        assert_eq!(user_is_full + node_is_full, SOCKETS - PER_NODE);
        assert!(node_is_full > 0, "control");
        let stats = node.cluster.stats();
        assert_eq!(stats.sockets as usize, PER_NODE);
        assert_eq!(stats.limits_refused as usize, round * (SOCKETS - PER_NODE));
        drop(admitted);
        node.until_empty().await;
    }
}

async fn connect(addr: SocketAddr, user: usize) -> Result<RawClient, u16> {
    RawClient::connect(addr, &format!("user-{user}")).await
}
