//! Time for all sockets of a node, kept by one task.

use std::sync::Weak;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use indexmap::IndexMap;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::Node;
use crate::config::CHUNK;
use crate::local::expiry::Clock;
use crate::local::heartbeat::{HeartbeatTimes, Pulse};
use crate::local::socket::{SweepEnd, Swept};

/// Sweeps as long as the node lives.
pub(super) async fn sweep(node: Weak<Node>) {
    let Some(times) = node.upgrade().map(|node| node.heartbeat_times()) else {
        return;
    };
    let mut pulse = Pulse::new(times.tick(), Instant::now());
    loop {
        sleep(times.tick()).await;
        let Some(node) = node.upgrade() else { return };
        let clock = Clock::now();
        let slept = pulse.beat(clock.now);
        if slept > NOTABLE {
            tracing::warn!(node = %node.id, ?slept, "this process did not run for a while, and counts that time \
                against no client: look for a stopped process, a blocked runtime or too little CPU");
        }
        node.sweep(clock, slept, &times);
    }
}

/// A process that slept this long is worth a line in the log.
const NOTABLE: Duration = Duration::from_secs(1);

impl Node {
    fn heartbeat_times(&self) -> HeartbeatTimes {
        HeartbeatTimes {
            ping_interval: self.config.ping_interval,
            pong_timeout: self.config.pong_timeout,
            write_timeout: self.config.write_timeout,
        }
    }

    fn sweep(&self, clock: Clock, slept: Duration, times: &HeartbeatTimes) {
        walk(&self.live, slept, |socket: &SweepEnd| {
            if let Swept::Stalled(lost) = socket.sweep(clock, slept, times) {
                self.counters
                    .dropped_stalled
                    .fetch_add(lost as u64, Relaxed);
                self.note_slow(&socket.sender(), lost);
            }
        });
    }
}

/// Visits all that is there, without holding the lock.
fn walk<T: Clone>(live: &Mutex<IndexMap<u64, T>>, slept: Duration, mut visit: impl FnMut(&T)) {
    // Who leaves moves another to its place, unseen. For that one the next tick is early enough, but its
    // excuse is said only now.
    let most = if slept.is_zero() { CHUNK } else { usize::MAX };
    let mut from = 0;
    loop {
        let chunk: Vec<T> = live
            .lock()
            .values()
            .skip(from)
            .take(most)
            .cloned()
            .collect();
        if chunk.is_empty() {
            return;
        }
        from += chunk.len();
        chunk.iter().for_each(&mut visit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leaves_meanwhile_hides_nobody_from_an_excuse() {
        let live: IndexMap<u64, u64> = (0..1000).map(|number| (number, number)).collect();
        let live = Mutex::new(live);
        let mut visited = Vec::new();
        walk(&live, NOTABLE, |number| {
            visited.push(*number);
            live.lock().swap_remove(number);
        });
        assert_eq!(visited, Vec::from_iter(0..1000));
    }

    #[test]
    fn everyone_is_visited_chunk_by_chunk() {
        let live: IndexMap<u64, u64> = (0..1000).map(|number| (number, number)).collect();
        let mut visited = Vec::new();
        walk(&Mutex::new(live), Duration::ZERO, |number| {
            visited.push(*number)
        });
        assert_eq!(visited, Vec::from_iter(0..1000));
    }
}
