//! While somebody looks at a dashboard of this node, every node is asked once a second how it does; else nobody is.
//!
//! ```text
//!         somebody looks                 nobody looks any more, or the node is stopped
//!  idle ----------------> asks, again and again --------------------------------------> idle
//! ```
//! No answer is waited for: what comes is handed on as it comes, so that a node that hangs delays no other. How often a node
//! is asked does not depend on how many look.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::introduction::Introduction;
use super::nodes::Nodes;
use crate::bus::control::Control;
use crate::bus::reception::Reception;
use crate::bus::scope::Scope;
use crate::bus::uplink::Uplink;
use crate::home::{Ground, Home};
use crate::model::roster::NodeInfo;
use crate::model::topic::Topic;
use crate::model::vitals::Vitals;
use crate::readers::{ReaderNews, Readers, Reading};

/// A node says how it does once in it, whoever looks here.
const EVERY: Duration = Duration::from_secs(1);

/// What they are told who look.
#[derive(Debug, Clone)]
pub(crate) enum Finding {
    /// The other nodes that are there as far as this one knows, each time before they are asked.
    Roll(Arc<[NodeInfo]>),
    /// How a node does, and how long its word took, there and back; none for this node's own.
    Vitals(Arc<Vitals>, Option<Duration>),
}

/// Who does not keep up misses the oldest: the next ones say all that they said.
impl ReaderNews for Finding {
    const MOST: usize = 512;

    fn make_room(unread: &mut VecDeque<Self>) -> bool {
        unread.pop_front().is_some()
    }
}

#[derive(Debug)]
pub(crate) struct Checkup {
    home: Arc<Home>,
    reception: Arc<Reception>,
    uplink: Arc<Uplink>,
    nodes: Arc<Mutex<Nodes>>,
    introduction: Arc<Introduction>,
    /// Times are told from it on.
    epoch: Instant,
    onlookers: Readers<Finding>,
    /// Whether a task asks.
    asks: Mutex<bool>,
}

impl Checkup {
    pub(super) fn new(
        ground: &Ground,
        uplink: &Arc<Uplink>,
        nodes: &Arc<Mutex<Nodes>>,
        introduction: &Arc<Introduction>,
    ) -> Self {
        Self {
            home: ground.home.clone(),
            reception: ground.reception.clone(),
            uplink: uplink.clone(),
            nodes: nodes.clone(),
            introduction: introduction.clone(),
            epoch: Instant::now(),
            onlookers: Readers::default(),
            asks: Mutex::new(false),
        }
    }

    /// Everything that is found from now on; ends with the node.
    pub(crate) fn look(self: &Arc<Self>) -> Reading<Finding> {
        let reading = self.onlookers.read();
        let asks_already = std::mem::replace(&mut *self.asks.lock(), true);
        if !asks_already {
            let weak = Arc::downgrade(self);
            self.home
                .keep("checkup", weak, |checkup| run(checkup.clone()).boxed());
        }
        reading
    }

    /// A node says how it does, and when it was asked.
    pub(super) fn heard(&self, at: u64, vitals: Vitals) {
        let took = self.now().checked_sub(Duration::from_micros(at));
        self.onlookers
            .tell(&Finding::Vitals(Arc::new(vitals), took));
    }

    /// Nothing more will come.
    pub(super) fn end(&self) {
        self.onlookers.end();
    }

    #[cfg(test)]
    pub(crate) fn is_asking(&self) -> bool {
        *self.asks.lock()
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Whether nobody looks: then whoever comes begins anew.
    fn is_over(&self) -> bool {
        let mut asks = self.asks.lock();
        *asks = self.onlookers.are_there() && !self.home.is_stopped();
        !*asks
    }

    fn ask(&self) {
        let known = self.nodes.lock().infos().cloned().collect();
        self.onlookers.tell(&Finding::Roll(known));
        if let Some(own) = self.introduction.vitals() {
            self.onlookers.tell(&Finding::Vitals(Arc::new(own), None));
        }
        // Nothing is asked that is known to fail.
        if self.reception.hearing_nodes().is_some() {
            let at = self.now().as_micros() as u64;
            let word = Control::Examine { at };
            let word = self.uplink.write_word(&Scope::default(), 0, &word);
            // Queued by the call; who does not hear it is silent.
            drop(self.uplink.say(Topic::nodes(), word));
        }
    }
}

/// Asks until nobody looks any more.
async fn run(checkup: Weak<Checkup>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match checkup.upgrade() {
            Some(checkup) if !checkup.is_over() => checkup.ask(),
            _ => return,
        }
    }
}
