//! Who waits for a publication, until Redis has answered for all of it.

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Permit;
use crate::bus::redis::publication::{Receivers, Taken};
use crate::model::error::PublishError;

/// Who waits for a publication.
#[derive(Debug)]
pub(in crate::bus::redis) struct Waiter {
    pub(in crate::bus::redis) deadline: Instant,
    /// Taken by the first answer.
    pub(in crate::bus::redis) reply: Option<oneshot::Sender<Receivers>>,
    /// What Redis said so far.
    pub(in crate::bus::redis) sum: Receivers,
    /// A part may have been sent.
    pub(in crate::bus::redis) begun: bool,
    /// Given back when Redis has answered or the connection is given up.
    pub(in crate::bus::redis) permit: Permit,
}

impl Waiter {
    pub(in crate::bus::redis) fn new(
        deadline: Instant,
        reply: oneshot::Sender<Receivers>,
        permit: Permit,
    ) -> Self {
        Self {
            deadline,
            reply: Some(reply),
            sum: Ok(Taken::default()),
            begun: false,
            permit,
        }
    }

    pub(in crate::bus::redis) fn answer(&mut self, published: Receivers) {
        if let Some(reply) = self.reply.take() {
            // Fails only when the sender gave up.
            let _ = reply.send(published);
        }
    }

    pub(in crate::bus::redis) fn fail(&mut self, error: &PublishError) {
        let maybe_sent = error.maybe_sent || self.begun;
        self.answer(Err(PublishError {
            maybe_sent,
            ..error.clone()
        }));
    }
}
