//! The client: raw TCP, as little work as possible.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream as DeafStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;

use crate::process::own_figure;

/// The prefix of sockets that only let the kernel take what comes, until it is asked for.
pub const DEAF: &str = "deaf-";

/// Connects to each target, `port/prefix/from/to/at once`; then reads and counts.
#[tokio::main(flavor = "current_thread")]
pub async fn run(targets: &[&str]) {
    let bytes = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let (mut writers, mut deaf) = (Vec::new(), Vec::new());
    for target in targets {
        let parts: Vec<&str> = target.split('/').collect();
        let [port, prefix, from, to, at_once] = parts[..] else {
            panic!("port/prefix/from/to/at once: {target}")
        };
        let addr = SocketAddr::from(([127, 0, 0, 1], port.parse().expect("a port")));
        let numbers = from.parse::<usize>().expect("from")..to.parse().expect("to");
        let connecting = stream::iter(numbers).map(|n| connect(addr, prefix, n, bytes.clone()));
        let connecting = connecting.buffer_unordered(at_once.parse().expect("a number"));
        for socket in connecting.collect::<Vec<_>>().await {
            match socket {
                Connected::Reads(writer) => writers.push(writer),
                Connected::Deaf(stream) => deaf.push(stream),
            }
        }
    }
    let connected = start.elapsed().as_micros() as u64;
    println!("0");
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(command)) = commands.next_line().await {
        let answer = match command.split_once(' ').unwrap_or((&command, "")) {
            ("bytes", _) => bytes.load(Relaxed),
            ("connected", _) => connected,
            ("taken", every) => taken(&deaf, every.parse().expect("a number")),
            ("drain", _) => drain(&mut deaf),
            ("shout", size) => shout(&mut writers, size.parse().expect("a size")).await,
            _ => own_figure(&command).expect("a known command"),
        };
        println!("{answer}");
    }
}

enum Connected {
    Reads(OwnedWriteHalf),
    Deaf(DeafStream),
}

async fn connect(addr: SocketAddr, prefix: &str, n: usize, bytes: Arc<AtomicU64>) -> Connected {
    let mut stream = TcpStream::connect(addr).await.expect("the server listens");
    if prefix != "raw" {
        let extensions = match prefix {
            "deflating-" => {
                "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
            }
            _ => "",
        };
        let request = format!(
            "GET /ws/{prefix}{n} HTTP/1.1\r\nHost: {addr}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{extensions}\r\n"
        );
        stream
            .write_all(request.as_bytes())
            .await
            .expect("the server reads");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.expect("the server answers"));
        }
        assert!(
            answer.starts_with(b"HTTP/1.1 101"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    if prefix == DEAF {
        return Connected::Deaf(stream.into_std().expect("nothing else uses it"));
    }
    let (mut reader, writer) = stream.into_split();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while reader.readable().await.is_ok() {
            match reader.try_read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => drop(bytes.fetch_add(count as u64, Relaxed)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
        // Keeps the compiler from moving the reader away before the end.
        drop(reader.read(&mut buffer).await);
    });
    Connected::Reads(writer)
}

/// A masked binary message of this size from each socket.
async fn shout(writers: &mut [OwnedWriteHalf], size: u16) -> u64 {
    let mut frame = vec![0x82, 0x80 | 126];
    frame.extend(size.to_be_bytes());
    frame.extend([0; 4]);
    frame.resize(frame.len() + usize::from(size), b'x');
    for writer in writers.iter_mut() {
        writer.write_all(&frame).await.expect("the server reads");
    }
    writers.len() as u64
}

/// Waits until something has come to every one of so many who do not read. To ask them all takes as long as to write to them.
fn taken(deaf: &[DeafStream], every: usize) -> u64 {
    for stream in deaf.iter().step_by(every) {
        while let Err(error) = stream.peek(&mut [0]) {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            thread::sleep(Duration::from_micros(200));
        }
    }
    deaf.len() as u64
}

/// Reads what came to those who do not read.
fn drain(deaf: &mut [DeafStream]) -> u64 {
    let read = |stream: &mut DeafStream| stream.read(&mut [0; 4096]).expect("it came") as u64;
    deaf.iter_mut().map(read).sum()
}
