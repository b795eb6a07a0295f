//! When an identity ends.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::moment::Moment;
use crate::model::millis;

/// One reading of both clocks: the monotonic one stands still while a machine sleeps, the wall clock may be
/// corrected.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) now: Instant,
    /// Milliseconds since 1970.
    pub(crate) wall: u64,
}

impl Times {
    pub(crate) fn now() -> Self {
        Self {
            now: Instant::now(),
            wall: millis::since_1970(SystemTime::now()),
        }
    }
}

/// Kept for every socket, so it is small.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expiry {
    at: Moment,
    wall: u64,
}

impl Expiry {
    pub(crate) fn at(time: SystemTime, clock: Times) -> Self {
        let wall = millis::since_1970(time);
        let left = Duration::from_millis(wall.saturating_sub(clock.wall));
        Self {
            at: clock
                .now
                .checked_add(left)
                .map_or(Moment::NEVER, Moment::from),
            wall,
        }
    }

    /// As the app said it.
    pub(crate) fn time(&self) -> Option<SystemTime> {
        millis::at(self.wall)
    }

    /// Whichever clock says so first.
    pub(crate) fn is_over(&self, clock: Times) -> bool {
        self.wall <= clock.wall || self.at <= clock.now.into()
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn later(clock: Times, monotonic: Duration, wall: Duration) -> Times {
        Times {
            now: clock.now + monotonic,
            wall: clock.wall + wall.as_millis() as u64,
        }
    }

    #[test]
    fn whichever_clock_says_so_first_ends_it() {
        let start = Times::now();
        let expiry = Expiry::at(UNIX_EPOCH + Duration::from_millis(start.wall) + HOUR, start);
        let almost = HOUR - Duration::from_millis(1);
        let said = UNIX_EPOCH + Duration::from_millis(start.wall) + HOUR;
        assert_eq!(expiry.time(), Some(said));
        assert!(!expiry.is_over(later(start, almost, almost)));
        assert!(expiry.is_over(later(start, HOUR, HOUR)));
        let (slept, set_back) = (Duration::from_secs(1), Duration::ZERO);
        assert!(
            expiry.is_over(later(start, slept, HOUR)),
            "the machine slept"
        );
        assert!(
            expiry.is_over(later(start, HOUR, set_back)),
            "the clock was set back"
        );
    }

    #[test]
    fn a_time_past_is_over_and_one_too_far_off_is_never() {
        let start = Times::now();
        assert!(Expiry::at(UNIX_EPOCH, start).is_over(start));
        assert!(Expiry::at(UNIX_EPOCH - HOUR, start).is_over(start));
        let never = UNIX_EPOCH + Duration::from_secs(i64::MAX as u64);
        assert!(!Expiry::at(never, start).is_over(later(start, HOUR, HOUR)));
    }

    #[test]
    fn it_is_small() {
        assert_eq!(size_of::<Option<Expiry>>(), 16);
    }
}
