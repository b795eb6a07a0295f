//! What reaches the sockets of this node.

use std::cell::OnceCell;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use smallvec::SmallVec;
use tokio::task::yield_now;

use super::flushers::MANY;
use super::registry::{Member, Wanted};
use super::socket::resuming::{Numbered, NumberedPlace};
use super::socket::{Collected, Flushed, HandlerEnd, Pushed, Sender};
use super::{CHUNK, Local};
use crate::bus::scope::Scope;
use crate::model::close::Close;
use crate::model::form::Form;
use crate::model::history::mark::{Clock, Mark, Number};
use crate::model::manner::Manner;
use crate::model::message::Message;
use crate::model::topic::Topic;
use crate::ws::Agreed;
use crate::ws::frame::{Frame, Framed};

impl Local {
    /// Hands a message to the sockets of this node, writing as far as the kernel takes it and never
    /// waiting for one. Lets other tasks run between chunks, and others help where they are many. Returns how many took it.
    pub(crate) async fn deliver(
        &self,
        scope: &Scope<'_>,
        message: &Message,
        manner: &Manner,
        form: Form,
    ) -> usize {
        let wanted = Wanted::of(scope);
        let members = self.registry.read().select(&wanted);
        if members.is_empty() {
            return 0;
        }
        let framed = Framed::new(Frame::message(message), form, self.settings.deflating);
        let limits = &self.settings.outbox;
        if members.len() >= MANY && self.flushers.help() {
            let taken = self.collect_for(members, scope, &framed, |socket, frame| {
                socket.collect(frame, manner, limits)
            });
            while self.flush() {
                yield_now().await;
            }
            return taken as usize;
        }
        let take = |socket: &Sender| {
            if is_excepted(socket, scope) {
                return false;
            }
            let frame = framed.of(self.agreed(socket));
            let is_taken = self.record(socket, socket.send(frame, manner, limits));
            self.record_saved(is_taken, &framed, frame);
            is_taken
        };
        let taken = in_chunks(members, take).await;
        self.record_deflated(&framed);
        self.counters.delivered.fetch_add(taken as u64, Relaxed);
        self.counters.measures.fanned_out(taken as u64);
        taken
    }

    /// How many sockets of this node are meant.
    pub(crate) fn count(&self, scope: &Scope<'_>) -> usize {
        let wanted = Wanted::of(scope);
        self.registry.read().select(&wanted).len()
    }

    /// Delivers what the bus brought: collected, so that all of one wake leaves each socket in one
    /// write. Only for sockets with these numbers: what was missed is for older ones alone, what is kept again for newer ones,
    /// where the others have it. Returns how many took it.
    pub(crate) fn collect(
        &self,
        scope: &Scope<'_>,
        place: Option<NumberedPlace<'_>>,
        numbers: Range<u64>,
        manner: &Manner,
        frame: impl FnOnce() -> (Frame, Form),
    ) -> u64 {
        let wanted = Wanted::of(scope).numbered(numbers);
        let members = self.registry.read().select(&wanted);
        if members.is_empty() {
            return 0;
        }
        let (plain, form) = frame();
        let framed = Framed::new(plain, form, self.settings.deflating);
        // With its number before it, once for those who take it compressed.
        let marked = [OnceCell::new(), OnceCell::new()];
        let limits = &self.settings.outbox;
        self.collect_for(members, scope, &framed, |socket, frame| match place {
            None => socket.collect(frame, manner, limits),
            Some(place) => {
                let numbered = Numbered {
                    place,
                    frame,
                    marked: &marked[usize::from(frame.is_deflated())],
                };
                socket.collect_numbered(&numbered, manner, limits)
            }
        })
    }

    /// Of a union that is kept another copy was delivered. Who is on one of its topics that this clock numbers has what that has given
    /// numbers up to this.
    pub(crate) fn note_copy(
        &self,
        mut scope: Scope<'_>,
        (clock, number): (Clock, Number),
        numbers: Range<u64>,
        is_of: impl Fn(&Topic) -> bool,
    ) {
        let registry = self.registry.read();
        scope.targets.retain(|target| registry.has_on(*target));
        drop(registry);
        scope.targets.retain(|target| is_of(&target.to_topic()));
        let wanted = Wanted::of(&scope).numbered(numbers);
        let members = self.registry.read().select(&wanted);
        for socket in members {
            socket.release(|resuming| resuming.has_by(clock, number).into_iter().collect());
        }
    }

    fn collect_for(
        &self,
        members: SmallVec<[Sender; 4]>,
        scope: &Scope<'_>,
        framed: &Framed,
        collect: impl Fn(&Sender, &Frame) -> Collected,
    ) -> u64 {
        let mut taken = 0;
        for socket in members {
            if is_excepted(&socket, scope) {
                continue;
            }
            let frame = framed.of(self.agreed(&socket));
            let collected = collect(&socket, frame);
            let is_taken = self.record(&socket, collected.pushed);
            self.record_saved(is_taken, framed, frame);
            taken += u64::from(is_taken);
            if collected.wants_flush {
                self.collected.lock().push(socket);
            }
        }
        self.record_deflated(framed);
        self.counters.delivered.fetch_add(taken, Relaxed);
        self.counters.measures.fanned_out(taken);
        taken
    }

