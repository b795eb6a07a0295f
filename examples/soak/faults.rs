//! The faults: each happens, and is over.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, timeout_at};

use crate::crowd::Crowd;
use crate::fleet::NodeProcess;
use crate::ground::{Ground, Pair, Topology, until_written};
use crate::redis::RedisServer;
use crate::referee::Referee;
use crate::words::{NODES, now};

/// Everything that can break.
pub struct Lab {
    pub ground: Ground,
    pub nodes: Vec<NodeProcess>,
    pub crowd: Crowd,
    pub referee: Arc<Mutex<Referee>>,
    pub rng: fastrand::Rng,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    RedisRestarted,
    RedisGone,
    RedisGoneLong,
    RedisFrozen,
    SubscribersKilled,
    PublishersKilled,
    LinkSwallowed,
    LinkCut,
    RightsRevoked,
    Garbage,
    NodeFrozen,
    NodeKilled,
    ClientVanished,
    LinkSlow,
    Questions,
    KeysDeleted,
    NameMoved,
    FailedOver,
    PrimaryKilled,
    PrimaryFrozen,
    SentinelsGone,
    SlotsMoved,
}

/// Nothing heals slower than this, or the soak fails.
pub const HEALING: Duration = Duration::from_secs(120);
/// Where Redis is may be unknown for two intervals of the probe, and a moment to go there.
const SETTLING: u64 = 15_000_000;
/// A second, in bytes.
const MEGABIT: u64 = 1_000_000 / 8;
/// The long absence of Redis.
pub const LONG: Duration = Duration::from_secs(5 * 60);

