//! What this node says of itself.

use std::time::{Duration, SystemTime};

use super::PeerSettings;
use crate::bus::control::{Control, Hello};
use crate::home::Ground;
use crate::local::Sockets;
use crate::model::id::NodeId;
use crate::model::roster::NodeInfo;
use crate::model::topic::TopicKind;

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
    sockets: Sockets,
}

impl Introduction {
    /// Of a node that starts now.
    pub(super) fn new(ground: &Ground, settings: &PeerSettings, sockets: Sockets) -> Self {
        Self {
            node: ground.node,
            shards: ground.bus.shared_by().to_vec(),
            name: settings.name.clone(),
            worker: settings.worker,
            lease: settings.lease,
            histories: settings.histories.told(),
            started_at: SystemTime::now(),
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
        })
    }
}
