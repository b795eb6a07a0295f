//! What waits to be published, and who waits for it: which publications come next, and who has waited long enough.
//!
//! A union of very many users is cut: one part goes with every pipeline, behind all that is small. What is
//! promised is the order of one sender to one audience, and whatever goes to that, messages and commands, is of
//! one size, so that it never passes one another. A union of 100,000 users and one of these users are two audiences.
//!
//! ```text
//!  probes -- all of them ----------+           every part is answered
//!  small --- as many as fit -------+--> turn ---------------------------> whoever waits is told
//!  large --- a part of the first --+     |
//!    ^                                   |  parts are left, and somebody still waits
//!    +-----------------------------------+
//! ```
//! In a Redis Cluster a primary may say that a partition is elsewhere, before anybody knows where. What it refused so is
//! stalled, with all that follows of its partition, until the partition departs for another publisher, or a pause is over.
//!
//! Each waits only until its own deadline, here and in the turn. In a turn that is over for the one who asked and not
//! for Redis, the answer finds nobody.

use std::collections::{BTreeMap, VecDeque};
use std::mem::{replace, take};
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::backoff::LONGEST_PAUSE;
use super::command::is_on_its_way;
use super::pipeline::{PublishReply, Refused, Unusable};
use super::publication::{Publication, Receivers, Taken};
use super::queue::{Permit, Waiter};
use crate::model::error::PublishError;
use crate::model::partition::Partition;

/// Most publications in one pipeline.
pub(super) const BATCH: usize = 256;
/// Queues that have grown beyond so many publications do not keep their memory.
pub(super) const KEPT: usize = 16 * BATCH;
const MOVING: &str =
    "its channel moves to another primary of the cluster, and none took it in time";
/// How soon what is stalled is tried again, the first time.
const AGAIN: Duration = Duration::from_millis(10);

/// What has not had its turn, or not the last one.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// Before whatever else waits.
    probes: VecDeque<(Publication, Waiter)>,
    small: VecDeque<(Publication, Waiter)>,
    large: VecDeque<(Publication, Waiter)>,
    stalled: BTreeMap<Partition, VecDeque<(Publication, Waiter)>>,
    /// When they are tried again.
    again_at: Option<Instant>,
    /// How often nothing came of it.
    failures: u32,
}

/// What came of a turn.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answered {
    /// A probe reached nobody.
    pub(super) is_astray: bool,
    /// Something is at another primary already.
    pub(super) is_elsewhere: bool,
}

impl Backlog {
    pub(super) fn admit(&mut self, (publication, waiter): (Publication, Waiter)) {
        if let Some(partition) = publication.partition
            && let Some(stalled) = self.stalled.get_mut(&partition)
        {
            stalled.push_back((publication, waiter));
            return;
        }
        let queue = match (publication.is_probe, publication.is_large()) {
            (true, _) => &mut self.probes,
            (_, true) => &mut self.large,
            _ => &mut self.small,
        };
        queue.push_back((publication, waiter));
    }

    /// What Redis refused, with what follows of its partition, is to wait.
    fn stall(&mut self, refused: Vec<(Partition, Publication, Waiter)>, now: Instant) {
        for (partition, publication, waiter) in refused {
            let stalled = self.stalled.entry(partition).or_default();
            stalled.push_back((publication, waiter));
        }
        for queue in [&mut self.small, &mut self.large] {
            for (publication, waiter) in take(queue) {
                let stalled = publication.partition;
                match stalled.and_then(|partition| self.stalled.get_mut(&partition)) {
                    Some(stalled) => stalled.push_back((publication, waiter)),
                    None => queue.push_back((publication, waiter)),
                }
            }
        }
        let pause = (AGAIN * 2_u32.pow(self.failures.min(5))).min(LONGEST_PAUSE);
        self.failures += 1;
        self.again_at = Some(now + pause);
    }

    /// Nothing was done of it, and what follows was done as little: it is next again.
    fn put_back(&mut self, unknown: Vec<(Publication, Waiter)>) {
        for (publication, waiter) in unknown.into_iter().rev() {
            match publication.is_large() {
                true => self.large.push_front((publication, waiter)),
                false => self.small.push_front((publication, waiter)),
            }
        }
    }

