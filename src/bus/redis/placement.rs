//! Which shard carries a topic.
//!
//! Where there are several, each carries some of the 256 partitions of the topics. Of several independent Redises a
//! partition belongs to the one that is highest in an order of its own (rendezvous hashing, Thaler and Ravishankar 1998):
//! it depends on their names only, not on the order in which they are listed, and with one more of them only what moves
//! there moves.

use std::sync::Arc;

use futures::future::join_all;
use sha1::{Digest, Sha1};
use smallvec::SmallVec;

use super::shard::Shard;
use crate::bus::Published;
use crate::bus::outage::LinkId;
use crate::model::error::PublishError;
use crate::model::partition::{Partition, PartitionSet};
use crate::model::topic::Topic;

#[derive(Debug)]
pub(super) enum Placement {
    One(Arc<Shard>),
    Spread(Spread),
}

/// Several shards, and to which of them each partition belongs.
#[derive(Debug)]
pub(super) struct Spread {
    shards: Vec<Arc<Shard>>,
    owners: [usize; Partition::COUNT],
}

impl Placement {
    /// Of several, each with the name by which all nodes know it.
    pub(super) fn of(mut shards: Vec<(String, Arc<Shard>)>) -> Self {
        if shards.len() == 1
            && let Some((_, shard)) = shards.pop()
        {
            return Self::One(shard);
        }
        let names: Vec<&str> = shards.iter().map(|(name, _)| &**name).collect();
        let owners = owners(&names);
        let shards = shards.into_iter().map(|(_, shard)| shard).collect();
        Self::Spread(Spread { shards, owners })
    }

    pub(super) fn shards(&self) -> &[Arc<Shard>] {
        match self {
            Self::One(shard) => std::slice::from_ref(shard),
            Self::Spread(spread) => &spread.shards,
        }
    }

    pub(super) fn shard(&self, topic: &Topic) -> &Arc<Shard> {
        match self {
            Self::One(shard) => shard,
            Self::Spread(spread) => spread.shard(topic),
        }
    }

    /// What each link carries.
    pub(super) fn links(&self) -> Vec<(LinkId, PartitionSet)> {
        match self {
            Self::One(shard) => vec![(shard.link, PartitionSet::all())],
            Self::Spread(Spread { shards, owners }) => {
                let carried = |at| Partition::all().filter(move |one| owners[one.index()] == at);
                let links = shards.iter().enumerate();
                links
                    .map(|(at, shard)| (shard.link, carried(at).collect()))
                    .collect()
            }
        }
    }
}

impl Spread {
    fn shard(&self, topic: &Topic) -> &Arc<Shard> {
        &self.shards[self.place(topic)]
    }

    fn place(&self, topic: &Topic) -> usize {
        self.owners[Partition::of(topic.as_str()).index()]
    }

    /// The topics of each shard.
    pub(super) fn split(&self, topics: SmallVec<[Topic; 1]>) -> Vec<(&Arc<Shard>, SmallVec<[Topic; 1]>)> {
        let mut parts: Vec<_> = self.shards.iter().map(|shard| (shard, SmallVec::new())).collect();
        for topic in topics {
            parts[self.place(&topic)].1.push(topic);
        }
        parts.retain(|(_, topics)| !topics.is_empty());
        parts
    }

    /// How many hear each topic.
    pub(super) async fn listening(&self, topics: &[Topic]) -> Result<Vec<usize>, Arc<str>> {
        let mut places: Vec<Vec<usize>> = vec![Vec::new(); self.shards.len()];
        for (n, topic) in topics.iter().enumerate() {
            places[self.place(topic)].push(n);
        }
        let asked = self.shards.iter().zip(&places).filter(|(_, places)| !places.is_empty());
        let asking = asked.map(async |(shard, places)| {
            let topics = places.iter().map(|n| &topics[*n]);
            let counts = shard.listening(topics).await?;
            Ok::<_, Arc<str>>(places.iter().copied().zip(counts))
        });
        let mut listening = vec![0; topics.len()];
        for counts in join_all(asking).await {
            counts?.for_each(|(n, count)| listening[n] = count);
        }
        Ok(listening)
    }
}

