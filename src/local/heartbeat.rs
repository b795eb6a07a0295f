//! When to ping a client, and when to give it up.
//!
//! ```text
//!         silent for a ping_interval: Ping              silent for a pong_timeout: Dead
//!  heard ----------------------------------> pinged --------------------------------------> (cut)
//!    ^                                         |
//!    |  a sign of life                         |
//!    +-----------------------------------------+  the pong_timeout is over, and nobody reads what it sends: Unheard
//! ```
//! Whoever is not read is not judged by silence: its pong may lie in the kernel's buffer. Then only the kernel knows
//! whether the client is there, by its acknowledgements.

use std::time::Duration;

use tokio::time::Instant;

use super::moment::Moment;

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beat {
    Ping,
    /// Nothing came back in time.
    Dead,
    /// Nothing came back in time, but nobody listened.
    Unheard,
    Wait,
}

/// What all sockets of a node have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeartbeatTimes {
    pub(crate) ping_interval: Duration,
    pub(crate) pong_timeout: Duration,
    pub(crate) write_timeout: Duration,
}

impl HeartbeatTimes {
    /// Whoever is silent, or accepts nothing, is given up before.
    pub(crate) fn patience(&self) -> Duration {
        self.write_timeout
            .max(self.ping_interval + self.pong_timeout)
    }

    /// How often to look, so that nothing is late by more than a small part of itself.
    pub(crate) fn tick(&self) -> Duration {
        let shortest = self
            .ping_interval
            .min(self.pong_timeout)
            .min(self.write_timeout);
        (shortest / 8).clamp(Duration::from_millis(5), Duration::from_secs(1))
    }
}

/// One client's heartbeat. A message, a pong, or a good part of a message proves it alive; a ping is
/// sent only into silence.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    /// When it was heard last; since it was pinged, when that was.
    since: Moment,
    pinged: bool,
    /// Nobody reads what the client sends.
    paused: bool,
}

impl Heartbeat {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            since: now.into(),
            pinged: false,
            paused: false,
        }
    }

    /// The process slept, and with it the ears for this client.
    pub(crate) fn discount(&mut self, slept: Duration, now: Instant) {
        self.since = discounted(self.since.into(), slept, now).into();
    }

    /// The client gave a sign of life.
    pub(crate) fn seen(&mut self, now: Instant) {
        self.since = now.into();
        self.pinged = false;
    }

    /// While nobody reads what it sends, silence says nothing about the client. It is pinged all the same: writing
    /// is the only way to notice that it is gone.
    pub(crate) fn pause(&mut self, paused: bool, now: Instant) {
        self.paused = paused;
        self.seen(now);
    }

    /// Asks what to do; [`Beat::Ping`] is said once. The socket's number spreads the pings of those
    /// that opened together over ±10 %.
    pub(crate) fn poll(&mut self, now: Instant, times: &HeartbeatTimes, number: u64) -> Beat {
        let silent = now.saturating_duration_since(self.since.into());
        match self.pinged {
            true if silent < times.pong_timeout => Beat::Wait,
            true if self.paused => {
                self.seen(now);
                Beat::Unheard
            }
            true => Beat::Dead,
            false if silent < spread(times.ping_interval, number) => Beat::Wait,
            false => {
                self.since = now.into();
                self.pinged = true;
                Beat::Ping
            }
        }
    }
}

/// Notices when the process itself did not run: it was stopped, or starved.
#[derive(Debug)]
pub(crate) struct Pulse {
    tick: Duration,
    last: Instant,
}

impl Pulse {
    pub(crate) fn new(tick: Duration, now: Instant) -> Self {
        Self { tick, last: now }
    }

    /// To be called every tick; returns how long nothing ran. To be late by a tick is usual.
    pub(crate) fn beat(&mut self, now: Instant) -> Duration {
        let since = now.saturating_duration_since(self.last);
        self.last = now;
        since.saturating_sub(2 * self.tick)
    }
}

/// A moment of the past, without the time in which the process slept. What happened since it woke stays.
pub(crate) fn discounted(at: Instant, slept: Duration, now: Instant) -> Instant {
    (at + slept).min(now.max(at))
}

