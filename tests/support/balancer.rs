//! A proxy process of one test, with its configuration of docs/guide/proxies.md.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use super::redis::free_port;
use super::until;

const MANUAL: &str = include_str!("../../docs/guide/proxies.md");
/// The manual's nodes.
const NODES: [(&str, u16); 2] = [("10.0.0.1", 3001), ("10.0.0.2", 3001)];

/// A program, and how its configuration is made one of a test.
#[derive(Debug)]
pub struct Brand {
    pub name: &'static str,
    /// The language of its configuration in the manual, of which it has the first block.
    fence: &'static str,
    /// How it writes an address.
    address: &'static str,
    /// What the manual's configuration listens on, and what stands there for an address.
    door: [&'static str; 2],
    arguments: fn(&Path) -> Vec<String>,
    /// Adds what lets it run without rights, in a directory of its own, and log each request that is over.
    around: fn(&Path, &str) -> String,
    /// What it logs of handshakes that met nodes which are going or gone, and were offered to another.
    pub retried: &'static [(&'static str, &'static str)],
}

pub const NGINX: Brand = Brand {
    name: "nginx",
    fence: "nginx",
    address: "HOST:PORT",
    door: ["listen 80;", "listen ADDRESS;"],
    arguments: |dir| {
        let dir = dir.display();
        ["-p", &format!("{dir}"), "-c", &format!("{dir}/conf")]
            .map(str::to_owned)
            .into()
    },
    around: |dir, http| {
        let dir = dir.display();
        format!(
            "daemon off;
pid {dir}/pid;
error_log {dir}/error.log;
worker_processes 2;
worker_rlimit_nofile 4096;
events {{ worker_connections 2048; }}
http {{
log_format tries '$upstream_status';
access_log {dir}/access.log tries;
client_body_temp_path {dir}/body;
proxy_temp_path {dir}/proxy;
fastcgi_temp_path {dir}/fastcgi;
uwsgi_temp_path {dir}/uwsgi;
scgi_temp_path {dir}/scgi;
{http}
}}
"
        )
    },
    retried: &[
        ("503, 101", "draining nodes met"),
        ("502, 101", "absent nodes met"),
    ],
};

pub const HAPROXY: Brand = Brand {
    name: "haproxy",
    fence: "haproxy",
    address: "HOST:PORT",
    door: ["bind :80", "bind ADDRESS"],
    arguments: |dir| {
        ["-db", "-f", &format!("{}/conf", dir.display())]
            .map(str::to_owned)
            .into()
    },
    around: |_, sections| {
        let log = "defaults\n    log global\n    log-format \"%ST %rc\"\n";
        let global = "global\n    maxconn 900\n    log stdout format raw local0\n\n";
        format!("{global}{}", replace(sections, "defaults\n", log))
    },
    retried: &[("101 +1", "nodes met that drained or were absent")],
};

pub const ENVOY: Brand = Brand {
    name: "envoy",
    fence: "yaml",
    address: "address: HOST, port_value: PORT",
    door: ["address: 0.0.0.0, port_value: 80", "ADDRESS"],
    arguments: |dir| {
        let conf = format!("{}/conf.yaml", dir.display());
        let quick = "--disable-hot-restart --file-flush-interval-msec 10";
        let arguments = format!("{quick} --concurrency 2 --log-level error -c {conf}");
        arguments.split(' ').map(str::to_owned).collect()
    },
    around: |_, resources| {
        let log = "stat_prefix: door
                access_log:
                  - name: envoy.access_loggers.stdout
                    typed_config:
                      \"@type\": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
                      log_format: { text_format_source: { inline_string: \"%RESPONSE_CODE% %UPSTREAM_REQUEST_ATTEMPT_COUNT%\\n\" } }";
        replace(resources, "stat_prefix: door", log)
    },
    retried: &[("101 2", "nodes met that drained or were absent")],
};

#[derive(Debug)]
pub struct Balancer {
    port: u16,
    dir: PathBuf,
    process: Child,
}

impl Balancer {
    /// In front of nodes on these ports; none where the program is not installed, which is said aloud.
    pub async fn start(brand: &Brand, nodes: [u16; 2]) -> Option<Self> {
        let name = brand.name;
        let Some(program) = installed(name) else {
            // Past the capture of the test's output: a skipped test must not look like a passed one.
            let mut terminal = std::io::stderr();
            let _ = writeln!(
                terminal,
                "SKIPPED: {name} is not here; `tests/run` installs it"
            );
            return None;
        };
        let port = free_port();
        let dir =
            std::env::temp_dir().join(format!("{name}-of-test-{}-{port}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory for it");
        let configuration = (brand.around)(&dir, &documented(brand, port, nodes));
        // Envoy reads the form off the name.
        for conf in ["conf", "conf.yaml"] {
            fs::write(dir.join(conf), &configuration).expect("it is ours");
        }
        let file = |name| fs::File::create(dir.join(name)).expect("it is ours");
        let mut command = Command::new(program);
        command.args((brand.arguments)(&dir));
        command.stdout(file("access.log")).stderr(file("stderr"));
        let process = command.spawn().expect("it is installed");
        let mut balancer = Self { port, dir, process };
        until("the proxy listens", async || {
            let ended = balancer.process.try_wait().expect("it is our child");
            assert!(ended.is_none(), "{name} ended: {}", balancer.complaints());
            TcpStream::connect(balancer.addr()).is_ok()
        })
        .await;
        Some(balancer)
    }

    pub fn addr(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// How many requests that are over were logged like this.
    pub fn logged(&self, line: &str) -> u64 {
        let log = fs::read_to_string(self.dir.join("access.log")).expect("it writes one");
        log.lines().filter(|logged| *logged == line).count() as u64
    }

    /// What it has said on its way down, and the last of what went wrong before.
    pub fn complaints(&self) -> String {
        let read = |name| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        let log = read("error.log");
        let from = log.lines().count().saturating_sub(20);
        let last: Vec<&str> = log.lines().skip(from).collect();
        format!("{}\n{}", read("stderr"), last.join("\n"))
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // Killed without warning nginx would leave its workers behind.
        let pid = self.process.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.process.wait();
        // Left-over files are no reason to fail a test.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Debian keeps such programs where only root looks; the last is where `tests/engines` does.
fn installed(name: &str) -> Option<String> {
    let says = |program: &String, word: &str| {
        let version = Command::new(program).arg(word).output();
        version.is_ok_and(|version| version.status.success())
    };
    let runs = |program: &String| says(program, "-v") || says(program, "--version");
    let fetched = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/target/engines/envoy-1.40/envoy/_bin/"
    );
    ["", "/usr/sbin/", "/usr/local/sbin/", fetched]
        .map(|dir| format!("{dir}{name}"))
        .into_iter()
        .find(runs)
}

/// The manual's configuration, on these ports.
fn documented(brand: &Brand, port: u16, nodes: [u16; 2]) -> String {
    let fence = format!("```{}\n", brand.fence);
    let (_, block) = MANUAL.split_once(&fence).expect("it is there");
    let (block, _) = block.split_once("```").expect("it ends");
    let [documented, ours] = brand.door;
    let address = |host: &str, port: u16| {
        let address = brand.address.replace("HOST", host);
        address.replace("PORT", &port.to_string())
    };
    let ours = ours.replace("ADDRESS", &address("127.0.0.1", port));
    let mut block = replace(block, documented, &ours);
    for ((host, documented), node) in NODES.into_iter().zip(nodes) {
        let ours = address("127.0.0.1", node);
        block = replace(&block, &address(host, documented), &ours);
    }
    block
}

fn replace(block: &str, documented: &str, ours: &str) -> String {
    assert_eq!(
        block.matches(documented).count(),
        1,
        "{documented} in {block}"
    );
    block.replace(documented, ours)
}
