//! What every bus must do, run against each of them.

use std::slice;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use smallvec::smallvec;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::{Backend, Bus, BusSettings, Confirmation, Listener, Published};
use crate::bus::outage::{LinkId, Outage};
use crate::bus::past::{Entry, Keep, Past, ReadLimits};
use crate::bus::scope::Size;
use crate::model::health::Health;
use crate::model::history::mark::{Mark, Marks, Number, Run};
use crate::model::history::{Histories, History, Missed};
use crate::model::id::{NodeId, SocketId};
use crate::model::partition::{Partition, PartitionSet};
use crate::model::topic::{Namespace, Topic, TopicKind};
use crate::quota::{OverLimit, SeatLimit, Seats};

#[cfg(feature = "redis")]
#[path = "../../tests/support/redis.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    reason = "shared with the integration tests, which use more of it"
)]
pub(super) mod redis_server;

#[cfg(feature = "redis")]
use redis_server::RedisServer;
#[cfg(feature = "redis")]
use redis_server::redis_cluster::RedisCluster;
#[cfg(feature = "redis")]
use redis_server::sentinels::Sentinels;

const PATIENCE: Duration = Duration::from_secs(20);

/// A node that only writes down what it is told.
struct Recorder {
    told: mpsc::UnboundedSender<Told>,
    outage: Mutex<Outage>,
}

#[derive(Debug, PartialEq)]
enum Told {
    Heard(String, Vec<u8>),
    Kept(String, Number, Vec<u8>),
    Garbage,
    Replaced(u64),
    Up,
    Down,
}

impl Recorder {
    fn tell(&self, told: Told) {
        let _ = self.told.send(told);
    }
}

impl Listener for Recorder {
    fn heard(&self, topic: &str, number: Option<Number>, bytes: &[u8]) {
        let (topic, bytes) = (topic.to_owned(), bytes.to_owned());
        self.tell(match number {
            Some(number) => Told::Kept(topic, number, bytes),
            None => Told::Heard(topic, bytes),
        });
    }

    fn flush(&self) -> bool {
        false
    }

    fn garbage(&self) {
        self.tell(Told::Garbage);
    }

    fn replaced(&self, number: u64) {
        self.tell(Told::Replaced(number));
    }

    /// Once, however often it is proven.
    fn up(&self, link: LinkId, proven: Instant) {
        let mut outage = self.outage.lock();
        let before = outage.health();
        outage.up(link, proven);
        if before != Health::Up && outage.health() == Health::Up {
            self.tell(Told::Up);
        }
    }

    fn strayed(&self, _: LinkId, _: Option<Instant>) {}

    fn down(&self, link: LinkId, reason: Arc<str>, deaf: bool) {
        let mut outage = self.outage.lock();
        let before = outage.health();
        outage.down(link, reason, deaf, SystemTime::now());
        if outage.health() != before {
            self.tell(Told::Down);
        }
    }

    fn refused(&self, _: LinkId, _: TopicKind, _: Arc<str>) {
        self.tell(Told::Down);
    }

    fn moved(&self, partitions: PartitionSet, links: (LinkId, LinkId), at: Instant) {
        let now = SystemTime::now();
        self.outage.lock().moved(partitions, links, at, now);
    }

    fn works(&self, _: LinkId, _: Instant) {}

    fn stranded(&self, _: LinkId, _: Partition) {}

    fn panicked(&self) {}
}

struct End {
    node: NodeId,
    bus: Box<dyn Bus>,
    told: mpsc::UnboundedReceiver<Told>,
    _listener: Arc<Recorder>,
}

impl End {
    /// A started bus that is up.
    async fn open(backend: &Backend, namespace: &str) -> Self {
        Self::limited(backend, namespace, None).await
    }

    /// One that keeps.
    async fn keeping(backend: &Backend, namespace: &str, history: History) -> Self {
        let histories = Histories {
            user: Some(history),
            room: Some(history),
            all: Some(history),
        };
        Self::with(backend, namespace, None, histories).await
    }

    async fn limited(backend: &Backend, namespace: &str, seats: Option<SeatLimit>) -> Self {
        Self::with(backend, namespace, seats, Histories::default()).await
    }

    async fn with(
        backend: &Backend,
        namespace: &str,
        seats: Option<SeatLimit>,
        histories: Histories,
    ) -> Self {
        let node = NodeId::random();
        let bus = backend.open(
            node,
            BusSettings {
                namespace: Namespace::new(namespace).unwrap(),
                publish_timeout: PATIENCE,
                probe_interval: PATIENCE,
                lease: PATIENCE,
                linger: Duration::from_millis(1),
                seats,
                histories,
                spool: None,
            },
        );
        let (sender, told) = mpsc::unbounded_channel();
        let listener = Arc::new(Recorder {
            told: sender,
            outage: Mutex::new(Outage::new(bus.links(), Instant::now(), SystemTime::now())),
        });
        let weak: Weak<Recorder> = Arc::downgrade(&listener);
        bus.start(weak);
        bus.want(&Topic::node(node));
        let mut end = Self {
            node,
            bus,
            told,
            _listener: listener,
        };
        assert_eq!(end.next().await, Told::Up);
        end
    }

