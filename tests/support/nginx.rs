//! An nginx process of one test, with the configuration of docs/operating.md.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::redis::free_port;
use super::until;

const MANUAL: &str = include_str!("../../docs/operating.md");
/// What the manual's configuration listens on, and its nodes.
const DOOR: &str = "listen 80;";
const NODES: [&str; 2] = ["10.0.0.1:3001", "10.0.0.2:3001"];

#[derive(Debug)]
pub struct Nginx {
    port: u16,
    dir: PathBuf,
    process: Child,
}

impl Nginx {
    /// In front of nodes on these ports; none where nginx is not installed, which is said aloud.
    pub async fn start(nodes: [u16; 2]) -> Option<Self> {
        let Some(program) = installed() else {
            // Past the capture of the test's output: a skipped test must not look like a passed one.
            let mut terminal = std::io::stderr();
            let _ = writeln!(
                terminal,
                "SKIPPED: nginx is not here; `tests/run` installs it"
            );
            return None;
        };
        let port = free_port();
        let dir = std::env::temp_dir().join(format!("nginx-of-test-{}-{port}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory for nginx");
        let configuration = dir.join("nginx.conf");
        fs::write(&configuration, around(&dir, &documented(port, nodes))).expect("it is ours");
        let stderr = fs::File::create(dir.join("stderr")).expect("it is ours");
        let process = Command::new(program)
            .arg("-p")
            .arg(&dir)
            .arg("-c")
            .arg(&configuration)
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn();
        let mut nginx = Self {
            port,
            dir,
            process: process.expect("it is installed"),
        };
        until("nginx listens", async || {
            let ended = nginx.process.try_wait().expect("it is our child");
            assert!(ended.is_none(), "nginx ended: {}", nginx.complaints());
            TcpStream::connect(nginx.addr()).is_ok()
        })
        .await;
        Some(nginx)
    }

    pub fn addr(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// How many requests that are over were passed on with these statuses, such as `503, 101`.
    pub fn passed(&self, statuses: &str) -> u64 {
        let log = fs::read_to_string(self.dir.join("access.log")).expect("nginx writes it");
        log.lines().filter(|line| *line == statuses).count() as u64
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

impl Drop for Nginx {
    fn drop(&mut self) {
        // Killed without warning it would leave its workers behind.
        let pid = self.process.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.process.wait();
        // Left-over files are no reason to fail a test.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Debian keeps it where only root looks.
fn installed() -> Option<&'static str> {
    let runs = |program: &&str| {
        let version = Command::new(program).arg("-v").output();
        version.is_ok_and(|version| version.status.success())
    };
    ["nginx", "/usr/sbin/nginx", "/usr/local/sbin/nginx"]
        .into_iter()
        .find(runs)
}

/// The manual's configuration, on these ports.
fn documented(port: u16, nodes: [u16; 2]) -> String {
    let (_, block) = MANUAL.split_once("```nginx\n").expect("it is there");
    let (block, _) = block.split_once("```").expect("it ends");
    let mut block = replace(block, DOOR, &format!("listen 127.0.0.1:{port};"));
    for (documented, node) in NODES.into_iter().zip(nodes) {
        block = replace(&block, documented, &format!("127.0.0.1:{node}"));
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

/// What lets it run without rights, in a directory of its own.
fn around(dir: &Path, http: &str) -> String {
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
}
