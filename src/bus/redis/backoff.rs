//! How long to wait before the next connection.

use std::time::Duration;

use tokio::time::Instant;

/// Reconnecting: the first pause, doubled each time up to the longest, and a random part of it
/// taken, so that a fleet of nodes does not return in one moment.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A link that worked for so long is no part of the trouble before it: as long as the longest pause, so that
/// what dies over and over again costs Redis no more than what cannot be reached.
const HELD: Duration = LONGEST_PAUSE;

/// Counts links that failed. That one works once proves little: whatever ends it may come again, so only one
/// that held begins the count anew.
#[derive(Debug)]
pub(super) struct Backoff {
    longest: Duration,
    failures: u32,
    works_since: Option<Instant>,
}

impl Backoff {
    pub(super) fn new(longest: Duration) -> Self {
        Self {
            longest,
            failures: 0,
            works_since: None,
        }
    }

    /// The link is of use. Said as often as it is proved.
    pub(super) fn works(&mut self, now: Instant) {
        self.works_since.get_or_insert(now);
    }

    /// The link ended, or there was none; how long to wait before the next, `random` in 0.0..1.0.
    pub(super) fn ended(&mut self, now: Instant, random: f64) -> Duration {
        let since = self.works_since.take();
        if since.is_some_and(|since| now - since >= HELD) {
            self.failures = 0;
        }
        let pause = pause(self.failures, 1.0).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        pause.mul_f64(random)
    }
}

/// The pause before the next attempt; `random` in 0.0..1.0.
pub(super) fn pause(failures: u32, random: f64) -> Duration {
    let longest = FIRST_PAUSE
        .saturating_mul(1 << failures.min(16))
        .min(LONGEST_PAUSE);
    longest.mul_f64(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn pauses_grow_to_five_seconds_and_are_spread() {
        assert_eq!(pause(0, 1.0), 50 * MS);
        assert_eq!(pause(3, 1.0), 400 * MS);
        assert_eq!(pause(3, 0.5), 200 * MS);
        assert_eq!(pause(u32::MAX, 1.0), LONGEST_PAUSE);
    }

    #[test]
    fn only_a_link_that_held_begins_anew() {
        let mut backoff = Backoff::new(LONGEST_PAUSE);
        let mut now = Instant::now();
        for pause in [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            backoff.works(now);
            now += 20 * MS;
            backoff.works(now);
            assert_eq!(backoff.ended(now, 1.0), pause * MS);
        }
        backoff.works(now);
        now += HELD;
        assert_eq!(backoff.ended(now, 1.0), 50 * MS);
        assert_eq!(
            backoff.ended(now, 1.0),
            100 * MS,
            "what never worked did not hold"
        );
    }

    #[test]
    fn a_shorter_longest_pause_is_kept() {
        let mut backoff = Backoff::new(150 * MS);
        let pauses = [(); 4].map(|()| backoff.ended(Instant::now(), 1.0));
        assert_eq!(pauses, [50, 100, 150, 150].map(|pause| pause * MS));
    }
}
