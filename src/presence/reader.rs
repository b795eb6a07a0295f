//! What one reader of presence has not read yet.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::PresenceChange;
use crate::model::id::UserId;
use crate::waker::{poll_locked, wake};

/// Bounded by the number of users: of each, the reader is told the last state only.
#[derive(Debug)]
pub(super) struct Reader {
    /// Whom it is about; everybody, if absent.
    users: Option<HashSet<UserId>>,
    state: Mutex<State>,
    /// Told when the reader is gone.
    gone: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    unread: BTreeMap<u64, PresenceChange>,
    /// Where in `unread` a user is.
    places: HashMap<UserId, u64>,
    next: u64,
    ended: bool,
    waker: Option<Waker>,
}

impl Reader {
    pub(super) fn new(users: Option<HashSet<UserId>>, gone: Arc<Notify>) -> Self {
        Self {
            users,
            state: Mutex::default(),
            gone,
        }
    }

    pub(super) fn push(&self, change: &PresenceChange) {
        let user = change.user();
        if self
            .users
            .as_ref()
            .is_some_and(|users| !users.contains(user))
        {
            return;
        }
        let mut guard = self.state.lock();
        let state = &mut *guard;
        // A change and its reverse, both unread: for this reader nothing happened.
        if let Some(place) = state.places.remove(user) {
            state.unread.remove(&place);
            return;
        }
        state.places.insert(user.clone(), state.next);
        state.unread.insert(state.next, change.clone());
        state.next += 1;
        let waker = state.waker.take();
        drop(guard);
        wake(waker);
    }

    /// Nothing more will come.
    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        let waker = state.waker.take();
        drop(state);
        wake(waker);
    }

    pub(super) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<PresenceChange>> {
        poll_locked(
            &self.state,
            cx,
            |state| &mut state.waker,
            |state| {
                if let Some((_, change)) = state.unread.pop_first() {
                    state.places.remove(change.user());
                    return Poll::Ready(Some(change));
                }
                match state.ended {
                    true => Poll::Ready(None),
                    false => Poll::Pending,
                }
            },
        )
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.gone.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(reader: &Reader) -> Vec<String> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut read = Vec::new();
        while let Poll::Ready(Some(change)) = reader.poll_next(&mut cx) {
            read.push(format!("{change:?}"));
        }
        read
    }

    /// Comes back to the reader when it is woken.
    struct Reentrant(Arc<Reader>);

    impl std::task::Wake for Reentrant {
        fn wake(self: Arc<Self>) {
            read(&self.0);
        }
    }

    #[test]
    fn a_waker_may_come_back() {
        let (done, over) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let reader = Arc::new(Reader::new(None, Arc::default()));
            let waker = Waker::from(Arc::new(Reentrant(reader.clone())));
            let mut cx = Context::from_waker(&waker);
            assert!(reader.poll_next(&mut cx).is_pending());
            reader.push(&PresenceChange::Online("x".into()));
            let left = read(&reader);
            assert!(reader.poll_next(&mut cx).is_pending());
            reader.end();
            let _ = done.send(left);
        });
        let left = over.recv_timeout(std::time::Duration::from_secs(10));
        assert_eq!(left, Ok(Vec::new()), "the waker read it");
    }

    #[test]
    fn a_reader_that_lags_is_told_the_last_state_of_each_user() {
        let reader = Reader::new(None, Arc::default());
        let (x, y) = (UserId::from("x"), UserId::from("y"));
        for change in [
            PresenceChange::Online(x.clone()),
            PresenceChange::Online(y.clone()),
            PresenceChange::Offline(x.clone()),
        ] {
            reader.push(&change);
        }
        assert_eq!(read(&reader), [r#"Online(UserId("y"))"#]);
        reader.push(&PresenceChange::Offline(y));
        assert_eq!(read(&reader), [r#"Offline(UserId("y"))"#]);
        for _ in 0..1000 {
            reader.push(&PresenceChange::Online(x.clone()));
            reader.push(&PresenceChange::Offline(x.clone()));
        }
        let state = reader.state.lock();
        assert!(state.unread.is_empty() && state.places.is_empty());
    }

    #[test]
    fn others_are_left_out_and_the_end_comes_last() {
        let users = HashSet::from([UserId::from("x")]);
        let reader = Reader::new(Some(users), Arc::default());
        reader.push(&PresenceChange::Online("y".into()));
        reader.push(&PresenceChange::Online("x".into()));
        reader.end();
        assert_eq!(read(&reader), [r#"Online(UserId("x"))"#]);
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(reader.poll_next(&mut cx), Poll::Ready(None));
    }
}
