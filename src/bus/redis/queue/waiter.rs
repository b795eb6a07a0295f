//! Who waits for a publication, until Redis has answered for all of it.

use std::mem::{replace, take};
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Queue;
use super::permit::{Permit, Units};
use crate::bus::redis::past::room;
use crate::bus::redis::publication::{PublicationAnswer, PublicationTold, Receivers, Taken};
use crate::model::error::PublishError;

/// Who waits for a publication.
#[derive(Debug)]
pub(in crate::bus::redis) struct Waiter {
    pub(in crate::bus::redis) deadline: Instant,
    /// Its place among all that came: its first deadline, since all of a node are equally patient.
    pub(in crate::bus::redis) place: Instant,
    /// Taken by the first answer.
    reply: Option<WaiterReply>,
    /// What Redis said so far.
    pub(in crate::bus::redis) sum: Receivers,
    /// A part may have been sent.
    pub(in crate::bus::redis) begun: bool,
    /// Given back when Redis has answered or the connection is given up.
    pub(in crate::bus::redis) permit: Permit,
    spooling: Spooling,
}

#[derive(Debug)]
enum WaiterReply {
    /// To whoever publishes.
    Now(oneshot::Sender<PublicationAnswer>),
    /// To whoever was told that it waits.
    Later(oneshot::Sender<Receivers>),
}

/// Whether it waits for Redis to be back.
#[derive(Debug)]
enum Spooling {
    Never,
    Perhaps(room::Claim),
    Waits(Box<room::RoomPermit>),
}

impl Waiter {
    pub(in crate::bus::redis) fn new(
        deadline: Instant,
        reply: oneshot::Sender<PublicationAnswer>,
        permit: Permit,
    ) -> Self {
        Self {
            deadline,
            place: deadline,
            reply: Some(WaiterReply::Now(reply)),
            sum: Ok(Taken::default()),
            begun: false,
            permit,
            spooling: Spooling::Never,
        }
    }

    /// Of what nobody waits for; it may be kept all the same.
    pub(in crate::bus::redis) fn nobody(
        queue: &Arc<Queue>,
        deadline: Instant,
        permit: Option<room::RoomPermit>,
    ) -> Self {
        Self {
            deadline,
            place: deadline,
            reply: None,
            sum: Ok(Taken::default()),
            begun: false,
            permit: Permit {
                units: Units::default(),
                queue: queue.clone(),
            },
            spooling: permit.map_or(Spooling::Never, |permit| Spooling::Waits(Box::new(permit))),
        }
    }

    /// It may wait for Redis to be back.
    pub(in crate::bus::redis) fn may_wait(&mut self, claim: impl FnOnce() -> room::Claim) {
        if let Spooling::Never = self.spooling {
            self.spooling = Spooling::Perhaps(claim());
        }
    }

    /// It waits longer than whoever publishes, who is told so; or that there is no room for it. Whether it does.
    pub(in crate::bus::redis) fn begins_to_wait(&mut self) -> bool {
        let claim = match replace(&mut self.spooling, Spooling::Never) {
            Spooling::Perhaps(claim) if self.reply.is_some() => claim,
            waits @ Spooling::Waits(_) => {
                self.spooling = waits;
                return true;
            }
            _ => return false,
        };
        let wait = claim.wait();
        match claim.take() {
            Err(full) => {
                self.fail(&full);
                false
            }
            Ok(permit) => {
                let (settle, settled) = oneshot::channel();
                if let Some(WaiterReply::Now(reply)) =
                    self.reply.replace(WaiterReply::Later(settle))
                {
                    // Fails only when the sender gave up: it is sent all the same.
                    let _ = reply.send(Ok(PublicationTold {
                        later: Some(settled),
                        ..PublicationTold::default()
                    }));
                }
                self.deadline += wait;
                self.spooling = Spooling::Waits(Box::new(permit));
                // What waits in the queue has room again.
                drop(Permit {
                    units: take(&mut self.permit.units),
                    queue: self.permit.queue.clone(),
                });
                true
            }
        }
    }

    /// Whether it waits for Redis to be back.
    pub(in crate::bus::redis) fn waits(&self) -> bool {
        matches!(self.spooling, Spooling::Waits(_))
    }

    /// Whether somebody still wants it.
    pub(in crate::bus::redis) fn is_there(&self) -> bool {
        self.reply.is_some() || self.waits()
    }

    pub(in crate::bus::redis) fn answer(&mut self, published: Receivers) {
        match (replace(&mut self.spooling, Spooling::Never), &published) {
            (Spooling::Waits(permit), Ok(_)) => permit.settle(),
            (Spooling::Waits(permit), Err(error)) => permit.fail(&error.reason),
            _ => {}
        }
        // Each fails only when the sender gave up.
        match self.reply.take() {
            Some(WaiterReply::Now(reply)) => {
                let _ = reply.send(published.map(PublicationTold::from));
            }
            Some(WaiterReply::Later(settle)) => {
                let _ = settle.send(published);
            }
            None => {}
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
