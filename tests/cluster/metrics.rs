//! The numbers as Prometheus scrapes them, from the example that is a program.

use std::net::SocketAddr;

use axum_cluster::{StatKind, Stats};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::client::text;
use crate::support::program;
use crate::support::redis::free_port;
use crate::support::{Client, RedisServer, soon, until};

/// What is scraped over HTTP: every number, and of each histogram what happened.
#[tokio::test(flavor = "multi_thread")]
async fn prometheus_scrapes_every_number() {
    let server = RedisServer::start();
    let port = free_port();
    let url = server.url();
    let settings = [("REDIS_URL", &*url)];
    let _node = program::node("metrics", port, &settings).await;
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    let value = async |name: &str| {
        let name = format!("axum_cluster_{name}{{namespace=\"cluster\"}} ");
        let scraped = scrape(addr).await;
        let mut values = scraped.lines().filter_map(|line| line.strip_prefix(&name));
        values.next().map(|value| value.parse::<f64>().unwrap())
    };
    // Then it waits for what comes to be confirmed.
    until("it is up", async || value("up").await == Some(1.0)).await;
    let mut client = Client::try_connect(addr, "/ws", &[]).await.unwrap();
    for n in 0..3 {
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
    assert_eq!(value("sent").await, Some(3.0));
    assert_eq!(value("sockets").await, Some(1.0));
    assert_eq!(value("publish_seconds_count").await, Some(3.0));
    assert_eq!(value("fan_out_sockets_count").await, Some(3.0));
    assert_eq!(value("fan_out_sockets_sum").await, Some(3.0));
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
