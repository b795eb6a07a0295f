//! What a position says, and how it is written: signed, so that nobody goes back in time or reads another's past with one of his
//! own making.
//!
//! ```text
//!  base64url( 1 | flags | clock | socket | user | runs | marks | rooms | HMAC-SHA-256, 80 bits ) ~ number
//! ```
//! The number is that of a message which came after the base was written, on the clock that the base names. It is not signed
//! and need not be: it can only be later, and who lies about it harms himself.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::Missed;
use super::mark::{Clock, Mark, Marks, Number, Run};
use super::position::Position;
use crate::model::id::{NodeId, SocketId};

/// What positions are signed with: the same on all nodes of a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key([u8; Key::BYTES]);

/// A user or a room, without its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NameTag([u8; NameTag::BYTES]);

/// What a position says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    /// Up to where everything of each clock is there.
    pub(crate) marks: Marks,
    /// Which clock the number behind it is of.
    pub(crate) clock: Clock,
    /// Whose it was, so that it gets nothing that it was excepted from.
    pub(crate) socket: Option<SocketId>,
    /// Whose alone it is.
    pub(crate) user: Option<NameTag>,
    /// In which it was.
    pub(crate) rooms: Vec<NameTag>,
    /// There were more than can be named.
    pub(crate) has_more_rooms: bool,
}

impl Key {
    pub(crate) const BYTES: usize = 32;

    #[cfg(any(test, fuzzing, axum_cluster_internals))]
    pub(crate) fn of(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// A key that nobody guesses.
    pub(crate) fn random() -> Self {
        let mut bytes = [0; Self::BYTES];
        getrandom::fill(&mut bytes)
            .expect("the system has random numbers, else it has no TLS either");
        Self(bytes)
    }

    /// Reads a key as it is kept.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
        bytes.try_into().ok().map(Self)
    }

    /// One of two namespaces that share it.
    pub(crate) fn within(&self, namespace: &str) -> Self {
        let mac = self.mac(&[b"namespace", namespace.as_bytes()]);
        Self(mac.finalize().into_bytes().into())
    }

    pub(crate) fn tag(&self, topic: &str) -> NameTag {
        let mac = self.mac(&[b"topic", topic.as_bytes()]).finalize();
        let bytes = mac.into_bytes();
        NameTag(*bytes.first_chunk().expect("it is longer"))
    }

    fn mac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = Hmac::new_from_slice(&self.0).expect("any length will do");
        parts.iter().for_each(|part| mac.update(part));
        mac
    }
}

/// As it is kept, and nowhere else.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// Never shown: who has it can write positions.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl NameTag {
    const BYTES: usize = 8;
}

/// Writes a position. Where it would be too long, rooms are left out, and it says so.
pub(crate) fn write(parts: &Parts, key: &Key) -> Position {
    let mut bytes = Vec::with_capacity(128);
    let rooms = &parts.rooms[..parts.rooms.len().min(MOST_ROOMS)];
    let has_more = parts.has_more_rooms || rooms.len() < parts.rooms.len();
    let flags = [
        (SOCKET, parts.socket.is_some()),
        (USER, parts.user.is_some()),
        (MORE, has_more),
    ];
    let flags = flags.into_iter().filter(|(_, is_set)| *is_set);
    bytes.extend([VERSION, flags.map(|(flag, _)| flag).sum()]);
    bytes.extend(parts.clock.0.to_be_bytes());
    if let Some(socket) = parts.socket {
        bytes.extend(socket.node.0.to_be_bytes());
        bytes.extend(socket.number.to_be_bytes());
    }
    bytes.extend(parts.user.iter().flat_map(|tag| tag.0));
    write_marks(&parts.marks, &mut bytes);
    bytes.extend((rooms.len() as u16).to_be_bytes());
    bytes.extend(rooms.iter().flat_map(|tag| tag.0));
    // Of more clocks than fit nothing can be said, and nothing is understood of what is not there.
    sign(bytes, key)
        .parse()
        .unwrap_or_else(|_| Position::nothing())
}

pub(crate) fn sign(mut said: Vec<u8>, key: &Key) -> String {
    let mac = key.mac(&[&said]).finalize().into_bytes();
    said.extend(&mac[..SIGNATURE]);
    BASE64_URL_SAFE_NO_PAD.encode(said)
}