/// Waits for all parts of what was published. One that failed fails all, and what the others did is not lost with it.
pub(super) async fn all_published(
    parts: Vec<impl Future<Output = Result<Published, PublishError>>>,
) -> Result<Published, PublishError> {
    let mut parts = join_all(parts).await.into_iter();
    let first = parts.next().unwrap_or(Ok(Published::default()));
    parts.fold(first, and)
}

fn and(
    all: Result<Published, PublishError>,
    part: Result<Published, PublishError>,
) -> Result<Published, PublishError> {
    match (all, part) {
        (Ok(all), Ok(part)) => Ok(Published {
            nodes: all.nodes + part.nodes,
            comes_back: all.comes_back || part.comes_back,
        }),
        (Ok(_), Err(error)) | (Err(error), Ok(_)) => Err(PublishError {
            maybe_sent: true,
            ..error
        }),
        (Err(error), Err(other)) => Err(PublishError {
            maybe_sent: error.maybe_sent || other.maybe_sent,
            ..error
        }),
    }
}

/// To which of these names each partition belongs.
fn owners(names: &[&str]) -> [usize; Partition::COUNT] {
    let weight = |partition: Partition, name: &str| {
        let mut digest = Sha1::new();
        digest.update(partition.index().to_string());
        digest.update(" ");
        digest.update(name);
        digest.finalize()
    };
    let owner = |partition| {
        let named = names.iter().enumerate();
        let highest = named.max_by_key(|(_, name)| weight(partition, name));
        highest.map_or(0, |(at, _)| at)
    };
    let mut owners = [0; Partition::COUNT];
    for partition in Partition::all() {
        owners[partition.index()] = owner(partition);
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = ["a:6379", "b:6379", "c:6379", "d:6379"];

    fn named(names: &[&str]) -> Vec<String> {
        owners(names)
            .map(|owner| names[owner].to_owned())
            .to_vec()
    }

    #[test]
    fn the_order_of_the_list_means_nothing() {
        let mut reversed = NAMES;
        reversed.reverse();
        assert_eq!(named(&NAMES), named(&reversed));
    }

    #[test]
    fn with_one_more_only_what_moves_there_moves() {
        let (before, after) = (named(&NAMES[..3]), named(&NAMES));
        let moved: Vec<_> = before.iter().zip(&after).filter(|(b, a)| b != a).collect();
        assert!(moved.iter().all(|(_, after)| *after == NAMES[3]));
        assert!((32..=96).contains(&moved.len()), "{}", moved.len());
        for name in &NAMES[..3] {
            let share = before.iter().filter(|owner| owner == name).count();
            assert!((57..=114).contains(&share), "{name}: {share} of 256");
        }
    }

    /// What other languages compute: `python3 -c 'import hashlib; print(max(names, key=lambda n:
    /// hashlib.sha1(f"{p} {n}".encode()).digest()))'`.
    #[test]
    fn others_can_compute_it() {
        let owners = named(&NAMES);
        assert_eq!([&owners[0], &owners[1], &owners[255]], EXPECTED);
    }

    const EXPECTED: [&str; 3] = ["c:6379", "c:6379", "d:6379"];

    #[test]
    fn a_part_that_failed_fails_all_and_says_what_may_be_sent() {
        let ok = || {
            Ok(Published {
                nodes: 2,
                comes_back: false,
            })
        };
        let failed = || Err(PublishError::not_sent("no"));
        let both = and(ok(), ok()).unwrap();
        assert_eq!((both.nodes, both.comes_back), (4, false));
        assert!(and(ok(), failed()).unwrap_err().maybe_sent);
        assert!(and(failed(), ok()).unwrap_err().maybe_sent);
        assert!(!and(failed(), failed()).unwrap_err().maybe_sent);
    }
}
