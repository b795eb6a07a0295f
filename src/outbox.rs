//! What a socket still has to send: bounded, and filled without ever waiting.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::close::Close;
use crate::id::{SocketId, UserId};
use crate::message::Message;
use crate::registry::Member;

/// What to do with a client that reads more slowly than messages come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SlowConsumer {
    /// Close it with 1013 and discard what was queued: it reconnects and starts afresh. The default,
    /// since a client that silently lost messages is wrong without knowing it.
    #[default]
    Close,
    /// Discard its oldest messages and go on; for feeds where only the newest counts.
    DropOldest,
}

/// How much an outbox holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutboxLimits {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    pub(crate) policy: SlowConsumer,
}

impl OutboxLimits {
    /// Whether one more message fits. Any single message fits into an empty outbox.
    fn admits(&self, queue: &Queue, message: &Message) -> bool {
        queue.messages.is_empty()
            || queue.messages.len() < self.messages && queue.bytes + message.len() <= self.bytes
    }
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushed {
    Taken,
    /// Taken, at the price of this many older ones.
    Replaced(usize),
    /// The client is too slow: its socket ends, with this many messages discarded.
    Overflowed(usize),
    /// The socket has ended.
    Closed,
}

impl Pushed {
    /// Whether the client will get it.
    pub(crate) fn is_taken(self) -> bool {
        matches!(self, Self::Taken | Self::Replaced(_))
    }
}

/// What the driver has to do next.
#[derive(Debug, PartialEq)]
pub(crate) enum Next {
    Send(Message),
    Close(Close),
}

/// The sending side of one socket, shared by the registry, the handler's [`Socket`](crate::Socket)
/// and the task that owns the stream.
pub(crate) struct Outbox {
    id: SocketId,
    user: UserId,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: Queue,
    /// The first thing that ended the socket.
    close: Option<Close>,
    /// The stream is gone.
    finished: bool,
    driver: Option<Waker>,
    /// The handler, waiting for room or for the end.
    handler: Option<Waker>,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<Message>,
    bytes: usize,
}

impl Queue {
    fn push(&mut self, message: Message) {
        self.bytes += message.len();
        self.messages.push_back(message);
    }

    fn pop(&mut self) -> Option<Message> {
        let message = self.messages.pop_front()?;
        self.bytes -= message.len();
        Some(message)
    }

    /// Gives the memory back. Returns how many messages are lost.
    fn discard(&mut self) -> usize {
        std::mem::take(self).messages.len()
    }
}

impl Outbox {
    pub(crate) fn new(id: SocketId, user: UserId) -> Self {
        Self {
            id,
            user,
            state: Mutex::default(),
        }
    }

    /// Takes a message for the client, or says why not. Never waits.
    pub(crate) fn push(&self, message: Message, limits: &OutboxLimits) -> Pushed {
        let mut state = self.state.lock();
        if state.close.is_some() {
            return Pushed::Closed;
        }
        let mut replaced = 0;
        while !limits.admits(&state.queue, &message) {
            if limits.policy == SlowConsumer::Close {
                let lost = state.queue.discard() + 1;
                state.close = Some(Close::from_static(Close::TRY_AGAIN_LATER, "slow consumer"));
                state.wake_all();
                return Pushed::Overflowed(lost);
            }
            state.queue.pop();
            replaced += 1;
        }
        state.queue.push(message);
        let driver = state.driver.take();
        drop(state);
        wake(driver);
        if replaced == 0 {
            Pushed::Taken
        } else {
            Pushed::Replaced(replaced)
        }
    }

