//! How many sockets a user may have in the whole cluster.

mod limit;
mod seats;

pub use self::limit::OverLimit;
pub(crate) use self::limit::SeatLimit;
pub(crate) use self::seats::{Decision, Seats};