    /// What is stalled has its turn again, if that time has come.
    pub(super) fn retry(&mut self, now: Instant) {
        if self.again_at.is_none_or(|at| now < at) {
            return;
        }
        self.again_at = None;
        for (publication, waiter) in take(&mut self.stalled).into_values().flatten().rev() {
            let queue = match publication.is_large() {
                true => &mut self.large,
                false => &mut self.small,
            };
            queue.push_front((publication, waiter));
        }
    }

    /// Until when there is nothing to do, though something waits.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        self.again_at.filter(|_| self.is_empty())
    }

    /// Takes out what is of a partition that departs.
    pub(super) fn take_out(&mut self, partition: Partition) -> Vec<(Publication, Waiter)> {
        let mut taken: Vec<_> = self
            .stalled
            .remove(&partition)
            .into_iter()
            .flatten()
            .collect();
        if self.stalled.is_empty() {
            self.again_at = None;
        }
        for queue in [&mut self.small, &mut self.large] {
            let concerned =
                |(publication, _): &(Publication, _)| publication.partition == Some(partition);
            if queue.iter().any(concerned) {
                let (departing, staying) = take(queue).into_iter().partition(concerned);
                *queue = staying;
                taken.extend::<VecDeque<_>>(departing);
            }
        }
        taken
    }

    /// Whether nothing can have its turn.
    pub(super) fn is_empty(&self) -> bool {
        self.probes.is_empty() && self.small.is_empty() && self.large.is_empty()
    }

    /// What goes into the next pipeline: whatever is small, and a part of the first large union.
    pub(super) fn take_turn(&mut self, turn: &mut Turn) {
        let small = self.small.len().min(BATCH);
        let small = self.small.drain(..small);
        let next = self.probes.drain(..).chain(small);
        for (mut publication, waiter) in next.chain(self.large.pop_front()) {
            publication.advance();
            turn.publications.push(publication);
            turn.waiters.0.push(waiter);
        }
        if self.small.is_empty() && self.small.capacity() > KEPT {
            self.small = VecDeque::new();
        }
    }

    /// When somebody loses patience. All of a node are equally patient, and each queue is in the order in which
    /// they came (what is put back is the oldest), so that the first is the next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let queues = [&self.probes, &self.small, &self.large];
        let queues = queues.into_iter().chain(self.stalled.values());
        let first = queues.filter_map(VecDeque::front);
        first.map(|(_, waiter)| waiter.deadline).min()
    }

    /// Tells those whose deadline has passed.
    pub(super) fn expire(&mut self, late: &str) {
        let now = Instant::now();
        if self.next_deadline().is_none_or(|next| now < next) {
            return;
        }
        let here = [&mut self.probes, &mut self.small, &mut self.large];
        let here = here.into_iter().map(|queue| (queue, late));
        let stalled = self.stalled.values_mut().map(|queue| (queue, MOVING));
        for (queue, late) in here.chain(stalled) {
            queue.retain_mut(|(_, waiter)| {
                let patient = now < waiter.deadline;
                if !patient {
                    waiter.fail(&PublishError::not_sent(late));
                }
                patient
            });
        }
    }

    pub(super) fn fail(&mut self, error: &PublishError) {
        for queue in self.queues() {
            for (_, mut waiter) in queue.drain(..) {
                waiter.fail(error);
            }
        }
        (self.again_at, self.stalled) = (None, BTreeMap::new());
    }

    fn queues(&mut self) -> impl Iterator<Item = &mut VecDeque<(Publication, Waiter)>> {
        let queues = [&mut self.probes, &mut self.small, &mut self.large];
        queues.into_iter().chain(self.stalled.values_mut())
    }
}

/// What is in one pipeline.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub(super) publications: Vec<Publication>,
    pub(super) waiters: Waiters,
}

