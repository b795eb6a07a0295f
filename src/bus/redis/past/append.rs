//! What the publisher knows beside the connection: which lists live long enough, what was taken lately, and what it said already.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::super::pipeline::{Ended, Pipeline, PublishReply, Unusable};
use super::super::publication::Publication;
use super::acknowledged::Acknowledged;
use super::batch::{Again, AppendBatch};
use super::keeper::{EVICTS, Keeper};
use super::refresh::Refreshes;
use crate::bus::{Listener, wire};
use crate::model::history::mark::Run;
use crate::model::partition::Partition;

#[derive(Debug, Default)]
pub(in crate::bus::redis) struct AppendState {
    refreshes: Refreshes,
    acknowledged: Acknowledged,
    said_that_it_evicts: bool,
    said_that_it_refuses: bool,
    /// Something was taken by a run of which it is to be asked where it ended.
    asks: bool,
    /// How many messages another process lost, the first of them taken about then, until it is told.
    rolled_back: Option<(u64, Option<Instant>)>,
}

impl AppendState {
    /// What a partition had that departs, and what one has that comes here: before anything is kept of that, it is asked how much is
    /// lost.
    pub(in crate::bus::redis) fn take_out(&mut self, partition: Partition) -> Acknowledged {
        self.acknowledged.take_out(partition)
    }

    pub(in crate::bus::redis) fn take_in(&mut self, acknowledged: Acknowledged) {
        self.acknowledged.take_in(acknowledged);
        self.asks = true;
    }

    /// Whether it is to be asked what is lost.
    pub(in crate::bus::redis) fn asks(&self) -> bool {
        self.asks
    }

    /// Makes a connection keep, if it does not yet; why it cannot. What another process lost is told.
    pub(in crate::bus::redis) async fn prepare(
        &mut self,
        open: &mut Pipeline,
        listener: Option<&Weak<dyn Listener>>,
    ) -> Result<Option<Arc<str>>, Unusable> {
        let keeper = match open.keeper() {
            Some(_) if !self.asks => return Ok(None),
            Some(keeper) => keeper,
            None => match self.begin(open).await? {
                Ok(keeper) => keeper,
                Err(reason) => return Ok(Some(reason)),
            },
        };
        self.ask(open, keeper.run).await?;
        if !open.spools {
            self.tell_rolled_back(listener, 0);
        }
        Ok(None)
    }

    async fn begin(&mut self, open: &mut Pipeline) -> Result<Result<Keeper, Arc<str>>, Unusable> {
        self.refreshes.forget();
        let keeper = match open.prepare().await? {
            Ok(keeper) => keeper,
            Err(reason) => {
                if !self.said_that_it_refuses {
                    self.said_that_it_refuses = true;
                    tracing::warn!(%reason, "redis does not keep what is sent: what should be kept fails until it does");
                }
                return Ok(Err(reason));
            }
        };
        self.said_that_it_refuses = false;
        if keeper.may_evict && !self.said_that_it_evicts {
            self.said_that_it_evicts = true;
            tracing::warn!("{EVICTS}");
        }
        Ok(Ok(keeper))
    }

    /// Asks where other runs ended that took something.
    async fn ask(&mut self, open: &mut Pipeline, run: Run) -> Result<(), Unusable> {
        self.asks = false;
        let others = self.acknowledged.of_others(run);
        if others.is_empty() {
            return Ok(());
        }
        // Before the numbers that are given then.
        let asked = Instant::now();
        let (ends, _) = open.ask_ends(&others).await?;
        for (of, end) in others.into_iter().zip(ends) {
            let Some(Ended { at, now }) = end else {
                // Another primary knows by now, or this one in a moment.
                self.asks = true;
                continue;
            };
            let lost = self.acknowledged.lost(&of, at);
            let age = lost.first.map(|first| now.0.saturating_sub(first.0));
            let since = age.and_then(|age| asked.checked_sub(Duration::from_micros(age)));
            let (messages, first) = self.rolled_back.get_or_insert_default();
            *messages += lost.messages;
            *first = first.take().into_iter().chain(since).min();
        }
        Ok(())
    }

    /// Tells what another process lost, without what will be kept again.
    pub(in crate::bus::redis) fn tell_rolled_back(
        &mut self,
        listener: Option<&Weak<dyn Listener>>,
        again: u64,
    ) {
        if let Some((messages, since)) = self.rolled_back.take()
            && let Some(listener) = listener.and_then(Weak::upgrade)
        {
            listener.rolled_back(messages.saturating_sub(again), since);
        }
    }

    /// Adds what is to be published to a pipeline, in order: what is kept and follows what is kept in one command.
    pub(in crate::bus::redis) async fn write(
        &mut self,
        open: &mut Pipeline,
        publications: &[Publication],
        refused: Option<&Arc<str>>,
    ) -> Result<(), Unusable> {
        let now = Instant::now();
        let (mut batch, mut again) = (AppendBatch::default(), Again::default());
        for publication in publications {
            match (&publication.keep, refused) {
                (None, _) => {
                    batch.append(open).await?;
                    again.append(open).await?;
                    let stamp = publication.era.map(wire::stamp);
                    let stamp = stamp.as_ref().map_or(&[][..], |stamp| stamp);
                    for channel in publication.part() {
                        open.add(channel, (stamp, &publication.envelope)).await?;
                    }
                }
                (Some(keeping), Some(reason)) => {
                    open.refuse(&keeping.clock, publication.part().len(), reason);
                }
                (Some(_), None) if publication.is_in_doubt() => {
                    batch.append(open).await?;
                    let mut from = 0;
                    while !again.add(publication, &mut from) {
                        again.append(open).await?;
                    }
                }
                (Some(_), None) => {
                    again.append(open).await?;
                    let mut from = 0;
                    while !batch.add(publication, &mut from, &mut self.refreshes, now) {
                        batch.append(open).await?;
                    }
                }
            }
        }
        again.append(open).await?;
        batch.append(open).await
    }

    /// What became of it: what is kept is remembered for a while.
    pub(in crate::bus::redis) fn took(
        &mut self,
        open: &mut Pipeline,
        replies: &[PublishReply],
        listener: Option<&Weak<dyn Listener>>,
    ) {
        if replies.iter().any(Result::is_err) {
            self.refreshes.forget();
        }
        for (run, clock, number) in open.take_kept() {
            self.acknowledged.add(run, &clock, number);
        }
        let again = open.take_again();
        if again > 0
            && let Some(listener) = listener.and_then(Weak::upgrade)
        {
            listener.kept_again(again);
        }
    }
}
