//! Sentinels: whoever asks them is led to the primary, and leaves it when they name another.
//!
//! Two tasks: one asks all of them, at every probe and whenever something hints at a change (the [`Seeker`]); the other
//! listens to one of them for such hints (the [`Watcher`]). Which answers count and when to ask next is decided by the
//! rules of [`Council`]. The role of the server that we are connected to decides nothing: after a graceful failover the
//! old primary calls itself that for ten seconds, and takes every PUBLISH.

mod answer;
mod ask;
mod council;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use self::council::{Council, Finding};
pub(super) use self::watch::Watcher;
use super::address::Host;
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
    known: Mutex<Vec<Host>>,
}

impl Sentinels {
    pub(super) fn new(target: Arc<SentinelTarget>, interval: Duration) -> Self {
        Self {
            known: Mutex::new(target.seeds.clone()),
            target,
            interval,
        }
    }

    fn known(&self) -> Vec<Host> {
        self.known.lock().clone()
    }

    fn endpoint(&self, sentinel: &Host) -> Endpoint {
        at(sentinel, &self.target.sentinels)
    }
}

fn at(host: &Host, access: &Arc<Access>) -> Endpoint {
    Endpoint::new(Addr::Tcp(host.clone()), access.clone())
}

/// The task that asks where the primary is, and leads there.
#[derive(Debug)]
pub(super) struct Seeker {
    sentinels: Arc<Sentinels>,
    topology: Arc<Topology>,
    council: Council,
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
        }
    }

    /// Asks, for ever.
    pub(super) async fn run(&mut self) {
        loop {
            self.ask().await;
            loop {
                tokio::select! {
                    () = sleep_until(self.council.due()) => break,
                    () = self.topology.is_missed() => self.council.hurry(Instant::now()),
                }
            }
        }
    }

    async fn ask(&mut self) {
        let asked = Instant::now();
        let service = &self.sentinels.target.service;
        let asking = self.council.sentinels().into_iter().map(async |sentinel| {
            let answer = ask::ask(&self.sentinels.endpoint(&sentinel), service).await;
            (sentinel, answer)
        });
        let answers = ask::gather(asking, ask::PATIENCE).await;
        let finding = self.council.hear(answers, asked);
        self.council.asked(Instant::now());
        *self.sentinels.known.lock() = self.council.sentinels();
        match finding {
            Finding::Confirmed => self.topology.confirm(asked),
            Finding::Untold(reason) => {
                tracing::debug!(%reason, "where the primary is remains as it was");
                self.topology.untold(reason);
            }
            Finding::Moved { primary, epoch } => {
                tracing::info!(%primary, epoch, %service, "the sentinels name the primary");
                let primary = at(&primary, &self.sentinels.target.primary);
                self.topology.lead_to(primary, asked);
            }
        }
    }
}
