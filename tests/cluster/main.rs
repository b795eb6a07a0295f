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

/// Defines a test for each way in which there is more than one Redis. Their servers take seconds to start, so that
/// all of these share them, one after the other, each in a namespace of its own.
macro_rules! on_every_topology {
    ($($name:ident)*) => {
        mod topologies {
            use crate::support::Lab;
            use crate::support::redis::RedisServer;
            use crate::support::redis::redis_cluster::RedisCluster;
            use crate::support::redis::sentinels::Sentinels;
            use axum_cluster::Backend;

            #[tokio::test(flavor = "multi_thread")]
            async fn sentinels() {
                let servers = Sentinels::start(1, 3);
                all(&Backend::redis(servers.url()).unwrap()).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn cluster() {
                let servers = RedisCluster::start(3, 0);
                all(&Backend::redis(servers.url()).unwrap()).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn shards() {
                let servers = [(); 3].map(|()| RedisServer::start());
                let urls = servers.each_ref().map(RedisServer::url);
                all(&Backend::shards(urls).unwrap()).await;
            }

            async fn all(backend: &Backend) {
                $(
                    println!("{}", stringify!($name));
                    let lab = Lab::on(backend.clone(), stringify!($name));
                    Box::pin(super::$name(lab)).await;
                )*
            }
        }
    };
}

mod acl;
mod bus;
mod census;
mod clients;
#[cfg(feature = "deflate")]
mod compression;
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
mod line;
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
