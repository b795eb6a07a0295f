//! How a node speaks of its seats, so that Redis knows what is stale and what it has lost.
//!
//! Whatever was said before an epoch began is stale when it arrives. What was confirmed must be there: a Redis that knows
//! only something older has lost what came after it.

use tokio::time::Instant;

use super::script::Stamp;

#[derive(Debug, Default)]
pub(super) struct Voice {
    /// Raised whenever something that was said may still be on its way.
    epoch: u64,
    /// How many things were said: each a number of its own, since a replica may have one of a pipeline and not the next.
    said: u64,
    /// The last of them that was answered, or given up, and the last that Redis has.
    heard: u64,
    confirmed: u64,
    /// Redis' clock, in milliseconds, and when it was so late.
    clock: Option<(u64, Instant)>,
}

impl Voice {
    /// From here on Redis listens to this epoch alone.
    pub(super) fn begin_epoch(&mut self) {
        self.epoch += 1;
        // Of what is stale no answer is taken.
        self.heard = self.said;
    }

    /// One thing more is said.
    pub(super) fn says(&mut self) {
        self.said += 1;
    }

    /// The next of them is answered.
    pub(super) fn hears(&mut self) {
        self.heard += 1;
    }

    /// Redis has what was answered last.
    pub(super) fn confirm(&mut self) {
        self.confirmed = self.heard;
    }

    /// It is so late at Redis, in milliseconds.
    pub(super) fn set_clock(&mut self, millis: u64, now: Instant) {
        self.clock = Some((millis, now));
    }

    pub(super) fn stamp(&self, now: Instant) -> Stamp {
        let elapsed = |at| now.saturating_duration_since(at).as_millis() as u64;
        Stamp {
            epoch: self.epoch,
            millis: self.clock.map_or(0, |(millis, at)| millis + elapsed(at)),
            says: self.said,
            confirmed: self.confirmed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_stamp_tells_the_epoch_what_is_confirmed_and_the_time_at_redis() {
        let (mut voice, now) = (Voice::default(), Instant::now());
        assert_eq!(voice.stamp(now).millis, 0, "it is not known");
        voice.begin_epoch();
        voice.set_clock(1000, now);
        (0..3).for_each(|_| voice.says());
        let stamp = voice.stamp(now + Duration::from_millis(7));
        assert_eq!((stamp.epoch, stamp.millis), (1, 1007));
        assert_eq!((stamp.says, stamp.confirmed), (3, 0));
        (0..2).for_each(|_| voice.hears());
        voice.confirm();
        voice.says();
        let stamp = voice.stamp(now);
        assert_eq!((stamp.says, stamp.confirmed), (4, 2));
        voice.begin_epoch();
        voice.says();
        voice.hears();
        voice.confirm();
        assert_eq!(voice.stamp(now).confirmed, 5, "what failed is not answered");
    }
}
