//! Ids: of nodes and of sockets, which the cluster gives; `name` has those that the app gives.

mod name;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) use self::name::check_name;
pub use self::name::{InvalidId, RoomId, UserId};

/// One node: a process, from its start to its end. Random at every start, so that a restarted process
/// is never taken for its old self.
///
/// Its text form goes through `Display` and `FromStr`: 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) u64);

impl NodeId {
    pub(crate) fn random() -> Self {
        Self(fastrand::u64(..))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

impl FromStr for NodeId {
    type Err = InvalidNodeId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match hexadecimal(text) {
            Some(id) if text.len() == 16 => Ok(Self(id)),
            _ => Err(InvalidNodeId(())),
        }
    }
}

/// The text is not a [`NodeId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidNodeId(());

impl fmt::Display for InvalidNodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a node id: 16 hexadecimal digits are needed")
    }
}

impl std::error::Error for InvalidNodeId {}

/// One socket in the whole cluster.
///
/// Unique for as long as the cluster lives, and never reused. Its text form goes through
/// `Display` and `FromStr`, so it can travel in your own messages.
///
/// ```
/// use axum_cluster::SocketId;
///
/// let id: SocketId = "00000000000000ff-2a".parse()?;
/// assert_eq!(id.to_string(), "00000000000000ff-2a");
/// # Ok::<(), axum_cluster::InvalidSocketId>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId {
    pub(crate) node: NodeId,
    pub(crate) number: u64,
}

impl SocketId {
    /// The node that holds it.
    pub fn node(&self) -> NodeId {
        self.node
    }
}

impl fmt::Display for SocketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:x}", self.node, self.number)
    }
}

impl fmt::Debug for SocketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SocketId({self})")
    }
}

impl FromStr for SocketId {
    type Err = InvalidSocketId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (node, number) = text.split_once('-').ok_or(InvalidSocketId(()))?;
        if number.starts_with('0') && number.len() > 1 {
            return Err(InvalidSocketId(()));
        }
        Ok(Self {
            node: node
                .parse()
                .map_err(|_: InvalidNodeId| InvalidSocketId(()))?,
            number: hexadecimal(number).ok_or(InvalidSocketId(()))?,
        })
    }
}

/// Lower-case digits only, so that an id has one text.
fn hexadecimal(digits: &str) -> Option<u64> {
    let plain = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if !digits.bytes().all(plain) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

/// The text is not a [`SocketId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidSocketId(());

impl fmt::Display for InvalidSocketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "not a socket id: 16 hexadecimal digits, a hyphen and a hexadecimal number are needed",
        )
    }
}

impl std::error::Error for InvalidSocketId {}

/// As text, which is what users put into their own messages.
macro_rules! serde_as_text {
    ($($id:ty),*) => {$(
        impl Serialize for $id {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'_, str>::deserialize(deserializer)?;
                text.parse().map_err(D::Error::custom)
            }
        }
    )*};
}

serde_as_text!(NodeId, SocketId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_ids_travel_as_text() {
        for number in [0, 1, 0xff, u64::MAX] {
            let id = SocketId {
                node: NodeId(7),
                number,
            };
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        for text in [
            "",
            "-",
            "7-1",
            "0000000000000007",
            "0000000000000007-",
            "0000000000000007-01",
            "000000000000000G-1",
            "+000000000000007-1",
        ] {
            assert_eq!(
                text.parse::<SocketId>(),
                Err(InvalidSocketId(())),
                "{text:?}"
            );
        }
    }
}
