//! What the publisher knows beside the connection: which lists live long enough, what was taken lately, and what it said already.

use std::sync::{Arc, Weak};

use tokio::time::Instant;

use super::super::pipeline::{Pipeline, PublishReply, Unusable};
use super::super::publication::Publication;
use super::acknowledged::Acknowledged;
use super::batch::Batch;
use super::keeper::EVICTS;
use super::refresh::Refreshes;
use crate::bus::Listener;

#[derive(Debug, Default)]
pub(in crate::bus::redis) struct AppendState {
    refreshes: Refreshes,
    acknowledged: Acknowledged,
    said_that_it_evicts: bool,
    said_that_it_refuses: bool,
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
            if let Some(listener) = listener.and_then(Weak::upgrade) {
                listener.rolled_back(lost);
            }
        }
        Ok(None)
    }

    /// Adds what is to be published to a pipeline, in order: what is kept and follows what is kept in one command.
    pub(in crate::bus::redis) async fn write(
        &mut self,
        open: &mut Pipeline,
        publications: &[Publication],
        refused: Option<&Arc<str>>,
    ) -> Result<(), Unusable> {
        let now = Instant::now();
        let mut batch = Batch::default();
        for publication in publications {
            match (&publication.keep, refused) {
                (None, _) => {
                    batch.append(open).await?;
                    for channel in publication.part() {
                        open.add(channel, &publication.envelope).await?;
                    }
                }
                (Some(keeping), Some(reason)) => {
                    open.refuse(&keeping.clock, publication.part().len(), reason);
                }
                (Some(_), None) => {
                    let mut from = 0;
                    while !batch.add(publication, &mut from, &mut self.refreshes, now) {
                        batch.append(open).await?;
                    }
                }
            }
        }
        batch.append(open).await
    }

    /// What became of it: what is kept is remembered for a while.
    pub(in crate::bus::redis) fn took(&mut self, open: &mut Pipeline, replies: &[PublishReply]) {
        if replies.iter().any(Result::is_err) {
            self.refreshes.forget();
        }
        for (run, clock, number) in open.take_kept() {
            self.acknowledged.add(run, &clock, number);
        }
    }
}
