//! What a link says, and does when it is time.

use bytes::BytesMut;
use tokio::time::Instant;

use super::{BATCH, Event, IMPATIENT, Link, Lost, SILENCE, Stage, UNANSWERED};
use crate::bus::redis::command;
use crate::bus::redis::outstanding::{TopicRequest, Verb};

/// How the subscriptions stand.
#[derive(Debug, Clone, Copy)]
struct Stand {
    restored: bool,
    carries_nothing: bool,
    arrived: bool,
    refused: bool,
}

impl Link {
    /// What is to be written now, behind what is there already. While something is, nothing is added.
    pub(in crate::bus::redis) fn poll_transmit(&mut self, out: &mut BytesMut, now: Instant) {
        out.unsplit(std::mem::take(&mut self.greeting));
        let is_greeted = matches!(self.stage, Stage::Restoring | Stage::Proving);
        let may_write = is_greeted && out.is_empty();
        let requests = self.context.subscriptions.with(|table| {
            if table.unanswered() == 0 {
                self.answered_at = now;
            }
            let limit = match may_write && table.unanswered() <= UNANSWERED - BATCH {
                true => BATCH,
                false => 0,
            };
            table.step(now, limit)
        });
        let (channels, dialect) = (&self.context.channels, self.context.channels.dialect());
        for TopicRequest {
            verb,
            topics,
            partition,
        } in requests
        {
            let channels = topics.iter().map(|topic| channels.at(partition, topic));
            match verb {
                Verb::Subscribe => command::subscribe(out, dialect, channels),
                Verb::Unsubscribe => command::unsubscribe(out, dialect, channels),
            }
        }
    }

    /// Does what is due by now, or because something else is wanted. To be called after
    /// [`poll_transmit`](Self::poll_transmit).
    pub(in crate::bus::redis) fn handle_timeout(
        &mut self,
        now: Instant,
    ) -> Result<Option<Event<'static>>, Lost> {
        let (stand, owed, expiry) = self.context.subscriptions.with(|table| {
            let stand = Stand {
                restored: table.is_restored(),
                carries_nothing: table.carries_nothing(),
                arrived: table.has_arrived(),
                refused: table.has_refused(now),
            };
            (stand, table.unanswered() > 0, table.next_expiry())
        });
        let event = self.observe(stand, now);
        let answered_until = match self.stage {
            Stage::Login | Stage::Greeting => Some(self.opened_until),
            Stage::Restoring | Stage::Proving => owed.then_some(self.answered_at + SILENCE),
        };
        if answered_until.is_some_and(|end| end <= now) {
            return Err("redis does not answer".into());
        }
        let probe = match self.stage {
            Stage::Proving if stand.carries_nothing => {
                self.proof.begin_anew(now);
                None
            }
            Stage::Proving => match self.proof.advance(now) {
                None => return Err("the probe did not come back: redis is silent".into()),
                until => until,
            },
            _ => None,
        };
        let due = answered_until.into_iter().chain(probe).min();
        let due = due.unwrap_or(now + SILENCE);
        self.wake = expiry.map_or(due, |expiry| expiry.min(due));
        Ok(event)
    }

    /// How the subscriptions stand.
    fn observe(&mut self, stand: Stand, now: Instant) -> Option<Event<'static>> {
        let over = self.refused && !stand.refused || self.expects && stand.arrived;
        self.refused &= stand.refused;
        self.expects = !stand.arrived;
        if over {
            // What was published before proves nothing for those who were not heard.
            self.proof.begin_anew(now);
        }
        match (self.stage, stand.restored) {
            (Stage::Restoring, true) if !stand.carries_nothing => self.stage = Stage::Proving,
            (Stage::Proving, false) => {
                self.stage = Stage::Restoring;
                self.proof.begin_anew(now);
                let reason = self.because.take().unwrap_or(IMPATIENT).into();
                return Some(Event::Down { reason, deaf: true });
            }
            _ => {}
        }
        self.because = None;
        None
    }

    /// When to look again, by [`handle_timeout`](Self::handle_timeout).
    pub(in crate::bus::redis) fn poll_timeout(&self) -> Instant {
        self.wake
    }
}
