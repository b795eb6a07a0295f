//! How many sockets a user may have in the whole cluster.

mod limit;
mod seats;

pub use self::limit::OverLimit;
pub(crate) use self::limit::SlotLimit;
pub(crate) use self::seats::{Claim, Slots};
