//! What this process holds for its clients.

pub(crate) mod expiry;
pub(crate) mod heartbeat;
pub(crate) mod origin;
pub(crate) mod registry;
pub(crate) mod socket;
