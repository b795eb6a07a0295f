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
    let mut deflated = Vec::with_capacity(most(payload.len()));
    let done = compress.compress_vec(payload, &mut deflated, FlushCompress::Sync);
    let is_whole = matches!(done, Ok(Status::Ok)) && compress.total_in() == payload.len() as u64;
    // Full is not whole: more may be to come.
    if !is_whole || deflated.len() == deflated.capacity() || !deflated.ends_with(&TAIL) {
        return None;
    }
    compress.reset();
    SPARE.set(Some((level, compress)));
    deflated.truncate(deflated.len() - TAIL.len());
    (deflated.len() < payload.len()).then_some(deflated)
}

/// More than a message takes: nine bits for a byte, at worst. zlib-rs 0.6 does not reset where it stands in what it could not
/// write, so that a compressor which ran out of room may not be used again.
fn most(payload: usize) -> usize {
    payload + payload / 8 + 64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_much_gets_no_smaller_the_compressor_goes_on() {
        let text = "the same again and again, ".repeat(100);
        for level in 1..=9 {
            for size in [1_000, 20_000, 70_000, 300_000] {
                for _ in 0..8 {
                    let mut payload = vec![0; size];
                    fastrand::fill(&mut payload);
                    assert_eq!(deflate(&payload, level), None, "{size} at {level}");
                    let spare = SPARE.take();
                    assert!(spare.is_some(), "{size} at {level}: it had room");
                    SPARE.set(spare);
                }
            }
            let deflated = deflate(text.as_bytes(), level).expect("it gets smaller");
            assert!(deflated.len() < text.len() / 10, "at {level}");
        }
    }
}
