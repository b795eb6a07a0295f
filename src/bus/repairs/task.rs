//! The one task that reads and delivers what was missed: so what it has begun to deliver comes before what is heard later.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until};

use super::Repairs;
use super::call::Call;
use crate::bus::Archive;
use crate::bus::past::Past;
use crate::bus::repair::Due;
use crate::model::history::mark::{Clock, Mark, Marks};
use crate::model::topic::Topic;

/// So many reads are on their way.
const IN_FLIGHT: usize = 4;
/// So many are delivered before those whom they concern get their turn: half of what an outbox holds by default.
const TURN: usize = 128;
/// The pause before a read is repeated that failed, doubled each time up to the longest.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The node, as its repairs see it.
pub(crate) trait Repairing: Send + Sync + 'static {
    fn repairs(&self) -> &Repairs;

    /// Those on which there are sockets here.
    fn topics(&self) -> Vec<Topic>;

    /// Something that was missed. It is delivered by the next [`flush`](Self::flush).
    fn missed(&self, due: &Due);

    /// Lets go what has waited too long for what is missed, by the next [`flush`](Self::flush). When there is more.
    fn let_go(&self, now: Instant) -> Option<Instant>;

    /// These clocks go on in another run; up to here all is delivered.
    fn go_on(&self, clocks: &[(Clock, Mark)]);

    /// All of these clocks up to here is delivered: clients that are so far behind, in microseconds, are told.
    fn renew(&self, heard: &Marks, behind: u64);

    /// As [`Listener::flush`](crate::bus::Listener::flush).
    fn flush(&self) -> bool;
}

#[derive(Debug)]
pub(crate) struct RepairsTask<N> {
    node: Weak<N>,
    news: Arc<Notify>,
    archive: Weak<dyn Archive>,
    /// So long what was missed is asked for in vain.
    patience: Duration,
}

type CallAnswer = (Call, Result<Past, Arc<str>>);

impl<N: Repairing> RepairsTask<N> {
    pub(crate) fn new(node: &Arc<N>, patience: Duration) -> Self {
        let repairs = node.repairs();
        Self {
            news: repairs.news.clone(),
            archive: Arc::downgrade(&repairs.archive),
            node: Arc::downgrade(node),
            patience,
        }
    }

    /// As long as the node lives.
    pub(crate) async fn run(&mut self) {
        if let Some(node) = self.node.upgrade() {
            node.repairs().begin_anew();
        }
        let mut flight: FuturesUnordered<BoxFuture<'_, CallAnswer>> = FuturesUnordered::new();
        loop {
            let Some(node) = self.node.upgrade() else {
                return;
            };
            while flight.len() < IN_FLIGHT
                && let Some(call) = node.repairs().next_call(|| node.topics())
            {
                flight.push(self.ask(call).boxed());
            }
            if let Some((proven, behind)) = node.repairs().take_proven() {
                node.renew(&proven, behind);
            }
            let until = node.let_go(Instant::now());
            let asks = node.repairs().until().filter(|_| flight.len() < IN_FLIGHT);
            let until = until.into_iter().chain(asks).min();
            deliver(&*node).await;
            drop(node);
            tokio::select! {
                Some((call, answer)) = flight.next() => {
                    if let Some(node) = self.node.upgrade() {
                        node.repairs().answered(call, answer);
                    }
                }
                () = self.news.notified() => {}
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {}
            }
        }
    }

    /// Asks until that is answered, or of no use any more.
    async fn ask(&self, call: Call) -> CallAnswer {
        let deadline = Instant::now() + self.patience;
        let mut pause = PAUSE;
        loop {
            let Some(archive) = self.archive.upgrade() else {
                return (call, Err("the node is gone".into()));
            };
            let answer = call.ask(&*archive).await;
            drop(archive);
            let is_of_use = || {
                let node = self.node.upgrade();
                node.is_some_and(|node| node.repairs().is_current(&call))
            };
            if answer.is_ok() || Instant::now() + pause > deadline || !is_of_use() {
                return (call, answer);
            }
            sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }
}

/// Delivers what is due, letting other tasks run in between.
async fn deliver(node: &impl Repairing) {
    loop {
        let (due, goes_on) = node.repairs().next_due(TURN);
        if !goes_on.is_empty() {
            node.go_on(&goes_on);
        }
        due.iter().for_each(|due| node.missed(due));
        while node.flush() {
            yield_now().await;
        }
        if due.is_empty() {
            return;
        }
        yield_now().await;
    }
}
