//! How soon a pipeline follows one that is not answered yet.
//!
//! On a short link it does not: what comes meanwhile fills the next one, and nothing is cheaper. On a long one the next may leave at
//! once, a few times within a sixteenth of a round trip, and then with whatever has come until that is over; so nobody waits long for
//! the answer to somebody else, and a thousand messages are no thousand pipelines.
//!
//! A link is as long as the quickest answer lately took: whatever took longer was busy, and that is no reason to ask more of it. Where
//! the first has had no answer for two round trips nothing follows: what waits here can still be told that it was not sent.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// From here to Redis and back. On a shorter link one pipeline of 256 after the other is more than Redis can take.
const LONG: Duration = Duration::from_millis(1);
/// The quickest answer of this time, or of that before it, is how long a link is.
const LATELY: Duration = Duration::from_secs(1);
/// So many leave one after the other, as soon as there is something to write …
const AT_ONCE: usize = 4;
/// … within this part of a round trip.
const STRIDES: u32 = 16;
/// So many round trips the first may take.
const PATIENCE: u32 = 2;
/// None follows so many pipelines without an answer, …
const MOST: usize = AT_ONCE * STRIDES as usize;
/// … nor so many messages, …
const MOST_MESSAGES: usize = 16 * 1024;
/// … nor so many bytes of payload.
const MOST_BYTES: usize = 4 * 1024 * 1024;

#[derive(Debug, Default)]
pub(super) struct Stride {
    /// What has left and is not answered, in order.
    unanswered: VecDeque<UnansweredPipeline>,
    messages: usize,
    bytes: usize,
    /// When the last ones left, the earliest first.
    last: [Option<Instant>; AT_ONCE],
    /// Since when the quickest answer is looked for, which is that, …
    since: Option<Instant>,
    quickest: Option<Duration>,
    /// … and the one of the time before.
    before: Option<Duration>,
}

#[derive(Debug)]
struct UnansweredPipeline {
    at: Instant,
    messages: usize,
    bytes: usize,
}

impl Stride {
    /// A pipeline leaves.
    pub(super) fn left(&mut self, messages: usize, bytes: usize, now: Instant) {
        self.messages += messages;
        self.bytes += bytes;
        self.last.rotate_left(1);
        self.last[AT_ONCE - 1] = Some(now);
        self.unanswered.push_back(UnansweredPipeline {
            at: now,
            messages,
            bytes,
        });
    }

    /// The first that is not answered is.
    pub(super) fn answered(&mut self, now: Instant) {
        let Some(left) = self.unanswered.pop_front() else {
            return;
        };
        self.messages -= left.messages;
        self.bytes -= left.bytes;
        let since = *self.since.get_or_insert(now);
        let age = now.saturating_duration_since(since);
        if age >= LATELY {
            self.before = self.quickest.filter(|_| age < 2 * LATELY);
            (self.since, self.quickest) = (Some(now), None);
        }
        let took = now.saturating_duration_since(left.at);
        self.quickest = self.quickest.into_iter().chain([took]).min();
    }

    /// Whether anything may follow what is not answered.
    pub(super) fn is_long(&self) -> bool {
        self.round_trip().is_some_and(|took| took >= LONG)
    }

    /// When the next may leave, the earlier if it is full; none, where that is not before an answer.
    pub(super) fn next(&self, is_full: bool, now: Instant) -> Option<Instant> {
        let Some(first) = self.unanswered.front() else {
            return Some(now);
        };
        let round_trip = self.round_trip().filter(|took| *took >= LONG)?;
        let has_room = self.unanswered.len() < MOST
            && self.messages < MOST_MESSAGES
            && self.bytes < MOST_BYTES;
        if !has_room || now >= first.at + PATIENCE * round_trip {
            return None;
        }
        let again = self.last[0].map(|last| last + round_trip / STRIDES);
        Some(
            again
                .filter(|again| !is_full && *again > now)
                .unwrap_or(now),
        )
    }

