//! Which shard carries a topic.
//!
//! Where there are several, each carries some of the 256 partitions of the topics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use parking_lot::RwLock;
use smallvec::SmallVec;
use tokio::time::{Instant, sleep};

use self::parts::all_published;
use self::spread::Spread;
use super::advice::Advice;
use super::connection::Connector;
use super::pipeline::RefusedPublish;
use super::quota::SharedLedgers;
use super::shard::{Common, Shard};
use crate::bus::outage::LinkId;
use crate::bus::past::{Keep, Past, ReadLimits, TopicPast};
use crate::bus::scope::Size;
use crate::bus::{Confirmation, Listener, Published};
use crate::model::error::PublishError;
use crate::model::history::mark::{Clock, Marks};
use crate::model::history::token::Key;
use crate::model::partition::{Partition, PartitionSet};
use crate::model::topic::Topic;
use crate::quota::SeatLimit;

mod owners;
mod parts;
mod spread;

/// Partitions whose users are one group at the cluster-wide limit: enough groups that they are spread over the primaries, and
/// few enough that looking after them costs little.
const SEAT_GROUP: usize = Partition::COUNT / 16;

#[derive(Debug)]
pub(super) enum Placement {
    One(Arc<Shard>),
    /// Looked at by every call, and replaced when partitions move.
    Spread(RwLock<Arc<Spread>>),
}

/// How soon a question is asked again that found nobody where nobody can be yet, or what has just moved.
const AGAIN: Duration = Duration::from_millis(50);

const UNSETTLED: &str = "its channel moves to another primary of the cluster, and who hears it cannot be told meanwhile";

/// What is asked of each shard, with its place among all that is.
type ShardPlaces<'a> = BTreeMap<LinkId, (Arc<Shard>, Vec<(usize, &'a Topic)>)>;

impl Placement {
    /// Of several, each with the name by which all nodes know it.
    pub(super) fn of(mut shards: Vec<(String, Arc<Shard>)>) -> Self {
        if shards.len() == 1
            && let Some((_, shard)) = shards.pop()
        {
            return Self::One(shard);
        }
        Self::spread(Spread::over(shards))
    }

    /// Where nobody knows yet who carries what: all is with this one for now.
    pub(super) fn unknown(nowhere: Arc<Shard>) -> Self {
        Self::spread(Spread::at(nowhere))
    }

    fn spread(spread: Spread) -> Self {
        Self::Spread(RwLock::new(Arc::new(spread)))
    }

    /// The shards of now.
    pub(super) fn shards(&self) -> Vec<Arc<Shard>> {
        match self {
            Self::One(shard) => vec![shard.clone()],
            Self::Spread(spread) => spread.read().shards.clone(),
        }
    }

    /// What each link carries.
    pub(super) fn links(&self) -> Vec<(LinkId, PartitionSet)> {
        match self {
            Self::One(shard) => vec![(shard.link, PartitionSet::all())],
            Self::Spread(spread) => {
                let spread = spread.read();
                let links = spread.shards.iter().enumerate();
                links
                    .map(|(at, shard)| (shard.link, spread.carried(at)))
                    .collect()
            }
        }
    }

    /// These shards carry these partitions from now on; what none of them carries stays where it is, and what comes back
    /// before it was handed over. With `patience` so does what the old primary has not ended: what it said before is read
    /// before what the new one says. Whether all is where it should be. Called by one task.
    pub(super) fn follow(
        &self,
        primaries: &[(Arc<Shard>, PartitionSet)],
        patience: bool,
        listener: &dyn Listener,
    ) -> bool {
        let Self::Spread(spread) = self else {
            return true;
        };
        let before = spread.read().clone();
        let next = Arc::new(before.followed_by(primaries, patience));
        let moves = before.moves_to(&next);
        for (from, to, partitions) in &moves {
            tracing::debug!(
                partitions = partitions.len(),
                from = from.name(),
                to = to.name(),
                "channels move to another primary"
            );
            to.expect(*partitions, next.era);
            // What comes from there before all is said to have moved must not be taken for all that came.
            partitions
                .iter()
                .for_each(|partition| listener.stranded(from.link, partition));
        }
        // Whoever comes from now on goes to the new place; and what was at the old one follows.
        let old = std::mem::replace(&mut *spread.write(), next.clone());
        drop(old);
        let is_left = |shard: &&Arc<Shard>| !next.shards.iter().any(|next| next.link == shard.link);
        let left: Vec<_> = before.shards.iter().filter(is_left).collect();
        for shard in &left {
            if let Some(since) = shard.astray_since() {
                listener.strayed(shard.link, Some(since));
            }
        }
        for (from, to, partitions) in moves {
            let at = from.hand_over(partitions, &to);
            listener.moved(partitions, (from.link, to.link), at);
            to.probe_now();
        }
        left.iter().for_each(|shard| shard.retire());
        settle(primaries, &next)
    }

