//! What is addressable, and its one injective name.
//!
//! A topic's name is the part of a Redis channel after the namespace: `all`, `u:{user}`, `r:{room}`;
//! `nodes`, where several Redises share the topics `n:all{number}` as well, and `n:{node}` for what concerns nodes, `p:{topic}` for who comes and goes. Bytes of a user id or room outside `A-Z a-z 0-9 - . _ ~` are written as upper-case
//! `%XX` (RFC 3986, section 2.1), so two ids never share a name, and none can forge another kind.

use std::borrow::Borrow;
use std::fmt;
use std::ops::BitOr;
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::model::id::{InvalidId, NodeId, RoomId, SocketId, UserId, check_name};
use crate::model::partition::Partition;

const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// What a topic is. Whoever decides by it names every kind, so that a new one is looked at there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TopicKind {
    /// Every socket.
    All,
    User,
    Room,
    /// A single socket. Only inside envelopes: it has no channel of its own, its node's carries it.
    Socket,
    Node,
    /// Every node, with or without sockets.
    Nodes,
    /// Who comes to another topic and goes from it.
    Presence,
}

impl TopicKind {
    pub(crate) const EACH: [Self; 7] = [
        Self::All,
        Self::User,
        Self::Room,
        Self::Socket,
        Self::Node,
        Self::Nodes,
        Self::Presence,
    ];

    /// What a name of this kind is, or begins with.
    pub(crate) const fn prefix(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::User => "u:",
            Self::Room => "r:",
            Self::Socket => "s:",
            Self::Node => "n:",
            Self::Nodes => "nodes",
            Self::Presence => "p:",
        }
    }

    /// Whose channels they are, as it is told to operators.
    pub(crate) const fn whose(self) -> &'static str {
        match self {
            Self::All => "everyone",
            Self::User => "users",
            Self::Room => "rooms",
            Self::Socket => "sockets",
            Self::Node => "single nodes",
            Self::Nodes => "all nodes",
            Self::Presence => "presence",
        }
    }

    fn of(name: &str) -> Option<Self> {
        let kind = match name.as_bytes() {
            [b'u', b':', ..] => Self::User,
            [b'r', b':', ..] => Self::Room,
            [b's', b':', ..] => Self::Socket,
            // No node is called so, since `l` is no hexadecimal digit.
            [b'n', b':', b'a', b'l', b'l', ..] => Self::Nodes,
            [b'n', b':', ..] => Self::Node,
            [b'p', b':', ..] => Self::Presence,
            b"all" => Self::All,
            b"nodes" => Self::Nodes,
            _ => return None,
        };
        Some(kind)
    }
}

/// Some kinds of topics.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Kinds(u8);

impl Kinds {
    pub(crate) const ALL: Self = Self(u8::MAX);

    pub(crate) fn contains(self, kind: TopicKind) -> bool {
        self.0 & bit(kind) != 0
    }
}

fn bit(kind: TopicKind) -> u8 {
    1 << kind as u8
}

/// Those of either.
impl BitOr for Kinds {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl FromIterator<TopicKind> for Kinds {
    fn from_iter<I: IntoIterator<Item = TopicKind>>(kinds: I) -> Self {
        Self(kinds.into_iter().map(bit).fold(0, BitOr::bitor))
    }
}

impl fmt::Debug for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = TopicKind::EACH.into_iter();
        f.debug_set()
            .entries(kinds.filter(|kind| self.contains(*kind)))
            .finish()
    }
}

/// Its name, which says its kind. Every socket has some, so there is nothing beside it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Topic(Arc<str>);

/// A [`Topic`], borrowed: as it was heard, or as it is looked up.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TopicRef<'a> {
    kind: TopicKind,
    name: &'a str,
}

impl Topic {
    pub(crate) fn all() -> Self {
        Self::of(TopicKind::All, "")
    }

    pub(crate) fn user(id: &UserId) -> Result<Self, InvalidId> {
        Self::named(TopicKind::User, id.as_str())
    }

