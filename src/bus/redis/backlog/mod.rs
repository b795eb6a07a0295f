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
//! Where there is a spool, what is kept and had no answer, or could not be sent, goes there instead of failing. It has its turns
//! before what is small and large; and while something is there, whatever else would go there goes behind it.
//!
//! In a Redis Cluster a primary may say that a partition is elsewhere, before anybody knows where. What it refused so is
//! stalled, with all that follows of its partition, until the partition departs for another publisher, or a pause is over. Where
//! that is still on its way only what follows of the same topics is ([`split`]), and what has left already is asked for there.
//!
//! Each waits only until its own deadline, here and in the turn. In a turn that is over for the one who asked and not
//! for Redis, the answer finds nobody.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::mem::{replace, take};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use self::split::Split;
use self::told::{PartTold, Rest};
pub(super) use self::waiters::Waiters;
use super::address::ServerAddress;
use super::backoff::LONGEST_PAUSE;
use super::past::room::Room;
use super::past::spool::Spool;
use super::pipeline::PublishReply;
use super::publication::{Publication, Taken};
use super::queue::{Permit, Queue, Waiter};
use crate::model::error::PublishError;
use crate::model::history::mark::Run;
use crate::model::partition::Partition;

mod split;
mod told;
mod waiters;

/// Most publications in one pipeline.
pub(super) const BATCH: usize = 256;
/// Queues that have grown beyond so many publications do not keep their memory.
pub(super) const KEPT: usize = 16 * BATCH;
/// Bytes of payload after which a turn that others follow takes no more.
const FULL: usize = 256 * 1024;
/// What is told to whoever has waited long enough for its turn, …
pub(super) const LATE: &str = "redis did not take it in time";
/// … and in it.
pub(super) const UNANSWERED: &str = "redis did not answer in time";
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
    split: Split,
    /// What is of topics that have left for where a primary said.
    asked: VecDeque<(Publication, Waiter)>,
    /// Why nobody can be asked there.
    pub(super) asks_nobody: Option<Arc<str>>,
    /// When they are tried again.
    again_at: Option<Instant>,
    /// How often nothing came of it.
    failures: u32,
    /// Something is to be asked, whether anything leaves or not.
    asks: bool,
    pub(super) spool: Option<Spool>,
}

/// What came of a turn.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TurnAnswered {
    /// A probe reached nobody.
    pub(super) is_astray: bool,
    /// Something is at another primary already.
    pub(super) is_elsewhere: bool,
    /// What is kept is not taken for now.
    pub(super) is_away: bool,
}

impl Backlog {
    /// Where what is kept waits in a spool, which has room.
    pub(super) fn spooling(room: Arc<Room>) -> Self {
        Self {
            spool: Some(Spool::new(room)),
            ..Self::default()
        }
    }

    pub(super) fn admit(&mut self, (mut publication, mut waiter): (Publication, Waiter)) {
        if let Some(spool) = self.spool.as_mut().filter(|_| publication.spools()) {
            if publication.doubt().is_some_and(|it| it.taken.is_some()) {
                spool.take_over(publication);
                return;
            }
            let (messages, bytes) = (publication.kept_lists(), publication.envelope.len());
            waiter.may_wait(|| spool.room.claim(messages, bytes));
        }
        if let Some(partition) = publication.partition {
            publication.goes_alone = self.split.is_split(partition);
            publication.asks = None;
            if let Some(stalled) = self.stalled.get_mut(&partition)
                && self.split.is_behind(partition, &publication)
            {
                stalled.push_back((publication, waiter));
                return;
            }
        }
        if let Some(spool) = &mut self.spool
            && publication.spools()
            && (waiter.waits() || !spool.is_empty())
        {
            let was_empty = spool.is_empty();
            spool.push((publication, waiter));
            if was_empty {
                self.gather();
            }
            return;
        }
        let queue = match (publication.is_probe, publication.is_large()) {
            (true, _) => &mut self.probes,
            (_, true) => &mut self.large,
            _ => &mut self.small,
        };
        queue.push_back((publication, waiter));
    }

    /// Where something waits in the spool, so does whatever could, behind it.
    fn gather(&mut self) {
        if self.is_spooling() {
            self.spool_all();
        }
    }

