//! Every socket whose stream is not gone, in the order of the sweep; and whose handlers want to know what others do to
//! their rooms.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;
use parking_lot::Mutex;

use super::CHUNK;
use super::moves::{Move, Moves};
use super::registry::take_out;
use super::socket::{Sender, SweepEnd};
use crate::model::id::SocketId;
use crate::readers::Readers;

#[derive(Debug, Default)]
pub(super) struct Live {
    sockets: Mutex<IndexMap<u64, SweepEnd>>,
    moves: Mutex<HashMap<u64, Arc<Readers<Move>>>>,
}

impl Live {
    pub(super) fn insert(&self, number: u64, end: SweepEnd) {
        self.sockets.lock().insert(number, end);
    }

    /// Its stream is gone.
    pub(super) fn remove(&self, number: u64) {
        // Dropped afterwards: with the last of it its stream is closed.
        let gone = take_out(&mut self.sockets.lock(), number);
        drop(gone);
        let readers = self.moves.lock().remove(&number);
        drop(readers);
    }

    pub(super) fn sender(&self, number: u64) -> Option<Sender> {
        self.sockets.lock().get(&number).map(SweepEnd::sender)
    }

    pub(super) fn all(&self) -> Vec<SweepEnd> {
        self.sockets.lock().values().cloned().collect()
    }

    /// Visits every socket; see [`walk`].
    pub(super) fn visit(&self, slept: Duration, visit: impl FnMut(&SweepEnd)) {
        walk(&self.sockets, slept, visit);
    }

    /// What others do to the rooms of a socket, from now until it is gone.
    pub(super) fn moves(&self, socket: SocketId) -> Moves {
        // Whoever is gone is taken out of both, in this order.
        let sockets = self.sockets.lock();
        let readers = match sockets.contains_key(&socket.number) {
            true => self.moves.lock().entry(socket.number).or_default().clone(),
            false => Arc::default(),
        };
        drop(sockets);
        Moves::of(readers.read())
    }

    /// Somebody else did this to a socket of this node.
    pub(super) fn moved(&self, socket: SocketId, what: &Move) {
        let readers = self.moves.lock().get(&socket.number).cloned();
        if let Some(readers) = readers {
            readers.tell(what);
        }
    }
}

/// Visits all that is there, without holding the lock.
fn walk<T: Clone>(live: &Mutex<IndexMap<u64, T>>, slept: Duration, mut visit: impl FnMut(&T)) {
    // Who leaves moves another to its place, unseen. For that one the next tick is early enough, but its
    // sleep is discounted only now.
    let most = if slept.is_zero() { CHUNK } else { usize::MAX };
    let mut from = 0;
    loop {
        let chunk: Vec<T> = live
            .lock()
            .values()
            .skip(from)
            .take(most)
            .cloned()
            .collect();
        if chunk.is_empty() {
            return;
        }
        from += chunk.len();
        chunk.iter().for_each(&mut visit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::socket::SocketEnds;
    use crate::model::id::NodeId;
    use crate::model::topic::Topic;
    use crate::ws::Agreed;

    const SLEPT: Duration = Duration::from_secs(1);

    #[test]
    fn what_a_crowd_had_is_given_back() {
        let live = Live::default();
        for number in 0..5_000 {
            let id = SocketId {
                node: NodeId(1),
                number,
            };
            let ends = SocketEnds::new(id, "alice".into(), Topic::all(), None, Agreed::NOTHING);
            live.insert(number, ends.sweep);
        }
        let room = || live.sockets.lock().capacity();
        assert!(room() >= 5_000);
        (10..5_000).for_each(|number| live.remove(number));
        assert!(room() < 2_000, "{}", room());
        assert_eq!(live.all().len(), 10);
    }

    #[test]
    fn who_leaves_meanwhile_hides_nobody_from_an_excuse() {
        let live: IndexMap<u64, u64> = (0..1000).map(|number| (number, number)).collect();
        let live = Mutex::new(live);
        let mut visited = Vec::new();
        walk(&live, SLEPT, |number| {
            visited.push(*number);
            live.lock().swap_remove(number);
        });
        assert_eq!(visited, Vec::from_iter(0..1000));
    }

    #[test]
    fn everyone_is_visited_chunk_by_chunk() {
        let live: IndexMap<u64, u64> = (0..1000).map(|number| (number, number)).collect();
        let mut visited = Vec::new();
        walk(&Mutex::new(live), Duration::ZERO, |number| {
            visited.push(*number)
        });
        assert_eq!(visited, Vec::from_iter(0..1000));
    }
}
