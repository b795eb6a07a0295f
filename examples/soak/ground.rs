//! What the nodes share: a Redis and a spare one, one that sentinels watch, or a Redis Cluster.

use std::str::FromStr;
use std::time::Duration;

use tokio::task::block_in_place;
use tokio::time::{Instant, sleep};

use crate::proxy::Proxy;
use crate::redis::RedisServer;
use crate::redis::redis_cluster::RedisCluster;
use crate::redis::sentinels::Sentinels;
use crate::words::NODES;

/// So long a failover may take.
const DECIDED: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Topology {
    Single,
    Sentinel,
    Cluster,
}

impl FromStr for Topology {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "single" => Ok(Self::Single),
            "sentinel" => Ok(Self::Sentinel),
            "cluster" => Ok(Self::Cluster),
            _ => Err(()),
        }
    }
}

#[derive(Debug)]
pub enum Ground {
    Single(Box<Pair>),
    Sentinel(Sentinels),
    Cluster(RedisCluster),
}

/// Two servers under one name.
#[derive(Debug)]
pub struct Pair {
    /// The primary.
    pub redis: RedisServer,
    /// Becomes the primary when the name moves.
    pub spare: RedisServer,
    /// The link of the first node to Redis.
    pub link: Proxy,
    /// That of the others, which is never broken: their name for Redis.
    pub name: Proxy,
}

impl Ground {
    /// `durable`: a server that was killed comes back with what it had.
    pub async fn start(topology: Topology, durable: bool) -> Self {
        match topology {
            Topology::Single => Self::Single(Box::new(Pair::start(durable).await)),
            Topology::Sentinel => Self::Sentinel(block_in_place(|| Sentinels::start(1, 3))),
            Topology::Cluster => Self::Cluster(block_in_place(|| RedisCluster::start(3, 1))),
        }
    }

    /// What each node is given.
    pub fn urls(&self) -> [String; NODES] {
        match self {
            Self::Single(pair) => [pair.link.url(), pair.name.url(), pair.name.url()],
            Self::Sentinel(redis) => std::array::from_fn(|_| redis.url()),
            Self::Cluster(redis) => std::array::from_fn(|_| redis.url()),
        }
    }

    /// The single one, where there are faults of that.
    pub fn pair(&mut self) -> &mut Pair {
        match self {
            Self::Single(pair) => pair,
            other => panic!("{other:?} has other faults"),
        }
    }

    /// Where messages go now.
    pub fn primaries(&self) -> Vec<&RedisServer> {
        match self {
            Self::Single(pair) => vec![&pair.redis],
            Self::Sentinel(redis) => vec![&redis.servers[primary_of(redis)]],
            Self::Cluster(redis) => {
                let primaries = primaries_of(redis).into_iter();
                primaries.map(|node| &redis.nodes[node]).collect()
            }
        }
    }

    /// How many bytes a second the first node's link carries, where it has one of its own.
    pub fn narrow(&self, bytes_per_second: u64) {
        if let Self::Single(pair) = self {
            pair.link.narrow(bytes_per_second);
        }
    }

    /// A replica becomes the primary, and the primary its replica; with sentinels not at once.
    pub async fn fail_over(&mut self, rng: &mut fastrand::Rng) {
        match self {
            Self::Sentinel(redis) => {
                let old = primary_of(redis);
                until_replicated(redis).await;
                block_in_place(|| redis.fail_over());
                until_replaced(redis, old).await;
            }
            Self::Cluster(redis) => {
                let replica = rng.choice(replicas_of(redis)).expect("each has one");
                block_in_place(|| redis.fail_over(replica));
            }
            Self::Single(_) => unreachable!("it has a name that moves"),
        }
    }

    /// A primary is away until another one is in its place, and comes back.
    pub async fn replace(&mut self, rng: &mut fastrand::Rng, lasts: Option<Duration>) {
        match self {
            Self::Sentinel(redis) => {
                until_replicated(redis).await;
                let old = primary_of(redis);
                match lasts {
                    Some(_) => redis.servers[old].freeze(),
                    None => redis.servers[old].kill(),
                }
                until_replaced(redis, old).await;
                sleep(lasts.unwrap_or_default()).await;
                match lasts {
                    Some(_) => redis.servers[old].thaw(),
                    None => block_in_place(|| redis.servers[old].restart()),
                }
            }
            Self::Cluster(redis) => {
                let replica = rng.choice(replicas_of(redis)).expect("each has one");
                let role = block_in_place(|| redis.ask(replica, "ROLE"));
                let port = role.lines().nth(2).and_then(|port| port.parse().ok());
                let followed = redis.nodes.iter().position(|n| Some(n.port()) == port);
                let old = followed.expect("it follows one of ours");
                match lasts {
                    Some(_) => redis.nodes[old].freeze(),
                    None => redis.nodes[old].kill(),
                }
                until(|| redis.is_primary(replica)).await;
                sleep(lasts.unwrap_or_default()).await;
                match lasts {
                    Some(_) => redis.nodes[old].thaw(),
                    None => block_in_place(|| redis.nodes[old].restart()),
                }
                until(|| !redis.is_primary(old)).await;
            }
            Self::Single(_) => unreachable!("it has no other"),
        }
    }

