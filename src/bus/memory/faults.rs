//! What a test does to a hub: who is cut off, and how late things come. None of it happens by itself.

use std::collections::HashSet;
use std::mem::take;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::{Hub, Parcel};
use crate::bus::Published;
use crate::bus::outage::LinkId;
use crate::model::error::PublishError;
use crate::model::id::NodeId;

#[derive(Debug, Default)]
pub(super) struct Faults {
    cut: HashSet<NodeId>,
    late: Option<Late>,
}

/// From now on everything goes by a queue, so that nothing overtakes what was delayed longer.
#[derive(Debug)]
struct Late {
    delay: Duration,
    /// The longest there was.
    longest: Duration,
    queue: mpsc::Sender<Post>,
}

/// What is on its way.
#[derive(Debug)]
struct Post {
    due: Instant,
    parcel: Parcel,
    arrived: oneshot::Sender<Result<Published, PublishError>>,
}

impl Faults {
    pub(super) fn is_cut(&self, node: NodeId) -> bool {
        self.cut.contains(&node)
    }

    /// The node is gone.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.cut.remove(&node);
    }

    /// What was published before has arrived.
    pub(super) fn heard_until(&self, now: Instant) -> Instant {
        let longest = self.late.as_ref().map(|late| late.longest);
        longest
            .and_then(|longest| now.checked_sub(longest))
            .unwrap_or(now)
    }

    /// Puts it on its way; gives it back where there is nothing between the nodes.
    pub(super) fn post(
        &self,
        parcel: Parcel,
    ) -> Result<oneshot::Receiver<Result<Published, PublishError>>, Parcel> {
        let Some(late) = &self.late else {
            return Err(parcel);
        };
        let (arrived, arrival) = oneshot::channel();
        let due = Instant::now() + late.delay;
        // Where it is full, or its runtime has ended, nothing arrives, and the sender is told.
        let _ = late.queue.try_send(Post {
            due,
            parcel,
            arrived,
        });
        Ok(arrival)
    }
}

impl Hub {
    /// Nothing passes between this node and the others any more, and it knows. Whether it is on this hub.
    pub(crate) fn cut(&self, node: NodeId) -> bool {
        let Some(listener) = self.listener(node) else {
            return false;
        };
        let heard_until = self.faults.read().heard_until(Instant::now());
        if !self.faults.read().is_cut(node) {
            listener.up(LinkId::ONLY, heard_until);
            self.faults.write().cut.insert(node);
            listener.down(LinkId::ONLY, CUT.into(), true);
        }
        true
    }

    /// Everything passes again, from now on.
    pub(crate) fn heal(&self) {
        let cut = take(&mut self.faults.write().cut);
        for listener in cut.into_iter().filter_map(|node| self.listener(node)) {
            listener.up(LinkId::ONLY, Instant::now());
        }
    }

    /// Must be called within a tokio runtime.
    pub(crate) fn delay(self: &Arc<Self>, delay: Duration) {
        let mut faults = self.faults.write();
        match &mut faults.late {
            Some(late) => {
                late.delay = delay;
                late.longest = late.longest.max(delay);
            }
            None => faults.late = Some(Late::begin(self, delay)),
        }
    }
}

impl Late {
    fn begin(hub: &Arc<Hub>, delay: Duration) -> Self {
        let (queue, mut posted) = mpsc::channel::<Post>(ON_ITS_WAY);
        let hub = Arc::downgrade(hub);
        tokio::spawn(async move {
            while let Some(post) = posted.recv().await {
                sleep_until(post.due).await;
                let Some(hub) = hub.upgrade() else { return };
                // Who sent it may have given up.
                let _ = post.arrived.send(hub.deliver(&post.parcel));
            }
        });
        Self {
            delay,
            longest: delay,
            queue,
        }
    }
}

/// So many publications may be late at once.
const ON_ITS_WAY: usize = 65_536;
/// What health and senders are told.
pub(super) const CUT: &str = "cut off by `MemoryHub::partition`";
