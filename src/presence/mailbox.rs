//! What presence is told, kept until its task looks.
//!
//! Told from everywhere, the bus's own task among them, so that nothing here waits or takes long: a report is kept as
//! the bytes that came. Each kind is bounded by itself:
//!
//! ```text
//!  touched    each user once for each topic that is watched, and nothing for others
//!  requests   the last word of each node on each topic: never dropped, since nobody repeats it
//!  letters     reports up to a limit of bytes: with more, all are dropped, and one `Missed` stands for them
//!  readers    those that live
//! ```

use std::collections::{HashMap, HashSet, VecDeque};
use std::mem::take;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Presence;
use super::act::{Input, Watching};
use super::reader::Reader;
use super::word::WatchRequest;
use crate::model::id::{NodeId, UserId};
use crate::model::topic::Topic;

/// Bytes of reports that wait to be read. With more, all are dropped and asked for afresh.
const MAX_REPORTS: usize = 16 * 1024 * 1024;

/// Where the presence task finds what it is told.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    /// Whether anything is watched at all: nothing else is looked at on the way of a socket.
    watched: AtomicBool,
    state: Mutex<State>,
    arrived: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    /// Topics of whose users the task is told.
    watched: HashSet<Topic>,
    /// The node is shut down, and nothing is kept any more.
    stopped: bool,
    mail: Mail,
}

/// What came since the task last looked.
#[derive(Debug, Default)]
pub(super) struct Mail {
    readers: Vec<(Topic, Weak<Reader>)>,
    letters: VecDeque<Letter>,
    /// Bytes of the reports among the letters.
    reports: usize,
    requests: HashMap<(NodeId, Topic), Watching>,
    touched: HashMap<Topic, HashSet<UserId>>,
}

#[derive(Debug)]
enum Letter {
    Joined(NodeId),
    Left(NodeId),
    Returned,
    Missed,
    /// A [`Report`](super::word::Report) as JSON.
    Report(NodeId, Bytes),
}

impl Mailbox {
    /// A user's sockets on these topics may be others than before.
    pub(crate) fn touch<'a>(&self, user: &UserId, topics: impl IntoIterator<Item = &'a Topic>) {
        if !self.is_watched() {
            return;
        }
        let mut touched = false;
        let mut state = self.state.lock();
        let State { watched, mail, .. } = &mut *state;
        for topic in topics {
            if watched.contains(topic) {
                let users = mail.touched.entry(topic.clone()).or_default();
                users.insert(user.clone());
                touched = true;
            }
        }
        drop(state);
        if touched {
            self.arrived.notify_one();
        }
    }

    /// A reader of who comes to a topic and goes from it; of these users only, if there are any.
    pub(crate) fn reader(&self, topic: Topic, users: Option<HashSet<UserId>>) -> Presence {
        let reader = Arc::new(Reader::new(users, self.arrived.clone()));
        let mut state = self.state.lock();
        let stopped = state.stopped;
        if !stopped {
            let entry = (topic, Arc::downgrade(&reader));
            state.mail.readers.push(entry);
        }
        drop(state);
        match stopped {
            true => reader.end(),
            false => self.arrived.notify_one(),
        }
        Presence::new(reader)
    }

    /// A node is new, or may have missed what we want to be told.
    pub(crate) fn joined(&self, node: NodeId) {
        self.tell(|mail| mail.add(Letter::Joined(node)));
    }

    pub(crate) fn left(&self, node: NodeId) {
        self.tell(|mail| {
            mail.requests.retain(|(from, _), _| *from != node);
            mail.add(Letter::Left(node));
        });
    }

    /// The bus is back: we may have missed something, and the others what we told.
    pub(crate) fn returned(&self) {
        self.tell(|mail| mail.add(Letter::Returned));
    }

    /// Another node told of its users. It may be 16 MB, and the bus's own task is no place to parse them.
    pub(crate) fn heard_report(&self, from: NodeId, json: &[u8]) {
        let json = Bytes::copy_from_slice(json);
        self.tell(|mail| mail.add_report(from, json));
    }

    /// Another node says whether it wants to be told of a topic.
    pub(crate) fn heard_request(&self, from: NodeId, json: &[u8]) {
        let Ok(request) = serde_json::from_slice::<WatchRequest>(json) else {
            // A word of a later version.
            return tracing::debug!(other = %from, "a watch request that makes no sense here");
        };
        if let Some(topic) = Topic::with_presence(request.topic()) {
            let watching = match request {
                WatchRequest::Unwatch { .. } => Watching::Nothing,
                WatchRequest::Watch {
                    described: false, ..
                } => Watching::Users,
                WatchRequest::Watch {
                    described: true, ..
                } => Watching::Described,
            };
            self.tell(|mail| {
                mail.requests.insert((from, topic), watching);
            });
        }
    }

    /// Ends all readers, but for those that the task has taken: it ends them.
    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        let mail = take(&mut state.mail);
        drop(state);
        let readers = mail.readers.iter();
        let readers = readers.filter_map(|(_, reader)| reader.upgrade());
        readers.for_each(|reader| reader.end());
        self.arrived.notify_one();
    }

    /// Whether who comes to a topic and goes from it is to be told.
    pub(crate) fn watch(&self, topic: &Topic, watched: bool) {
        let state = &mut *self.state.lock();
        if watched {
            state.watched.insert(topic.clone());
        } else {
            state.watched.remove(topic);
            state.mail.touched.remove(topic);
        }
        self.watched.store(!state.watched.is_empty(), SeqCst);
    }

    /// Whether anything is watched at all.
    pub(crate) fn is_watched(&self) -> bool {
        self.watched.load(SeqCst)
    }

    pub(super) fn arrived(&self) -> Arc<Notify> {
        self.arrived.clone()
    }

    pub(super) fn is_touched(&self) -> bool {
        !self.state.lock().mail.touched.is_empty()
    }

    /// What came; none if the node is shut down.
    pub(super) fn take(&self) -> Option<Mail> {
        let mut state = self.state.lock();
        (!state.stopped).then(|| take(&mut state.mail))
    }

    fn tell(&self, write: impl FnOnce(&mut Mail)) {
        let mut state = self.state.lock();
        if state.stopped {
            return;
        }
        write(&mut state.mail);
        drop(state);
        self.arrived.notify_one();
    }
}

