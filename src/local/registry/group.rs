//! The sockets on one topic: of a user, or in a room.

use indexmap::IndexMap;

use super::Member;
use crate::model::id::SocketId;

#[derive(Debug)]
pub(super) struct Group<M> {
    /// For a user: its sockets and reservations. Unused for a room.
    pub(super) places: usize,
    members: Members<M>,
}

/// Nearly every user has one socket here, so one needs no map.
#[derive(Debug)]
enum Members<M> {
    None,
    One(M),
    /// Boxed, so that the many groups of one stay small.
    Many(Box<IndexMap<SocketId, M>>),
}

impl<M: Member> Group<M> {
    /// Adds a member. Whether it is the first.
    pub(super) fn add(&mut self, member: M) -> bool {
        match std::mem::replace(&mut self.members, Members::None) {
            Members::None => {
                self.members = Members::One(member);
                true
            }
            Members::One(first) => {
                let members = IndexMap::from([first, member].map(|m| (m.id(), m)));
                self.members = Members::Many(Box::new(members));
                false
            }
            Members::Many(mut members) => {
                members.insert(member.id(), member);
                self.members = Members::Many(members);
                false
            }
        }
    }

    /// Takes a member out. Whether it was the last.
    pub(super) fn remove(&mut self, id: SocketId) -> bool {
        match &mut self.members {
            Members::One(member) if member.id() == id => self.members = Members::None,
            Members::Many(members) => {
                members.swap_remove(&id);
                if members.is_empty() {
                    self.members = Members::None;
                } else {
                    return false;
                }
            }
            Members::None | Members::One(_) => return false,
        }
        true
    }

    pub(super) fn each<'a>(&'a self, mut visit: impl FnMut(&'a M)) {
        match &self.members {
            Members::None => {}
            Members::One(member) => visit(member),
            Members::Many(members) => members.values().for_each(visit),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self.members, Members::None)
    }

    /// Whether it has neither members nor places.
    pub(super) fn is_unused(&self) -> bool {
        self.places == 0 && self.is_empty()
    }
}

impl<M> Default for Group<M> {
    fn default() -> Self {
        Self {
            places: 0,
            members: Members::None,
        }
    }
}
