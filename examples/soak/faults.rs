//! The faults: each happens, and is over.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, timeout_at};

use crate::crowd::Crowd;
use crate::fleet::NodeProcess;
use crate::proxy::Proxy;
use crate::redis::RedisServer;
use crate::referee::Referee;
use crate::words::{NODES, now};

/// Everything that can break.
pub struct Lab {
    pub redis: RedisServer,
    /// The link of the first node to Redis; the others have none to break.
    pub link: Proxy,
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
}

/// Nothing heals slower than this, or the soak fails.
pub const HEALING: Duration = Duration::from_secs(120);
/// The long absence of Redis.
pub const LONG: Duration = Duration::from_secs(5 * 60);

impl Fault {
    /// Those that happen again and again; the long one happens once.
    pub const OFTEN: [Self; 12] = [
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
    ];

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
        }
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
                lab.redis.freeze();
                sleep(lasts).await;
                lab.redis.thaw();
            }
            Self::SubscribersKilled => lab.tell_redis(&["CLIENT", "KILL", "TYPE", "pubsub"]),
            Self::PublishersKilled => lab.tell_redis(&["CLIENT", "KILL", "TYPE", "normal"]),
            Self::LinkSwallowed => {
                let lasts = lasts(3000..15_000);
                lab.link.black_hole();
                sleep(lasts).await;
                lab.link.heal();
            }
            Self::LinkCut => {
                let lasts = lasts(100..5000);
                lab.link.cut();
                sleep(lasts).await;
                lab.link.heal();
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
        self.redis.kill();
        sleep(lasts).await;
        block_in_place(|| self.redis.restart());
    }

    fn tell_redis(&self, command: &[&str]) {
        let answer = block_in_place(|| self.redis.cli(command));
        assert!(!answer.contains("ERR"), "{command:?}: {answer}");
    }

    /// Until every node is up and hears every other.
    async fn heals(&self) -> Option<Duration> {
        let over = now();
        self.awaits(|referee| referee.is_healed(over)).await
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