    fn round_trip(&self) -> Option<Duration> {
        self.quickest.into_iter().chain(self.before).min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// On a link on which that was the quickest answer.
    fn of(round_trip: Duration, now: &mut Instant) -> Stride {
        let mut stride = Stride::default();
        stride.left(1, 1, *now);
        *now += round_trip;
        stride.answered(*now);
        *now += round_trip;
        stride
    }

    #[test]
    fn nothing_follows_what_is_not_answered_on_a_short_link() {
        let mut now = Instant::now();
        let mut unknown = Stride::default();
        let mut short = of(MS - Duration::from_nanos(1), &mut now);
        for stride in [&mut unknown, &mut short] {
            assert!(!stride.is_long());
            assert_eq!(stride.next(false, now), Some(now));
            stride.left(1, 1, now);
            for is_full in [false, true] {
                assert_eq!(stride.next(is_full, now + MS / 2), None);
            }
        }
    }

    #[test]
    fn a_few_follow_at_once_and_the_next_when_a_stride_is_over() {
        let mut now = Instant::now();
        let mut stride = of(16 * MS, &mut now);
        let began = now;
        for _ in 0..AT_ONCE {
            assert_eq!(stride.next(false, now), Some(now));
            stride.left(1, 1, now);
            now += MS / 100;
        }
        assert_eq!(stride.next(false, now), Some(began + MS));
        assert_eq!(stride.next(true, now), Some(now), "one that is full");
        let then = began + MS;
        assert_eq!(stride.next(false, then), Some(then));
    }

    #[test]
    fn nothing_follows_so_many_pipelines_messages_or_bytes() {
        for (pipelines, messages, bytes) in [
            (MOST, 1, 1),
            (2, MOST_MESSAGES / 2, 1),
            (2, 1, MOST_BYTES / 2),
        ] {
            let mut now = Instant::now();
            let mut stride = of(16 * MS, &mut now);
            for _ in 0..pipelines {
                assert_eq!(stride.next(true, now), Some(now));
                stride.left(messages, bytes, now);
            }
            assert_eq!(
                stride.next(true, now),
                None,
                "{pipelines} {messages} {bytes}"
            );
            stride.answered(now + MS);
            assert!(stride.next(true, now).is_some(), "one is answered");
        }
    }

    #[test]
    fn nothing_follows_what_is_answered_late() {
        let mut now = Instant::now();
        let mut stride = of(16 * MS, &mut now);
        stride.left(1, 1, now);
        assert!(stride.next(false, now + 31 * MS).is_some());
        assert_eq!(stride.next(true, now + 32 * MS), None);
        stride.answered(now + 40 * MS);
        assert!(stride.next(false, now + 40 * MS).is_some());
    }

    #[test]
    fn a_link_is_short_at_once_and_long_after_a_while() {
        let mut now = Instant::now();
        let mut stride = of(16 * MS, &mut now);
        assert!(stride.is_long());
        let mut answer = |took: Duration| {
            stride.left(1, 1, now);
            now += took;
            stride.answered(now);
            stride.is_long()
        };
        assert!(!answer(MS / 4), "one quick answer");
        let began = (0..).find(|_| answer(16 * MS)).unwrap_or(0);
        let lasted = 16 * MS * began;
        assert!(
            (LATELY..2 * LATELY + 32 * MS).contains(&lasted),
            "{lasted:?}"
        );
    }

    #[derive(Debug, Clone)]
    enum Step {
        Wait(u16),
        Leave {
            is_full: bool,
            messages: usize,
            bytes: usize,
        },
        Answer,
    }

    fn step() -> impl Strategy<Value = Step> {
        let leave = (any::<bool>(), 1..600_usize, 1..600_000_usize);
        prop_oneof![
            (0..3_000_u16).prop_map(Step::Wait),
            leave.prop_map(|(is_full, messages, bytes)| Step::Leave {
                is_full,
                messages,
                bytes
            }),
            Just(Step::Answer),
        ]
    }

    proptest! {
        /// Whatever comes when: what is under way stays within its bounds, what is not full leaves so often at most, and who
        /// waits is told until when, or that an answer is to come.
        #[test]
        fn what_follows_is_bounded_and_nothing_is_stuck(
            round_trip in 0..40_u64,
            steps in prop::collection::vec(step(), 1..400),
        ) {
            let mut now = Instant::now();
            let mut stride = of(Duration::from_millis(round_trip), &mut now);
            let (mut out, mut left) = (VecDeque::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Wait(micros) => now += Duration::from_micros(micros.into()),
                    Step::Answer => {
                        stride.answered(now);
                        out.pop_front();
                    }
                    Step::Leave { is_full, messages, bytes } => {
                        let next = stride.next(is_full, now);
                        prop_assert!(next.is_some() || !out.is_empty(), "stuck");
                        let Some(next) = next else { continue };
                        let long = stride.round_trip().unwrap_or_default();
                        prop_assert!(next >= now && next <= now + long / STRIDES);
                        if next > now {
                            prop_assert!(!is_full);
                            continue;
                        }
                        prop_assert!(out.is_empty() || stride.is_long());
                        let sum = |of: fn(&(usize, usize)) -> usize| out.iter().map(of).sum::<usize>();
                        prop_assert!(out.len() < MOST);
                        prop_assert!(sum(|it| it.0) < MOST_MESSAGES && sum(|it| it.1) < MOST_BYTES);
                        let recent = left.iter().filter(|at| now < **at + long / STRIDES);
                        prop_assert!(is_full || out.is_empty() || recent.count() < AT_ONCE);
                        stride.left(messages, bytes, now);
                        out.push_back((messages, bytes));
                        left.push(now);
                    }
                }
            }
        }
    }
}