impl Turn {
    /// Gives each the replies to its own commands; what is not finished waits for its next turn.
    pub(super) fn answer(
        &mut self,
        mut replies: impl Iterator<Item = PublishReply>,
        backlog: &mut Backlog,
    ) -> Answered {
        let mut permits: Option<Permit> = None;
        let (mut answered, mut elsewhere, mut unknown) =
            (Answered::default(), Vec::new(), Vec::new());
        let waiters = self.waiters.0.drain(..);
        for (mut publication, mut waiter) in self.publications.drain(..).zip(waiters) {
            let mut sum = replace(&mut waiter.sum, Ok(Taken::default()));
            let (mut taken, mut refused, mut is_unknown) = (0, None, false);
            for reply in replies.by_ref().take(publication.part().len()) {
                match (reply, publication.partition) {
                    // All that follows is refused alike.
                    (Err(Refused::Elsewhere(words)), Some(partition)) => {
                        answered.is_elsewhere |= !is_on_its_way(&words);
                        refused = Some(partition);
                    }
                    (Err(Refused::Unknown), _) if waiter.reply.is_some() => is_unknown = true,
                    (reply, _) => {
                        sum = and(sum, reply);
                        taken += 1;
                    }
                }
            }
            if let Some(partition) = refused
                && waiter.reply.is_some()
            {
                publication.keep(taken);
                (waiter.sum, waiter.begun) = (sum, waiter.begun || taken > 0);
                elsewhere.push((partition, publication, waiter));
                continue;
            }
            if is_unknown {
                publication.keep(taken);
                (waiter.sum, waiter.begun) = (sum, waiter.begun || taken > 0);
                unknown.push((publication, waiter));
                continue;
            }
            if !publication.is_finished() && waiter.reply.is_some() {
                (waiter.sum, waiter.begun) = (sum, true);
                backlog.large.push_front((publication, waiter));
                continue;
            }
            let is_unheard = matches!(sum, Ok(Taken { receivers: 0, .. }));
            answered.is_astray |= publication.is_probe && is_unheard;
            waiter.answer(sum);
            // Given back all at once: each time takes a lock.
            match &mut permits {
                Some(permits) => permits.merge(waiter.permit),
                None => permits = Some(waiter.permit),
            }
        }
        backlog.put_back(unknown);
        match elsewhere.is_empty() {
            false => backlog.stall(elsewhere, Instant::now()),
            true => backlog.failures = 0,
        }
        answered
    }

    pub(super) fn fail(&mut self, error: &PublishError) {
        self.publications.clear();
        for mut waiter in self.waiters.0.drain(..) {
            waiter.fail(error);
        }
    }
}

/// Those who wait for one pipeline, in its order.
#[derive(Debug, Default)]
pub(super) struct Waiters(Vec<Waiter>);

impl Waiters {
    /// Waits until then, or as long as one of them does. Whoever has waited long enough is told so, and costs
    /// the others nothing.
    pub(super) async fn wait<T>(
        &mut self,
        what: impl Future<Output = Result<T, Unusable>>,
        until: Instant,
        backlog: &mut Backlog,
    ) -> Result<T, Unusable> {
        let late = "redis did not answer in time";
        let mut what = pin!(what);
        loop {
            let patient = self.0.iter().filter(|waiter| waiter.reply.is_some());
            let end = patient.map(|waiter| waiter.deadline).min();
            if end.is_none() && until <= Instant::now() {
                return Err(late.into());
            }
            let next = [end.unwrap_or(until)]
                .into_iter()
                .chain(backlog.next_deadline());
            match timeout_at(next.min().unwrap_or(until), what.as_mut()).await {
                Ok(done) => return done,
                Err(_) => {
                    self.expire(&PublishError::maybe_sent(late));
                    backlog.expire("redis did not take it in time");
                }
            }
        }
    }

    fn expire(&mut self, late: &PublishError) {
        let now = Instant::now();
        for waiter in self.0.iter_mut().filter(|waiter| waiter.deadline <= now) {
            waiter.fail(late);
        }
    }
}

