//! What reaches the sockets of this node.

use std::sync::atomic::Ordering::Relaxed;

use tokio::task::yield_now;

use super::Node;
use crate::bus::scope::Scope;
use crate::config::CHUNK;
use crate::local::registry::{Member, Wanted};
use crate::local::socket::{Pushed, Sender};
use crate::model::message::Message;
use crate::ws::frame::Frame;

impl Node {
    /// Hands a message to the sockets of this node, writing as far as the kernel takes it and never
    /// waiting for one. Lets other tasks run between chunks. Returns how many took it.
    pub(super) async fn deliver(&self, scope: &Scope<'_>, message: &Message) -> usize {
        let wanted = Wanted::of(scope);
        let members = self.registry.read().select(&wanted);
        if members.is_empty() {
            return 0;
        }
        let frame = Frame::message(message);
        let limits = &self.config.outbox;
        let take = |outbox: &Sender| self.note(outbox, outbox.send(&frame, limits));
        let taken = in_chunks(&members, take).await;
        self.counters.delivered.fetch_add(taken as u64, Relaxed);
        taken
    }

    /// The same for what the bus brought: collected, so that all of one wake leaves each socket in one
    /// write.
    pub(super) fn collect(&self, scope: &Scope<'_>, frame: impl FnOnce() -> Frame) {
        let wanted = Wanted::of(scope);
        let members = self.registry.read().select(&wanted);
        if members.is_empty() {
            return;
        }
        let frame = frame();
        let mut taken = 0;
        for outbox in members {
            let collected = outbox.collect(&frame, &self.config.outbox);
            taken += u64::from(self.note(&outbox, collected.pushed));
            if collected.wants_flush {
                self.collected.lock().push(outbox);
            }
        }
        self.counters.delivered.fetch_add(taken, Relaxed);
    }

    /// Counts what became of a frame; whether it was taken.
    fn note(&self, outbox: &Sender, pushed: Pushed) -> bool {
        match pushed {
            Pushed::Taken | Pushed::Closed => {}
            Pushed::Replaced(lost) => {
                self.counters.dropped_oldest.fetch_add(lost as u64, Relaxed);
            }
            Pushed::Overflowed(lost) => {
                self.counters.dropped_full.fetch_add(lost as u64, Relaxed);
                self.note_slow(outbox, lost);
            }
        }
        pushed.is_taken()
    }

    pub(super) fn note_slow(&self, outbox: &Sender, lost: usize) {
        self.counters.slow_closed.fetch_add(1, Relaxed);
        let (socket, user) = (outbox.id(), outbox.user());
        tracing::warn!(%socket, user = user.as_str(), dropped = lost, "slow consumer closed with 1013: if many are, send less or \
            raise `outbox_messages` or `outbox_bytes`");
    }
}

async fn in_chunks(members: &[Sender], serve: impl Fn(&Sender) -> bool) -> usize {
    let mut served = 0;
    for (n, chunk) in members.chunks(CHUNK).enumerate() {
        if n > 0 {
            yield_now().await;
        }
        served += chunk.iter().filter(|outbox| serve(outbox)).count();
    }
    served
}
