//! Which nodes are in the cluster: each says so again and again, and is gone when it has not for a
//! lease.
//!
//! A lease runs only while everything is heard: a silence that is ours is nobody's end. It is the node's own, so that
//! settings may differ while a deploy rolls.
//!
//! ```text
//!               hello                  a goodbye, or a lease without a hello
//!  unknown ----------------> there ------------------------------------------> unknown
//!                            |   ^
//!                            +---+ hello
//! ```

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::id::NodeId;
use crate::model::limits::LONGEST;
use crate::model::roster::NodeInfo;
use crate::model::topic::TopicKind;

/// A node may miss this many of its own hellos but one before it is given up.
pub(crate) const MARGIN: u32 = 3;

#[derive(Debug, Default)]
pub(crate) struct Nodes(HashMap<NodeId, Peer>);

#[derive(Debug)]
struct Peer {
    info: NodeInfo,
    /// The node's own, so that settings may differ while a deploy rolls.
    lease: Duration,
    /// A worker holds no sockets: nobody lists it or waits for it, but it may ask and watch.
    worker: bool,
    /// Not every question on channels of these kinds comes to it.
    refused: Vec<String>,
    heard_at: Instant,
}

impl Nodes {
    /// A node or a worker said hello. Whether it is new.
    pub(crate) fn heard(
        &mut self,
        info: NodeInfo,
        lease: Duration,
        worker: bool,
        now: Instant,
    ) -> bool {
        let peer = Peer {
            info,
            lease: lease.min(LONGEST),
            worker,
            refused: Vec::new(),
            heard_at: now,
        };
        self.0.insert(peer.info.id, peer).is_none()
    }

    /// What Redis refuses a node, as its last hello said.
    pub(crate) fn set_refused(&mut self, node: NodeId, kinds: Vec<String>) {
        if let Some(peer) = self.0.get_mut(&node) {
            peer.refused = kinds;
        }
    }

    /// Whether a question on a channel of this kind comes to all who have to hear it.
    pub(crate) fn hear(&self, kind: TopicKind) -> bool {
        let mut nodes = self.0.values().filter(|peer| !peer.worker);
        !nodes.any(|node| node.refused.iter().any(|one| one == kind.prefix()))
    }

    /// A node said goodbye. Whether it was known.
    pub(crate) fn left(&mut self, node: NodeId) -> bool {
        self.0.remove(&node).is_some()
    }

    /// Removes and returns those that said nothing for a lease, of the time in which we heard everything.
    pub(crate) fn expire(&mut self, (since, until): (Instant, Instant)) -> Vec<NodeId> {
        let expired = self
            .0
            .extract_if(|_, peer| peer.heard_at.max(since) + peer.lease <= until);
        expired.map(|(id, _)| id).collect()
    }

    /// Whoever says hello, workers too.
    pub(crate) fn contains(&self, id: NodeId) -> bool {
        self.0.contains_key(&id)
    }

    /// What it is called, if it has said hello.
    pub(crate) fn name(&self, id: NodeId) -> Option<&str> {
        self.0.get(&id).map(|peer| &*peer.info.name)
    }

    pub(crate) fn is_worker(&self, id: NodeId) -> bool {
        self.0.get(&id).is_some_and(|peer| peer.worker)
    }

    /// How many there are, workers among them.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The nodes, which may hold sockets.
    pub(crate) fn ids(&self) -> impl Iterator<Item = NodeId> {
        self.infos().map(|info| info.id)
    }

    pub(crate) fn infos(&self) -> impl Iterator<Item = &NodeInfo> {
        let nodes = self.0.values().filter(|peer| !peer.worker);
        nodes.map(|peer| &peer.info)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const LEASE: Duration = Duration::from_secs(15);

    fn node(id: u64) -> NodeInfo {
        NodeInfo {
            id: NodeId(id),
            name: String::new(),
            started_at: SystemTime::UNIX_EPOCH,
            sockets: 0,
            users: 0,
            version: String::new(),
        }
    }

    #[test]
    fn a_node_is_there_until_its_lease_runs_out_or_it_leaves() {
        let (mut nodes, start) = (Nodes::default(), Instant::now());
        assert!(nodes.heard(node(1), LEASE, false, start));
        assert!(nodes.heard(node(2), LEASE, false, start));
        assert!(!nodes.heard(node(1), LEASE, false, start + LEASE / 3));
        let heard = (start, start + LEASE);
        assert_eq!(nodes.expire(heard), [NodeId(2)]);
        assert_eq!(nodes.expire(heard), []);
        assert!(nodes.left(NodeId(1)) && !nodes.left(NodeId(1)));
        assert_eq!(nodes.ids().count(), 0);
    }

    #[test]
    fn our_own_deafness_costs_nobody_the_lease() {
        let (mut nodes, start) = (Nodes::default(), Instant::now());
        nodes.heard(node(1), LEASE, false, start);
        let back = start + LEASE * 10;
        assert_eq!(nodes.expire((back, back)), []);
        assert_eq!(nodes.expire((back, back + LEASE / 2)), []);
        assert_eq!(nodes.expire((back, back + LEASE)), [NodeId(1)]);
    }

    #[test]
    fn who_is_refused_channels_does_not_hear_every_question() {
        let (mut nodes, now) = (Nodes::default(), Instant::now());
        for (id, worker) in [(1, false), (2, true)] {
            nodes.heard(node(id), LEASE, worker, now);
            nodes.set_refused(NodeId(id), vec!["r:".into(), "later".into()]);
            let hears = [TopicKind::Room, TopicKind::User].map(|kind| nodes.hear(kind));
            assert_eq!(hears, [worker, true]);
            nodes.heard(node(id), LEASE, worker, now);
            assert!(nodes.hear(TopicKind::Room), "it says so again and again");
        }
    }

    #[test]
    fn a_worker_is_a_member_and_no_node() {
        let (mut nodes, start) = (Nodes::default(), Instant::now());
        assert!(nodes.heard(node(1), LEASE, false, start));
        assert!(nodes.heard(node(2), LEASE, true, start));
        assert_eq!(nodes.ids().collect::<Vec<_>>(), [NodeId(1)]);
        assert_eq!(nodes.infos().count(), 1);
        assert!(nodes.contains(NodeId(2)) && nodes.is_worker(NodeId(2)));
        assert!(!nodes.is_worker(NodeId(1)) && !nodes.is_worker(NodeId(3)));
        assert!(nodes.left(NodeId(2)), "its end is noticed");
    }
}
