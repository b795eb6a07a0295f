//! The crate as its users meet it: real servers, real clients, a real Redis.

#[path = "../support/mod.rs"]
mod support;

mod bus;
mod clients;
mod delivery;
mod face;
mod interop;
mod lifecycle;
