//! How one topic stands.

use tokio::sync::oneshot;
use tokio::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Interest {
    /// Below zero for a moment, where one ends before it has come from another primary.
    pub(super) reasons: isize,
    /// Until when it stays subscribed although nobody wants it.
    pub(super) linger_until: Option<Instant>,
    /// Whether the topic is in `changed`, in `restoring` or in a group.
    pub(super) queued: bool,
    /// Whether the last command sent was a SUBSCRIBE that is not refused.
    pub(super) subscribed: bool,
    /// How many commands are unanswered.
    pub(super) unanswered: usize,
    /// The place of the topic among the refused: somebody goes on unheard.
    pub(super) refused: Option<u64>,
    pub(super) waiting: Vec<oneshot::Sender<()>>,
    /// It was confirmed since somebody wants it, on whatever connection.
    pub(super) known: bool,
}

impl Interest {
    pub(super) fn is_wanted(&self, now: Instant) -> bool {
        self.reasons > 0 || self.subscribed && self.linger_until.is_some_and(|end| now < end)
    }

    pub(super) fn is_confirmed(&self) -> bool {
        self.subscribed && self.unanswered == 0
    }

    pub(super) fn is_unused(&self) -> bool {
        self.reasons == 0 && !self.subscribed && self.unanswered == 0 && !self.queued
    }
}