/// 90 % to 110 % of the interval. Consecutive numbers land far apart.
fn spread(interval: Duration, number: u64) -> Duration {
    let permille = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    interval.mul_f64(0.9 + (permille % 1000) as f64 / 5000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const TIMES: HeartbeatTimes = HeartbeatTimes {
        ping_interval: Duration::from_secs(25),
        pong_timeout: Duration::from_secs(20),
        write_timeout: S,
    };

    #[test]
    fn silence_is_pinged_once_and_then_dead() {
        let start = Instant::now();
        let mut heart = Heartbeat::new(start);
        assert_eq!(heart.poll(start + 22 * S, &TIMES, 7), Beat::Wait);
        assert_eq!(heart.poll(start + 28 * S, &TIMES, 7), Beat::Ping);
        assert_eq!(heart.poll(start + 47 * S, &TIMES, 7), Beat::Wait);
        assert_eq!(heart.poll(start + 48 * S, &TIMES, 7), Beat::Dead);
    }

    #[test]
    fn whatever_the_client_sends_keeps_it_alive() {
        let start = Instant::now();
        let mut heart = Heartbeat::new(start);
        assert_eq!(heart.poll(start + 28 * S, &TIMES, 7), Beat::Ping);
        heart.seen(start + 47 * S);
        assert_eq!(heart.poll(start + 69 * S, &TIMES, 7), Beat::Wait);
        assert_eq!(heart.poll(start + 75 * S, &TIMES, 7), Beat::Ping);
    }

    #[test]
    fn who_is_not_listened_to_is_pinged_and_not_given_up() {
        let start = Instant::now();
        let mut heart = Heartbeat::new(start);
        heart.pause(true, start);
        for round in 0..3u32 {
            let from = start + 48 * S * round;
            assert_eq!(heart.poll(from + 28 * S, &TIMES, 7), Beat::Ping);
            assert_eq!(heart.poll(from + 48 * S, &TIMES, 7), Beat::Unheard);
        }
        // Listened to again, it has all its time.
        let again = start + 150 * S;
        heart.pause(false, again);
        assert_eq!(heart.poll(again + 20 * S, &TIMES, 7), Beat::Wait);
        assert_eq!(heart.poll(again + 28 * S, &TIMES, 7), Beat::Ping);
        assert_eq!(heart.poll(again + 48 * S, &TIMES, 7), Beat::Dead);
    }

    #[test]
    fn time_in_which_the_process_slept_counts_for_nobody() {
        let start = Instant::now();
        let mut pulse = Pulse::new(S, start);
        let mut heart = Heartbeat::new(start);
        assert_eq!(pulse.beat(start + S), Duration::ZERO);
        assert_eq!(pulse.beat(start + 3 * S), Duration::ZERO, "a tick late");
        assert_eq!(heart.poll(start + 28 * S, &TIMES, 7), Beat::Ping);
        pulse.beat(start + 28 * S);
        // Stopped for a hundred seconds; what the client sent meanwhile is not read yet.
        let woken = start + 128 * S;
        let slept = pulse.beat(woken);
        assert_eq!(slept, 98 * S);
        heart.discount(slept, woken);
        assert_eq!(heart.poll(woken, &TIMES, 7), Beat::Wait);
        assert_eq!(heart.poll(woken + 17 * S, &TIMES, 7), Beat::Wait);
        assert_eq!(heart.poll(woken + 18 * S, &TIMES, 7), Beat::Dead);
    }

    #[test]
    fn what_happened_after_waking_is_not_moved_into_the_future() {
        let start = Instant::now();
        let woken = start + 100 * S;
        assert_eq!(discounted(woken, 98 * S, woken), woken);
        assert_eq!(discounted(start, 98 * S, woken), start + 98 * S);
        let later = woken + S;
        assert_eq!(
            discounted(later, 98 * S, woken),
            later,
            "read while we swept"
        );
    }

    #[test]
    fn sockets_that_opened_together_are_spread() {
        let all: Vec<Duration> = (0..1000).map(|number| spread(100 * S, number)).collect();
        assert!(all.iter().all(|time| (90 * S..=110 * S).contains(time)));
        for tenth in 0..10 {
            let from = 90 * S + tenth * 2 * S;
            let here = all
                .iter()
                .filter(|time| (from..from + 2 * S).contains(*time))
                .count();
            assert!(
                (50..200).contains(&here),
                "{here} of 1000 between {from:?} and two seconds later"
            );
        }
    }
}
