//! What waits for Redis to be back, longer than whoever sent it: in the order in which it was sent, and once.
//!
//! ```text
//!                      a link was lost, none can be opened, or nobody answered in time
//!  queued, or in a pipeline ----------------------------------------------------------> waiting
//!       |                                                                              ^    |
//!       | taken by Redis                                   lost with another process   |    |  its turn: in doubt, if it may
//!       v                                                                              |    v  be there already
//!    lately -------------------------------------------------------------------------->+   taken: lately
//! ```
//! Whoever sent it is told that it waits as soon as Redis is known to be away, or when it has waited as long as a send does; and later
//! what became of it. Where something waits, what comes goes behind it; and before anything leaves on another process, what that
//! has lost comes first.

use std::collections::{BTreeSet, VecDeque};
use std::mem::take;
use std::sync::Arc;

use tokio::time::Instant;

use super::super::publication::Publication;
use super::super::queue::{Queue, Waiter};
use super::lately::{Ends, Lately, TakenLately};
use super::room::Room;
use crate::bus::wire::MOST_FORMER;
use crate::model::error::PublishError;
use crate::model::history::mark::{Mark, Run};
use crate::model::limits::SpoolLimits;
use crate::model::partition::Partition;

const TOO_OLD: &str = "it has waited in the spool for redis as long as `spool` allows";

/// Of one publisher.
#[derive(Debug)]
pub(in crate::bus::redis) struct Spool {
    pub(in crate::bus::redis) room: Arc<Room>,
    waiting: VecDeque<(Publication, Waiter)>,
    lately: Lately<Publication>,
    /// Before, nothing is tried.
    pub(in crate::bus::redis) rests_until: Option<Instant>,
    /// Another process may be there by now.
    is_unsettled: bool,
    /// Redis takes nothing for now.
    is_away: bool,
}

impl Spool {
    pub(in crate::bus::redis) fn new(room: Arc<Room>) -> Self {
        let SpoolLimits {
            messages, bytes, ..
        } = room.limits;
        Self {
            room,
            waiting: VecDeque::new(),
            lately: Lately::new(messages, bytes),
            rests_until: None,
            is_unsettled: false,
            is_away: false,
        }
    }

    pub(in crate::bus::redis) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether there is something to do now.
    pub(in crate::bus::redis) fn is_due(&self, now: Instant) -> bool {
        let rests = self.rests_until.is_some_and(|until| now < until);
        !rests && (!self.waiting.is_empty() || self.is_unsettled)
    }

    /// When it may have something to do: to try again, or to give up.
    pub(in crate::bus::redis) fn next(&self) -> Option<Instant> {
        let has_work = !self.waiting.is_empty() || self.is_unsettled;
        let rests_until = self.rests_until.filter(|_| has_work);
        rests_until.into_iter().chain(self.next_deadline()).min()
    }

    pub(in crate::bus::redis) fn next_deadline(&self) -> Option<Instant> {
        let of = |at| self.waiting.get(at).map(|(_, waiter)| waiter.deadline);
        of(0).into_iter().chain(of(self.told())).min()
    }

    /// How many of those that wait have been told so: the first.
    fn told(&self) -> usize {
        self.waiting.partition_point(|(_, waiter)| waiter.waits())
    }

    /// Redis takes nothing for now: whoever waits, and whoever comes, is told so at once, as long as there is room.
    pub(in crate::bus::redis) fn is_away(&mut self) {
        self.is_away = true;
        self.tell_all();
    }

    /// Something leaves: who comes waits for the answer again, so that none sends more than Redis takes.
    pub(in crate::bus::redis) fn is_back(&mut self) {
        self.is_away = false;
    }

    fn tell_all(&mut self) {
        self.tell_while(|_| true);
    }

    fn tell_while(&mut self, is_told: impl Fn(&Waiter) -> bool) {
        let mut told = self.told();
        while let Some((_, waiter)) = self.waiting.get_mut(told)
            && is_told(waiter)
        {
            match waiter.begins_to_wait() {
                true => told += 1,
                false => drop(self.waiting.remove(told)),
            }
        }
    }

    /// Behind what waits. Where there is no room for it, its sender is told so.
    pub(in crate::bus::redis) fn push(&mut self, (publication, waiter): (Publication, Waiter)) {
        self.is_unsettled |= publication.is_in_doubt();
        let tells = self.is_away || waiter.waits();
        self.waiting.push_back((publication, waiter));
        if tells {
            self.tell_all();
        }
    }

    /// Before what waits.
    pub(in crate::bus::redis) fn push_first(
        &mut self,
        first: impl DoubleEndedIterator<Item = (Publication, Waiter)>,
    ) {
        // There is room first for what is older.
        let told = first.filter_map(|(publication, mut waiter)| {
            waiter.begins_to_wait().then_some((publication, waiter))
        });
        let told: Vec<_> = told.collect();
        for (publication, waiter) in told.into_iter().rev() {
            // It may have been away while another process came.
            self.is_unsettled |= publication.is_in_doubt();
            self.waiting.push_front((publication, waiter));
        }
    }

    pub(in crate::bus::redis) fn pop(&mut self) -> Option<(Publication, Waiter)> {
        self.waiting.pop_front()
    }

    pub(in crate::bus::redis) fn pop_if(
        &mut self,
        is_next: impl Fn(&Publication) -> bool,
    ) -> Option<(Publication, Waiter)> {
        let (next, _) = self.waiting.front()?;
        is_next(next).then(|| self.waiting.pop_front())?
    }

