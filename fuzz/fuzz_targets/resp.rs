//! Any bytes from Redis, in pieces of any size: no panic, and the same is said.

#![no_main]

use axum_cluster::internals::resp;
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 4096;

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let (whole, whole_broke) = resp(bytes, LIMIT, usize::MAX);
    let (pieces, pieces_broke) = resp(bytes, LIMIT, piece.into());
    assert_eq!(whole, pieces);
    // In pieces, nonsense is known as such when it is complete.
    assert!(whole_broke || !pieces_broke);
});
