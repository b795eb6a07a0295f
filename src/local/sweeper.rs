//! Time for all sockets of a node, kept by one task.

use std::sync::Weak;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use indexmap::IndexMap;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::expiry::Clock;
use super::heartbeat::Pulse;
use super::socket::{SweepEnd, Swept};
use super::{CHUNK, Local};

/// Sweeps as long as the node lives.
pub(super) async fn sweep(local: Weak<Local>) {
    let Some(times) = local.upgrade().map(|local| local.settings.heartbeat) else {
        return;
    };
    let mut pulse = Pulse::new(times.tick(), Instant::now());
    loop {
        sleep(times.tick()).await;
        let Some(local) = local.upgrade() else { return };
        let clock = Clock::now();
        let slept = pulse.beat(clock.now);
        if slept > NOTABLE {
            tracing::warn!(node = %local.home.node, ?slept, "this process did not run for a while, and counts that time \
                against no client: look for a stopped process, a blocked runtime or too little CPU");
        }
        local.sweep(clock, slept);
    }
}

/// A process that slept this long is worth a line in the log.
const NOTABLE: Duration = Duration::from_secs(1);

impl Local {
    fn sweep(&self, clock: Clock, slept: Duration) {
        let times = &self.settings.heartbeat;
        walk(&self.live, slept, |socket: &SweepEnd| {
            if let Swept::Stalled(lost) = socket.sweep(clock, slept, times) {
                self.home
                    .counters
                    .dropped_stalled
                    .fetch_add(lost as u64, Relaxed);
                self.record_slow(&socket.sender(), lost);
            }
        });
    }
}

/// Visits all that is there, without holding the lock.
fn walk<T: Clone>(live: &Mutex<IndexMap<u64, T>>, slept: Duration, mut visit: impl FnMut(&T)) {
    // Who leaves moves another to its place, unseen. For that one the next tick is early enough, but its
    // sleep is discounted only now.
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