    /// Tells those that have waited too long, and those that wait by now.
    pub(in crate::bus::redis) fn expire(&mut self, now: Instant) {
        while let Some((publication, waiter)) = self.waiting.front_mut()
            && waiter.waits()
            && waiter.deadline <= now
        {
            let error = match publication.is_in_doubt() {
                true => PublishError::maybe_sent(TOO_OLD),
                false => PublishError::not_sent(TOO_OLD),
            };
            waiter.fail(&error);
            self.waiting.pop_front();
        }
        self.tell_while(|waiter| waiter.deadline <= now);
    }

    /// Takes out what is of a partition that departs: the oldest first.
    pub(in crate::bus::redis) fn take_out(
        &mut self,
        partition: Partition,
        queue: &Arc<Queue>,
    ) -> Vec<(Publication, Waiter)> {
        let concerned = |publication: &Publication| publication.partition == Some(partition);
        let lately = self.lately.take_out(concerned).into_iter();
        let mut out: Vec<_> = lately
            .map(|taken| {
                let mut publication = taken.what;
                if let Some(doubt) = publication.doubt_mut() {
                    doubt.taken = Some((taken.mark, taken.at));
                }
                (publication, Waiter::nobody(queue, taken.at, None))
            })
            .collect();
        if self.waiting.iter().any(|(one, _)| concerned(one)) {
            let waiting = take(&mut self.waiting).into_iter();
            let (departing, staying): (Vec<_>, _) = waiting.partition(|(one, _)| concerned(one));
            self.waiting = staying.into();
            out.extend(departing);
        }
        out
    }

    /// Another publisher had it lately.
    pub(in crate::bus::redis) fn take_over(&mut self, mut publication: Publication) {
        let taken = publication.doubt_mut().and_then(|doubt| doubt.taken.take());
        if let Some((mark, at)) = taken {
            self.is_unsettled = true;
            self.remember(publication, mark, at, false);
        }
    }

    /// Redis took these channels of a publication, each under its number.
    pub(in crate::bus::redis) fn took(
        &mut self,
        publication: &mut Publication,
        marks: &[Option<Mark>],
        now: Instant,
    ) {
        for (mark, unit) in publication.take_units(marks) {
            self.remember(unit, mark, now, true);
        }
    }

    fn remember(&mut self, what: Publication, mark: Mark, at: Instant, is_proven: bool) {
        let Some(keeping) = &what.keep else { return };
        let taken = TakenLately {
            clock: keeping.clock.clone(),
            mark,
            at,
            bytes: what.envelope.len(),
            what,
        };
        self.lately.add(taken, is_proven);
    }

    /// Nobody knows what became of what was written on a connection to this run.
    pub(in crate::bus::redis) fn doubt(&self, publication: &mut Publication, run: Option<Run>) {
        let (Some(run), Some(keeping)) = (run, publication.keep.as_ref()) else {
            return;
        };
        let number = self.lately.latest(&keeping.clock, run);
        if let Some(doubt) = publication.doubt_mut() {
            doubt.since.get_or_insert(Mark { run, number });
        }
    }

    /// The connection is lost, and with it perhaps the process.
    pub(in crate::bus::redis) fn unsettle(&mut self) {
        self.is_unsettled |= !self.lately.is_empty();
    }

    /// It is to be asked who is there before anything leaves, …
    pub(in crate::bus::redis) fn ask(&mut self) {
        self.is_unsettled = true;
    }

    /// … if it is.
    pub(in crate::bus::redis) fn is_unsettled(&self) -> bool {
        self.is_unsettled
    }

    /// Where these runs ended has to be known on another one.
    pub(in crate::bus::redis) fn unproven(&self, run: Run) -> BTreeSet<(Arc<str>, Run)> {
        let doubted = self.waiting.iter().filter_map(|(publication, _)| {
            let keeping = publication.keep.as_ref()?;
            let since = publication.doubt()?.since;
            let since = since.filter(|since| since.run != run)?;
            Some((keeping.clock.clone(), since.run))
        });
        let mut unproven: BTreeSet<_> = doubted.collect();
        unproven.extend(self.lately.unproven(run));
        unproven
    }

    /// It is known where they ended: what is lost is to be kept again, before what waits. How many messages that are.
    pub(in crate::bus::redis) fn settle(
        &mut self,
        run: Run,
        ends: &Ends,
        queue: &Arc<Queue>,
        now: Instant,
    ) -> u64 {
        for (publication, _) in &mut self.waiting {
            let Some(keeping) = &mut publication.keep else {
                continue;
            };
            let doubt = keeping.doubt.as_mut();
            let since = doubt.and_then(|doubt| doubt.since.as_mut());
            if let Some(since) = since.filter(|since| since.run != run) {
                let end = ends.get(&(keeping.clock.clone(), since.run));
                let end = end.copied().flatten().unwrap_or_default();
                *since = Mark {
                    run,
                    number: since.number.min(end),
                };
            }
        }
        let wait = self.room.limits.wait;
        let (mut again, mut messages) = (Vec::new(), 0);
        for taken in self.lately.settle(run, ends) {
            if taken.at + wait < now {
                continue;
            }
            let end = ends.get(&(taken.clock, taken.mark.run)).copied().flatten();
            let mut publication = taken.what;
            let kept = publication.kept_lists();
            let permit = self.room.take_anyway(kept, taken.bytes);
            if let Some(doubt) = publication.doubt_mut() {
                let number = end.unwrap_or_default();
                doubt.since = Some(Mark { run, number });
                if doubt.formerly.len() == MOST_FORMER {
                    doubt.formerly.remove(0);
                }
                doubt.formerly.push(taken.mark);
            }
            messages += 1;
            again.push((
                publication,
                Waiter::nobody(queue, taken.at + wait, Some(permit)),
            ));
        }
        self.push_first(again.into_iter());
        self.is_unsettled = false;
        messages
    }
}
