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
//! Each waits only until its own deadline, here and in the turn. In a turn that is over for the one who asked and not
//! for Redis, the answer finds nobody.

use std::collections::VecDeque;
use std::pin::pin;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::pipeline::{PublishReply, Unusable};
use super::publication::{Publication, Receivers};
use super::queue::Permit;
use crate::model::error::PublishError;

/// Most publications in one pipeline.
pub(super) const BATCH: usize = 256;
/// Queues that have grown beyond so many publications do not keep their memory.
pub(super) const KEPT: usize = 16 * BATCH;
/// Who waits for a publication.
#[derive(Debug)]
pub(super) struct Waiter {
    deadline: Instant,
    /// Taken by the first answer.
    reply: Option<oneshot::Sender<Receivers>>,
    /// What Redis said so far.
    sum: Receivers,
    /// A part may have been sent.
    begun: bool,
    /// Given back when Redis has answered or the connection is given up.
    permit: Permit,
}

impl Waiter {
    pub(super) fn new(
        deadline: Instant,
        reply: oneshot::Sender<Receivers>,
        permit: Permit,
    ) -> Self {
        Self {
            deadline,
            reply: Some(reply),
            sum: Ok(0),
            begun: false,
            permit,
        }
    }

    fn answer(&mut self, published: Receivers) {
        if let Some(reply) = self.reply.take() {
            // Fails only when the sender gave up.
            let _ = reply.send(published);
        }
    }

    fn fail(&mut self, error: &PublishError) {
        let maybe_sent = error.maybe_sent || self.begun;
        self.answer(Err(PublishError {
            maybe_sent,
            ..error.clone()
        }));
    }
}

/// What has not had its turn, or not the last one.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// Before whatever else waits.
    probes: VecDeque<(Publication, Waiter)>,
    small: VecDeque<(Publication, Waiter)>,
    large: VecDeque<(Publication, Waiter)>,
}

impl Backlog {
    pub(super) fn admit(&mut self, (publication, waiter): (Publication, Waiter)) {
        let queue = match (publication.is_probe, publication.is_large()) {
            (true, _) => &mut self.probes,
            (_, true) => &mut self.large,
            _ => &mut self.small,
        };
        queue.push_back((publication, waiter));
    }

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
        let first = queues.into_iter().filter_map(VecDeque::front);
        first.map(|(_, waiter)| waiter.deadline).min()
    }

    /// Tells those whose deadline has passed.
    pub(super) fn expire(&mut self, late: &str) {
        let now = Instant::now();
        if self.next_deadline().is_none_or(|next| now < next) {
            return;
        }
        let error = PublishError::not_sent(late);
        for queue in [&mut self.probes, &mut self.small, &mut self.large] {
            queue.retain_mut(|(_, waiter)| {
                let patient = now < waiter.deadline;
                if !patient {
                    waiter.fail(&error);
                }
                patient
            });
        }
    }

    pub(super) fn fail(&mut self, error: &PublishError) {
        for queue in [&mut self.probes, &mut self.small, &mut self.large] {
            for (_, mut waiter) in queue.drain(..) {
                waiter.fail(error);
            }
        }
    }
}

/// What is in one pipeline.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub(super) publications: Vec<Publication>,
    pub(super) waiters: Waiters,
}

impl Turn {
    /// Gives each the replies to its own commands; what is not finished waits for its next turn. Whether a probe
    /// reached nobody.
    pub(super) fn answer(
        &mut self,
        mut replies: impl Iterator<Item = PublishReply>,
        backlog: &mut Backlog,
    ) -> bool {
        let (mut permits, mut is_astray): (Option<Permit>, bool) = (None, false);
        let waiters = self.waiters.0.drain(..);
        for (publication, mut waiter) in self.publications.drain(..).zip(waiters) {
            let mut sum = std::mem::replace(&mut waiter.sum, Ok(0));
            for reply in replies.by_ref().take(publication.part().len()) {
                sum = and(sum, reply);
            }
            if !publication.is_finished() && waiter.reply.is_some() {
                (waiter.sum, waiter.begun) = (sum, true);
                backlog.large.push_front((publication, waiter));
                continue;
            }
            is_astray |= publication.is_probe && matches!(sum, Ok(0));
            waiter.answer(sum);
            // Given back all at once: each time takes a lock.
            match &mut permits {
                Some(permits) => permits.merge(waiter.permit),
                None => permits = Some(waiter.permit),
            }
        }
        is_astray
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
        (Ok(nodes), Ok(count)) => Ok(nodes + count),
        (Ok(nodes), Err(reason)) => Err(PublishError {
            maybe_sent: nodes > 0,
            on_replica: false,
            reason,
        }),
        (Err(error), Ok(count)) => Err(PublishError {
            maybe_sent: error.maybe_sent || count > 0,
            ..error
        }),
        (refused, Err(_)) => refused,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::queue::{Queue, Queued};
    use bytes::Bytes;
    use smallvec::SmallVec;

    use super::*;
    use crate::bus::redis::publication::PART;
    use crate::bus::scope::Size;

    #[test]
    fn a_union_that_is_refused_in_part_may_have_been_sent() {
        let (taken, ignored, refused) = (Ok(1), Ok(0), Err(Arc::from("NOPERM")));
        for (replies, maybe_sent) in [
            ([&refused, &refused], false),
            ([&refused, &ignored], false),
            ([&ignored, &refused], false),
            ([&taken, &refused], true),
            ([&refused, &taken], true),
        ] {
            let sum = replies.into_iter().cloned().fold(Ok(0), and);
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
        let mut publication = Publication::new(channels, Bytes::from_static(b"x"), size);
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
        turn.answer(channels.iter().map(|_| Ok(2)), backlog);
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
        assert_eq!(first_answer.try_recv().unwrap().unwrap(), 2 * end);
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
