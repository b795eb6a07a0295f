//! The bench itself.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::{Duration, Instant};

use axum_cluster::Message;
use axum_cluster::internals::FanOut;
use bytes::Bytes;
use criterion::{Criterion, Throughput};
use parking_lot::Mutex;

use crate::support::FLOOR;

/// In rooms of whatever size: the caches always see the same memory.
const SOCKETS: usize = 10_000;

pub fn fan_out(criterion: &mut Criterion) {
    let payload = Bytes::from("x".repeat(128));
    let message = Message::from("x".repeat(128));
    for size in [1, 100, SOCKETS] {
        let rooms = SOCKETS / size;
        let mut group = criterion.benchmark_group(format!("1 to {size}"));
        group.throughput(Throughput::Elements(size as u64));

        let queues: Vec<_> = (0..SOCKETS).map(|_| roomy_queue()).collect();
        let empty = || queues.iter().for_each(|queue| queue.lock().clear());
        let push = |room: usize| {
            for queue in &queues[black_box(room) * size..][..size] {
                queue.lock().push_back(payload.clone());
            }
        };
        group.bench_function(FLOOR, |bencher| {
            bencher.iter_custom(|messages| time(messages, rooms, empty, push));
        });

        let node = FanOut::new(rooms, size);
        let deliver = |room| assert_eq!(node.deliver(black_box(room), &message), size);
        group.bench_function("deliver", |bencher| {
            bencher.iter_custom(|messages| time(messages, rooms, || node.drain(), deliver));
        });
        #[cfg(feature = "metrics")]
        {
            let deliver = |room| assert_eq!(node.deliver_measured(black_box(room), &message), size);
            group.bench_function("deliver, measured", |bencher| {
                bencher.iter_custom(|messages| time(messages, rooms, || node.drain(), deliver));
            });
        }
        group.finish();
    }
}

fn roomy_queue() -> Mutex<VecDeque<Bytes>> {
    Mutex::new(VecDeque::with_capacity(4))
}

/// One message to one room after the other; whenever all have had one, they are emptied off the clock.
fn time(mut messages: u64, rooms: usize, empty: impl Fn(), send: impl Fn(usize)) -> Duration {
    let mut elapsed = Duration::ZERO;
    while messages > 0 {
        let round = messages.min(rooms as u64);
        empty();
        let start = Instant::now();
        (0..round as usize).for_each(&send);
        elapsed += start.elapsed();
        messages -= round;
    }
    elapsed
}
