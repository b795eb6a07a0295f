//! Ways to the cluster bus of each node of a Redis Cluster, which may be cut for some of the others: whoever comes says who
//! it is in its first packet.

use std::collections::HashSet;
use std::io::{Read, Write, copy};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread;

use super::super::free_port;

/// Up to the end of the sender's id (`clusterMsg` of cluster.h).
const HEAD: usize = 80;
const ID: usize = 40;

/// Who is cut off from the others.
#[derive(Clone, Debug, Default)]
pub struct Cut(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    off: HashSet<String>,
    open: Vec<Link>,
}

#[derive(Debug)]
struct Link {
    ends: [String; 2],
    streams: [TcpStream; 2],
}

impl Cut {
    /// These reach one another and nobody else, from now on.
    pub fn set(&self, off: HashSet<String>) {
        let mut state = self.state();
        state.off = off;
        let State { off, open } = &mut *state;
        open.retain(|link| {
            let holds = !is_severed(off, &link.ends);
            if !holds {
                link.streams.iter().for_each(close);
            }
            holds
        });
    }

    /// Whether the link may stand.
    fn admits(&self, link: Link) -> bool {
        let mut state = self.state();
        let admitted = !is_severed(&state.off, &link.ends);
        if admitted {
            state.open.push(link);
        }
        admitted
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics here")
    }
}

fn is_severed(off: &HashSet<String>, [one, other]: &[String; 2]) -> bool {
    off.contains(one) != off.contains(other)
}

fn close(stream: &TcpStream) {
    // Fails where it is closed.
    let _ = stream.shutdown(Shutdown::Both);
}

/// What others take for a node's bus.
#[derive(Debug)]
pub struct Way {
    port: u16,
    id: Arc<OnceLock<String>>,
    ended: Arc<AtomicBool>,
}

impl Way {
    /// To the bus on this port, once it is said whose that is.
    pub fn to(bus: u16, cut: Cut) -> Self {
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
        let (id, ended) = (
            Arc::<OnceLock<String>>::default(),
            Arc::<AtomicBool>::default(),
        );
        let (to, is_ended) = (id.clone(), ended.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if is_ended.load(SeqCst) {
                    return;
                }
                let (to, cut) = (to.clone(), cut.clone());
                // Ends when either side closes it.
                thread::spawn(move || lead(stream, bus, to.get()?, &cut).ok());
            }
        });
        Self { port, id, ended }
    }

    pub fn leads_to(&self, id: &str) {
        self.id.set(id.to_owned()).expect("it is said once");
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.ended.store(true, SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn lead(mut from: TcpStream, bus: u16, to: &str, cut: &Cut) -> std::io::Result<()> {
    let mut head = [0; HEAD];
    from.read_exact(&mut head)?;
    let sender = String::from_utf8_lossy(&head[HEAD - ID..]).into_owned();
    let mut node = TcpStream::connect(("127.0.0.1", bus))?;
    let link = Link {
        ends: [sender, to.to_owned()],
        streams: [from.try_clone()?, node.try_clone()?],
    };
    if !cut.admits(link) {
        return Ok(());
    }
    node.write_all(&head)?;
    let (mut answers, mut asker) = (node.try_clone()?, from.try_clone()?);
    let back = thread::spawn(move || {
        let ended = copy(&mut answers, &mut asker);
        close(&asker);
        ended
    });
    let ended = copy(&mut from, &mut node);
    close(&node);
    // Its own error says nothing more.
    let _ = back.join();
    ended.map(drop)
}
