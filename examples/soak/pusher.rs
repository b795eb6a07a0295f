//! A client of a user who wants more sockets than allowed: tries over and over, and does not stay long.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::crowd::ending;
use crate::entry::{ENTRY, Entry, enter, said};
use crate::fleet::Door;
use crate::referee::{Referee, Seat};
use crate::words::now;

#[derive(Debug)]
pub struct Pusher {
    pub user: u16,
    pub door: Door,
    pub referee: Arc<Mutex<Referee>>,
    pub ending: watch::Receiver<bool>,
    pub rng: fastrand::Rng,
}

impl Pusher {
    pub async fn run(mut self) {
        while !*self.ending.borrow() {
            self.push().await;
            sleep(Duration::from_millis(self.rng.u64(100..800))).await;
        }
    }

    async fn push(&mut self) -> Option<()> {
        let (node, addr) = (*self.door.borrow())?;
        let begun = now();
        let Entry {
            mut stream,
            socket,
            is_checked,
        } = match timeout(ENTRY, enter(addr, self.user, None)).await.ok()? {
            Ok(entry) => entry,
            Err(refused) => {
                self.referee.lock().limited(node, begun, refused?);
                return None;
            }
        };
        let seat = Seat {
            node,
            socket,
            begun,
            entered: now(),
            is_checked,
        };
        {
            let mut referee = self.referee.lock();
            referee.limited(node, begun, is_checked);
            referee.sits(self.user, seat);
        }
        let end = Instant::now() + Duration::from_millis(self.rng.u64(300..6000));
        loop {
            tokio::select! {
                said = said(&mut stream) => if said.is_none() { break },
                () = sleep_until(end) => break,
                () = ending(&mut self.ending) => break,
            }
        }
        self.referee.lock().rises(self.user, socket);
        // The node may have died.
        let _ = timeout(ENTRY, stream.close(None)).await;
        Some(())
    }
}
