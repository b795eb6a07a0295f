//! What a socket has not received though later messages came, or none will.

use std::collections::VecDeque;

use axum_cluster::SocketId;

use crate::words::{Life, Stamp};

/// Numbers that a socket has not received though later ones came, or none will.
#[derive(Clone, Debug)]
pub struct Missing {
    pub socket: SocketId,
    pub sender: Life,
    pub audience: usize,
    pub from: u64,
    pub to: u64,
    /// Owed only if sent after this …
    pub since: u64,
    /// … and returned before this.
    pub until: u64,
    pub noticed: u64,
}

/// Takes a number that came late out of what is missing; whether it was.
pub fn fill(missing: &mut VecDeque<Missing>, socket: SocketId, stamp: Stamp) -> bool {
    let Stamp {
        sender,
        audience,
        number,
        ..
    } = stamp;
    let found = missing.iter().position(|missing| {
        (missing.socket, missing.sender, missing.audience) == (socket, sender, audience)
            && (missing.from..=missing.to).contains(&number)
    });
    let Some(found) = found.and_then(|at| missing.remove(at)) else {
        return false;
    };
    let before = Missing {
        to: number - 1,
        ..found.clone()
    };
    let after = Missing {
        from: number + 1,
        ..found
    };
    missing.extend(
        [before, after]
            .into_iter()
            .filter(|rest| rest.from <= rest.to),
    );
    true
}
