//! Which shard carries a topic.
//!
//! Where there are several, each carries some of the 256 partitions of the topics. Of several independent Redises a
//! partition belongs to the one that is highest in an order of its own (rendezvous hashing, Thaler and Ravishankar 1998):
//! it depends on their names only, not on the order in which they are listed, and with one more of them only what moves
//! there moves.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use parking_lot::RwLock;
use sha1::{Digest, Sha1};
use smallvec::SmallVec;
use tokio::time::{Instant, sleep};

use super::advice::Advice;
use super::connection::Connector;
use super::quota::SharedLedgers;
use super::shard::{Common, Shard};
use crate::bus::outage::LinkId;
use crate::bus::past::{Keep, Past, ReadLimits, TopicPast};
use crate::bus::scope::Size;
use crate::bus::{Confirmation, Later, Listener, Published};
use crate::model::error::PublishError;
use crate::model::history::mark::{Clock, Marks};
use crate::model::history::token::Key;
use crate::model::partition::{Partition, PartitionSet};
use crate::model::topic::Topic;
use crate::quota::SeatLimit;

/// Partitions whose users are one group at the cluster-wide limit: enough groups that they are spread over the primaries, and
/// few enough that looking after them costs little.
const SEAT_GROUP: usize = Partition::COUNT / 16;

#[derive(Debug)]
pub(super) enum Placement {
    One(Arc<Shard>),
    /// Looked at by every call, and replaced when partitions move.
    Spread(RwLock<Arc<Spread>>),
}

/// So long after a partition has moved whoever hears it may not have followed: the nodes are at a new primary within a
/// second.
const SETTLING: Duration = Duration::from_secs(1);
/// How soon a question is asked again that found nobody where nobody can be yet.
const AGAIN: Duration = Duration::from_millis(50);

const UNSETTLED: &str = "its channel moves to another primary of the cluster, and who hears it cannot be told meanwhile";

/// What is asked of each shard, with its place among all that is.
type Places<'a> = BTreeMap<LinkId, (Arc<Shard>, Vec<(usize, &'a Topic)>)>;

/// Several shards, and to which of them each partition belongs.
#[derive(Debug)]
pub(super) struct Spread {
    pub(super) shards: Vec<Arc<Shard>>,
    pub(super) owners: [usize; Partition::COUNT],
    /// When partitions moved from one primary to another.
    moved: BTreeMap<Partition, Instant>,
    /// How often any did.
    era: Option<NonZeroU32>,
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
        Self::spread(Spread {
            shards,
            owners,
            moved: BTreeMap::new(),
            era: None,
        })
    }

    /// Where nobody knows yet who carries what: all is with this one for now.
    pub(super) fn unknown(nowhere: Arc<Shard>) -> Self {
        Self::spread(Spread {
            shards: vec![nowhere],
            owners: [0; Partition::COUNT],
            moved: BTreeMap::new(),
            era: None,
        })
    }

    fn spread(spread: Spread) -> Self {
        Self::Spread(RwLock::new(Arc::new(spread)))
    }

    /// Those of now.
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
                ?from,
                ?to,
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

    /// What came to each topic.
    pub(super) async fn read(
        &self,
        topics: &[Topic],
        since: Option<&Marks>,
        limits: ReadLimits,
    ) -> Result<Past, Arc<str>> {
        let mut places: Places<'_> = BTreeMap::new();
        for (n, topic) in topics.iter().enumerate() {
            let shard = self.on(topic, |shard| shard.clone());
            let place = places.entry(shard.link).or_insert((shard, Vec::new()));
            place.1.push((n, topic));
        }
        let reading = places.into_values().map(async |(shard, topics)| {
            let read = shard.read(&topics, since, limits).await?;
            Ok::<_, Arc<str>>(read)
        });
        let mut pasts: Vec<Option<TopicPast>> = vec![None; topics.len()];
        for read in join_all(reading).await {
            for (n, past) in read? {
                pasts[n] = Some(past);
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
        let all = Topic::all();
        let shard = self.on(&all, |shard| shard.clone());
        shard.key(&all).await
    }

    /// How many hear each topic.
    pub(super) async fn listening(&self, topics: &[Topic]) -> Result<Vec<usize>, Arc<str>> {
        match self {
            Self::One(shard) => shard.listening(topics).await.map(|(counts, _)| counts),
            Self::Spread(spread) => Self::listening_anywhere(spread, topics).await,
        }
    }

    /// Nobody is found where a partition is no more, and until those have followed who hear it where it has come.
    async fn listening_anywhere(
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
            if begun.elapsed() + AGAIN >= now.patience() {
                return Err(UNSETTLED.into());
            }
            sleep(AGAIN).await;
        }
    }
}

impl Spread {
    fn place(&self, topic: &Topic) -> usize {
        self.owners[Partition::of(topic.as_str()).index()]
    }

    fn shard(&self, partition: Partition) -> &Arc<Shard> {
        &self.shards[self.owners[partition.index()]]
    }

    pub(super) fn carried(&self, at: usize) -> PartitionSet {
        let carried = |one: &Partition| self.owners[one.index()] == at;
        Partition::all().filter(carried).collect()
    }

    fn followed_by(&self, primaries: &[(Arc<Shard>, PartitionSet)], patience: bool) -> Self {
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

    /// From where to where.
    fn moves_to(&self, next: &Self) -> Vec<(Arc<Shard>, Arc<Shard>, PartitionSet)> {
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
    fn split(
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
    fn patience(&self) -> Duration {
        self.shards[0].publish_timeout()
    }

    /// Also the partitions of which nobody may be found though somebody hears them.
    async fn listening(&self, topics: &[Topic]) -> Result<(Vec<usize>, PartitionSet), Arc<str>> {
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

/// Waits for all parts of what was published. One that failed fails all, and what the others did is not lost with it.
async fn all_published(
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
        (Ok(all), Ok(part)) => Ok(together(all, part)),
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

fn together(mut all: Published, mut part: Published) -> Published {
    let (all_later, part_later) = (all.later.take(), part.later.take());
    if all_later.is_none() && part_later.is_none() {
        return Published {
            nodes: all.nodes + part.nodes,
            comes_back: all.comes_back || part.comes_back,
            // Each part has a clock of its own.
            mark: None,
            later: None,
        };
    }
    let later = async move {
        let all = at_last(all, all_later).await;
        and(all, at_last(part, part_later).await)
    };
    Published {
        later: Some(Later::new(later)),
        ..Published::default()
    }
}

async fn at_last(published: Published, later: Option<Later>) -> Result<Published, PublishError> {
    match later {
        Some(Later(later)) => later.await,
        None => Ok(published),
    }
}

/// To which of these names each partition belongs.
fn owners(names: &[&str]) -> [usize; Partition::COUNT] {
    let weight =
        |partition: Partition, name: &str| Sha1::digest(format!("{} {name}", partition.index()));
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
        owners(names).map(|owner| names[owner].to_owned()).to_vec()
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
                ..Published::default()
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
