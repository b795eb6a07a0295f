//! How far a socket has come. It only goes forward, and the first reason for which it ends stays the reason.
//!
//! ```text
//!    Open
//!      │ its client may come back: held before the first message
//!      ▼
//!    Resuming
//!
//!               close, overflow, expiry, the client's Close
//!    either ───────────────────────────────────────────────▶ Ending ──┐
//!      │                                                       │      │
//!      │ silent, stalled, vanished, shutdown                   │ time is up, vanished, shutdown
//!      │                                                       ▼      │
//!      └─────────────────────────────────────────────────────▶ Cut    │ both sides have said Close
//!                                                              │      │
//!                                                              ▼      ▼
//!                                                              Finished
//! ```
//!
//! *Resuming* is open, with what [`Resuming`] has beside: a state of its own, so that a socket that ends gives that back,
//! and one without it pays for nothing.
//!
//! Two ways lead to the end, since there are two kinds of it. *Ending* is polite: what is queued and the Close
//! frame still leave, and the client has until a deadline to answer. *Cut* is for those with whom nobody can speak any
//! more: nothing is written, and the socket's task drops the stream. Only the task may say that it is *Finished*, since
//! it owns the stream; whoever waits for the end of a socket waits for that.

use std::mem::replace;
use std::time::Duration;

use tokio::time::Instant;

use super::resuming::Resuming;
use crate::local::CLOSING;
use crate::local::heartbeat::discounted;
use crate::model::close::Close;

/// Boxed, since nearly all sockets have none.
pub(super) enum Life {
    Open,
    /// Its client may come back and go on where it was.
    Resuming(Box<Resuming>),
    /// The Close frame is queued or written, and the client's is awaited until then.
    Ending(Box<EndingClose>),
    /// Nothing is written any more: the stream is to be dropped.
    Cut(Box<Close>),
    /// The stream is gone.
    Finished(Box<Close>),
}

/// The client has until then to answer.
pub(super) struct EndingClose {
    close: Close,
    by: Instant,
}

impl Life {
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Open | Self::Resuming(_))
    }

    /// Whether nothing is written any more.
    pub(super) fn is_cut(&self) -> bool {
        matches!(self, Self::Cut(_) | Self::Finished(_))
    }

    /// What ended it, once something has.
    pub(super) fn close(&self) -> Option<&Close> {
        match self {
            Self::Open | Self::Resuming(_) => None,
            Self::Ending(ending) => Some(&ending.close),
            Self::Cut(close) | Self::Finished(close) => Some(close),
        }
    }

    pub(super) fn resuming(&mut self) -> Option<&mut Resuming> {
        match self {
            Self::Resuming(resuming) => Some(resuming),
            _ => None,
        }
    }

    /// Begins the closing handshake of an open socket.
    pub(super) fn end(&mut self, close: Close, now: Instant) {
        debug_assert!(self.is_open(), "the first close wins");
        let by = now + CLOSING;
        *self = Self::Ending(Box::new(EndingClose { close, by }));
    }

    /// Gives the socket up: for the reason why it was ending already, or for this one. Whether it had not been before.
    pub(super) fn cut(&mut self, close: Close) -> bool {
        if self.is_cut() {
            return false;
        }
        let close = self.take_close().unwrap_or_else(|| Box::new(close));
        *self = Self::Cut(close);
        true
    }

    /// The stream is gone: for the reason why it ended, or for this one.
    pub(super) fn finish(&mut self, close: Close) {
        let close = self.take_close().unwrap_or_else(|| Box::new(close));
        *self = Self::Finished(close);
    }

    /// Cuts what has been ending for too long. Whether it did so.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        if !matches!(self, Self::Ending(ending) if ending.by <= now) {
            return false;
        }
        if let Some(close) = self.take_close() {
            *self = Self::Cut(close);
        }
        true
    }

    /// The process slept: the client could not answer meanwhile.
    pub(super) fn discount(&mut self, slept: Duration, now: Instant) {
        if let Self::Ending(ending) = self {
            ending.by = discounted(ending.by, slept, now + CLOSING);
        }
    }

    fn take_close(&mut self) -> Option<Box<Close>> {
        match replace(self, Self::Open) {
            Self::Open | Self::Resuming(_) => None,
            Self::Ending(ending) => Some(Box::new(ending.close)),
            Self::Cut(close) | Self::Finished(close) => Some(close),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::close::reason;

    /// What may happen to it, each with a reason of its own where it has one.
    const STEPS: [fn(&mut Life, Instant); 4] = [
        |life, now| {
            if life.is_open() {
                life.end(reason::EXPIRED, now);
            }
        },
        |life, _| {
            life.cut(reason::SILENT);
        },
        |life, _| life.finish(reason::DROPPED),
        |life, now| {
            life.expire(now + CLOSING);
        },
    ];

    fn stage(life: &Life) -> usize {
        match life {
            Life::Open | Life::Resuming(_) => 0,
            Life::Ending(_) => 1,
            Life::Cut(_) => 2,
            Life::Finished(_) => 3,
        }
    }

    #[test]
    fn it_only_goes_forward_and_the_first_reason_stays() {
        let now = Instant::now();
        for path in 0..4usize.pow(4) {
            let mut life = Life::Open;
            let (mut before, mut first) = (0, None);
            for turn in 0..4u32 {
                STEPS[path / 4usize.pow(turn) % 4](&mut life, now);
                assert!(stage(&life) >= before, "back by path {path}");
                before = stage(&life);
                first = first.or_else(|| life.close().cloned());
                assert_eq!(
                    life.close(),
                    first.as_ref(),
                    "another reason by path {path}"
                );
                assert_eq!(life.is_open(), first.is_none());
            }
        }
    }

    #[test]
    fn the_client_has_its_time_to_answer_and_no_more() {
        let start = Instant::now();
        let mut life = Life::Open;
        assert!(!life.expire(start + CLOSING), "nothing to answer");
        life.end(reason::EXPIRED, start);
        assert!(!life.expire(start + CLOSING - Duration::from_millis(1)));
        let slept = Duration::from_secs(100);
        let woken = start + slept;
        life.discount(slept, woken);
        assert!(!life.expire(woken), "nobody could answer meanwhile");
        assert!(life.expire(woken + CLOSING));
        assert_eq!(life.close(), Some(&reason::EXPIRED));
    }
}