/// Redis refuses a command whole, but another one of a union may have gone out.
fn and(sum: Receivers, reply: PublishReply) -> Receivers {
    match (sum, reply) {
        (Ok(all), Ok(taken)) => Ok(Taken {
            receivers: all.receivers + taken.receivers,
            mark: taken.mark.or(all.mark),
        }),
        (Ok(all), Err(refused)) => Err(PublishError {
            maybe_sent: all.receivers > 0 || all.mark.is_some() || refused.is_kept(),
            on_replica: false,
            reason: refused.reason(),
        }),
        (Err(error), Ok(taken)) => Err(PublishError {
            maybe_sent: error.maybe_sent || taken.receivers > 0 || taken.mark.is_some(),
            ..error
        }),
        (Err(error), Err(refused)) => Err(PublishError {
            maybe_sent: error.maybe_sent || refused.is_kept(),
            ..error
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::queue::{Queue, Queued};
    use bytes::Bytes;
    use smallvec::SmallVec;

    use tokio::sync::oneshot;

    use super::*;
    use crate::bus::redis::publication::PART;
    use crate::bus::scope::Size;

    #[test]
    fn a_union_that_is_refused_in_part_may_have_been_sent() {
        let refused = Err(Refused::For("NOPERM".into()));
        let (taken, ignored) = (Ok(1.into()), Ok(0.into()));
        for (replies, maybe_sent) in [
            ([&refused, &refused], false),
            ([&refused, &ignored], false),
            ([&ignored, &refused], false),
            ([&taken, &refused], true),
            ([&refused, &taken], true),
        ] {
            let sum = replies.into_iter().cloned().fold(Ok(0.into()), and);
            assert_eq!(sum.unwrap_err().maybe_sent, maybe_sent, "{replies:?}");
        }
    }

    fn queued(
        channels: std::ops::Range<usize>,
        is_probe: bool,
    ) -> ((Publication, Waiter), oneshot::Receiver<Receivers>) {
        let (reply, answer) = oneshot::channel();
        let channels: SmallVec<_> = channels.map(|channel| channel.to_string()).collect();
        let deadline = Instant::now() + Duration::from_secs(60);
        let size = match channels.len() {
            0..=64 => Size::Small,
            _ => Size::Large,
        };
        let mut publication = Publication::new(channels, Bytes::from_static(b"x"), size, None);
        publication.is_probe = is_probe;
        let queued = Queued::new(publication, deadline, reply);
        let queue = Arc::new(Queue::default());
        (queued.admitted(&queue, Waiter::new), answer)
    }

    /// Writes one pipeline that two nodes hear; the channels in it.
    fn written(backlog: &mut Backlog) -> Vec<usize> {
        let mut turn = Turn::default();
        backlog.take_turn(&mut turn);
        let parts = turn.publications.iter().flat_map(Publication::part);
        let channels: Vec<usize> = parts.map(|channel| channel.parse().unwrap()).collect();
        turn.answer(channels.iter().map(|_| Ok(2.into())), backlog);
        channels
    }

    #[test]
    fn a_large_union_is_cut_and_what_is_small_goes_first() {
        let mut backlog = Backlog::default();
        let (end, rest) = (4 * PART - 24, PART + 44);
        let (first, mut first_answer) = queued(0..end, false);
        let (second, mut second_answer) = queued(end..end + rest, false);
        backlog.admit(first);
        backlog.admit(second);
        assert_eq!(written(&mut backlog), (0..PART).collect::<Vec<_>>());
        for (channel, is_probe) in [(77_777, false), (88_888, false), (99_999, true)] {
            backlog.admit(queued(channel..channel + 1, is_probe).0);
        }
        let small = [99_999, 77_777, 88_888];
        assert_eq!(
            written(&mut backlog),
            small.into_iter().chain(PART..2 * PART).collect::<Vec<_>>()
        );
        assert_eq!(
            written(&mut backlog),
            (2 * PART..3 * PART).collect::<Vec<_>>()
        );
        assert!(first_answer.try_recv().is_err(), "it is not finished");
        assert_eq!(written(&mut backlog), (3 * PART..end).collect::<Vec<_>>());
        assert_eq!(first_answer.try_recv().unwrap().unwrap().receivers, 2 * end);
        assert_eq!(written(&mut backlog), (end..end + PART).collect::<Vec<_>>());
        backlog.fail(&PublishError::not_sent("lost"));
        assert!(second_answer.try_recv().unwrap().unwrap_err().maybe_sent);
        assert!(backlog.is_empty());
    }

    /// A union of very many users, and then the command to close their sockets, which travels on one channel.
    #[test]
    fn what_goes_to_one_audience_keeps_its_order() {
        let mut backlog = Backlog::default();
        let (mut command, _answer) = queued(99_999..100_000, false);
        command.0.size = Size::Large;
        backlog.admit(queued(0..PART + 44, false).0);
        backlog.admit(command);
        backlog.admit(queued(77_777..77_778, false).0);
        let first = [77_777].into_iter().chain(0..PART);
        assert_eq!(written(&mut backlog), first.collect::<Vec<_>>());
        assert_eq!(written(&mut backlog), (PART..PART + 44).collect::<Vec<_>>());
        assert_eq!(written(&mut backlog), [99_999]);
    }

    #[test]
    fn what_is_on_its_way_is_no_hint() {
        for (words, is_elsewhere) in [
            ("TRYAGAIN x", false),
            ("ASK 7 h:1", false),
            ("MOVED 7 h:1", true),
        ] {
            let (mut backlog, mut turn) = (Backlog::default(), Turn::default());
            let (mut queued, _answer) = queued(0..1, false);
            queued.0.partition = Some(Partition::of("r:1"));
            backlog.admit(queued);
            backlog.take_turn(&mut turn);
            let refused = Err(Refused::Elsewhere(words.into()));
            let answered = turn.answer([refused].into_iter(), &mut backlog);
            assert_eq!(answered.is_elsewhere, is_elsewhere, "{words}");
            assert!(backlog.rests_until().is_some(), "control: it waits");
        }
    }

    /// Redis refuses what is elsewhere, and takes it again before the next turn.
    #[test]
    fn what_follows_what_is_elsewhere_waits_behind_it() {
        let mut backlog = Backlog::default();
        let one = Partition::of("r:1");
        let mut other = Partition::all();
        let other = other.find(|other| *other != one);
        let admit = |backlog: &mut Backlog, channel, partition| {
            let (mut queued, answer) = queued(channel..channel + 1, false);
            queued.0.partition = partition;
            backlog.admit(queued);
            answer
        };
        let mut answers = vec![admit(&mut backlog, 0, Some(one))];
        let mut turn = Turn::default();
        backlog.take_turn(&mut turn);
        answers.push(admit(&mut backlog, 1, Some(one)));
        let refused = || Err(Refused::Elsewhere("MOVED".into()));
        let answered = turn.answer([refused()].into_iter(), &mut backlog);
        assert!(answered.is_elsewhere);
        for (channel, partition) in [(2, other), (3, Some(one))] {
            answers.push(admit(&mut backlog, channel, partition));
        }
        assert_eq!(written(&mut backlog), [2], "nothing holds up the others");
        assert!(backlog.is_empty() && backlog.rests_until().is_some());
        backlog.retry(Instant::now() + LONGEST_PAUSE);
        assert_eq!(written(&mut backlog), [0, 1, 3]);
        for answer in &mut answers {
            assert_eq!(answer.try_recv().unwrap().unwrap().receivers, 2);
        }
        // Whoever waits for it in vain is told why.
        let mut late = admit(&mut backlog, 4, Some(one));
        backlog.take_turn(&mut turn);
        turn.answer([refused()].into_iter(), &mut backlog);
        let stalled = backlog.stalled.values_mut().flatten();
        stalled.for_each(|(_, waiter)| waiter.deadline = Instant::now());
        backlog.expire("late");
        let told = late.try_recv().unwrap().unwrap_err();
        assert!(
            !told.maybe_sent && told.reason.contains("moves"),
            "{told:?}"
        );
    }

    #[test]
    fn small_ones_do_not_keep_a_large_one_from_its_turn() {
        let mut backlog = Backlog::default();
        for _ in 0..2000 {
            backlog.admit(queued(0..1, false).0);
        }
        backlog.admit(queued(0..PART + 44, false).0);
        assert_eq!(written(&mut backlog).len(), BATCH + PART);
        assert_eq!(written(&mut backlog).len(), BATCH + 44);
    }

    #[test]
    fn whoever_came_first_loses_patience_first() {
        let kinds = || [(0..PART + 44, false), (0..1, false), (0..1, true)];
        for first in kinds() {
            let mut backlog = Backlog::default();
            for (channels, is_probe) in [first.clone()].into_iter().chain(kinds()) {
                let next = backlog.next_deadline();
                backlog.admit(queued(channels, is_probe).0);
                assert!(
                    next.is_none() || backlog.next_deadline() == next,
                    "{first:?}"
                );
            }
        }
        let mut backlog = Backlog::default();
        let (union, _answer) = queued(0..PART + 44, false);
        backlog.admit(union);
        let next = backlog.next_deadline();
        backlog.admit(queued(0..PART + 44, false).0);
        written(&mut backlog);
        assert_eq!(backlog.next_deadline(), next, "44 of it are left");
    }
}
