//! Who is meant by a scope, ready to be looked up.

use std::borrow::Cow;
use std::collections::HashSet;
use std::hash::Hash;
use std::ops::Range;

use crate::bus::scope::Scope;
use crate::model::id::SocketId;
use crate::model::topic::TopicRef;

/// A scope that is ready to be looked up: made before the registry is locked, so that nobody waits while
/// thousands of exceptions are sorted in.
pub(crate) struct Wanted<'a> {
    /// Each once.
    pub(super) targets: Cow<'a, [TopicRef<'a>]>,
    pub(super) except: Lookup<'a, SocketId>,
    pub(super) except_users: Lookup<'a, &'a str>,
    /// Only sockets with these numbers.
    pub(super) numbers: Range<u64>,
}

/// Whatever number a socket has.
pub(crate) const EVERY: Range<u64> = 0..u64::MAX;

impl<'a> Wanted<'a> {
    pub(crate) fn of(scope: &'a Scope<'_>) -> Self {
        let targets = scope.targets.as_slice();
        Self {
            targets: match targets {
                [] | [_] => targets.into(),
                _ => distinct(targets).into(),
            },
            except: Lookup::of(&scope.except),
            except_users: Lookup::of(&scope.except_users),
            numbers: EVERY,
        }
    }

    /// Of these only the sockets with such numbers.
    pub(crate) fn numbered(self, numbers: Range<u64>) -> Self {
        Self { numbers, ..self }
    }
}

fn distinct<'a>(targets: &[TopicRef<'a>]) -> Vec<TopicRef<'a>> {
    let mut seen = HashSet::with_capacity(targets.len());
    let targets = targets.iter().copied();
    targets.filter(|topic| seen.insert(*topic)).collect()
}

/// What is asked for once per socket.
pub(super) enum Lookup<'a, T> {
    Few(&'a [T]),
    Many(HashSet<&'a T>),
}

impl<'a, T: Eq + Hash> Lookup<'a, T> {
    fn of(values: &'a [T]) -> Self {
        if values.len() <= FEW {
            Self::Few(values)
        } else {
            Self::Many(values.iter().collect())
        }
    }

    /// Most messages except nobody: then nothing of a socket is read for it.
    pub(super) fn contains(&self, value: impl FnOnce() -> T) -> bool {
        match self {
            Self::Few([]) => false,
            Self::Few(values) => values.contains(&value()),
            Self::Many(values) => values.contains(&value()),
        }
    }
}

/// So few are found faster by looking at each than by a hash.
const FEW: usize = 8;