    /// Whatever could wait goes to the spool.
    fn spool_all(&mut self) {
        let Some(spool) = &mut self.spool else { return };
        for queue in [&mut self.small, &mut self.large] {
            if queue.iter().any(|(publication, _)| publication.spools()) {
                let all = take(queue).into_iter();
                let (spooled, others): (Vec<_>, _) = all.partition(|(one, _)| one.spools());
                *queue = others.into();
                spooled.into_iter().for_each(|one| spool.push(one));
            }
        }
    }

    fn is_spooling(&self) -> bool {
        self.spool.as_ref().is_some_and(|spool| !spool.is_empty())
    }

    /// What comes back from a turn is next again, before what waits.
    fn return_to_spool(&mut self, returned: Vec<(Publication, Waiter)>) {
        if let Some(spool) = &mut self.spool {
            spool.push_first(returned.into_iter());
        }
        self.gather();
    }

    /// What Redis refused, with what follows of its partition, is to wait. Of each, whether it has arrived there.
    fn stall(&mut self, refused: Vec<(Partition, bool, Publication, Waiter)>, now: Instant) {
        for (partition, has_arrived, publication, waiter) in refused.into_iter().rev() {
            self.split.refused(partition, has_arrived);
            let stalled = self.stalled.entry(partition).or_default();
            stalled.push_front((publication, waiter));
        }
        let mut spooled = VecDeque::new();
        while let Some(next) = self.spool.as_mut().and_then(Spool::pop) {
            spooled.push_back(next);
        }
        for queue in [
            &mut spooled,
            &mut self.asked,
            &mut self.small,
            &mut self.large,
        ] {
            for (publication, waiter) in take(queue) {
                let stalled = publication.partition;
                match stalled.and_then(|partition| self.stalled.get_mut(&partition)) {
                    Some(stalled) => stalled.push_back((publication, waiter)),
                    None => queue.push_back((publication, waiter)),
                }
            }
        }
        for stalled in self.stalled.values_mut() {
            let stalled = stalled.make_contiguous();
            stalled.sort_by_key(|(_, waiter)| waiter.place);
        }
        self.split.note(&self.stalled);
        self.return_to_spool(spooled.into());
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
        let mut again = Vec::new();
        for (partition, mut stalled) in take(&mut self.stalled) {
            match self.split.is_split(partition) {
                true => again.extend(split::ahead(&mut stalled)),
                false => again.extend(stalled.drain(..).map(|(mut publication, waiter)| {
                    publication.asks = None;
                    (publication, waiter)
                })),
            }
            if !stalled.is_empty() {
                self.stalled.insert(partition, stalled);
            }
        }
        let waits = |(_, waiter): &(Publication, Waiter)| waiter.waits();
        let (spooled, others): (Vec<_>, Vec<_>) = again.into_iter().partition(waits);
        self.return_to_spool(spooled);
        for (publication, waiter) in others.into_iter().rev() {
            let queue = match (publication.asks.is_some(), publication.is_large()) {
                (true, _) if self.spool.is_none() => &mut self.asked,
                (_, true) => &mut self.large,
                _ => &mut self.small,
            };
            queue.push_front((publication, waiter));
        }
        if !self.stalled.is_empty() {
            // Whatever becomes of those.
            self.again_at = Some(now + AGAIN);
        }
        self.gather();
    }

    /// Nothing is refused any more. Whether something waits behind what was.
    fn goes_on(&mut self) {
        self.failures = 0;
        self.split.note(&self.stalled);
        if !self.stalled.is_empty() {
            let soon = Instant::now() + AGAIN;
            self.again_at = Some(self.again_at.map_or(soon, |at| at.min(soon)));
        }
    }

    /// What is to be asked for where its keys are by now; of one such place.
    pub(super) fn take_asked(&mut self, turn: &mut Turn) -> Option<ServerAddress> {
        let place = self.asked.front()?.0.asks.clone();
        while let Some((mut publication, waiter)) = self.asked.pop_front() {
            if publication.asks != place {
                self.asked.push_front((publication, waiter));
                break;
            }
            publication.asks = None;
            turn.push(publication, waiter);
        }
        place
    }

