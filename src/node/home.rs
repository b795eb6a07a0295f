//! The runtime on which a node's own tasks run, whoever calls: the caller's may have no timer, or end first.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::Node;
use crate::model::health::Health;
use crate::tasks::supervise;

/// What health says when the runtime is gone.
pub(crate) const ENDED: &str = "the tokio runtime on which this cluster was started has ended, so nothing of other nodes arrives \
     (start the cluster on the runtime that serves, and keep that one)";

impl Node {
    /// Whether the runtime of the node's tasks is gone, and with it ping, expiry and all that is heard.
    pub(crate) fn has_lost_its_runtime(&self) -> bool {
        self.runtime_ended.load(SeqCst)
    }

    /// Runs a task for which a shutdown waits.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.tasks.spawn(task)
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

    /// Runs a task that ends with the node. A panic is counted, and it begins again; that the runtime ended before
    /// the node is told.
    pub(super) fn keep<T: Send + 'static>(
        self: &Arc<Self>,
        task: &'static str,
        mut state: T,
        run: impl for<'a> Fn(&'a mut T) -> BoxFuture<'a, ()> + Send + Sync + 'static,
    ) {
        let mut guard = Guard(Arc::downgrade(self));
        let counters = self.counters.clone();
        self.tasks.runtime().spawn(async move {
            let panicked = || {
                counters.task_panics.fetch_add(1, Relaxed);
            };
            // None is stopped: each ends by itself, and undoes what it did.
            let stop = CancellationToken::new();
            supervise(task, &stop, panicked, &mut state, run).await;
            guard.returned();
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

    fn lost_its_runtime(&self) {
        if self.runtime_ended.swap(true, SeqCst) {
            return;
        }
        let degraded = |health: &Health| match health {
            Health::Up | Health::Degraded { .. } => Some(Health::Degraded {
                since: SystemTime::now(),
                reason: ENDED.into(),
            }),
            Health::Draining | Health::Down => None,
        };
        if self.health.update(degraded) {
            tracing::warn!(node = %self.id, "{ENDED}: new sockets are refused");
        }
    }
}

/// Dropped by the runtime, when that ends before the task does.
struct Guard(Weak<Node>);

impl Guard {
    /// The task ended by itself.
    fn returned(&mut self) {
        self.0 = Weak::new();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(node) = self.0.upgrade().filter(|node| !node.stopped.load(SeqCst)) {
            node.lost_its_runtime();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::sync::watch;

    use super::*;
    use crate::bus::Backend;
    use crate::bus::topic::Namespace;
    use crate::config::Config;

    /// With a task that runs as it says.
    fn start(run: fn(&mut watch::Sender<u32>)) -> (Arc<Node>, watch::Receiver<u32>) {
        let config = Config::new(Namespace::new("x").unwrap());
        let node = Node::start(config, &Backend::memory());
        let (runs, seen) = watch::channel(0);
        node.keep("test", runs, move |runs| async move { run(runs) }.boxed());
        (node, seen)
    }

    #[tokio::test]
    async fn a_task_that_panics_costs_no_admission() {
        let (node, mut runs) = start(|runs| {
            runs.send_modify(|runs| *runs += 1);
            panic!("again");
        });
        runs.wait_for(|runs| *runs == 3).await.unwrap();
        assert!(node.stats().task_panics >= 2, "control");
        assert!(!node.has_lost_its_runtime());
        assert_eq!(node.health().get(), Health::Up);
        assert!(node.reserve("alice".into()).await.is_ok());
    }

    #[tokio::test]
    async fn a_task_that_returns_is_no_end_of_the_runtime() {
        let (node, mut runs) = start(|_| {});
        // Its state is dropped last of all.
        assert!(runs.changed().await.is_err());
        assert!(!node.has_lost_its_runtime());
    }
}
