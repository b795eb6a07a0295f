//! The end of the task that owns the stream.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::net::tcp::OwnedWriteHalf;
use tokio::time::Instant;

use super::outcome::LifeStage;
use super::queue::FrameQueue;
use super::writing::Writing;
use super::{Sender, Shared};
use crate::model::close::Close;
use crate::model::id::{SocketId, UserId};
use crate::model::message::Message;
use crate::waker::{poll_locked, wake};
use crate::ws::frame::Frame;
use crate::ws::{Agreed, TaskWriter, lend_buffer};

/// Hands on what the client says, writes what the kernel did not take, and knows when the stream is gone: dropping
/// this is how a socket finishes.
#[derive(Debug)]
pub(crate) struct DriverEnd(pub(super) Arc<Shared>);

impl DriverEnd {
    pub(crate) fn id(&self) -> SocketId {
        self.0.id
    }

    pub(crate) fn user(&self) -> &UserId {
        &self.0.user
    }

    /// How its client sends messages.
    pub(super) fn agreed(&self) -> Agreed {
        self.0.agreed()
    }

    /// The socket as others reach it.
    pub(crate) fn sender(&self) -> Sender {
        Sender(self.0.clone())
    }

    /// The handshake is over; with a stream of its own, senders may write.
    pub(super) fn opened(&self, stream: Option<OwnedWriteHalf>) {
        self.0.change(|core| core.open(stream, Instant::now()));
    }

    // What the client says -------------------------------------------------------------------------

    /// Waits until the handler has made room for another message.
    pub(super) fn poll_inbox(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.0.inbox.lock().room().is_ready() {
            return Poll::Ready(());
        }
        self.wait(cx);
        // The handler may have made room before it found a waker.
        self.0.inbox.lock().room()
    }

    /// Whoever has something for the task from now on finds a waker.
    fn wait(&self, cx: &mut Context<'_>) {
        let _ = poll_locked(
            &self.0.core,
            cx,
            |core| &mut core.wakers.driver,
            |_| Poll::<()>::Pending,
        );
    }

    /// Hands a message on to the handler. Whether there is room for another.
    pub(super) fn heard(&self, message: Message) -> bool {
        let mut inbox = self.0.inbox.lock();
        let handler = inbox.push(message);
        let has_room = inbox.room().is_ready();
        drop(inbox);
        wake(handler);
        has_room
    }

    /// The handler hears nothing more, beyond what is there.
    pub(super) fn end_inbox(&self) {
        let handler = self.0.inbox.lock().end();
        wake(handler);
    }

    /// The client gave a sign of life.
    pub(super) fn seen(&self) {
        self.0.change(|core| core.seen(Instant::now()));
    }

    /// The handler does not read, so nothing is read for it; or it does again.
    pub(super) fn pause(&self, paused: bool) {
        self.0.change(|core| core.pause(paused, Instant::now()));
    }

    /// Answers a ping.
    pub(super) fn pong(&self, frame: Frame) {
        self.0.change(|core| core.pong(frame));
    }

    /// The client ended it, or broke the rules: it is told, and nothing else.
    pub(super) fn answer(&self, close: Close) {
        self.0.change(|core| core.answer(close, Instant::now()));
    }

    // What is written ------------------------------------------------------------------------------

    /// Writes what is queued; ready when nothing is left. The task is woken when there is more. `io` is called
    /// without the lock: it is foreign code.
    pub(super) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        io: &mut impl TaskWriter,
    ) -> Poll<io::Result<()>> {
        self.wait(cx);
        let mut progress = false;
        loop {
            let writing = |core: &mut super::Core| core.begin_writing(&mut progress, Instant::now);
            match self.0.change(writing) {
                Writing::Over(result) => return Poll::Ready(result),
                Writing::Blocked => ready!(io.poll_writable(cx))?,
                Writing::ByTask(queue) => return self.write_by_task(cx, queue, io),
            }
        }
    }

    /// Writes what was taken out, while others queue what comes after it.
    fn write_by_task(
        &self,
        cx: &mut Context<'_>,
        mut queue: FrameQueue,
        io: &mut impl TaskWriter,
    ) -> Poll<io::Result<()>> {
        let before = queue.left();
        let written = lend_buffer(|buffer| {
            queue.write_through(buffer, |bytes| or_would_block(io.poll_write(cx, bytes)))
        });
        let progress = queue.left() < before;
        let is_over = written.is_ok();
        let result = self
            .0
            .change(|core| core.end_writing(queue, written, progress, Instant::now));
        if is_over && result.is_pending() {
            cx.waker().wake_by_ref();
        }
        result
    }

    // How it ends ----------------------------------------------------------------------------------

    /// Where the task stands with its socket.
    pub(super) fn stage(&self) -> LifeStage {
        self.0.core.lock().stage()
    }

    /// What ended the socket, once something has.
    pub(super) fn close_reason(&self) -> Option<Close> {
        self.0.close_reason()
    }

    /// The client is gone: nobody reads what is queued.
    pub(crate) fn abandon(&self, close: Close) {
        self.0.change(|core| core.abandon(close));
    }

    /// All is said, so our side of a shared stream is shut.
    pub(super) fn shut(&self) {
        let stream = self.0.change(|core| core.shut());
        drop(stream);
    }
}

impl Drop for DriverEnd {
    fn drop(&mut self) {
        let rest = self.0.change(|core| core.finish());
        drop(rest);
        self.end_inbox();
    }
}

#[cfg(any(fuzzing, axum_cluster_internals))]
impl DriverEnd {
    /// Forgets what is queued, as if it were written.
    pub(crate) fn forget(&self) {
        let queue = self.0.change(|core| std::mem::take(&mut core.queue));
        drop(queue);
    }
}

fn or_would_block(written: Poll<io::Result<usize>>) -> io::Result<usize> {
    match written {
        Poll::Ready(written) => written,
        Poll::Pending => Err(ErrorKind::WouldBlock.into()),
    }
}