    /// Whether some keys have left and others have not.
    pub(super) fn is_split(&self) -> bool {
        !self.split.is_empty()
    }

    /// Until when there is nothing to do, though something waits.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        self.again_at.filter(|_| self.is_empty())
    }

    /// Takes out what is of a partition that departs.
    pub(super) fn take_out(
        &mut self,
        partition: Partition,
        queue: &Arc<Queue>,
    ) -> Vec<(Publication, Waiter)> {
        let spool = self.spool.as_mut();
        let spooled = spool.map(|spool| spool.take_out(partition, queue));
        let mut taken = spooled.unwrap_or_default();
        taken.extend(self.stalled.remove(&partition).into_iter().flatten());
        self.split.end(partition);
        if self.stalled.is_empty() {
            self.again_at = None;
        }
        for queue in [&mut self.asked, &mut self.small, &mut self.large] {
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
        let queues = [&self.probes, &self.asked, &self.small, &self.large];
        queues.into_iter().all(VecDeque::is_empty)
    }

    /// What goes into the next pipeline: what waits in the spool; with the last of that whatever is small, and a part of the first
    /// large union.
    pub(super) fn take_turn(&mut self, turn: &mut Turn) {
        self.asks = false;
        turn.lists.clear();
        if self.take_spooled(turn) {
            return;
        }
        for (publication, waiter) in self.probes.drain(..) {
            turn.push(publication, waiter);
        }
        let most = turn.publications.len() + BATCH;
        while turn.publications.len() < most
            && let Some((publication, waiter)) = turn.next_of(&mut self.small)
        {
            turn.push(publication, waiter);
        }
        if let Some((publication, waiter)) = turn.next_of(&mut self.large) {
            turn.push(publication, waiter);
        }
        if self.small.is_empty() && self.small.capacity() > KEPT {
            self.small = VecDeque::new();
        }
    }

    /// Whether what is next must have the answer to all that left before it, and be answered before anything follows it: what may be
    /// published again, and whatever else is more than a PUBLISH.
    pub(super) fn goes_alone(&self) -> bool {
        let is_kept = |queue: &VecDeque<(Publication, Waiter)>| {
            let next = queue.front();
            next.is_some_and(|(publication, _)| publication.keep.is_some())
        };
        let has_other = self.asks || !self.probes.is_empty() || !self.asked.is_empty();
        let is_stalled = self.spool.is_some() || !self.stalled.is_empty();
        has_other || is_stalled || is_kept(&self.small) || is_kept(&self.large)
    }

    /// Whether there is something that may follow what is not answered, …
    pub(super) fn has_next(&self, may_be_large: bool) -> bool {
        !self.small.is_empty() || may_be_large && !self.large.is_empty()
    }

    /// … as much as goes into one pipeline …
    pub(super) fn is_full(&self) -> bool {
        self.small.len() >= BATCH
    }

    /// … which is this: what is small, up to what [goes alone](Self::goes_alone), and a part of the first large union.
    pub(super) fn take_next(&mut self, turn: &mut Turn, may_be_large: bool) {
        let mut bytes = 0;
        while turn.publications.len() < BATCH
            && bytes < FULL
            && let Some((publication, waiter)) = self.small.pop_front()
        {
            if publication.keep.is_some() {
                self.small.push_front((publication, waiter));
                break;
            }
            bytes += publication.channels.len() * publication.envelope.len();
            turn.push(publication, waiter);
        }
        if may_be_large && let Some((publication, waiter)) = self.large.pop_front() {
            turn.push(publication, waiter);
        }
        if self.small.is_empty() && self.small.capacity() > KEPT {
            self.small = VecDeque::new();
        }
    }

    /// Whether what waits in the spool fills the turn.
    fn take_spooled(&mut self, turn: &mut Turn) -> bool {
        let Some(spool) = self.spool.as_mut().filter(|spool| !spool.is_empty()) else {
            return false;
        };
        let probes = self.probes.drain(..);
        probes.for_each(|(publication, waiter)| turn.push(publication, waiter));
        if spool
            .rests_until
            .is_some_and(|until| Instant::now() < until)
        {
            return false;
        }
        spool.is_back();
        let mut is_full = false;
        while !is_full && let Some((publication, waiter)) = spool.pop_if(|next| turn.finds(next)) {
            let is_large = publication.is_large();
            turn.push(publication, waiter);
            is_full = is_large || turn.publications.len() >= BATCH;
        }
        is_full || !spool.is_empty()
    }

    /// When somebody loses patience. All of a node are equally patient, and each queue is in the order in which
    /// they came (what is put back is the oldest), so that the first is the next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let queues = [&self.probes, &self.asked, &self.small, &self.large];
        let queues = queues.into_iter().chain(self.stalled.values());
        let first = queues.filter_map(VecDeque::front);
        let deadlines = first.map(|(_, waiter)| waiter.deadline);
        let Some(spool) = &self.spool else {
            return deadlines.min();
        };
        // What is stalled waits there, each as long as it may.
        let stalled = self.stalled.values().flatten();
        let stalled = stalled.map(|(_, waiter)| waiter.deadline);
        deadlines.chain(stalled).chain(spool.next_deadline()).min()
    }

    /// Tells those whose deadline has passed.
    pub(super) fn expire(&mut self, late: &str) {
        let now = Instant::now();
        if self.next_deadline().is_none_or(|next| now < next) {
            return;
        }
        if self.spool.is_some() {
            let all = [&self.small, &self.large].into_iter().flatten();
            let is_late = |(publication, waiter): &(Publication, Waiter)| {
                publication.spools() && waiter.deadline <= now
            };
            if all.into_iter().any(is_late) {
                self.spool_all();
            }
        }
        if let Some(spool) = &mut self.spool {
            spool.expire(now);
        }
        let here = [
            &mut self.probes,
            &mut self.asked,
            &mut self.small,
            &mut self.large,
        ];
        let here = here.into_iter().map(|queue| (queue, late));
        let moving = match &self.asks_nobody {
            Some(why) => format!("{MOVING}: {why}"),
            None => MOVING.to_owned(),
        };
        let stalled = self
            .stalled
            .values_mut()
            .map(|queue| (queue, moving.as_str()));
        for (queue, late) in here.chain(stalled) {
            queue.retain_mut(|(_, waiter)| {
                let patient = now < waiter.deadline || !waiter.waits() && waiter.begins_to_wait();
                if !patient {
                    waiter.fail(&PublishError::not_sent(late));
                }
                patient
            });
        }
    }

    pub(super) fn fail(&mut self, error: &PublishError) {
        if self.spool.is_some() {
            self.again_at = Some(Instant::now());
            self.retry(Instant::now());
            self.spool_all();
            self.is_away();
        }
        for queue in self.queues() {
            for (_, mut waiter) in queue.drain(..) {
                waiter.fail(error);
            }
        }
        (self.again_at, self.stalled, self.split) = Default::default();
        // Whoever opens the next connection asks.
        self.asks = false;
    }

    /// Redis takes nothing for now.
    fn is_away(&mut self) {
        if let Some(spool) = &mut self.spool {
            spool.is_away();
        }
    }

    /// What is in the spool rests, and is not tried before.
    pub(super) fn rest_until(&mut self, until: Instant) {
        if let Some(spool) = &mut self.spool {
            spool.rests_until = Some(until);
        }
    }

    /// Whether something can have its turn, or is to be asked.
    pub(super) fn has_work(&self) -> bool {
        let is_due = |spool: &Spool| spool.is_due(Instant::now());
        !self.is_empty() || self.asks || self.spool.as_ref().is_some_and(is_due)
    }

    /// Another publisher had something taken, and it is to be asked what of it is lost.
    pub(super) fn has_to_ask(&mut self) {
        match &mut self.spool {
            Some(spool) => spool.ask(),
            None => self.asks = true,
        }
    }

    /// A connection is lost: the next may be to another process.
    pub(super) fn unsettle(&mut self) {
        if let Some(spool) = &mut self.spool {
            spool.unsettle();
        }
    }

    fn queues(&mut self) -> impl Iterator<Item = &mut VecDeque<(Publication, Waiter)>> {
        let queues = [
            &mut self.probes,
            &mut self.asked,
            &mut self.small,
            &mut self.large,
        ];
        queues.into_iter().chain(self.stalled.values_mut())
    }
}

