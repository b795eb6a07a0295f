//! A redis-server process of one test: killed, frozen and restarted at will, ended with its value.

#[path = "redis_cluster.rs"]
pub mod redis_cluster;
#[path = "sentinels.rs"]
pub mod sentinels;

use std::ffi::OsString;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long a server may take to answer before the test gives up.
const START: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct RedisServer {
    program: OsString,
    port: u16,
    dir: PathBuf,
    options: Vec<String>,
    /// Of a sentinel, which writes into it what it learns.
    config: Option<PathBuf>,
    process: Option<Child>,
}

impl RedisServer {
    pub fn start() -> Self {
        Self::with_options(&[])
    }

    /// With further command-line options, such as `["--requirepass", "secret"]`.
    pub fn with_options(options: &[&str]) -> Self {
        let mut server = Self::absent();
        server.options = options.iter().map(ToString::to_string).collect();
        server.restart();
        server
    }

    /// Of this program, one node of a cluster whose bus has no port that could be named.
    pub fn old_cluster_node(program: &Path) -> Self {
        let mut server = Self::absent();
        // The bus is at a port that many higher, and has to be free as well.
        while TcpListener::bind(("127.0.0.1", server.port + 10_000)).is_err() {
            server = Self::absent();
        }
        server.program = program.into();
        server.options = ["--cluster-enabled", "yes"].map(str::to_owned).to_vec();
        server.restart();
        server
    }

    /// A free port where no server is yet; [`restart`](Self::restart) brings it.
    pub fn absent() -> Self {
        let port = free_port();
        let dir = std::env::temp_dir().join(format!("redis-of-test-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory for the server");
        Self {
            program: program(),
            port,
            dir,
            options: Vec::new(),
            config: None,
            process: None,
        }
    }

    /// A sentinel with these lines of configuration.
    pub fn sentinel(lines: &str) -> Self {
        let mut server = Self::absent();
        let config = server.dir.join("sentinel.conf");
        let (port, dir) = (server.port, server.dir.display());
        let lines = format!("port {port}\nbind 127.0.0.1\ndir {dir}\n{lines}");
        std::fs::write(&config, lines).expect("a file in the server's directory");
        server.config = Some(config);
        server.restart();
        server
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn unix_socket(&self) -> PathBuf {
        self.dir.join("redis.sock")
    }

    /// As far as it was not killed.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    pub fn restart(&mut self) {
        self.kill();
        let mut command = Command::new(&self.program);
        match &self.config {
            Some(config) => command.arg(config).arg("--sentinel"),
            None => command
                .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
                .args(["--save", "", "--appendonly", "no", "--dir"])
                .arg(&self.dir)
                .arg("--unixsocket")
                .arg(self.unix_socket())
                .args(&self.options),
        };
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn();
        self.process = Some(process.expect("it is installed: `tests/run` does it"));
        let deadline = Instant::now() + START;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < deadline, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it without warning, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("it is our child");
            process.wait().expect("it is our child");
        }
    }

    /// Stops it without closing a connection, as a hung machine would.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    /// Runs a command and returns what `redis-cli` prints.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let output = Command::new("redis-cli")
            .args(["-p", &self.port.to_string()])
            .args(arguments)
            .output()
            .expect("redis-cli comes with redis-server");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// How often each command was called, as Redis counts.
    pub fn calls(&self, command: &str) -> u64 {
        let stats = self.cli(&["INFO", "commandstats"]);
        let prefix = format!("cmdstat_{command}:calls=");
        let line = stats.lines().find_map(|line| line.strip_prefix(&prefix));
        line.and_then(|line| line.split(',').next()?.parse().ok())
            .unwrap_or(0)
    }

    /// How often a command was refused before it was run.
    pub fn refused(&self, command: &str) -> u64 {
        let stats = self.cli(&["INFO", "commandstats"]);
        let prefix = format!("cmdstat_{command}:");
        let line = stats.lines().find_map(|line| line.strip_prefix(&prefix));
        let count = line.and_then(|line| line.split("rejected_calls=").nth(1)?.split(',').next());
        count
            .and_then(|count| count.trim().parse().ok())
            .unwrap_or(0)
    }

    /// Connections of nodes; `redis-cli` asks with one of its own.
    pub fn connections(&self) -> usize {
        let clients = self.cli(&["CLIENT", "LIST"]);
        let foreign = |client: &&str| !client.contains("cmd=client");
        clients.lines().filter(foreign).count()
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.as_ref().expect("it runs").id().to_string();
        let status = Command::new("kill").args([signal, &pid]).status();
        assert!(status.expect("kill runs").success());
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        // Left-over files are no reason to fail a test.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The server that is tested: any that speaks Redis.
fn program() -> OsString {
    std::env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into())
}

/// A port that nobody listens on, below those that the system lends to connections: one of these could keep a
/// server from starting there, or from coming back. As long as this process lives no other test draws it, since
/// the UDP port of the same number is taken. Whether somebody listens is not found out by listening: a program that
/// another test starts in that moment has the listener for a while.
pub fn free_port() -> u16 {
    static DRAWN: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());
    loop {
        let port = fastrand::u16(10_000..30_000);
        let drawn = UdpSocket::bind(("127.0.0.1", port));
        if let Ok(drawn) = drawn
            && TcpStream::connect(("127.0.0.1", port)).is_err()
        {
            DRAWN.lock().expect("nothing panics here").push(drawn);
            return port;
        }
    }
}
