//! A TCP link to a Redis that counts the arguments of every command.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Debug)]
pub struct Counting {
    pub port: u16,
    /// Where it leads.
    pub to: u16,
    most: Arc<AtomicUsize>,
    cuts: watch::Sender<u32>,
    accepting: JoinHandle<()>,
}

impl Counting {
    pub async fn to(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let (most, cuts) = (Arc::<AtomicUsize>::default(), watch::Sender::new(0));
        let (counted, cut) = (most.clone(), cuts.subscribe());
        let accepting = tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let (counted, mut cut) = (counted.clone(), cut.clone());
                cut.mark_unchanged();
                tokio::spawn(async move {
                    tokio::select! {
                        // Either side may end it.
                        _ = lead(from, to, &counted) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self {
            port,
            to,
            most,
            cuts,
            accepting,
        }
    }

    /// The most arguments of one command, its name among them.
    pub fn most(&self) -> usize {
        self.most.load(SeqCst)
    }

    /// Ends all links that there are.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn lead(from: TcpStream, to: u16, most: &AtomicUsize) -> std::io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", to)).await?;
    let ((asks, mut asker), (mut answers, server)) = (from.into_split(), server.into_split());
    tokio::select! {
        ended = pass(asks, server, most) => ended,
        ended = copy(&mut answers, &mut asker) => ended.map(drop),
    }
}

/// Commands, each `*` and a count in a line, and then every argument, `$` and its length in a line before it.
async fn pass(
    from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    most: &AtomicUsize,
) -> std::io::Result<()> {
    let mut from = BufReader::new(from);
    loop {
        let mut command = Vec::new();
        let count = number(&mut from, &mut command).await?;
        most.fetch_max(count, SeqCst);
        for _ in 0..count {
            let length = number(&mut from, &mut command).await?;
            let begun = command.len();
            command.resize(begun + length + 2, 0);
            from.read_exact(&mut command[begun..]).await?;
        }
        to.write_all(&command).await?;
    }
}

async fn number(from: &mut BufReader<OwnedReadHalf>, into: &mut Vec<u8>) -> std::io::Result<usize> {
    let begun = into.len();
    from.read_until(b'\n', into).await?;
    let line = String::from_utf8_lossy(&into[begun..]);
    let number = line.get(1..).and_then(|line| line.trim().parse().ok());
    number.ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
}