    /// Waits for room: the handler's own sends press back instead of overflowing.
    pub(crate) fn poll_room(
        &self,
        cx: &mut Context<'_>,
        limits: &OutboxLimits,
    ) -> Poll<Result<(), Close>> {
        let mut state = self.state.lock();
        if let Some(close) = &state.close {
            return Poll::Ready(Err(close.clone()));
        }
        if state.queue.messages.len() < limits.messages && state.queue.bytes < limits.bytes {
            return Poll::Ready(Ok(()));
        }
        state.handler = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Takes the handler's message into the room that [`poll_room`](Self::poll_room) found; what
    /// other senders put there meanwhile does not count against it.
    pub(crate) fn push_into_room(&self, message: Message) -> Result<(), Close> {
        let mut state = self.state.lock();
        if let Some(close) = &state.close {
            return Err(close.clone());
        }
        state.queue.push(message);
        let driver = state.driver.take();
        drop(state);
        wake(driver);
        Ok(())
    }

    /// Ends the socket after what is queued. The first close wins; returns whether this was it.
    pub(crate) fn close(&self, close: Close) -> bool {
        let mut state = self.state.lock();
        if state.close.is_some() {
            return false;
        }
        state.close = Some(close);
        state.wake_all();
        true
    }

    /// Ends the socket, discarding what is queued: nobody is there to read it. Returns how many
    /// messages are lost.
    pub(crate) fn abandon(&self, close: Close) -> usize {
        self.close(close);
        self.discard()
    }

    /// Forgets what is queued. Returns how many messages are lost.
    pub(crate) fn discard(&self) -> usize {
        self.state.lock().queue.discard()
    }

    /// What ended the socket, once something has.
    pub(crate) fn close_reason(&self) -> Option<Close> {
        self.state.lock().close.clone()
    }

    /// The driver asks for work.
    pub(crate) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Next> {
        let mut state = self.state.lock();
        if let Some(message) = state.queue.pop() {
            if state.queue.messages.is_empty() {
                state.queue.discard();
            }
            let handler = state.handler.take();
            drop(state);
            wake(handler);
            return Poll::Ready(Next::Send(message));
        }
        if let Some(close) = &state.close {
            return Poll::Ready(Next::Close(close.clone()));
        }
        state.driver = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The stream is gone.
    pub(crate) fn finish(&self) {
        let mut state = self.state.lock();
        state.finished = true;
        state.wake_all();
    }

    /// Waits until the stream is gone.
    pub(crate) fn poll_finished(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.finished {
            return Poll::Ready(());
        }
        state.handler = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl State {
    fn wake_all(&mut self) {
        wake(self.driver.take());
        wake(self.handler.take());
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Member for Arc<Outbox> {
    fn id(&self) -> SocketId {
        self.id
    }

    fn user(&self) -> &UserId {
        &self.user
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Outbox")
            .field("id", &self.id)
            .field("user", &self.user)
            .field("messages", &state.queue.messages.len())
            .field("bytes", &state.queue.bytes)
            .field("close", &state.close)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use parking_lot::Mutex;

    use super::*;
    use crate::id::NodeId;

    #[derive(Default)]
    struct Flag(Mutex<bool>);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            *self.0.lock() = true;
        }
    }

    fn outbox() -> Outbox {
        Outbox::new(
            SocketId {
                node: NodeId(1),
                number: 1,
            },
            "alice".into(),
        )
    }

    fn limits(messages: usize, bytes: usize, policy: SlowConsumer) -> OutboxLimits {
        OutboxLimits {
            messages,
            bytes,
            policy,
        }
    }

    fn poll(outbox: &Outbox) -> Poll<Next> {
        outbox.poll_next(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_slow_consumer_is_closed_at_either_limit() {
        for (messages, bytes) in [(2, 1000), (1000, 20)] {
            let limits = limits(messages, bytes, SlowConsumer::Close);
            let outbox = outbox();
            assert_eq!(outbox.push("0123456789".into(), &limits), Pushed::Taken);
            assert_eq!(outbox.push("0123456789".into(), &limits), Pushed::Taken);
            assert_eq!(outbox.push("x".into(), &limits), Pushed::Overflowed(3));
            assert_eq!(outbox.push("x".into(), &limits), Pushed::Closed);
            assert!(matches!(poll(&outbox), Poll::Ready(Next::Close(close)) if close.code == 1013));
        }
    }

    #[test]
    fn the_oldest_make_room_when_configured() {
        let limits = limits(2, 1000, SlowConsumer::DropOldest);
        let outbox = outbox();
        for n in ["1", "2"] {
            assert_eq!(outbox.push(n.into(), &limits), Pushed::Taken);
        }
        assert_eq!(outbox.push("3".into(), &limits), Pushed::Replaced(1));
        assert_eq!(poll(&outbox), Poll::Ready(Next::Send("2".into())));
        assert_eq!(poll(&outbox), Poll::Ready(Next::Send("3".into())));
        assert!(poll(&outbox).is_pending());
    }

    #[test]
    fn one_message_of_any_size_fits_into_an_empty_outbox() {
        let limits = limits(2, 10, SlowConsumer::Close);
        let outbox = outbox();
        assert_eq!(outbox.push(vec![0; 1000].into(), &limits), Pushed::Taken);
        assert_eq!(outbox.push("x".into(), &limits), Pushed::Overflowed(2));
    }

    #[test]
    fn a_close_comes_after_what_was_queued_and_the_first_wins() {
        let limits = limits(8, 1000, SlowConsumer::Close);
        let outbox = outbox();
        outbox.push("last words".into(), &limits);
        assert!(outbox.close(Close::new(4000, "first")));
        assert!(!outbox.close(Close::new(4001, "second")));
        assert_eq!(poll(&outbox), Poll::Ready(Next::Send("last words".into())));
        assert_eq!(
            poll(&outbox),
            Poll::Ready(Next::Close(Close::new(4000, "first")))
        );
        assert_eq!(outbox.close_reason(), Some(Close::new(4000, "first")));
    }

    #[test]
    fn the_handler_waits_for_room_and_is_woken() {
        let limits = limits(1, 1000, SlowConsumer::Close);
        let outbox = outbox();
        let flag = Arc::new(Flag::default());
        let waker = Waker::from(flag.clone());
        let mut cx = Context::from_waker(&waker);
        assert_eq!(outbox.poll_room(&mut cx, &limits), Poll::Ready(Ok(())));
        assert_eq!(outbox.push_into_room("1".into()), Ok(()));
        assert!(outbox.poll_room(&mut cx, &limits).is_pending());
        assert!(poll(&outbox).is_ready());
        assert!(*flag.0.lock(), "room wakes the handler");
        assert!(outbox.poll_room(&mut cx, &limits).is_ready());
        outbox.close(Close::new(1000, ""));
        assert_eq!(outbox.push_into_room("2".into()), Err(Close::new(1000, "")));
    }

    #[test]
    fn an_empty_outbox_owns_no_memory() {
        let limits = limits(8, 1000, SlowConsumer::Close);
        let outbox = outbox();
        outbox.push("x".into(), &limits);
        let _ = poll(&outbox);
        assert_eq!(outbox.state.lock().queue.messages.capacity(), 0);
    }
}
