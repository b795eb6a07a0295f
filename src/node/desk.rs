//! What the presence task is told, kept until it looks.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Node;
use crate::id::{NodeId, UserId};
use crate::presence::{Presence, Reader, WatchRequest};
use crate::topic::Topic;

/// Bytes of tidings that wait to be read. With more, all are dropped and asked for afresh.
const MAX_TIDINGS: usize = 16 * 1024 * 1024;

/// Where the presence task finds what it is told.
#[derive(Debug, Default)]
pub(super) struct Desk {
    /// Whether anything is watched at all: nothing else is looked at on the way of a socket.
    watched: AtomicBool,
    mail: Mutex<Mail>,
    pub(super) arrived: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Mail {
    /// Topics of whose users the task is told.
    watched: HashSet<Topic>,
    news: News,
}

/// What came since the task last looked.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) touched: HashMap<Topic, HashSet<UserId>>,
    pub(super) readers: Vec<(Topic, Weak<Reader>)>,
    /// Whether these nodes want to be told of these topics: of each the last word, which is never dropped
    /// since nobody repeats it.
    pub(super) wishes: HashMap<(NodeId, Topic), bool>,
    pub(super) events: VecDeque<Event>,
    /// Bytes of the tidings among the events.
    tidings: usize,
}

#[derive(Debug)]
pub(super) enum Event {
    /// A node is new, or may have missed what we want to be told.
    Joined(NodeId),
    Left(NodeId),
    /// We may have missed something, and the others what we told.
    Returned,
    /// Reports were dropped.
    Missed,
    /// A [`Report`](crate::presence::Report) of another node.
    Said(NodeId, Bytes),
    /// The node is shut down.
    Stop,
}

impl Desk {
    /// A user's sockets on these topics may be others than before.
    pub(super) fn touch<'a>(&self, user: &UserId, topics: impl IntoIterator<Item = &'a Topic>) {
        if !self.watched.load(SeqCst) {
            return;
        }
        let mut touched = false;
        let mut mail = self.mail.lock();
        let Mail { watched, news } = &mut *mail;
        for topic in topics {
            if watched.contains(topic) {
                let users = news.touched.entry(topic.clone()).or_default();
                users.insert(user.clone());
                touched = true;
            }
        }
        drop(mail);
        if touched {
            self.arrived.notify_one();
        }
    }

    pub(super) fn tell(&self, event: Event) {
        self.mail.lock().news.add(event);
        self.arrived.notify_one();
    }

    fn wish(&self, node: NodeId, wish: &WatchRequest) {
        if let Some(topic) = Topic::with_presence(wish.topic()) {
            let watches = matches!(wish, WatchRequest::Watch { .. });
            self.mail.lock().news.wishes.insert((node, topic), watches);
            self.arrived.notify_one();
        }
    }

    pub(super) fn watch(&self, topic: &Topic, watched: bool) {
        let mail = &mut *self.mail.lock();
        if watched {
            mail.watched.insert(topic.clone());
        } else {
            mail.watched.remove(topic);
            mail.news.touched.remove(topic);
        }
        self.watched.store(!mail.watched.is_empty(), SeqCst);
    }

    pub(super) fn is_touched(&self) -> bool {
        !self.mail.lock().news.touched.is_empty()
    }

    pub(super) fn take(&self) -> News {
        std::mem::take(&mut self.mail.lock().news)
    }

    /// Ends the readers that the task has not taken and will not take.
    fn end_readers(&self) {
        let readers = std::mem::take(&mut self.mail.lock().news.readers);
        let readers = readers.iter().filter_map(|(_, reader)| reader.upgrade());
        readers.for_each(|reader| reader.end());
    }
}

impl News {
    fn add(&mut self, event: Event) {
        if let Event::Left(other) = event {
            self.wishes.retain(|(node, _), _| *node != other);
        }
        if let Event::Said(_, json) = &event {
            self.tidings += json.len();
            if self.tidings > MAX_TIDINGS {
                self.tidings = json.len();
                self.events
                    .retain(|event| !matches!(event, Event::Said(..) | Event::Missed));
                self.events.push_back(Event::Missed);
            }
        }
        self.events.push_back(event);
    }
}