/// The task holds no node, and is told so that it ends with it.
impl Drop for Mailbox {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Mail {
    fn add(&mut self, letter: Letter) {
        self.letters.push_back(letter);
    }

    fn add_report(&mut self, from: NodeId, json: Bytes) {
        self.reports += json.len();
        if self.reports > MAX_REPORTS {
            self.drop_reports();
            self.reports = json.len();
        }
        self.add(Letter::Report(from, json));
    }

    fn drop_reports(&mut self) {
        self.letters
            .retain(|letter| !matches!(letter, Letter::Report(..) | Letter::Missed));
        self.add(Letter::Missed);
        self.reports = 0;
    }

    /// Reports are parsed one by one, as they are asked for.
    pub(super) fn inputs(self) -> impl Iterator<Item = Input> {
        let readers = self.readers.into_iter();
        let readers = readers.map(|(topic, reader)| Input::Reader(topic, reader));
        let requests = self.requests.into_iter();
        let requests = requests.map(|((from, topic), what)| Input::Request(from, topic, what));
        let touched = self.touched.into_iter();
        let touched = touched.map(|(topic, users)| Input::Touched(topic, users));
        let letters = self.letters.into_iter().filter_map(Letter::read);
        readers.chain(letters).chain(requests).chain(touched)
    }
}

impl Letter {
    fn read(self) -> Option<Input> {
        Some(match self {
            Self::Joined(node) => Input::Joined(node),
            Self::Left(node) => Input::Left(node),
            Self::Returned => Input::Returned,
            Self::Missed => Input::Missed,
            Self::Report(from, json) => match serde_json::from_slice(&json) {
                Ok(report) => Input::Report(from, report),
                Err(_) => {
                    // A word of a later version.
                    tracing::debug!(other = %from, "a report that makes no sense here");
                    return None;
                }
            },
        })
    }
}

#[cfg(test)]
impl Mailbox {
    /// Makes the mailbox overflow, as if more had come than is kept.
    pub(super) fn overflow(&self) {
        self.tell(Mail::drop_reports);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc;
    use std::task::{Context, Wake, Waker};
    use std::time::Duration;

    use futures::{FutureExt, StreamExt};

    use super::*;
    use crate::presence::word::{Report, Word};

    const OTHER: NodeId = NodeId(1);

    fn request(topic: &Topic, watches: bool) -> Vec<u8> {
        let topic = topic.as_str().to_owned();
        let request = match watches {
            true => WatchRequest::Watch {
                topic,
                described: false,
            },
            false => WatchRequest::Unwatch { topic },
        };
        Word::Request(request).to_json()
    }

    fn report() -> Report {
        Report::Changes {
            topic: Topic::all().as_str().to_owned(),
            online: vec!["x".into()],
            offline: Vec::new(),
            described: Vec::new(),
        }
    }

    /// Comes back to the mailbox when it is woken.
    struct Reentrant(Arc<Mailbox>, mpsc::Sender<()>);

    impl Wake for Reentrant {
        fn wake(self: Arc<Self>) {
            self.0.is_touched();
            let _ = self.1.send(());
        }
    }

    #[test]
    fn a_waker_may_come_back() {
        let steps: [fn(&Mailbox); 5] = [
            |mailbox| mailbox.touch(&"x".into(), [&Topic::all()]),
            |mailbox| mailbox.returned(),
            |mailbox| mailbox.heard_request(OTHER, &request(&Topic::all(), true)),
            |mailbox| drop(mailbox.reader(Topic::all(), None)),
            |mailbox| mailbox.stop(),
        ];
        for (n, step) in steps.into_iter().enumerate() {
            let (woken, wakes) = mpsc::channel();
            std::thread::spawn(move || {
                let mailbox = Arc::new(Mailbox::default());
                mailbox.watch(&Topic::all(), true);
                let waker = Waker::from(Arc::new(Reentrant(mailbox.clone(), woken)));
                let mut arrived = pin!(mailbox.arrived.notified());
                let mut cx = Context::from_waker(&waker);
                assert!(arrived.as_mut().poll(&mut cx).is_pending());
                step(&mailbox);
            });
            let woken = wakes.recv_timeout(Duration::from_secs(10));
            assert_eq!(woken, Ok(()), "step {n}");
        }
    }

    /// What the task is handed.
    fn taken(mailbox: &Mailbox) -> Vec<Input> {
        mailbox.take().unwrap().inputs().collect()
    }

    #[test]
    fn too_many_reports_are_asked_for_afresh_and_requests_stay() {
        let (mailbox, all) = (Mailbox::default(), Topic::all());
        mailbox.heard_request(OTHER, &request(&all, true));
        let mut half = Word::Report(report()).to_json();
        half.resize(MAX_REPORTS / 2, b' ');
        for _ in 0..5 {
            mailbox.heard_report(OTHER, &half);
        }
        let inputs = taken(&mailbox);
        let [
            Input::Missed,
            Input::Report(OTHER, read),
            Input::Request(OTHER, topic, Watching::Users),
        ] = &inputs[..]
        else {
            panic!("{inputs:?}")
        };
        assert_eq!((read, topic), (&report(), &all));
        assert!(taken(&mailbox).is_empty());
    }

    #[test]
    fn the_last_word_of_a_node_counts_until_it_leaves() {
        let (mailbox, all) = (Mailbox::default(), Topic::all());
        mailbox.heard_request(OTHER, &request(&all, true));
        mailbox.heard_request(OTHER, &request(&all, false));
        mailbox.heard_request(NodeId(2), &request(&all, true));
        mailbox.left(NodeId(2));
        let inputs = taken(&mailbox);
        assert!(
            matches!(
                inputs[..],
                [
                    Input::Left(NodeId(2)),
                    Input::Request(OTHER, _, Watching::Nothing)
                ]
            ),
            "{inputs:?}"
        );
    }

    #[test]
    fn words_of_later_versions_and_topics_without_presence_are_left_out() {
        let mailbox = Mailbox::default();
        for json in ["", "{}", r#"{"dance":{}}"#, r#"{"watch":{"topic":"u:x"}}"#] {
            mailbox.heard_request(OTHER, json.as_bytes());
            mailbox.heard_report(OTHER, json.as_bytes());
        }
        assert!(taken(&mailbox).is_empty());
        mailbox.heard_report(OTHER, &Word::Report(report()).to_json());
        assert_eq!(taken(&mailbox).len(), 1, "control");
    }

    #[test]
    fn who_comes_to_what_nobody_watches_is_not_kept() {
        let mailbox = Mailbox::default();
        let (room, all) = (Topic::room("a").unwrap(), Topic::all());
        let touch = || mailbox.touch(&"x".into(), [&all, &room]);
        touch();
        assert!(!mailbox.is_touched());
        mailbox.watch(&room, true);
        touch();
        assert!(matches!(&taken(&mailbox)[..], [Input::Touched(topic, _)] if *topic == room));
        touch();
        mailbox.watch(&room, false);
        touch();
        assert!(!mailbox.is_touched() && taken(&mailbox).is_empty());
    }

    #[test]
    fn nothing_is_kept_after_the_end_and_readers_end() {
        let (mailbox, all) = (Mailbox::default(), Topic::all());
        let before = mailbox.reader(all.clone(), None);
        mailbox.watch(&all, true);
        mailbox.stop();
        let after = mailbox.reader(all.clone(), None);
        for mut presence in [before, after] {
            assert_eq!(presence.next().now_or_never(), Some(None));
        }
        mailbox.joined(OTHER);
        mailbox.heard_report(OTHER, b"{}");
        assert!(mailbox.take().is_none());
        assert!(mailbox.state.lock().mail.letters.is_empty());
    }
}