    /// Of all that are in use some move to other primaries, key by key.
    pub async fn move_slots(&self, rng: &mut fastrand::Rng) {
        let Self::Cluster(redis) = self else {
            unreachable!("slots are a cluster's");
        };
        for _ in 0..rng.u8(5..25) {
            block_in_place(|| {
                let mut primaries = primaries_of(redis);
                rng.shuffle(&mut primaries);
                let channels = redis.ask(primaries[0], "PUBSUB SHARDCHANNELS");
                let channels: Vec<&str> = channels.lines().collect();
                if let Some(channel) = rng.choice(channels) {
                    let slot = redis.ask(primaries[0], &format!("CLUSTER KEYSLOT {channel}"));
                    redis.move_slots(slot.parse::<u16>(), primaries[1]);
                }
            });
            sleep(Duration::from_millis(rng.u64(0..200))).await;
        }
    }

    /// Nobody tells where the primary is.
    pub async fn lose_sentinels(&mut self, lasts: Duration) {
        let Self::Sentinel(redis) = self else {
            unreachable!("there are none");
        };
        redis.sentinels.iter_mut().for_each(RedisServer::kill);
        sleep(lasts).await;
        block_in_place(|| redis.sentinels.iter_mut().for_each(RedisServer::restart));
    }
}

impl Pair {
    async fn start(durable: bool) -> Self {
        // A failover shall not wait for others who may want to follow.
        let mut options = vec!["--repl-diskless-sync-delay", "0"];
        if durable {
            // What is written survives it: the machine does not die. With `everysec` writes may wait for the disk.
            options.extend(["--appendonly", "yes", "--appendfsync", "no"]);
        }
        let [redis, spare] = [(); 2].map(|()| RedisServer::with_options(&options));
        Self {
            link: Proxy::to(redis.port()).await,
            name: Proxy::to(redis.port()).await,
            redis,
            spare,
        }
    }
}

/// Until a server has written what it took over: killed before, it would come back with what it had before that.
pub async fn until_written(redis: &RedisServer) {
    until(|| {
        let state = redis.cli(&["INFO", "persistence"]);
        let is_over = |field| !state.contains(&format!("{field}:1"));
        is_over("aof_rewrite_in_progress") && is_over("aof_rewrite_scheduled")
    })
    .await;
}

fn primary_of(redis: &Sentinels) -> usize {
    let named = block_in_place(|| redis.named_by(0));
    let primary = redis.servers.iter().position(|s| Some(s.port()) == named);
    primary.expect("the sentinel names one of ours")
}

fn primaries_of(redis: &RedisCluster) -> Vec<usize> {
    let nodes = 0..redis.nodes.len();
    block_in_place(|| nodes.filter(|node| redis.is_primary(*node)).collect())
}

/// Those that are ready to take over.
fn replicas_of(redis: &RedisCluster) -> Vec<usize> {
    let nodes = 0..redis.nodes.len();
    let follows = |node: &usize| {
        redis
            .ask(*node, "INFO replication")
            .contains("master_link_status:up")
    };
    block_in_place(|| nodes.filter(follows).collect())
}

async fn until_replicated(redis: &Sentinels) {
    until(|| {
        let known = redis.sentinels[0].cli(&["SENTINEL", "REPLICAS", "mymaster"]);
        known.contains("master-link-status\nok") && !known.contains("s_down")
    })
    .await;
}

async fn until_replaced(redis: &Sentinels, old: usize) {
    let port = redis.servers[old].port();
    until(|| redis.named_by(0).is_some_and(|named| named != port)).await;
}

async fn until(holds: impl Fn() -> bool) {
    let deadline = Instant::now() + DECIDED;
    while !block_in_place(&holds) {
        assert!(Instant::now() < deadline, "the failover does not happen");
        sleep(Duration::from_millis(50)).await;
    }
}
