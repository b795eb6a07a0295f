//! A moment as every socket keeps several: half as large as an `Instant`, which tells no less.

use std::num::NonZeroU64;
use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

/// Nanoseconds before and after [`START`], which is in the middle; so none is zero, and `Option` costs nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(NonZeroU64);

/// Any will do: the first at which somebody asked.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);
const MIDDLE: u64 = 1 << 63;

impl Moment {
    /// Too far off to be named: 292 years.
    pub(crate) const NEVER: Self = Self(NonZeroU64::MAX);
}

impl From<Instant> for Moment {
    fn from(at: Instant) -> Self {
        let since = |earlier: Instant, later: Instant| {
            let since = later.saturating_duration_since(earlier).as_nanos();
            u64::try_from(since).unwrap_or(u64::MAX)
        };
        let nanos = match at >= *START {
            true => MIDDLE.saturating_add(since(*START, at)),
            false => MIDDLE.saturating_sub(since(at, *START)),
        };
        Self(NonZeroU64::new(nanos).unwrap_or(NonZeroU64::MIN))
    }
}

impl From<Moment> for Instant {
    fn from(moment: Moment) -> Self {
        match moment.0.get().checked_sub(MIDDLE) {
            Some(after) => *START + Duration::from_nanos(after),
            None => *START - Duration::from_nanos(MIDDLE - moment.0.get()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_what_an_instant_tells_before_and_after_the_start() {
        let start = *START;
        let times = [0, 1, 999, 1_000_000_007].map(Duration::from_nanos);
        for time in times {
            for at in [start + time, start - time] {
                assert_eq!(Instant::from(Moment::from(at)), at);
            }
            assert!(Moment::from(start - time) <= Moment::from(start + time));
            assert!(Moment::from(start + time) < Moment::NEVER);
        }
        assert_eq!(size_of::<Option<Moment>>(), 8);
    }
}
