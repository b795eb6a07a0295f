//! What a client sent and the handler has not read yet.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::message::Message;

/// How many messages wait for the handler before reading stops: the client then feels it through
/// TCP. Enough to keep a busy handler from waiting for its own task's next turn.
const MAX_MESSAGES: usize = 16;

/// The receiving side of one socket, between the task that owns the stream and the handler.
#[derive(Debug, Default)]
pub(crate) struct Inbox(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    messages: VecDeque<Message>,
    /// Nothing more will come.
    ended: bool,
    handler: Option<Waker>,
    driver: Option<Waker>,
}

impl Inbox {
    /// Waits until the handler has made room.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if state.messages.len() < MAX_MESSAGES {
            return Poll::Ready(());
        }
        state.driver = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(crate) fn push(&self, message: Message) {
        let mut state = self.0.lock();
        if !state.ended {
            state.messages.push_back(message);
            wake(state.handler.take());
        }
    }

    /// Nothing more will come; what is there can still be read.
    pub(crate) fn end(&self) {
        let mut state = self.0.lock();
        state.ended = true;
        wake(state.handler.take());
    }

    pub(crate) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        let mut state = self.0.lock();
        if let Some(message) = state.messages.pop_front() {
            if state.messages.is_empty() {
                state.messages = VecDeque::new();
            }
            wake(state.driver.take());
            return Poll::Ready(Some(message));
        }
        if state.ended {
            return Poll::Ready(None);
        }
        state.handler = Some(cx.waker().clone());
        Poll::Pending
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_stops_when_the_handler_does_not_read() {
        let inbox = Inbox::default();
        let cx = &mut Context::from_waker(Waker::noop());
        for n in 0..MAX_MESSAGES {
            assert!(inbox.poll_room(cx).is_ready(), "{n}");
            inbox.push(n.to_string().into());
        }
        assert!(inbox.poll_room(cx).is_pending());
        assert_eq!(inbox.poll_next(cx), Poll::Ready(Some("0".into())));
        assert!(inbox.poll_room(cx).is_ready());
    }

    #[test]
    fn what_came_before_the_end_can_still_be_read() {
        let inbox = Inbox::default();
        let cx = &mut Context::from_waker(Waker::noop());
        inbox.push("last".into());
        inbox.end();
        inbox.push("too late".into());
        assert_eq!(inbox.poll_next(cx), Poll::Ready(Some("last".into())));
        assert_eq!(inbox.poll_next(cx), Poll::Ready(None));
    }
}
