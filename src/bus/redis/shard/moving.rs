//! Partitions that come to a shard, and leave it.

use std::num::NonZeroU32;

use tokio::time::Instant;

use super::Shard;
use crate::bus::redis::subscriptions::Subscriptions;
use crate::model::partition::{Partition, PartitionSet};

impl Shard {
    /// Whether a partition that was here is not handed over in full.
    pub(in crate::bus::redis) fn is_departing(&self, partition: Partition) -> bool {
        self.publisher.queue().is_departing(partition)
    }

    /// Partitions are here that were nowhere before.
    pub(in crate::bus::redis) fn carry(&self, partitions: PartitionSet) {
        self.subscriptions.with(|table| table.expect(partitions));
    }

    /// Partitions are about to move here from another shard, and what is published here is of this era.
    pub(in crate::bus::redis) fn expect(&self, partitions: PartitionSet, era: Option<NonZeroU32>) {
        self.subscriptions.with(|table| table.expect(partitions));
        let queue = self.publisher.queue();
        partitions
            .iter()
            .for_each(|partition| queue.hold(partition, era));
    }

    /// Of which partitions messages may still come from here.
    pub(in crate::bus::redis) fn heard(&self) -> PartitionSet {
        self.subscriptions.with(|table| table.heard())
    }

    /// Partitions move to another shard, which expects them, and where everybody goes already; since then they are there.
    pub(in crate::bus::redis) fn hand_over(&self, partitions: PartitionSet, to: &Self) -> Instant {
        let (ours, theirs) = (self.publisher.queue(), to.publisher.queue());
        partitions
            .iter()
            .for_each(|partition| ours.depart(partition, theirs));
        let take_out = |table: &mut Subscriptions| table.take_out(partitions, Instant::now());
        let moving = self.subscriptions.change(take_out);
        to.subscriptions.change(|table| {
            table.take_in(moving);
            Instant::now()
        })
    }

    pub(in crate::bus::redis) fn probe_now(&self) {
        self.topology.probe_now();
    }

    /// What was stranded of these partitions is here after all, unless that was a moment ago: a primary that is a replica by
    /// now would take every subscription, and pass on late what the new one says.
    pub(in crate::bus::redis) fn keep(&self, partitions: PartitionSet) {
        if self.topology.is_doubtful() {
            return;
        }
        self.subscriptions
            .change(|table| table.unstrand(partitions, Instant::now()));
    }

    /// Since when what was published here may have gone astray, if it is no primary any more.
    pub(in crate::bus::redis) fn astray_since(&self) -> Option<Instant> {
        self.topology.astray_since()
    }

    /// Everything was [handed over](Self::hand_over), or will be when it is in no pipeline any more: what is open leaves.
    pub(in crate::bus::redis) fn retire(&self) {
        self.ended.cancel();
        self.topology.retire();
        self.publisher.queue().retire();
    }

    /// Somebody goes on unheard, here or on another shard.
    pub(in crate::bus::redis) fn prove_anew(&self) {
        self.subscriptions.change(|table| {
            if table.is_behind() {
                table.confirm_anew();
            }
        });
    }
}
