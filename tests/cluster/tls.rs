//! `rediss://` with real certificates (rows B13, T7, T21): verified or refused, never plain.

use std::path::{Path, PathBuf};
use std::process::Output;

use axum_cluster::Redis;
use futures::future::join_all;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::gaps::until_degraded_by;
use crate::support::client::text;
use crate::support::program::worker;
use crate::support::redis::free_port;
use crate::support::redis::redis_cluster::RedisCluster;
use crate::support::redis::sentinels::{SERVICE, watching};
use crate::support::{Lab, RedisServer, TestNode};

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
        certificates.issue("stranger", &foreign, 4096);
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

    fn pem(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// A Redis that shows this certificate on the returned port, and asks for a password on both.
    fn server(&self, name: &str) -> (RedisServer, u16) {
        self.server_that_asks("no", name)
    }

    /// Whether it asks for certificates too, `yes` or `no`.
    fn server_that_asks(&self, asks: &str, name: &str) -> (RedisServer, u16) {
        let port = free_port();
        let tls = self.settings(port, asks, name);
        let tls = tls
            .iter()
            .flat_map(|(key, value)| [format!("--{key}"), value.clone()]);
        let password = ["--requirepass", "s3cret"].map(str::to_owned);
        let options: Vec<String> = password.into_iter().chain(tls).collect();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        (RedisServer::with_options(&options), port)
    }

    fn settings(&self, port: u16, asks: &str, name: &str) -> [(&str, String); 5] {
        let path = |name: String| self.path(&name).display().to_string();
        [
            ("tls-port", port.to_string()),
            ("tls-auth-clients", asks.to_owned()),
            ("tls-cert-file", path(format!("{name}.pem"))),
            ("tls-key-file", path(format!("{name}.key"))),
            ("tls-ca-cert-file", path("ours.pem".into())),
        ]
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
        ..Lab::memory()
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

async fn start(redis: Redis) -> TestNode {
    TestNode::start(Lab::memory().builder().backend(redis).start()).await
}

async fn until_up(redis: Redis) {
    let node = start(redis).await;
    node.until_up().await;
}

/// What to do about certificates: show one, believe another, expect another name.
const SHOW: &str = "Redis::client_certificate";
const BELIEVE: &str = "Redis::root_certificates or SSL_CERT_FILE";
const NAME: &str = "Redis::server_name";

/// T21: the server is verified by the given authority alone, and sees whom it asks for.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_shown_to_who_asks_and_believed_of_whom_was_named() {
    let files = Certificates::of("client");
    let (_server, port) = files.server_that_asks("yes", "good");
    let (_expired, expired_port) = files.server("expired");
    let at = |host: &str| Redis::at(format!("rediss://:s3cret@{host}:{port}")).unwrap();
    let ours = || at("localhost").root_certificates(files.pem("ours.pem"));
    let shows = |redis: Redis, name: &str| {
        let key = files.pem(&format!("{name}.key"));
        redis.client_certificate(files.pem(&format!("{name}.pem")), key)
    };
    until_up(shows(ours(), "good")).await;
    let by_address = at("127.0.0.1").root_certificates(files.pem("ours.pem"));
    until_up(shows(by_address.clone(), "good").server_name("localhost")).await;
    let foreign = at("localhost").root_certificates(files.pem("foreign.pem"));
    let refused = [
        (ours(), "CertificateRequired", SHOW),
        (shows(ours(), "expired"), "CertificateExpired", SHOW),
        (shows(ours(), "stranger"), "UnknownCA", SHOW),
        (shows(foreign, "good"), "UnknownIssuer", BELIEVE),
        (shows(at("localhost"), "good"), "UnknownIssuer", BELIEVE),
        (shows(by_address, "good"), "not valid for name", NAME),
        (
            shows(ours().server_name("other"), "good"),
            "not valid for name",
            NAME,
        ),
        (
            Redis::at(format!("rediss://:s3cret@localhost:{expired_port}"))
                .unwrap()
                .root_certificates(files.pem("ours.pem")),
            "expired",
            "renew the server's certificate",
        ),
    ];
    let refused = refused.map(async |(redis, why, fix)| {
        let reason = until_degraded_by(&start(redis).await, why).await;
        assert!(reason.contains(fix), "{reason}");
        assert!(!reason.contains("s3cret"), "{reason}");
    });
    join_all(refused).await;
}

/// T21: every server of a cluster is verified and shown the certificate, whatever address it tells.
#[tokio::test(flavor = "multi_thread")]
async fn the_servers_of_a_cluster_are_verified_as_redis_is() {
    let files = Certificates::of("shards");
    let cluster = RedisCluster::start(3, 0);
    let ports: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| (node.port(), free_port()))
        .collect();
    for (n, (_, secured)) in ports.iter().enumerate() {
        let settings = files.settings(*secured, "yes", "good");
        let (port, rest) = settings.split_first().expect("the port is the first");
        for (key, value) in rest.iter().chain([port]) {
            let command = format!("CONFIG SET {key} {value}");
            assert_eq!(cluster.ask(n, &command), "OK", "{command}");
        }
    }
    let url = cluster.url().replace("redis-", "rediss-");
    let at = || {
        let secured = ports.clone();
        let root = Redis::at(&url)
            .unwrap()
            .root_certificates(files.pem("ours.pem"));
        // They tell the ports where they speak plainly.
        root.addresses(move |name, port| {
            let secured = secured.iter().find(|(plain, _)| *plain == port);
            (name.to_owned(), secured.map_or(port, |(_, port)| *port))
        })
    };
    let shows = |redis: Redis, name: &str| {
        let key = files.pem(&format!("{name}.key"));
        redis.client_certificate(files.pem(&format!("{name}.pem")), key)
    };
    let good = || shows(at().server_name("localhost"), "good");
    let (a, b) = (start(good()).await, start(good()).await);
    for node in [&a, &b] {
        node.until_up().await;
    }
    let mut client = a.client("alice").await;
    let sent = b.broadcaster.to_user("alice").send("hello").await.unwrap();
    assert_eq!(sent.nodes(), Some(1));
    assert_eq!(client.event().await, text("hello"));
    for server in &cluster.nodes {
        assert!(server.connections() >= 4, "control: all are in use");
    }
    let refused = [
        (at().server_name("localhost"), "client_certificate"),
        (
            shows(at().server_name("localhost"), "expired"),
            "client_certificate",
        ),
        (shows(at(), "good"), "not valid for name"),
    ];
    let refused = refused.map(async |(redis, why)| {
        until_degraded_by(&start(redis).await, why).await;
    });
    join_all(refused).await;
}

