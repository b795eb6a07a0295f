//! When to ping a client, and when to give it up.

use std::time::Duration;

use tokio::time::Instant;

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beat {
    Ping,
    /// Nothing came back in time.
    Dead,
    /// Nothing until then.
    Wait(Instant),
}

/// One client's heartbeat. Anything it sends proves it alive; a ping is sent only into silence.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    interval: Duration,
    timeout: Duration,
    last_seen: Instant,
    pinged: Option<Instant>,
}

impl Heartbeat {
    /// `jitter` in 0.0..1.0 spreads the pings of sockets that opened together over ±10 %.
    pub(crate) fn new(interval: Duration, timeout: Duration, jitter: f64, now: Instant) -> Self {
        let interval = interval.mul_f64(0.9 + 0.2 * jitter);
        Self {
            interval,
            timeout,
            last_seen: now,
            pinged: None,
        }
    }

    /// The client sent something, or we were not listening: silence says nothing.
    pub(crate) fn seen(&mut self, now: Instant) {
        self.last_seen = now;
        self.pinged = None;
    }

    /// Asks what to do; [`Beat::Ping`] is said once.
    pub(crate) fn poll(&mut self, now: Instant) -> Beat {
        let (due, beat) = match self.pinged {
            None => (self.last_seen + self.interval, Beat::Ping),
            Some(at) => (at + self.timeout, Beat::Dead),
        };
        if now < due {
            return Beat::Wait(due);
        }
        if beat == Beat::Ping {
            self.pinged = Some(now);
        }
        beat
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn silence_is_pinged_and_then_dead() {
        let start = Instant::now();
        let mut heart = Heartbeat::new(25 * S, 20 * S, 0.5, start);
        assert_eq!(heart.poll(start), Beat::Wait(start + 25 * S));
        assert_eq!(heart.poll(start + 25 * S), Beat::Ping);
        assert_eq!(heart.poll(start + 26 * S), Beat::Wait(start + 45 * S));
        assert_eq!(heart.poll(start + 45 * S), Beat::Dead);
    }

    #[test]
    fn whatever_the_client_sends_keeps_it_alive() {
        let start = Instant::now();
        let mut heart = Heartbeat::new(25 * S, 20 * S, 0.5, start);
        assert_eq!(heart.poll(start + 25 * S), Beat::Ping);
        heart.seen(start + 44 * S);
        assert_eq!(heart.poll(start + 45 * S), Beat::Wait(start + 69 * S));
    }

    #[test]
    fn sockets_that_opened_together_are_spread() {
        let start = Instant::now();
        let due = |jitter| match Heartbeat::new(25 * S, S, jitter, start).poll(start) {
            Beat::Wait(at) => at - start,
            beat => panic!("{beat:?}"),
        };
        assert_eq!((due(0.0), due(1.0)), (22 * S + S / 2, 27 * S + S / 2));
    }
}
