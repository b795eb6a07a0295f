//! Plain values, of which everything else speaks.

pub(crate) mod close;
pub(crate) mod code;
#[cfg(feature = "deflate")]
pub(crate) mod compression;
pub(crate) mod delivery;
pub(crate) mod description;
pub(crate) mod error;
pub(crate) mod form;
pub(crate) mod gap;
pub(crate) mod health;
pub(crate) mod history;
pub(crate) mod id;
pub(crate) mod limits;
pub(crate) mod manner;
pub(crate) mod message;
pub(crate) mod millis;
pub(crate) mod partition;
pub(crate) mod roster;
pub(crate) mod topic;
pub(crate) mod utf8;
pub(crate) mod vitals;
