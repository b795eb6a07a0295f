//! `rediss://` with real certificates (row B13): verified or refused, never plain.

use std::path::{Path, PathBuf};
use std::process::Output;

use futures::future::join_all;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::support::client::text;
use crate::support::program::worker;
use crate::support::redis::free_port;
use crate::support::{Lab, RedisServer};

type Authority = CertifiedIssuer<'static, KeyPair>;

/// Certificates as files, removed with their value.
struct Certificates {
    dir: PathBuf,
}

impl Certificates {
    fn of(test: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("tls-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let certificates = Self { dir };
        let (ours, foreign) = (authority("ours"), authority("foreign"));
        certificates.write("ours.pem", ours.pem());
        certificates.write("foreign.pem", foreign.pem());
        certificates.issue("good", &ours, 4096);
        certificates.issue("expired", &ours, 2001);
        certificates
    }

    /// A certificate and its key for `localhost`, valid from 2000 on.
    fn issue(&self, name: &str, authority: &Authority, until_year: i32) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(until_year, 1, 1);
        let certificate = params.signed_by(&key, authority).unwrap();
        self.write(&format!("{name}.pem"), certificate.pem());
        self.write(&format!("{name}.key"), key.serialize_pem());
    }

    fn write(&self, name: &str, pem: String) {
        std::fs::write(self.path(name), pem).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A Redis that shows this certificate on the returned port, and asks for a password on both.
    fn server(&self, name: &str) -> (RedisServer, u16) {
        let port = free_port();
        let path = |name: String| self.path(&name).display().to_string();
        let server = RedisServer::with_options(&[
            "--requirepass",
            "s3cret",
            "--tls-port",
            &port.to_string(),
            "--tls-auth-clients",
            "no",
            "--tls-cert-file",
            &path(format!("{name}.pem")),
            "--tls-key-file",
            &path(format!("{name}.key")),
            "--tls-ca-cert-file",
            &path("ours.pem".into()),
        ]);
        (server, port)
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        // Left-over files are no reason to fail a test.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

async fn send(host: &str, port: u16, trusted: &Path) -> Output {
    worker(&format!("rediss://:s3cret@{host}:{port}"), Some(trusted)).await
}

/// What a refused worker says, which never names the password.
fn refusal(output: &Output) -> String {
    let words = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    let words = words.concat();
    assert!(
        !output.status.success() && !words.contains("s3cret"),
        "{words}"
    );
    words
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_verified_or_refused() {
    let certificates = Certificates::of("verified");
    let (ours, foreign) = (
        certificates.path("ours.pem"),
        certificates.path("foreign.pem"),
    );
    let (server, port) = certificates.server("good");
    let (_expired, expired_port) = certificates.server("expired");
    let lab = Lab {
        backend: axum_cluster::Backend::redis(format!(
            "redis://:s3cret@127.0.0.1:{}",
            server.port()
        ))
        .unwrap(),
        redis: None,
    };
    let [node] = lab.nodes().await;
    let mut client = node.client("alice").await;

    let good = send("localhost", port, &ours).await;
    let words = String::from_utf8_lossy(&good.stderr);
    assert!(good.status.success(), "control: {words}");
    assert_eq!(client.event().await, text("shipped"));
    let refused = [
        ("localhost", port, &foreign, "UnknownIssuer"),
        ("127.0.0.1", port, &ours, "not valid for name"),
        ("localhost", expired_port, &ours, "expired"),
    ]
    .map(async |(host, port, trusted, why)| (send(host, port, trusted).await, why));
    for (output, why) in join_all(refused).await {
        let words = refusal(&output);
        assert!(
            words.contains("certificate") && words.contains(why),
            "{words}"
        );
    }
    refusal(&send("localhost", server.port(), &ours).await);
    node.broadcaster.to_all().send("fence").await.unwrap();
    assert_eq!(
        client.before("fence").await,
        [],
        "nothing came the plain way"
    );
}

/// What leaves the process for a port that does not speak TLS is a ClientHello, again and again.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_plain_is_said_where_tls_is_wanted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let certificates = Certificates::of("plain");
    let listening = tokio::spawn(async move {
        let mut attempts = Vec::new();
        while attempts.len() < 3 {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut said = vec![0; 4096];
            let count = stream.read(&mut said).await.unwrap();
            said.truncate(count);
            attempts.push(said);
        }
        attempts
    });
    refusal(&send("localhost", port, &certificates.path("ours.pem")).await);
    for said in listening.await.unwrap() {
        assert_eq!(said[0], 22, "a TLS handshake record");
        assert!(!said.windows(6).any(|six| six == b"s3cret"));
    }
}
