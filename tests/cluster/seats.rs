//! The limit of a user's sockets in the whole cluster.

use std::cell::Cell;
use std::time::Duration;

use axum::response::Response;
use axum::{Router, middleware, routing::any};
use axum_cluster::{Cluster, ClusterBuilder, ClusterSocket, Health, OverLimit};
use futures::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::support::client::{Event, text};
use crate::support::node::{NEVER, authenticate, serve};
use crate::support::proxy::Proxy;
use crate::support::redis::RedisServer;
use crate::support::{Client, Lab, TestNode, soon, until};

on_every_bus! {
    one_seat_left_admits_one_upgrade_of_two_nodes
    of_fifty_upgrades_at_once_five_enter_and_no_seat_leaks
    the_oldest_socket_is_replaced_on_whichever_node_it_is
    of_fifty_that_replace_each_other_five_are_left
    clients_that_leave_during_the_handshake_leave_no_seat
    a_node_that_shuts_down_gives_its_seats_back
}

async fn one_seat_left_admits_one_upgrade_of_two_nodes(lab: Lab) {
    let [a, b] = start(limited(&lab, 2, OverLimit::Refuse)).await;
    for user in (0..10).map(|n| n.to_string()) {
        let _first = enter(&a, &user).await;
        let (one, two) = tokio::join!(attempt(&a, &user), attempt(&b, &user));
        assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
    }
    let (a, b) = (a.cluster.stats(), b.cluster.stats());
    assert_eq!(a.limits_refused + b.limits_refused, 10);
    assert_eq!((a.limits_unchecked, b.limits_unchecked), (0, 0));
}

async fn of_fifty_upgrades_at_once_five_enter_and_no_seat_leaks(lab: Lab) {
    let nodes: [TestNode; 3] = start(limited(&lab, 5, OverLimit::Refuse)).await;
    for user in ["alice", "bob", "*?{carol}:=, %"] {
        let attempts = join_all((0..50).map(|n| attempt(&nodes[n % 3], user))).await;
        let (entered, refused): (Vec<_>, Vec<_>) = attempts.into_iter().partition(Result::is_ok);
        assert_eq!(entered.len(), 5, "{user}");
        assert!(refused.iter().all(|r| r.as_ref().is_err_and(|s| *s == 429)));
        drop(entered);
        until_free(&nodes, user, 5).await;
    }
}

async fn the_oldest_socket_is_replaced_on_whichever_node_it_is(lab: Lab) {
    let nodes: [TestNode; 3] = start(limited(&lab, 3, OverLimit::CloseOldest)).await;
    let mut clients = std::collections::VecDeque::new();
    // In this order the oldest is on the newcomer's node and on others.
    for at in [0, 1, 1, 0, 1, 2, 2, 2, 2, 0] {
        clients.push_back(enter(&nodes[at], "alice").await);
        if clients.len() > 3 {
            let mut oldest = clients.pop_front().unwrap();
            assert_eq!(oldest.event().await, replaced());
            until_sockets(&nodes, 3).await;
        }
        nodes[0]
            .broadcaster
            .to_user("alice")
            .send("still here")
            .await
            .unwrap();
        for client in &mut clients {
            assert_eq!(client.event().await, text("still here"));
        }
    }
    assert!(
        nodes
            .iter()
            .all(|node| node.cluster.stats().limits_refused == 0)
    );
}

async fn of_fifty_that_replace_each_other_five_are_left(lab: Lab) {
    let nodes: [TestNode; 3] = start(limited(&lab, 5, OverLimit::CloseOldest)).await;
    let clients = join_all((0..50).map(|n| enter(&nodes[n % 3], "alice"))).await;
    until_sockets(&nodes, 5).await;
    nodes[0]
        .broadcaster
        .to_user("alice")
        .send("left")
        .await
        .unwrap();
    let events = join_all(
        clients
            .into_iter()
            .map(async |mut client| client.event().await),
    )
    .await;
    let (left, gone): (Vec<_>, Vec<_>) = events.into_iter().partition(|e| *e == text("left"));
    assert_eq!(left.len(), 5);
    assert!(gone.iter().all(|event| *event == replaced()), "{gone:?}");
}

