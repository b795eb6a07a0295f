//! A TCP link that can be swallowed, or led to another server.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Forward,
    /// Bytes vanish; nobody is told.
    BlackHole,
    /// Links end, new ones too.
    Cut,
    /// What is said waits.
    Held,
    /// Only answers vanish …
    Deaf,
    /// … or only those of links that have subscribed, and what these say.
    DeafSubscribers,
}

#[derive(Debug)]
pub struct Proxy {
    pub addr: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
    target: Arc<AtomicU16>,
    /// Bytes a second of each link towards the server; 0: without a limit.
    bandwidth: Arc<AtomicU64>,
    /// What waits because links are held.
    held: Arc<Mutex<Vec<u8>>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    pub async fn to(port: u16) -> Self {
        Self::slow(port, Duration::ZERO).await
    }

    /// Holds back whatever passes for so long.
    pub async fn slow(port: u16, delay: Duration) -> Self {
        Self::distant(port, delay, Duration::ZERO).await
    }

    /// As [`slow`](Self::slow), and connecting takes a round trip too.
    pub async fn far(port: u16, delay: Duration) -> Self {
        Self::distant(port, delay, 2 * delay).await
    }

    async fn distant(port: u16, delay: Duration, connecting: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("it is bound");
        let mode = Arc::new(watch::Sender::new(Mode::Forward));
        let target = Arc::new(AtomicU16::new(port));
        let bandwidth = Arc::new(AtomicU64::new(0));
        let held = Arc::<Mutex<Vec<u8>>>::default();
        let (modes, targets, width) = (mode.clone(), target.clone(), bandwidth.clone());
        let holding = held.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let (mode, port) = (modes.subscribe(), targets.load(SeqCst));
                let (width, holding) = (width.clone(), holding.clone());
                tokio::spawn(async move {
                    let answers = mode.clone();
                    tokio::time::sleep(connecting).await;
                    let Ok(to) = TcpStream::connect(("127.0.0.1", port)).await else {
                        return;
                    };
                    let ((from_read, from_write), (to_read, to_write)) =
                        (from.into_split(), to.into_split());
                    let (subscribed, wide) = (AtomicBool::new(false), AtomicU64::new(0));
                    tokio::join!(
                        pump(
                            (from_read, to_write),
                            mode,
                            &[Mode::BlackHole],
                            &subscribed,
                            delay,
                            &width,
                            &holding
                        ),
                        pump(
                            (to_read, from_write),
                            answers,
                            &[Mode::BlackHole, Mode::Deaf],
                            &subscribed,
                            delay,
                            &wide,
                            &holding
                        )
                    );
                });
            }
        });
        Self {
            addr,
            mode,
            target,
            bandwidth,
            held,
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

    /// From now on links end at once, old ones and new ones.
    pub fn cut(&self) {
        self.mode.send_replace(Mode::Cut);
    }

    /// From now on links carry what is asked and no answer, old ones and new ones.
    pub fn deafen(&self) {
        self.mode.send_replace(Mode::Deaf);
    }

    /// From now on links that subscribe carry nothing and do not end, old ones and new ones. Others work.
    pub fn deafen_subscribers(&self) {
        self.mode.send_replace(Mode::DeafSubscribers);
    }

    /// Leads new links to another server, as a name that is resolved anew; old ones stay where they are.
    pub fn lead_to(&self, port: u16) {
        self.target.store(port, SeqCst);
    }

    /// From now on links carry so many bytes a second towards the server, old ones and new ones; 0: as many as
    /// they can.
    pub fn narrow(&self, bytes_per_second: u64) {
        self.bandwidth.store(bytes_per_second, SeqCst);
    }

    /// From now on what either side says waits until this is healed, on old links and new ones.
    pub fn hold(&self) {
        self.held.lock().expect("nothing panics here").clear();
        self.mode.send_replace(Mode::Held);
    }

    /// Whether something that contains this waits.
    pub fn holds(&self, part: &str) -> bool {
        let held = self.held.lock().expect("nothing panics here");
        String::from_utf8_lossy(&held).contains(part)
    }

    /// New links work again, and what was held passes; what was swallowed is gone, and those links stay dead.
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
    (mut from, mut to): (OwnedReadHalf, OwnedWriteHalf),
    mut mode: watch::Receiver<Mode>,
    swallow: &[Mode],
    subscribed: &AtomicBool,
    delay: Duration,
    width: &AtomicU64,
    held: &Mutex<Vec<u8>>,
) {
    let is_faulty = |mode: &Mode| match mode {
        Mode::Cut => true,
        Mode::DeafSubscribers => subscribed.load(SeqCst),
        mode => swallow.contains(mode),
    };
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = tokio::select! {
            biased;
            fault = async {
                mode.wait_for(is_faulty).await.map_or(Mode::Cut, |mode| *mode)
            } => {
                if fault != Mode::Cut {
                    // Holds both ends open and does nothing with them, until they are cut.
                    let _ = mode.wait_for(|mode| *mode == Mode::Cut).await;
                }
                return;
            }
            count = from.read(&mut buffer) => count.unwrap_or(0),
        };
        let (mut said, mut count) = (Vec::new(), count);
        loop {
            said.extend_from_slice(&buffer[..count]);
            if count == 0 || *mode.borrow() != Mode::Held {
                break;
            }
            let part = &buffer[..count];
            held.lock()
                .expect("nothing panics here")
                .extend_from_slice(part);
            count = tokio::select! {
                _ = mode.wait_for(|mode| *mode != Mode::Held) => break,
                count = from.read(&mut buffer) => count.unwrap_or(0),
            };
        }
        let count = said.len();
        if delay > Duration::ZERO {
            tokio::time::sleep(delay).await;
        }
        let width = width.load(SeqCst);
        if width > 0 {
            tokio::time::sleep(Duration::from_secs(count as u64) / width as u32).await;
        }
        if said.windows(11).any(|bytes| bytes == b"SUBSCRIBE\r\n") {
            subscribed.store(true, SeqCst);
        }
        if count == 0 || to.write_all(&said).await.is_err() {
            return;
        }
    }
}
