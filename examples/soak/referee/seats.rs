//! Judges the limit of a user's sockets in the cluster, by the sockets that surely are open.

use std::collections::HashMap;

use axum_cluster::SocketId;

use super::Referee;
use crate::words::{LIMIT, Life, clock};

/// A socket of a user who wants more than allowed: it has seen its welcome, and has not begun to close.
#[derive(Clone, Copy, Debug)]
pub struct Seat {
    pub node: Life,
    pub socket: SocketId,
    /// Before its upgrade was asked for, and after its welcome.
    pub begun: u64,
    pub entered: u64,
    /// Its node did not count its upgrade as unchecked.
    pub is_checked: bool,
}

#[derive(Debug)]
pub struct Seats {
    taken: HashMap<u16, Vec<Seat>>,
    /// Upgrades that began before this may have been admitted wrongly.
    excused_until: u64,
}

impl Default for Seats {
    /// Excuses everything, until the cluster is up.
    fn default() -> Self {
        Self {
            taken: HashMap::new(),
            excused_until: u64::MAX,
        }
    }
}

impl Seats {
    pub fn excuse(&mut self, until: u64) {
        self.excused_until = until;
    }

    /// Takes a seat. Whether that is one too many: of the sockets that are open at this moment one was
    /// admitted last, when all the others had their seats. It is among those that were welcomed after the
    /// last of them asked.
    fn take(&mut self, user: u16, seat: Seat) -> bool {
        let taken = self.taken.entry(user).or_default();
        taken.push(seat);
        let last_begun = taken.iter().map(|seat| seat.begun).max();
        let mut last = taken.iter().filter(|seat| Some(seat.entered) >= last_begun);
        taken.len() > LIMIT && last.all(|seat| seat.is_checked && seat.begun > self.excused_until)
    }

    fn leave(&mut self, user: u16, socket: SocketId) {
        if let Some(taken) = self.taken.get_mut(&user) {
            taken.retain(|seat| seat.socket != socket);
        }
    }
}

impl Referee {
    /// Until this time, a node or Redis may not know of all sockets.
    pub fn excuse_limits(&mut self, until: u64) {
        self.seats.excuse(until);
    }

    /// An upgrade was answered.
    pub fn limited(&mut self, node: Life, begun: u64, is_checked: bool) {
        self.tally.upgrades += 1;
        if is_checked {
            let node = self.nodes.entry(node).or_default();
            node.counted = node.counted.max(begun);
        } else {
            self.tally.unchecked += 1;
        }
    }

    pub fn sits(&mut self, user: u16, seat: Seat) {
        if self.seats.take(user, seat) {
            self.tally.over_limit += 1;
            let details = format!(
                "{} sockets of user {user}, the last {} of {}, asked {}, entered {}",
                self.seats.taken[&user].len(),
                seat.socket,
                seat.node,
                clock(seat.begun),
                clock(seat.entered)
            );
            let which = (seat.node, usize::from(user), seat.entered);
            self.describe("over the limit", which, &details);
        }
    }

    /// It begins to close, or was ended.
    pub fn rises(&mut self, user: u16, socket: SocketId) {
        self.seats.leave(user, socket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat(number: u64, begun: u64, entered: u64, is_checked: bool) -> Seat {
        Seat {
            node: Life { node: 0, life: 1 },
            socket: format!("0000000000000001-{number:x}")
                .parse()
                .expect("an id"),
            begun,
            entered,
            is_checked,
        }
    }

    fn full() -> Seats {
        let mut seats = Seats::default();
        seats.excuse(0);
        for n in 1..=LIMIT as u64 {
            assert!(!seats.take(7, seat(n, 10 * n, 10 * n + 5, true)));
        }
        seats
    }

    #[test]
    fn one_more_is_condemned_unless_it_was_unchecked_or_excused() {
        assert!(full().take(7, seat(99, 1000, 1001, true)));
        assert!(
            !full().take(8, seat(99, 1000, 1001, true)),
            "another user's"
        );
        assert!(!full().take(7, seat(99, 1000, 1001, false)));
        let mut excused = full();
        excused.excuse(1000);
        assert!(!excused.take(7, seat(99, 1000, 1001, true)));
        let mut left = full();
        left.leave(7, seat(1, 0, 0, true).socket);
        assert!(!left.take(7, seat(99, 1000, 1001, true)));
    }

    #[test]
    fn an_unchecked_one_excuses_only_those_that_entered_with_it() {
        let mut seats = full();
        assert!(!seats.take(7, seat(90, 1000, 1010, false)));
        assert!(!seats.take(7, seat(91, 1005, 1011, true)), "who was first?");
        assert!(seats.take(7, seat(92, 1020, 1030, true)));
    }
}