    /// Users in groups, each with the keys in a partition of its own; one, where all is at one Redis.
    pub(super) fn seats(&self, limit: SeatLimit, common: &Common) -> SharedLedgers {
        let Common { node, settings, .. } = common;
        if let Self::One(shard) = self {
            return SharedLedgers::single(*node, limit, settings, shard.connector());
        }
        let tagged = self
            .seat_groups()
            .map(|(partition, connector)| (partition.tag(), connector));
        let group_of = |user: &Topic| Partition::of(user.as_str()).index() / SEAT_GROUP;
        SharedLedgers::tagged(*node, limit, settings, tagged, group_of)
    }

    /// Leads the groups of seats to where their keys are now.
    pub(super) fn lead(&self, seats: &SharedLedgers) {
        for (group, (_, connector)) in self.seat_groups().enumerate() {
            seats.follow(group, &connector);
        }
    }

    /// Where the keys of each group are.
    fn seat_groups(&self) -> impl Iterator<Item = (Partition, Connector)> {
        let first = Partition::all().step_by(SEAT_GROUP);
        first.map(move |partition| {
            let connector = match self {
                Self::One(shard) => shard.connector(),
                Self::Spread(spread) => {
                    let spread = spread.read();
                    spread.shards[spread.owners[partition.index()]].connector()
                }
            };
            (partition, connector)
        })
    }

    /// Of whichever shard: all have the same user.
    pub(super) fn advice(&self) -> Arc<Advice> {
        match self {
            Self::One(shard) => shard.advice().clone(),
            Self::Spread(spread) => spread.read().shards[0].advice().clone(),
        }
    }

    /// Who numbers what is kept of a topic: the same on every node.
    pub(super) fn clock(&self, topic: &Topic) -> Clock {
        self.on(topic, |shard| shard.clock(topic))
    }

    pub(super) fn want(&self, topic: &Topic) -> Confirmation {
        loop {
            // Where it has moved just now, the next look finds the new place.
            if let Some(confirmation) = self.on(topic, |shard| shard.want(topic)) {
                return confirmation;
            }
        }
    }

    pub(super) fn release(&self, topic: &Topic) {
        while !self.on(topic, |shard| shard.release(topic)) {}
    }

    fn on<T>(&self, topic: &Topic, act: impl FnOnce(&Arc<Shard>) -> T) -> T {
        match self {
            Self::One(shard) => act(shard),
            Self::Spread(spread) => {
                let spread = spread.read().clone();
                act(&spread.shards[spread.place(topic)])
            }
        }
    }

