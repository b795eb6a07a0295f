//! Identical questions asked at the same time share the work.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::Shared;
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// One question runs; all that come meanwhile share the next one. Not the running one: its answers may
/// be older than what the asker has just done.
#[derive(Debug)]
pub(crate) struct Share<K, V: Clone>(Mutex<HashMap<K, Option<Next<V>>>>);

#[derive(Debug)]
struct Next<V: Clone> {
    tell: oneshot::Sender<V>,
    told: Shared<oneshot::Receiver<V>>,
}

impl<V: Clone> Next<V> {
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

    /// The answer to a question that was asked after this call began; `None` when the one who asked it
    /// panicked. `ask` runs in a task of its own, so that nobody who gives up stops it for the others.
    pub(crate) async fn answer<F>(
        self: &Arc<Self>,
        key: K,
        ask: impl Fn() -> F + Send + 'static,
    ) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let told = {
            let mut questions = self.0.lock();
            match questions.get_mut(&key) {
                Some(next) => next.get_or_insert_with(Next::new).told.clone(),
                None => {
                    questions.insert(key.clone(), None);
                    let first = Next::new();
                    let told = first.told.clone();
                    let asking = Asking {
                        share: self.clone(),
                        key,
                        over: false,
                    };
                    tokio::spawn(asking.run(first, ask));
                    told
                }
            }
        };
        told.await.ok()
    }
}

/// Whatever happens to it, nobody waits for it afterwards.
struct Asking<K: Hash + Eq, V: Clone> {
    share: Arc<Share<K, V>>,
    key: K,
    over: bool,
}

impl<K: Hash + Eq, V: Clone> Asking<K, V> {
    async fn run<F: Future<Output = V>>(mut self, first: Next<V>, ask: impl Fn() -> F) {
        let mut tell = first.tell;
        loop {
            // Fails when nobody is interested any more.
            let _ = tell.send(ask().await);
            match self.next() {
                Some(next) => tell = next.tell,
                None => return,
            }
        }
    }

    /// The question that others wait for. With none it is all over, and nobody can join any more.
    fn next(&mut self) -> Option<Next<V>> {
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
            self.share.0.lock().remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

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
                share.answer("who", ask).await
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
        let ask = || async { panic!("on purpose") };
        assert_eq!(share.answer("who", ask).await, None);
        assert_eq!(share.answer("who", || async { 7 }).await, Some(7));
    }
}
