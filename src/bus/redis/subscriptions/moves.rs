//! Topics that move to another primary of a Redis Cluster, and come from one.
//!
//! A primary ends the subscriptions of a partition that has left it, or refuses them, before anybody knows where it is:
//! then the partition is stranded, and nothing is asked for in it. When its place is known its topics are taken out
//! here and taken in there, with whoever waits. What was taken in nobody heard for a while: until it is confirmed
//! nothing proves that this primary is heard.
//!
//! ```text
//!                ended, or MOVED            it is here after all
//!   carried ----------------------> stranded ------------------------> arriving ----> carried, when all is confirmed
//!      |                               |                                  ^
//!      +-------------------------------+--> taken out here, taken in there: +
//!                 another is its place
//! ```
//! Whoever comes meanwhile is told to look for the place again, or already comes to the new one: so a reason that ends there
//! may be counted before the one that it ends has come.

use std::collections::BTreeMap;
use std::mem::{replace, take};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Phase, Subscriptions};
use crate::bus::redis::outstanding::{Request, Verb};
use crate::model::partition::{Partition, PartitionSet};
use crate::model::topic::Topic;

/// The partitions of one primary.
#[derive(Debug)]
pub(super) struct Moves {
    carried: PartitionSet,
    stranded: PartitionSet,
    /// Something is not asked for that was taken in; …
    arriving: bool,
    /// … or so much had been sent when it was.
    arriving_at: Option<u64>,
    /// Where the own topic is probed, which must be here.
    probed: Option<Partition>,
}

/// A topic on its way, and all that is wanted of it.
#[derive(Debug)]
pub(in crate::bus::redis) struct Moving {
    topic: Topic,
    reasons: isize,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Moves {
    pub(super) fn new() -> Self {
        Self {
            carried: PartitionSet::new(),
            stranded: PartitionSet::new(),
            arriving: false,
            arriving_at: None,
            probed: None,
        }
    }

    /// A new connection, on which all is asked for.
    pub(super) fn begin(&mut self) {
        self.stranded = PartitionSet::new();
        (self.arriving, self.arriving_at) = (false, None);
    }

    pub(super) fn is_stranded(&self, partition: Partition) -> bool {
        self.stranded.contains(partition)
    }

    /// All that is wanted is sent.
    pub(super) fn sent(&mut self, sent: u64) {
        if self.arriving {
            self.arriving_at.get_or_insert(sent);
        }
    }

    fn has_arrived(&self, answered: u64) -> bool {
        let confirmed = self.arriving_at.is_some_and(|sent| sent <= answered);
        self.stranded.is_empty() && (!self.arriving || confirmed)
    }
}

impl Subscriptions {
    /// Whether a topic is wanted here, and not at another primary.
    pub(in crate::bus::redis) fn carries(&self, topic: &Topic) -> bool {
        let moves = self.moves.as_ref();
        moves.is_none_or(|moves| moves.carried.contains(Partition::of(topic.as_str())))
    }

    /// The partition of a topic on this connection.
    pub(in crate::bus::redis) fn partition(&self, topic: &Topic) -> Option<Partition> {
        let moves = self.moves.as_ref()?;
        match *topic == self.own {
            true => moves.probed,
            false => Some(Partition::of(topic.as_str())),
        }
    }

    /// Where the own topic is probed, in a cluster.
    pub(in crate::bus::redis) fn probed(&self) -> Option<Partition> {
        self.moves.as_ref()?.probed
    }

    /// Whether all that was taken in is confirmed, and nothing is stranded.
    pub(in crate::bus::redis) fn has_arrived(&self) -> bool {
        let answered = self.outstanding.answered_through();
        let moves = self.moves.as_ref();
        moves.is_none_or(|moves| moves.has_arrived(answered))
    }

    /// These partitions come: whoever wants a topic of them is welcome already.
    pub(in crate::bus::redis) fn expect(&mut self, partitions: PartitionSet) {
        if let Some(moves) = &mut self.moves {
            moves.carried = moves.carried | partitions;
            self.choose_probe();
        }
    }

    /// A partition is not here, and nobody knows where.
    pub(super) fn strand(&mut self, partition: Partition) {
        if let Some(moves) = &mut self.moves {
            moves.stranded.insert(partition);
        }
    }

    /// What is stranded of these is here after all.
    pub(in crate::bus::redis) fn unstrand(&mut self, partitions: PartitionSet, now: Instant) {
        let Some(moves) = &mut self.moves else {
            return;
        };
        let back = moves.stranded & partitions;
        if back.is_empty() {
            return;
        }
        moves.stranded = moves.stranded - back;
        let probed = moves.probed;
        let is_connected = self.is_connected();
        for (topic, interest) in &mut self.interests {
            let partition = match *topic == self.own {
                true => probed,
                false => Some(Partition::of(topic.as_str())),
            };
            let is_back = partition.is_some_and(|partition| back.contains(partition));
            if is_back && is_connected && interest.is_wanted(now) != interest.subscribed && !interest.queued {
                interest.queued = true;
                self.restoring.push_back(topic.clone());
            }
        }
        self.arrive();
    }

