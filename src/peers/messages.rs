//! What the app tells its own processes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::counts::Counters;
use crate::home::Ground;
use crate::model::id::NodeId;
use crate::model::message::Message;
use crate::readers::{ReaderNews, Readers, named};

/// A message to the nodes, of [`Cluster::to_nodes`](crate::Cluster::to_nodes).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct NodeMessage {
    /// The node that sent it, this one perhaps; none for another program's.
    pub from: Option<NodeId>,
    /// What it said.
    pub message: Message,
}

named! {
    /// The messages to the nodes that come from now on. A stream, made by
    /// [`Cluster::node_messages`](crate::Cluster::node_messages).
    NodeMessages of NodeMessage
}

impl NodeMessages {
    /// How many messages this reader has lost, each time the oldest: it was more than 256 behind. `gaps` tells of what did not
    /// come here at all; whoever keeps a cache empties it after either.
    pub fn lost(&self) -> u64 {
        self.0.lost()
    }
}

/// Who lags loses the oldest, which is counted.
impl ReaderNews for NodeMessage {
    const MOST: usize = 256;

    fn make_room(unread: &mut VecDeque<Self>) -> bool {
        unread.pop_front().is_some()
    }
}

/// Who reads what is sent to the nodes.
#[derive(Debug)]
pub(crate) struct MessageReaders {
    node: NodeId,
    counters: Arc<Counters>,
    readers: Readers<NodeMessage>,
}

impl MessageReaders {
    pub(super) fn new(ground: &Ground) -> Self {
        Self {
            node: ground.node,
            counters: ground.counters.clone(),
            readers: Readers::default(),
        }
    }

    pub(crate) fn read(&self) -> NodeMessages {
        NodeMessages::of(self.readers.read())
    }

    /// Nothing more will come.
    pub(crate) fn end(&self) {
        self.readers.end();
    }

    /// Tells who reads here; how many.
    pub(crate) fn tell(&self, from: Option<NodeId>, message: Message) -> usize {
        let (told, lost) = self.readers.tell(&NodeMessage { from, message });
        if lost > 0 {
            let counter = &self.counters.node_messages_lost;
            counter.fetch_add(lost as u64, Relaxed);
            tracing::debug!(node = %self.node, lost, "who reads the messages to the nodes lags more than 256 behind, and lost the oldest");
        }
        told
    }
}
