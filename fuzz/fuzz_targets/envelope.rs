//! Any bytes on a channel: no panic, whatever they mean.

#![no_main]

use axum_cluster::internals::decode;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    decode(bytes);
});
