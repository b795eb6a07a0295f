//! What the publisher knows beside the connection: which lists live long enough, what was taken lately, and what it said already.

use std::sync::{Arc, Weak};

use tokio::time::Instant;

use super::super::pipeline::{Pipeline, PublishReply, Unusable};
use super::super::publication::Publication;
use super::acknowledged::Acknowledged;
use super::batch::{Again, Batch};
use super::keeper::EVICTS;
use super::refresh::Refreshes;
use crate::bus::{Listener, wire};

#[derive(Debug, Default)]
pub(in crate::bus::redis) struct AppendState {
    refreshes: Refreshes,
    acknowledged: Acknowledged,
    said_that_it_evicts: bool,
    said_that_it_refuses: bool,
    /// What another process lost, until it is told.
    rolled_back: Option<u64>,
}

impl AppendState {
    /// Makes a connection keep, if it does not yet; why it cannot. What another process lost is told.
    pub(in crate::bus::redis) async fn prepare(
        &mut self,
        open: &mut Pipeline,
        listener: Option<&Weak<dyn Listener>>,
    ) -> Result<Option<Arc<str>>, Unusable> {
        if open.keeper().is_some() {
            return Ok(None);
        }
        self.refreshes.forget();
        let keeper = match open.prepare().await? {
            Ok(keeper) => keeper,
            Err(reason) => {
                if !self.said_that_it_refuses {
                    self.said_that_it_refuses = true;
                    tracing::warn!(%reason, "redis does not keep what is sent: what should be kept fails until it does");
                }
                return Ok(Some(reason));
            }
        };
        self.said_that_it_refuses = false;
        if keeper.may_evict && !self.said_that_it_evicts {
            self.said_that_it_evicts = true;
            tracing::warn!("{EVICTS}");
        }
        if let Some((before, clocks)) = self.acknowledged.of_another(keeper.run) {
            let mut lost = 0;
            for clock in clocks {
                let end = open.end_of(before, &clock).await?;
                lost += self.acknowledged.lost(&clock, end);
            }
            *self.rolled_back.get_or_insert_default() += lost;
        }
        if !open.spools {
            self.tell_rolled_back(listener, 0);
        }
        Ok(None)
    }

    /// Tells what another process lost, without what will be kept again.
    pub(in crate::bus::redis) fn tell_rolled_back(
        &mut self,
        listener: Option<&Weak<dyn Listener>>,
        again: u64,
    ) {
        if let Some(lost) = self.rolled_back.take()
            && let Some(listener) = listener.and_then(Weak::upgrade)
        {
            listener.rolled_back(lost.saturating_sub(again));
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
        let (mut batch, mut again) = (Batch::default(), Again::default());
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
