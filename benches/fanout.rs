//! One message to 1, 100 and 10,000 outboxes, against the plainest thing that could work: the same
//! message pushed into as many locked queues.

use std::collections::VecDeque;
use std::hint::black_box;

use axum_cluster::Message;
use axum_cluster::internals::FanOut;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use parking_lot::Mutex;

fn fan_out(criterion: &mut Criterion) {
    let message = Message::from("x".repeat(128));
    for sockets in [1, 100, 10_000] {
        let mut group = criterion.benchmark_group(format!("fanout/{sockets}"));
        group.throughput(Throughput::Elements(sockets));
        let queues: Vec<Mutex<VecDeque<Message>>> = (0..sockets)
            .map(|_| Mutex::new(VecDeque::with_capacity(4)))
            .collect();
        group.bench_function("floor", |bencher| {
            bencher.iter_batched(
                || queues.iter().for_each(|queue| queue.lock().clear()),
                |()| {
                    queues
                        .iter()
                        .for_each(|queue| queue.lock().push_back(message.clone()))
                },
                BatchSize::PerIteration,
            );
        });
        let node = FanOut::new(sockets);
        group.bench_function("deliver", |bencher| {
            bencher.iter_batched(
                || node.drain(),
                |()| assert_eq!(black_box(node.deliver(&message)), sockets as usize),
                BatchSize::PerIteration,
            );
        });
        group.finish();
    }
}

criterion_group!(benches, fan_out);
criterion_main!(benches);