    async fn next(&mut self) -> Told {
        let told = timeout(PATIENCE, self.told.recv()).await;
        told.expect("something is told")
            .expect("the listener lives")
    }

    async fn hears(&mut self, topic: &Topic, bytes: &str) {
        let expected = Told::Heard(topic.as_str().to_owned(), bytes.as_bytes().to_owned());
        assert_eq!(self.next().await, expected);
    }

    /// These and nothing else: where topics are not at one server, in any order.
    async fn hears_all<const N: usize>(&mut self, expected: [(&Topic, &str); N]) {
        let told =
            |(topic, bytes): (&Topic, &str)| Told::Heard(topic.as_str().into(), bytes.into());
        let mut expected = Vec::from(expected.map(told));
        while !expected.is_empty() {
            let heard = self.next().await;
            let at = expected.iter().position(|one| *one == heard);
            expected.remove(at.unwrap_or_else(|| panic!("{heard:?} of {expected:?}")));
        }
    }

    async fn want(&self, topic: &Topic) {
        if let Confirmation::Pending(confirmed) = self.bus.want(topic) {
            timeout(PATIENCE, confirmed)
                .await
                .expect("in time")
                .expect("confirmed");
        }
    }

    async fn publish(&self, topic: &Topic, bytes: &str) -> usize {
        let published = self.bus.publish(
            smallvec![topic.clone()],
            Bytes::copy_from_slice(bytes.as_bytes()),
            Size::Small,
            None,
        );
        published.await.unwrap().nodes
    }

    /// Publishes and keeps; the last number.
    async fn keep(&self, topics: &[&Topic], bytes: &str, keep: Keep) -> Published {
        let topics = topics.iter().map(|topic| (*topic).clone()).collect();
        let bytes = Bytes::copy_from_slice(bytes.as_bytes());
        let published = self.bus.publish(topics, bytes, Size::Small, Some(keep));
        published.await.unwrap()
    }

