//! What a client sent and the handler has not read yet.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Poll, Waker};

use crate::local::registry::Rooms;
use crate::model::message::Message;

/// How many messages wait for the handler before reading stops: the client then feels it through
/// TCP. Enough to keep a busy handler from waiting for its own task's next turn.
const MAX_MESSAGES: usize = 16;

/// The receiving side of one socket, between the task that owns the stream and the handler. Whom a change concerns is
/// returned, to be woken without the lock.
#[derive(Default)]
pub(super) struct Inbox {
    messages: VecDeque<Message>,
    /// The rooms in which the socket was when it ended: nothing more will come.
    pub(super) left: Option<Arc<Rooms>>,
    /// The handler, waiting for a message.
    pub(super) handler: Option<Waker>,
}

impl Inbox {
    /// Whether there is room for another message.
    pub(super) fn room(&self) -> Poll<()> {
        match self.messages.len() < MAX_MESSAGES {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Takes a message; returns who waits for it.
    #[must_use = "somebody waits for it"]
    pub(super) fn push(&mut self, message: Message) -> Option<Waker> {
        if self.left.is_some() {
            return None;
        }
        self.messages.push_back(message);
        self.handler.take()
    }

    /// Nothing more will come; what is there can still be read. Returns who waits for it.
    #[must_use = "somebody waits for it"]
    pub(super) fn end(&mut self) -> Option<Waker> {
        self.left.get_or_insert_default();
        self.handler.take()
    }

    /// The next message, and whether it made room for which the socket's task may wait.
    pub(super) fn next(&mut self) -> Poll<(Option<Message>, bool)> {
        let was_full = self.room().is_pending();
        let message = self.messages.pop_front();
        if self.messages.is_empty() {
            // Gives the memory back.
            self.messages = VecDeque::new();
        }
        match message {
            None if self.left.is_none() => Poll::Pending,
            None => Poll::Ready((None, false)),
            message => Poll::Ready((message, was_full)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(inbox: &mut Inbox) -> Poll<Option<Message>> {
        inbox.next().map(|(message, _)| message)
    }

    #[test]
    fn reading_stops_when_the_handler_does_not_read() {
        let mut inbox = Inbox::default();
        for n in 0..MAX_MESSAGES {
            assert!(inbox.room().is_ready(), "{n}");
            assert!(inbox.push(n.to_string().into()).is_none());
        }
        assert!(inbox.room().is_pending());
        let Poll::Ready((message, was_full)) = inbox.next() else {
            panic!("it holds {MAX_MESSAGES}");
        };
        assert_eq!(message, Some("0".into()));
        assert!(was_full, "who waits for room is told");
        assert!(
            matches!(inbox.next(), Poll::Ready((Some(_), false))),
            "once"
        );
        assert!(inbox.room().is_ready());
    }

    #[test]
    fn what_came_before_the_end_can_still_be_read() {
        let mut inbox = Inbox::default();
        assert!(inbox.push("last".into()).is_none());
        assert!(inbox.end().is_none());
        assert!(inbox.push("too late".into()).is_none());
        assert_eq!(text(&mut inbox), Poll::Ready(Some("last".into())));
        assert_eq!(text(&mut inbox), Poll::Ready(None));
    }
}
