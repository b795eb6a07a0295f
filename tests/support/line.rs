//! A long line to a server: whatever is said arrives so much later, however much of it is under way.
//!
//! On threads, since a timer of tokio's is right to a millisecond.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

/// A line may be cut, and stall.
#[derive(Debug)]
pub struct Line {
    addr: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    port: u16,
    /// One way.
    delay: Duration,
    is_stalled: AtomicBool,
    is_over: AtomicBool,
    ends: Mutex<Vec<TcpStream>>,
    /// Publications that have been said on it and have had no answer, …
    published: AtomicU64,
    answered: AtomicU64,
    /// … and most that there were.
    most: AtomicU64,
}

impl Line {
    /// With this round trip.
    pub fn to(port: u16, round_trip: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("it is bound");
        let state = Arc::new(State {
            port,
            delay: round_trip / 2,
            is_stalled: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            ends: Mutex::default(),
            published: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            most: AtomicU64::new(0),
        });
        let accepting = state.clone();
        spawn(move || {
            for from in listener.incoming() {
                if accepting.is_over.load(SeqCst) {
                    return;
                }
                let to = TcpStream::connect(("127.0.0.1", accepting.port));
                if let (Ok(from), Ok(to)) = (from, to) {
                    accepting.join(&from, &to);
                }
            }
        });
        Self { addr, state }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// Ends all that is open. New ones work.
    pub fn cut(&self) {
        let ends = std::mem::take(&mut *self.state.ends.lock().expect("nothing panics here"));
        for end in ends {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// Nothing arrives from now on, until it [goes on](Self::go_on).
    pub fn stall(&self) {
        self.state.is_stalled.store(true, SeqCst);
    }

    pub fn go_on(&self) {
        self.state.is_stalled.store(false, SeqCst);
    }

    /// Publications under way, there and back.
    pub fn under_way(&self) -> u64 {
        self.state.under_way()
    }

    /// The most publications that were under way at once since this was called last.
    pub fn take_most(&self) -> u64 {
        self.state.most.swap(0, SeqCst)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.state.is_over.store(true, SeqCst);
        self.go_on();
        self.cut();
        let _ = TcpStream::connect(self.addr);
    }
}

impl State {
    fn under_way(&self) -> u64 {
        let answered = self.answered.load(SeqCst);
        self.published.load(SeqCst).saturating_sub(answered)
    }

    fn join(self: &Arc<Self>, from: &TcpStream, to: &TcpStream) {
        let both = |stream: &TcpStream| stream.try_clone().expect("another descriptor");
        for end in [from, to] {
            let _ = end.set_nodelay(true);
        }
        let mut ends = self.ends.lock().expect("nothing panics here");
        ends.extend([both(from), both(to)]);
        drop(ends);
        let (state, publishes) = (self.clone(), Arc::new(AtomicBool::new(false)));
        let is_publisher = publishes.clone();
        self.carry(both(from), both(to), move |bytes, has_arrived| {
            if has_arrived {
                return;
            }
            let published = count(bytes, b"PUBLISH\r\n");
            if published > 0 {
                is_publisher.store(true, SeqCst);
                state.published.fetch_add(published, SeqCst);
                state.most.fetch_max(state.under_way(), SeqCst);
            }
        });
        let state = self.clone();
        self.carry(both(to), both(from), move |bytes, has_arrived| {
            if has_arrived && publishes.load(SeqCst) {
                state.answered.fetch_add(count(bytes, b":"), SeqCst);
            }
        });
    }

    /// Reads at once what comes, and hands it on when its time has come.
    fn carry(
        self: &Arc<Self>,
        mut from: TcpStream,
        mut to: TcpStream,
        look: impl Fn(&[u8], bool) + Send + Sync + 'static,
    ) {
        let (sender, said) = mpsc::channel::<(Instant, Vec<u8>)>();
        let look = Arc::new(look);
        let (state, looking) = (self.clone(), look.clone());
        spawn(move || {
            let mut buffer = vec![0; 256 * 1024];
            while let Ok(count) = from.read(&mut buffer) {
                let bytes = &buffer[..count];
                looking(bytes, false);
                let told = sender.send((Instant::now() + state.delay, bytes.to_vec()));
                if count == 0 || told.is_err() {
                    return;
                }
            }
        });
        let state = self.clone();
        spawn(move || {
            for (due, bytes) in said {
                sleep(due.saturating_duration_since(Instant::now()));
                while state.is_stalled.load(SeqCst) {
                    sleep(Duration::from_millis(1));
                }
                if bytes.is_empty() || to.write_all(&bytes).is_err() {
                    break;
                }
                look(&bytes, true);
            }
            let _ = to.shutdown(Shutdown::Both);
        });
    }
}

fn count(bytes: &[u8], part: &[u8]) -> u64 {
    let found = bytes.windows(part.len()).filter(|bytes| *bytes == part);
    found.count() as u64
}
