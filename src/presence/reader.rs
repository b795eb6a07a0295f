//! What one reader of presence has not read yet.
//!
//! As what users are described is told to those alone who ask, which they may do at any time: then what is known comes
//! first, from the task, and what changes only behind it.
//!
//! ```text
//!           it asks                 the task looks, and tells what is known
//!  Nothing ---------> Asked --------------------------------------------------> Told
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;

use super::PresenceChange;
use super::directory::Change;
use crate::model::id::UserId;
use crate::waker::{poll_locked, wake};

/// Bounded by the number of users: of each, the reader is told the last state only, and as what she was described last.
#[derive(Debug)]
pub(super) struct Reader {
    /// Whom it is about; everybody, if absent.
    users: Option<HashSet<UserId>>,
    state: Mutex<State>,
    /// Told when the reader is gone, or asks for more.
    gone: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    unread: BTreeMap<u64, PresenceChange>,
    /// Where in `unread` it is that a user came or went.
    places: HashMap<UserId, UnreadPlace>,
    /// Where in `unread` it is as what a user is described.
    described: HashMap<UserId, u64>,
    next: u64,
    telling: ToldDescriptions,
    ended: bool,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct UnreadPlace {
    at: u64,
    /// She went, and something was told of that.
    was_described: bool,
}

/// Whether the reader is told as what users are described.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum ToldDescriptions {
    #[default]
    Nothing,
    /// It asks, and is not told yet what is known.
    Asked,
    Told,
}

impl Reader {
    pub(super) fn new(users: Option<HashSet<UserId>>, gone: Arc<Notify>) -> Self {
        Self {
            users,
            state: Mutex::default(),
            gone,
        }
    }

    /// From now on it asks as what users are described as well.
    pub(super) fn ask_described(&self) {
        let mut state = self.state.lock();
        if state.telling == ToldDescriptions::Nothing {
            state.telling = ToldDescriptions::Asked;
        }
        drop(state);
        self.gone.notify_one();
    }

    /// Whether it asks so, and is told from now on.
    pub(super) fn begins_described(&self) -> bool {
        let state = &mut *self.state.lock();
        let begins = state.telling == ToldDescriptions::Asked;
        if begins {
            state.telling = ToldDescriptions::Told;
        }
        begins
    }