impl Fault {
    /// Those that happen again and again; the long one happens once.
    pub fn often(topology: Topology) -> &'static [Self] {
        match topology {
            Topology::Single => &[
                Self::RedisRestarted,
                Self::RedisGone,
                Self::RedisFrozen,
                Self::SubscribersKilled,
                Self::PublishersKilled,
                Self::LinkSwallowed,
                Self::LinkCut,
                Self::RightsRevoked,
                Self::Garbage,
                Self::NodeFrozen,
                Self::NodeKilled,
                Self::ClientVanished,
                Self::LinkSlow,
                Self::Questions,
                Self::KeysDeleted,
                Self::NameMoved,
            ],
            Topology::Sentinel => &[
                Self::FailedOver,
                Self::PrimaryKilled,
                Self::PrimaryFrozen,
                Self::SentinelsGone,
                Self::SubscribersKilled,
                Self::PublishersKilled,
                Self::Garbage,
                Self::NodeFrozen,
                Self::NodeKilled,
                Self::Questions,
                Self::KeysDeleted,
            ],
            Topology::Cluster => &[
                Self::SlotsMoved,
                Self::FailedOver,
                Self::SlotsMoved,
                Self::PrimaryKilled,
                Self::PrimaryFrozen,
                Self::SubscribersKilled,
                Self::PublishersKilled,
                Self::RightsRevoked,
                Self::NodeFrozen,
                Self::NodeKilled,
                Self::Questions,
                Self::KeysDeleted,
            ],
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::RedisRestarted => "redis killed, back in 0.2 s",
            Self::RedisGone => "redis killed, back in 15 s",
            Self::RedisGoneLong => "redis killed, back in 5 min",
            Self::RedisFrozen => "redis frozen 1-15 s",
            Self::SubscribersKilled => "subscribers killed by redis",
            Self::PublishersKilled => "publishers killed by redis",
            Self::LinkSwallowed => "a node's link black-holed 3-15 s",
            Self::LinkCut => "a node's link cut 0.1-5 s",
            Self::RightsRevoked => "channel rights revoked 1-5 s",
            Self::Garbage => "garbage on our channels",
            Self::NodeFrozen => "a node frozen 1-20 s",
            Self::NodeKilled => "a node killed, back in 0-3 s",
            Self::ClientVanished => "a client falls silent",
            Self::LinkSlow => "a node's link slow, unions beside single sends",
            Self::Questions => "questions in floods",
            Self::KeysDeleted => "keys of the limits deleted",
            Self::NameMoved => "the name of redis moved",
            Self::FailedOver => "a graceful failover",
            Self::PrimaryKilled => "a primary killed, back when it is replaced",
            Self::PrimaryFrozen => "a primary frozen, thawed 1-8 s after it is replaced",
            Self::SentinelsGone => "all sentinels gone 1-10 s",
            Self::SlotsMoved => "5-25 slots moved key by key",
        }
    }

    /// Whether a Redis may lose what it had taken: another one is in its place, to which it was still to be replicated, or it goes
    /// on as a primary when it is none any more. A Redis that is killed comes back with all that it had; and a failover that a
    /// replica of a Redis Cluster asks for waits until that has everything.
    pub fn destroys(self, topology: Topology) -> bool {
        match self {
            Self::NameMoved | Self::PrimaryKilled | Self::PrimaryFrozen => true,
            Self::FailedOver => topology != Topology::Cluster,
            _ => false,
        }
    }

    /// Whether Redis or a node is away, so that a user may get more sockets than allowed.
    pub fn excuses_limits(self) -> bool {
        matches!(
            self,
            Self::RedisRestarted
                | Self::RedisGone
                | Self::RedisGoneLong
                | Self::RedisFrozen
                | Self::LinkSwallowed
                | Self::LinkCut
                | Self::NodeFrozen
                | Self::FailedOver
                | Self::PrimaryKilled
                | Self::PrimaryFrozen
        )
    }

    /// Lets it happen, waits until it is over and then until everything works again; `None` when it
    /// does not.
    pub async fn happen(self, lab: &mut Lab) -> Option<Duration> {
        let node = lab.rng.usize(0..NODES);
        let mut lasts = |millis: std::ops::Range<u64>| Duration::from_millis(lab.rng.u64(millis));
        match self {
            Self::RedisRestarted => lab.redis_is_gone(Duration::from_millis(200)).await,
            Self::RedisGone => lab.redis_is_gone(Duration::from_secs(15)).await,
            Self::RedisGoneLong => lab.redis_is_gone(LONG).await,
            Self::RedisFrozen => {
                let lasts = lasts(1000..15_000);
                let redis = &lab.ground.pair().redis;
                redis.freeze();
                sleep(lasts).await;
                redis.thaw();
            }
            Self::SubscribersKilled => lab.tell_redis(&["CLIENT", "KILL", "TYPE", "pubsub"]),
            Self::PublishersKilled => lab.tell_redis(&["CLIENT", "KILL", "TYPE", "normal"]),
            Self::LinkSwallowed => {
                let lasts = lasts(3000..15_000);
                let link = &lab.ground.pair().link;
                link.black_hole();
                sleep(lasts).await;
                link.heal();
            }
            Self::LinkCut => {
                let lasts = lasts(100..5000);
                let link = &lab.ground.pair().link;
                link.cut();
                sleep(lasts).await;
                link.heal();
            }
            Self::RightsRevoked => {
                let lasts = lasts(1000..5000);
                lab.tell_redis(&["ACL", "SETUSER", "default", "resetchannels"]);
                sleep(lasts).await;
                lab.tell_redis(&["ACL", "SETUSER", "default", "allchannels"]);
            }
            Self::Garbage => {
                for channel in ["soak:all", "soak:u:user-1", "soak:r:room%201"] {
                    for garbage in GARBAGE {
                        lab.tell_redis(&["PUBLISH", channel, garbage]);
                    }
                }
            }
            Self::NodeFrozen => {
                let lasts = lasts(1000..20_000);
                lab.nodes[node].signal("-STOP");
                sleep(lasts).await;
                lab.nodes[node].signal("-CONT");
            }
            Self::NodeKilled => {
                let lasts = lasts(0..3000);
                lab.nodes[node].kill().await;
                sleep(lasts).await;
                lab.nodes[node].restart();
            }
            Self::ClientVanished => return lab.client_vanishes().await,
            Self::LinkSlow => lab.link_is_slow().await,
            Self::Questions => lab.questions().await,
            Self::KeysDeleted => lab.keys_vanish().await,
            Self::NameMoved => lab.name_moves().await,
            Self::FailedOver => {
                lab.settles();
                lab.ground.fail_over(&mut lab.rng).await;
                lab.settles();
            }
            Self::PrimaryKilled => {
                lab.settles();
                lab.ground.replace(&mut lab.rng, None).await;
                lab.settles();
            }
            Self::PrimaryFrozen => {
                let lasts = lasts(1000..8000);
                lab.settles();
                lab.ground.replace(&mut lab.rng, Some(lasts)).await;
                lab.settles();
            }
            Self::SentinelsGone => {
                let lasts = lasts(1000..10_000);
                lab.ground.lose_sentinels(lasts).await;
            }
            Self::SlotsMoved => lab.ground.move_slots(&mut lab.rng).await,
        }
        lab.heals().await
    }
}

/// Nothing of this is a message.
const GARBAGE: [&str; 6] = [
    "",
    "null",
    "{\"text\": 7}",
    "{\"text\"",
    "\u{1}cut off",
    "\u{7f}\u{7f}\u{7f}\u{7f}",
];

impl Lab {
    async fn redis_is_gone(&mut self, lasts: Duration) {
        let redis = &mut self.ground.pair().redis;
        until_written(redis).await;
        redis.kill();
        sleep(lasts).await;
        block_in_place(|| redis.restart());
    }

