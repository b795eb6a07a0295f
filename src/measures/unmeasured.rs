//! Nothing is measured.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::model::id::NodeId;
use crate::model::vitals::Quantiles;

#[derive(Debug, Default)]
pub(crate) struct Measures;

/// No moment: no clock is read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Since;

impl Since {
    pub(crate) fn now() -> Self {
        Self
    }
}

impl Measures {
    pub(crate) fn sending(&self) -> Option<Since> {
        None
    }

    pub(crate) fn published(&self, _: Since) {}

    pub(crate) fn confirmed(&self, _: Since) {}

    pub(crate) fn probed(&self, _: Instant) {}

    pub(crate) fn fanned_out(&self, _: u64) {}

    pub(crate) fn said_at(&self, _: Since) -> Option<u64> {
        None
    }

    pub(crate) fn heard(&self, _: NodeId, _: u64) -> Option<Since> {
        None
    }

    pub(crate) fn delivered(&self, _: Since) {}

    pub(crate) fn heard_of_others(&self) -> Vec<(NodeId, i64)> {
        Vec::new()
    }

    pub(crate) fn told_by(&self, _: NodeId, _: Option<i64>) {}

    pub(crate) fn forget(&self, _: NodeId) {}

    pub(crate) fn quantiles(&self) -> BTreeMap<String, Quantiles> {
        BTreeMap::new()
    }
}
