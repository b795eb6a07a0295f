//! Seats in several groups, over real servers: one for all groups, two, and a Redis Cluster whose slots move.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::{SeatWriter, SharedLedgers};
use crate::bus::BusSettings;
use crate::bus::conformance::redis_server::{RedisServer, free_port};
use crate::bus::redis::advice::Advice;
use crate::bus::redis::command::Dialect;
use crate::bus::redis::connection::Connector;
use crate::bus::redis::options::{Redis, Target};
use crate::bus::redis::topology::Topology;
use crate::model::id::{NodeId, UserId};
use crate::model::topic::Topic;
use crate::quota::{Decision, OverLimit, SeatLimit, Seats};

/// How many groups there are.
const GROUPS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn connector(url: &str) -> Connector {
    Connector::new(Arc::new(Topology::at(url)), PATIENCE)
}

fn connector_in_cluster(url: &str) -> Connector {
    let redis = Redis::at(url).unwrap();
    let Ok(Target::Single(primary)) = redis.target() else {
        panic!("{url} is one server")
    };
    let topology = Topology::of_cluster(Some(primary), Arc::default());
    Connector::new(Arc::new(topology), PATIENCE)
}

/// The slot of a key without a tag, as the specification of Redis Cluster has it (CRC16, XMODEM).
fn slot(key: &str) -> usize {
    let step = |crc: u16, byte: u8| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            let shifted = crc << 1;
            if crc & 0x8000 == 0 {
                shifted
            } else {
                shifted ^ 0x1021
            }
        })
    };
    usize::from(key.bytes().fold(0, step) & 0x3fff)
}

fn group_of_key(key: &str) -> usize {
    slot(key) / (16_384 / GROUPS)
}

fn group_of(user: &Topic) -> usize {
    group_of_key(user.as_str())
}

/// The smallest number whose slot is one of this group.
fn tag(group: usize) -> String {
    let numbers = (0..).map(|number: u32| number.to_string());
    let mut of_group = numbers.filter(|number| group_of_key(number) == group);
    of_group.next().unwrap()
}

/// A user of this group.
fn user(group: usize) -> Topic {
    let users = (0..).map(|number: u32| Topic::user(&UserId::from(number.to_string())).unwrap());
    let mut of_group = users.into_iter().filter(|user| group_of(user) == group);
    of_group.next().unwrap()
}

