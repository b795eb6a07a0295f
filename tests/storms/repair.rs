//! A hundred thousand histories are read again (row H24).

use std::time::{Duration, Instant};

use axum::{Router, middleware, routing::any};
use axum_cluster::History;
use futures::future::join_all;

use crate::restore::{ROOMS, SOCKETS, is_degraded, room, ws};
use crate::support::node::{authenticate, serve};
use crate::support::proxy::Proxy;
use crate::support::raw::{RawClient, Said};
use crate::support::{Lab, TestNode, soon, until};

/// Of so many rooms one gets something meanwhile.
const SPARSE: usize = 100;
/// Memory that the repair may take.
const MEMORY: usize = 16 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, for a release build"]
async fn a_hundred_thousand_histories_are_read_again_and_newcomers_are_served() {
    for away in [Duration::ZERO, Duration::from_millis(10)] {
        repair(away).await;
    }
}

async fn repair(away: Duration) {
    let _turn = crate::alone(crate::DESCRIPTORS).await;
    let mut lab = Lab::redis();
    let link = Proxy::slow(lab.server().port(), away).await;
    let builder = lab.builder().room_history(History::default());
    let cluster = builder.clone().redis(link.url()).start();
    cluster.ready().await.unwrap();
    let app = Router::new().route("/ws", any(ws)).layer(cluster.layer());
    let (addr, _server) = serve(app.layer(middleware::from_fn(authenticate))).await;
    let other = TestNode::start(builder.start()).await;
    other.until_up().await;
    let clients = (0..SOCKETS).map(async |n| {
        let user = format!("user-{n}");
        let mut client = RawClient::connect(addr, &user).await.unwrap();
        client.send(&n.to_string()).await;
        assert_eq!(client.next().await, Said::Text("joined".into()));
        client
    });
    let mut clients = join_all(clients).await;
    let rooms = SOCKETS * ROOMS;
    assert_eq!(cluster.stats().rooms as usize, rooms, "control");

    link.cut();
    until("the outage is noticed", async || is_degraded(&cluster)).await;
    for n in 0..rooms / SPARSE {
        let at = n * SPARSE;
        let to = room(at / ROOMS, at % ROOMS);
        let sent = other.broadcaster.to_room(to).send(at.to_string()).await;
        sent.unwrap();
    }
    let (begun, reads) = (Instant::now(), lab.server().calls("evalsha"));
    link.heal();
    let repairing = async {
        let mut served = 0;
        while is_degraded(&cluster) {
            let user = format!("newcomer-{served}");
            let newcomer = RawClient::connect(addr, &user).await.unwrap();
            served += u32::from(is_degraded(&cluster));
            drop(newcomer);
        }
        served
    };
    let (served, growth) = crate::growth("H24", repairing).await;
    let took = begun.elapsed();
    let reads = lab.server().calls("evalsha") - reads;
    println!("repaired\tH24\t{away:?} away\t{took:?}\t{reads} reads\t{served} newcomers meanwhile");
    assert!(served > 0, "newcomers had to wait");
    assert!((200..300).contains(&reads), "{reads} for {rooms} histories");
    assert!(growth < 4 * MEMORY, "{growth} bytes");
    assert_eq!(cluster.stats().history_repaired as usize, rooms / SPARSE);
    for (n, client) in clients.iter_mut().enumerate() {
        for number in (0..ROOMS).step_by(SPARSE) {
            let text = (n * ROOMS + number).to_string();
            let said = soon("what was missed", client.next()).await;
            assert_eq!(said, Said::Text(text));
        }
    }
}
