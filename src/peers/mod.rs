//! The other nodes of the cluster.

pub(crate) mod gather;
pub(crate) mod members;
pub(crate) mod share;
