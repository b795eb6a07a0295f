//! What a client sent and the handler has not read yet.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::Mutex;

use crate::message::Message;
use crate::waker::{poll_locked, wake};

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

impl State {
    /// The next message, and who waits for its room.
    fn next(&mut self) -> Poll<(Option<Message>, Option<Waker>)> {
        let message = self.messages.pop_front();
        if self.messages.is_empty() {
            self.messages = VecDeque::new();
        }
        match message {
            None if !self.ended => Poll::Pending,
            None => Poll::Ready((None, None)),
            message => Poll::Ready((message, self.driver.take())),
        }
    }
}

impl Inbox {
    /// Waits until the handler has made room.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        poll_locked(
            &self.0,
            cx,
            |state| &mut state.driver,
            |state| match state.messages.len() < MAX_MESSAGES {
                true => Poll::Ready(()),
                false => Poll::Pending,
            },
        )
    }

    pub(crate) fn push(&self, message: Message) {
        let mut state = self.0.lock();
        if state.ended {
            return;
        }
        state.messages.push_back(message);
        let handler = state.handler.take();
        drop(state);
        wake(handler);
    }

    /// Nothing more will come; what is there can still be read.
    pub(crate) fn end(&self) {
        let mut state = self.0.lock();
        state.ended = true;
        let handler = state.handler.take();
        drop(state);
        wake(handler);
    }

    pub(crate) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        let (message, driver) = ready!(poll_locked(
            &self.0,
            cx,
            |state| &mut state.handler,
            State::next
        ));
        wake(driver);
        Poll::Ready(message)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};
    use std::task::Wake;
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// Comes back to the inbox when it is woken and when it is dropped.
    struct Reentrant(Arc<Inbox>, mpsc::Sender<()>);

    impl Wake for Reentrant {
        fn wake(self: Arc<Self>) {
            let _ = self.0.poll_room(&mut Context::from_waker(Waker::noop()));
            let _ = self.1.send(());
        }
    }

    impl Drop for Reentrant {
        fn drop(&mut self) {
            let _ = self.0.poll_room(&mut Context::from_waker(Waker::noop()));
        }
    }

    #[test]
    fn a_waker_may_come_back() {
        let steps: [fn(&Inbox); 3] = [
            |inbox| inbox.push("woken".into()),
            Inbox::end,
            // Replaces the waker, which drops it.
            |inbox| {
                let _ = inbox.poll_next(&mut Context::from_waker(Waker::noop()));
            },
        ];
        for (n, step) in steps.into_iter().enumerate() {
            let inbox = Arc::new(Inbox::default());
            let (woken, wakes) = mpsc::channel();
            let (done, over) = mpsc::channel();
            thread::spawn(move || {
                let waker = Waker::from(Arc::new(Reentrant(inbox.clone(), woken)));
                assert!(
                    inbox
                        .poll_next(&mut Context::from_waker(&waker))
                        .is_pending()
                );
                drop(waker);
                step(&inbox);
                let _ = done.send(wakes.try_recv().is_ok());
            });
            let came = over.recv_timeout(Duration::from_secs(10));
            assert_eq!(came, Ok(n < 2), "step {n}");
        }
    }

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
