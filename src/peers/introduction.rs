//! What this node says of itself.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use super::PeerSettings;
use super::nodes::Nodes;
use crate::bus::Publish;
use crate::bus::control::{Control, Hello};
use crate::bus::reception::Reception;
use crate::counts::{Counters, Gauges, Stats};
use crate::home::Ground;
use crate::local::Sockets;
use crate::model::id::NodeId;
use crate::model::roster::NodeInfo;
use crate::model::topic::TopicKind;
use crate::model::vitals::Vitals;

#[derive(Debug)]
pub(super) struct Introduction {
    node: NodeId,
    name: String,
    worker: bool,
    lease: Duration,
    /// As it knows the Redises that share its topics.
    shards: Vec<String>,
    /// What it keeps of what is sent to whom.
    histories: Vec<String>,
    started_at: SystemTime,
    started: Instant,
    bus: Arc<dyn Publish>,
    reception: Arc<Reception>,
    counters: Arc<Counters>,
    nodes: Arc<Mutex<Nodes>>,
    sockets: Sockets,
}

impl Introduction {
    /// The introduction of a node that starts now.
    pub(super) fn new(
        ground: &Ground,
        settings: &PeerSettings,
        nodes: &Arc<Mutex<Nodes>>,
        sockets: Sockets,
    ) -> Self {
        Self {
            node: ground.node,
            shards: ground.bus.shared_by().to_vec(),
            name: settings.name.clone(),
            worker: settings.worker,
            lease: settings.lease,
            histories: settings.histories.told(),
            started_at: SystemTime::now(),
            started: Instant::now(),
            bus: ground.bus.clone(),
            reception: ground.reception.clone(),
            counters: ground.counters.clone(),
            nodes: nodes.clone(),
            sockets,
        }
    }

    pub(super) fn shards(&self) -> &[String] {
        &self.shards
    }

    pub(super) fn histories(&self) -> &[String] {
        &self.histories
    }

    pub(super) fn info(&self) -> NodeInfo {
        let sizes = self.sockets.sizes();
        NodeInfo {
            id: self.node,
            name: self.name.clone(),
            started_at: self.started_at,
            sockets: sizes.sockets as u64,
            users: sizes.users as u64,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    pub(super) fn stats(&self) -> Stats {
        let (shards, up) = self.reception.links();
        let sizes = self.sockets.sizes();
        self.counters.stats(Gauges {
            sockets: sizes.sockets as u64,
            users: sizes.users as u64,
            rooms: sizes.rooms as u64,
            nodes: 1 + self.nodes.lock().ids().count() as u64,
            bus_probe_age_millis: self.reception.proven_at().elapsed().as_millis() as u64,
            bus_shards: shards as u64,
            bus_shards_up: up as u64,
            bus_publish_queue: self.bus.queued() as u64,
            spool_waiting: self.bus.spooled() as u64,
        })
    }

    /// What is said to who looks at a dashboard: a worker is no node.
    pub(super) fn vitals(&self) -> Option<Vitals> {
        let node = self.as_node()?;
        let numbers = self.stats().iter().filter(|(.., value)| *value > 0);
        Some(Vitals {
            node,
            up_millis: self.started.elapsed().as_millis() as u64,
            health: json!(self.reception.health()),
            numbers: numbers
                .map(|(name, _, value)| (name.to_owned(), value))
                .collect(),
            times: self.counters.measures.quantiles(),
        })
    }

    /// What is said to who asks for the nodes: a worker is none.
    pub(super) fn as_node(&self) -> Option<NodeInfo> {
        (!self.worker).then(|| self.info())
    }

    pub(super) fn hello(&self, reply: bool, refused: &[TopicKind]) -> Control {
        let refused = refused.iter().map(|kind| kind.prefix().to_owned());
        Control::Hello(Hello {
            node: self.info(),
            lease: self.lease.as_millis() as u64,
            reply,
            worker: self.worker,
            refused: refused.collect(),
            shards: self.shards.clone(),
            histories: self.histories.clone(),
            heard: self.counters.measures.heard_of_others(),
        })
    }
}
