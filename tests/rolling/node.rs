//! A node in a process of its own, drained by SIGTERM.

use std::env;
use std::process::{Command, Stdio};
use std::time::Duration;

use axum::response::Response;
use axum::{Router, middleware, routing::any};
use axum_cluster::{Cluster, ClusterSocket};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

use crate::crash::KEPT;
use crate::support::node::authenticate;
use crate::support::program::Program;
use crate::support::until;

/// The room that every socket is in.
pub const NEWS: &str = "news";
/// What a socket hears when it is there.
pub const WELCOME: &str = "welcome";

/// The environment of the program.
const PORT: &str = "ROLLING_PORT";
const REDIS_URL: &str = "ROLLING_REDIS_URL";
const KEEPS: &str = "ROLLING_KEEPS";

/// For a thousand clients.
const DESCRIPTORS: u64 = 4096;
const WINDOW: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Node {
    port: u16,
    redis_url: String,
    process: Program,
}

impl Node {
    pub async fn start(port: u16, redis_url: &str) -> Self {
        Self::run(port, redis_url, &[]).await
    }

    /// One with a history of users.
    pub async fn keeping(port: u16, redis_url: String) -> Self {
        Self::run(port, &redis_url, &[(KEEPS, "yes")]).await
    }

    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    async fn run(port: u16, redis_url: &str, settings: &[(&str, &str)]) -> Self {
        let tests = env::current_exe().expect("this test is a program");
        let mut program = Command::new(tests);
        program
            .args(["--exact", "node::run", "--ignored", "--nocapture"])
            .env(PORT, port.to_string())
            .env(REDIS_URL, redis_url)
            .envs(settings.iter().copied())
            .stdout(Stdio::null());
        let process = Program(program.spawn().expect("it is this program"));
        until("the node listens", async || {
            TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        Self {
            port,
            redis_url: redis_url.to_owned(),
            process,
        }
    }

    /// Returns when its process has ended, as it should.
    pub async fn drain(&mut self) {
        let pid = self.process.0.id().to_string();
        let told = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(told.expect("kill runs").success());
        let mut ended = None;
        until("the node has ended", async || {
            ended = self.process.0.try_wait().expect("it is our child");
            ended.is_some()
        })
        .await;
        assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
    }

    pub async fn start_again(&mut self) {
        *self = Self::start(self.port, &self.redis_url).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the program of a node: the roll starts it"]
async fn run() {
    let (Ok(port), Ok(redis_url)) = (env::var(PORT), env::var(REDIS_URL)) else {
        return;
    };
    let builder = Cluster::builder().redis(redis_url);
    let cluster = match env::var(KEEPS) {
        Ok(_) => builder.user_history(KEPT).room_history(KEPT).start(),
        Err(_) => builder.start(),
    };
    let _ = rlimit::increase_nofile_limit(DESCRIPTORS);
    let app = Router::new()
        .route("/ws", any(ws))
        .layer(cluster.layer())
        .layer(middleware::from_fn(authenticate));
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    // Who is admitted before that does not hear the others, and is told of no gap.
    cluster.ready().await.unwrap();
    let listener = TcpListener::bind(("127.0.0.1", port.parse().unwrap()));
    let drained = async move {
        terminate.recv().await;
        cluster.shutdown(WINDOW).await;
    };
    let server = axum::serve(listener.await.unwrap(), app);
    server.with_graceful_shutdown(drained).await.unwrap();
}

async fn ws(socket: ClusterSocket) -> Response {
    socket.on_upgrade(|mut socket| async move {
        // Who was told so misses nothing from now on.
        if socket.join(NEWS).await.is_ok() && socket.send(WELCOME).await.is_ok() {
            while socket.recv().await.is_some() {}
        }
    })
}
