//! The bench itself.

use std::hint::black_box;

use axum_cluster::Message;
use axum_cluster::internals::{decode, encode};
use bytes::Bytes;
use criterion::Criterion;

use crate::support::FLOOR;

pub fn envelope(criterion: &mut Criterion) {
    for size in [128, 1024] {
        let payload = "x".repeat(size);
        let text = Message::from(payload.as_str());
        let binary = Message::from(payload.clone().into_bytes());
        let json = Bytes::from(format!(r#"{{"text": "{payload}"}}"#));

        let mut group = criterion.benchmark_group(format!("encode {size} B"));
        group.bench_function(FLOOR, |bencher| {
            bencher.iter(|| black_box(payload.as_bytes()).to_vec());
        });
        group.bench_function("text", |bencher| {
            bencher.iter(|| encode(black_box(&text)));
        });
        group.finish();

        let mut group = criterion.benchmark_group(format!("decode {size} B"));
        group.bench_function(FLOOR, |bencher| {
            bencher.iter(|| assert!(std::str::from_utf8(black_box(payload.as_bytes())).is_ok()));
        });
        let envelopes = [
            ("text", encode(&text)),
            ("binary", encode(&binary)),
            ("json", json),
        ];
        for (kind, envelope) in envelopes {
            group.bench_function(kind, |bencher| {
                bencher.iter(|| assert!(decode(black_box(&envelope))));
            });
        }
        group.finish();
    }
}
