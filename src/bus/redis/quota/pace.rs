//! When something is to be said about seats whether or not there is news.

use std::time::Duration;

use tokio::time::Instant;

/// A lease is this many renewals long.
const MARGIN: u32 = 3;
/// A node that says nothing looks this often whether Redis still has its keys: two reads, so that a lost key is
/// noticed long before the claims that wait for it are refused.
const LOOK: Duration = Duration::from_millis(250);
/// Looks until every node has noticed a loss, however busy it is.
const GRACE: u32 = 3;

#[derive(Debug, Clone)]
pub(super) struct Pace {
    /// Looks fall on whole intervals since then, so that all groups look in one round trip.
    start: Instant,
    renewal: Duration,
    look: Duration,
    due: DueTimes,
    /// Redis is reached anew, and may have forgotten the seats.
    unverified: bool,
}

#[derive(Debug, Clone)]
struct DueTimes {
    renewal: Instant,
    look: Instant,
    /// Not before.
    claims: Instant,
}

impl Pace {
    /// `patience` is how long a loss may keep a claim waiting.
    pub(super) fn new(lease: Duration, patience: Duration, now: Instant) -> Self {
        let renewal = lease / MARGIN;
        // What is lost is found, and written, before whoever waits for it gives up.
        let look = LOOK.min(renewal).min(patience / (GRACE + 1));
        Self {
            start: now,
            renewal,
            look,
            due: DueTimes {
                renewal: now,
                look: now,
                claims: now,
            },
            unverified: false,
        }
    }

    /// How long it takes at most until every node has noticed a loss.
    pub(super) fn grace(&self) -> Duration {
        self.look * GRACE
    }

    /// The lease began.
    pub(super) fn joined(&mut self, now: Instant) {
        self.due.renewal = now + self.renewal;
    }

    /// The lease is about to be renewed.
    pub(super) fn renews(&mut self, now: Instant) {
        self.due.renewal = now + self.renewal;
        self.unverified = false;
    }

    /// Redis has answered: its keys were there.
    pub(super) fn answered(&mut self, now: Instant) {
        let nanos = self.look.as_nanos().max(1);
        let since = now.saturating_duration_since(self.start).as_nanos() % nanos;
        // Less than a look, which fits.
        self.due.look = now + Duration::from_nanos((nanos - since) as u64);
    }

    /// Whether Redis still has the keys is to be found out now.
    pub(super) fn verify(&mut self) {
        self.unverified = true;
    }

    /// Nothing is claimed for so long.
    pub(super) fn put_off(&mut self, wait: Duration, now: Instant) {
        self.due.claims = now + wait;
    }

    pub(super) fn is_renewal_due(&self, now: Instant) -> bool {
        self.unverified || self.due.renewal <= now
    }

    pub(super) fn is_look_due(&self, now: Instant) -> bool {
        self.due.look <= now
    }

    pub(super) fn may_claim(&self, now: Instant) -> bool {
        self.due.claims <= now
    }

    /// When something is due without news.
    pub(super) fn timeout(&self, now: Instant) -> Instant {
        if self.unverified {
            return now;
        }
        let speaks = self.due.renewal.min(self.due.look);
        match self.may_claim(now) {
            true => speaks,
            false => speaks.min(self.due.claims),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn pace(now: Instant) -> Pace {
        Pace::new(15_000 * MS, 2500 * MS, now)
    }

    #[test]
    fn looks_are_soon_enough_for_whoever_waits() {
        let now = Instant::now();
        for (lease, patience, look) in [
            (15_000, 2500, 250),
            (600, 2500, 200),
            (15_000, 100, 25),
            (3_600_000, 1_800_000, 250),
        ] {
            let pace = Pace::new(lease * MS, patience * MS, now);
            assert_eq!(pace.grace(), 3 * look * MS);
            assert!(pace.grace() < patience * MS);
        }
        // None is so short that it divides by zero.
        Pace::new(Duration::ZERO, Duration::ZERO, now).answered(now);
    }

    #[test]
    fn all_look_in_one_moment_whenever_they_spoke() {
        let start = Instant::now();
        for (spoke, due) in [(0, 250), (1, 250), (249, 250), (250, 500), (777, 1000)] {
            let mut pace = pace(start);
            pace.joined(start);
            pace.answered(start + spoke * MS);
            assert_eq!(pace.timeout(start + spoke * MS), start + due * MS);
            assert!(!pace.is_look_due(start + (due - 1) * MS));
            assert!(pace.is_look_due(start + due * MS));
        }
    }

    #[test]
    fn a_lease_is_renewed_three_times_in_its_length_and_whenever_redis_is_reached_anew() {
        let now = Instant::now();
        let mut pace = pace(now);
        pace.joined(now);
        pace.answered(now);
        assert!(!pace.is_renewal_due(now + 4999 * MS));
        assert!(pace.is_renewal_due(now + 5000 * MS));
        pace.verify();
        assert!(pace.is_renewal_due(now));
        assert_eq!(pace.timeout(now), now);
        pace.renews(now);
        assert!(!pace.is_renewal_due(now) && pace.is_renewal_due(now + 5000 * MS));
    }

    #[test]
    fn claims_that_are_put_off_come_when_they_may() {
        let now = Instant::now();
        let mut pace = pace(now);
        pace.joined(now);
        pace.answered(now);
        pace.put_off(10 * MS, now);
        assert!(!pace.may_claim(now + 9 * MS) && pace.may_claim(now + 10 * MS));
        assert_eq!(pace.timeout(now), now + 10 * MS);
        assert_eq!(pace.timeout(now + 10 * MS), now + 250 * MS);
    }
}
