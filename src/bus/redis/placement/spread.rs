//! Several shards, what each of them carries, and what moves when that changes.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::owners::owners;
use crate::bus::redis::shard::Shard;
use crate::model::partition::{Partition, PartitionSet};
use crate::model::topic::Topic;

/// So long after a partition has moved whoever hears it may not have followed: the nodes are at a new primary within a
/// second.
const SETTLING: Duration = Duration::from_secs(1);

/// Several shards, and to which of them each partition belongs.
#[derive(Debug)]
pub(in crate::bus::redis) struct Spread {
    pub(super) shards: Vec<Arc<Shard>>,
    pub(super) owners: [usize; Partition::COUNT],
    /// When partitions moved from one primary to another.
    moved: BTreeMap<Partition, Instant>,
    /// How often any did.
    pub(super) era: Option<NonZeroU32>,
}

impl Spread {
    /// Over independent Redises, each with the name by which all nodes know it.
    pub(super) fn over(shards: Vec<(String, Arc<Shard>)>) -> Self {
        let names: Vec<&str> = shards.iter().map(|(name, _)| &**name).collect();
        let owners = owners(&names);
        Self {
            owners,
            ..Self::of(shards.into_iter().map(|(_, shard)| shard).collect())
        }
    }

    /// A spread in which all is with this shard.
    pub(super) fn at(shard: Arc<Shard>) -> Self {
        Self::of(vec![shard])
    }

    fn of(shards: Vec<Arc<Shard>>) -> Self {
        Self {
            shards,
            owners: [0; Partition::COUNT],
            moved: BTreeMap::new(),
            era: None,
        }
    }

    pub(super) fn place(&self, topic: &Topic) -> usize {
        self.owners[Partition::of(topic.as_str()).index()]
    }

    pub(super) fn shard(&self, partition: Partition) -> &Arc<Shard> {
        &self.shards[self.owners[partition.index()]]
    }

    pub(super) fn carried(&self, at: usize) -> PartitionSet {
        let carried = |one: &Partition| self.owners[one.index()] == at;
        Partition::all().filter(carried).collect()
    }

    pub(super) fn followed_by(
        &self,
        primaries: &[(Arc<Shard>, PartitionSet)],
        patience: bool,
    ) -> Self {
        let mut heard = BTreeMap::new();
        let mut is_heard = |shard: &Arc<Shard>, partition| {
            let heard = heard.entry(shard.link).or_insert_with(|| shard.heard());
            heard.contains(partition)
        };
        let mut next = Self {
            shards: primaries.iter().map(|(shard, _)| shard.clone()).collect(),
            owners: [0; Partition::COUNT],
            moved: self.moved.clone(),
            era: self.era,
        };
        let mut has_moved = false;
        let now = Instant::now();
        next.moved.retain(|_, at| now < *at + SETTLING);
        for partition in Partition::all() {
            let carries = |(_, partitions): &(_, PartitionSet)| partitions.contains(partition);
            let owner = primaries.iter().position(carries);
            let before = self.shard(partition);
            let ready = owner.filter(|at| {
                let owner = &primaries[*at].0;
                let is_here = owner.link == before.link;
                is_here
                    || !(owner.is_departing(partition) || patience && is_heard(before, partition))
            });
            next.owners[partition.index()] = ready.unwrap_or_else(|| next.place_of(before));
            if next.shard(partition).link != before.link && before.was_primary() {
                next.moved.insert(partition, now);
                has_moved = true;
            }
        }
        if has_moved {
            let era = self
                .era
                .map_or(NonZeroU32::MIN, |era| era.saturating_add(1));
            next.era = Some(era);
        }
        next
    }

    fn place_of(&mut self, shard: &Arc<Shard>) -> usize {
        let known = self.shards.iter().position(|one| one.link == shard.link);
        known.unwrap_or_else(|| {
            self.shards.push(shard.clone());
            self.shards.len() - 1
        })
    }

    /// Which partitions move to the next spread, each from where to where.
    pub(super) fn moves_to(&self, next: &Self) -> Vec<(Arc<Shard>, Arc<Shard>, PartitionSet)> {
        let mut moves = BTreeMap::<_, PartitionSet>::new();
        for partition in Partition::all() {
            let places = (
                self.owners[partition.index()],
                next.owners[partition.index()],
            );
            if self.shards[places.0].link != next.shards[places.1].link {
                moves.entry(places).or_default().insert(partition);
            }
        }
        let shards = |((from, to), partitions): ((usize, usize), _)| {
            (
                self.shards[from].clone(),
                next.shards[to].clone(),
                partitions,
            )
        };
        moves.into_iter().map(shards).collect()
    }

    /// What may be published together.
    pub(super) fn split(
        &self,
        topics: SmallVec<[Topic; 1]>,
    ) -> BTreeMap<(usize, Option<Partition>), SmallVec<[Topic; 1]>> {
        let mut parts = BTreeMap::<_, SmallVec<_>>::new();
        for topic in topics {
            let at = self.place(&topic);
            let partition = self.shards[at].partition(&topic);
            parts.entry((at, partition)).or_default().push(topic);
        }
        parts
    }

    /// How long a question may take.
    pub(super) fn patience(&self) -> Duration {
        self.shards[0].publish_timeout()
    }

    /// Also the partitions of which nobody may be found though somebody hears them.
    pub(super) async fn listening(
        &self,
        topics: &[Topic],
    ) -> Result<(Vec<usize>, PartitionSet), Arc<str>> {
        let begun = Instant::now();
        let unsettled = |(_, at): &(&Partition, &Instant)| begun < **at + SETTLING;
        let unsettled = self.moved.iter().filter(unsettled);
        let mut doubted: PartitionSet = unsettled.map(|(partition, _)| *partition).collect();
        let mut places: Vec<Vec<usize>> = vec![Vec::new(); self.shards.len()];
        for (n, topic) in topics.iter().enumerate() {
            places[self.place(topic)].push(n);
        }
        let concerned = self.shards.iter().zip(&places);
        let concerned = concerned.filter(|(_, places)| !places.is_empty());
        let asking = concerned.map(async |(shard, places)| {
            let topics = places.iter().map(|n| &topics[*n]);
            let (counts, gone) = shard.listening(topics).await?;
            Ok::<_, Arc<str>>((places.iter().copied().zip(counts), gone))
        });
        let mut listening = vec![0; topics.len()];
        for answer in join_all(asking).await {
            let (counts, gone) = answer?;
            counts.for_each(|(n, count)| listening[n] = count);
            doubted = doubted | gone;
        }
        Ok((listening, doubted))
    }
}