    pub(super) fn push(&self, change: &Change) {
        let (Change::Online(user) | Change::Offline { user, .. } | Change::Described(user, _)) =
            change;
        let users = self.users.as_ref();
        if users.is_some_and(|users| !users.contains(user)) {
            return;
        }
        let mut state = self.state.lock();
        let before = state.next;
        match change {
            Change::Online(user) => state.came(user),
            Change::Offline {
                user,
                was_described,
            } => state.went(user, *was_described),
            Change::Described(user, descriptions) => {
                if state.telling == ToldDescriptions::Told {
                    state.describe(user, descriptions.values());
                }
            }
        }
        let waker = (state.next > before).then(|| state.waker.take());
        drop(state);
        wake(waker.flatten());
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
                    match &change {
                        PresenceChange::Described { user, .. } => {
                            state.described.remove(user);
                        }
                        moved => _ = state.places.remove(moved.user()),
                    }
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

/// A change and its reverse, both unread: for this reader nothing happened.
impl State {
    fn came(&mut self, user: &UserId) {
        match self.places.remove(user) {
            Some(place) => {
                self.unread.remove(&place.at);
                // It was told of devices that are gone; what there is now follows.
                if place.was_described && self.telling == ToldDescriptions::Told {
                    self.describe(user, Vec::new());
                }
            }
            None => {
                let at = self.add(PresenceChange::Online(user.clone()));
                let was_described = false;
                self.places
                    .insert(user.clone(), UnreadPlace { at, was_described });
            }
        }
    }

    fn went(&mut self, user: &UserId, was_described: bool) {
        if let Some(unread) = self.described.remove(user) {
            self.unread.remove(&unread);
        }
        match self.places.remove(user) {
            Some(place) => _ = self.unread.remove(&place.at),
            None => {
                let at = self.add(PresenceChange::Offline(user.clone()));
                self.places
                    .insert(user.clone(), UnreadPlace { at, was_described });
            }
        }
    }

    fn describe(&mut self, user: &UserId, descriptions: Vec<Value>) {
        let at = self.add(PresenceChange::Described {
            user: user.clone(),
            descriptions,
        });
        if let Some(before) = self.described.insert(user.clone(), at) {
            self.unread.remove(&before);
        }
    }

    fn add(&mut self, change: PresenceChange) -> u64 {
        let at = self.next;
        self.unread.insert(at, change);
        self.next += 1;
        at
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
    use crate::model::description::Descriptions;

    fn online(user: &UserId) -> Change {
        Change::Online(user.clone())
    }

    fn offline(user: &UserId) -> Change {
        Change::Offline {
            user: user.clone(),
            was_described: true,
        }
    }

    fn described(user: &UserId, json: &str) -> Change {
        Change::Described(user.clone(), Descriptions::from(vec![json.to_owned()]))
    }

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
            reader.push(&online(&"x".into()));
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
        for change in [online(&x), online(&y), offline(&x)] {
            reader.push(&change);
        }
        assert_eq!(read(&reader), [r#"Online(UserId("y"))"#]);
        reader.push(&offline(&y));
        assert_eq!(read(&reader), [r#"Offline(UserId("y"))"#]);
        for _ in 0..1000 {
            reader.push(&online(&x));
            reader.push(&offline(&x));
        }
        let state = reader.state.lock();
        assert!(state.unread.is_empty() && state.places.is_empty());
    }

    #[test]
    fn one_that_lags_is_told_the_last_description_too_and_only_if_it_asks() {
        let (reader, x) = (Reader::new(None, Arc::default()), UserId::from("x"));
        reader.push(&described(&x, "1"));
        assert_eq!(read(&reader), [] as [String; 0], "it does not ask");
        reader.ask_described();
        assert!(reader.begins_described() && !reader.begins_described());
        let is = |all: &str| format!(r#"Described {{ user: UserId("x"), descriptions: {all} }}"#);
        let (came, went) = (r#"Online(UserId("x"))"#, r#"Offline(UserId("x"))"#);
        reader.push(&online(&x));
        for json in ["1", "2", "3"] {
            reader.push(&described(&x, json));
        }
        assert_eq!(read(&reader), [came, &is("[Number(3)]")]);
        for change in [described(&x, "4"), offline(&x)] {
            reader.push(&change);
        }
        assert_eq!(read(&reader), [went]);
        for change in [online(&x), described(&x, "5"), offline(&x)] {
            reader.push(&change);
        }
        assert_eq!(read(&reader), [] as [String; 0], "nothing happened");
        for change in [online(&x), described(&x, "6")] {
            reader.push(&change);
        }
        assert_eq!(read(&reader).len(), 2);
        for change in [offline(&x), online(&x)] {
            reader.push(&change);
        }
        assert_eq!(read(&reader), [is("[]")], "the devices are gone");
        for change in [offline(&x), online(&x), described(&x, "7")] {
            reader.push(&change);
        }
        assert_eq!(read(&reader), [is("[Number(7)]")]);
        let state = reader.state.lock();
        assert!(state.unread.is_empty() && state.places.is_empty() && state.described.is_empty());
    }

    #[test]
    fn others_are_left_out_and_the_end_comes_last() {
        let users = HashSet::from([UserId::from("x")]);
        let reader = Reader::new(Some(users), Arc::default());
        reader.push(&online(&"y".into()));
        reader.push(&online(&"x".into()));
        reader.end();
        assert_eq!(read(&reader), [r#"Online(UserId("x"))"#]);
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(reader.poll_next(&mut cx), Poll::Ready(None));
    }
}
