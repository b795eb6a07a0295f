//! Frames that wait for the kernel, as rules: whole, in order, and bounded.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::ops::Deref;
use std::sync::Arc;

use crate::model::limits::OutboxLimits;
use crate::ws::frame::Frame;

/// The frames of one socket, of which the first may be partly written.
#[derive(Default)]
pub(crate) struct FrameQueue {
    frames: VecDeque<QueuedFrame>,
    bytes: usize,
    /// How much of the first frame is written: it can no longer be dropped.
    written: usize,
}

struct QueuedFrame {
    frame: Frame,
    /// Of which only the newest counts.
    key: Option<Arc<str>>,
}

impl Deref for QueuedFrame {
    type Target = Frame;

    fn deref(&self) -> &Frame {
        &self.frame
    }
}

impl FrameQueue {
    pub(crate) fn push(&mut self, frame: Frame) {
        self.push_keyed(frame, None);
    }

    /// Of frames with the same key only the newest counts.
    pub(crate) fn push_keyed(&mut self, frame: Frame, key: Option<Arc<str>>) {
        self.bytes += frame.len();
        self.frames.push_back(QueuedFrame { frame, key });
    }

    /// Puts a frame into the place of the one with its key, if one waits that is not begun, and the bytes still fit.
    pub(crate) fn replace(&mut self, frame: &Frame, key: &str, limits: &OutboxLimits) -> bool {
        let begun = usize::from(self.written > 0);
        let mut waiting = self.frames.iter_mut().skip(begun).rev();
        // The newest: one before it may have been put back by the task.
        let Some(old) = waiting.find(|queued| queued.key.as_deref() == Some(key)) else {
            return false;
        };
        let bytes = self.bytes - old.len() + frame.len();
        let fits = bytes <= limits.bytes.max(self.bytes);
        if fits {
            old.frame = frame.clone();
            self.bytes = bytes;
        }
        fits
    }

    /// Takes a pong. When some wait already it replaces the newest, since only the last ping needs an answer
    /// (RFC 6455, section 5.5.3).
    pub(crate) fn push_pong(&mut self, frame: Frame) {
        if self.len() >= PONGS
            && let Some(last) = self.frames.back_mut()
            && last.is_pong()
        {
            self.bytes = self.bytes - last.len() + frame.len();
            last.frame = frame;
        } else {
            self.push(frame);
        }
    }

    /// Puts back what was taken out, before what came meanwhile; only what was taken out can be begun.
    pub(crate) fn put_first(&mut self, mut rest: Self) {
        debug_assert!(self.written == 0);
        rest.bytes += self.bytes;
        rest.frames.append(&mut self.frames);
        *self = rest;
    }

    /// Takes a frame of which this much is written already.
    pub(crate) fn push_begun(&mut self, frame: Frame, written: usize) {
        debug_assert!(self.is_empty() && written < frame.len());
        self.written = written;
        self.push(frame);
    }

    /// Takes the oldest out, of which nothing is written.
    pub(crate) fn pop(&mut self) -> Option<Frame> {
        debug_assert!(self.written == 0);
        let oldest = self.frames.pop_front()?;
        self.bytes -= oldest.len();
        if self.is_empty() {
            // Gives the memory back.
            *self = Self::default();
        }
        Some(oldest.frame)
    }

    /// Whether one more frame fits. Any single frame fits into an empty outbox.
    pub(crate) fn admits(&self, frame: &Frame, limits: &OutboxLimits) -> bool {
        self.is_empty() || self.len() < limits.messages && self.bytes + frame.len() <= limits.bytes
    }

    /// Whether one more frame of a burst fits, while the one that alone can write has had no turn.
    pub(crate) fn admits_burst(&self, frame: &Frame, limits: &OutboxLimits) -> bool {
        let burst = OutboxLimits {
            messages: limits.messages.saturating_mul(BURST),
            bytes: limits.bytes.saturating_mul(BURST),
            ..*limits
        };
        self.admits(frame, &burst)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether the handler may add to it.
    pub(crate) fn has_room(&self, limits: &OutboxLimits) -> bool {
        self.is_empty() || self.len() < limits.messages && self.bytes < limits.bytes
    }

    /// Bytes still to be written.
    pub(crate) fn left(&self) -> usize {
        self.bytes - self.written
    }

    /// Forgets this much from the front.
    pub(crate) fn advance(&mut self, mut count: usize) {
        while let Some(first) = self.frames.front() {
            let left = first.len() - self.written;
            if count < left {
                self.written += count;
                return;
            }
            count -= left;
            self.written = 0;
            self.bytes -= first.len();
            self.frames.pop_front();
        }
        // Gives the memory back.
        *self = Self::default();
    }

    /// Writes as much as is taken; `WouldBlock` when something is left.
    pub(crate) fn write(
        &mut self,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<()> {
        while !self.frames.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut count = 0;
            for (slice, frame) in slices.iter_mut().zip(&self.frames) {
                let written = if count == 0 { self.written } else { 0 };
                *slice = IoSlice::new(&frame.as_bytes()[written..]);
                count += 1;
            }
            match write(&slices[..count]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes through a buffer, where many small writes are dear: HTTP/2 makes a DATA frame of each, waits
    /// for hyper's task after each, and clients take a multitude of small ones for an attack.
    pub(crate) fn write_through(
        &mut self,
        buffer: &mut [u8],
        mut write: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<()> {
        while let Some(first) = self.frames.front() {
            let first = &first.as_bytes()[self.written..];
            let written = if self.frames.len() == 1 || first.len() >= buffer.len() {
                write(first)
            } else {
                let length = self.copy_to(buffer);
                write(&buffer[..length])
            };
            match written {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Copies from the front as much as there is room for; returns how much.
    fn copy_to(&self, buffer: &mut [u8]) -> usize {
        let (mut length, mut written) = (0, self.written);
        for frame in &self.frames {
            let bytes = &frame.as_bytes()[written..];
            let count = bytes.len().min(buffer.len() - length);
            buffer[length..length + count].copy_from_slice(&bytes[..count]);
            length += count;
            written = 0;
            if length == buffer.len() {
                break;
            }
        }
        length
    }

    /// Drops the oldest frame that is not begun. Whether there was one.
    pub(crate) fn drop_oldest(&mut self) -> bool {
        let oldest = usize::from(self.written > 0);
        let dropped = self.frames.remove(oldest);
        self.bytes -= dropped.as_ref().map_or(0, |dropped| dropped.len());
        dropped.is_some()
    }

    /// Drops every frame that is not begun. Returns how many.
    pub(crate) fn discard(&mut self) -> usize {
        let begun = usize::from(self.written > 0);
        let lost = self.frames.len() - begun.min(self.frames.len());
        self.frames.truncate(begun);
        self.frames.shrink_to_fit();
        self.bytes = self.frames.iter().map(|queued| queued.len()).sum();
        lost
    }
}

#[cfg(test)]
impl FrameQueue {
    pub(crate) fn capacity(&self) -> usize {
        self.frames.capacity()
    }
}

/// So many frames wait before a pong replaces another; more than one, so that none is begun.
const PONGS: usize = 16;
/// Where only the socket's task writes, so many times the limits may wait for its next turn.
const BURST: usize = 4;
/// Most frames in one `writev`.
const SLICES: usize = 32;
