//! The task that tells Redis about this node's seats and asks for new ones, in one pipeline at a time.
//!
//! Every join raises the epoch, so that whatever an earlier connection still has on its way is stale when it arrives.
//! After a join all is said in one order: what may differ, then claims; and nothing that failed in between is taken for
//! said.
//!
//! ```text
//!           answered
//!  join ------------------> serve <--+
//!   ^ ^                      | | |   |  a batch, a renewal, a look; or nothing is due: rest
//!   | |                      | | +---+
//!   | |                      | |
//!   | |  in 10 ms, doubled   | |  Redis answers, and has lost this node's keys or the script
//!   | +----- forgotten <-----+ |
//!   |                          |
//!   |  at once; from the       |  it does not answer, or what makes no sense
//!   |  second time on an       |
//!   +- outage, and a pause <---+
//! ```
//! A join may fail in the same two ways. When the bus ends, whatever it is at is given up, and `leave` deletes the
//! keys.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bb8_redis::bb8::ManageConnection;
use redis::{RedisError, RedisResult, Value};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::ledger::{Batch, Ledger, Verdict};
use super::missing::Missing;
use super::script::{
    Renewed, Script, Stamp, Terms, advise, joined, renewed, replaced, seen, verdict,
};
use super::{SharedLedger, now};
use crate::bus::BusSettings;
use crate::bus::redis::advice::Advice;
use crate::bus::redis::backoff::pause;
use crate::bus::redis::connection::{Commands, Connection, Connector};
use crate::bus::redis::explain;
use crate::model::id::NodeId;

/// A lease is this many renewals long.
const MARGIN: u32 = 3;
/// A node that says nothing looks this often whether Redis still has its keys: two reads, so that a lost key is
/// noticed long before the claims that wait for it are refused.
const LOOK: Duration = Duration::from_millis(250);
/// Looks until every node has noticed a loss, however busy it is.
const GRACE: u32 = 3;
/// Until what is missing is asked for again.
const RETRY: Duration = Duration::from_millis(10);
/// So often that is doubled while nothing came of it: 2.56 s.
const MOST_RETRIES: u32 = 8;

#[derive(Debug)]
pub(in crate::bus::redis) struct SeatWriter {
    seats: Arc<SharedLedger>,
    connector: Connector,
    advice: Arc<Advice>,
    /// The task's own: it waits for nobody's question, and an answer is owed to it alone.
    connection: Option<Connection>,
    script: Script,
    renewal: Duration,
    look: Duration,
    /// The longest wait when it leaves.
    deadline: Duration,
    /// Raised whenever something that was said may still be on its way: Redis then ignores it.
    epoch: u64,
    /// How many things were said, and the last of them that Redis confirmed.
    said: u64,
    confirmed: u64,
    /// What the last renewal told, to be acknowledged with the next.
    known: Renewed,
    /// Redis' clock, in milliseconds, and when it was so late.
    clock: Option<(u64, Instant)>,
    missing: Missing,
    due: Due,
}

/// When something is to be said whether or not there is news.
#[derive(Debug)]
struct Due {
    renewal: Instant,
    look: Instant,
    /// Not before.
    claims: Instant,
}

/// Why Redis has to be told anew who speaks.
#[derive(Debug)]
enum Lapse {
    /// Redis answers, and has lost this node's keys, or the script.
    Forgotten,
    Failed(Arc<str>),
}

impl SeatWriter {
    pub(in crate::bus::redis) fn new(
        seats: Arc<SharedLedger>,
        connector: Connector,
        advice: Arc<Advice>,
        node: NodeId,
        settings: &BusSettings,
    ) -> Self {
        let (lease, patience) = (settings.lease, settings.publish_timeout / 2);
        let renewal = lease / MARGIN;
        // What is lost is found, and written, before whoever waits for it gives up.
        let look = LOOK.min(renewal).min(patience / (GRACE + 1));
        let grace = look * GRACE;
        let now = Instant::now();
        Self {
            seats,
            connector,
            advice,
            connection: None,
            script: Script::new(&settings.namespace, node, Terms { lease, grace }),
            renewal,
            look,
            deadline: settings.publish_timeout,
            epoch: 0,
            said: 0,
            confirmed: 0,
            known: Renewed::default(),
            clock: None,
            missing: Missing::new(patience),
            due: Due {
                renewal: now,
                look: now,
                claims: now,
            },
        }
    }