/// T7: sentinels and the primary whose address they tell, which no certificate names.
#[tokio::test(flavor = "multi_thread")]
async fn sentinels_are_verified_as_redis_is() {
    let files = Certificates::of("sentinel");
    let (server, secured) = files.server_that_asks("yes", "good");
    let (plain, port) = (server.port(), free_port());
    let tls = files.settings(port, "yes", "good");
    let tls = tls.map(|(key, value)| format!("{key} {value}\n")).concat();
    let watched = watching(plain, 1);
    let lines = format!("{watched}sentinel auth-pass {SERVICE} s3cret\n{tls}");
    let sentinel = RedisServer::sentinel(&lines);
    let at = |port: u16| {
        let url = format!("rediss-sentinel://:s3cret@127.0.0.1:{port}/{SERVICE}");
        Redis::at(url)
            .unwrap()
            .root_certificates(files.pem("ours.pem"))
            .client_certificate(files.pem("good.pem"), files.pem("good.key"))
    };
    let forwarded = move |name: &str, port| match port == plain {
        true => (name.to_owned(), secured),
        false => (name.to_owned(), port),
    };
    until_up(at(port).server_name("localhost").addresses(forwarded)).await;
    until_degraded_by(&start(at(port)).await, "not valid for name").await;
    let plain_sentinel = at(sentinel.port()).server_name("localhost");
    let reason = until_degraded_by(&start(plain_sentinel).await, SPEAKS_PLAIN).await;
    assert!(reason.contains(&sentinel.port().to_string()), "{reason}");
}

const SPEAKS_TLS: &str = "does this port speak TLS? Then it is named as rediss://, rediss-sentinel:// or rediss-cluster://";
const SPEAKS_PLAIN: &str = "does this port speak TLS? A plain one is named as redis://, redis-sentinel:// or redis-cluster://";

/// T21: with or without TLS where it is the other way round, whatever is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_speaks_the_other_way_is_named_with_the_fix() {
    let files = Certificates::of("either");
    let (single, single_tls) = files.server("good");
    let sentinel_tls = free_port();
    let tls = files.settings(sentinel_tls, "no", "good");
    let tls = tls.map(|(key, value)| format!("{key} {value}\n")).concat();
    let watched = watching(single.port(), 1);
    let lines = format!("{watched}sentinel auth-pass {SERVICE} s3cret\n{tls}");
    let sentinel = RedisServer::sentinel(&lines);
    let (cluster, cluster_tls) = (RedisCluster::start(1, 0), free_port());
    let settings = files.settings(cluster_tls, "no", "good");
    let (port, rest) = settings.split_first().expect("the port is the first");
    for (key, value) in rest.iter().chain([port]) {
        let command = format!("CONFIG SET {key} {value}");
        assert_eq!(cluster.ask(0, &command), "OK", "{command}");
    }
    let ports = [
        ("", "", single.port(), single_tls),
        ("-sentinel", "/mymaster", sentinel.port(), sentinel_tls),
        ("-cluster", "", cluster.nodes[0].port(), cluster_tls),
    ];
    let wrong = ports.into_iter().flat_map(|(kind, name, plain, tls)| {
        [
            (format!("redis{kind}://localhost:{tls}{name}"), SPEAKS_TLS),
            (
                format!("rediss{kind}://localhost:{plain}{name}"),
                SPEAKS_PLAIN,
            ),
        ]
    });
    let named = wrong.map(async |(url, fix)| {
        let node = start(Redis::at(&url).unwrap()).await;
        until_degraded_by(&node, fix).await;
    });
    join_all(named).await;
}
