//! Seats of users, decided by the hub at once.

use std::sync::Weak;

use futures::FutureExt;
use futures::future::{self, BoxFuture};

use super::MemoryBus;
use crate::model::id::SocketId;
use crate::model::topic::Topic;
use crate::quota::{Decision, Seats};

impl Seats for MemoryBus {
    fn claim(&self, user: &Topic, number: u64) -> BoxFuture<'_, Decision> {
        // Cut off, a node counts its own, as without Redis.
        let checked = !self.hub.faults.read().is_cut(self.node);
        let counts = |socket: &SocketId| checked || socket.node == self.node;
        let mut seats = self.hub.seats.lock();
        let held = seats.entry(self.namespace.channel(user)).or_default();
        let count = held.iter().filter(|socket| counts(socket)).count();
        let room = self.limit.map_or(Some(0), |limit| limit.make_room(count));
        let replaced = room.map(|over| {
            let oldest = held.iter().copied().filter(counts).take(over);
            let replaced: Vec<SocketId> = oldest.collect();
            held.retain(|socket| !replaced.contains(socket));
            held.push(self.socket(number));
            replaced
        });
        drop(seats);
        let granted = replaced.map(|replaced| {
            let (own, others): (Vec<SocketId>, _) = replaced
                .into_iter()
                .partition(|socket| socket.node == self.node);
            let listener = self.listener.read().as_ref().and_then(Weak::upgrade);
            if let Some(listener) = listener {
                own.iter()
                    .for_each(|socket| listener.replaced(socket.number));
            }
            others
        });
        future::ready(Decision { granted, checked }).boxed()
    }

    fn release(&self, user: &Topic, number: u64) {
        let channel = self.namespace.channel(user);
        let mut seats = self.hub.seats.lock();
        let Some(held) = seats.get_mut(&channel) else {
            return;
        };
        held.retain(|socket| *socket != self.socket(number));
        if held.is_empty() {
            seats.remove(&channel);
        }
    }

    fn holds(&self, user: &Topic, number: u64) -> bool {
        let seats = self.hub.seats.lock();
        let held = seats.get(&self.namespace.channel(user));
        held.is_some_and(|held| held.contains(&self.socket(number)))
    }
}
