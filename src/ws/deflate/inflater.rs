//! How a client's message is inflated: RFC 7692, section 7.2.2. Only while one comes is there anything to inflate it with.

use std::cell::Cell;
use std::mem::take;

use flate2::{Decompress, FlushDecompress, Status};

use super::TAIL;

thread_local! {
    /// The last one that was given back: most messages come whole, one after the other.
    static SPARE: Cell<Option<Decompress>> = const { Cell::new(None) };
}

/// Why something is not inflated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Misfit {
    /// It is no DEFLATE stream.
    Broken,
    /// It gets too big, or is so many times what came that nothing honest is.
    TooMuch,
}

/// Inflates one message.
#[derive(Debug)]
pub(crate) struct Inflater {
    /// Given back with the message.
    decompress: Option<Decompress>,
    /// How many compressed bytes came.
    came: usize,
}

impl Inflater {
    pub(crate) fn of(is_deflated: bool) -> Option<Self> {
        is_deflated.then(|| Self {
            decompress: SPARE.take(),
            came: 0,
        })
    }

    /// Bytes that came.
    pub(crate) fn came(&self) -> usize {
        self.came
    }

    /// Inflates a piece onto what is there, which is to have no more bytes than `limit`. Returns how much work it was, in bytes.
    pub(crate) fn inflate(
        &mut self,
        piece: &[u8],
        data: &mut Vec<u8>,
        limit: usize,
    ) -> Result<usize, Misfit> {
        self.came += piece.len();
        self.inflate_all(piece, data, limit)
    }

    /// All has come: what its sender left out is put back.
    pub(crate) fn finish(&mut self, data: &mut Vec<u8>, limit: usize) -> Result<(), Misfit> {
        self.inflate_all(&TAIL, data, limit).map(drop)
    }

    fn inflate_all(
        &mut self,
        mut input: &[u8],
        data: &mut Vec<u8>,
        limit: usize,
    ) -> Result<usize, Misfit> {
        let decompress = self
            .decompress
            .get_or_insert_with(|| Decompress::new(false));
        let (mut work, before) = (0, data.len());
        loop {
            if data.len() == data.capacity() {
                data.reserve_exact(room_for(data.len(), limit));
            }
            let (consumed, length) = (decompress.total_in(), data.len());
            let status = decompress
                .decompress_vec(input, data, FlushDecompress::None)
                .map_err(|_| Misfit::Broken)?;
            let consumed = (decompress.total_in() - consumed) as usize;
            input = &input[consumed..];
            if data.len() > limit || data.len() > FREE && data.len() / RATIO > self.came {
                return Err(Misfit::TooMuch);
            }
            match status {
                // A last block may be followed by another stream (section 7.2.3.4).
                Status::StreamEnd => {
                    decompress.reset(false);
                    work += RESET;
                }
                _ if input.is_empty() && data.len() < data.capacity() => {}
                _ if consumed == 0 && data.len() == length => return Err(Misfit::Broken),
                _ => continue,
            }
            if input.is_empty() {
                return Ok(work + data.len() - before);
            }
        }
    }
}

impl Drop for Inflater {
    fn drop(&mut self) {
        if let Some(mut decompress) = take(&mut self.decompress) {
            // It forgets whose it was.
            decompress.reset(false);
            // A thread that ends has no place for it.
            let _ = SPARE.try_with(|spare| spare.set(Some(decompress)));
        }
    }
}

/// Twice as much as there is, but no more than the limit and the byte that is over it.
fn room_for(length: usize, limit: usize) -> usize {
    let most = limit.saturating_add(1) - length;
    length.clamp(FIRST, LARGE).min(most).max(1)
}

/// Room for so many bytes at first.
const FIRST: usize = 1024;
/// A larger message grows by so much.
const LARGE: usize = 1024 * 1024;
/// Up to here a message may be any number of times what came: whoever sends a blank page is honest.
const FREE: usize = 1024 * 1024;
/// Beyond it at most so many times. Text and JSON are 3 to 30 times as large, what DEFLATE can do is 1,032.
const RATIO: usize = 100;
/// The work of beginning anew: a window is cleared.
const RESET: usize = 32 * 1024;
