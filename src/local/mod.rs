//! What this process holds for its clients.

pub(crate) mod socket;