    /// Keeps Redis informed, for ever.
    pub(in crate::bus::redis) async fn run(&mut self) {
        self.seats.ledger.lock().begin();
        let (mut failures, mut forgotten) = (0, 0);
        loop {
            let lapse = match self.join().await {
                Ok(()) => self.serve(&mut failures, &mut forgotten).await,
                Err(lapse) => lapse,
            };
            let reason = match lapse {
                Lapse::Failed(reason) => reason,
                Lapse::Forgotten => {
                    self.forgotten(&mut forgotten).await;
                    continue;
                }
            };
            failures += 1;
            // A single failure tells of a lost connection, not of a lost Redis.
            if failures > 1 {
                self.outage(&reason);
                tokio::select! {
                    () = sleep(pause(failures, fastrand::f64())) => {}
                    () = self.seats.unverified.notified() => {}
                }
            }
        }
    }

    fn outage(&self, reason: &str) {
        if self.seats.change(|ledger| ledger.outage(now())) {
            tracing::warn!(
                reason,
                "sockets per user are limited by this node's own count for now"
            );
        }
    }

    /// Redis answers, and does not know this node: at once the first time, then less and less often.
    async fn forgotten(&mut self, times: &mut u32) {
        self.seats.change(Ledger::forgotten);
        let wait = RETRY * 2_u32.pow((*times).min(MOST_RETRIES));
        if *times == MOST_RETRIES {
            tracing::warn!(
                "redis loses the seats of this node again and again, and nobody is let in meanwhile: it must not evict \
                them (maxmemory-policy volatile-* or allkeys-*), nor must anybody delete them"
            );
        } else {
            tracing::debug!("redis has lost this node's seats, or the script: once more");
        }
        *times = times.saturating_add(1);
        sleep(wait).await;
    }

    /// Deletes what this node has in Redis, if Redis answers.
    pub(in crate::bus::redis) async fn leave(&mut self) {
        let mut pipeline = Commands::new();
        pipeline.add_command(self.script.leave());
        let deadline = self.deadline;
        let left = timeout(deadline, self.ask(&pipeline)).await;
        let left =
            left.unwrap_or_else(|_| Err(Lapse::Failed("redis did not answer in time".into())));
        if let Err(Lapse::Failed(reason)) = left {
            tracing::debug!(%reason, "the seats stay in redis until their lease ends");
        }
    }

    /// From here on Redis listens to this epoch alone.
    async fn join(&mut self) -> Result<(), Lapse> {
        self.epoch += 1;
        let anew = self.seats.ledger.lock().is_anew();
        let mut pipeline = Commands::new();
        pipeline.add_command(self.script.join(self.stamp(), anew, &self.known.nodes));
        let answer = self.ask(&pipeline).await?.into_iter().next();
        let answer = answer.ok_or_else(nonsense)?;
        let answer = answer.map_err(|error| self.lapse(&error))?;
        let joined = joined(&answer).ok_or_else(nonsense)?;
        if joined.created {
            self.known.replaced.clear();
        }
        let remembered = std::mem::replace(&mut self.known.nodes, joined.nodes);
        let now = Instant::now();
        if remembered.is_empty() {
            // Nobody would decide a newcomer's claims any sooner.
            self.due.claims = now + joined.others;
        }
        self.clock = Some((joined.millis, now));
        self.due.renewal = now + self.renewal;
        if self.seats.change(|ledger| ledger.joined(joined.created)) {
            tracing::info!("sockets per user are limited in the whole cluster again");
        }
        Ok(())
    }

    /// Speaks until something fails; returns what.
    async fn serve(&mut self, failures: &mut u32, forgotten: &mut u32) -> Lapse {
        loop {
            let now = Instant::now();
            let batch = self.seats.ledger.lock().next_batch(self.due.claims <= now);
            let renews = self.due.renewal <= now;
            let said = if renews || !batch.is_empty() {
                self.exchange(renews, batch).await
            } else if self.due.look <= now {
                self.look().await
            } else {
                self.rest(now).await;
                continue;
            };
            if let Err(lapse) = said {
                return lapse;
            }
            (*failures, *forgotten) = (0, 0);
            self.due.look = Instant::now() + self.look;
        }
    }

    /// Waits until there is something to say.
    async fn rest(&mut self, now: Instant) {
        let mut wake = self.due.renewal.min(self.due.look);
        if self.due.claims > now {
            wake = wake.min(self.due.claims);
        }
        tokio::select! {
            () = self.seats.changed.notified() => {}
            () = self.seats.unverified.notified() => self.due.renewal = Instant::now(),
            () = sleep_until(wake) => {}
        }
    }

    /// Finds out whether Redis still has this node's keys; the renewal restores what can be restored.
    async fn look(&mut self) -> Result<(), Lapse> {
        let mut commands = Commands::new();
        for command in self.script.look() {
            commands.add_command(command);
        }
        let answers = self.ask(&commands).await?;
        let answers: RedisResult<Vec<Value>> = answers.into_iter().collect();
        let answers = answers.map_err(|error| self.lapse(&error))?;
        if !seen(&answers, self.stamp()) {
            self.due.renewal = Instant::now();
        }
        Ok(())
    }

