//! How a message is compressed: RFC 7692, section 7.2.1. Each thread that does so has one compressor, of 380 KB.

use std::cell::Cell;

use flate2::{Compress, FlushCompress, Status};

use super::TAIL;

thread_local! {
    /// What the last message was deflated with, and for which level that is.
    static SPARE: Cell<Option<(u8, Compress)>> = const { Cell::new(None) };
}

/// Deflates a message; nothing where it gets no smaller.
pub(super) fn deflate(payload: &[u8], level: u8) -> Option<Vec<u8>> {
    let mut compress = match SPARE.take() {
        Some((of, spare)) if of == level => spare,
        _ => Compress::new(flate2::Compression::new(level.into()), false),
    };
    let mut deflated = Vec::with_capacity(payload.len() + TAIL.len());
    let done = compress.compress_vec(payload, &mut deflated, FlushCompress::Sync);
    let is_whole = matches!(done, Ok(Status::Ok)) && compress.total_in() == payload.len() as u64;
    compress.reset();
    SPARE.set(Some((level, compress)));
    // Full is not whole: more may be to come.
    if !is_whole || deflated.len() == deflated.capacity() || !deflated.ends_with(&TAIL) {
        return None;
    }
    deflated.truncate(deflated.len() - TAIL.len());
    (deflated.len() < payload.len()).then_some(deflated)
}
