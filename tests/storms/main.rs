//! Thousands at once: drains, herds, floods and restores (rows L8, C1, C8 and B11). A binary of its own,
//! since it counts every byte the process holds and needs most of its descriptors.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod drain;
mod flood;
mod herd;
mod repair;
mod restore;
mod resume;

use std::alloc::System;
use std::time::Duration;

use cap::Cap;
use tokio::sync::{Mutex, MutexGuard};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

static TURN: Mutex<()> = Mutex::const_new(());

/// For three thousand sockets: two each, since both its ends are in this process.
const DESCRIPTORS: u64 = 8192;

/// Waits for its turn: storms would count each other's bytes. Makes room for the sockets of one.
async fn alone(descriptors: u64) -> MutexGuard<'static, ()> {
    let turn = TURN.lock().await;
    let limit = rlimit::increase_nofile_limit(descriptors).expect("the limit can be read");
    assert!(
        limit >= descriptors,
        "{limit} descriptors are too few: raise `ulimit -Hn`"
    );
    turn
}

/// How many bytes more than at its beginning were held at once while something of this row happened.
async fn growth<T>(row: &str, what: impl Future<Output = T>) -> (T, usize) {
    let before = ALLOCATOR.allocated();
    let mut most = before;
    let watching = async {
        loop {
            most = most.max(ALLOCATOR.allocated());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let happened = tokio::select! {
        happened = what => happened,
        () = watching => unreachable!("it watches for ever"),
    };
    let growth = most.max(ALLOCATOR.allocated()) - before;
    println!("growth\t{row}\t{growth}");
    (happened, growth)
}