    /// What comes next, which is kept.
    async fn next_kept(&mut self) -> (String, Number, String) {
        match self.next().await {
            Told::Kept(topic, number, bytes) => (topic, number, String::from_utf8(bytes).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    async fn read(&self, topics: &[Topic], since: Option<&Marks>, entries: usize) -> Past {
        let bytes = usize::MAX;
        let limits = ReadLimits { entries, bytes };
        self.bus.read(topics, since, limits).await.unwrap()
    }

    fn seats(&self) -> &dyn Seats {
        self.bus.seats().expect("a limit is set")
    }

    /// Claims by the count of the whole cluster; the sockets of other nodes that have to go.
    async fn claim(&self, user: &Topic, number: u64) -> Option<Vec<SocketId>> {
        let decision = self.seats().claim(user, number).await;
        assert!(decision.checked, "the bus answers");
        decision.granted
    }

    /// Gives a seat back and waits until the cluster knows.
    async fn release(&self, user: &Topic, number: u64) {
        self.seats().release(user, number);
        // What is released is told before the next claim, of whoever is counted in the same place.
        let place = |topic: &Topic| Partition::of(topic.as_str()).index() / 16;
        let fences = (0..).map(|n| room(&format!("fence {n}")));
        let mut fences = fences.filter(|fence| place(fence) == place(user));
        let fence = fences.next().expect("one of them is there");
        self.claim(&fence, u64::MAX).await;
        self.seats().release(&fence, u64::MAX);
    }

    fn socket(&self, number: u64) -> SocketId {
        SocketId {
            node: self.node,
            number,
        }
    }

    /// Waits until this many nodes listen.
    async fn until_listening(&self, topic: &Topic, nodes: usize) {
        let reached = async {
            while self.bus.listening(slice::from_ref(topic)).await.unwrap() != [nodes] {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, reached)
            .await
            .expect("the number of listening nodes");
    }
}

fn room(name: &str) -> Topic {
    Topic::room(name).unwrap()
}

async fn a_wanted_topic_is_heard_once_and_counted(backend: Backend) {
    let (a, mut b, mut c) = (
        End::open(&backend, "x").await,
        End::open(&backend, "x").await,
        End::open(&backend, "x").await,
    );
    let (topic, fence) = (room("r"), room("fence"));
    assert_eq!(a.publish(&topic, "nobody").await, 0);
    for end in [&b, &c] {
        end.want(&topic).await;
        end.want(&fence).await;
    }
    assert_eq!(a.publish(&topic, "both").await, 2);
    assert_eq!(a.publish(&room("rr"), "another topic").await, 0);
    assert_eq!(a.publish(&fence, "done").await, 2);
    for end in [&mut b, &mut c] {
        end.hears_all([(&topic, "both"), (&fence, "done")]).await;
    }
}

async fn a_node_does_not_count_itself(backend: Backend) {
    let a = End::open(&backend, "x").await;
    a.want(&room("r")).await;
    assert_eq!(a.publish(&room("r"), "hello").await, 0);
}

async fn a_topic_is_heard_until_the_last_reason_is_gone(backend: Backend) {
    let (a, mut b) = (
        End::open(&backend, "x").await,
        End::open(&backend, "x").await,
    );
    let topic = room("r");
    b.want(&topic).await;
    b.want(&topic).await;
    b.bus.release(&topic);
    assert_eq!(a.publish(&topic, "still here").await, 1);
    b.hears(&topic, "still here").await;
    a.until_listening(&topic, 1).await;
    b.bus.release(&topic);
    a.until_listening(&topic, 0).await;
    assert_eq!(a.publish(&topic, "gone").await, 0);
}

async fn order_holds(backend: Backend) {
    let (a, mut b) = (
        End::open(&backend, "x").await,
        End::open(&backend, "x").await,
    );
    let topic = room("r");
    b.want(&topic).await;
    let texts: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
    futures::future::join_all(texts.iter().map(|text| a.publish(&topic, text))).await;
    for text in &texts {
        b.hears(&topic, text).await;
    }
}

async fn several_topics_are_one_publication(backend: Backend) {
    let (a, mut b) = (
        End::open(&backend, "x").await,
        End::open(&backend, "x").await,
    );
    b.want(&room("1")).await;
    b.want(&room("2")).await;
    let topics = smallvec![room("1"), room("2"), room("3")];
    assert_eq!(
        a.bus
            .publish(topics, Bytes::from_static(b"u"), Size::Small, None)
            .await
            .unwrap()
            .nodes,
        2
    );
    b.hears_all([(&room("1"), "u"), (&room("2"), "u")]).await;
}

async fn namespaces_never_meet(backend: Backend) {
    let (a, mut b) = (
        End::open(&backend, "x").await,
        End::open(&backend, "x.y").await,
    );
    let (topic, fence) = (room("r"), room("fence"));
    b.want(&topic).await;
    b.want(&fence).await;
    assert_eq!(a.publish(&topic, "to x").await, 0);
    let other = End::open(&backend, "x.y").await;
    assert_eq!(other.publish(&fence, "done").await, 1);
    b.hears(&fence, "done").await;
}

async fn a_stopped_node_leaves_nothing(backend: Backend) {
    let (a, b) = (
        End::open(&backend, "x").await,
        End::open(&backend, "x").await,
    );
    b.want(&room("r")).await;
    a.until_listening(&room("r"), 1).await;
    b.bus.stop().await;
    a.until_listening(&room("r"), 0).await;
    let c = End::open(&backend, "x").await;
    c.want(&room("r")).await;
    a.until_listening(&room("r"), 1).await;
    drop(c);
    a.until_listening(&room("r"), 0).await;
}

/// What each of them tells.
fn told(past: &Past) -> Vec<Result<Vec<&str>, Missed>> {
    let text = |entry: &Entry| std::str::from_utf8(&entry.envelope).unwrap().to_owned();
    let texts = past.topics.iter().map(|topic| match &topic.entries {
        Ok(entries) => Ok(entries.iter().map(text).map(|text| &*text.leak()).collect()),
        Err(missed) => Err(*missed),
    });
    texts.collect()
}

const FEW: History = History {
    messages: 4,
    keep: Duration::from_secs(60),
};

async fn what_is_kept_is_told_since_every_position(backend: Backend) {
    let a = End::keeping(&backend, "x", FEW).await;
    let topics = [room("r"), room("s"), Topic::all()];
    let nothing = a.read(&topics, None, 100).await;
    assert_eq!(told(&nothing), [Ok(vec![]), Ok(vec![]), Ok(vec![])]);
    let mut marks = vec![nothing.cuts()];
    for n in 0..7 {
        let published = a.keep(&[&topics[n % 2]], &n.to_string(), Keep::Each).await;
        let (clock, mark) = published.mark.expect("it has a number");
        assert_eq!(clock, a.bus.clock(&topics[n % 2]));
        // Behind it, whichever clock each topic has.
        let cuts = a.read(&topics, None, 100).await.cuts();
        assert!(mark.number < cuts.of(clock).unwrap().number);
        marks.push(cuts);
    }
    for (n, marks) in marks.iter().enumerate() {
        let past = a.read(&topics, Some(marks), 100).await;
        let since = |odd| {
            let missed = (n..7).filter(move |n| n % 2 == odd);
            missed.map(|n| n.to_string()).collect::<Vec<_>>()
        };
        let told = told(&past);
        assert_eq!(told[0].as_ref().unwrap(), &since(0), "from {n}");
        assert_eq!(told[1].as_ref().unwrap(), &since(1), "from {n}");
        assert_eq!(told[2], Ok(vec![]));
    }
    let past = a.read(&topics, Some(&marks[0]), 2).await;
    assert_eq!(
        told(&past)[0],
        Err(Missed::TooMany),
        "more than was asked for"
    );
    let past = a.read(&topics[..1], None, 2).await;
    assert_eq!(told(&past), [Ok(vec!["4", "6"])], "the last ones");
    for n in 7..20 {
        a.keep(&[&topics[0]], &n.to_string(), Keep::Each).await;
    }
    let past = a.read(&topics, Some(&marks[7]), 100).await;
    assert_eq!(told(&past)[..2], [Err(Missed::TooMany), Ok(vec![])]);
    let past = a.read(&topics[..1], None, 100).await;
    let last = told(&past).remove(0).unwrap();
    assert!((4..=5).contains(&last.len()), "{last:?}");
    assert_eq!(last.last(), Some(&"19"));
}

async fn a_position_that_nobody_gave_proves_nothing(backend: Backend) {
    let a = End::keeping(&backend, "x", FEW).await;
    let topic = [room("r")];
    a.keep(&[&topic[0]], "1", Keep::Each).await;
    let now = a.read(&topic, None, 100).await.cuts();
    let (clock, mark) = now.iter().next().unwrap();
    let future = Number(mark.number.0 + 60_000_000);
    let other = Run::of("nobodynobody").unwrap();
    for (run, number) in [
        (other, mark.number),
        (mark.run, Number(1)),
        (mark.run, future),
    ] {
        let forged = [(clock, Mark { run, number })].into_iter().collect();
        let past = a.read(&topic, Some(&forged), 100).await;
        assert_eq!(told(&past), [Err(Missed::Forgotten)], "{run:?} {number}");
    }
    let past = a.read(&topic, Some(&Marks::default()), 100).await;
    assert_eq!(told(&past), [Err(Missed::Forgotten)], "no mark");
    let past = a.read(&[Topic::nodes()], None, 100).await;
    assert_eq!(
        told(&past),
        [Err(Missed::Forgotten)],
        "nothing is kept of it"
    );
    let other = End::keeping(&backend, "x.y", FEW).await;
    let past = other.read(&topic, None, 100).await;
    assert_eq!(told(&past), [Ok(vec![])], "of another namespace");
}

async fn all_nodes_hear_what_is_kept_in_the_order_of_its_numbers(backend: Backend) {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(End::keeping(&backend, "x", History::default()).await);
    }
    let topic = room("r");
    for node in &nodes {
        node.want(&topic).await;
    }
    let sends = nodes.iter().enumerate().flat_map(|(n, node)| {
        let texts = (0..50).map(move |m| format!("{n} {m}"));
        texts.map(move |text| (node, text))
    });
    let sends: Vec<_> = sends.collect();
    let topics = [&topic];
    let sending = sends
        .iter()
        .map(|(node, text)| node.keep(&topics, text, Keep::Each));
    let published = futures::future::join_all(sending).await;
    assert!(
        published.iter().all(|it| it.nodes == 2 && it.comes_back),
        "{published:?}"
    );
    let mut heard = Vec::new();
    for node in &mut nodes {
        let mut of_node = Vec::new();
        for _ in 0..150 {
            of_node.push(node.next_kept().await);
        }
        assert!(of_node.is_sorted_by(|a, b| a.1 < b.1), "strictly");
        for sender in 0..3 {
            let of = of_node
                .iter()
                .filter(|(.., text)| text.starts_with(&format!("{sender} ")));
            let of: Vec<usize> = of.map(|it| it.2[2..].parse().unwrap()).collect();
            assert_eq!(of, (0..50).collect::<Vec<_>>(), "as it was sent");
        }
        heard.push(of_node);
    }
    assert!(heard[0] == heard[1] && heard[1] == heard[2], "in one order");
}

async fn copies_of_a_union_have_one_number_of_each_clock(backend: Backend) {
    let mut a = End::keeping(&backend, "x", FEW).await;
    let topics = [room("r"), room("s"), room("t"), room("silent")];
    for topic in &topics {
        a.want(topic).await;
    }
    let kept = [&topics[0], &topics[1], &topics[3]].map(Topic::clone);
    let published = [&topics[0], &topics[1], &topics[2]];
    a.keep(&published, "u", Keep::Union(kept.into_iter().collect()))
        .await;
    let mut numbers = std::collections::HashMap::<_, Vec<Number>>::new();
    for _ in 0..3 {
        let (topic, number, text) = a.next_kept().await;
        assert_eq!(text, "u");
        let topic = topics.iter().find(|one| *one.as_str() == topic).unwrap();
        numbers.entry(a.bus.clock(topic)).or_default().push(number);
    }
    let past = a.read(&topics, None, 10).await;
    assert_eq!(
        told(&past),
        [Ok(vec!["u"]), Ok(vec!["u"]), Ok(vec![]), Ok(vec!["u"])]
    );
    for topic in past.topics {
        let entries = topic.entries.unwrap();
        numbers
            .entry(topic.clock)
            .or_default()
            .extend(entries.iter().map(|it| it.number));
    }
    for numbers in numbers.into_values() {
        assert!(
            numbers.iter().all(|number| *number == numbers[0]),
            "{numbers:?}"
        );
    }
    let many: Vec<Topic> = (0..300).map(|n| room(&n.to_string())).collect();
    a.keep(&[], "silent", Keep::Silent(many.iter().cloned().collect()))
        .await;
    let past = a.read(&many, None, 10).await;
    assert!(told(&past).iter().all(|it| *it == Ok(vec!["silent"])));
}

async fn many_topics_of_one_send_are_kept_each(backend: Backend) {
    let a = End::keeping(&backend, "x", FEW).await;
    let topics: Vec<Topic> = (0..700).map(|n| room(&n.to_string())).collect();
    let since = a.read(&topics, None, 10).await.cuts();
    let bytes = Bytes::from_static(b"hello");
    let all = topics.iter().cloned().collect();
    let published = a
        .bus
        .publish(all, bytes, Size::Large, Some(Keep::Each))
        .await;
    assert_eq!(published.unwrap().nodes, 0);
    let past = a.read(&topics, Some(&since), 10).await;
    assert!(told(&past).iter().all(|it| *it == Ok(vec!["hello"])));
    let limits = ReadLimits {
        entries: 10,
        bytes: 50,
    };
    let past = a.bus.read(&topics, Some(&since), limits).await.unwrap();
    let whole = told(&past).iter().filter(|it| it.is_ok()).count();
    assert!(whole < 700, "{whole} are told");
}

async fn what_is_kept_and_what_is_not_keep_the_order_of_one_sender(backend: Backend) {
    let a = End::keeping(&backend, "x", FEW).await;
    let mut b = End::keeping(&backend, "x", FEW).await;
    let topic = room("r");
    b.want(&topic).await;
    let publishing = (0..200).map(|n| {
        let keep = (n % 3 > 0).then_some(Keep::Each);
        let bytes = Bytes::from(n.to_string());
        a.bus.publish(
            [topic.clone()].into_iter().collect(),
            bytes,
            Size::Small,
            keep,
        )
    });
    let published = futures::future::join_all(publishing.collect::<Vec<_>>()).await;
    assert!(published.iter().all(Result::is_ok));
    for n in 0..200 {
        let bytes = match b.next().await {
            Told::Heard(_, bytes) if n % 3 == 0 => bytes,
            Told::Kept(_, _, bytes) if n % 3 > 0 => bytes,
            other => panic!("{other:?} as number {n}"),
        };
        assert_eq!(bytes, n.to_string().into_bytes());
    }
}

fn limit(sockets: usize, over: OverLimit) -> Option<SeatLimit> {
    Some(SeatLimit { sockets, over })
}

async fn one_seat_left_has_one_winner(backend: Backend) {
    let limit = limit(3, OverLimit::Refuse);
    let (a, b) = (
        End::limited(&backend, "x", limit).await,
        End::limited(&backend, "x", limit).await,
    );
    let user = room("user");
    assert_eq!(a.claim(&user, 1).await, Some(vec![]));
    assert_eq!(b.claim(&user, 1).await, Some(vec![]));
    let (one, two) = futures::future::join(a.claim(&user, 2), b.claim(&user, 2)).await;
    assert!(one.is_some() != two.is_some(), "{one:?} {two:?}");
    assert_eq!(
        (a.seats().holds(&user, 2), b.seats().holds(&user, 2)),
        (one.is_some(), two.is_some())
    );
    assert_eq!(a.claim(&room("another"), 3).await, Some(vec![]));
    a.release(&user, 1).await;
    assert_eq!(b.claim(&user, 4).await, Some(vec![]));
    assert_eq!(a.claim(&user, 5).await, None);
}

async fn the_oldest_seat_goes_to_the_newest_socket(backend: Backend) {
    let limit = limit(2, OverLimit::CloseOldest);
    let (mut a, mut b) = (
        End::limited(&backend, "x", limit).await,
        End::limited(&backend, "x", limit).await,
    );
    let user = room("user");
    assert_eq!(a.claim(&user, 1).await, Some(vec![]));
    assert_eq!(b.claim(&user, 2).await, Some(vec![]));
    assert_eq!(b.claim(&user, 3).await, Some(vec![a.socket(1)]));
    assert_eq!(b.claim(&user, 4).await, Some(vec![]));
    assert_eq!(b.next().await, Told::Replaced(2), "it is b's own");
    assert!(!b.seats().holds(&user, 2) && b.seats().holds(&user, 3));
    assert_eq!(a.claim(&user, 5).await, Some(vec![b.socket(3)]));
    assert!(a.told.try_recv().is_err(), "a lost none to itself");
}

async fn seats_of_a_stopped_node_are_free(backend: Backend) {
    let limit = limit(1, OverLimit::Refuse);
    let (a, b) = (
        End::limited(&backend, "x", limit).await,
        End::limited(&backend, "x", limit).await,
    );
    let user = room("user");
    assert_eq!(a.claim(&user, 1).await, Some(vec![]));
    assert_eq!(b.claim(&user, 1).await, None);
    let other = End::limited(&backend, "x.y", limit).await;
    assert_eq!(other.claim(&user, 1).await, Some(vec![]), "it is elsewhere");
    a.bus.stop().await;
    assert_eq!(b.claim(&user, 2).await, Some(vec![]));
}

async fn seats_are_what_a_list_of_sockets_by_age_says(backend: Backend) {
    for over in [OverLimit::Refuse, OverLimit::CloseOldest] {
        let limit = SeatLimit { sockets: 3, over };
        let mut nodes = Vec::new();
        for _ in 0..3 {
            nodes.push(End::limited(&backend, "x", Some(limit)).await);
        }
        let users = [room("1"), room("2")];
        let mut held: [Vec<(usize, u64)>; 2] = Default::default();
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        for number in 0..300 {
            let (node, user) = (random.usize(..nodes.len()), random.usize(..users.len()));
            if random.u8(..3) == 0 && !held[user].is_empty() {
                let (node, number) = held[user].remove(random.usize(..held[user].len()));
                nodes[node].release(&users[user], number).await;
                continue;
            }
            let lost: Option<Vec<(usize, u64)>> = limit
                .make_room(held[user].len())
                .map(|over| held[user].drain(..over).collect());
            let expected = lost.as_ref().map(|lost| {
                let others = lost.iter().filter(|(owner, _)| *owner != node);
                others
                    .map(|(owner, number)| nodes[*owner].socket(*number))
                    .collect()
            });
            let granted = nodes[node].claim(&users[user], number).await;
            assert_eq!(granted, expected, "{over:?} at {number}, seed {seed}");
            if let Some(lost) = lost {
                held[user].push((node, number));
                // Their sockets are closed.
                for (owner, number) in lost {
                    nodes[owner].release(&users[user], number).await;
                }
            }
        }
    }
}

macro_rules! on_every_bus {
    ($($name:ident)*) => {
        mod memory {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(Backend::memory()).await;
            })*
        }

        #[cfg(feature = "redis")]
        mod redis {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let server = RedisServer::start();
                super::$name(Backend::redis(server.url()).unwrap()).await;
            })*
        }

