//! Any URL of Redis: no panic, and no password is ever shown.

#![no_main]

use axum_cluster::Redis;
use libfuzzer_sys::fuzz_target;

const SECRET: &str = "S3CRET";
const SCHEMES: [&str; 6] = [
    "redis",
    "rediss",
    "redis+unix",
    "valkey",
    "redis-sentinel",
    "rediss+cluster",
];

fuzz_target!(|input: (u8, &str, &str)| {
    let (scheme, before, after) = input;
    let known = SCHEMES.get(usize::from(scheme));
    let url = match known {
        Some(scheme) => format!("{scheme}://{before}:{SECRET}@{after}"),
        None => format!("{before}{after}"),
    };
    // In the place of a user name or host it is none.
    let is_password = known.is_some() && !before.contains(['@', '/', '?', '#', ':']);
    match Redis::at(&url) {
        Err(error) => assert!(!error.to_string().contains(SECRET)),
        Ok(redis) if is_password => assert!(!format!("{redis:?}").contains(SECRET)),
        Ok(redis) => drop(format!("{redis:?}")),
    }
});