/// What is in one pipeline.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub(super) publications: Vec<Publication>,
    pub(super) waiters: Waiters,
    /// How much of what may have to be looked for is kept in each list.
    lists: HashMap<String, usize>,
}

impl Turn {
    /// Whether it is found again beside what is here, if the answers to all are lost: no list is to keep less than is looked
    /// for in it.
    fn finds(&self, publication: &Publication) -> bool {
        publication.spooled_lists().all(|list| {
            let before = self.lists.get(&list.key);
            before.is_none_or(|before| *before < list.messages)
        })
    }

    fn next_of(
        &self,
        queue: &mut VecDeque<(Publication, Waiter)>,
    ) -> Option<(Publication, Waiter)> {
        let (next, _) = queue.front()?;
        self.finds(next).then(|| queue.pop_front())?
    }

    fn push(&mut self, mut publication: Publication, waiter: Waiter) {
        for list in publication.spooled_lists() {
            *self.lists.entry(list.key.clone()).or_default() += 1;
        }
        publication.advance();
        self.publications.push(publication);
        self.waiters.0.push(waiter);
    }

    /// Gives each the replies to its own commands; what is not finished waits for its next turn.
    pub(super) fn answer(
        &mut self,
        mut replies: impl Iterator<Item = PublishReply>,
        backlog: &mut Backlog,
    ) -> TurnAnswered {
        let mut permits: Option<Permit> = None;
        let (mut is_astray, mut rest) = (false, Rest::default());
        let waiters = self.waiters.0.drain(..);
        for (mut publication, mut waiter) in self.publications.drain(..).zip(waiters) {
            let sum = replace(&mut waiter.sum, Ok(Taken::default()));
            let spools = backlog.spool.is_some() && publication.spools();
            let replies = replies.by_ref().take(publication.part().len());
            let told = PartTold::by(replies, sum, publication.partition, spools);
            let is_finished = publication.is_finished();
            if let Some(spool) = backlog.spool.as_mut().filter(|_| !told.marks.is_empty()) {
                spool.took(&mut publication, &told.marks, Instant::now());
            }
            if let Some(again) = told.again.filter(|_| waiter.is_there()) {
                publication.keep(told.taken);
                publication.asks = told.asks;
                (waiter.sum, waiter.begun) = (told.sum, waiter.begun || told.taken > 0);
                rest.add(again, spools, (publication, waiter));
                continue;
            }
            if !is_finished && waiter.is_there() {
                (waiter.sum, waiter.begun) = (told.sum, true);
                match waiter.waits() {
                    true => rest.spooled.push((publication, waiter)),
                    false => backlog.large.push_front((publication, waiter)),
                }
                continue;
            }
            let is_unheard = matches!(told.sum, Ok(Taken { receivers: 0, .. }));
            is_astray |= publication.is_probe && is_unheard;
            waiter.answer(told.sum);
            // Given back all at once: each time takes a lock.
            match &mut permits {
                Some(permits) => permits.merge(waiter.permit),
                None => permits = Some(waiter.permit),
            }
        }
        TurnAnswered {
            is_astray,
            ..rest.wait(backlog)
        }
    }

