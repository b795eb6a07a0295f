//! The rooms of one socket.

use std::mem::take;

use indexmap::IndexSet;

use crate::model::topic::Topic;

/// Nearly every socket is in a few, and those take little memory.
#[derive(Debug)]
pub(crate) enum Rooms {
    Few(Box<[Topic]>),
    /// Boxed, so that a socket in none stays small.
    Many(Box<IndexSet<Topic>>),
}

impl Rooms {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Topic> {
        let (few, many) = match self {
            Self::Few(rooms) => (Some(rooms.iter()), None),
            Self::Many(rooms) => (None, Some(rooms.iter())),
        };
        few.into_iter().flatten().chain(many.into_iter().flatten())
    }

    pub(super) fn contains(&self, room: &Topic) -> bool {
        match self {
            Self::Few(rooms) => rooms.contains(room),
            Self::Many(rooms) => rooms.contains(room),
        }
    }

    /// Adds a room. Whether it is new.
    pub(super) fn insert(&mut self, room: &Topic) -> bool {
        match self {
            Self::Few(rooms) if rooms.contains(room) => return false,
            Self::Few(rooms) => {
                let rooms = take(rooms).into_iter().chain([room.clone()]);
                *self = match rooms.size_hint().0 <= FEW_ROOMS {
                    true => Self::Few(rooms.collect()),
                    false => Self::Many(Box::new(rooms.collect())),
                };
            }
            Self::Many(rooms) => return rooms.insert(room.clone()),
        }
        true
    }

    /// Takes a room out. Whether it was there.
    pub(super) fn remove(&mut self, room: &Topic) -> bool {
        match self {
            Self::Few(rooms) => {
                let before = rooms.len();
                let rest = take(rooms).into_iter().filter(|joined| joined != room);
                *rooms = rest.collect();
                rooms.len() < before
            }
            Self::Many(rooms) => rooms.swap_remove(room),
        }
    }
}

impl Default for Rooms {
    fn default() -> Self {
        Self::Few(Box::default())
    }
}

/// So few are found as fast by looking at each as by a hash, which would cost every socket memory too.
const FEW_ROOMS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_in_many_rooms_leaves_and_comes_back() {
        let mut rooms = Rooms::default();
        let names: Vec<_> = (0..2 * FEW_ROOMS)
            .map(|n| Topic::room(&n.to_string()).unwrap())
            .collect();
        for name in &names {
            assert!(rooms.insert(name) && !rooms.insert(name));
        }
        assert!(names.iter().eq(rooms.iter()));
        for name in &names {
            assert!(rooms.contains(name) && rooms.remove(name));
            assert!(!rooms.contains(name) && !rooms.remove(name));
        }
        assert!(rooms.iter().next().is_none() && rooms.insert(&names[0]));
        assert_eq!(size_of::<Rooms>(), size_of::<Box<[Topic]>>());
    }
}
