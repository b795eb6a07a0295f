//! Wakers are foreign code, which may come back to where it was called from: no lock of ours is held meanwhile.

use std::mem::swap;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// Wakes whoever waits. Never under a lock.
pub(crate) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Asks under a lock; while there is no answer, the waker waits in its place.
pub(crate) fn poll_locked<S, T>(
    lock: &Mutex<S>,
    cx: &mut Context<'_>,
    place: impl Fn(&mut S) -> &mut Option<Waker>,
    mut ask: impl FnMut(&mut S) -> Poll<T>,
) -> Poll<T> {
    // Cloned without the lock. Declared before the guard, so that what it is swapped for is dropped after it.
    let mut waker = None;
    loop {
        let mut state = lock.lock();
        let answer = ask(&mut state);
        if answer.is_ready() {
            return answer;
        }
        let waiting = place(&mut state);
        let is_there = waiting
            .as_ref()
            .is_some_and(|waiting| waiting.will_wake(cx.waker()));
        if is_there || waker.is_some() {
            if !is_there {
                swap(waiting, &mut waker);
            }
            return answer;
        }
        drop(state);
        waker = Some(cx.waker().clone());
    }
}