    pub(crate) fn room(name: &str) -> Result<Self, InvalidId> {
        Self::named(TopicKind::Room, name)
    }

    pub(crate) fn node(id: NodeId) -> Self {
        Self::of(TopicKind::Node, &id.to_string())
    }

    pub(crate) fn nodes() -> Self {
        Self::of(TopicKind::Nodes, "")
    }

    /// One of all nodes in each partition; in its own that is [`nodes`](Self::nodes). The names of the others begin as those of
    /// single nodes do, so that whoever may hear and tell these may hear and tell them.
    pub(crate) fn nodes_by_partition() -> [Self; Partition::COUNT] {
        let mut topics: [Option<Self>; Partition::COUNT] = [const { None }; Partition::COUNT];
        let (mut topic, mut missing, mut number) = (Self::nodes(), Partition::COUNT, 0u32);
        while missing > 0 {
            let place = &mut topics[Partition::of(topic.as_str()).index()];
            missing -= usize::from(place.is_none());
            place.get_or_insert(topic);
            topic = Self(format!("n:all{number}").into());
            number += 1;
        }
        topics.map(|topic| topic.expect("none is missing"))
    }

    /// A topic whose users can be watched, by its name.
    pub(crate) fn with_presence(name: &str) -> Option<Self> {
        let topic = TopicRef::of(name)?;
        match topic.kind {
            TopicKind::All | TopicKind::Room => Some(topic.to_topic()),
            TopicKind::User
            | TopicKind::Socket
            | TopicKind::Node
            | TopicKind::Nodes
            | TopicKind::Presence => None,
        }
    }

    /// Where the comings and goings on a topic are told.
    pub(crate) fn presence(&self) -> Self {
        Self::of(TopicKind::Presence, &self.0)
    }

    pub(crate) fn socket(id: SocketId) -> Self {
        Self::of(TopicKind::Socket, &id.to_string())
    }

    fn named(kind: TopicKind, name: &str) -> Result<Self, InvalidId> {
        check_name(name)?;
        let prefix = kind.prefix();
        let mut topic = String::with_capacity(prefix.len() + name.len());
        topic.push_str(prefix);
        topic.extend(utf8_percent_encode(name, ESCAPED));
        Ok(Self(topic.into()))
    }

    /// The rest needs no escapes.
    fn of(kind: TopicKind, rest: &str) -> Self {
        Self([kind.prefix(), rest].concat().into())
    }

    pub(crate) fn kind(&self) -> TopicKind {
        TopicKind::of(&self.0).expect("it was named by its kind")
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The topic whose channel carries messages for this one: its own, but for single sockets.
    pub(crate) fn carrier(&self) -> Self {
        match self.as_socket() {
            Some(socket) => Self::node(socket.node),
            None => self.clone(),
        }
    }

    /// The room it names, if it names one.
    pub(crate) fn as_room(&self) -> Option<RoomId> {
        let encoded = TopicRef::from(self).rest(TopicKind::Room)?;
        let name = percent_decode_str(encoded).decode_utf8().ok()?;
        Some(name.into())
    }

    /// The socket it names, if it names one.
    pub(crate) fn as_socket(&self) -> Option<SocketId> {
        TopicRef::from(self).as_socket()
    }
}

impl<'a> TopicRef<'a> {
    /// The topic of this name; none of a kind that only a later version knows.
    pub(crate) fn of(name: &'a str) -> Option<Self> {
        let kind = TopicKind::of(name)?;
        Some(Self { kind, name })
    }

    pub(crate) fn kind(self) -> TopicKind {
        self.kind
    }

    pub(crate) fn as_str(self) -> &'a str {
        self.name
    }

    /// The socket it names, if it names one.
    pub(crate) fn as_socket(self) -> Option<SocketId> {
        self.rest(TopicKind::Socket)?.parse().ok()
    }

