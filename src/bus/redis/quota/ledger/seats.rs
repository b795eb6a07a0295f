//! The seats that this node's sockets have, or wait for.

use std::collections::HashMap;
use std::fmt::Write;

use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::model::topic::Topic;
use crate::quota::Decision;

#[derive(Debug, Default)]
pub(super) struct LedgerSeats {
    users: HashMap<Topic, SmallVec<[Seat; 1]>>,
}

#[derive(Debug)]
struct Seat {
    number: u64,
    stage: SeatStage,
}

/// Drawn in [`ledger`](super).
#[derive(Debug)]
pub(super) enum SeatStage {
    Waiting(oneshot::Sender<Decision>),
    /// Since when, in microseconds: by Redis' clock, or in an outage by this machine's.
    Held(u64),
    Lost,
}

impl Seat {
    fn held_since(&self) -> Option<u64> {
        match self.stage {
            SeatStage::Held(since) => Some(since),
            SeatStage::Waiting(_) | SeatStage::Lost => None,
        }
    }
}

impl LedgerSeats {
    pub(super) fn users(&self) -> impl Iterator<Item = &Topic> {
        self.users.keys()
    }

    pub(super) fn insert(&mut self, user: &Topic, number: u64, stage: SeatStage) {
        let seats = self.users.entry(user.clone()).or_default();
        seats.push(Seat { number, stage });
    }

    pub(super) fn remove(&mut self, user: &Topic, number: u64) -> Option<SeatStage> {
        let seats = self.users.get_mut(user)?;
        let at = seats.iter().position(|seat| seat.number == number)?;
        let seat = seats.swap_remove(at);
        if seats.is_empty() {
            self.users.remove(user);
        }
        Some(seat.stage)
    }

    pub(super) fn is_waiting(&self, user: &Topic, number: u64) -> bool {
        let waiting =
            |seat: &Seat| seat.number == number && matches!(seat.stage, SeatStage::Waiting(_));
        self.of(user).iter().any(waiting)
    }

    pub(super) fn take_waiting(
        &mut self,
        user: &Topic,
        number: u64,
    ) -> Option<oneshot::Sender<Decision>> {
        if !self.is_waiting(user, number) {
            return None;
        }
        match self.remove(user, number)? {
            SeatStage::Waiting(reply) => Some(reply),
            SeatStage::Held(_) | SeatStage::Lost => None,
        }
    }

    pub(super) fn holds(&self, user: &Topic, number: u64) -> bool {
        let seat = self.of(user).iter().find(|seat| seat.number == number);
        seat.is_some_and(|seat| seat.held_since().is_some())
    }

    /// Since when each is held, the oldest first, and its number.
    pub(super) fn held(&self, user: &Topic) -> Vec<(u64, u64)> {
        let held = self.of(user).iter();
        let mut held: Vec<_> = held
            .filter_map(|seat| Some((seat.held_since()?, seat.number)))
            .collect();
        held.sort_unstable();
        held
    }

    /// Whether it was held until now.
    pub(super) fn lose(&mut self, user: &str, number: u64) -> bool {
        let mut seats = self.users.get_mut(user).into_iter().flatten();
        let seat = seats.find(|seat| seat.number == number && seat.held_since().is_some());
        seat.map(|seat| seat.stage = SeatStage::Lost).is_some()
    }

    /// The seats of a user as Redis keeps them.
    pub(super) fn written(&self, user: &Topic) -> String {
        let mut text = String::new();
        for seat in self.of(user) {
            if let Some(since) = seat.held_since() {
                let _ = write!(text, "{since}:{:x},", seat.number);
            }
        }
        text
    }

    fn of(&self, user: &Topic) -> &[Seat] {
        self.users.get(user).map_or(&[], |seats| seats)
    }
}