        #[cfg(feature = "redis")]
        mod sentinel {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let sentinels = Sentinels::start(0, 1);
                super::$name(Backend::redis(sentinels.url()).unwrap()).await;
            })*
        }

        #[cfg(feature = "redis")]
        mod cluster {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let cluster = RedisCluster::start(3, 0);
                super::$name(Backend::redis(cluster.url()).unwrap()).await;
            })*
        }

        #[cfg(feature = "redis")]
        mod shards {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let servers = [(); 3].map(|()| RedisServer::start());
                let urls = servers.each_ref().map(RedisServer::url);
                super::$name(Backend::shards(urls).unwrap()).await;
            })*
        }
    };
}

on_every_bus! {
    a_wanted_topic_is_heard_once_and_counted
    a_node_does_not_count_itself
    a_topic_is_heard_until_the_last_reason_is_gone
    order_holds
    several_topics_are_one_publication
    namespaces_never_meet
    what_is_kept_is_told_since_every_position
    a_position_that_nobody_gave_proves_nothing
    all_nodes_hear_what_is_kept_in_the_order_of_its_numbers
    copies_of_a_union_have_one_number_of_each_clock
    many_topics_of_one_send_are_kept_each
    what_is_kept_and_what_is_not_keep_the_order_of_one_sender
    a_stopped_node_leaves_nothing
    one_seat_left_has_one_winner
    the_oldest_seat_goes_to_the_newest_socket
    seats_of_a_stopped_node_are_free
    seats_are_what_a_list_of_sockets_by_age_says
}

