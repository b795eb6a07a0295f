//! How many sockets a user may have in the whole cluster.

mod limit;
mod slots;

pub use self::limit::OverLimit;
pub(crate) use self::limit::SlotLimit;
pub(crate) use self::slots::{Claim, Slots};
