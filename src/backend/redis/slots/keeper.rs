//! The task that tells Redis about this node's slots and asks for new ones, in one pipeline at a time.

use std::sync::Arc;
use std::time::Duration;

use bb8_redis::bb8::ManageConnection;
use redis::{RedisResult, Value};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::book::Batch;
use super::script::{Script, advise, replaced, text, verdict};
use super::{SlotTable, now};
use crate::backend::BusSettings;
use crate::backend::redis::advice::Advice;
use crate::backend::redis::explain;
use crate::backend::redis::links::{Commands, Link, Links};
use crate::backend::redis::subscriber::pause;
use crate::id::NodeId;

/// A lease is this many renewals long.
const MARGIN: u32 = 3;

#[derive(Debug)]
pub(in crate::backend::redis) struct Keeper {
    table: Arc<SlotTable>,
    links: Links,
    advice: Arc<Advice>,
    /// Its own: it waits for nobody's question, and an answer is owed to it alone.
    link: Option<Link>,
    script: Script,
    renewal: Duration,
    /// The longest wait when it leaves.
    deadline: Duration,
    /// Raised whenever something that was said may still be on its way: Redis then ignores it.
    epoch: u64,
    /// What the last renewal told, to be acknowledged with the next.
    known: String,
}

impl Keeper {
    pub(in crate::backend::redis) fn new(
        table: Arc<SlotTable>,
        links: Links,
        advice: Arc<Advice>,
        node: NodeId,
        settings: &BusSettings,
    ) -> Self {
        Self {
            table,
            links,
            advice,
            link: None,
            script: Script::new(&settings.namespace, node, settings.lease),
            renewal: settings.lease / MARGIN,
            deadline: settings.publish_timeout,
            epoch: 0,
            known: String::new(),
        }
    }

    /// Keeps Redis informed, for ever.
    pub(in crate::backend::redis) async fn run(&mut self) {
        self.table.book.lock().begin();
        let mut failures = 0;
        loop {
            let reason = match self.join().await {
                Ok(()) => self.serve(&mut failures).await,
                Err(reason) => reason,
            };
            failures += 1;
            // A single failure tells of a lost connection, not of a lost Redis.
            if failures > 1 {
                if self.table.change(|book| book.outage(now())) {
                    tracing::warn!(%reason, "sockets per user are limited by this node's own count for now");
                }
                tokio::select! {
                    () = sleep(pause(failures, fastrand::f64())) => {}
                    () = self.table.doubted.notified() => {}
                }
            }
        }
    }

    /// Deletes what this node has in Redis, if Redis answers.
    pub(in crate::backend::redis) async fn leave(&mut self) {
        let mut pipeline = Commands::new();
        pipeline.add_command(self.script.leave());
        let deadline = self.deadline;
        let left = timeout(deadline, self.ask(&pipeline)).await;
        if let Err(reason) = left.unwrap_or_else(|_| Err("redis did not answer in time".into())) {
            tracing::debug!(%reason, "the slots stay in redis until their lease ends");
        }
    }

    /// From here on Redis listens to this epoch alone.
    async fn join(&mut self) -> Result<(), Arc<str>> {
        self.epoch += 1;
        let anew = self.table.book.lock().is_anew();
        let mut pipeline = Commands::new();
        pipeline.add_command(self.script.join(self.epoch, anew));
        let answers = self.ask(&pipeline).await?;
        let created = match answers.into_iter().next() {
            Some(Ok(Value::Int(created))) => created == 1,
            Some(Err(error)) => return Err(advise(explain(&self.advice, &error))),
            Some(Ok(_)) | None => return Err(nonsense()),
        };
        if self.table.change(|book| book.joined(created)) {
            tracing::info!("sockets per user are limited in the whole cluster again");
        }
        Ok(())
    }

    /// Speaks until something fails; returns what.
    async fn serve(&mut self, failures: &mut u32) -> Arc<str> {
        let mut renew_at = Instant::now() + self.renewal;
        loop {
            let batch = self.table.book.lock().next_batch();
            let renews = renew_at <= Instant::now();
            if batch.is_empty() && !renews {
                tokio::select! {
                    () = self.table.changed.notified() => {}
                    () = self.table.doubted.notified() => renew_at = Instant::now(),
                    () = sleep_until(renew_at) => {}
                }
                continue;
            }
            if renews {
                renew_at = Instant::now() + self.renewal;
            }
            if let Err(reason) = self.exchange(renews, batch).await {
                return reason;
            }
            *failures = 0;
        }
    }

    /// Says one batch and takes the answers.
    async fn exchange(&mut self, renews: bool, mut batch: Batch) -> Result<(), Arc<str>> {
        let mut pipeline = Commands::new();
        if renews {
            pipeline.add_command(self.script.renew(self.epoch, &self.known));
        }
        if !batch.writes.is_empty() {
            pipeline.add_command(self.script.write(self.epoch, &batch.writes));
        }
        for (user, number) in &batch.claims {
            let limit = self.table.limit;
            pipeline.add_command(self.script.claim(self.epoch, user, *number, limit));
        }
        let answered = match self.ask(&pipeline).await {
            Ok(answers) => self.take(renews, &mut batch, answers),
            Err(reason) => Err(reason),
        };
        if answered.is_err() {
            self.table.change(|book| book.failed(batch));
        }
        answered
    }

    /// Runs commands, on a new connection when there is none that works.
    async fn ask(&mut self, commands: &Commands) -> Result<Vec<RedisResult<Value>>, Arc<str>> {
        let mut link = match self.link.take().filter(|link| !link.is_dead()) {
            Some(link) => link,
            None => {
                let connecting = self.links.connect().await;
                connecting.map_err(|error| explain(&self.advice, &error))?
            }
        };
        let answers = link.run(commands).await;
        // After an error, or cancelled, it is of no further use.
        let answers = answers.map_err(|error| explain(&self.advice, &error))?;
        self.link = Some(link);
        Ok(answers)
    }

    /// Takes the answers to a batch, in its order, and out of it what is answered.
    fn take(
        &mut self,
        renews: bool,
        batch: &mut Batch,
        answers: Vec<RedisResult<Value>>,
    ) -> Result<(), Arc<str>> {
        let mut answers = answers.into_iter();
        let mut next = || match answers.next() {
            Some(answer) => answer.map_err(|error| advise(explain(&self.advice, &error))),
            None => Err(nonsense()),
        };
        if renews {
            self.known = text(&next()?).ok_or_else(nonsense)?.to_owned();
            self.table.change(|book| {
                for (user, number) in replaced(&self.known) {
                    book.lose(user, number);
                }
            });
        }
        if !batch.writes.is_empty() {
            next()?;
            batch.writes.clear();
        }
        while let Some((user, number)) = batch.claims.front() {
            let verdict = verdict(&next()?).ok_or_else(nonsense)?;
            self.table
                .change(|book| book.answered(user, *number, verdict));
            batch.claims.pop_front();
        }
        Ok(())
    }
}

fn nonsense() -> Arc<str> {
    "redis gave an answer that makes no sense".into()
}
