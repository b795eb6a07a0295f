//! The runtime on which a node's own tasks run, whoever calls: the caller's may have no timer, or end first.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::bus::Bus;
use crate::bus::reception::Reception;
use crate::counts::Counters;
use crate::model::error::PublishError;
use crate::model::history::Histories;
use crate::model::id::NodeId;
use crate::tasks::supervise;

/// What health says when the runtime is gone.
pub(crate) const ENDED: &str = "the tokio runtime on which this cluster was started has ended, so nothing of other nodes arrives \
     (start the cluster on the runtime that serves, and keep that one)";

/// What the parts of a node are built upon. Each keeps what it uses.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) node: NodeId,
    pub(crate) home: Arc<Home>,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) reception: Arc<Reception>,
    pub(crate) counters: Arc<Counters>,
}

impl Ground {
    /// Must be called within a tokio runtime.
    pub(crate) fn here(
        node: NodeId,
        bus: Arc<dyn Bus>,
        publish_timeout: Duration,
        histories: &Histories,
    ) -> Self {
        let counters = Arc::new(Counters::default());
        let reception = Arc::new(Reception::new(
            node,
            bus.clone(),
            histories,
            counters.clone(),
        ));
        let home = Home::here(node, reception.clone(), counters.clone(), publish_timeout);
        Self {
            node,
            home: Arc::new(home),
            bus,
            reception,
            counters,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Home {
    node: NodeId,
    reception: Arc<Reception>,
    counters: Arc<Counters>,
    runtime: Handle,
    tracker: TaskTracker,
    /// How long Redis may take for one answer.
    publish_timeout: Duration,
    /// The node is shut down.
    stopped: AtomicBool,
}

impl Home {
    fn here(
        node: NodeId,
        reception: Arc<Reception>,
        counters: Arc<Counters>,
        publish_timeout: Duration,
    ) -> Self {
        Self {
            node,
            reception,
            counters,
            runtime: Handle::current(),
            tracker: TaskTracker::new(),
            publish_timeout,
            stopped: AtomicBool::new(false),
        }
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// The tasks for which a shutdown waits.
    pub(crate) fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(SeqCst)
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, SeqCst);
    }

    /// Whether the runtime is gone, and with it ping, expiry and all that is heard.
    pub(crate) fn has_lost_its_runtime(&self) -> bool {
        self.reception.is_lost()
    }

    /// Runs a task for which a shutdown waits.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.tracker.spawn_on(task, &self.runtime)
    }

    /// Runs what the caller waits for, and no longer; `None` when the runtime is gone, it panicked, or nothing came of
    /// it in time.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let task = AbortOnDropHandle::new(self.spawn(task));
        self.in_time(async { task.await.ok() }).await
    }

    /// The longest that anything at home takes, which has deadlines of its own: the wait for Redis, and what comes
    /// before and after.
    pub(crate) fn longest(&self) -> Duration {
        2 * self.publish_timeout
    }

    /// Waits no longer for what runs at home than twice the longest: nobody may drive that runtime.
    pub(crate) async fn in_time<T>(&self, what: impl Future<Output = Option<T>>) -> Option<T> {
        match Handle::try_current() {
            Ok(_) => timeout(2 * self.longest(), what).await.ok().flatten(),
            // The caller has no timer. The deadlines at home end it.
            Err(_) => what.await,
        }
    }

    /// Runs a task that ends with the node. A panic is counted, and it begins again; that the runtime ended before
    /// the node is told.
    pub(crate) fn keep<T: Send + 'static>(
        self: &Arc<Self>,
        task: &'static str,
        mut state: T,
        run: impl for<'a> Fn(&'a mut T) -> BoxFuture<'a, ()> + Send + Sync + 'static,
    ) {
        let mut guard = Guard(Arc::downgrade(self));
        let counters = self.counters.clone();
        self.runtime.spawn(async move {
            let panicked = || {
                counters.task_panics.fetch_add(1, Relaxed);
            };
            // None is stopped: each ends by itself, and undoes what it did.
            let stop = CancellationToken::new();
            supervise(task, &stop, panicked, &mut state, run).await;
            guard.returned();
        });
    }

    /// A failure, with the reason behind it where that is the runtime's end.
    pub(crate) fn explain(&self, error: PublishError) -> PublishError {
        match self.has_lost_its_runtime() {
            true => PublishError {
                reason: ENDED.into(),
                ..error
            },
            false => error,
        }
    }

    /// Why something at home came to no end.
    pub(crate) fn unfinished(&self) -> &'static str {
        match self.has_lost_its_runtime() {
            true => ENDED,
            false => {
                "the runtime on which this cluster was started does not run, or a task of the cluster panicked"
            }
        }
    }
}

/// Dropped by the runtime, when that ends before the task does.
struct Guard(Weak<Home>);

impl Guard {
    /// The task ended by itself.
    fn returned(&mut self) {
        self.0 = Weak::new();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(home) = self.0.upgrade().filter(|home| !home.is_stopped())
            && home.reception.lose(ENDED)
        {
            tracing::warn!(node = %home.node, "{ENDED}: new sockets are refused");
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::sync::watch;

    use super::*;
    use crate::bus::{Backend, BusSettings};

    /// With a task that runs as it says.
    fn start(run: fn(&mut watch::Sender<u32>)) -> (Arc<Home>, watch::Receiver<u32>) {
        let (node, timeout) = (NodeId(1), Duration::from_secs(5));
        let settings = BusSettings::plain(timeout);
        let bus = Backend::memory().open(node, settings);
        let home = Ground::here(node, bus.into(), timeout, &Histories::default()).home;
        let (runs, seen) = watch::channel(0);
        home.keep("test", runs, move |runs| async move { run(runs) }.boxed());
        (home, seen)
    }

    #[tokio::test]
    async fn a_task_that_panics_is_no_end_of_the_runtime() {
        let (home, mut runs) = start(|runs| {
            runs.send_modify(|runs| *runs += 1);
            panic!("again");
        });
        runs.wait_for(|runs| *runs == 3).await.unwrap();
        assert!(home.counters.task_panics.load(Relaxed) >= 2, "control");
        assert!(!home.has_lost_its_runtime());
    }

    #[tokio::test]
    async fn a_task_that_returns_is_no_end_of_the_runtime() {
        let (home, mut runs) = start(|_| {});
        // Its state is dropped last of all.
        assert!(runs.changed().await.is_err());
        assert!(!home.has_lost_its_runtime());
    }
}
