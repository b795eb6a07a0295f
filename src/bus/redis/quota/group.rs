//! A group of users whose seats live together: one ledger, and keys that are all on one primary.

use std::sync::Arc;

use parking_lot::Mutex;

use super::ledger::Ledger;
use crate::bus::redis::connection::Connector;
use crate::bus::redis::topology::Topology;
use crate::model::id::NodeId;
use crate::quota::SeatLimit;

#[derive(Debug)]
pub(super) struct SeatGroup {
    /// How its keys begin.
    pub(super) leases: String,
    pub(super) ledger: Mutex<Ledger>,
    route: Mutex<SeatRoute>,
}

/// Where the keys are, and what the task does not know of that yet.
#[derive(Debug)]
struct SeatRoute {
    connector: Connector,
    moved: bool,
    unverified: bool,
}

/// What became of where the keys are.
#[derive(Debug)]
pub(super) struct RouteNews {
    /// There, if they are elsewhere now.
    pub(super) moved: Option<Connector>,
    /// The primary is reached anew, and may have forgotten them.
    pub(super) unverified: bool,
}

impl SeatGroup {
    pub(super) fn new(
        leases: String,
        connector: Connector,
        node: NodeId,
        limit: SeatLimit,
    ) -> Self {
        Self {
            leases,
            ledger: Mutex::new(Ledger::new(node, limit)),
            route: Mutex::new(SeatRoute {
                connector,
                moved: false,
                unverified: false,
            }),
        }
    }

    /// The keys are there; returns whether they were elsewhere.
    pub(super) fn follow(&self, connector: &Connector) -> bool {
        let mut route = self.route.lock();
        if route.connector.leads_as(connector) {
            return false;
        }
        let left = std::mem::replace(&mut route.connector, connector.clone());
        route.moved = true;
        drop(route);
        drop(left);
        true
    }

    /// This primary is reached anew; returns whether the keys are there.
    pub(super) fn verify(&self, topology: &Arc<Topology>) -> bool {
        let mut route = self.route.lock();
        let is_there = route.connector.leads_by(topology);
        route.unverified |= is_there;
        is_there
    }

    pub(super) fn connector(&self) -> Connector {
        self.route.lock().connector.clone()
    }

    pub(super) fn take_news(&self) -> RouteNews {
        let mut route = self.route.lock();
        let moved = std::mem::take(&mut route.moved).then(|| route.connector.clone());
        let unverified = std::mem::take(&mut route.unverified);
        RouteNews { moved, unverified }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::quota::OverLimit;

    #[test]
    fn where_the_keys_are_is_told_once() {
        let connector = || {
            let topology = Arc::new(Topology::at("redis://127.0.0.1:1"));
            let connector = Connector::new(topology.clone(), Duration::ZERO);
            (topology, connector)
        };
        let ((one, first), (two, second)) = (connector(), connector());
        let (sockets, over) = (1, OverLimit::Refuse);
        let limit = SeatLimit { sockets, over };
        let group = SeatGroup::new("x".into(), first.clone(), NodeId(1), limit);
        assert!(!group.follow(&first.clone()), "it is there");
        assert!(group.take_news().moved.is_none());
        assert!(group.verify(&one) && !group.verify(&two));
        assert!(group.take_news().unverified && !group.take_news().unverified);
        assert!(group.follow(&second));
        assert!(group.connector().leads_as(&second));
        let news = group.take_news();
        assert!(news.moved.is_some_and(|to| to.leads_as(&second)) && !news.unverified);
        assert!(group.take_news().moved.is_none());
        assert!(group.verify(&two) && !group.verify(&one));
    }
}
