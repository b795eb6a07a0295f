//! Any position that a client brings, also one that is signed as ours are: no panic.

#![no_main]

use axum_cluster::internals::position;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    position(&String::from_utf8_lossy(bytes), bytes);
});
