//! How many sockets a user may have in the whole cluster, and how much a client may send.

mod buckets;
mod limit;
mod seats;

pub(crate) use self::buckets::{ClientBuckets, InboundLimit};
pub use self::limit::OverLimit;
pub(crate) use self::limit::SeatLimit;
pub(crate) use self::seats::{Decision, Seats};
