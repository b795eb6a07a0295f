//! When to ask how the cluster is divided: rules without I/O.
//!
//! At the start; at every hint that the division has changed; and now and then without one, since a primary that was cut off
//! with us takes every SSUBSCRIBE and SPUBLISH as before, though its cluster has gone on without it (seen:
//! `cluster-allow-pubsubshard-when-down`). A hint comes before the change as often as after it (a primary that is killed is
//! replaced seconds later), so for a while questions follow it, however soon the first is answered. While no answer counts, hints make nothing faster: whoever gives them fails as
//! often as it likes.

use std::time::Duration;

use tokio::time::Instant;

use crate::bus::redis::backoff::pause;

/// Never sooner after the question before, whatever happens.
const QUICK: Duration = Duration::from_millis(100);
/// After a hint: as soon as that, then after twice as long, up to this: the nodes are at a new primary within a
/// second of the decision.
const BRISK: Duration = Duration::from_millis(800);
/// … and for so long after the last hint: four times what nodes take by default to miss one of them
/// (`cluster-node-timeout`).
const RESTLESS: Duration = Duration::from_secs(60);
/// How much the interval differs from node to node, so that a fleet does not ask in one moment.
const SPREAD: f64 = 0.1;

#[derive(Debug)]
pub(super) struct Refresh {
    /// Between two questions while nothing happens.
    interval: Duration,
    /// When the last question began.
    asked: Option<Instant>,
    due: Instant,
    hinted: Instant,
    pause: Duration,
    failures: u32,
}

impl Refresh {
    /// The first question is due at once.
    pub(super) fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            asked: None,
            due: now,
            hinted: now,
            pause: QUICK,
            failures: 0,
        }
    }

    /// When to ask.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// The division may have changed, or is about to.
    pub(super) fn hint(&mut self, now: Instant) {
        (self.hinted, self.pause) = (now, QUICK);
        if self.failures == 0 {
            self.due = self.due.min(self.earliest(now));
        }
    }

    /// A question begins.
    pub(super) fn asks(&mut self, now: Instant) {
        self.asked = Some(now);
    }

    /// It has its answer; `random` in 0.0..1.0.
    pub(super) fn answered(&mut self, now: Instant, random: f64) {
        if std::mem::take(&mut self.failures) > 0 {
            (self.hinted, self.pause) = (now, QUICK);
        }
        let is_restless = now.saturating_duration_since(self.hinted) < RESTLESS;
        let pause = match is_restless {
            true => self.pause.min(self.interval),
            false => self.interval.mul_f64(1.0 + SPREAD * (2.0 * random - 1.0)),
        };
        self.pause = self.pause.saturating_mul(2).min(BRISK);
        self.due = self.earliest(now).max(self.asked.unwrap_or(now) + pause);
    }

    /// No answer counts; `random` in 0.0..1.0.
    pub(super) fn failed(&mut self, now: Instant, random: f64) {
        self.due = self.earliest(now).max(now + pause(self.failures, random));
        self.failures = self.failures.saturating_add(1);
    }

    fn earliest(&self, now: Instant) -> Instant {
        self.asked.map_or(now, |asked| (asked + QUICK).max(now))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const S: Duration = Duration::from_secs(1);
    const INTERVAL: Duration = Duration::from_secs(5);

    /// Asks when it is due, and is answered at once; how long after the question before.
    fn step(refresh: &mut Refresh, random: f64) -> Duration {
        let (before, due) = (refresh.asked, refresh.due());
        refresh.asks(due);
        refresh.answered(due, random);
        before.map_or(Duration::ZERO, |before| due - before)
    }

    #[test]
    fn questions_follow_a_hint_for_a_minute_and_then_become_rare() {
        let start = Instant::now();
        let mut refresh = Refresh::new(INTERVAL, start);
        let first: Vec<_> = (0..7)
            .map(|_| step(&mut refresh, 0.5).as_millis())
            .collect();
        assert_eq!(first, [0, 100, 200, 400, 800, 800, 800], "at the start");
        while refresh.due() < start + RESTLESS {
            step(&mut refresh, 0.5);
        }
        assert_eq!(step(&mut refresh, 0.5), BRISK, "that was due before");
        assert_eq!(step(&mut refresh, 0.0), INTERVAL);
        assert_eq!(step(&mut refresh, 1.0), INTERVAL.mul_f64(0.9));
        assert_eq!(
            refresh.due() - refresh.asked.unwrap(),
            INTERVAL.mul_f64(1.1)
        );

        let hinted = refresh.asked.unwrap() + S;
        refresh.hint(hinted);
        assert_eq!(refresh.due(), hinted, "at once");
        step(&mut refresh, 0.5);
        assert_eq!(refresh.due(), hinted + QUICK);
    }

    #[test]
    fn a_hint_that_comes_too_soon_waits_and_one_that_came_while_it_asked_makes_one_more_question() {
        let start = Instant::now();
        let mut refresh = Refresh::new(INTERVAL, start);
        refresh.hinted = start - 2 * RESTLESS;
        refresh.asks(start);
        refresh.answered(start + 10 * MS, 0.5);
        assert_eq!(refresh.due(), start + INTERVAL, "control");
        for ms in [20, 30, 40] {
            refresh.hint(start + ms * MS);
            assert_eq!(refresh.due(), start + QUICK);
        }
        // A question that took long.
        refresh.asks(start + S);
        refresh.answered(start + 5 * S, 0.5);
        refresh.hint(start + 5 * S);
        assert_eq!(refresh.due(), start + 5 * S);
    }

    #[test]
    fn while_nobody_answers_hints_make_nothing_faster() {
        let start = Instant::now();
        let mut refresh = Refresh::new(INTERVAL, start);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let now = refresh.due();
            refresh.asks(now);
            refresh.failed(now, 1.0);
            let due = refresh.due();
            refresh.hint(now + 1 * MS);
            assert_eq!(refresh.due(), due);
            pauses.push((due - now).as_millis());
        }
        assert_eq!(pauses, [100, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        let back = refresh.due();
        refresh.asks(back);
        refresh.answered(back, 0.5);
        assert_eq!(refresh.due(), back + QUICK, "there may be more to learn");

        let mut calm = Refresh::new(INTERVAL, start - 2 * RESTLESS);
        calm.asks(start);
        calm.failed(start, 0.0);
        calm.answered(start + QUICK, 0.5);
        assert_eq!(calm.due(), start + QUICK, "as after a hint");
    }

    proptest! {
        #[test]
        fn it_is_never_asked_too_soon_nor_never(steps in proptest::collection::vec((0u8..4, 0u64..40_000, 0.0..1.0), 1..200)) {
            let mut now = Instant::now();
            let mut refresh = Refresh::new(INTERVAL, now);
            let mut last: Option<Instant> = None;
            for (kind, ms, random) in steps {
                match kind {
                    0 => refresh.hint(now),
                    _ => {
                        now = now.max(refresh.due());
                        prop_assert!(last.is_none_or(|last| now - last >= QUICK));
                        refresh.asks(now);
                        last = Some(now);
                        now += MS * (ms % 700) as u32;
                        match kind {
                            1 => refresh.failed(now, random),
                            _ => refresh.answered(now, random),
                        }
                    }
                }
                prop_assert!(refresh.due() <= now + INTERVAL.mul_f64(1.0 + SPREAD));
                now += MS * (ms / 100) as u32;
            }
        }
    }
}
