//! Clients that came back when nobody could tell what they missed: one task of the node asks again for all of them.
//!
//! ```text
//!            somebody waits         a pause, shorter once the bus is up
//!  idle ------------------> pausing ------------------------------------> asking for each, once
//!   ^                          ^                                            |
//!   |                          +------- some wait still: a longer one ------+
//!   +-------------- nobody does: each is told, or has ended ----------------+
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::{FutureExt, StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::super::Node;
use crate::local::registry::Member;
use crate::local::socket::Sender;
use crate::model::health::Health;
use crate::model::history::position::Position;

/// Whoever waits, by the socket's number. What waits in each is bounded: one for which too much came ends, and comes back.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    clients: Mutex<HashMap<u64, WaitingClient>>,
    news: Arc<Notify>,
}

/// One client that waits.
#[derive(Debug, Clone)]
pub(super) struct WaitingClient {
    pub(super) socket: Sender,
    pub(super) brought: Option<Position>,
}

impl Waiting {
    pub(super) fn add(&self, waiter: WaitingClient) {
        let number = waiter.socket.id().number;
        let before = self.clients.lock().insert(number, waiter);
        drop(before);
        self.news.notify_one();
    }

    fn remove(&self, waiter: &WaitingClient) {
        let gone = self.clients.lock().remove(&waiter.socket.id().number);
        drop(gone);
    }

    fn all(&self) -> Vec<WaitingClient> {
        self.clients.lock().values().cloned().collect()
    }

    fn is_empty(&self) -> bool {
        self.clients.lock().is_empty()
    }
}

/// As long as the node lives.
pub(crate) fn keep_asking(node: &Arc<Node>) {
    let weak = Arc::downgrade(node);
    let home = &node.ground.home;
    home.keep("resumes", weak, |node| ask_again(node.clone()).boxed());
}

async fn ask_again(node: Weak<Node>) {
    let parts = node.upgrade().map(|node| {
        let health = node.ground.reception.health_changes();
        (node.waiting.news.clone(), health)
    });
    let Some((news, mut health)) = parts else {
        return;
    };
    let (mut pause, mut next) = (PAUSE, None);
    loop {
        tokio::select! {
            change = health.next() => match change {
                Some(Health::Up) => (pause, next) = (PAUSE, None),
                Some(_) => {}
                None => return,
            },
            () = news.notified() => {}
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                let Some(node) = node.upgrade() else { return };
                node.ask_for_all().await;
                (pause, next) = ((2 * pause).min(LONGEST_PAUSE), None);
            }
        }
        let Some(node) = node.upgrade() else { return };
        match node.waiting.is_empty() {
            true => (pause, next) = (PAUSE, None),
            // Nodes that were all cut off do not ask in the same moment.
            false => {
                let soon = || Instant::now() + pause.mul_f64(1.0 + fastrand::f64());
                next = next.or_else(|| Some(soon()));
            }
        }
    }
}

impl Node {
    /// Asks once for each who waits. While the bus is down only who has ended goes.
    async fn ask_for_all(self: &Arc<Self>) {
        let asking = self
            .waiting
            .all()
            .into_iter()
            .map(|waiter| self.ask_for(waiter));
        let asking = stream::iter(asking).buffer_unordered(AT_ONCE);
        asking.for_each(async |()| {}).await;
    }

    async fn ask_for(&self, waiter: WaitingClient) {
        let has_ended = waiter.socket.close_reason().is_some();
        let may_know = !has_ended && self.ground.reception.health() == Health::Up;
        if has_ended || may_know && self.resume_now(&waiter).await.is_ok() {
            self.waiting.remove(&waiter);
        }
    }
}

/// Between two attempts, at least, and twice that at most; doubled each time that somebody waits still.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// So many reads are on their way: each is a round trip, and nobody else asks for them.
const AT_ONCE: usize = 64;

#[cfg(test)]
mod tests {
    #[cfg(feature = "testing")]
    #[tokio::test(start_paused = true)]
    async fn all_who_wait_are_told_once_the_bus_is_up_and_who_ended_is_forgotten_before() {
        use std::time::Duration;

        use futures::StreamExt;
        use tokio::time::sleep;

        use crate::cluster::Cluster;
        use crate::model::history::{History, Resumed};

        let hub = crate::testing::MemoryHub::new();
        let kept = || Cluster::builder().user_history(History::default());
        let [a, b] = [(); 2].map(|()| kept().backend(hub.backend()).start());
        let (here, there) = (a.broadcaster(), b.broadcaster());
        let first = there.subscribe_since("bot", None).await.unwrap();
        let since = first.position();
        drop(first);
        hub.partition(b.id());
        here.to_user("bot").send("missed").await.unwrap();
        let mut bots = Vec::new();
        for _ in 0..100 {
            let bot = there.subscribe_since("bot", since.clone()).await.unwrap();
            assert_eq!(bot.resumed(), Resumed::Later);
            bots.push(bot);
        }
        let waiting = || there.node().waiting.all().len();
        assert_eq!(waiting(), 100, "control");
        bots.truncate(50);
        sleep(Duration::from_secs(3)).await;
        assert_eq!(waiting(), 50, "nobody knows, and who ended does not wait");
        hub.heal();
        for bot in &mut bots {
            let message = bot.next().await.unwrap();
            assert_eq!(message.as_text(), Some("missed"));
        }
        assert_eq!((waiting(), b.stats().resumed), (0, 50));
    }
}
