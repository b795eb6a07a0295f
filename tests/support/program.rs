//! The examples as programs, in processes of their own.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use super::{soon, until};

/// A running program, killed without warning with its value.
#[derive(Debug)]
pub struct Program(pub Child);

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The `ticker` example: a node, once it listens on this port.
pub async fn ticker(port: u16, redis_url: &str) -> Program {
    serving("ticker", port, redis_url).await
}

/// An example that is a node, once it listens on this port.
pub async fn serving(name: &str, port: u16, redis_url: &str) -> Program {
    let mut node = example(name);
    node.env("PORT", port.to_string())
        .env("REDIS_URL", redis_url)
        .stdout(Stdio::null());
    let running = Program(node.spawn().expect("it is built"));
    until("it listens", async || {
        tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_ok()
    })
    .await;
    running
}

/// The `worker` example: sends "shipped" to alice and ends. It may trust other certificates than the
/// system does.
pub async fn worker(redis_url: &str, trusted: Option<&Path>) -> Output {
    let mut worker = example("worker");
    worker
        .env("REDIS_URL", redis_url)
        .args(["alice", "shipped"]);
    if let Some(trusted) = trusted {
        worker
            .env("SSL_CERT_FILE", trusted)
            .env_remove("SSL_CERT_DIR");
    }
    let running = tokio::task::spawn_blocking(move || worker.output().expect("it is built"));
    soon("the worker ends", running)
        .await
        .expect("it was waited for")
}

/// An example that `cargo test` has built.
pub fn example(name: &str) -> Command {
    let tests = std::env::current_exe().expect("this test is a program");
    let target = tests
        .ancestors()
        .nth(2)
        .expect("it is in target/debug/deps");
    let built = target.join("examples").join(name);
    assert!(
        built.exists(),
        "{name} is not built: run `cargo test`, or `cargo build --examples` first"
    );
    Command::new(built)
}
