//! How what is queued is written, and by whom: as far as the kernel takes it, never waiting for it.

use std::io::{self, ErrorKind};
use std::mem::take;
use std::task::Poll;

use super::core::{Core, DueWrites, Now, Writer};
use super::queue::FrameQueue;
use crate::ws::SharedWriter;

/// How the writing of the socket's task goes on.
pub(super) enum Writing {
    Over(io::Result<()>),
    /// The kernel takes no more of a shared stream for now.
    Blocked,
    /// Nobody else may write: this is to be written, and put back as far as it was not.
    ByTask(FrameQueue),
}

impl<W: SharedWriter> Core<W> {
    /// Writes what is queued, or leaves it to the task that alone can. An error is left for the task to find.
    pub(super) fn write_queue(&mut self, now: impl Now) {
        self.due.flush = false;
        match self.offer() {
            None => {
                // While nothing is taken, only the stream's own wake-up helps.
                if self.stalled.is_none() {
                    self.leave_to_task();
                }
            }
            Some((_, Ok(()))) => self.stalled = None,
            Some((progress, Err(_))) => {
                self.record_progress(progress, now);
                self.noted.wake_driver();
            }
        }
    }

    /// The task's turn to write. Adds to whether there was progress.
    pub(super) fn begin_writing(&mut self, progress: &mut bool, now: impl Now) -> Writing {
        self.due = DueWrites::default();
        if self.queue.is_empty() {
            self.stalled = None;
            return Writing::Over(Ok(()));
        }
        match self.offer() {
            None => Writing::ByTask(take(&mut self.queue)),
            Some((taken, Err(error))) if error.kind() == ErrorKind::WouldBlock => {
                *progress |= taken;
                self.record_progress(*progress, now);
                self.due.task = *progress;
                Writing::Blocked
            }
            Some((_, over)) => {
                self.stalled = self.stalled.filter(|_| over.is_err());
                Writing::Over(over)
            }
        }
    }

    /// The task has written by itself what it had taken out; others may have queued more meanwhile. Pending
    /// while something is left.
    pub(super) fn end_writing(
        &mut self,
        rest: FrameQueue,
        written: io::Result<()>,
        progress: bool,
        now: impl Now,
    ) -> Poll<io::Result<()>> {
        self.queue.put_first(rest);
        if progress {
            self.noted.wake_handler();
        }
        match written {
            Ok(()) => {
                self.stalled = None;
                match self.queue.is_empty() {
                    true => Poll::Ready(Ok(())),
                    false => Poll::Pending,
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.record_progress(progress, now);
                self.due.task |= progress;
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Wakes the task to write what is queued.
    pub(super) fn leave_to_task(&mut self) {
        self.due.task = true;
        self.noted.wake_driver();
    }

    /// Offers what is queued to the kernel, where everybody may. Whether it took some, and whether all that is
    /// still to be written.
    fn offer(&mut self) -> Option<(bool, io::Result<()>)> {
        let stream = match &self.writer {
            _ if self.life.is_cut() => return Some((false, Ok(()))),
            Writer::Shared(stream) => stream,
            Writer::Task | Writer::Reader { .. } => return None,
            Writer::Shut => return Some((false, Ok(()))),
        };
        self.due.task = false;
        let before = self.queue.left();
        let written = self.queue.write(|slices| stream.try_write_vectored(slices));
        let progress = self.queue.left() < before;
        if progress {
            self.noted.wake_handler();
        }
        Some((progress, written))
    }

    fn record_progress(&mut self, progress: bool, now: impl Now) {
        if progress || self.stalled.is_none() {
            self.stalled = Some(now().into());
        }
    }
}
