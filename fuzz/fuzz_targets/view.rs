//! Any answer about how a cluster is divided: no panic, and every partition is somewhere or nowhere.

#![no_main]

use axum_cluster::internals::view;
use libfuzzer_sys::fuzz_target;

const PARTITIONS: usize = 256;

fuzz_target!(|bytes: &[u8]| {
    if let Some((served, unserved)) = view(bytes) {
        assert_eq!(served + unserved, PARTITIONS);
    }
});
