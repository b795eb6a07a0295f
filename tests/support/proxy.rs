//! A TCP link that can be swallowed, or led to another server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering::SeqCst};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Forward,
    /// Bytes vanish; nobody is told.
    BlackHole,
    /// Only those of links that have subscribed.
    DeafSubscribers,
}

#[derive(Debug)]
pub struct Proxy {
    pub addr: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
    target: Arc<AtomicU16>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("it is bound");
        let mode = Arc::new(watch::Sender::new(Mode::Forward));
        let target = Arc::new(AtomicU16::new(port));
        let (modes, targets) = (mode.clone(), target.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let (mode, port) = (modes.subscribe(), targets.load(SeqCst));
                tokio::spawn(async move {
                    let Ok(to) = TcpStream::connect(("127.0.0.1", port)).await else {
                        return;
                    };
                    let ((from_read, from_write), (to_read, to_write)) =
                        (from.into_split(), to.into_split());
                    let subscribed = AtomicBool::new(false);
                    tokio::join!(
                        pump(from_read, to_write, mode.clone(), &subscribed),
                        pump(to_read, from_write, mode, &subscribed)
                    );
                });
            }
        });
        Self {
            addr,
            mode,
            target,
            accepting,
        }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// From now on links neither carry anything nor end, old ones and new ones.
    pub fn black_hole(&self) {
        self.mode.send_replace(Mode::BlackHole);
    }

    /// From now on links that subscribe carry nothing and do not end, old ones and new ones. Others work.
    pub fn deafen_subscribers(&self) {
        self.mode.send_replace(Mode::DeafSubscribers);
    }

    /// Leads new links to another server, as a name that is resolved anew; old ones stay where they are.
    pub fn lead_to(&self, port: u16) {
        self.target.store(port, SeqCst);
    }

    /// New links work again; what was swallowed is gone, and old links stay dead.
    pub fn heal(&self) {
        self.mode.send_replace(Mode::Forward);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    subscribed: &AtomicBool,
) {
    let is_swallowed = |mode: &Mode| match mode {
        Mode::Forward => false,
        Mode::BlackHole => true,
        Mode::DeafSubscribers => subscribed.load(SeqCst),
    };
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = tokio::select! {
            biased;
            swallowed = async { mode.wait_for(is_swallowed).await.is_ok() } => {
                if swallowed {
                    // Holds both ends open and does nothing with them.
                    std::future::pending::<()>().await;
                }
                return;
            }
            count = from.read(&mut buffer) => count.unwrap_or(0),
        };
        if buffer[..count]
            .windows(11)
            .any(|bytes| bytes == b"SUBSCRIBE\r\n")
        {
            subscribed.store(true, SeqCst);
        }
        if count == 0 || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
