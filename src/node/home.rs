//! The runtime on which a node's own tasks run, whoever calls: the caller's may have no timer, or end first.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::Node;
use crate::health::Health;

/// What health says when the runtime is gone.
pub(crate) const ENDED: &str = "the tokio runtime on which this cluster was started has ended, so nothing of other nodes arrives \
     (start the cluster on the runtime that serves, and keep that one)";

#[derive(Debug)]
pub(super) struct Home {
    runtime: Handle,
    ended: AtomicBool,
}

impl Home {
    /// Must be called within a tokio runtime.
    pub(super) fn here() -> Self {
        Self {
            runtime: Handle::current(),
            ended: AtomicBool::new(false),
        }
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

impl Node {
    /// Whether the runtime of the node's tasks is gone, and with it ping, expiry and all that is heard.
    pub(crate) fn has_lost_its_runtime(&self) -> bool {
        self.home.ended.load(SeqCst)
    }

    /// Runs a task for which a shutdown waits.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.tasks.spawn_on(task, &self.home.runtime)
    }

    /// Runs what the caller waits for, and no longer; `None` when the runtime is gone, it panicked, or nothing came of
    /// it in time.
    pub(super) async fn at_home<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let task = AbortOnDropHandle::new(self.spawn(task));
        self.in_time(async { task.await.ok() }).await
    }

    /// The longest that anything at home takes, which has deadlines of its own: the wait for Redis, and what comes
    /// before and after.
    pub(super) fn longest(&self) -> Duration {
        2 * self.config.publish_timeout
    }

    /// Waits no longer for what runs at home than twice the longest: nobody may drive that runtime.
    pub(super) async fn in_time<T>(&self, what: impl Future<Output = Option<T>>) -> Option<T> {
        match Handle::try_current() {
            Ok(_) => timeout(2 * self.longest(), what).await.ok().flatten(),
            // The caller has no timer. The deadlines at home end it.
            Err(_) => what.await,
        }
    }

    /// Runs a task that ends with the node, and whose end before that is told.
    pub(super) fn keep(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let guard = Guard(Arc::downgrade(self));
        self.home.runtime.spawn(async move {
            let _guard = guard;
            task.await;
        });
    }

    /// Why something at home came to no end.
    pub(super) fn unfinished(&self) -> &'static str {
        match self.has_lost_its_runtime() {
            true => ENDED,
            false => {
                "the runtime on which this cluster was started does not run, or a task of the cluster panicked"
            }
        }
    }

    fn lost_its_runtime(&self, reason: &'static str) {
        if self.home.ended.swap(true, SeqCst) {
            return;
        }
        let degraded = |health: &Health| match health {
            Health::Up | Health::Degraded { .. } => Some(Health::Degraded {
                since: SystemTime::now(),
                reason: reason.into(),
            }),
            Health::Draining | Health::Down => None,
        };
        if self.health.update(degraded) {
            tracing::warn!(node = %self.id, "{reason}: new sockets are refused");
        }
    }
}

struct Guard(Weak<Node>);

impl Drop for Guard {
    fn drop(&mut self) {
        let reason = match std::thread::panicking() {
            true => {
                "a task of the cluster panicked and is gone (please report it, and restart this process)"
            }
            false => ENDED,
        };
        if let Some(node) = self.0.upgrade().filter(|node| !node.stopped.load(SeqCst)) {
            node.lost_its_runtime(reason);
        }
    }
}
