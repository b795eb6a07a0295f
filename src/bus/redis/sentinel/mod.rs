//! Sentinels: whoever asks them is led to the primary, and leaves it when they name another.
//!
//! Two tasks: one asks all of them, at every probe and whenever something hints at a change (the [`Seeker`]); the other
//! listens to one of them for such hints (the [`Watcher`]). Which answers count and when to ask next is decided by the
//! rules of [`Council`], how long they are waited for by those of a [`Round`]. The role of the server that we are connected to decides nothing: after a graceful failover the
//! old primary calls itself that for ten seconds, and takes every PUBLISH.

mod answer;
mod ask;
mod council;
mod round;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use self::council::{Council, CouncilFinding, HostSaid};
use self::round::Round;
pub(super) use self::watch::Watcher;
use super::address::ServerAddress;
use super::endpoint::{Access, Addr, Endpoint};
use super::options::SentinelTarget;
use super::topology::Topology;

/// The sentinels of one node, for both tasks.
#[derive(Debug)]
pub(super) struct Sentinels {
    target: Arc<SentinelTarget>,
    /// Between two questions while nothing happens.
    interval: Duration,
    /// Never empty.
    known: Mutex<Vec<ServerAddress>>,
}

impl Sentinels {
    pub(super) fn new(target: Arc<SentinelTarget>, interval: Duration) -> Self {
        Self {
            known: Mutex::new(target.seeds.clone()),
            target,
            interval,
        }
    }

    fn known(&self) -> Vec<ServerAddress> {
        self.known.lock().clone()
    }

    fn endpoint(&self, sentinel: &ServerAddress) -> Endpoint {
        at(sentinel, &self.target.sentinels)
    }
}

fn at(host: &ServerAddress, access: &Arc<Access>) -> Endpoint {
    Endpoint::new(Addr::Tcp(host.clone()), access.clone())
}

/// The task that asks where the primary is, and leads there.
#[derive(Debug)]
pub(super) struct Seeker {
    sentinels: Arc<Sentinels>,
    topology: Arc<Topology>,
    council: Council,
    round: Round,
    asking: FuturesUnordered<BoxFuture<'static, HostSaid>>,
}

impl Seeker {
    pub(super) fn new(sentinels: Arc<Sentinels>, topology: Arc<Topology>) -> Self {
        let target = &sentinels.target;
        let council = Council::new(
            &target.service,
            target.seeds.clone(),
            sentinels.interval,
            Instant::now(),
        );
        Self {
            sentinels,
            topology,
            council,
            round: Round::default(),
            asking: FuturesUnordered::new(),
        }
    }

    /// Asks the sentinels where the primary is, for ever.
    pub(super) async fn run(&mut self) {
        // Whatever broke owes nothing any more.
        (self.round, self.asking) = Default::default();
        loop {
            let (said, _) = self.round.said();
            let ends = self.round.ends(self.council.suffices(&said));
            let over = async {
                match ends {
                    Some(ends) => sleep_until(ends).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => self.conclude(),
                () = sleep_until(self.council.due()) => self.ask(),
                Some((sentinel, said)) = self.asking.next() => {
                    self.round.answered(sentinel, said, Instant::now());
                    self.look_for_news();
                }
                () = self.topology.is_missed() => self.council.hurry(Instant::now()),
            }
        }
    }

    /// Asks whoever does not owe an answer yet.
    fn ask(&mut self) {
        let now = Instant::now();
        self.council.asked(now);
        for sentinel in self.round.ask(self.council.sentinels(), now) {
            let (endpoint, target) = (
                self.sentinels.endpoint(&sentinel),
                self.sentinels.target.clone(),
            );
            let asking = async move {
                let said = ask::ask(&endpoint, &target.service).await;
                (sentinel, said)
            };
            self.asking.push(asking.boxed());
        }
    }

    fn look_for_news(&mut self) {
        let (said, asked) = self.round.said();
        if self.council.is_news(&said) {
            let asked = asked.unwrap_or_else(Instant::now);
            let finding = self.council.judge(said, asked);
            self.tell(finding, asked);
            // Others may hear of it later, and of more.
            self.council.hurry(Instant::now());
        }
    }

    fn conclude(&mut self) {
        let (said, asked) = self.round.said();
        self.round.end();
        let asked = asked.unwrap_or_else(Instant::now);
        let finding = self.council.hear(said, asked);
        *self.sentinels.known.lock() = self.council.sentinels();
        self.tell(finding, asked);
    }

    fn tell(&self, finding: CouncilFinding, asked: Instant) {
        match finding {
            CouncilFinding::Confirmed => self.topology.confirm(asked),
            CouncilFinding::Untold(reason) => {
                tracing::debug!(%reason, "where the primary is remains as it was");
                self.topology.untold(reason);
            }
            CouncilFinding::Moved { primary, epoch } => {
                let service = &self.sentinels.target.service;
                tracing::info!(%primary, epoch, %service, "the sentinels name the primary");
                let primary = at(&primary, &self.sentinels.target.primary);
                self.topology.lead_to(primary, asked);
            }
        }
    }
}
