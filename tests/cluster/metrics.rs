//! The numbers as Prometheus scrapes them, from the example that is a program.

use std::net::SocketAddr;

use axum_cluster::{StatKind, Stats};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::client::text;
use crate::support::program;
use crate::support::redis::free_port;
use crate::support::{Client, RedisServer, soon, until};

/// What is scraped over HTTP: every number, and of each histogram what happened. Of sends one in sixteen is timed, all are counted.
#[tokio::test(flavor = "multi_thread")]
async fn prometheus_scrapes_every_number() {
    let server = RedisServer::start();
    let port = free_port();
    let url = server.url();
    let settings = [("REDIS_URL", &*url)];
    let _node = program::node("metrics", port, &settings).await;
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    let value = async |name: &str| value_at(addr, name).await;
    // Then it waits for what comes to be confirmed.
    until("it is up", async || value("up").await == Some(1.0)).await;
    let mut client = Client::try_connect(addr, "/ws", &[]).await.unwrap();
    for n in 0..64 {
        client.send(&n.to_string()).await;
        assert_eq!(client.event().await, text(&n.to_string()));
    }
    let scraped = scrape(addr).await;
    for (name, kind, _) in Stats::default().iter() {
        let kind = match kind {
            StatKind::Counter => "counter",
            _ => "gauge",
        };
        let line = format!("# TYPE axum_cluster_{name} {kind}");
        assert!(scraped.lines().any(|it| it == line), "{line} in {scraped}");
        assert!(value(name).await.is_some(), "{name} in {scraped}");
    }
    assert_eq!(value("sent").await, Some(64.0));
    assert_eq!(value("sockets").await, Some(1.0));
    assert_eq!(value("publish_seconds_count").await, Some(4.0));
    assert_eq!(value("fan_out_sockets_count").await, Some(64.0));
    assert_eq!(value("fan_out_sockets_sum").await, Some(64.0));
    for positive in [
        "probe_seconds_count",
        "probe_seconds_sum",
        "confirm_seconds_count",
        "confirm_seconds_sum",
        "publish_seconds_sum",
    ] {
        assert!(value(positive).await > Some(0.0), "{positive} in {scraped}");
    }
}

/// From a send at one node to its delivery at the other, as that one tells it.
#[tokio::test(flavor = "multi_thread")]
async fn prometheus_is_told_how_long_a_message_takes_to_another_node() {
    let server = RedisServer::start();
    let url = server.url();
    let settings = [("REDIS_URL", &*url)];
    let ports = [free_port(), free_port()];
    let [a, b] = ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let mut nodes = Vec::new();
    for port in ports {
        nodes.push(program::node("metrics", port, &settings).await);
    }
    for addr in [a, b] {
        until("the nodes know each other", async || {
            value_at(addr, "nodes").await == Some(2.0)
        })
        .await;
    }
    let mut sender = Client::try_connect(a, "/ws", &[]).await.unwrap();
    let mut receiver = Client::try_connect(b, "/ws", &[]).await.unwrap();
    let mut exchanged = 0;
    let mut exchange = async || {
        exchanged += 1;
        sender.send("x").await;
        for client in [&mut sender, &mut receiver] {
            assert_eq!(client.event().await, text("x"));
        }
        exchanged
    };
    // Hellos tell of the clocks, and are said every 5 s.
    until("the first is measured", async || {
        exchange().await;
        value_at(b, "delivery_seconds_count").await > Some(0.0)
    })
    .await;
    let before = value_at(b, "delivery_seconds_count").await.unwrap();
    for _ in 0..160 {
        exchange().await;
    }
    let count = value_at(b, "delivery_seconds_count").await;
    let timed = count.unwrap() - before;
    assert!((8.0..=12.0).contains(&timed), "one in sixteen: {timed}");
    assert!(value_at(b, "delivery_seconds_sum").await > Some(0.0));
    assert_eq!(
        value_at(a, "delivery_seconds_count").await,
        None,
        "nobody sent there"
    );
}

async fn value_at(addr: SocketAddr, name: &str) -> Option<f64> {
    let name = format!("axum_cluster_{name}{{namespace=\"cluster\"}} ");
    let scraped = scrape(addr).await;
    let mut values = scraped.lines().filter_map(|line| line.strip_prefix(&name));
    values.next().map(|value| value.parse::<f64>().unwrap())
}

async fn scrape(addr: SocketAddr) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut response = String::new();
    let reading = stream.read_to_string(&mut response);
    soon("a response", reading).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    response
}
