//! The examples as programs, in processes of their own.

use std::path::Path;

use crate::support::client::{Event, text};
use crate::support::program::{ticker, worker};
use crate::support::redis::free_port;
use crate::support::{Client, Lab, RedisServer};

/// The tutorial: two instances, one client at either, and it hears both.
#[tokio::test(flavor = "multi_thread")]
async fn two_tickers_are_one_cluster() {
    let server = RedisServer::start();
    let ports = [free_port(), free_port()];
    let mut tickers = Vec::new();
    for port in ports {
        tickers.push(ticker(port, &server.url()).await);
    }
    for port in ports {
        let addr = ([127, 0, 0, 1], port).into();
        let mut client = Client::try_connect(addr, "/", &[("cookie", "token=user1")])
            .await
            .unwrap();
        let mut wanted = ports
            .map(|port| format!(" | from server on port {port}"))
            .to_vec();
        while !wanted.is_empty() {
            let Event::Text(tick) = client.event().await else {
                panic!("closed")
            };
            wanted.retain(|suffix| !tick.ends_with(suffix));
        }
        for path in ["/", "/ws"] {
            let mut stranger = Client::try_connect(addr, path, &[]).await.unwrap();
            let close = Event::Closed(4403, "set JWT cookie to authenticate".into());
            assert_eq!(stranger.event().await, close);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_reaches_a_user() {
    let mut lab = Lab::redis();
    let [node] = lab.nodes().await;
    let mut client = node.client("alice").await;
    let output = worker(&lab.server().url(), None).await;
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "1 nodes took it"
    );
    assert_eq!(client.event().await, text("shipped"));
}

/// The documents are packaged, and so is what they lead to.
#[test]
fn links_lead_to_files_of_the_package() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut links = 0;
    for document in [
        "README.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "benches/README.md",
        "docs/faults.md",
        "docs/operating.md",
        "docs/soak.md",
        "docs/testing.md",
        "tests/autobahn/README.md",
    ] {
        let path = root.join(document);
        let text = std::fs::read_to_string(&path).unwrap();
        let inline = text.split("](").skip(1);
        let inline = inline.map(|rest| rest.split_once(')').unwrap().0);
        let defined = text.lines().filter(|line| line.starts_with('['));
        let defined = defined.filter_map(|line| Some(line.split_once("]: ")?.1));
        for link in inline.chain(defined) {
            if link.contains("://") || link.starts_with('#') {
                continue;
            }
            let target = path.parent().unwrap().join(link);
            assert!(target.is_file(), "{document}: {link}");
            // Cargo.toml excludes them from the package.
            assert!(
                !link.contains(".ci/") && !link.contains(".github/"),
                "{document}: {link}"
            );
            links += 1;
        }
    }
    assert!(links > 0, "control");
}