/// What happens to what Redis keeps (rows H12, H13, H15, H18, H30).
#[cfg(feature = "redis")]
mod kept_by_redis {
    use super::*;

    async fn start(options: &[&str]) -> (RedisServer, End) {
        let server = RedisServer::with_options(options);
        let backend = Backend::redis(server.url()).unwrap();
        let end = End::keeping(&backend, "x", History::default()).await;
        (server, end)
    }

    const LIST: &str = "x:h:r:r";

    async fn keep(end: &End, texts: &[&str]) {
        for text in texts {
            end.keep(&[&room("r")], text, Keep::Each).await;
        }
    }

    async fn cuts(end: &End) -> Marks {
        end.read(&[room("r")], None, 100).await.cuts()
    }

    async fn since(end: &End, marks: &Marks) -> Result<Vec<String>, Missed> {
        let past = end.read(&[room("r")], Some(marks), 100).await;
        let texts = told(&past).remove(0)?;
        Ok(texts.into_iter().map(str::to_owned).collect())
    }

    /// Sends until it is kept again.
    async fn keep_again(end: &End, text: &str) {
        let kept = async {
            loop {
                let topics = [room("r")].into_iter().collect();
                let bytes = Bytes::copy_from_slice(text.as_bytes());
                let keep = Some(Keep::Each);
                match end.bus.publish(topics, bytes, Size::Small, keep).await {
                    Ok(_) => return,
                    Err(error) => assert!(!error.maybe_sent, "{}", error.reason),
                }
            }
        };
        timeout(PATIENCE, kept).await.expect("it is kept again");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_empties_it_makes_every_position_forgotten() {
        let (server, end) = start(&[]).await;
        keep(&end, &["1"]).await;
        let before = cuts(&end).await;
        assert_eq!(since(&end, &before).await, Ok(vec![]), "control");
        let run = server.cli(&["INFO", "server"]);
        assert_eq!(server.cli(&["FLUSHALL"]), "OK");
        keep(&end, &["2"]).await;
        assert_eq!(since(&end, &before).await, Err(Missed::Forgotten));
        let after = cuts(&end).await;
        keep(&end, &["3"]).await;
        assert_eq!(since(&end, &after).await, Ok(vec!["3".into()]));
        let run_id = |info: &str| {
            info.split_once("run_id:")
                .map(|(_, id)| id[..40].to_owned())
        };
        assert_eq!(
            run_id(&run),
            run_id(&server.cli(&["INFO", "server"])),
            "control"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_older_state_is_continued_from_where_it_ends() {
        let (mut server, end) = start(&[]).await;
        keep(&end, &["1"]).await;
        let first = cuts(&end).await;
        keep(&end, &["2"]).await;
        assert_eq!(server.cli(&["SAVE"]), "OK");
        // What takes over may have a slower clock.
        let last: u64 = server.cli(&["HGET", "x:h", "n"]).parse().unwrap();
        server.cli(&["HSET", "x:h", "n", &Number(last + 20_000_000).to_string()]);
        keep(&end, &["lost"]).await;
        let beyond = cuts(&end).await;
        assert_eq!(server.cli(&["LLEN", LIST]), "3", "control");
        server.kill();
        server.restart();
        assert_eq!(server.cli(&["LLEN", LIST]), "2", "control");
        keep_again(&end, "3").await;
        let new = || Ok(vec!["3".to_owned()]);
        assert_eq!(
            since(&end, &beyond).await,
            new(),
            "all that the reader lacks"
        );
        let both = Ok(vec!["2".to_owned(), "3".to_owned()]);
        assert_eq!(since(&end, &first).await, both);
        server.kill();
        std::fs::remove_file(server.unix_socket().with_file_name("dump.rdb")).unwrap();
        server.restart();
        keep_again(&end, "4").await;
        assert_eq!(since(&end, &beyond).await, Err(Missed::Forgotten));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_evicted_is_no_silence() {
        // The clock has no time to live, and stays.
        let options = ["--maxmemory", "3mb", "--maxmemory-policy", "volatile-lru"];
        let (server, end) = start(&options).await;
        keep(&end, &["1"]).await;
        let before = cuts(&end).await;
        keep(&end, &["2"]).await;
        assert_eq!(since(&end, &before).await, Ok(vec!["2".into()]), "control");
        let fill = "for i = 1, 3000 do redis.call('SET', 'filler' .. i, string.rep('x', 2000)) end";
        for _ in 0..20 {
            server.cli(&["EVAL", fill, "0"]);
            if server.cli(&["EXISTS", LIST]) == "0" {
                break;
            }
        }
        assert_eq!(server.cli(&["EXISTS", LIST]), "0", "control");
        let empty = "for i = 1, 3000 do redis.call('DEL', 'filler' .. i) end";
        server.cli(&["EVAL", empty, "0"]);
        assert_eq!(since(&end, &before).await, Err(Missed::Forgotten));
    }

    /// A union that is kept once, in a list of its clock: of so many bytes, and of other rooms.
    async fn keep_large_union(end: &End, bytes: usize) {
        let rooms = (0..65).map(|n| room(&format!("other {n}")));
        let keep = Keep::Union(rooms.collect());
        end.keep(&[], &"x".repeat(bytes), keep).await;
    }

    const UNIONS: &str = "x:h:unions";

    /// Of the large unions it is known which was the last.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_no_large_union_since_is_not_lost_with_their_list() {
        let options = ["--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru"];
        let (server, end) = start(&options).await;
        // They are called as that list ends.
        for name in ["unions", "my:unions"] {
            end.keep(&[&room(name)], "0", Keep::Each).await;
        }
        assert_eq!(server.cli(&["HEXISTS", "x:h", "unions"]), "0");
        keep(&end, &["1"]).await;
        let first = cuts(&end).await;
        keep_large_union(&end, 1).await;
        let second = cuts(&end).await;
        let nothing = || Ok(vec![]);
        assert_eq!(since(&end, &first).await, nothing(), "control");
        assert_eq!(server.cli(&["DEL", UNIONS]), "1", "as if it was evicted");
        assert_eq!(since(&end, &first).await, Err(Missed::Forgotten));
        assert_eq!(
            since(&end, &second).await,
            nothing(),
            "there was none since"
        );
    }

    /// Whoever reads has to be answered within milliseconds, and Redis serves nobody else meanwhile.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_read_is_bounded_whatever_is_kept() {
        const LARGE: usize = 1024 * 1024;
        let (server, end) = start(&[]).await;
        keep(&end, &["1"]).await;
        let written = || {
            let stats = server.cli(&["INFO", "stats"]);
            let bytes = stats.split_once("total_net_output_bytes:").unwrap().1;
            bytes.lines().next().unwrap().parse::<usize>().unwrap()
        };
        let first = cuts(&end).await;
        for _ in 0..3 {
            keep_large_union(&end, LARGE).await;
        }
        let (before, last) = (written(), cuts(&end).await);
        assert_eq!(since(&end, &first).await, Ok(vec![]));
        let passed = written() - before;
        assert!(passed < LARGE, "none of them is this room's: {passed}");
        for _ in 0..2 {
            keep_large_union(&end, LARGE).await;
        }
        let before = written();
        assert_eq!(since(&end, &first).await, Err(Missed::TooMany));
        assert_eq!(since(&end, &last).await, Ok(vec![]), "control");
        for _ in 0..3 {
            keep(&end, &[&"x".repeat(LARGE)]).await;
        }
        let limits = ReadLimits {
            entries: 100,
            bytes: LARGE,
        };
        let topics = [room("r")];
        let past = end.bus.read(&topics, Some(&last), limits).await.unwrap();
        assert_eq!(told(&past), [Err(Missed::TooMany)]);
        let passed = written() - before;
        assert!(passed < LARGE, "it is not sent in part: {passed}");
    }

    /// As a script sees it: its last number is beyond the time.
    #[tokio::test(flavor = "multi_thread")]
    async fn who_sets_the_time_back_changes_neither_order_nor_age() {
        let (server, end) = start(&[]).await;
        keep(&end, &["1"]).await;
        let last: u64 = server.cli(&["HGET", "x:h", "n"]).parse().unwrap();
        let ahead = Number(last + 3_600_000_000).to_string();
        server.cli(&["HSET", "x:h", "n", &ahead]);
        let before = cuts(&end).await;
        keep(&end, &["2", "3"]).await;
        assert_eq!(since(&end, &before).await, Ok(vec!["2".into(), "3".into()]));
        let after = cuts(&end).await;
        let number = |marks: &Marks| marks.iter().next().map(|(_, mark)| mark.number.0).unwrap();
        let begun = std::time::Instant::now();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let later = number(&cuts(&end).await);
        assert!(number(&before) > last + 3_600_000_000);
        let passed = later - number(&after);
        assert!(passed >= 300_000, "time goes on: {passed}");
        assert!(passed <= begun.elapsed().as_micros() as u64 + 100_000);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_outlives_what_it_keeps() {
        let (server, end) = start(&[]).await;
        keep(&end, &["1"]).await;
        let most = History::default().lifetime_millis();
        let lives = || server.cli(&["PTTL", LIST]).parse::<u64>().unwrap();
        assert!((most - 60_000..=most).contains(&lives()), "{}", lives());
        server.cli(&["PEXPIRE", LIST, "1000000"]);
        keep(&end, &["2"]).await;
        assert!(lives() > most, "control: it is not said with each");
        let keys = server.cli(&["KEYS", "*"]);
        let mut keys: Vec<&str> = keys.lines().collect();
        keys.sort_unstable();
        assert_eq!(keys, ["x:h", LIST]);
    }
}
