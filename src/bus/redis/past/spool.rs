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
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::super::publication::Publication;
use super::super::queue::{Queue, Waiter};
use super::lately::{Ends, Lately, Taken};
use crate::bus::Listener;
use crate::bus::wire::{Formerly, MOST_FORMER};
use crate::model::error::PublishError;
use crate::model::history::mark::{Mark, Run};
use crate::model::limits::SpoolLimits;
use crate::model::partition::Partition;

const TOO_OLD: &str = "it has waited in the spool for redis as long as `spool` allows";

/// Whether something that is to be kept may be there already.
#[derive(Debug, Clone, Default)]
pub(in crate::bus::redis) struct Doubt {
    /// It would have a higher number than this.
    pub(in crate::bus::redis) since: Option<Mark>,
    /// Where it was, and was lost.
    pub(in crate::bus::redis) formerly: Formerly,
    /// It is there, or was: it comes from another publisher, which had it lately.
    pub(in crate::bus::redis) taken: Option<(Mark, Instant)>,
}

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
        let taken = Taken {
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

    /// Whether it is to be asked who is there before anything leaves.
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

/// What may wait on a node, over all its publishers.
#[derive(Debug)]
pub(in crate::bus::redis) struct Room {
    pub(in crate::bus::redis) limits: SpoolLimits,
    waiting: Mutex<Waiting>,
    emptied: Notify,
    /// Who counts.
    listener: OnceLock<Weak<dyn Listener>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Size {
    messages: usize,
    bytes: usize,
}

/// What waits, and what was dropped since nothing did.
#[derive(Debug, Default)]
struct Waiting {
    size: Size,
    dropped: u64,
    why: Option<Arc<str>>,
}

/// A place there. Dropped, it was in vain; unless it is [settled](Self::settle).
#[derive(Debug)]
pub(in crate::bus::redis) struct Permit {
    room: Arc<Room>,
    size: Size,
    is_in_vain: bool,
    /// It had been taken, and was lost.
    was_lost: bool,
    why: Option<Arc<str>>,
}

/// What would wait there.
#[derive(Debug)]
pub(in crate::bus::redis) struct Claim {
    room: Arc<Room>,
    size: Size,
}

impl Room {
    pub(in crate::bus::redis) fn new(limits: SpoolLimits) -> Self {
        Self {
            limits,
            waiting: Mutex::default(),
            emptied: Notify::new(),
            listener: OnceLock::new(),
        }
    }

    /// Who counts what becomes of it.
    pub(in crate::bus::redis) fn count_by(&self, listener: &Weak<dyn Listener>) {
        self.listener.get_or_init(|| listener.clone());
    }

    pub(in crate::bus::redis) fn messages(&self) -> usize {
        self.waiting.lock().size.messages
    }

    /// Until nothing waits.
    pub(in crate::bus::redis) async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.messages() == 0 {
                return;
            }
            emptied.await;
        }
    }

    pub(in crate::bus::redis) fn claim(self: &Arc<Self>, publication: &Publication) -> Claim {
        Claim {
            room: self.clone(),
            size: Size {
                messages: publication.kept_lists(),
                bytes: publication.envelope.len(),
            },
        }
    }

    /// Of what was lost: it takes no more than what is remembered.
    fn take_anyway(self: &Arc<Self>, messages: usize, bytes: usize) -> Permit {
        let size = Size { messages, bytes };
        let mut waiting = self.waiting.lock();
        waiting.size.messages += messages;
        waiting.size.bytes += bytes;
        Permit {
            room: self.clone(),
            size,
            is_in_vain: true,
            was_lost: true,
            why: None,
        }
    }

    fn told(&self, what: impl FnOnce(&dyn Listener)) {
        if let Some(listener) = self.listener.get().and_then(Weak::upgrade) {
            what(&*listener);
        }
    }
}

impl Claim {
    /// Nothing, where there is no room.
    pub(in crate::bus::redis) fn take(self) -> Result<Permit, PublishError> {
        let Self { room, size } = self;
        let SpoolLimits {
            messages, bytes, ..
        } = room.limits;
        let is_full = {
            let taken = &mut room.waiting.lock().size;
            let (all, all_bytes) = (taken.messages + size.messages, taken.bytes + size.bytes);
            let is_full = all > messages || all_bytes > bytes;
            if !is_full {
                (taken.messages, taken.bytes) = (all, all_bytes);
            }
            is_full
        };
        if is_full {
            let dropped = size.messages as u64;
            room.told(|listener| listener.spool_dropped(dropped, false));
            return Err(PublishError::not_sent(format!(
                "redis is away, and the spool is full: `spool` gives it room for {messages} messages and {bytes} bytes"
            )));
        }
        Ok(Permit {
            room,
            size,
            is_in_vain: true,
            was_lost: false,
            why: None,
        })
    }

    pub(in crate::bus::redis) fn wait(&self) -> Duration {
        self.room.limits.wait
    }
}

impl Permit {
    /// It was taken.
    pub(in crate::bus::redis) fn settle(mut self) {
        self.is_in_vain = false;
    }

    /// It is dropped.
    pub(in crate::bus::redis) fn fail(mut self, why: &Arc<str>) {
        self.why = Some(why.clone());
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let messages = self.size.messages as u64;
        let (is_empty, dropped) = {
            let mut waiting = self.room.waiting.lock();
            waiting.size.messages -= self.size.messages;
            waiting.size.bytes -= self.size.bytes;
            if self.is_in_vain {
                waiting.dropped += messages;
                waiting.why = self.why.take().or(waiting.why.take());
            }
            let is_empty = waiting.size.messages == 0;
            let dropped = is_empty.then(|| (take(&mut waiting.dropped), waiting.why.take()));
            (is_empty, dropped)
        };
        if self.is_in_vain {
            let was_lost = self.was_lost;
            self.room
                .told(|listener| listener.spool_dropped(messages, was_lost));
        }
        if let Some((messages @ 1.., why)) = dropped {
            let why = why.as_deref().unwrap_or("the node ended");
            tracing::warn!(
                messages,
                reason = why,
                "messages that waited for redis in the spool were dropped"
            );
        }
        if is_empty {
            self.room.emptied.notify_waiters();
        }
    }
}
