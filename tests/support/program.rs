//! The examples as programs, in processes of their own.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

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

/// An example that is a node, once it listens on this port.
pub async fn node(name: &str, port: u16, settings: &[(&str, &str)]) -> Program {
    let mut node = example(name);
    node.env("PORT", port.to_string())
        .envs(settings.iter().copied())
        .stdout(Stdio::null());
    let running = Program(node.spawn().expect("it is built"));
    until("it listens", async || {
        TcpStream::connect(("127.0.0.1", port)).await.is_ok()
    })
    .await;
    running
}

/// The `ticker` example.
pub async fn ticker(port: u16, redis_url: &str) -> Program {
    node("ticker", port, &[("REDIS_URL", redis_url)]).await
}

/// What a POST is answered with.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub cookie: Option<String>,
    pub body: String,
}

/// Posts a form, as a page does.
pub async fn post(port: u16, path: &str, cookie: &str, form: &str) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("it listens");
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncookie: {cookie}\r\nconnection: close\r\n\
         content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
        form.len()
    );
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it reads");
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    soon("an answer", read).await.expect("it is text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let cookie = head
        .lines()
        .find_map(|line| line.strip_prefix("set-cookie: "));
    let cookie = cookie.and_then(|cookie| cookie.split(';').next());
    Answer {
        status: head
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse().ok())
            .expect("a status"),
        cookie: cookie.map(str::to_owned),
        body: body.to_owned(),
    }
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
