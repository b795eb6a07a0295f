//! What every bus must do, run against each of them.

use std::slice;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use smallvec::smallvec;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::{Backend, Bus, BusSettings, Confirmation, Listener};
use crate::bus::outage::{LinkId, Outage};
use crate::bus::scope::Size;
use crate::model::health::Health;
use crate::model::history::Histories;
use crate::model::history::mark::Number;
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
    fn heard(&self, topic: &str, _: Option<Number>, bytes: &[u8]) {
        self.tell(Told::Heard(topic.to_owned(), bytes.to_owned()));
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

    async fn limited(backend: &Backend, namespace: &str, seats: Option<SeatLimit>) -> Self {
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
                histories: Histories::default(),
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
    a_stopped_node_leaves_nothing
    one_seat_left_has_one_winner
    the_oldest_seat_goes_to_the_newest_socket
    seats_of_a_stopped_node_are_free
    seats_are_what_a_list_of_sockets_by_age_says
}
