//! A TCP link that can be cut or swallowed.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Forward,
    /// Bytes vanish; nobody is told.
    BlackHole,
    /// Both ends are told.
    Cut,
}

#[derive(Debug)]
pub struct Proxy {
    pub addr: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("it is bound");
        let mode = Arc::new(watch::Sender::new(Mode::Forward));
        let modes = mode.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let mode = modes.subscribe();
                tokio::spawn(async move {
                    let Ok(to) = TcpStream::connect(("127.0.0.1", port)).await else {
                        return;
                    };
                    let ((from_read, from_write), (to_read, to_write)) =
                        (from.into_split(), to.into_split());
                    tokio::join!(
                        pump(from_read, to_write, mode.clone()),
                        pump(to_read, from_write, mode)
                    );
                });
            }
        });
        Self {
            addr,
            mode,
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

    /// From now on links end, old ones and new ones.
    pub fn cut(&self) {
        self.mode.send_replace(Mode::Cut);
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
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = tokio::select! {
            count = from.read(&mut buffer) => count.unwrap_or(0),
            fault = async { mode.wait_for(|mode| *mode != Mode::Forward).await.map(|mode| *mode) } => {
                if let Ok(Mode::BlackHole) = fault {
                    // Holds both ends open and does nothing with them.
                    std::future::pending::<()>().await;
                }
                return;
            }
        };
        if count == 0 || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
