//! How a socket is handed what is kept: once, in the order of the numbers, and behind what its client missed.

use super::core::{Core, Now};
use super::life::Life;
use super::outcome::{Collected, Pushed};
use super::resuming::{Numbered, NumberedFate, Resuming};
use crate::model::close::reason;
use crate::model::limits::{OutboxLimits, SlowConsumer};
use crate::model::manner::Manner;
use crate::ws::SharedWriter;
use crate::ws::frame::Frame;

impl<W: SharedWriter> Core<W> {
    /// From now on what is kept waits, until it is [released](Self::release).
    pub(super) fn hold(&mut self, resuming: Resuming) {
        if let Life::Open = self.life {
            self.life = Life::Resuming(Box::new(resuming));
        }
    }

    /// [Collects](Self::collect) what is kept. Nothing of it is dropped for a client that may come back for it: it ends as a slow
    /// consumer, and comes back.
    pub(super) fn collect_numbered(
        &mut self,
        numbered: &Numbered<'_>,
        manner: &Manner,
        limits: &OutboxLimits,
        now: impl Now,
    ) -> Collected {
        let Some(resuming) = self.life.resuming() else {
            return self.collect(numbered.frame, manner, limits, now);
        };
        let limits = OutboxLimits {
            policy: SlowConsumer::Close,
            ..*limits
        };
        let mut pushed = Pushed::Known;
        match resuming.came(numbered) {
            NumberedFate::Known => {}
            NumberedFate::Held if resuming.held() <= limits.messages.saturating_mul(HELD) => {
                pushed = Pushed::Taken;
            }
            NumberedFate::Held => {
                let lost = resuming.held();
                self.close(reason::SLOW, now);
                pushed = Pushed::Overflowed(lost);
            }
            NumberedFate::Now(frames) => {
                for frame in frames {
                    pushed = self.collect_as_it_is(&frame, &limits, now);
                    if !pushed.is_taken() {
                        break;
                    }
                }
                return Collected {
                    pushed,
                    wants_flush: pushed.is_taken() && !std::mem::replace(&mut self.due.flush, true),
                };
            }
        }
        Collected {
            pushed,
            wants_flush: false,
        }
    }

    fn collect_as_it_is(&mut self, frame: &Frame, limits: &OutboxLimits, now: impl Now) -> Pushed {
        self.enqueue(frame, &Manner::InTurn, limits, now)
    }

    /// What was missed is known: what is to be said by that, then everything as it comes.
    pub(super) fn release(&mut self, say: impl FnOnce(&mut Resuming) -> Vec<Frame>) {
        let Some(resuming) = self.life.resuming() else {
            return;
        };
        let frames = say(resuming);
        if !frames.is_empty() {
            frames.into_iter().for_each(|frame| self.queue.push(frame));
            self.leave_to_task();
        }
    }

    /// As a client gets it that is told positions.
    pub(super) fn worded(&mut self, frame: &Frame) -> Option<Frame> {
        Some(self.life.resuming()?.worded(frame))
    }
}

/// So many times the outbox waits until what was missed is read.
const HELD: usize = 4;
