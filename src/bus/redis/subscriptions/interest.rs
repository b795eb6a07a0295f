//! How one topic stands.

use std::mem::take;

use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// There is one for every user who is here: what most have nothing of is apart.
#[derive(Debug, Default)]
pub(super) struct Interest {
    /// Below zero for a moment, where one ends before it has come from another primary.
    pub(super) reasons: i32,
    /// How many commands are unanswered.
    pub(super) unanswered: u32,
    /// Whether the topic is in `changed`, in `restoring` or in a group.
    pub(super) queued: bool,
    /// Whether the last command sent was a SUBSCRIBE that is not refused.
    pub(super) subscribed: bool,
    /// It was confirmed since somebody wants it, on whatever connection.
    pub(super) known: bool,
    unsettled: Option<Box<Unsettled>>,
}

/// Who waits for a topic until it is heard; mostly one.
pub(super) type Confirming = SmallVec<[oneshot::Sender<()>; 1]>;

/// What a topic has that somebody waits for, that is refused, or that nobody wants any more.
#[derive(Debug, Default)]
struct Unsettled {
    /// Until when it stays subscribed although nobody wants it.
    linger_until: Option<Instant>,
    /// The place of the topic among the refused: somebody goes on unheard.
    refused: Option<u64>,
    waiting: Confirming,
}

impl Interest {
    pub(super) fn wanted() -> Self {
        Self {
            reasons: 1,
            ..Self::default()
        }
    }

    /// What is left of it when the connection is lost.
    pub(super) fn unheard(&self) -> Self {
        Self {
            reasons: self.reasons,
            known: self.known,
            ..Self::default()
        }
    }

    pub(super) fn is_wanted(&self, now: Instant) -> bool {
        self.reasons > 0 || self.subscribed && self.linger_until().is_some_and(|end| now < end)
    }

    pub(super) fn is_confirmed(&self) -> bool {
        self.subscribed && self.unanswered == 0
    }

    pub(super) fn is_unused(&self) -> bool {
        self.reasons == 0 && !self.subscribed && self.unanswered == 0 && !self.queued
    }

    pub(super) fn linger_until(&self) -> Option<Instant> {
        self.unsettled.as_ref()?.linger_until
    }

    pub(super) fn linger(&mut self, end: Option<Instant>) {
        self.change(|it| it.linger_until = end);
    }

    pub(super) fn is_refused(&self) -> bool {
        let unsettled = self.unsettled.as_ref();
        unsettled.is_some_and(|it| it.refused.is_some())
    }

    pub(super) fn refuse(&mut self, place: u64) {
        self.change(|it| it.refused = Some(place));
    }

    pub(super) fn take_refused(&mut self) -> Option<u64> {
        self.change(|it| it.refused.take())
    }

    pub(super) fn wait(&mut self, waiting: impl IntoIterator<Item = oneshot::Sender<()>>) {
        self.change(|it| it.waiting.extend(waiting));
    }

    pub(super) fn take_waiting(&mut self) -> Confirming {
        self.change(|it| take(&mut it.waiting))
    }

    fn change<T>(&mut self, change: impl FnOnce(&mut Unsettled) -> T) -> T {
        let (mut settled, mut unsettled) = (Unsettled::default(), self.unsettled.take());
        let changed = change(unsettled.as_deref_mut().unwrap_or(&mut settled));
        self.unsettled = match unsettled {
            None if settled.is_nothing() => None,
            None => Some(Box::new(settled)),
            Some(unsettled) => Some(unsettled).filter(|it| !it.is_nothing()),
        };
        changed
    }
}

impl Unsettled {
    fn is_nothing(&self) -> bool {
        self.linger_until.is_none() && self.refused.is_none() && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_pointer_width = "64")]
    #[test]
    fn it_is_small() {
        assert_eq!(size_of::<Interest>(), 24);
    }

    #[test]
    fn what_is_settled_has_nothing_besides() {
        let mut interest = Interest::wanted();
        assert!(interest.take_waiting().is_empty() && interest.take_refused().is_none());
        let (confirm, mut confirmed) = oneshot::channel();
        interest.wait([confirm]);
        interest.refuse(7);
        interest.linger(Some(Instant::now()));
        assert!(interest.is_refused() && interest.unsettled.is_some());
        assert_eq!(
            (interest.take_refused(), interest.is_refused()),
            (Some(7), false)
        );
        assert_eq!(interest.take_waiting().len(), 1);
        assert!(confirmed.try_recv().is_err(), "it was dropped");
        interest.linger(None);
        assert!(interest.unsettled.is_none());
    }
}
