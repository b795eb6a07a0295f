//! Whether the bus still carries messages from end to end.
//!
//! A probe is published on the node's own channel and has to come back through its subscriber. It
//! finds what no error tells: a black-holed link, a frozen Redis, two connections that ended up on
//! different servers.
//!
//! A late one is asked after once more before the connection is given up, since one that was lost on its way to Redis
//! says nothing of the way back. For the same reason one that could not be published counts for nothing.
//!
//! ```text
//!            its time has come: Send
//!   resting -------------------------> out ---> half an interval without it: once more, the second time Lost
//!      ^                                |
//!      |  for an interval               |  it came back
//!      |  for a fifth of one            |  it could not be published
//!      +--------------------------------+
//! ```

use std::time::Duration;

use tokio::time::Instant;

/// Probes that may stay out before the connection is given up.
const MISSES: u32 = 2;
/// A probe is missed after this part of the interval, so that a fault is found within two intervals.
const PATIENCE: u32 = 2;
/// After a probe that came back while another was asked for, that follows.
const SOON: Duration = Duration::from_millis(1);
/// After a probe that could not be published, the next follows after this part of the interval.
const RETRY: u32 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NextProbe {
    /// Publish a probe.
    Send,
    /// The connection is dead.
    Lost,
    /// Nothing to do until then.
    Wait(Instant),
}

#[derive(Debug)]
pub(crate) struct Probe {
    interval: Duration,
    next: Instant,
    sent: Option<Instant>,
    misses: u32,
    /// While one was out, another was asked for.
    hurried: bool,
}

impl Probe {
    /// The first one is due at once.
    pub(crate) fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            next: now,
            sent: None,
            misses: 0,
            hurried: false,
        }
    }

    pub(crate) fn poll(&mut self, now: Instant) -> NextProbe {
        let due = match self.sent {
            Some(sent) => sent + self.interval / PATIENCE,
            None => self.next,
        };
        if now < due {
            return NextProbe::Wait(due);
        }
        self.misses += u32::from(self.sent.is_some());
        if self.misses >= MISSES {
            return NextProbe::Lost;
        }
        self.sent = Some(now);
        NextProbe::Send
    }

    /// The probe came back.
    pub(crate) fn returned(&mut self, now: Instant) {
        (self.sent, self.misses) = (None, 0);
        self.next = match std::mem::take(&mut self.hurried) {
            true => now + SOON,
            false => now + self.interval,
        };
    }

    /// The probe could not be published, which says nothing about the subscriber's connection.
    pub(crate) fn unsent(&mut self, now: Instant) {
        self.sent = None;
        self.next = now + self.interval / RETRY;
    }

    /// Something looks wrong: probe now rather than later.
    pub(crate) fn hurry(&mut self, now: Instant) {
        self.next = self.next.min(now);
        self.hurried = self.sent.is_some();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_dead_link_is_found_within_two_intervals() {
        let start = Instant::now();
        let mut probe = Probe::new(4 * S, start);
        assert_eq!(probe.poll(start), NextProbe::Send);
        probe.returned(start);
        // The link dies now.
        assert_eq!(probe.poll(start), NextProbe::Wait(start + 4 * S));
        assert_eq!(probe.poll(start + 4 * S), NextProbe::Send);
        assert_eq!(probe.poll(start + 6 * S), NextProbe::Send);
        assert_eq!(probe.poll(start + 8 * S), NextProbe::Lost);
    }

    #[test]
    fn a_late_probe_is_a_sign_of_life() {
        let start = Instant::now();
        let mut probe = Probe::new(4 * S, start);
        assert_eq!(probe.poll(start), NextProbe::Send);
        assert_eq!(probe.poll(start + 2 * S), NextProbe::Send);
        probe.returned(start + 3 * S);
        assert_eq!(probe.poll(start + 4 * S), NextProbe::Wait(start + 7 * S));
        probe.hurry(start + 4 * S);
        assert_eq!(probe.poll(start + 4 * S), NextProbe::Send);
        assert_eq!(
            probe.poll(start + 6 * S),
            NextProbe::Send,
            "the earlier miss is forgotten"
        );
    }

    #[test]
    fn who_asks_while_one_is_out_gets_one_that_is_sent_later() {
        let start = Instant::now();
        let mut probe = Probe::new(4 * S, start);
        assert_eq!(probe.poll(start), NextProbe::Send);
        probe.hurry(start);
        assert_eq!(probe.poll(start), NextProbe::Wait(start + 2 * S));
        probe.returned(start + S);
        assert_eq!(probe.poll(start + S), NextProbe::Wait(start + S + SOON));
        assert_eq!(probe.poll(start + 2 * S), NextProbe::Send);
        probe.returned(start + 2 * S);
        assert_eq!(probe.poll(start + 2 * S), NextProbe::Wait(start + 6 * S));
    }

    #[test]
    fn a_failing_publisher_does_not_cost_the_subscriber() {
        let start = Instant::now();
        let mut probe = Probe::new(5 * S, start);
        for n in 0..10 {
            let now = start + n * S;
            assert_eq!(probe.poll(now), NextProbe::Send);
            probe.unsent(now);
            probe.hurry(now);
            probe.unsent(now);
        }
    }
}