async fn clients_that_leave_during_the_handshake_leave_no_seat(lab: Lab) {
    let builder = limited(&lab, 1, OverLimit::Refuse);
    let [b] = start(builder.clone()).await;
    let cluster = builder.start();
    let (sender, mut held) = mpsc::unbounded_channel();
    let ws = async move |_socket: ClusterSocket| {
        sender.send(()).unwrap();
        std::future::pending::<Response>().await
    };
    let app = Router::new().route("/ws", any(ws)).layer(cluster.layer());
    let (addr, _server) = serve(app.layer(middleware::from_fn(authenticate))).await;
    for user in (0..20).map(|n| n.to_string()) {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!(
            "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
            sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nx-user: {user}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        soon("a handshake", held.recv()).await;
        assert!(is_refused(&b, &user).await, "control: it holds the seat");
        drop(stream);
        enter(&b, &user).await;
    }
}

async fn a_node_that_shuts_down_gives_its_seats_back(lab: Lab) {
    let [a, b] = start(limited(&lab, 1, OverLimit::Refuse)).await;
    let mut client = enter(&a, "alice").await;
    assert!(is_refused(&b, "alice").await, "control");
    let leaving = async move { client.event().await };
    tokio::join!(a.cluster.shutdown(Duration::ZERO), leaving);
    enter(&b, "alice").await;
}

/// A process that dies: its tasks are gone without a word, its connections too.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_nodes_seats_come_back_with_its_lease_and_not_before() {
    let lab = Lab::redis();
    let server = lab.redis.as_ref().unwrap();
    let builder = limited(&lab, 1, OverLimit::Refuse).lease(Duration::from_secs(6));
    let [b] = start(builder.clone()).await;
    let process = Runtime::new().unwrap();
    let dying = process.spawn(async move {
        let node = TestNode::start(builder.start()).await;
        let client = node.client("alice").await;
        (node, client)
    });
    let _dead = dying.await.unwrap();
    until("both nodes count their seats", async || {
        server.cli(&["ZCARD", "cluster:seats"]) == "2"
    })
    .await;
    process.shutdown_background();
    assert!(is_refused(&b, "alice").await);
    assert_eq!(
        server.cli(&["ZCARD", "cluster:seats"]),
        "2",
        "control: the lease is not over"
    );
    enter(&b, "alice").await;
    until("the dead node is forgotten", async || {
        server.cli(&["ZCARD", "cluster:seats"]) == "1"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_each_node_counts_its_own_and_afterwards_all_count() {
    let mut lab = Lab::redis();
    // Nobody waits for a Redis that is known to be gone.
    let builder = limited(&lab, 2, OverLimit::Refuse).publish_timeout(NEVER);
    let nodes: [TestNode; 2] = start(builder).await;
    let [a, b] = &nodes;
    let before = (enter(a, "alice").await, enter(b, "alice").await);
    assert!(
        is_refused(a, "alice").await,
        "control: the cluster is counted"
    );
    lab.server().kill();
    for node in &nodes {
        until("the outage is noticed", async || {
            matches!(node.cluster.health(), Health::Degraded { .. })
        })
        .await;
    }
    let during = (
        attempt(a, "alice").await.unwrap(),
        attempt(b, "alice").await.unwrap(),
    );
    for node in &nodes {
        assert!(is_refused(node, "alice").await, "the local limit holds");
        assert!(node.cluster.stats().limits_unchecked >= 2);
    }
    lab.server().restart();
    until("redis knows the four seats again", async || {
        seats(lab.server(), "alice") == 4
    })
    .await;
    drop(during.0);
    until("and one less", async || seats(lab.server(), "alice") == 3).await;
    assert!(is_refused(a, "alice").await && is_refused(b, "alice").await);
    drop(during.1);
    until("and one less", async || seats(lab.server(), "alice") == 2).await;
    let unchecked = nodes.each_ref().map(|n| n.cluster.stats().limits_unchecked);
    assert!(is_refused(a, "alice").await && is_refused(b, "alice").await);
    drop(before);
    until_free(&nodes, "alice", 2).await;
    let still = nodes.each_ref().map(|n| n.cluster.stats().limits_unchecked);
    assert_eq!(unchecked, still, "redis decides again");
}

/// What was asked of a frozen Redis happens when it thaws; nobody waits for it, and nothing of it stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_redis_leaves_no_seat_behind() {
    let mut lab = Lab::redis();
    let builder = limited(&lab, 2, OverLimit::Refuse).publish_timeout(Duration::from_millis(200));
    let nodes: [TestNode; 2] = start(builder).await;
    let [a, b] = &nodes;
    lab.server().freeze();
    let during = (
        attempt(a, "alice").await.unwrap(),
        attempt(b, "alice").await.unwrap(),
    );
    let more = (
        attempt(a, "alice").await.unwrap(),
        attempt(b, "alice").await.unwrap(),
    );
    assert!(is_refused(a, "alice").await && is_refused(b, "alice").await);
    assert!(
        a.cluster.stats().limits_unchecked >= 3,
        "control: redis did not answer"
    );
    lab.server().thaw();
    until("redis knows the four seats", async || {
        seats(lab.server(), "alice") == 4
    })
    .await;
    drop((during, more));
    until_free(&nodes, "alice", 2).await;
    until("redis knows of none", async || {
        seats(lab.server(), "alice") == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_forgets_is_written_again() {
    let lab = Lab::redis();
    let server = lab.redis.as_ref().unwrap();
    let builder = limited(&lab, 2, OverLimit::Refuse).lease(Duration::from_secs(3));
    let nodes: [TestNode; 2] = start(builder).await;
    let [a, b] = &nodes;
    let _clients = (enter(a, "alice").await, enter(b, "alice").await);
    let joins = server.calls("eval");
    assert_eq!(server.cli(&["FLUSHALL"]), "OK");
    until("control: both have noticed", async || {
        server.calls("eval") == joins + 2
    })
    .await;
    until("redis knows the two seats again", async || {
        seats(server, "alice") == 2
    })
    .await;
    assert!(is_refused(a, "alice").await && is_refused(b, "alice").await);
    assert_eq!(server.cli(&["SCRIPT", "FLUSH"]), "OK");
    assert!(is_refused(a, "alice").await && is_refused(b, "alice").await);
    for node in &nodes {
        assert_eq!(node.cluster.stats().limits_unchecked, 0);
    }
}

/// The message that closes a replaced socket may be lost, the seat's hash tells it all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_socket_is_closed_even_when_the_message_was_lost() {
    let lab = Lab::redis();
    let server = lab.redis.as_ref().unwrap();
    let dumb = format!(
        "ACL SETUSER dumb on >s3cret resetchannels &cluster:* +subscribe +unsubscribe {SEATS_ACL}"
    );
    assert_eq!(cli(server, &dumb), "OK");
    let builder = limited(&lab, 1, OverLimit::CloseOldest).lease(Duration::from_secs(3));
    let [b] = start(builder.clone()).await;
    let url = format!("redis://dumb:s3cret@127.0.0.1:{}", server.port());
    let a = TestNode::start(builder.redis(url).start()).await;
    until("the node knows that it cannot publish", async || {
        matches!(a.cluster.health(), Health::Degraded { reason, .. } if reason.contains("NOPERM"))
    })
    .await;
    let mut oldest = enter(&b, "alice").await;
    let _newest = enter(&a, "alice").await;
    assert_eq!(
        a.cluster.stats().limits_unchecked,
        0,
        "the seat was granted by redis"
    );
    until("control: nobody was told", async || {
        a.cluster.stats().bus_publish_failures == 1
    })
    .await;
    assert_eq!(oldest.event().await, replaced());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_expires_and_none_is_left() {
    let lab = Lab::redis();
    let server = lab.redis.as_ref().unwrap();
    let nodes: [TestNode; 3] = start(limited(&lab, 2, OverLimit::CloseOldest)).await;
    let mut clients = Vec::new();
    for n in 0..12 {
        clients.push(enter(&nodes[n % 3], &format!("user {}", n % 4)).await);
    }
    for command in ["keys", "scan"] {
        assert_eq!(server.calls(command), 0, "{command}");
    }
    let keys = server.cli(&["KEYS", "*"]);
    assert_eq!(
        keys.lines().count(),
        4,
        "three nodes and their leases: {keys}"
    );
    for key in keys.lines() {
        assert!(key.starts_with("cluster:seats"), "{key}");
        let left: i64 = server.cli(&["PTTL", key]).parse().unwrap();
        assert!((1..=15_000).contains(&left), "{key} expires in {left} ms");
    }
    let [a, b, c] = nodes;
    let clients = clients
        .into_iter()
        .map(async |mut client| client.event().await);
    let shutdown = async {
        a.cluster.shutdown(Duration::ZERO).await;
        assert_eq!(server.cli(&["ZCARD", "cluster:seats"]), "2");
        b.cluster.shutdown(Duration::ZERO).await;
    };
    tokio::select! {
        () = shutdown => {}
        _ = join_all(clients) => panic!("the sockets of c live on"),
    }
    c.until_empty().await;
    // Not shut down, only let go.
    drop(c);
    until("nothing is left", async || server.cli(&["DBSIZE"]) == "0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connect_is_one_command_a_disconnect_at_most_one_and_none_without_a_limit() {
    let lab = Lab::redis();
    let server = lab.redis.as_ref().unwrap();
    let [plain] = start(lab.builder()).await;
    let [node] = start(limited(&lab, 9, OverLimit::Refuse).lease(NEVER)).await;
    let scripts = || server.calls("evalsha") + server.calls("eval");
    let before = scripts();
    for n in 0..50 {
        drop(enter(&plain, &n.to_string()).await);
    }
    plain.until_empty().await;
    assert_eq!(scripts(), before);
    let mut clients = Vec::new();
    for n in 0..50 {
        clients.push(enter(&node, &n.to_string()).await);
    }
    assert_eq!(scripts() - before, 50);
    drop(clients);
    until("the seats are free", async || {
        let keys = own_keys(server);
        !server.cli(&["HKEYS", &keys[0]]).contains("u:")
    })
    .await;
    assert!(
        (51..=100).contains(&(scripts() - before)),
        "{}",
        scripts() - before
    );
}

/// What `max_sockets_per_user_in_cluster` documents.
const SEATS_ACL: &str = "~cluster:seats* +eval +evalsha +time +hget +hmget +hset +hdel +hexists +unlink +pexpire \
    +zadd +zrem +zscore +zrangebyscore +zremrangebyscore";

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_acl_line_is_enough_and_without_it_the_local_limit_holds() {
    let lab = Lab::redis();
    let server = lab.redis.as_ref().unwrap();
    let bus = "resetchannels &cluster:* +subscribe +unsubscribe +publish +pubsub";
    for rules in [
        format!("ACL SETUSER node on >s3cret {bus} {SEATS_ACL}"),
        format!("ACL SETUSER older on >s3cret {bus}"),
        format!("ACL SETUSER half on >s3cret {bus} {SEATS_ACL} -time"),
    ] {
        assert_eq!(cli(server, &rules), "OK", "{rules}");
    }
    let builder = |user: &str, over| {
        let url = format!("redis://{user}:s3cret@127.0.0.1:{}", server.port());
        let builder = limited(&lab, 2, over).redis(url);
        builder.publish_timeout(NEVER)
    };
    for over in [OverLimit::Refuse, OverLimit::CloseOldest] {
        let nodes: [TestNode; 2] = start(builder("node", over)).await;
        let clients = (
            enter(&nodes[0], "alice").await,
            enter(&nodes[1], "alice").await,
        );
        let third = attempt(&nodes[0], "alice").await;
        assert_eq!(
            third.is_ok(),
            over == OverLimit::CloseOldest,
            "it is checked"
        );
        until_sockets(&nodes, 2).await;
        for node in &nodes {
            assert_eq!(node.cluster.stats().limits_unchecked, 0);
        }
        drop((clients, third));
        until_sockets(&nodes, 0).await;
        for node in &nodes {
            node.cluster.shutdown(Duration::ZERO).await;
        }
    }
    for user in ["older", "half"] {
        let [node] = start(builder(user, OverLimit::Refuse)).await;
        let _clients = (enter(&node, "alice").await, enter(&node, "alice").await);
        assert!(is_refused(&node, "alice").await, "{user}");
        assert_eq!(node.cluster.health(), Health::Up);
        assert_eq!(node.cluster.stats().limits_unchecked, 3);
    }
}

/// Redis under `allkeys-random`, or an operator, or a script that cleans up: sockets come and go on three nodes
/// meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_keys_redis_loses_nobody_has_more_sockets_than_the_limit() {
    const LIMIT: usize = 3;
    let lab = Lab::redis();
    let server = lab.redis.as_ref().unwrap();
    let nodes: [TestNode; 3] = start(limited(&lab, LIMIT, OverLimit::Refuse)).await;
    // Before the first key is lost, and after the last, everything is checked.
    for node in &nodes {
        drop(enter(node, "alice").await);
    }
    until_sockets(&nodes, 0).await;
    let unchecked = || -> u64 {
        let stats = nodes.iter().map(|node| node.cluster.stats());
        stats.map(|stats| stats.limits_unchecked).sum()
    };
    assert_eq!(unchecked(), 0, "control");
    let (live, most, entered) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let traffic = async |at: usize| {
        while entered.get() < 300 {
            let Ok(client) = attempt(&nodes[at % 3], "alice").await else {
                sleep(Duration::from_millis(fastrand::u64(..5))).await;
                continue;
            };
            live.set(live.get() + 1);
            most.set(most.get().max(live.get()));
            entered.set(entered.get() + 1);
            sleep(Duration::from_millis(fastrand::u64(..60))).await;
            // It counts no longer than the client holds it; the node may still think that it lives.
            live.set(live.get() - 1);
            drop(client);
        }
    };
    let lost = Cell::new(0);
    let faults = async {
        loop {
            sleep(Duration::from_millis(fastrand::u64(..100))).await;
            let keys = server.cli(&["KEYS", "cluster:seats*"]);
            let keys: Vec<&str> = keys.lines().collect();
            if let Some(key) = fastrand::choice(&keys) {
                lost.set(lost.get() + usize::from(server.cli(&["DEL", key]) == "1"));
            }
            if fastrand::u8(..20) == 0 {
                cli(
                    server,
                    fastrand::choice(["FLUSHALL", "SCRIPT FLUSH"]).unwrap(),
                );
            }
        }
    };
    tokio::select! {
        _ = join_all((0..9).map(traffic)) => {}
        () = faults => {}
    }
    assert!(lost.get() > 10, "control: {} keys were lost", lost.get());
    assert_eq!(
        most.get(),
        LIMIT,
        "control: they compete for the last seat, and nobody enters beyond it"
    );
}

/// A node with nothing to say notices all the same, long before it renews its lease, and others wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_node_whose_keys_are_lost_is_waited_for() {
    let lab = Lab::redis();
    let server = lab.redis.as_ref().unwrap();
    let builder = limited(&lab, 2, OverLimit::Refuse).lease(NEVER);
    // Nobody is refused for having waited too long.
    let [idle, asking] = start(builder.publish_timeout(NEVER)).await;
    let _sockets = (enter(&idle, "alice").await, enter(&idle, "alice").await);
    drop(enter(&asking, "bob").await);
    let own = &holder(server, "alice");
    let renewals = server.calls("zremrangebyscore");
    for lost in [vec!["cluster:seats"], vec![own], vec!["cluster:seats", own]] {
        let deleted = [&["DEL"], &*lost].concat();
        assert_eq!(server.cli(&deleted), lost.len().to_string(), "control");
        assert!(is_refused(&asking, "alice").await, "{lost:?}");
    }
    assert_eq!(server.cli(&["FLUSHALL"]), "OK");
    assert!(is_refused(&asking, "alice").await);
    drop(enter(&asking, "bob").await);
    for node in [&idle, &asking] {
        assert_eq!(node.cluster.stats().limits_unchecked, 0);
    }
    let calm = server.calls("zremrangebyscore") - renewals;
    assert!(
        calm < 40,
        "control: nothing is written for ever, but {calm} times"
    );
}

/// A failover, or a restart with what was saved a second ago, takes the last writes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_seat_that_redis_took_back_is_written_again() {
    let lab = Lab::redis();
    let server = lab.redis.as_ref().unwrap();
    let builder = limited(&lab, 2, OverLimit::Refuse).lease(NEVER);
    let [a, b] = start(builder.publish_timeout(NEVER)).await;
    let _first = enter(&a, "alice").await;
    let own = &holder(server, "alice");
    assert_eq!(server.cli(&["COPY", own, "saved"]), "1");
    let _second = enter(&a, "alice").await;
    let take_back = "redis.call('COPY', KEYS[1], KEYS[2], 'REPLACE') return redis.call('HGET', KEYS[2], 'u:alice')";
    let taken = server.cli(&["EVAL", take_back, "2", "saved", own]);
    assert_eq!(taken.matches(',').count(), 1, "control: it is taken back");
    until("it is written again", async || seats(server, "alice") == 2).await;
    assert!(is_refused(&b, "alice").await);
    assert_eq!(b.cluster.stats().limits_unchecked, 0);
}

/// What a dead node held cannot be asked of anybody: the others decide, by what they know, and say so.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_whose_keys_are_lost_is_given_up() {
    let lab = Lab::redis();
    let server = lab.redis.as_ref().unwrap();
    // Long enough for a busy machine: who is not answered in time counts its own sockets.
    let patient = limited(&lab, 2, OverLimit::Refuse).publish_timeout(Duration::from_secs(10));
    let builder = patient.lease(NEVER);
    let [b, c] = start(builder.clone()).await;
    let before = own_keys(server);
    let process = Runtime::new().unwrap();
    let link = Proxy::to(server.port()).await;
    let builder = builder.redis(link.url());
    let dying = process.spawn(async move {
        let node = TestNode::start(builder.start()).await;
        let client = node.client("alice").await;
        (node, client)
    });
    let _dead = dying.await.unwrap();
    // Before it could give anything back.
    link.cut();
    process.shutdown_background();
    let dead = own_keys(server);
    let dead = dead.iter().find(|key| !before.contains(key));
    let dead = dead.expect("it has joined");
    let _counted = enter(&b, "alice").await;
    assert!(is_refused(&c, "alice").await, "control: its lease runs");
    assert_eq!(server.cli(&["DEL", dead]), "1");
    let _unchecked = enter(&c, "alice").await;
    assert_eq!(c.cluster.stats().limits_unchecked, 1);
    assert!(is_refused(&b, "alice").await, "the living are counted");
    assert_eq!(b.cluster.stats().limits_unchecked, 0);
}

#[test]
fn a_limit_of_none_makes_no_sense() {
    let builder = Cluster::builder().max_sockets_per_user_in_cluster(0, OverLimit::Refuse);
    let problem = builder.try_start().unwrap_err().to_string();
    assert!(
        problem.contains("max_sockets_per_user_in_cluster is zero"),
        "{problem}"
    );
}

pub(crate) fn limited(lab: &Lab, sockets: usize, over: OverLimit) -> ClusterBuilder {
    lab.builder().max_sockets_per_user_in_cluster(sockets, over)
}

async fn start<const N: usize>(builder: ClusterBuilder) -> [TestNode; N] {
    let nodes = join_all((0..N).map(async |_| {
        let node = TestNode::start(builder.clone().start()).await;
        node.cluster.ready().await.unwrap();
        node
    }));
    nodes.await.try_into().unwrap()
}

/// A socket of this user, or the status that refused it.
pub(crate) async fn attempt(node: &TestNode, user: &str) -> Result<Client, u16> {
    let user = crate::support::client::user_header(user);
    let attempt = Client::try_connect(node.addr, "/ws", &[("x-user", &user)]).await;
    attempt.map_err(|(status, _)| status)
}

pub(crate) async fn enter(node: &TestNode, user: &str) -> Client {
    let mut entered = None;
    until("a free seat", async || {
        entered = attempt(node, user).await.ok();
        entered.is_some()
    })
    .await;
    entered.unwrap()
}

pub(crate) async fn is_refused(node: &TestNode, user: &str) -> bool {
    attempt(node, user).await.is_err_and(|status| status == 429)
}

async fn until_sockets(nodes: &[TestNode], count: u64) {
    until("that many sockets", async || {
        let sockets = nodes.iter().map(|node| node.cluster.stats().sockets);
        sockets.sum::<u64>() == count
    })
    .await;
}

/// Waits until exactly so many seats of the user are free.
pub(crate) async fn until_free(nodes: &[TestNode], user: &str, seats: usize) {
    until("free seats", async || {
        let more = (0..=seats).map(|n| attempt(&nodes[n % nodes.len()], user));
        let entered = join_all(more)
            .await
            .iter()
            .filter(|one| one.is_ok())
            .count();
        assert!(entered <= seats, "{entered} of {seats} seats");
        until_sockets(nodes, 0).await;
        entered == seats
    })
    .await;
}

fn replaced() -> Event {
    Event::Closed(4409, "replaced by a newer socket".into())
}

fn cli(server: &RedisServer, command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    server.cli(&words)
}

/// How many seats of a user Redis knows, on all living nodes.
fn seats(server: &RedisServer, user: &str) -> usize {
    let nodes = server.cli(&["ZRANGE", "cluster:seats", "0", "-1"]);
    let nodes = nodes.lines().filter(|node| !node.is_empty());
    let seats = nodes.map(|node| {
        let hash = format!("cluster:seats:{node}");
        server.cli(&["HGET", &hash, &format!("u:{user}")])
    });
    seats.map(|seats| seats.matches(',').count()).sum()
}

/// The hash of the only node that holds seats of a user.
fn holder(server: &RedisServer, user: &str) -> String {
    let user = format!("u:{user}");
    let mut keys = own_keys(server).into_iter();
    let holder = keys.find(|key| !server.cli(&["HGET", key, &user]).is_empty());
    holder.expect("a node that holds one")
}

/// The hashes of the nodes.
fn own_keys(server: &RedisServer) -> Vec<String> {
    let keys = server.cli(&["KEYS", "cluster:seats:*"]);
    keys.lines().map(str::to_owned).collect()
}