/// The task holds no node, and is told so that it ends with it.
impl Drop for Desk {
    fn drop(&mut self) {
        self.end_readers();
        self.arrived.notify_one();
    }
}

impl Node {
    /// A reader of who comes to a topic and goes from it.
    pub(crate) fn presence(&self, topic: Topic, users: Option<HashSet<UserId>>) -> Presence {
        let reader = Arc::new(Reader::new(users, self.desk.arrived.clone()));
        let entry = (topic, Arc::downgrade(&reader));
        self.desk.mail.lock().news.readers.push(entry);
        self.desk.arrived.notify_one();
        // Looked at afterwards: either we see the end, or the task sees the reader before it ends.
        if self.stopped.load(SeqCst) {
            self.desk.end_readers();
        }
        Presence::new(reader)
    }

    pub(super) fn heard_presence(&self, origin: NodeId, json: &[u8]) {
        // Reports, which may be long, are no wish from their first word on.
        match serde_json::from_slice(json) {
            Ok(wish) => self.desk.wish(origin, &wish),
            Err(_) => {
                let json = Bytes::copy_from_slice(json);
                self.desk.tell(Event::Said(origin, json));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc;
    use std::task::{Context, Wake, Waker};
    use std::time::Duration;

    use super::*;

    const OTHER: NodeId = NodeId(1);

    fn watch(topic: &Topic) -> WatchRequest {
        let topic = topic.as_str().to_owned();
        WatchRequest::Watch { topic }
    }

    /// Comes back to the desk when it is woken.
    struct Reentrant(Arc<Desk>, mpsc::Sender<()>);

    impl Wake for Reentrant {
        fn wake(self: Arc<Self>) {
            self.0.is_touched();
            let _ = self.1.send(());
        }
    }

    #[test]
    fn a_waker_may_come_back() {
        let steps: [fn(&Desk); 3] = [
            |desk| desk.touch(&"x".into(), [&Topic::all()]),
            |desk| desk.tell(Event::Returned),
            |desk| desk.wish(OTHER, &watch(&Topic::all())),
        ];
        for (n, step) in steps.into_iter().enumerate() {
            let (woken, wakes) = mpsc::channel();
            std::thread::spawn(move || {
                let desk = Arc::new(Desk::default());
                desk.watch(&Topic::all(), true);
                let waker = Waker::from(Arc::new(Reentrant(desk.clone(), woken)));
                let mut arrived = pin!(desk.arrived.notified());
                let mut cx = Context::from_waker(&waker);
                assert!(arrived.as_mut().poll(&mut cx).is_pending());
                step(&desk);
            });
            let woken = wakes.recv_timeout(Duration::from_secs(10));
            assert_eq!(woken, Ok(()), "step {n}");
        }
    }

    #[test]
    fn too_many_tidings_are_asked_for_afresh_and_wishes_stay() {
        let (desk, all) = (Desk::default(), Topic::all());
        desk.wish(OTHER, &watch(&all));
        let half = Bytes::from(vec![b' '; MAX_TIDINGS / 2]);
        for _ in 0..5 {
            desk.tell(Event::Said(OTHER, half.clone()));
        }
        let News { events, wishes, .. } = desk.take();
        assert!(matches!(
            Vec::from(events)[..],
            [Event::Missed, Event::Said(..)]
        ));
        assert_eq!(wishes, HashMap::from([((OTHER, all), true)]));
    }

    #[test]
    fn the_last_word_of_a_node_counts_until_it_leaves() {
        let (desk, all) = (Desk::default(), Topic::all());
        let topic = all.as_str().to_owned();
        desk.wish(OTHER, &watch(&all));
        desk.wish(OTHER, &WatchRequest::Unwatch { topic });
        desk.wish(NodeId(2), &watch(&all));
        desk.tell(Event::Left(NodeId(2)));
        assert_eq!(desk.take().wishes, HashMap::from([((OTHER, all), false)]));
    }
}
