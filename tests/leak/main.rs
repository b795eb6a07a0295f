//! Ten thousand sockets come and go, and nothing is left of them (row L3). A binary of its own, since
//! it counts every byte the process holds.

#[path = "../support/mod.rs"]
mod support;

use std::alloc::System;

use cap::Cap;
use futures::StreamExt;
use futures::stream;
use tokio::runtime::Handle;

use support::{Client, Lab, TestNode, until};

const SOCKETS: usize = 10_000;
const AT_ONCE: usize = 50;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// One after the other, since they would count each other's bytes.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_sockets_leave_nothing() {
    leave_nothing(Lab::memory()).await;
    leave_nothing(Lab::redis()).await;
}

async fn leave_nothing(lab: Lab) {
    let [mut a, b] = lab.nodes().await;
    // The first round grows the tables that stay.
    churn(&mut a, &b, "early").await;
    let before = Remains::of(&lab, &a).await;
    churn(&mut a, &b, "late").await;
    // Fewer are no leak: some of `before` may still have been ending.
    until("no task stays", async || tasks() <= before.tasks).await;
    let after = Remains::of(&lab, &a).await;
    assert_eq!(after.channels, before.channels, "channels on redis");
    assert_eq!(
        after.connections, before.connections,
        "connections to redis"
    );
    let grown = after.bytes.saturating_sub(before.bytes);
    assert!(
        grown < 16 * SOCKETS,
        "{grown} bytes stayed after {SOCKETS} sockets"
    );
}

/// Distinct users, each of whom joins a room, hears from the other node, and leaves.
async fn churn(node: &mut TestNode, b: &TestNode, round: &str) {
    let a = &*node;
    stream::iter(0..SOCKETS)
        .for_each_concurrent(AT_ONCE, |n| async move {
            let user = format!("{round}-{n}");
            let mut client = Client::connect(a.addr, &user).await;
            assert_eq!(
                client.ask(&format!("join room-{}", n % 100)).await,
                "joined"
            );
            let delivery = b
                .broadcaster
                .to_user(&user)
                .send("hello")
                .await
                .expect("the bus is up");
            assert_eq!(delivery.nodes(), Some(1));
            client.event().await;
            if n % 2 == 0 {
                client.close(1000).await;
            }
        })
        .await;
    a.until_empty().await;
    let stats = a.cluster.stats();
    assert_eq!((stats.sockets, stats.users, stats.rooms), (0, 0, 0));
    // What the test app itself wrote down.
    while node.ended.try_recv().is_ok() {}
}

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

struct Remains {
    tasks: usize,
    channels: String,
    connections: usize,
    bytes: usize,
}

impl Remains {
    async fn of(lab: &Lab, node: &TestNode) -> Self {
        let mut quiet = tasks();
        // Connections that the clients dropped take a moment to end.
        until("tasks end", async || {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            std::mem::replace(&mut quiet, tasks()) == tasks()
        })
        .await;
        let server = lab.redis.as_ref();
        let own_channels = || {
            let channels =
                server.map_or(String::new(), |server| server.cli(&["PUBSUB", "CHANNELS"]));
            let mut channels: Vec<String> = channels.lines().map(str::to_owned).collect();
            channels.sort_unstable();
            channels.join(" ")
        };
        until("the linger is over", async || {
            !own_channels().contains(":u:")
        })
        .await;
        let clients = server.map_or(String::new(), |server| server.cli(&["CLIENT", "LIST"]));
        assert_eq!(node.cluster.stats().bus_gaps, 0);
        Self {
            tasks: quiet,
            channels: own_channels(),
            connections: clients.lines().count(),
            bytes: ALLOCATOR.allocated(),
        }
    }
}
