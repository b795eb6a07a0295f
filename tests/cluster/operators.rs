//! What operators rely on, with the `kubernetes` example as a process: probes, metrics, the drain.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::client::Event;
use crate::support::program::{Program, example};
use crate::support::redis::free_port;
use crate::support::{Client, RedisServer, until};

fn start(server: &RedisServer) -> (Program, SocketAddr) {
    let port = free_port();
    let mut node = example("kubernetes");
    node.env("PORT", port.to_string())
        .env("REDIS_URL", server.url())
        .env("DRAIN_SECONDS", "1")
        .stdout(Stdio::null());
    (
        Program(node.spawn().unwrap()),
        ([127, 0, 0, 1], port).into(),
    )
}

/// The status and the body; `None` where nobody listens.
async fn get(addr: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(addr).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await.ok()?;
    let (head, body) = response.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

async fn until_status(addr: SocketAddr, path: &str, status: u16) {
    let what = format!("{path} answers {status}");
    until(&what, async || {
        get(addr, path)
            .await
            .is_some_and(|(code, _)| code == status)
    })
    .await;
}

async fn metric(addr: SocketAddr, name: &str) -> u64 {
    let (status, body) = get(addr, "/metrics").await.unwrap();
    assert_eq!(status, 200);
    let value = body
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value
        .unwrap_or_else(|| panic!("no {name}: {body}"))
        .parse()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_termination_drains_and_leaves_nothing() {
    let server = RedisServer::start();
    let (mut node, addr) = start(&server);
    until_status(addr, "/ready", 200).await;
    let mut client = Client::connect(addr, "anybody").await;
    assert_eq!(metric(addr, "cluster_sockets").await, 1);
    assert!(server.cli(&["PUBSUB", "CHANNELS"]).contains(":u:"));

    let pid = node.0.id().to_string();
    let killed = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(killed.unwrap().success());
    // The client has not answered its Close yet, so the drain goes on.
    until_status(addr, "/ready", 503).await;
    assert_eq!(get(addr, "/live").await.unwrap().0, 200);
    let refused = Client::try_connect(addr, "/ws", &[]).await.unwrap_err();
    assert_eq!(refused.0, 503);
    assert!(matches!(client.event().await, Event::Closed(1012, _)));

    let mut ended = None;
    until("the process ends", async || {
        ended = node.0.try_wait().unwrap();
        ended.is_some()
    })
    .await;
    assert_eq!(ended.unwrap().code(), Some(0));
    assert_eq!(server.cli(&["PUBSUB", "CHANNELS"]), "");
    let others = server.cli(&["CLIENT", "LIST"]);
    assert_eq!(others.lines().count(), 1, "only redis-cli: {others}");
    assert_eq!(server.cli(&["DBSIZE"]), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_redis_takes_no_node_out_of_service() {
    let mut server = RedisServer::absent();
    let (_node, addr) = start(&server);
    until_status(addr, "/live", 200).await;
    // Never connected: not ready.
    assert_eq!(get(addr, "/ready").await.unwrap().0, 503);
    server.restart();
    until_status(addr, "/ready", 200).await;
    assert_eq!(metric(addr, "cluster_up").await, 1);

    server.kill();
    until("it is degraded", async || {
        metric(addr, "cluster_up").await == 0
    })
    .await;
    assert_eq!(get(addr, "/ready").await.unwrap().0, 200);
    assert_eq!(get(addr, "/live").await.unwrap().0, 200);
    assert_eq!(metric(addr, "cluster_bus_gaps_total").await, 1);
}
