//! What is addressable, and its one injective name.
//!
//! A topic's name is the part of a Redis channel after the namespace: `all`, `u:{user}`, `r:{room}`;
//! `nodes` and `n:{node}` for what concerns nodes, `p:{topic}` for who comes and goes. Bytes of a user id or room outside `A-Z a-z 0-9 - . _ ~` are written as upper-case
//! `%XX` (RFC 3986, section 2.1), so two ids never share a name, and none can forge another kind.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::id::{InvalidId, NodeId, SocketId, UserId, check_name};

const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Name of the topic that every socket is on.
pub(crate) const ALL: &str = "all";
pub(crate) const USER: &str = "u:";
pub(crate) const ROOM: &str = "r:";
/// Name of the topic that every node is on, with or without sockets.
const NODES: &str = "nodes";
/// Who comes to another topic and goes from it.
const PRESENCE: &str = "p:";
const NODE: &str = "n:";
/// Only inside envelopes: a single socket has no channel of its own, its node's carries it.
const SOCKET: &str = "s:";

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Topic(Arc<str>);

impl Topic {
    pub(crate) fn all() -> Self {
        Self(ALL.into())
    }

    pub(crate) fn user(id: &UserId) -> Result<Self, InvalidId> {
        Self::named(USER, id.as_str())
    }

    pub(crate) fn room(name: &str) -> Result<Self, InvalidId> {
        Self::named(ROOM, name)
    }

    pub(crate) fn node(id: NodeId) -> Self {
        Self(format!("{NODE}{id}").into())
    }

    pub(crate) fn nodes() -> Self {
        Self(NODES.into())
    }

    /// A topic whose users can be watched, by its name.
    pub(crate) fn with_presence(name: &str) -> Option<Self> {
        (name == ALL || name.starts_with(ROOM)).then(|| Self(name.into()))
    }

    /// Where the comings and goings on a topic are told.
    pub(crate) fn presence(&self) -> Self {
        Self(format!("{PRESENCE}{}", self.0).into())
    }

    pub(crate) fn socket(id: SocketId) -> Self {
        Self(format!("{SOCKET}{id}").into())
    }

    fn named(kind: &str, name: &str) -> Result<Self, InvalidId> {
        check_name(name)?;
        let mut topic = String::with_capacity(kind.len() + name.len());
        topic.push_str(kind);
        topic.extend(utf8_percent_encode(name, ESCAPED));
        Ok(Self(topic.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The topic whose channel carries messages for this one: its own, but for single sockets.
    pub(crate) fn carrier(&self) -> Self {
        socket_of(self.as_str()).map_or_else(|| self.clone(), |socket| Self::node(socket.node))
    }

    /// The room it names, if it names one.
    pub(crate) fn as_room(&self) -> Option<String> {
        let encoded = self.0.strip_prefix(ROOM)?;
        let name = percent_decode_str(encoded).decode_utf8().ok()?;
        Some(name.into_owned())
    }

    /// The socket it names, if it names one.
    pub(crate) fn as_socket(&self) -> Option<SocketId> {
        socket_of(self.as_str())
    }
}

/// The socket that a topic's name names, if it names one.
pub(crate) fn socket_of(topic: &str) -> Option<SocketId> {
    topic.strip_prefix(SOCKET)?.parse().ok()
}

impl Borrow<str> for Topic {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What keeps two clusters on one Redis apart: 1 to 64 of `A-Z a-z 0-9 . _ -`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Namespace(Arc<str>);

impl Namespace {
    pub(crate) const DEFAULT: &str = "cluster";

    pub(crate) fn new(name: &str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        (matches!(name.len(), 1..=64) && name.bytes().all(allowed)).then(|| Self(name.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The Redis channel of a topic.
    pub(crate) fn channel(&self, topic: &Topic) -> String {
        format!("{}:{}", self.0, topic.as_str())
    }

    /// The topic's name in one of our channels.
    pub(crate) fn topic<'a>(&self, channel: &'a [u8]) -> Option<&'a str> {
        let rest = channel
            .strip_prefix(self.0.as_bytes())?
            .strip_prefix(b":")?;
        std::str::from_utf8(rest).ok()
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn odd_id() -> impl Strategy<Value = String> {
        prop_oneof![
            "[*?\\[\\]{}:%/ \r\n\0a-c]{1,12}",
            "\\PC{1,20}",
            Just("constructor".into()),
            Just("u:a".into()),
            Just("%61".into()),
            Just("é".into()),
            Just("e\u{301}".into()),
        ]
    }

    proptest! {
        #[test]
        fn naming_is_injective_and_reversible(a in odd_id(), b in odd_id()) {
            let topic = |id: &str| Topic::user(&UserId::from(id)).unwrap();
            prop_assert_eq!(topic(&a) == topic(&b), a == b);
            let name = topic(&a);
            let encoded = name.as_str().strip_prefix(USER).unwrap();
            prop_assert_eq!(percent_decode_str(encoded).decode_utf8().unwrap(), a.as_str());
            prop_assert!(encoded.bytes().all(|c| c.is_ascii_alphanumeric() || b"-._~%".contains(&c)));
        }

        #[test]
        fn kinds_and_namespaces_never_meet(id in odd_id()) {
            let (ns, other) = (Namespace::new("shop").unwrap(), Namespace::new("shop-2").unwrap());
            let user = Topic::user(&UserId::from(id.as_str())).unwrap();
            let room = Topic::room(&id).unwrap();
            prop_assert_ne!(&user, &room);
            prop_assert_eq!(room.as_room(), Some(id.clone()));
            prop_assert_eq!(user.as_room(), None);
            let channel = ns.channel(&user);
            prop_assert_eq!(ns.topic(channel.as_bytes()), Some(user.as_str()));
            prop_assert_eq!(other.topic(channel.as_bytes()), None);
        }
    }

    #[test]
    fn names_are_the_documented_ones() {
        let ns = Namespace::new("cluster").unwrap();
        let user = Topic::user(&UserId::from("a:b é~")).unwrap();
        assert_eq!(ns.channel(&user), "cluster:u:a%3Ab%20%C3%A9~");
        assert_eq!(
            ns.channel(&Topic::room("lobby").unwrap()),
            "cluster:r:lobby"
        );
        assert_eq!(ns.channel(&Topic::all()), "cluster:all");
    }

    #[test]
    fn a_socket_is_reached_through_its_node() {
        let id = SocketId {
            node: NodeId(0xab),
            number: 5,
        };
        let topic = Topic::socket(id);
        assert_eq!(socket_of(topic.as_str()), Some(id));
        assert_eq!(topic.carrier().as_str(), "n:00000000000000ab");
        assert_eq!(Topic::all().carrier(), Topic::all());
    }

    #[test]
    fn a_namespace_is_short_and_plain() {
        for bad in ["", "a b", "a:b", "é", &"x".repeat(65)] {
            assert!(Namespace::new(bad).is_none(), "{bad:?}");
        }
        assert!(Namespace::new("Shop_prod-1.2").is_some());
    }
}
