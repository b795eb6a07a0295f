//! The sockets on one topic: of a user, or in a room.

use std::mem::replace;

use indexmap::IndexMap;
use indexmap::map::Values;

use super::{Member, take_out};

/// For a user its places are its sockets and reservations; for a room there are none. Beside the members' kind they cost
/// nothing.
#[derive(Debug)]
pub(super) enum Group<M> {
    None {
        places: u32,
    },
    /// Nearly every user has one socket here, so one needs no map.
    One {
        places: u32,
        member: M,
    },
    /// By their numbers. Boxed, so that the many groups of one stay small.
    Many {
        places: u32,
        members: Box<IndexMap<u64, M>>,
    },
}

impl<M: Member> Group<M> {
    /// Adds a member. Whether it is the first.
    pub(super) fn add(&mut self, member: M) -> bool {
        let places = self.places();
        let is_first = self.is_empty();
        *self = match replace(self, Self::None { places }) {
            Self::None { .. } => Self::One { places, member },
            Self::One { member: first, .. } => {
                let members = [first, member].map(|member| (member.id().number, member));
                let members = Box::new(IndexMap::from(members));
                Self::Many { places, members }
            }
            Self::Many { mut members, .. } => {
                members.insert(member.id().number, member);
                Self::Many { places, members }
            }
        };
        is_first
    }

    /// Takes a member out. Whether it was the last.
    pub(super) fn remove(&mut self, number: u64) -> bool {
        let places = self.places();
        let is_last = match self {
            Self::None { .. } => false,
            Self::One { member, .. } => member.id().number == number,
            Self::Many { members, .. } => {
                take_out(members, number);
                members.is_empty()
            }
        };
        if is_last {
            *self = Self::None { places };
        }
        is_last
    }

    /// The one, and the many.
    pub(super) fn members(&self) -> (Option<&M>, Values<'_, u64, M>) {
        match self {
            Self::None { .. } => (None, Values::default()),
            Self::One { member, .. } => (Some(member), Values::default()),
            Self::Many { members, .. } => (None, members.values()),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::None { .. })
    }

    /// Whether it has neither members nor places.
    pub(super) fn is_unused(&self) -> bool {
        self.is_empty() && self.places() == 0
    }
}

impl<M> Group<M> {
    pub(super) fn places(&self) -> u32 {
        let (Self::None { places } | Self::One { places, .. } | Self::Many { places, .. }) = self;
        *places
    }

    pub(super) fn places_mut(&mut self) -> &mut u32 {
        let (Self::None { places } | Self::One { places, .. } | Self::Many { places, .. }) = self;
        places
    }
}

impl<M> Default for Group<M> {
    fn default() -> Self {
        Self::None { places: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_pointer_width = "64")]
    #[test]
    fn it_is_small() {
        assert_eq!(size_of::<Group<Box<u8>>>(), 16);
    }
}
