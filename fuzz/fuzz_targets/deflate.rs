//! Any bytes from a client that may compress, in pieces of any size: no panic, and the same is heard. Half of the runs make a
//! compressed message of them, so that more of them come to be inflated.

#![no_main]

use axum_cluster::internals::deflated_frames;
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 4096;
/// The length of a frame is in its second byte then.
const SHORT: usize = 125;

fuzz_target!(|input: (u8, bool, &[u8])| {
    let (piece, is_payload, bytes) = input;
    let bytes = match is_payload {
        false => bytes.to_vec(),
        true => {
            let bytes = &bytes[..bytes.len().min(SHORT)];
            [&[0xc2, 0x80 | bytes.len() as u8, 0, 0, 0, 0], bytes].concat()
        }
    };
    let (whole, whole_end) = deflated_frames(&bytes, LIMIT, usize::MAX);
    let (pieces, pieces_end) = deflated_frames(&bytes, LIMIT, piece.into());
    assert_eq!(whole, pieces);
    // What is wrong is refused as soon as it is certain; in one piece, when more of it is there.
    if whole_end.is_some() {
        assert_eq!(whole_end.is_some(), pieces_end.is_some());
    }
});
