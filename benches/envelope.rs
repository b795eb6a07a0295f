//! Writing and reading an envelope, against a copy of the payload and a look at its UTF-8.

use std::hint::black_box;

use axum_cluster::Message;
use axum_cluster::internals::{decode, encode};
use criterion::{Criterion, criterion_group, criterion_main};

fn envelope(criterion: &mut Criterion) {
    for size in [128, 1024] {
        let text = "x".repeat(size);
        let message = Message::from(text.as_str());
        let mut group = criterion.benchmark_group(format!("envelope/{size}"));
        group.bench_function("floor: copy", |b| {
            b.iter(|| black_box(text.as_bytes()).to_vec())
        });
        group.bench_function("encode", |b| b.iter(|| encode(black_box(&message))));
        group.bench_function("floor: utf-8", |b| {
            b.iter(|| std::str::from_utf8(black_box(text.as_bytes())).is_ok());
        });
        let encoded = encode(&message);
        group.bench_function("decode", |b| {
            b.iter(|| assert!(decode(black_box(&encoded))))
        });
        let json = format!("{{\"text\":\"{text}\"}}");
        group.bench_function("decode json", |b| {
            b.iter(|| assert!(decode(black_box(json.as_bytes()))))
        });
        group.finish();
    }
}

criterion_group!(benches, envelope);
criterion_main!(benches);