    /// What follows the prefix, if it is of this kind.
    fn rest(self, kind: TopicKind) -> Option<&'a str> {
        let rest = self.name.get(kind.prefix().len()..);
        rest.filter(|_| self.kind == kind)
    }

    pub(crate) fn to_topic(self) -> Topic {
        Topic(self.name.into())
    }
}

impl<'a> From<&'a Topic> for TopicRef<'a> {
    fn from(topic: &'a Topic) -> Self {
        Self {
            kind: topic.kind(),
            name: &topic.0,
        }
    }
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

impl fmt::Debug for TopicRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
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
        [&*self.0, ":", topic.as_str()].concat()
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
            let encoded = name.as_str().strip_prefix("u:").unwrap();
            prop_assert_eq!(percent_decode_str(encoded).decode_utf8().unwrap(), a.as_str());
            prop_assert!(encoded.bytes().all(|c| c.is_ascii_alphanumeric() || b"-._~%".contains(&c)));
        }

        #[test]
        fn kinds_and_namespaces_never_meet(id in odd_id()) {
            let (ns, other) = (Namespace::new("shop").unwrap(), Namespace::new("shop-2").unwrap());
            let user = Topic::user(&UserId::from(id.as_str())).unwrap();
            let room = Topic::room(&id).unwrap();
            prop_assert_ne!(&user, &room);
            prop_assert_eq!(room.as_room(), Some(RoomId::from(&id)));
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
        assert_eq!(topic.as_socket(), Some(id));
        assert_eq!(topic.carrier().as_str(), "n:00000000000000ab");
        assert_eq!(Topic::all().carrier(), Topic::all());
    }

    #[test]
    fn a_name_is_read_as_the_topic_that_wrote_it() {
        let node = NodeId(0xab);
        let socket = SocketId { node, number: 5 };
        for (topic, kind) in [
            (Topic::all(), TopicKind::All),
            (Topic::user(&UserId::from("all")).unwrap(), TopicKind::User),
            (Topic::room("n:1").unwrap(), TopicKind::Room),
            (Topic::socket(socket), TopicKind::Socket),
            (Topic::node(node), TopicKind::Node),
            (Topic::nodes(), TopicKind::Nodes),
            (Topic::all().presence(), TopicKind::Presence),
        ] {
            let heard = TopicRef::of(topic.as_str()).unwrap();
            assert_eq!((heard.kind(), topic.kind()), (kind, kind));
            assert_eq!(heard, TopicRef::from(&topic));
            assert_eq!(heard.to_topic(), topic);
        }
        for later in ["", "u", "alle", "node", "nodes:", "n", "x:1", ":", "é:"] {
            assert_eq!(TopicRef::of(later), None, "{later}");
        }
        assert_eq!(TopicRef::of("s:nonsense").unwrap().as_socket(), None);
    }

    #[test]
    fn every_partition_has_a_topic_of_all_nodes() {
        let topics = Topic::nodes_by_partition();
        for (partition, topic) in Partition::all().zip(&topics) {
            assert_eq!(Partition::of(topic.as_str()), partition);
            assert_eq!(topic.kind(), TopicKind::Nodes);
        }
        assert!(topics.contains(&Topic::nodes()));
    }

    #[test]
    fn rooms_and_all_can_be_watched() {
        assert_eq!(Topic::with_presence("r:x"), Topic::room("x").ok());
        assert_eq!(Topic::with_presence("all"), Some(Topic::all()));
        for unwatched in ["u:x", "nodes", "n:1", "p:all", "s:1-1", "x"] {
            assert_eq!(Topic::with_presence(unwatched), None, "{unwatched}");
        }
    }

    #[test]
    fn a_namespace_is_short_and_plain() {
        for bad in ["", "a b", "a:b", "é", &"x".repeat(65)] {
            assert!(Namespace::new(bad).is_none(), "{bad:?}");
        }
        assert!(Namespace::new("Shop_prod-1.2").is_some());
    }
}
