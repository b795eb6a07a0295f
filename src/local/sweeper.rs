//! Time for all sockets of a node, kept by one task.

use std::sync::Weak;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Local;
use super::expiry::Times;
use super::heartbeat::Pulse;
use super::socket::Swept;

/// Sweeps as long as the node lives.
pub(super) async fn sweep(local: Weak<Local>) {
    let Some(times) = local.upgrade().map(|local| local.settings.heartbeat) else {
        return;
    };
    let mut pulse = Pulse::new(times.tick(), Instant::now());
    loop {
        sleep(times.tick()).await;
        let Some(local) = local.upgrade() else { return };
        let clock = Times::now();
        let slept = pulse.beat(clock.now);
        if slept > NOTABLE {
            tracing::warn!(node = %local.node, ?slept, "this process did not run for a while, and counts that time \
                against no client: look for a stopped process, a blocked runtime or too little CPU");
        }
        local.sweep(clock, slept);
    }
}

/// A process that slept this long is worth a line in the log.
const NOTABLE: Duration = Duration::from_secs(1);

impl Local {
    fn sweep(&self, clock: Times, slept: Duration) {
        let times = &self.settings.heartbeat;
        self.live.visit(slept, |socket| {
            if let Swept::Stalled(lost) = socket.sweep(clock, slept, times) {
                self.counters
                    .dropped_stalled
                    .fetch_add(lost as u64, Relaxed);
                self.record_slow(&socket.sender(), lost);
            }
        });
    }
}
