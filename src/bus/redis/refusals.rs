//! Subscriptions that Redis refuses: which topic of a command it meant, and when that is asked for again.
//!
//! Redis refuses a command as a whole and does not say why in a way that names a channel. So its topics are asked for
//! again in halves, until one stands alone: that one is refused, and the others go on. (One among 1,000 costs 20
//! commands, ten round trips.) Whoever was refused is asked for again after a pause, which grows while nothing comes
//! of it, and a few at a time, so that 50,000 that are refused for ever cost Redis no more than a hundred.
//!
//! That a topic is given up does not mean that it would be granted. So refusals are over at once where the last of them
//! is granted, and else when nothing was refused for a while: a client that is refused and comes back again and again
//! is one outage, and not one for everybody each time. Nor do those that only come and go put off for ever the gap
//! that others may have to be told.
//!
//! ```text
//!                   with others: in halves
//!                  +----------------------+
//!                  v                      |
//!   changed --> a group --> SUBSCRIBE --> refused --> alone --+
//!                  ^                                          v
//!                  +------------- after a pause ---------- refused: nobody waits, and the bus is degraded
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::backoff::pause;
use crate::model::topic::Topic;

/// Most that are asked for again at once.
const AGAIN: usize = 100;
/// For how long nothing must have been refused: longer than most clients wait before they come back.
const QUIET: Duration = Duration::from_secs(10);
/// With those that come and go it lasts no longer, when none of them is there.
const LONGEST: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Topics that share a command which nobody else is in, the next first.
    groups: VecDeque<Vec<Topic>>,
    /// By their places: who was asked for longest ago comes first.
    refused: BTreeMap<u64, Topic>,
    next_place: u64,
    /// How often in a row nobody was granted anything.
    failures: u32,
    again_at: Option<Instant>,
    /// When the first was refused, until all is over.
    since: Option<Instant>,
    /// Nothing is refused now, which is over then.
    over_at: Option<Instant>,
}

impl Refusals {
    /// These topics share the next command.
    pub(super) fn group(&mut self, topics: Vec<Topic>) {
        if !topics.is_empty() {
            self.groups.push_back(topics);
        }
    }

    /// Redis refused these, one of them at least.
    pub(super) fn halve(&mut self, mut topics: Vec<Topic>) {
        let rest = topics.split_off(topics.len() / 2);
        self.group(topics);
        self.group(rest);
    }

    pub(super) fn has_groups(&self) -> bool {
        !self.groups.is_empty()
    }

    /// The topics of the next command, if they are no more than that.
    pub(super) fn next_group(&mut self, most: usize) -> Option<Vec<Topic>> {
        let fits = |group: &Vec<Topic>| group.len() <= most;
        self.groups.front().is_some_and(fits).then_some(())?;
        self.groups.pop_front()
    }

    /// Redis refused this one. Its place is needed to take it out again.
    pub(super) fn refuse(&mut self, topic: Topic, now: Instant) -> u64 {
        self.end_quiet(now);
        self.since.get_or_insert(now);
        self.over_at = None;
        if self.again_at.is_none() {
            self.again_at = Some(now + pause(self.failures, 1.0));
        }
        self.put(topic)
    }

    fn put(&mut self, topic: Topic) -> u64 {
        let place = self.next_place;
        self.next_place += 1;
        self.refused.insert(place, topic);
        place
    }

    /// Redis granted one after all: the others may be granted too.
    pub(super) fn grant(&mut self, place: u64, now: Instant) {
        self.take(place);
        self.failures = 0;
        self.again_at = self.again_at.map(|_| now);
        if self.refused.is_empty() {
            self.since = None;
        }
    }

    /// Nobody wants it any more.
    pub(super) fn forget(&mut self, place: u64, now: Instant) {
        self.take(place);
        if let Some(since) = self.since
            && self.refused.is_empty()
        {
            let longest = (since + LONGEST).max(now);
            self.over_at = Some(longest.min(now + QUIET));
        }
    }

    fn take(&mut self, place: u64) {
        self.refused.remove(&place);
        if self.refused.is_empty() {
            (self.failures, self.again_at) = (0, None);
        }
    }

    fn end_quiet(&mut self, now: Instant) {
        if self.over_at.is_some_and(|at| at <= now) {
            (self.since, self.over_at) = (None, None);
        }
    }

    /// Whether something is refused, or was until a moment ago.
    pub(super) fn stand(&self, now: Instant) -> bool {
        !self.refused.is_empty() || self.over_at.is_some_and(|at| now < at)
    }

