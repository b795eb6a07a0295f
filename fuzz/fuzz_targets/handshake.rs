//! Any request: no panic, and an answer only to what is a handshake.

#![no_main]

use axum_cluster::internals::handshake;
use http::{HeaderName, HeaderValue, Method, Request, Version};
use libfuzzer_sys::fuzz_target;

const NAMES: [HeaderName; 7] = [
    http::header::CONNECTION,
    http::header::UPGRADE,
    http::header::SEC_WEBSOCKET_KEY,
    http::header::SEC_WEBSOCKET_VERSION,
    http::header::SEC_WEBSOCKET_PROTOCOL,
    http::header::ORIGIN,
    http::header::HOST,
];

fuzz_target!(|input: (bool, bool, Vec<(u8, Vec<u8>)>)| {
    let (get, http1, headers) = input;
    let mut request = Request::new(());
    *request.method_mut() = if get { Method::GET } else { Method::CONNECT };
    *request.version_mut() = if http1 {
        Version::HTTP_11
    } else {
        Version::HTTP_2
    };
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            request
                .headers_mut()
                .append(NAMES[name as usize % NAMES.len()].clone(), value);
        }
    }
    let key = request
        .headers()
        .contains_key(http::header::SEC_WEBSOCKET_KEY);
    if handshake(request) {
        assert!(get && http1 && key);
    }
});