    /// Redis says that the first command of which nothing is answered belongs elsewhere, if it is of this slot. Another may
    /// be meant, which was answered twice: an UNSUBSCRIBE of what had moved. The partition that is stranded.
    pub(in crate::bus::redis) fn misplaced(&mut self, slot: u16) -> Option<Partition> {
        let topic = self.outstanding.refusable()?;
        let partition = self.partition(topic).filter(|partition| partition.slot() == slot)?;
        let Request { verb, topics } = self.outstanding.refuse()?;
        for topic in topics {
            if let Some(interest) = self.interests.get_mut(&topic) {
                interest.unanswered -= 1;
                // Else what was sent later decides.
                if interest.unanswered == 0 && verb == Verb::Subscribe {
                    interest.subscribed = false;
                }
            }
            self.forget_if_unused(topic.as_str());
        }
        self.strand(partition);
        Some(partition)
    }

    /// Takes out the topics of partitions whose place is elsewhere.
    pub(in crate::bus::redis) fn take_out(
        &mut self,
        partitions: PartitionSet,
        now: Instant,
    ) -> Vec<Moving> {
        let Some(moves) = &mut self.moves else {
            return Vec::new();
        };
        moves.carried = moves.carried - partitions;
        moves.stranded = moves.stranded - partitions;
        let mut moving = Vec::new();
        for (topic, interest) in &mut self.interests {
            if !partitions.contains(Partition::of(topic.as_str())) {
                continue;
            }
            // It stays for its own sake, once.
            let kept = isize::from(*topic == self.own);
            let reasons = interest.reasons - kept;
            interest.reasons = kept;
            let waiting = take(&mut interest.waiting);
            if let Some(place) = interest.refused.take() {
                self.refusals.forget(place, now);
            }
            if kept == 0 {
                interest.linger_until = None;
                interest.subscribed &= interest.unanswered > 0;
                interest.queued = false;
            }
            if reasons != 0 || !waiting.is_empty() {
                moving.push(Moving {
                    topic: topic.clone(),
                    reasons,
                    waiting,
                });
            }
        }
        self.interests.retain(|_, interest| !interest.is_unused());
        self.choose_probe();
        moving
    }

    /// Takes in the topics of partitions whose place is here now.
    pub(in crate::bus::redis) fn take_in(&mut self, moving: Vec<Moving>) {
        let connected = self.is_connected();
        for Moving {
            topic,
            reasons,
            waiting,
        } in moving
        {
            let interest = self.interests.entry(topic.clone()).or_default();
            interest.reasons += reasons;
            if connected && interest.reasons > 0 && !interest.subscribed && !interest.queued {
                interest.queued = true;
                self.restoring.push_back(topic.clone());
            }
            match (interest.is_confirmed(), self.phase) {
                (true, _) => self.news.confirmed.extend(waiting),
                (false, Phase::Down | Phase::Restoring) => self.news.given_up.extend(waiting),
                (false, Phase::Starting | Phase::Up) => interest.waiting.extend(waiting),
            }
            self.forget_if_unused(topic.as_str());
        }
        self.arrive();
    }

    fn arrive(&mut self) {
        if let Some(moves) = &mut self.moves {
            (moves.arriving, moves.arriving_at) = (true, None);
        }
    }

    /// In the own topic's partition, if that is here: there it is one channel for both.
    fn choose_probe(&mut self) {
        let Some(moves) = &mut self.moves else {
            return;
        };
        let home = Partition::of(self.own.as_str());
        let probed = match moves.carried.contains(home) {
            true => Some(home),
            false => moves.probed.filter(|at| moves.carried.contains(*at)),
        };
        let probed = probed.or_else(|| moves.carried.iter().next());
        if probed == moves.probed {
            return;
        }
        moves.probed = probed;
        if !self.is_connected() {
            return;
        }
        if let Some(interest) = self.interests.get_mut(&self.own) {
            // What is unanswered was about the other channel, and is not heard any more.
            interest.subscribed = false;
            if !replace(&mut interest.queued, true) {
                self.restoring.push_back(self.own.clone());
            }
        }
        self.arrive();
    }

    /// A command of one partition at a time, as a cluster demands.
    pub(super) fn by_partition(&self, topics: Vec<Topic>) -> Vec<Vec<Topic>> {
        if self.moves.is_none() {
            return vec![topics];
        }
        let mut parts = BTreeMap::<_, Vec<Topic>>::new();
        for topic in topics {
            parts.entry(self.partition(&topic)).or_default().push(topic);
        }
        parts.into_values().collect()
    }
}
