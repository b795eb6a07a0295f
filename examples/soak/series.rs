//! The messages of one sender to one audience, one after the other: all the time, or in bursts.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use axum_cluster::Broadcaster;
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesOrdered;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::dispatch::Report;
use crate::node::say;
use crate::words::{Kind, Life, Outcome, Stamp, Target, address, kind, now};

/// So many small messages to a single socket are under way, and then none for a moment: at most 3,200 a
/// second to each, so that its client can read them.
const AT_ONCE: usize = 16;
const BREATH: Duration = Duration::from_millis(5);
/// So many of one series wait for Redis.
const WAITING: usize = 8;

#[derive(Debug)]
pub struct Series {
    pub life: Life,
    pub broadcaster: Broadcaster,
    pub audience: usize,
    pub targets: Vec<Target>,
    /// Of a message, at least.
    pub length: usize,
    /// Of the last message.
    pub number: u64,
    /// What is sent may wait for Redis, and the next is sent meanwhile.
    pub spool: bool,
    /// Now and then a message is lost, doubled or late, to see whether the soak finds it.
    pub sabotage: bool,
}

impl Series {
    /// Sends now and then, until it is time to be silent.
    pub async fn run(mut self, speak: watch::Receiver<bool>) {
        let pause = match kind(&self.targets) {
            Kind::All => 250,
            Kind::Room | Kind::Socket => 1000,
            Kind::User | Kind::Union => 2000,
        };
        // Restarted nodes and their audiences do not speak in step.
        let mut pauses = fastrand::Rng::new();
        let most = if self.spool { WAITING } else { 1 };
        let mut waiting = FuturesOrdered::new();
        while *speak.borrow() {
            let pause = sleep(Duration::from_millis(pauses.u64(pause / 2..pause * 3 / 2)));
            let mut pause = pin!(pause);
            loop {
                tokio::select! {
                    Some(sent) = waiting.next() => say(&sent),
                    () = &mut pause, if waiting.len() < most => break,
                }
            }
            if *speak.borrow() {
                waiting.push_back(self.next());
            }
        }
        while let Some(sent) = waiting.next().await {
            say(&sent);
        }
    }

    /// Sends almost without a pause, so many at once.
    async fn burst(mut self, end: Instant, at_once: usize) -> Self {
        while Instant::now() < end {
            let sends: Vec<_> = (0..at_once).map(|_| self.next()).collect();
            // Begun in this order, as long as they are few.
            for sent in join_all(sends).await {
                say(&sent);
            }
            sleep(BREATH).await;
        }
        self
    }

    /// A send, with what became of it.
    fn next(&mut self) -> impl Future<Output = Report> + use<> {
        self.number += 1;
        let (number, audience, sabotage) = (self.number, self.audience, self.sabotage);
        let written = match (sabotage, number % 50) {
            (true, 1) => number + 1,
            (true, 2) => number - 1,
            _ => number,
        };
        let mut to = address(&self.broadcaster, &self.targets);
        if sabotage && number % 50 == 10 {
            to = to.local();
        }
        let (sender, length) = (self.life, self.length);
        async move {
            let sent = now();
            let stamp = Stamp {
                sender,
                audience,
                number: written,
                sent,
            };
            // The formatting machinery takes no width beyond 65,535.
            let mut text = stamp.to_string();
            let padding = length.saturating_sub(text.len());
            text.extend(std::iter::repeat_n(' ', padding));
            if sabotage && number % 50 == 20 {
                // What it tells is told by the second.
                let _ = to.clone().send(text.clone()).await;
            }
            let sending = async { to.send(text).await?.settled().await };
            let outcome = match sending.await {
                Ok(_) => Outcome::Taken,
                Err(error) if error.maybe_sent() => Outcome::Unsure,
                Err(_) => Outcome::Refused,
            };
            Report::Sent {
                audience,
                number,
                sent,
                done: now(),
                outcome,
            }
        }
    }
}

/// What is sent in bursts: the numbers go on from one to the next.
#[derive(Debug)]
pub struct Bursts {
    wide: Option<Series>,
    singles: HashMap<usize, Series>,
}

impl Bursts {
    pub fn new(wide: Series) -> Self {
        Self {
            wide: Some(wide),
            singles: HashMap::new(),
        }
    }

    /// Big messages to the union of many rooms.
    pub async fn unions(&mut self, lasts: Duration) {
        if let Some(wide) = self.wide.take() {
            self.wide = Some(wide.burst(Instant::now() + lasts, 1).await);
        }
    }

    /// Small messages to single sockets, all at the same time.
    pub async fn singles(&mut self, lasts: Duration, new: impl Iterator<Item = Series>) {
        let end = Instant::now() + lasts;
        let mut bursts = JoinSet::new();
        for series in new {
            let series = self.singles.remove(&series.audience).unwrap_or(series);
            bursts.spawn(series.burst(end, AT_ONCE));
        }
        for series in bursts.join_all().await {
            self.singles.insert(series.audience, series);
        }
    }
}
