//! Any bytes from a client, in pieces of any size: no panic, and the same is heard.

#![no_main]

use axum_cluster::internals::frames;
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 4096;

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let (whole, whole_end) = frames(bytes, LIMIT, usize::MAX);
    let (pieces, pieces_end) = frames(bytes, LIMIT, piece.into());
    assert_eq!(whole, pieces);
    // Bad text is refused as soon as it is certain; in one piece, when the frame is complete.
    if whole_end.is_some() {
        assert_eq!(whole_end, pieces_end);
    }
});
