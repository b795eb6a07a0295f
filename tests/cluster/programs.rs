//! The examples as programs, in processes of their own.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::support::client::{Event, text};
use crate::support::redis::free_port;
use crate::support::{Client, Lab, RedisServer, soon, until};

/// An example that `cargo test` has built.
pub(crate) fn example(name: &str) -> Command {
    let tests = std::env::current_exe().unwrap();
    let built = tests
        .ancestors()
        .nth(2)
        .unwrap()
        .join("examples")
        .join(name);
    assert!(
        built.exists(),
        "{name} is not built: run `cargo test`, or `cargo build --examples` first"
    );
    Command::new(built)
}

/// A running example, ended with its value.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The tutorial: two instances, one client at either, and it hears both.
#[tokio::test(flavor = "multi_thread")]
async fn two_tickers_are_one_cluster() {
    let server = RedisServer::start();
    let ports = [free_port(), free_port()];
    let start = |port: u16| {
        let mut ticker = example("ticker");
        ticker
            .env("PORT", port.to_string())
            .env("REDIS_URL", server.url())
            .stdout(Stdio::null());
        Running(ticker.spawn().unwrap())
    };
    let _tickers = ports.map(start);
    for port in ports {
        let addr = ([127, 0, 0, 1], port).into();
        until("it listens", async || {
            tokio::net::TcpStream::connect(addr).await.is_ok()
        })
        .await;
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

async fn worker(url: &str, trusted: Option<&PathBuf>) -> Output {
    let mut worker = example("worker");
    worker.env("REDIS_URL", url).args(["alice", "shipped"]);
    if let Some(trusted) = trusted {
        worker
            .env("SSL_CERT_FILE", trusted)
            .env_remove("SSL_CERT_DIR");
    }
    let running = tokio::task::spawn_blocking(move || worker.output().unwrap());
    soon("the worker ends", running).await.unwrap()
}

/// `rediss://` with the right authority and name works; anything else is refused, never plain.
#[tokio::test(flavor = "multi_thread")]
async fn tls_is_verified() {
    let dir = std::env::temp_dir().join(format!("tls-of-test-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = |name: &str| dir.join(name);
    let authority = || {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let (ours, foreign) = (authority(), authority());
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned()];
    let certificate = CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &ours)
        .unwrap();
    for (name, pem) in [
        ("ours.pem", ours.pem()),
        ("foreign.pem", foreign.pem()),
        ("server.pem", certificate.pem()),
        ("server.key", key.serialize_pem()),
    ] {
        std::fs::write(path(name), pem).unwrap();
    }
    let tls_port = free_port().to_string();
    let files =
        ["server.pem", "server.key", "ours.pem"].map(|name| path(name).display().to_string());
    let options = [
        "--tls-port",
        &tls_port,
        "--tls-auth-clients",
        "no",
        "--tls-cert-file",
        &files[0],
        "--tls-key-file",
        &files[1],
        "--tls-ca-cert-file",
        &files[2],
    ];
    let server = RedisServer::with_options(&options);
    let lab = Lab {
        backend: axum_cluster::Backend::redis(server.url()).unwrap(),
        redis: None,
    };
    let [node] = lab.nodes().await;
    let mut client = node.client("alice").await;

    let good = worker(
        &format!("rediss://localhost:{tls_port}"),
        Some(&path("ours.pem")),
    )
    .await;
    assert!(
        good.status.success(),
        "control: {}",
        String::from_utf8_lossy(&good.stderr)
    );
    assert_eq!(client.event().await, text("shipped"));
    for (host, trusted, why) in [
        ("localhost", "foreign.pem", "another authority"),
        ("127.0.0.1", "ours.pem", "another name"),
    ] {
        let refused = worker(&format!("rediss://{host}:{tls_port}"), Some(&path(trusted))).await;
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && error.contains("certificate"),
            "{why}: {error}"
        );
    }
    node.broadcaster.to_all().send("fence").await.unwrap();
    assert_eq!(client.before("fence").await, []);
    drop(server);
    std::fs::remove_dir_all(dir).unwrap();
}