    /// Says one batch and takes the answers.
    async fn exchange(&mut self, renews: bool, mut batch: Batch) -> Result<(), Lapse> {
        self.said += 1;
        let (mut pipeline, stamp) = (Commands::new(), self.stamp());
        if renews {
            self.due.renewal = Instant::now() + self.renewal;
            pipeline.add_command(self.script.renew(stamp, &self.known.replaced));
        }
        if batch.has_writes() {
            pipeline.add_command(self.script.write(stamp, &batch.writes, batch.whole));
        }
        let (limit, given_up) = (self.seats.limit, self.missing.given_up(Instant::now()));
        for (user, number) in &batch.claims {
            let claim = self.script.claim(stamp, user, *number, limit, &given_up);
            pipeline.add_command(claim);
        }
        let answered = match self.ask(&pipeline).await {
            Ok(answers) => self.take(renews, &mut batch, answers),
            Err(lapse) => Err(lapse),
        };
        if answered.is_err() {
            self.seats.change(|ledger| ledger.failed(batch));
        }
        answered
    }

    fn stamp(&self) -> Stamp {
        let millis = self
            .clock
            .map_or(0, |(millis, at)| millis + at.elapsed().as_millis() as u64);
        Stamp {
            epoch: self.epoch,
            millis,
            says: self.said,
            confirmed: self.confirmed,
        }
    }

    /// Runs commands, on a new connection when there is none that works.
    async fn ask(&mut self, commands: &Commands) -> Result<Vec<RedisResult<Value>>, Lapse> {
        let mut connection = match self
            .connection
            .take()
            .filter(|connection| !connection.is_dead())
        {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let answers = connection.run(commands).await;
        // After an error, or cancelled, it is of no further use.
        let answers = answers.map_err(|error| self.lapse(&error))?;
        self.connection = Some(connection);
        Ok(answers)
    }

    /// Whoever waits for Redis meanwhile is told what this node knows: opening a connection may take longer.
    async fn connect(&self) -> Result<Connection, Lapse> {
        let mut connecting = pin!(self.connector.connect());
        let opened = match timeout(self.deadline, connecting.as_mut()).await {
            Ok(opened) => opened,
            Err(_) => {
                self.outage("redis accepted no connection in time");
                connecting.await
            }
        };
        opened.map_err(|error| self.lapse(&error))
    }

    fn lapse(&self, error: &RedisError) -> Lapse {
        match error.code() {
            Some("STALE" | "NOSCRIPT") => Lapse::Forgotten,
            _ => Lapse::Failed(advise(explain(&self.advice, error))),
        }
    }

    /// Takes the answers to a batch, in its order, and out of it what is answered.
    fn take(
        &mut self,
        renews: bool,
        batch: &mut Batch,
        answers: Vec<RedisResult<Value>>,
    ) -> Result<(), Lapse> {
        let mut answers = answers.into_iter();
        if renews {
            let answer = self.next(&mut answers)?;
            self.known = renewed(&answer).ok_or_else(nonsense)?;
            self.clock = Some((self.known.millis, Instant::now()));
            self.seats.change(|ledger| {
                for (user, number) in replaced(&self.known.replaced) {
                    ledger.lose(user, number);
                }
            });
        }
        if batch.has_writes() {
            self.next(&mut answers)?;
            self.confirmed = self.said;
            batch.writes.clear();
            batch.whole = false;
        }
        while let Some((user, number)) = batch.claims.front() {
            let answer = self.next(&mut answers)?;
            let verdict = verdict(&answer).ok_or_else(nonsense)?;
            self.heed(&verdict);
            self.seats
                .change(|ledger| ledger.answered(user, *number, verdict));
            batch.claims.pop_front();
        }
        Ok(())
    }

    fn next(&self, answers: &mut impl Iterator<Item = RedisResult<Value>>) -> Result<Value, Lapse> {
        let answer = answers.next().ok_or_else(nonsense)?;
        answer.map_err(|error| self.lapse(&error))
    }

    /// Learns from a verdict who is missing, and what time it is.
    fn heed(&mut self, verdict: &Verdict) {
        let now = Instant::now();
        match verdict {
            Verdict::Missing { nodes, millis } => {
                self.missing.told(nodes.clone(), now);
                self.clock = Some((*millis, now));
                self.due.claims = now + RETRY;
            }
            Verdict::Granted { whole: true, .. } | Verdict::Refused { whole: true } => {
                self.missing.told(Vec::new(), now);
            }
            Verdict::Granted { .. } | Verdict::Refused { .. } => {}
        }
        if let Verdict::Granted { .. } = verdict {
            self.confirmed = self.said;
        }
    }
}

fn nonsense() -> Lapse {
    Lapse::Failed("redis gave an answer that makes no sense".into())
}