    /// Whose clients may come back is told that its position is in another run.
    pub(crate) fn go_on(&self, clocks: &[(Clock, Mark)]) {
        let members: Vec<Sender> = self.registry.read().members().cloned().collect();
        for socket in members {
            socket.release(|resuming| resuming.goes_on(clocks).into_iter().collect());
        }
    }

    /// A Close, which leaves with the next [`flush`](Self::flush).
    pub(crate) fn collect_close(&self, scope: &Scope<'_>, numbers: Range<u64>, close: &Close) {
        let wanted = Wanted::of(scope).numbered(numbers);
        self.close_members(&self.members(&wanted), close);
    }

    pub(super) fn close_members(&self, members: &[Sender], close: &Close) {
        let first = members.iter().filter(|socket| socket.collect_close(close));
        let first: Vec<Sender> = first.cloned().collect();
        self.collected.lock().extend(first);
    }

    /// Writes what was collected, for a part of the sockets; whether there is more to do, or other tasks are to run.
    pub(crate) fn flush(&self) -> bool {
        let mut collected = self.collected.lock();
        let rest = collected.len().saturating_sub(CHUNK);
        let chunk: SmallVec<[Sender; CHUNK]> = collected.drain(rest..).collect();
        drop(collected);
        self.flushers.call(rest);
        let mut others_write = false;
        for socket in &chunk {
            others_write |= socket.flush() == Flushed::ByTask;
        }
        rest > 0 || others_write
    }

    /// The sockets that are meant and have not ended.
    pub(super) fn members_of(&self, scope: &Scope<'_>) -> Vec<Sender> {
        self.members(&Wanted::of(scope))
    }

    fn members(&self, wanted: &Wanted<'_>) -> Vec<Sender> {
        let members = self.registry.read().select(wanted);
        let alive = members
            .into_iter()
            .filter(|socket| socket.close_reason().is_none());
        alive.collect()
    }

    /// Counts what became of a frame; whether it was taken.
    fn record(&self, socket: &Sender, pushed: Pushed) -> bool {
        match pushed {
            Pushed::Taken | Pushed::Known | Pushed::Closed => {}
            Pushed::Superseded => {
                self.counters.superseded.fetch_add(1, Relaxed);
            }
            Pushed::LeftOut => {
                self.counters.left_out.fetch_add(1, Relaxed);
            }
            Pushed::Dropped(lost) => {
                self.counters.dropped_oldest.fetch_add(lost as u64, Relaxed);
            }
            Pushed::Overflowed(lost) => {
                self.counters.dropped_full.fetch_add(lost as u64, Relaxed);
                self.record_slow(socket, lost);
            }
        }
        pushed.is_taken()
    }

    /// A frame of a socket's own, for its handler.
    pub(crate) fn frame_for(&self, socket: &HandlerEnd, message: &Message) -> Frame {
        let (plain, deflating) = (Frame::message(message), self.settings.deflating);
        if deflating.is_off() {
            return plain;
        }
        let (framed, agreed) = (Framed::new(plain, Form::Any, deflating), socket.agreed());
        let frame = framed.of(agreed);
        self.record_saved(true, &framed, frame);
        self.record_deflated(&framed);
        frame.clone()
    }

    /// Not asked, at the price of a lock, where nothing is compressed.
    fn agreed(&self, socket: &Sender) -> Agreed {
        match self.settings.deflating.is_off() {
            true => Agreed::NOTHING,
            false => socket.agreed(),
        }
    }

    fn record_saved(&self, is_taken: bool, framed: &Framed, frame: &Frame) {
        if is_taken && frame.is_deflated() {
            let (bytes, saved) = (frame.len() as u64, framed.saved_by(frame) as u64);
            self.counters.compressed_bytes.fetch_add(bytes, Relaxed);
            self.counters.compressed_saved.fetch_add(saved, Relaxed);
        }
    }

    fn record_deflated(&self, framed: &Framed) {
        if framed.was_deflated() {
            self.counters.compressed.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn record_slow(&self, socket: &Sender, lost: usize) {
        self.counters.slow_closed.fetch_add(1, Relaxed);
        let (socket, user) = (socket.id(), socket.user());
        tracing::warn!(%socket, user = user.as_str(), dropped = lost, "slow consumer closed with 1013: if many are, send less or \
            raise `outbox_messages` or `outbox_bytes`");
    }
}

/// Whether it was another socket when it was excepted.
fn is_excepted(socket: &Sender, scope: &Scope<'_>) -> bool {
    let formerly = || socket.resuming(|resuming| resuming.formerly());
    !scope.except.is_empty() && formerly().is_some_and(|it| scope.except.contains(&it))
}

/// Each is let go as soon as it is served, while it is near.
async fn in_chunks(members: SmallVec<[Sender; 4]>, serve: impl Fn(&Sender) -> bool) -> usize {
    let mut served = 0;
    for (n, socket) in members.into_iter().enumerate() {
        if n > 0 && n % CHUNK == 0 {
            yield_now().await;
        }
        served += usize::from(serve(&socket));
    }
    served
}