/// One node, as far as seats go.
struct End {
    seats: Arc<SharedLedgers>,
    task: JoinHandle<()>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl End {
    /// Each group is where the connector of this number leads.
    fn start(
        node: u64,
        sockets: usize,
        settings: &BusSettings,
        connectors: &[Connector],
        of_group: impl Fn(usize) -> usize,
    ) -> Self {
        let over = OverLimit::Refuse;
        let limit = SeatLimit { sockets, over };
        let tags: Vec<String> = (0..GROUPS).map(tag).collect();
        let groups = tags.iter().enumerate();
        let groups = groups.map(|(group, tag)| (&**tag, connectors[of_group(group)].clone()));
        let node = NodeId(node);
        let seats = Arc::new(SharedLedgers::tagged(
            node, limit, settings, groups, group_of,
        ));
        let advice = Arc::new(Advice::new(None, &settings.namespace, Dialect::Plain));
        let mut writer = SeatWriter::new(seats.clone(), &advice, node, settings);
        let task = tokio::spawn(async move { writer.run().await });
        Self { seats, task }
    }

    /// Returns whether it was granted, and whether that was checked.
    async fn claim(&self, user: &Topic, number: u64) -> (bool, bool) {
        let Decision { granted, checked } = self.seats.claim(user, number).await;
        if granted.is_none() {
            self.seats.release(user, number);
        }
        (granted.is_some(), checked)
    }

    /// Waits until a seat is there, and gives it back.
    async fn until_granted(&self, user: &Topic) {
        until("a free seat", async || {
            let granted = self.claim(user, u64::MAX).await.0;
            if granted {
                self.seats.release(user, u64::MAX);
            }
            granted
        })
        .await;
    }

    /// Waits until the whole cluster is counted.
    async fn until_checked(&self, user: &Topic) {
        until("redis decides", async || {
            let (granted, checked) = self.claim(user, u64::MAX).await;
            if granted {
                self.seats.release(user, u64::MAX);
            }
            checked
        })
        .await;
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < PATIENCE, "{what}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// What `docs/operating.md` documents.
const RIGHTS: &str = "ACL SETUSER node on >s3cret ~x:{*}:seats* +eval +evalsha +time +hget +hmget +hset +hdel +hexists \
    +unlink +pexpire +zadd +zrem +zscore +zrangebyscore +zremrangebyscore";

const GRANTED: (bool, bool) = (true, true);
const REFUSED: (bool, bool) = (false, true);
const UNCHECKED: (bool, bool) = (true, false);

#[test]
fn a_tag_is_of_its_group() {
    assert_eq!(slot("123456789"), 0x31c3, "the specification's example");
    for group in 0..GROUPS {
        assert_eq!(group_of_key(&tag(group)), group);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_on_one_primary_share_a_connection_and_their_looks() {
    let server = RedisServer::start();
    let rights: Vec<&str> = RIGHTS.split_whitespace().collect();
    assert_eq!(server.cli(&rights), "OK");
    let url = format!("redis://node:s3cret@127.0.0.1:{}", server.port());
    let settings = BusSettings::plain(PATIENCE);
    let ends = [1, 2].map(|node| End::start(node, 1, &settings, &[connector(&url)], |_| 0));
    let [a, b] = &ends;
    join_all((0..GROUPS).map(async |group| {
        let user = user(group);
        assert_eq!(a.claim(&user, 1).await, GRANTED, "{user:?}");
        assert_eq!(b.claim(&user, 2).await, REFUSED, "{user:?}");
        a.seats.release(&user, 1);
        b.until_granted(&user).await;
        a.until_granted(&user).await;
    }))
    .await;
    for group in 0..GROUPS {
        let keys = server.cli(&["KEYS", &format!("x:{{{}}}:seats*", tag(group))]);
        assert_eq!(keys.lines().count(), 3, "{keys}");
    }
    assert_eq!(server.cli(&["DBSIZE"]), (3 * GROUPS).to_string());
    assert_eq!(server.connections(), ends.len());
    // A pipeline begins with HELLO, and a look reads one hash of each group.
    let looks = || (server.calls("hello"), server.calls("hmget"));
    let before = looks();
    until("a few looks", async || looks().0 >= before.0 + 16).await;
    let after = looks();
    let (pipelines, reads) = (after.0 - before.0, after.1 - before.1);
    assert!(reads > 8 * pipelines, "{reads} in {pipelines}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_loses_its_keys_is_mended_and_no_other_waits_for_it() {
    let server = RedisServer::start();
    let settings = BusSettings::plain(PATIENCE);
    let [a, b] =
        [1, 2].map(|node| End::start(node, 1, &settings, &[connector(&server.url())], |_| 0));
    for group in 0..GROUPS {
        assert_eq!(a.claim(&user(group), 1).await, GRANTED);
    }
    let keys = |group| server.cli(&["KEYS", &format!("x:{{{}}}:seats*", tag(group))]);
    for group in [3, 12] {
        until("both have joined", async || {
            keys(group).lines().count() == 3
        })
        .await;
        let lost = keys(group);
        let deleted = [vec!["DEL"], lost.lines().collect()].concat();
        assert_eq!(server.cli(&deleted), "3", "control");
        assert_eq!(b.claim(&user(group), 2).await, REFUSED, "it is waited for");
    }
    for group in 0..GROUPS {
        assert_eq!(b.claim(&user(group), 2).await, REFUSED);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_primary_concerns_its_own_groups_alone() {
    // Who asks waits for the outage; it begins when the primary answers nothing for so long.
    const SILENCE: Duration = Duration::from_secs(1);
    let servers = [RedisServer::start(), RedisServer::start()];
    let settings = BusSettings::plain(PATIENCE);
    let connectors = || {
        let topology = |server: &RedisServer| Arc::new(Topology::at(&server.url()));
        servers
            .each_ref()
            .map(|server| Connector::new(topology(server), SILENCE))
    };
    let [a, b] =
        [1, 2].map(|node| End::start(node, 1, &settings, &connectors(), |group| group % 2));
    let (here, there) = (user(4), user(5));
    for user in [&here, &there] {
        a.until_checked(user).await;
        b.until_checked(user).await;
    }
    servers[1].freeze();
    until("it is noticed", async || {
        let decision = a.claim(&there, 1).await;
        if decision == GRANTED {
            a.seats.release(&there, 1);
        }
        decision == UNCHECKED
    })
    .await;
    assert!(
        b.seats.claim(&there, 2).await.granted.is_some(),
        "each counts its own"
    );
    a.until_granted(&here).await;
    b.until_checked(&here).await;
    servers[1].thaw();
    b.seats.release(&there, 2);
    b.until_checked(&there).await;
    until("the other's is counted", async || {
        b.claim(&there, 3).await == REFUSED
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_moves_away_from_a_frozen_primary_goes_on_at_once() {
    let servers = [RedisServer::start(), RedisServer::start()];
    let places = servers.each_ref().map(|server| connector(&server.url()));
    let end = End::start(1, 1, &BusSettings::plain(PATIENCE), &places, |_| 0);
    let (moving, staying) = (user(3), user(4));
    end.until_checked(&moving).await;
    servers[0].freeze();
    let mut claims = [&moving, &staying].map(|user| end.seats.claim(user, 1));
    for claim in &mut claims {
        let asked = timeout(Duration::from_millis(100), claim).await;
        assert!(asked.is_err(), "control: it is not answered");
    }
    let [moving, staying] = claims;
    end.seats.follow(3, &places[1]);
    let Decision { granted, checked } = moving.await;
    assert!(granted.is_some() && checked);
    servers[0].thaw();
    let Decision { granted, checked } = staying.await;
    assert!(granted.is_some() && checked);
}

/// Two primaries, each with half of the slots.
struct Primaries([RedisServer; 2]);

impl Primaries {
    async fn start() -> Self {
        let servers = [1, 2].map(|epoch| {
            let bus = free_port().to_string();
            let options = ["--cluster-enabled", "yes", "--cluster-port", &bus];
            let server = RedisServer::with_options(&options);
            let slots = [["0", "8191"], ["8192", "16383"]][epoch - 1];
            let given = server.cli(&["CLUSTER", "ADDSLOTSRANGE", slots[0], slots[1]]);
            assert_eq!(given, "OK");
            let epoch = epoch.to_string();
            assert_eq!(server.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]), "OK");
            (server, bus)
        });
        let [(one, _), (two, bus)] = servers;
        let port = two.port().to_string();
        assert_eq!(
            one.cli(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]),
            "OK"
        );
        let primaries = Self([one, two]);
        until("both know all slots", async || {
            let infos = primaries
                .0
                .each_ref()
                .map(|server| server.cli(&["CLUSTER", "INFO"]));
            infos.iter().all(|info| {
                ["cluster_state:ok", "cluster_known_nodes:2"]
                    .iter()
                    .all(|words| info.contains(words))
            })
        })
        .await;
        primaries
    }

    /// Moves a slot from the first to the second key by key, as `redis-cli` does, with time in between.
    async fn move_slot(&self, slot: usize, mut between: impl AsyncFnMut()) {
        let [from, to] = &self.0;
        let ids = [from, to].map(|server| server.cli(&["CLUSTER", "MYID"]));
        let (slot, port) = (slot.to_string(), to.port().to_string());
        let set = |server: &RedisServer, words: [&str; 2]| {
            let words = ["CLUSTER", "SETSLOT", &slot, words[0], words[1]];
            assert_eq!(server.cli(&words), "OK");
        };
        set(to, ["IMPORTING", &ids[0]]);
        set(from, ["MIGRATING", &ids[1]]);
        between().await;
        loop {
            let keys = from.cli(&["CLUSTER", "GETKEYSINSLOT", &slot, "1"]);
            if keys.is_empty() {
                break;
            }
            let moved = from.cli(&["MIGRATE", "127.0.0.1", &port, &keys, "0", "5000"]);
            assert!(["OK", "NOKEY"].contains(&&*moved), "{moved}");
            between().await;
        }
        set(to, ["NODE", &ids[1]]);
        set(from, ["NODE", &ids[1]]);
        between().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_may_name_every_key_of_its_slot_and_none_of_another_primary() {
    let Primaries([one, _]) = Primaries::start().await;
    let key = |slots: std::ops::Range<usize>| {
        let mut numbers = (0..).map(|number: u32| number.to_string());
        let tag = numbers.find(|number| slots.contains(&slot(number)));
        format!("x:{{{}}}:seats", tag.unwrap())
    };
    let (declared, elsewhere) = (key(0..8192), key(8192..16_384));
    let script = "redis.call('HSET', ARGV[1], 'a', 'b') return redis.call('HGET', ARGV[1], 'a')";
    let said = |key: &str| one.cli(&["EVAL", script, "1", &declared, key]);
    assert_eq!(said(&format!("{declared}:1")), "b");
    // One of another slot that is here would be taken too, for as long as it is.
    let other = said(&elsewhere);
    assert!(other.contains("non local key"), "control: {other}");
}

/// What sockets of a user hold, on two nodes.
#[derive(Debug, Default, Clone, Copy)]
struct Held {
    checked: usize,
    most: usize,
    decisions: usize,
    unchecked: usize,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_under_claims_lets_in_nobody_unsaid() {
    const LIMIT: usize = 2;
    let (moving, staying) = (3, 5);
    let primaries = Primaries::start().await;
    let settings = BusSettings::plain(PATIENCE);
    let connectors = || {
        primaries
            .0
            .each_ref()
            .map(|server| connector_in_cluster(&server.url()))
    };
    let (ends, places): (Vec<_>, Vec<_>) = [1, 2]
        .map(|node| {
            let places = connectors();
            let end = End::start(node, LIMIT, &settings, &places, |group| {
                group / (GROUPS / 2)
            });
            (end, places)
        })
        .into_iter()
        .unzip();
    let users = [user(moving), user(staying)];
    for end in &ends {
        for user in &users {
            assert!(end.claim(user, 1).await.1, "control: it is checked");
            end.seats.release(user, 1);
        }
    }
    let held: Mutex<HashMap<Topic, Held>> = Mutex::default();
    let change = |user: &Topic, change: &dyn Fn(&mut Held)| {
        let mut held = held.lock();
        let held = held.entry(user.clone()).or_default();
        change(held);
        held.most = held.most.max(held.checked);
    };
    let traffic = async |lane: usize| {
        let (end, user) = (&ends[lane % 2], &users[lane / 2 % 2]);
        for number in (lane as u64..).step_by(100) {
            let (granted, checked) = end.claim(user, number).await;
            let counts = usize::from(granted && checked);
            change(user, &|held| {
                held.decisions += 1;
                held.checked += counts;
                held.unchecked += usize::from(!checked);
            });
            sleep(Duration::from_millis(fastrand::u64(..5))).await;
            if granted {
                // It counts no longer than the client holds it.
                change(user, &|held| held.checked -= counts);
                end.seats.release(user, number);
            }
        }
    };
    let decisions = |user: &Topic| held.lock().get(user).copied().unwrap_or_default().decisions;
    let moves = async {
        let more = async || {
            let before = users.each_ref().map(decisions);
            until("more claims", async || {
                let now = users.each_ref().map(decisions);
                now.iter()
                    .zip(before)
                    .all(|(now, before)| *now >= before + 8)
            })
            .await;
        };
        more().await;
        primaries.move_slot(slot(&tag(moving)), more).await;
        for (end, places) in ends.iter().zip(&places) {
            end.seats.follow(moving, &places[1]);
        }
        more().await;
    };
    tokio::select! {
        _ = join_all((0..16).map(traffic)) => {}
        () = moves => {}
    }
    let held = users.each_ref().map(|user| held.lock()[user]);
    assert!(held[0].unchecked > 0, "control: it was not whole, {held:?}");
    assert_eq!(held[1].unchecked, 0, "no other group waits for it");
    for held in held {
        assert!(held.most <= LIMIT, "{held:?}");
    }
    // What was held when all ended is given back by nobody here: two other users.
    let [whoever, other] = {
        let users =
            (0..).map(|number: u32| Topic::user(&UserId::from(number.to_string())).unwrap());
        let mut others = users.into_iter().filter(|user| group_of(user) == moving);
        [others.nth(1), others.next()].map(Option::unwrap)
    };
    // Another than is counted below: what is given back is so a little later.
    for end in &ends {
        end.until_checked(&whoever).await;
    }
    for number in [1, 2] {
        assert_eq!(ends[0].claim(&other, number).await, GRANTED);
    }
    assert_eq!(ends[1].claim(&other, 3).await, REFUSED);
    let keys = format!("x:{{{}}}:seats*", tag(moving));
    until(
        "both nodes and their user are all that is there",
        async || primaries.0[1].cli(&["KEYS", &keys]).lines().count() == 3,
    )
    .await;
}
