//! What becomes of a task that panics.
//!
//! ```text
//!            a panic: counted, logged
//!  running --------------------------> pausing: 100 ms, twice as long each time, 2 s at most
//!   |   ^                                |  |
//!   |   +---- with the state it left ----+  |
//!   |                                       |
//!   +--> over: it returned, or is stopped <-+
//! ```

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Runs a task until it returns or is stopped. A panic is a bug, and must not leave the node without the task: it
/// is told, and the task begins again with the state as it was left.
pub(crate) async fn supervise<T>(
    task: &'static str,
    stop: &CancellationToken,
    panicked: impl Fn(),
    state: &mut T,
    run: impl for<'a> Fn(&'a mut T) -> BoxFuture<'a, ()>,
) {
    let mut restarts = Restarts::default();
    loop {
        let began = Instant::now();
        let guarded = AssertUnwindSafe(async { run(state).await }).catch_unwind();
        match stop.run_until_cancelled(guarded).await {
            None | Some(Ok(())) => return,
            Some(Err(_)) => panicked(),
        }
        let pause = restarts.pause(began.elapsed());
        tracing::error!(
            task,
            ?pause,
            "a task of the cluster panicked and begins again: please report it"
        );
        if stop.run_until_cancelled(sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// The first pause before a task begins again, doubled each time up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long a task that panicked pauses: one that panics whenever it begins costs little, and one that ran is
/// missed for a moment.
#[derive(Debug, Default)]
struct Restarts {
    panics: u32,
}

impl Restarts {
    /// The task panicked after it had run for so long; how long it pauses.
    fn pause(&mut self, ran: Duration) -> Duration {
        if ran >= LONGEST_PAUSE {
            self.panics = 0;
        }
        let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(self.panics));
        self.panics = self.panics.saturating_add(1);
        pause.min(LONGEST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use futures::future::pending;
    use tokio::task::yield_now;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn who_panics_again_and_again_pauses_longer_until_it_runs() {
        let mut restarts = Restarts::default();
        let at_once: Vec<_> = (0..7).map(|_| restarts.pause(MS)).collect();
        assert_eq!(
            at_once,
            [100, 200, 400, 800, 1600, 2000, 2000].map(|n| n * MS)
        );
        assert_eq!(restarts.pause(LONGEST_PAUSE), 100 * MS);
        restarts.panics = u32::MAX;
        assert_eq!(restarts.pause(MS), LONGEST_PAUSE);
    }

    #[tokio::test]
    async fn a_task_that_panics_begins_again_with_its_state() {
        let (panics, stop) = (AtomicU32::new(0), CancellationToken::new());
        let mut runs = 0;
        let panicked = || {
            panics.fetch_add(1, SeqCst);
        };
        supervise("test", &stop, panicked, &mut runs, |runs| {
            *runs += 1;
            let last = *runs == 4;
            assert!(*runs != 1, "before it has begun");
            let later = async move {
                yield_now().await;
                assert!(last, "later");
            };
            later.boxed()
        })
        .await;
        assert_eq!((runs, panics.load(SeqCst)), (4, 3));
    }

    #[tokio::test]
    async fn a_task_is_stopped_wherever_it_waits() {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            supervise("test", &stopped, || {}, &mut (), |()| pending().boxed()).await;
        });
        yield_now().await;
        assert!(!task.is_finished(), "control");
        stop.cancel();
        task.await.unwrap();
    }
}