fn write_marks(marks: &Marks, bytes: &mut Vec<u8>) {
    let mut runs: Vec<Run> = marks.iter().map(|(_, mark)| mark.run).collect();
    runs.sort_unstable();
    runs.dedup();
    // There is one a primary.
    runs.truncate(usize::from(u8::MAX));
    bytes.push(runs.len() as u8);
    bytes.extend(runs.iter().flat_map(|run| run.as_str().bytes()));
    let known: Vec<(Clock, u8, Number)> = marks
        .iter()
        .filter_map(|(clock, mark)| {
            let run = runs.binary_search(&mark.run).ok()?;
            Some((clock, run as u8, mark.number))
        })
        .collect();
    bytes.extend((known.len() as u16).to_be_bytes());
    for (clock, run, number) in known {
        bytes.extend(clock.0.to_be_bytes());
        bytes.push(run);
        bytes.extend(number.0.to_be_bytes());
    }
}

/// Reads one that was written with this key. Whether it was and is whole is all that is told of any other.
pub(crate) fn read(position: &Position, key: &Key) -> Result<Parts, Missed> {
    read_signed(position.as_str(), key).ok_or(Missed::Foreign)
}

fn read_signed(text: &str, key: &Key) -> Option<Parts> {
    let (base, number) = match text.split_once(BEHIND) {
        Some((base, number)) => (base, Some(read_number(number)?)),
        None => (text, None),
    };
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(base).ok()?;
    let (said, signature) = bytes.split_last_chunk::<SIGNATURE>()?;
    let mac = key.mac(&[said]);
    mac.verify_truncated_left(signature).ok()?;
    let mut parts = TokenCursor(said).parts()?;
    if let Some(number) = number {
        let mark = parts.marks.of(parts.clock)?;
        let is_later = number >= mark.number;
        let later = is_later.then_some(Mark { number, ..mark })?;
        parts.marks.set(parts.clock, later);
    }
    Some(parts)
}

fn read_number(digits: &str) -> Option<Number> {
    let is_number = (1..=Number::DIGITS).contains(&digits.len())
        && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = is_number.then(|| digits.parse().ok())?;
    number.map(Number)
}

/// What is left to be read.
struct TokenCursor<'a>(&'a [u8]);

impl TokenCursor<'_> {
    fn parts(mut self) -> Option<Parts> {
        let [VERSION, flags] = self.take()? else {
            return None;
        };
        let clock = Clock(u16::from_be_bytes(self.take()?));
        let socket = match flags & SOCKET {
            0 => None,
            _ => Some(SocketId {
                node: NodeId(u64::from_be_bytes(self.take()?)),
                number: u64::from_be_bytes(self.take()?),
            }),
        };
        let user = match flags & USER {
            0 => None,
            _ => Some(NameTag(self.take()?)),
        };
        let marks = self.marks()?;
        let rooms = u16::from_be_bytes(self.take()?);
        let rooms: Option<Vec<NameTag>> = (0..rooms).map(|_| self.take().map(NameTag)).collect();
        Some(Parts {
            marks,
            clock,
            socket,
            user,
            rooms: rooms?,
            has_more_rooms: flags & MORE != 0,
        })
        .filter(|_| self.0.is_empty())
    }

    fn marks(&mut self) -> Option<Marks> {
        let [runs] = self.take()?;
        let mut run = || {
            let letters: [u8; Run::LETTERS] = self.take()?;
            Run::of(std::str::from_utf8(&letters).ok()?)
        };
        let runs: Vec<Run> = (0..runs).map(|_| run()).collect::<Option<_>>()?;
        let marks = u16::from_be_bytes(self.take()?);
        let mut mark = || {
            let clock = Clock(u16::from_be_bytes(self.take()?));
            let [run] = self.take()?;
            let run = *runs.get(usize::from(run))?;
            let number = Number(u64::from_be_bytes(self.take()?));
            Some((clock, Mark { run, number }))
        };
        (0..marks).map(|_| mark()).collect()
    }

    fn take<const COUNT: usize>(&mut self) -> Option<[u8; COUNT]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }
}