    /// Queued by the call.
    pub(super) fn publish(
        &self,
        topics: SmallVec<[Topic; 1]>,
        envelope: &Bytes,
        size: Size,
        keep: Option<Keep>,
    ) -> BoxFuture<'static, Result<Published, PublishError>> {
        let spread = match self {
            Self::One(shard) => return shard.publish(topics, envelope.clone(), size, keep).boxed(),
            Self::Spread(spread) => spread.read().clone(),
        };
        if let ([topic], None | Some(Keep::Each)) = (topics.as_slice(), &keep) {
            let shard = &spread.shards[spread.place(topic)];
            return shard.publish(topics, envelope.clone(), size, keep).boxed();
        }
        let kept = match &keep {
            Some(Keep::Union(kept) | Keep::Silent(kept)) => spread.split(kept.clone()),
            _ => BTreeMap::new(),
        };
        let mut parts = spread.split(topics);
        for place in kept.keys() {
            parts.entry(*place).or_default();
        }
        let publish = |(place, topics): ((usize, Option<Partition>), _)| {
            let of_place = || kept.get(&place).cloned().unwrap_or_default();
            let keep = keep.as_ref().map(|keep| match keep {
                Keep::Each => Keep::Each,
                Keep::Union(_) => Keep::Union(of_place()),
                Keep::Silent(_) => Keep::Silent(of_place()),
            });
            spread.shards[place.0].publish(topics, envelope.clone(), size, keep)
        };
        let parts = parts.into_iter();
        all_published(parts.map(publish).collect()).boxed()
    }

    /// What came to each topic. Of those that are on their way to another primary it is asked again, for as long as a question may
    /// take.
    pub(super) async fn read(
        &self,
        topics: &[Topic],
        since: Option<&Marks>,
        limits: ReadLimits,
    ) -> Result<Past, Arc<str>> {
        let begun = Instant::now();
        let mut pasts: Vec<Option<TopicPast>> = vec![None; topics.len()];
        let mut left: Vec<(usize, &Topic)> = topics.iter().enumerate().collect();
        loop {
            let mut places: ShardPlaces<'_> = BTreeMap::new();
            for (n, topic) in std::mem::take(&mut left) {
                let shard = self.on(topic, |shard| shard.clone());
                let place = places.entry(shard.link).or_insert((shard, Vec::new()));
                place.1.push((n, topic));
            }
            let reading = places.into_values().map(async |(shard, topics)| {
                let read = shard.read(&topics, since, limits).await;
                (topics, read)
            });
            let mut elsewhere = None;
            for (topics, read) in join_all(reading).await {
                match read {
                    Ok(read) => read.into_iter().for_each(|(n, past)| pasts[n] = Some(past)),
                    Err(RefusedPublish::Elsewhere(reason)) => {
                        left.extend(topics);
                        elsewhere = Some(reason);
                    }
                    Err(refused) => return Err(refused.reason()),
                }
            }
            match elsewhere {
                None => break,
                Some(reason) if !self.asks_again(begun).await => return Err(reason),
                Some(_) => {}
            }
        }
        let of = |(topic, past): (&Topic, Option<TopicPast>)| {
            past.unwrap_or_else(|| TopicPast::of_nothing(self.clock(topic)))
        };
        Ok(Past {
            topics: topics.iter().zip(pasts).map(of).collect(),
        })
    }

    /// What positions are signed with. It is in one place, as the topic of all sockets is.
    pub(super) async fn key(&self) -> Result<Key, Arc<str>> {
        let begun = Instant::now();
        let all = Topic::all();
        loop {
            let shard = self.on(&all, |shard| shard.clone());
            match shard.key(&all).await {
                Ok(key) => return Ok(key),
                Err(RefusedPublish::Elsewhere(_)) if self.asks_again(begun).await => {}
                Err(refused) => return Err(refused.reason()),
            }
        }
    }

    /// After a pause, if there is time for it: a question takes no longer than its shard waits for an answer.
    async fn asks_again(&self, begun: Instant) -> bool {
        let patience = match self {
            Self::One(shard) => shard.publish_timeout(),
            Self::Spread(spread) => spread.read().patience(),
        };
        let is_time = begun.elapsed() + AGAIN < patience;
        if is_time {
            sleep(AGAIN).await;
        }
        is_time
    }

    /// How many hear each topic.
    pub(super) async fn listening(&self, topics: &[Topic]) -> Result<Vec<usize>, Arc<str>> {
        match self {
            Self::One(shard) => shard.listening(topics).await.map(|(counts, _)| counts),
            Self::Spread(spread) => self.listening_anywhere(spread, topics).await,
        }
    }

    /// Nobody is found where a partition is no more, and until those have followed who hear it where it has come.
    async fn listening_anywhere(
        &self,
        spread: &RwLock<Arc<Spread>>,
        topics: &[Topic],
    ) -> Result<Vec<usize>, Arc<str>> {
        let begun = Instant::now();
        loop {
            let now = spread.read().clone();
            let (counts, doubted) = now.listening(topics).await?;
            let mut counted = topics.iter().zip(&counts);
            let is_sure = |(topic, count): (&Topic, &usize)| {
                *count > 0 || !doubted.contains(Partition::of(topic.as_str()))
            };
            if counted.all(is_sure) {
                return Ok(counts);
            }
            if !self.asks_again(begun).await {
                return Err(UNSETTLED.into());
            }
        }
    }
}

/// Each keeps what it carries from now on. Whether that is all that it should.
fn settle(primaries: &[(Arc<Shard>, PartitionSet)], next: &Spread) -> bool {
    let is_there = |link, partition: &Partition| next.shard(*partition).link == link;
    let mut are_there = true;
    for (shard, partitions) in primaries {
        let there = partitions.iter().filter(|one| is_there(shard.link, one));
        let there: PartitionSet = there.collect();
        are_there &= there == *partitions;
        // Not what is only held up here, and ended by now.
        shard.keep(there);
    }
    are_there
}
