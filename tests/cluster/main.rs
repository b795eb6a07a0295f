//! The crate as its users meet it: real servers, real clients, a real Redis.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

/// Defines each test for the memory bus and for Redis.
macro_rules! on_every_bus {
    ($($name:ident)*) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(crate::support::Lab::memory()).await;
            })*
        }

        mod redis {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(crate::support::Lab::redis()).await;
            })*
        }
    };
}

mod acl;
mod bus;
mod clients;
mod delivery;
mod engine;
mod errors;
mod events;
mod face;
mod failover;
mod faults;
mod gaps;
mod history;
mod interop;
mod lifecycle;
mod links;
mod living;
#[cfg(feature = "metrics")]
mod metrics;
mod operators;
mod options;
mod order;
mod presence;
mod programs;
mod questions;
mod repair;
mod resume;
mod roster;
mod runtimes;
mod seats;
mod sentinel;
mod slots;
mod spool;
mod subscriptions;
mod tls;
mod topologies;
mod types;
mod workers;
