//! A hundred thousand subscriptions return to a Redis that has forgotten them (row B11).

use std::time::Duration;

use axum::response::Response;
use axum::{Router, middleware, routing::any};
use axum_cluster::{Cluster, ClusterSocket, Health};
use futures::future::join_all;

use crate::support::figures::Figures;
use crate::support::node::{authenticate, serve};
use crate::support::proxy::Proxy;
use crate::support::raw::{RawClient, Said};
use crate::support::{Lab, soon, until};

pub(crate) const SOCKETS: usize = 100;
pub(crate) const ROOMS: usize = 1000;
const SUBSCRIPTIONS: usize = SOCKETS * ROOMS;
/// How far Redis is away from the node that restores.
const AWAY: Duration = Duration::from_millis(10);
/// Newcomers at a time.
const LINES: usize = 8;
/// Most topics in one SUBSCRIBE.
const BATCH: usize = 1000;
/// Memory that a subscription may take while it is restored.
const RESTORING: usize = 64;

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_subscriptions_return_in_batches_and_starve_nobody() {
    let _turn = crate::alone(crate::DESCRIPTORS).await;
    let mut lab = Lab::redis();
    let link = Proxy::slow(lab.server().port(), AWAY).await;
    let cluster = lab.builder().redis(link.url()).start();
    cluster.ready().await.unwrap();
    let app = Router::new().route("/ws", any(ws)).layer(cluster.layer());
    let (addr, _server) = serve(app.layer(middleware::from_fn(authenticate))).await;
    let other = lab.node().await;
    let clients = (0..SOCKETS).map(async |n| {
        let user = format!("user-{n}");
        let mut client = RawClient::connect(addr, &user).await.unwrap();
        client.send(&n.to_string()).await;
        assert_eq!(client.next().await, Said::Text("joined".into()));
        client
    });
    let mut clients = join_all(clients).await;
    assert_eq!(cluster.stats().rooms as usize, SUBSCRIPTIONS, "control");

    let mut figures = Figures::of("B11");
    lab.server().kill();
    for cluster in [&cluster, &other.cluster] {
        until("the outage is noticed", async || is_degraded(cluster)).await;
    }
    figures.noticed();
    link.cut();
    lab.server().restart();
    until("the other node is back", async || {
        !is_degraded(&other.cluster)
    })
    .await;
    figures.repaired();
    link.heal();
    let restoring = async {
        until("the restore has begun", async || {
            lab.server().calls("subscribe") > 2
        })
        .await;
        let newcomers = async |line: usize| {
            let mut served = 0;
            for n in 0.. {
                if !is_degraded(&cluster) {
                    break;
                }
                let user = format!("newcomer-{line}-{n}");
                let mut newcomer = RawClient::connect(addr, &user).await.unwrap();
                until("the newcomer is reached", async || {
                    let sent = other.broadcaster.to_user(&user).send("welcome").await;
                    sent.is_ok_and(|sent| sent.nodes() == Some(1))
                })
                .await;
                assert_eq!(newcomer.next().await, Said::Text("welcome".into()));
                served += u32::from(is_degraded(&cluster));
            }
            served
        };
        join_all((0..LINES).map(newcomers))
            .await
            .into_iter()
            .sum::<u32>()
    };
    let (served, growth) = crate::growth("B11", restoring).await;
    figures.healed();
    assert!(
        served > 0,
        "newcomers had to wait until everything was restored"
    );
    assert!(growth < SUBSCRIPTIONS * RESTORING, "{growth} bytes");
    let commands = lab.server().calls("subscribe") as usize;
    let fewest = SUBSCRIPTIONS / BATCH;
    assert!(
        (fewest..fewest * 2).contains(&commands),
        "{commands} commands for {SUBSCRIPTIONS} subscriptions"
    );
    for (n, client) in clients.iter_mut().enumerate() {
        let sent = other
            .broadcaster
            .to_room(room(n, n * 7))
            .send("back")
            .await
            .unwrap();
        assert_eq!(sent.nodes(), Some(1));
        assert_eq!(
            soon("a message", client.next()).await,
            Said::Text("back".into())
        );
    }
    assert_eq!(cluster.stats().bus_gaps, 1);
}

/// Joins the thousand rooms of the number that the client says.
pub(crate) async fn ws(socket: ClusterSocket) -> Response {
    socket.on_upgrade(|mut socket| async move {
        while let Some(message) = socket.recv().await {
            let n = message.as_text().unwrap().parse().unwrap();
            let joins = (0..ROOMS).map(|number| socket.join(room(n, number)));
            let joined: Result<Vec<()>, _> = join_all(joins).await.into_iter().collect();
            joined.unwrap();
            socket.send("joined").await.unwrap();
        }
    })
}

pub(crate) fn room(n: usize, number: usize) -> String {
    format!("room-{n}-{number}")
}

pub(crate) fn is_degraded(cluster: &Cluster) -> bool {
    matches!(cluster.health(), Health::Degraded { .. })
}
