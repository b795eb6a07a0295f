//! Keeps what a node has open to how the cluster is divided: a shard for each primary that carries something.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::{Sight, View};
use crate::bus::Listener;
use crate::bus::outage::LinkId;
use crate::bus::redis::address::ServerAddress;
use crate::bus::redis::options::ClusterTarget;
use crate::bus::redis::placement::Placement;
use crate::bus::redis::quota::SharedLedgers;
use crate::bus::redis::shard::{Common, Shard};
use crate::bus::redis::topology::Topology;
use crate::model::partition::PartitionSet;

/// What no primary is known to carry is with it.
const NOWHERE: LinkId = LinkId(0);

/// So long a primary that lost partitions may take to say so, behind all that it still had to say: then they are heard at
/// their new one all the same.
const PATIENCE: Duration = Duration::from_millis(500);

/// The task that opens and leaves shards.
#[derive(Debug)]
pub(in crate::bus::redis) struct Follower {
    target: Arc<ClusterTarget>,
    common: Arc<Common>,
    placement: Arc<Placement>,
    seats: Option<Arc<SharedLedgers>>,
    sight: watch::Receiver<Sight>,
    /// Notified where the cluster may be divided otherwise.
    hints: Arc<Notify>,
    listener: Weak<dyn Listener>,
    shards: BTreeMap<ServerAddress, Arc<Shard>>,
    next_link: u32,
    /// Since when something is not where it should be.
    held_up: Option<Instant>,
}

/// A shard for what no primary is known to carry, which is everything at first.
pub(in crate::bus::redis) fn nowhere(
    target: &ClusterTarget,
    common: &Arc<Common>,
    hints: &Arc<Notify>,
) -> Arc<Shard> {
    let topology = Topology::of_cluster(None, hints.clone());
    let name = "no primary".into();
    let shard = Shard::of_cluster(NOWHERE, name, topology, target.user(), common.clone());
    shard.carry(PartitionSet::all());
    Arc::new(shard)
}

impl Follower {
    pub(in crate::bus::redis) fn new(
        target: Arc<ClusterTarget>,
        common: Arc<Common>,
        placement: Arc<Placement>,
        seats: Option<Arc<SharedLedgers>>,
        sight: watch::Receiver<Sight>,
        hints: Arc<Notify>,
        listener: Weak<dyn Listener>,
    ) -> Self {
        Self {
            target,
            common,
            placement,
            seats,
            sight,
            hints,
            listener,
            shards: BTreeMap::new(),
            next_link: NOWHERE.0,
            held_up: None,
        }
    }

    /// Follows, as long as somebody looks.
    pub(in crate::bus::redis) async fn run(&mut self) {
        while self.sight.changed().await.is_ok() {
            let sight = self.sight.borrow_and_update().clone();
            if let (Some(view), Some(asked)) = (&sight.view, sight.asked) {
                self.follow(view, asked);
            }
            if let Some(silence) = sight.silence {
                for shard in self.placement.shards() {
                    shard.topology().untold(silence.clone());
                }
            }
        }
    }

    fn follow(&mut self, view: &View, asked: Instant) {
        let Some(listener) = self.listener.upgrade() else {
            return;
        };
        let carrying: Vec<_> = view
            .primaries()
            .map(|(host, partitions)| (self.shard(host), partitions))
            .collect();
        let patience = self.held_up.is_none_or(|since| since.elapsed() < PATIENCE);
        if self.placement.follow(&carrying, patience, &*listener) {
            self.held_up = None;
        } else {
            self.held_up.get_or_insert_with(Instant::now);
            self.hints.notify_one();
        }
        let shards = self.placement.shards();
        for shard in &shards {
            shard.topology().confirm(asked);
            // Now that it knows what it carries.
            shard.start(&self.listener, self.seats.as_ref());
        }
        if let Some(seats) = &self.seats {
            self.placement.lead(seats);
        }
        self.shards
            .retain(|_, shard| shards.iter().any(|one| one.link == shard.link));
    }

    fn shard(&mut self, host: &ServerAddress) -> Arc<Shard> {
        if let Some(shard) = self.shards.get(host) {
            return shard.clone();
        }
        self.next_link += 1;
        let primary = self.target.endpoint(host);
        let shard = Shard::of_cluster(
            LinkId(self.next_link),
            host.to_string().into(),
            Topology::of_cluster(Some(primary.into()), self.hints.clone()),
            self.target.user(),
            self.common.clone(),
        );
        let shard = Arc::new(shard);
        self.shards.insert(host.clone(), shard.clone());
        shard
    }
}