    /// When somebody is to be asked for again, or it is over.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.again_at.or(self.over_at)
    }

    /// Whom to ask for again now, each with its new place.
    pub(super) fn again(&mut self, now: Instant) -> Vec<(u64, Topic)> {
        self.end_quiet(now);
        if self.again_at.is_none_or(|at| now < at) {
            return Vec::new();
        }
        self.failures = self.failures.saturating_add(1);
        self.again_at = Some(now + pause(self.failures, 1.0));
        let again = self.refused.len().min(AGAIN);
        let again: Vec<Topic> = (0..again)
            .filter_map(|_| self.refused.pop_first())
            .map(|(_, topic)| topic)
            .collect();
        again
            .into_iter()
            .map(|topic| (self.put(topic.clone()), topic))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::*;

    fn topic(n: usize) -> Topic {
        Topic::room(&n.to_string()).unwrap()
    }

    #[test]
    fn one_among_a_thousand_is_found_within_twenty_commands() {
        for bad in [0, 499, 500, 998, 999] {
            let mut refusals = Refusals::default();
            refusals.halve((0..1000).map(topic).collect());
            let (mut commands, mut heard, mut found) = (0, HashSet::new(), None);
            while let Some(group) = refusals.next_group(1000) {
                commands += 1;
                match group.as_slice() {
                    group if !group.contains(&topic(bad)) => heard.extend(group.to_vec()),
                    [alone] => assert_eq!(found.replace(alone.clone()), None),
                    _ => refusals.halve(group),
                }
            }
            assert_eq!((heard.len(), found), (999, Some(topic(bad))));
            assert!(commands <= 20, "{commands}");
        }
    }

    #[test]
    fn a_group_stays_together_and_waits_for_room() {
        let mut refusals = Refusals::default();
        refusals.halve((0..3).map(topic).collect());
        assert_eq!(refusals.next_group(0), None);
        assert_eq!(refusals.next_group(1), Some(vec![topic(0)]));
        assert_eq!(refusals.next_group(1), None);
        assert!(refusals.has_groups());
        assert_eq!(refusals.next_group(2), Some(vec![topic(1), topic(2)]));
        assert!(!refusals.has_groups());
    }

    #[test]
    fn many_that_are_refused_for_ever_are_asked_for_in_turn_and_seldom() {
        const MANY: usize = 3 * AGAIN;
        let mut refusals = Refusals::default();
        let start = Instant::now();
        for n in 0..MANY {
            refusals.refuse(topic(n), start);
        }
        let (mut now, mut asked) = (start, Vec::new());
        for _ in 0..30 {
            now = refusals.next_at().unwrap();
            let again = refusals.again(now);
            assert_eq!(again.len(), AGAIN);
            assert!(refusals.again(now).is_empty(), "once");
            asked.extend(again.into_iter().map(|(_, topic)| topic));
        }
        let expected: Vec<Topic> = (0..30 * AGAIN).map(|n| topic(n % MANY)).collect();
        assert_eq!(asked, expected, "nobody is left out");
        assert!(now - start > Duration::from_secs(100), "{:?}", now - start);
    }

    #[test]
    fn what_is_granted_to_one_is_asked_for_the_others_at_once() {
        let mut refusals = Refusals::default();
        let start = Instant::now();
        for n in 0..2 * AGAIN {
            refusals.refuse(topic(n), start);
        }
        let mut now = start;
        for _ in 0..8 {
            now = refusals.next_at().unwrap();
            refusals.again(now);
        }
        assert!(refusals.next_at().unwrap() > now + Duration::from_secs(4));
        let (place, _) = refusals.refused.pop_first().unwrap();
        refusals.grant(place, now);
        assert_eq!(refusals.next_at(), Some(now));
        assert_eq!(refusals.again(now).len(), AGAIN);
        for place in 0..refusals.next_place {
            refusals.grant(place, now);
        }
        assert!(!refusals.stand(now), "at once");
        assert_eq!(refusals.next_at(), None);
    }

    #[test]
    fn what_is_given_up_is_over_when_nothing_was_refused_for_a_while() {
        let mut refusals = Refusals::default();
        let mut now = Instant::now();
        for n in 0..3 {
            let place = refusals.refuse(topic(n), now);
            refusals.forget(place, now);
            assert_eq!(refusals.next_at(), Some(now + QUIET));
            now += QUIET - Duration::from_millis(1);
            assert!(refusals.again(now).is_empty() && refusals.stand(now));
        }
        now += Duration::from_millis(1);
        assert!(!refusals.stand(now));
        assert!(refusals.again(now).is_empty());
        assert_eq!(refusals.next_at(), None);
    }

    #[test]
    fn those_that_come_and_go_put_the_end_off_for_a_minute_at_most() {
        let mut refusals = Refusals::default();
        let start = Instant::now();
        let mut now = start;
        let mut visit = |refusals: &mut Refusals, n| {
            let place = refusals.refuse(topic(n), now);
            now += QUIET / 2;
            assert!(refusals.stand(now), "it is there");
            refusals.forget(place, now);
            now
        };
        for n in 0.. {
            let left = visit(&mut refusals, n);
            if !refusals.stand(left) {
                assert_eq!(left, start + LONGEST);
                break;
            }
        }
        let left = visit(&mut refusals, 0);
        assert!(refusals.stand(left), "another one begins");
        assert_eq!(refusals.next_at(), Some(left + QUIET));
    }
}