    /// Nobody knows what became of it, on a connection to this run. What may wait in the spool is next again.
    pub(super) fn fail(&mut self, error: &PublishError, backlog: &mut Backlog, run: Option<Run>) {
        let mut returned = Vec::new();
        let waiters = self.waiters.0.drain(..);
        for (mut publication, mut waiter) in self.publications.drain(..).zip(waiters) {
            match &backlog.spool {
                Some(spool) if publication.spools() && waiter.is_there() => {
                    spool.doubt(&mut publication, run);
                    waiter.begun |= publication.is_in_doubt();
                    returned.push((publication, waiter));
                }
                _ => waiter.fail(error),
            }
        }
        backlog.return_to_spool(returned);
        backlog.is_away();
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

    use super::told::and;
    use super::*;
    use crate::bus::redis::pipeline::RefusedPublish;
    use crate::bus::redis::publication::{PART, PublicationAnswer};
    use crate::bus::scope::Size;
    use crate::model::limits::SpoolLimits;

    #[test]
    fn a_union_that_is_refused_in_part_may_have_been_sent() {
        let refused = Err(RefusedPublish::For("NOPERM".into()));
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
    ) -> ((Publication, Waiter), oneshot::Receiver<PublicationAnswer>) {
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
            let refused = Err(RefusedPublish::Elsewhere(words.into()));
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
        let refused = || Err(RefusedPublish::Elsewhere("MOVED".into()));
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

    /// What is refused of a slot on its way holds up what follows on the same channel, and nothing else of its partition.
    #[test]
    fn what_is_on_its_way_holds_up_its_own_topics_alone() {
        let (mut backlog, mut turn) = (Backlog::default(), Turn::default());
        let admit = |backlog: &mut Backlog, channel| {
            let (mut queued, answer) = queued(channel..channel + 1, false);
            queued.0.partition = Some(Partition::of("r:1"));
            backlog.admit(queued);
            answer
        };
        let refused = || Err(RefusedPublish::Elsewhere("TRYAGAIN".into()));
        let mut answers = vec![admit(&mut backlog, 0), admit(&mut backlog, 1)];
        backlog.take_turn(&mut turn);
        assert!(turn.publications.iter().all(|one| !one.goes_alone));
        turn.answer([refused(), refused()].into_iter(), &mut backlog);
        for channel in [2, 0, 1, 2] {
            answers.push(admit(&mut backlog, channel));
        }
        assert_eq!(written(&mut backlog), [2, 2], "nothing of theirs waits");
        backlog.retry(Instant::now() + LONGEST_PAUSE);
        backlog.take_turn(&mut turn);
        assert!(turn.publications.iter().all(|one| one.goes_alone));
        let first = [refused(), refused(), Ok(2.into()), Ok(2.into())];
        turn.answer(first.into_iter(), &mut backlog);
        answers.push(admit(&mut backlog, 0));
        answers.push(admit(&mut backlog, 1));
        assert_eq!(written(&mut backlog), [1], "that went ahead");
        backlog.retry(Instant::now() + LONGEST_PAUSE);
        assert_eq!(written(&mut backlog), [0, 0, 0]);
        assert!(!backlog.is_split());
        for answer in &mut answers {
            assert_eq!(answer.try_recv().unwrap().unwrap().receivers, 2);
        }
    }

    #[test]
    fn what_waits_in_the_spool_keeps_its_place_where_it_is_stalled() {
        let room = Arc::new(Room::new(SpoolLimits {
            messages: 1,
            bytes: 1,
            wait: Duration::from_secs(60),
        }));
        let one = Partition::of("r:1");
        let (mut older, _answer) = queued(0..1, false);
        older.1.may_wait(|| room.claim(1, 1));
        let (newer, _answer) = queued(1..2, false);
        assert!(older.1.begins_to_wait() && older.1.deadline > newer.1.deadline);
        let mut backlog = Backlog::spooling(room);
        let refused = [older, newer].map(|(publication, waiter)| (one, false, publication, waiter));
        backlog.stall(refused.into(), Instant::now());
        let stalled = backlog.stalled[&one].iter();
        let channels: Vec<_> = stalled
            .map(|(one, _)| one.channels[0].to_string())
            .collect();
        assert_eq!(channels, ["0", "1"]);
    }

    #[test]
    fn what_succeeds_beside_it_has_what_is_stalled_tried_again_after_a_pause() {
        let mut backlog = Backlog::default();
        let (queued, _answer) = queued(0..1, false);
        let now = Instant::now();
        backlog.stall(vec![(Partition::of("r:1"), false, queued.0, queued.1)], now);
        backlog.again_at = Some(now + LONGEST_PAUSE);
        let until = |backlog: &Backlog| backlog.rests_until().expect("it waits");
        backlog.goes_on();
        let first = until(&backlog);
        assert!(first >= now + AGAIN && first < now + LONGEST_PAUSE);
        backlog.goes_on();
        assert_eq!(until(&backlog), first, "not put off for ever");
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
