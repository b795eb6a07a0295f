//! Time for all sockets of a node, kept by one task.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{CHUNK, Node};
use crate::heartbeat::{HeartbeatTimes, Pulse};
use crate::outbox::{Outbox, Swept};

/// Sweeps as long as the node lives.
pub(super) async fn sweep(node: Weak<Node>) {
    let Some(times) = node.upgrade().map(|node| node.heartbeat_times()) else {
        return;
    };
    let mut pulse = Pulse::new(times.tick(), Instant::now());
    loop {
        sleep(times.tick()).await;
        let Some(node) = node.upgrade() else { return };
        let now = Instant::now();
        let slept = pulse.beat(now);
        if slept > NOTABLE {
            tracing::warn!(node = %node.id, ?slept, "this process did not run for a while, and counts that time \
                against no client: look for a stopped process, a blocked runtime or too little CPU");
        }
        if catch_unwind(AssertUnwindSafe(|| node.sweep(now, slept, &times))).is_err() {
            tracing::error!(node = %node.id, "the sweeper panicked and goes on: please report it");
        }
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

    fn sweep(&self, now: Instant, slept: Duration, times: &HeartbeatTimes) {
        let mut from = 0;
        loop {
            let live = self.live.lock();
            let Some(chunk) = live
                .as_slice()
                .get_range(from..(from + CHUNK).min(live.len()))
            else {
                return;
            };
            let chunk: Vec<Arc<Outbox>> = chunk.values().cloned().collect();
            drop(live);
            if chunk.is_empty() {
                return;
            }
            from += chunk.len();
            for outbox in &chunk {
                if let Swept::Stalled(lost) = outbox.sweep(now, slept, times) {
                    self.counters
                        .dropped_stalled
                        .fetch_add(lost as u64, Relaxed);
                    self.note_slow(outbox, lost);
                }
            }
        }
    }
}
