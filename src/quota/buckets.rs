//! How much a client may send: two buckets that refill steadily, one for messages and one for bytes.

use std::time::Duration;

use tokio::time::Instant;

/// What one client may send in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InboundLimit {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

/// What one client has sent lately. Boxed where it is kept, since most sockets have none.
#[derive(Debug)]
pub(crate) struct ClientBuckets {
    messages: Bucket,
    bytes: Bucket,
    /// What is read now may have been sent since then: the socket was not read.
    unread_since: Option<Instant>,
}

impl ClientBuckets {
    /// A second's worth at once, and of bytes the largest message beside, so that it can always be sent.
    pub(crate) fn new(limit: InboundLimit, largest: usize, now: Instant) -> Self {
        Self {
            messages: Bucket::new(limit.messages, 0, now),
            bytes: Bucket::new(limit.bytes, largest, now),
            unread_since: None,
        }
    }

    /// The socket is not read, so that what the client sends meanwhile comes at once later.
    pub(crate) fn stopped(&mut self, now: Instant) {
        self.unread_since.get_or_insert(now);
    }

    /// All that was sent is read.
    pub(crate) fn caught_up(&mut self) {
        self.unread_since = None;
    }

    /// Whether the client may have sent so many bytes more.
    #[must_use]
    pub(crate) fn take_bytes(&mut self, bytes: usize, now: Instant) -> bool {
        let since = self.unread_since.unwrap_or(now);
        self.bytes.take(bytes, since, now)
    }

    /// Whether the client may have said one thing more: a message, a ping or a pong.
    #[must_use]
    pub(crate) fn take_message(&mut self, now: Instant) -> bool {
        let since = self.unread_since.unwrap_or(now);
        self.messages.take(1, since, now)
    }
}

/// Kept as the moment at which it will be full again, so that it refills by itself.
#[derive(Debug)]
struct Bucket {
    /// Per second.
    rate: usize,
    full_at: Instant,
    /// How long it takes to fill.
    depth: Duration,
}

impl Bucket {
    /// Full, with a second's worth and so much more.
    fn new(rate: usize, more: usize, now: Instant) -> Self {
        Self {
            rate,
            full_at: now,
            depth: SECOND.saturating_add(time_of(more, rate)),
        }
    }

    /// Takes what was sent between `since` and `now`, if it is there.
    fn take(&mut self, count: usize, since: Instant, now: Instant) -> bool {
        let full_at = self.full_at.max(since);
        let full_at = full_at.checked_add(time_of(count, self.rate));
        let Some(full_at) = full_at.filter(|at| at.saturating_duration_since(now) <= self.depth)
        else {
            return false;
        };
        self.full_at = full_at;
        true
    }
}

/// In which so many are refilled: rounded down, so that a second's worth is never more than a second.
fn time_of(count: usize, rate: usize) -> Duration {
    let nanos = count as u128 * SECOND.as_nanos() / rate.max(1) as u128;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

const SECOND: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn limit(messages: usize, bytes: usize) -> InboundLimit {
        InboundLimit { messages, bytes }
    }

    /// How many messages are taken at once.
    fn burst(inbound: &mut ClientBuckets, now: Instant) -> usize {
        (0..).take_while(|_| inbound.take_message(now)).count()
    }

    #[test]
    fn a_burst_is_a_second_s_worth_and_comes_back_steadily() {
        let start = Instant::now();
        for rate in [1, 3, 7, 1000] {
            let mut inbound = ClientBuckets::new(limit(rate, 1), 0, start);
            assert_eq!(burst(&mut inbound, start), rate);
            let later = start + SECOND / 2;
            assert_eq!(burst(&mut inbound, later), rate / 2);
            let rested = start + 3600 * SECOND;
            assert_eq!(burst(&mut inbound, rested), rate, "it does not overflow");
        }
    }

    #[test]
    fn the_largest_message_fits_beside_a_burst() {
        let now = Instant::now();
        let mut inbound = ClientBuckets::new(limit(1, 1_000), 64_000, now);
        assert!(inbound.take_bytes(1_000, now));
        assert!(inbound.take_bytes(64_000, now));
        assert!(!inbound.take_bytes(1, now));
        assert!(inbound.take_bytes(1_000, now + SECOND));
        assert!(!inbound.take_bytes(1, now + SECOND));
    }

    #[test]
    fn no_limit_is_so_high_that_it_overflows() {
        let now = Instant::now();
        for (limit, largest) in [
            (limit(usize::MAX, usize::MAX), usize::MAX),
            (limit(1, 1), usize::MAX),
        ] {
            let mut inbound = ClientBuckets::new(limit, largest, now);
            assert!(inbound.take_bytes(1 << 30, now) && inbound.take_message(now));
        }
    }

    #[test]
    fn what_waited_while_nothing_was_read_counts_as_sent_meanwhile() {
        let start = Instant::now();
        let mut inbound = ClientBuckets::new(limit(10, 1), 0, start);
        assert_eq!(burst(&mut inbound, start), 10);
        inbound.stopped(start);
        let resumed = start + 6 * SECOND;
        inbound.stopped(start + SECOND);
        assert_eq!(burst(&mut inbound, resumed), 60, "six seconds of it");
        inbound.caught_up();
        assert_eq!(burst(&mut inbound, resumed + 60 * SECOND), 10);
    }

    proptest! {
        /// Over any span no more is taken than what it refills and a burst, whenever the socket was read; and what is
        /// refused had to be.
        #[test]
        fn what_is_taken_is_what_the_rate_allows(
            rate in 1usize..50,
            more in 0usize..100,
            steps in vec((0u64..400, 0usize..40), 1..60),
        ) {
            let start = Instant::now();
            let mut bucket = Bucket::new(rate, more, start);
            let depth = (rate + more) as f64;
            let mut now = start;
            let mut taken: Vec<(Instant, usize)> = Vec::new();
            for (millis, count) in steps {
                now += Duration::from_millis(millis);
                let took = bucket.take(count, now, now);
                let would_be = |from: usize| {
                    let (first, _) = taken[from];
                    let sum: usize = taken[from..].iter().map(|(_, count)| count).sum();
                    let refilled = (now - first).as_secs_f64() * rate as f64;
                    (sum + count) as f64 - refilled - depth
                };
                let worst = (0..taken.len()).map(would_be).fold(count as f64 - depth, f64::max);
                prop_assert!(!took || worst < 0.01, "{worst} too many at {now:?}");
                prop_assert!(took || worst > -0.01, "{worst} left at {now:?}");
                if took {
                    taken.push((now, count));
                }
            }
        }
    }
}
