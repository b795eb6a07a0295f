//! Tasks that help to write what was collected, where one alone would take long: one less than the runtime has workers.
//!
//! To hand out a message is cheap, to write it is a system call for each socket. So a message for many is collected in every queue by
//! one task, in turn with all others, and written by all that are idle. A queue is behind its socket's own lock and is written from its
//! front, by whoever comes: so the order of a socket is that in which it was collected, whoever writes.

use std::sync::{Arc, Weak};

use futures::FutureExt;
use tokio::sync::Notify;
use tokio::task::yield_now;

use super::{CHUNK, Local};

/// So many sockets are written by one task: for fewer it does not pay to wake another.
pub(super) const MANY: usize = 8 * CHUNK;
/// Most that help, so that others of the same runtime get their turn.
const MOST: usize = 7;

/// Wakes them.
#[derive(Debug, Default)]
pub(super) struct Flushers {
    news: Arc<Notify>,
    count: usize,
}

impl Flushers {
    pub(super) fn on(workers: usize) -> Self {
        Self {
            news: Arc::default(),
            count: workers.saturating_sub(1).min(MOST),
        }
    }

    /// Whether there are any.
    pub(super) fn help(&self) -> bool {
        self.count > 0
    }

    /// So many sockets are to be written.
    pub(super) fn call(&self, sockets: usize) {
        if sockets >= MANY {
            self.news.notify_waiters();
        }
    }
}

/// They end with their node.
impl Drop for Flushers {
    fn drop(&mut self) {
        self.news.notify_waiters();
    }
}

impl Local {
    pub(super) fn start_flushers(self: &Arc<Self>) {
        for _ in 0..self.flushers.count {
            let (weak, news) = (Arc::downgrade(self), self.flushers.news.clone());
            self.home.keep("flusher", weak, move |local| {
                flush(local.clone(), news.clone()).boxed()
            });
        }
    }
}

/// Helps as long as the node lives.
async fn flush(local: Weak<Local>, news: Arc<Notify>) {
    loop {
        // What is told from here on is not missed.
        let told = news.notified();
        while local.upgrade().is_some_and(|local| local.flush()) {
            yield_now().await;
        }
        if local.strong_count() == 0 {
            return;
        }
        told.await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::Cluster;
    use crate::bus::scope::Scope;
    use crate::local::registry::EVERY;
    use crate::model::form::Form;
    use crate::model::manner::Manner;
    use crate::ws::frame::Frame;

    /// Collects for so many, begins to write, and waits for others to do the rest.
    async fn rest_of(sockets: usize) -> Result<(), usize> {
        let broadcaster = Cluster::builder().start().broadcaster();
        let mut all = Vec::new();
        for _ in 0..sockets {
            all.push(broadcaster.subscribe("alice").await.unwrap());
        }
        let local = &broadcaster.node().local;
        let scope = Scope {
            targets: [(&local.all).into()].into_iter().collect(),
            ..Scope::default()
        };
        let frame = || (Frame::message(&"news".into()), Form::Any);
        local.collect(&scope, None, EVERY, &Manner::InTurn, frame);
        local.flush();
        let left = || local.collected.lock().len();
        let over = async {
            while left() > 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = timeout(Duration::from_secs(1), over).await;
        match left() {
            0 => Ok(()),
            left => Err(left),
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn where_much_is_to_be_written_others_help() {
        assert_eq!(rest_of(MANY + CHUNK).await, Ok(()));
        assert_eq!(rest_of(MANY - 1).await, Err(MANY - 1 - CHUNK), "for few");
    }

    #[tokio::test]
    async fn where_there_is_one_worker_there_is_nobody_to_help() {
        assert_eq!(rest_of(MANY + CHUNK).await, Err(MANY));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 3)]
    async fn they_end_with_their_node() {
        let cluster = Cluster::builder().start();
        let news = Arc::downgrade(&cluster.broadcaster().node().local.flushers.news);
        let until = async |count: usize| {
            let reached = async {
                while news.strong_count() != count {
                    sleep(Duration::from_millis(1)).await;
                }
            };
            let reached = timeout(Duration::from_secs(10), reached).await;
            assert!(
                reached.is_ok(),
                "{} instead of {count}",
                news.strong_count()
            );
        };
        // Each has its own, and one to begin again with.
        until(1 + 2 * 2).await;
        drop(cluster);
        until(0).await;
    }
}
