//! What is kept in a partition whose slot is on its way to another primary.
//!
//! Keys move one by one, and a command for several of them is refused unless all are on the same side. So what was refused goes
//! out again topic by topic: what is known there goes ahead, and only what is new, or has just left, waits. What follows waits
//! behind what is of the same topics, and behind nothing else.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem::take;

use smallvec::SmallVec;

use crate::bus::redis::publication::Publication;
use crate::bus::redis::queue::Waiter;
use crate::model::partition::Partition;

type WaitingPublication = (Publication, Waiter);

/// Most of a topic that go out at once.
const RUN: usize = 64;

/// The partitions that are on their way, each with the topics, hashed, of which something waits.
#[derive(Debug, Default)]
pub(super) struct Split(BTreeMap<Partition, HashSet<u64>>);

impl Split {
    /// It is on its way from now on, or it is somewhere else.
    pub(super) fn refused(&mut self, partition: Partition, has_arrived: bool) {
        match has_arrived {
            true => self.end(partition),
            false => drop(self.0.entry(partition).or_default()),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn end(&mut self, partition: Partition) {
        self.0.remove(&partition);
    }

    pub(super) fn is_split(&self, partition: Partition) -> bool {
        self.0.contains_key(&partition)
    }

    /// Of which topics something waits, from now on.
    pub(super) fn note(&mut self, stalled: &BTreeMap<Partition, VecDeque<WaitingPublication>>) {
        self.0.retain(|partition, waits| {
            let stalled = stalled.get(partition);
            waits.clear();
            waits.extend(
                stalled
                    .into_iter()
                    .flatten()
                    .flat_map(|(one, _)| topics(one)),
            );
            !waits.is_empty()
        });
    }

    /// Whether something is to wait behind what does already.
    pub(super) fn is_behind(&self, partition: Partition, publication: &Publication) -> bool {
        let waits = self.0.get(&partition);
        waits.is_none_or(|waits| {
            topics(publication)
                .iter()
                .any(|topic| waits.contains(topic))
        })
    }
}

/// What may go out now, each topic's together. What is of several topics goes alone, and what follows of these stays.
pub(super) fn ahead(stalled: &mut VecDeque<WaitingPublication>) -> Vec<WaitingPublication> {
    let (mut runs, mut places) = (
        Vec::<Vec<WaitingPublication>>::new(),
        HashMap::<u64, usize>::new(),
    );
    let (mut closed, mut rest) = (HashSet::new(), VecDeque::new());
    for (mut publication, waiter) in take(stalled) {
        let named = topics(&publication);
        let is_behind = named.iter().any(|topic| closed.contains(topic));
        let run = named.first().and_then(|topic| places.get(topic)).copied();
        match (is_behind, named.as_slice(), run) {
            (false, [_], Some(at)) if runs[at].len() < RUN => {
                publication.goes_alone = true;
                // Where the first of it goes: elsewhere it might come before that.
                publication.asks = runs[at][0].0.asks.clone();
                runs[at].push((publication, waiter));
            }
            (false, named, None) if !named.iter().any(|topic| places.contains_key(topic)) => {
                if named.len() > 1 {
                    closed.extend(named);
                }
                places.extend(named.iter().map(|topic| (*topic, runs.len())));
                publication.goes_alone = true;
                runs.push(vec![(publication, waiter)]);
            }
            _ => {
                closed.extend(named);
                rest.push_back((publication, waiter));
            }
        }
    }
    *stalled = rest;
    runs.into_iter().flatten().collect()
}

/// The topics on which it is published or kept, hashed, each once.
pub(super) fn topics(publication: &Publication) -> SmallVec<[u64; 1]> {
    let lists = publication.keep.iter().flat_map(|keep| keep.lists.iter());
    let lists = lists.flatten().map(|list| within(&list.key, "}:h:"));
    let channels = publication.channels.iter().map(|one| within(one, "}:"));
    let named = lists.chain(channels.filter(|channel| !channel.is_empty()));
    let mut topics: SmallVec<[u64; 1]> = named.map(hashed).collect();
    topics.sort_unstable();
    topics.dedup();
    topics
}

/// The topic in a name at Redis.
fn within<'a>(name: &'a str, before: &str) -> &'a str {
    name.split_once(before).map_or(name, |(_, topic)| topic)
}

fn hashed(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}