const VERSION: u8 = 1;
const SOCKET: u8 = 1;
const USER: u8 = 2;
const MORE: u8 = 4;
/// Of the 32 bytes of the MAC: guessing one takes 2^79 requests.
const SIGNATURE: usize = 10;
/// Before the number of a message.
const BEHIND: char = '~';
/// 2 KiB of them: beside them there is room for the marks of 70 clocks.
const MOST_ROOMS: usize = 256;

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn key(seed: u8) -> Key {
        Key::of([seed; Key::BYTES])
    }

    fn run() -> impl Strategy<Value = Run> {
        prop_oneof![
            Just("0123456789ab"),
            Just("abcdefabcdef"),
            Just("zzzzzzzzzzzz")
        ]
        .prop_map(|letters| Run::of(letters).unwrap())
    }

    fn marks() -> impl Strategy<Value = Marks> {
        let mark = (any::<u16>(), run(), any::<u64>());
        vec(mark, 0..9).prop_map(|marks| {
            let mark = |(clock, run, number)| {
                let number = Number(number);
                (Clock(clock), Mark { run, number })
            };
            marks.into_iter().map(mark).collect()
        })
    }

    fn parts() -> impl Strategy<Value = Parts> {
        let socket = prop::option::of((any::<u64>(), any::<u64>()));
        let rooms = vec(any::<[u8; 8]>(), 0..300);
        let user = prop::option::of(any::<[u8; 8]>());
        (marks(), any::<u16>(), socket, user, rooms, any::<bool>()).prop_map(
            |(marks, clock, socket, user, rooms, has_more_rooms)| {
                let first = marks.iter().next().map(|(clock, _)| clock);
                Parts {
                    clock: first.unwrap_or(Clock(clock)),
                    marks,
                    socket: socket.map(|(node, number)| SocketId {
                        node: NodeId(node),
                        number,
                    }),
                    user: user.map(NameTag),
                    rooms: rooms.into_iter().map(NameTag).collect(),
                    has_more_rooms,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn a_position_is_read_as_it_was_written(parts in parts()) {
            let position = write(&parts, &key(1));
            let mut told = parts.clone();
            told.rooms.truncate(MOST_ROOMS);
            told.has_more_rooms |= told.rooms.len() < parts.rooms.len();
            prop_assert_eq!(read(&position, &key(1)), Ok(told));
            prop_assert_eq!(read(&position, &key(2)), Err(Missed::Foreign));
        }

        #[test]
        fn the_number_behind_it_only_goes_forward(parts in parts(), number in 0u64..9_999_999_999_999_999) {
            let position = format!("{}~{number}", write(&parts, &key(1)));
            let read = read(&position.parse().unwrap(), &key(1));
            match parts.marks.of(parts.clock) {
                Some(mark) if mark.number.0 <= number => {
                    let there = read.unwrap().marks.of(parts.clock);
                    prop_assert_eq!(there, Some(Mark { number: Number(number), ..mark }));
                }
                _ => prop_assert_eq!(read, Err(Missed::Foreign)),
            }
        }

        #[test]
        fn one_that_was_touched_is_foreign(parts in parts(), at: prop::sample::Index, letter in "[A-Za-z0-9_~.-]", cut: bool) {
            let written = write(&parts, &key(1)).to_string();
            let at = at.index(written.len());
            let touched = match cut {
                true => written[..at].to_owned(),
                false => format!("{}{letter}{}", &written[..at], &written[at + 1..]),
            };
            prop_assume!(touched != written && !touched.is_empty());
            let told = read(&touched.parse().unwrap(), &key(1));
            prop_assert_eq!(told, Err(Missed::Foreign));
        }

        #[test]
        fn whatever_comes_is_no_panic(text in "[A-Za-z0-9_~.-]{1,4096}") {
            prop_assert_eq!(read(&text.parse().unwrap(), &key(1)), Err(Missed::Foreign));
        }

        #[test]
        fn whatever_is_signed_is_no_panic(bytes: Vec<u8>) {
            if let Ok(position) = sign(bytes, &key(1)).parse() {
                let _ = read(&position, &key(1));
            }
        }
    }

    #[test]
    fn names_are_not_told_and_differ_between_namespaces() {
        let (a, b) = (key(1).within("a"), key(1).within("b"));
        assert!(a != b && a.tag("r:x") != b.tag("r:x") && a.tag("r:x") != a.tag("u:x"));
        assert_eq!(a.tag("r:x"), key(1).within("a").tag("r:x"));
        assert_eq!(format!("{a:?}"), "Key(..)");
        let marks = Marks::default();
        let parts = Parts {
            marks,
            ..Parts::default()
        };
        assert_eq!(read(&write(&parts, &a), &b), Err(Missed::Foreign));
    }

    #[test]
    fn the_longest_is_a_position() {
        let run = Run::of("0123456789ab").unwrap();
        let mark = |number| Mark {
            run,
            number: Number(number),
        };
        let parts = Parts {
            marks: (0..60).map(|n| (Clock(n), mark(u64::MAX))).collect(),
            rooms: vec![NameTag([7; 8]); MOST_ROOMS],
            user: Some(NameTag([1; 8])),
            ..Parts::default()
        };
        let position = write(&parts, &key(1));
        assert_eq!(read(&position, &key(1)), Ok(parts));
        let many = Parts {
            marks: (0..1000).map(|n| (Clock(n), mark(1))).collect(),
            ..Parts::default()
        };
        assert_eq!(read(&write(&many, &key(1)), &key(1)), Err(Missed::Foreign));
    }
}