    fn tell_redis(&self, command: &[&str]) {
        for redis in self.ground.primaries() {
            let answer = block_in_place(|| redis.cli(command));
            assert!(!answer.contains("ERR"), "{command:?}: {answer}");
        }
    }

    /// The first node sends big unions over a slow link, and the last as much as it can to single sockets of
    /// the second, so that it comes there between the copies of a union.
    async fn link_is_slow(&mut self) {
        let seconds = self.rng.u64(8..16);
        let singles = self.singles(1);
        self.ground.narrow(self.rng.u64(12..40) * MEGABIT);
        let [far, _, fast] = &mut self.nodes[..] else {
            panic!("{NODES} nodes");
        };
        let (unions, sends) = (
            format!("unions {seconds}"),
            format!("singles {seconds}{singles}"),
        );
        tokio::join!(far.ask(&unions), fast.ask(&sends));
        self.ground.narrow(0);
    }

    /// Most of them to the first node; now and then over a slow link, so that more wait for its answer than
    /// are answered at once.
    async fn questions(&mut self) {
        let sockets: String = (0..NODES).map(|node| self.singles(node)).collect();
        let asker = self.rng.usize(1..NODES);
        if self.rng.u8(0..3) > 0 {
            self.ground.narrow(self.rng.u64(2..10) * MEGABIT);
        }
        self.nodes[asker]
            .ask(&format!("questions 0{sockets}"))
            .await;
        self.ground.narrow(0);
    }

    /// As words of a command.
    fn singles(&self, node: usize) -> String {
        let singles = self.referee.lock().singles(node);
        let words = singles
            .iter()
            .map(|(audience, socket)| format!(" {audience}={socket}"));
        words.collect()
    }

    /// All of them, or one.
    async fn keys_vanish(&mut self) {
        for _ in 0..self.rng.u8(5..15) {
            for redis in self.ground.primaries() {
                let found = block_in_place(|| redis.cli(&["KEYS", "soak:*seats*"]));
                let keys: Vec<&str> = found.split_whitespace().collect();
                let one = self.rng.choice(keys.clone()).filter(|_| self.rng.bool());
                for key in one.map_or(keys, |one| vec![one]) {
                    let answer = block_in_place(|| redis.cli(&["DEL", key]));
                    assert!(!answer.contains("ERR"), "{key}: {answer}");
                }
            }
            sleep(Duration::from_millis(self.rng.u64(200..2500))).await;
        }
    }

    /// What is asked now, and a moment later, may be asked of a server that is no primary any more.
    fn settles(&self) {
        let moved = now();
        self.referee.lock().moves(moved, moved + SETTLING);
    }

    /// Failover without a cut: the old primary stays, as a replica, and so do its connections. New ones lead
    /// to the new primary.
    async fn name_moves(&mut self) {
        let follow = |port: u16| ["REPLICAOF".into(), "127.0.0.1".into(), port.to_string()];
        let say = |server: &RedisServer, words: [String; 3]| {
            let words = words.each_ref().map(String::as_str);
            let answer = block_in_place(|| server.cli(&words));
            assert!(answer.starts_with("OK"), "{words:?}: {answer}");
        };
        let Pair {
            redis,
            spare,
            link,
            name,
        } = self.ground.pair();
        say(spare, follow(redis.port()));
        while !block_in_place(|| spare.cli(&["INFO", "replication"]))
            .contains("master_link_status:up")
        {
            sleep(Duration::from_millis(50)).await;
        }
        let moved = now();
        self.referee.lock().moves(moved, moved + SETTLING);
        block_in_place(|| spare.cli(&["REPLICAOF", "NO", "ONE"]));
        say(redis, follow(spare.port()));
        for proxy in [link, name] {
            proxy.lead_to(spare.port());
        }
        std::mem::swap(redis, spare);
    }

    /// Until every node is up and hears every other.
    pub async fn heals(&self) -> Option<Duration> {
        let over = now();
        let healed = self.awaits(|referee| referee.is_healed(over)).await;
        if healed.is_none() {
            let referee = self.referee.lock();
            for (node, what) in referee.ailments(over) {
                let node = node.map_or_else(String::new, |node| format!("node {node} "));
                eprintln!("{node}{what}");
            }
        }
        healed
    }

    /// Until its node gives the client up.
    async fn client_vanishes(&self) -> Option<Duration> {
        self.crowd.vanish_one();
        self.awaits(|referee| referee.silent() > 0).await?;
        self.awaits(|referee| referee.silent() == 0).await
    }

    /// How long it takes until the referee sees this.
    pub async fn awaits(&self, condition: impl Fn(&Referee) -> bool) -> Option<Duration> {
        let start = Instant::now();
        let holds = async {
            while !condition(&self.referee.lock()) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout_at(start + HEALING, holds).await.ok()?;
        Some(start.elapsed())
    }
}
