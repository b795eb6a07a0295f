//! Identical questions asked at the same time share the work.
//!
//! A thousand handlers that ask for the same roster when a page opens would otherwise cost a thousand rounds through
//! the cluster. One question runs; all that come meanwhile share the next one. Not the running one: its answers may be
//! older than what the asker has just done.
//!
//! ```text
//!           somebody asks              others ask
//!  nothing ---------------> one runs -------------> one runs, one is next
//!     ^                      |     ^                         |
//!     +-- it is over --------+     +-- it is over: the next -+
//! ```

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::Shared;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// What runs, by what is asked, and the next one, if somebody waits for that.
#[derive(Debug)]
pub(crate) struct Share<K, V: Clone>(Mutex<HashMap<K, Option<QuestionRound<V>>>>);

/// Where a question runs, and for how long at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flight<'a> {
    pub(crate) runtime: &'a Handle,
    pub(crate) longest: Duration,
}

#[derive(Debug)]
struct QuestionRound<V: Clone> {
    tell: oneshot::Sender<V>,
    told: Shared<oneshot::Receiver<V>>,
}

impl<V: Clone> QuestionRound<V> {
    fn new() -> Self {
        let (tell, told) = oneshot::channel();
        let told = told.shared();
        Self { tell, told }
    }
}

impl<K, V> Share<K, V>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    /// The answer to a question that was asked after this call began; `None` when whoever asked it panicked, took
    /// too long, or has no runtime any more. `ask` runs in a task of its own, so that nobody who gives up
    /// stops it for the others.
    pub(crate) async fn answer<F>(
        self: &Arc<Self>,
        flight: Flight<'_>,
        key: K,
        ask: impl Fn() -> F + Send + 'static,
    ) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (told, first) = self.join(&key);
        if let Some(first) = first {
            let asking = Asking {
                share: self.clone(),
                key,
                over: false,
            };
            let running = asking.run(first, ask, flight.longest);
            flight.runtime.spawn(running);
        }
        told.await.ok()
    }

    /// Where the answer will be told, and what to ask first if nobody does.
    fn join(&self, key: &K) -> (Shared<oneshot::Receiver<V>>, Option<QuestionRound<V>>) {
        let mut questions = self.0.lock();
        if let Some(next) = questions.get_mut(key) {
            return (
                next.get_or_insert_with(QuestionRound::new).told.clone(),
                None,
            );
        }
        questions.insert(key.clone(), None);
        let first = QuestionRound::new();
        (first.told.clone(), Some(first))
    }
}

/// Whatever happens to it, nobody waits for it afterwards.
struct Asking<K: Hash + Eq, V: Clone> {
    share: Arc<Share<K, V>>,
    key: K,
    over: bool,
}

impl<K: Hash + Eq, V: Clone> Asking<K, V> {
    async fn run<F: Future<Output = V>>(
        mut self,
        first: QuestionRound<V>,
        ask: impl Fn() -> F,
        longest: Duration,
    ) {
        let mut tell = first.tell;
        loop {
            match timeout(longest, ask()).await {
                // Fails when nobody is interested any more.
                Ok(answer) => drop(tell.send(answer)),
                Err(_) => drop(tell),
            }
            match self.next() {
                Some(next) => tell = next.tell,
                None => return,
            }
        }
    }

    /// The question that others wait for. With none it is all over, and nobody can join any more.
    fn next(&mut self) -> Option<QuestionRound<V>> {
        let mut questions = self.share.0.lock();
        let next = questions.get_mut(&self.key).and_then(Option::take);
        if next.is_none() {
            questions.remove(&self.key);
            self.over = true;
        }
        next
    }
}

impl<K: Hash + Eq, V: Clone> Drop for Asking<K, V> {
    fn drop(&mut self) {
        if !self.over {
            // Dropped afterwards: it wakes those who wait.
            let unanswered = self.share.0.lock().remove(&self.key);
            drop(unanswered);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::future::join_all;
    use tokio::runtime::Builder;
    use tokio::sync::Semaphore;

    use super::*;

    /// Longer than any test.
    const LONG: Duration = Duration::from_secs(60);

    fn flight(runtime: &Handle) -> Flight<'_> {
        let longest = LONG;
        Flight { runtime, longest }
    }

    #[tokio::test]
    async fn many_at_once_are_two_questions() {
        let share = Arc::new(Share::new());
        let (asked, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
        let question = || {
            let (share, asked, gate) = (share.clone(), asked.clone(), gate.clone());
            async move {
                let ask = move || {
                    let (asked, gate) = (asked.clone(), gate.clone());
                    async move {
                        let number = asked.fetch_add(1, Ordering::SeqCst);
                        gate.acquire().await.unwrap().forget();
                        number
                    }
                };
                share.answer(flight(&Handle::current()), "who", ask).await
            }
        };
        let all = tokio::spawn(join_all((0..100).map(|_| question())));
        gate.add_permits(2);
        let answers = all.await.unwrap();
        assert_eq!(answers[0], Some(0));
        assert!(answers[1..].iter().all(|answer| *answer == Some(1)));
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        assert!(share.0.lock().is_empty(), "a leak");
    }

    #[tokio::test]
    async fn a_panic_leaves_nobody_waiting() {
        let share = Arc::new(Share::<_, u32>::new());
        let here = Handle::current();
        let ask = || async { panic!("on purpose") };
        assert_eq!(share.answer(flight(&here), "who", ask).await, None);
        let answer = share.answer(flight(&here), "who", || async { 7 });
        assert_eq!(answer.await, Some(7));
    }

    #[tokio::test]
    async fn what_takes_too_long_is_given_up_and_asked_anew() {
        let share = Arc::new(Share::<_, u32>::new());
        let here = Handle::current();
        let short = Flight {
            runtime: &here,
            longest: Duration::from_millis(1),
        };
        assert_eq!(share.answer(short, "who", pending).await, None);
        let answer = share.answer(flight(&here), "who", || async { 7 });
        assert_eq!(answer.await, Some(7));
    }

    #[test]
    fn without_its_runtime_nobody_waits() {
        let share = Arc::new(Share::<_, u32>::new());
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        let handle = runtime.handle().clone();
        let asking = |answer: u32| {
            let (share, handle) = (share.clone(), handle.clone());
            async move {
                let ask = move || async move { answer };
                share.answer(flight(&handle), "who", ask).await
            }
        };
        assert_eq!(runtime.block_on(asking(1)), Some(1), "control");
        drop(runtime);
        assert_eq!(asking(2).now_or_never(), Some(None));
        assert!(share.0.lock().is_empty(), "a leak");
    }
}
