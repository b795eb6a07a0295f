//! Who waits for a pipeline.

use std::pin::pin;

use tokio::time::{Instant, timeout_at};

use super::{Backlog, LATE, UNANSWERED};
use crate::bus::redis::pipeline::Unusable;
use crate::bus::redis::queue::Waiter;
use crate::model::error::PublishError;

/// Those who wait for one pipeline, in its order.
#[derive(Debug, Default)]
pub(in crate::bus::redis) struct Waiters(pub(super) Vec<Waiter>);

impl Waiters {
    /// Waits until then, or as long as one of them does. Whoever has waited long enough is told so, and costs
    /// the others nothing.
    pub(in crate::bus::redis) async fn wait<T>(
        &mut self,
        what: impl Future<Output = Result<T, Unusable>>,
        until: Instant,
        backlog: &mut Backlog,
    ) -> Result<T, Unusable> {
        let mut what = pin!(what);
        loop {
            let end = self.deadline();
            if end.is_none() && until <= Instant::now() {
                return Err(UNANSWERED.into());
            }
            let next = [end.unwrap_or(until)]
                .into_iter()
                .chain(backlog.next_deadline());
            match timeout_at(next.min().unwrap_or(until), what.as_mut()).await {
                Ok(done) => return done,
                Err(_) => {
                    self.expire(Instant::now());
                    backlog.expire(LATE);
                }
            }
        }
    }

    /// When the first of those who still wait has waited long enough.
    pub(in crate::bus::redis) fn deadline(&self) -> Option<Instant> {
        let waits = |waiter: &&Waiter| waiter.is_there() && !waiter.waits();
        let patient = self.0.iter().filter(waits);
        patient.map(|waiter| waiter.deadline).min()
    }

    /// Tells those who have waited long enough; when the next has.
    pub(in crate::bus::redis) fn expire(&mut self, now: Instant) -> Option<Instant> {
        let late = PublishError::maybe_sent(UNANSWERED);
        for waiter in self.0.iter_mut().filter(|waiter| waiter.deadline <= now) {
            if !waiter.begins_to_wait() {
                waiter.fail(&late);
            }
        }
        self.deadline()
    }
}
