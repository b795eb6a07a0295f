//! What the bytes on a channel mean.
//!
//! ```text
//! byte 0       version, 1
//! byte 1       kind: 0 probe, 1 text, 2 binary, 3 control, 4 answer, 5 presence report, 6 watch request, 7 close
//! byte 2       flags: 1 union, 2 except sockets, 4 except users, 8 extension, 16 ephemeral, 32 number
//! bytes 3-10   origin node
//! number       u64, the origin's own of what it wants kept
//! union        u64 id (0 where only one copy travels), u32 count, then topics (u16 length, bytes)
//! sockets      u32 count, then sockets (u64 node, u64 number)
//! users        u32 count, then user ids (u16 length, bytes)
//! extension    u16 length, then fields of u8 tag, u16 length, bytes; those of later versions are skipped:
//!              1 volatile, 2 latest and its key, 3 u64 when it was sent, by the origin's own clock, in microseconds,
//!              4 not to be compressed
//! rest         the payload: for an answer u64 id and u8 more, then JSON; for control and both of presence JSON; for a close
//!              u16 code and the reason
//! ```
//! Integers are big-endian. A message that starts with `{` is a foreign publisher's JSON instead. Before an envelope may stand
//! a stamp: a byte 0, u32 era; and before one that is kept again where it was kept before.

mod foreign;
mod former;
mod reading;
mod stamp;
mod writing;

use std::borrow::Cow;

#[cfg(any(test, feature = "redis"))]
pub(crate) use self::former::write_formerly;
#[cfg(feature = "redis")]
pub(crate) use self::former::{FORMER, MOST_FORMER};
pub(crate) use self::former::{Formerly, formerly};
pub(crate) use self::reading::decode;
#[cfg(feature = "redis")]
pub(crate) use self::stamp::STAMP;
#[cfg(any(test, feature = "redis"))]
pub(crate) use self::stamp::stamp;
pub(crate) use self::stamp::unstamped;
#[cfg(any(test, feature = "redis", fuzzing, axum_cluster_internals))]
pub(crate) use self::writing::encode;
pub(crate) use self::writing::encode_as;
use crate::bus::scope::Scope;
use crate::model::form::Form;
use crate::model::id::NodeId;
use crate::model::manner::Manner;
use crate::model::message::Message;

/// Largest envelope that travels: larger ones are refused before sending and skipped, unread, on
/// arrival.
pub(crate) const MAX_ENVELOPE: usize = 16 * 1024 * 1024;

/// The number of what needs none, since it comes once.
pub(crate) const ONE_COPY: u64 = 0;

const VERSION: u8 = 1;

const PROBE: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CONTROL: u8 = 3;
const ANSWER: u8 = 4;
const REPORT: u8 = 5;
const WATCH: u8 = 6;
const CLOSE: u8 = 7;

const UNION: u8 = 1;
const EXCEPT: u8 = 2;
const EXCEPT_USERS: u8 = 4;
const EXTENSION: u8 = 8;
const EPHEMERAL: u8 = 16;
const NUMBER: u8 = 32;

const VOLATILE: u8 = 1;
const LATEST: u8 = 2;
const SENT: u8 = 3;
const PLAIN: u8 = 4;

/// One message between nodes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Envelope<'a> {
    /// Absent when a foreign publisher wrote it.
    pub(crate) origin: Option<NodeId>,
    /// Present when the targets are named. Where copies travel on several channels they have the same number:
    /// act on the first, ignore the others. [`ONE_COPY`] where none does.
    pub(crate) union: Option<u64>,
    /// With no targets, the channel it came on is the target.
    pub(crate) scope: Scope<'a>,
    /// How a message waits for slow clients.
    pub(crate) manner: Manner,
    pub(crate) form: Form,
    pub(crate) lasting: Lasting,
    /// When it was, by the origin's own clock, where it measures.
    pub(crate) sent: Option<u64>,
    pub(crate) action: Action<'a>,
}

/// Whether a message is to be kept, as its sender sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Lasting {
    /// It knows of no history.
    #[default]
    Unsaid,
    /// It is meant for the moment.
    Ephemeral,
    /// It is, under a number by which its sender knows it again.
    Kept(u64),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action<'a> {
    Text(Cow<'a, str>),
    Binary(Cow<'a, [u8]>),
    /// Foreign publishers say it so; nodes ask for it, to know that it was done, and say it so where it is kept.
    Close {
        code: u16,
        reason: Cow<'a, str>,
    },
    Probe,
    /// A [`Control`](crate::bus::control::Control) as JSON.
    Control(&'a [u8]),
    /// A part of an [`Answer`](crate::bus::control::Answer) as JSON, looked at by whoever asked. With
    /// `more`, others follow.
    Answer {
        id: u64,
        more: bool,
        part: &'a [u8],
    },
    /// Who comes and goes, as JSON; looked at by the presence task.
    Report(&'a [u8]),
    /// Whether a node wants to be told so, as JSON.
    Watch(&'a [u8]),
    /// A kind that a later version knows.
    Unknown,
}

impl<'a> From<&'a Message> for Action<'a> {
    fn from(message: &'a Message) -> Self {
        match message {
            Message::Text(text) => Self::Text(Cow::Borrowed(text)),
            Message::Binary(bytes) => Self::Binary(Cow::Borrowed(bytes)),
        }
    }
}

/// The bytes make no sense.
#[derive(Debug, PartialEq)]
pub(crate) struct Garbage;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::id::SocketId;
    use crate::model::topic::TopicRef;

    fn action() -> impl Strategy<Value = Action<'static>> {
        prop_oneof![
            Just(Action::Probe),
            ".*".prop_map(|text| Action::Text(text.into())),
            any::<Vec<u8>>().prop_map(|bytes| Action::Binary(bytes.into())),
            Just(Action::Control(b"{}")),
            Just(Action::Report(b"[1]")),
            Just(Action::Watch(b"{}")),
            (any::<u16>(), ".{0,20}").prop_map(|(code, reason)| Action::Close {
                code,
                reason: reason.into(),
            }),
            any::<(u64, bool)>().prop_map(|(id, more)| Action::Answer {
                id,
                more,
                part: b"x"
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            origin: u64,
            union in proptest::option::of(any::<u64>()),
            targets in proptest::collection::vec("(all|nodes|[ursnp]:[a-z:%0-9]{0,30})", 0..4),
            except in proptest::collection::vec(any::<(u64, u64)>(), 0..4),
            users in proptest::collection::vec(".{1,30}", 0..4),
            manner in prop_oneof![
                Just(Manner::InTurn),
                Just(Manner::Volatile),
                ".{1,60}".prop_map(|key| Manner::Latest(key.into())),
            ],
            lasting in prop_oneof![
                Just(Lasting::Unsaid),
                Just(Lasting::Ephemeral),
                any::<u64>().prop_map(Lasting::Kept),
            ],
            sent: Option<u64>,
            form in prop_oneof![Just(Form::Any), Just(Form::Plain)],
            action in action(),
        ) {
            let origin = NodeId(origin);
            let scope = Scope {
                targets: union.iter().flat_map(|_| targets.iter().filter_map(|name| TopicRef::of(name))).collect(),
                except: except.iter().map(|&(node, number)| SocketId { node: NodeId(node), number }).collect(),
                except_users: users.iter().map(String::as_str).collect(),
            };
            let bytes = encode_as((lasting, sent, form), origin, union, &scope, &manner, &action);
            let written = Envelope { origin: Some(origin), union, scope, manner, form, lasting, sent, action };
            prop_assert_eq!(decode(&bytes), Ok(written));
        }

        #[test]
        fn garbage_is_an_error_never_a_panic(bytes: Vec<u8>, json in "\\{.{0,40}") {
            let _ = decode(&bytes);
            let _ = decode(json.as_bytes());
        }

        #[test]
        fn a_truncated_head_is_garbage(cut in 0usize..40) {
            let targets = ["u:a", "r:b"].into_iter().filter_map(TopicRef::of).collect();
            let scope = Scope { targets, ..Scope::default() };
            let bytes = encode(NodeId(1), Some(2), &scope, &Manner::InTurn, &Action::Binary(vec![].into()));
            prop_assume!(cut < bytes.len());
            prop_assert_eq!(decode(&bytes[..cut]), Err(Garbage));
        }
    }

    fn action_of(json: &str) -> Result<Action<'_>, Garbage> {
        decode(json.as_bytes()).map(|envelope| {
            assert_eq!(envelope.origin, None);
            envelope.action
        })
    }

    #[test]
    fn json_from_any_language_is_read() {
        assert_eq!(
            action_of(r#"{"text": "h\u00e9 \"x\""}"#),
            Ok(Action::Text("hé \"x\"".into()))
        );
        assert_eq!(
            action_of(r#"{"json": {"a": [1, 2.50]} }"#),
            Ok(Action::Text(r#"{"a": [1, 2.50]}"#.into()))
        );
        assert_eq!(
            action_of(r#"{"base64": "AP8="}"#),
            Ok(Action::Binary(vec![0, 255].into()))
        );
        assert_eq!(
            action_of(r#"{"text": "", "from": "a later version"}"#),
            Ok(Action::Text("".into()))
        );
        assert_eq!(
            action_of(r#"{"close": {"code": 4000, "reason": "bye"}}"#),
            Ok(Action::Close {
                code: 4000,
                reason: "bye".into()
            })
        );
    }

    #[test]
    fn nonsense_is_garbage() {
        let deep = format!("{{\"x\":{}", "[".repeat(100_000));
        for bytes in [
            "",
            "null",
            "{",
            "{}",
            "{\"text\":1}",
            "{\"text\":\"a\",\"json\":1}",
            "{\"base64\":\"*\"}",
            "\u{ff}",
            &deep,
        ] {
            assert_eq!(decode(bytes.as_bytes()), Err(Garbage), "{:.40}", bytes);
        }
        let mut later = encode(
            NodeId(1),
            None,
            &Scope::default(),
            &Manner::InTurn,
            &Action::Probe,
        )
        .to_vec();
        later[0] = 255;
        assert_eq!(decode(&later), Err(Garbage));
        // A count that promises more than there is must not be believed.
        assert_eq!(
            decode(&[1, 1, EXCEPT, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]),
            Err(Garbage)
        );
        assert_eq!(
            decode(&[1, TEXT, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff]),
            Err(Garbage),
            "text that is not UTF-8"
        );
    }

    #[test]
    fn a_kind_of_a_later_version_is_ignored_not_garbage() {
        let bytes = [1, 200, 0, 0, 0, 0, 0, 0, 0, 0, 9, 1, 2, 3];
        assert_eq!(
            decode(&bytes).map(|envelope| envelope.action),
            Ok(Action::Unknown)
        );
    }

    #[test]
    fn what_a_later_version_adds_is_skipped() {
        let head = [1, TEXT, EXTENSION, 0, 0, 0, 0, 0, 0, 0, 9];
        let text = [&head[..], &[0, 7, 99, 0, 1, 7, 1, 0, 0], b"hello"].concat();
        let read = decode(&text).unwrap();
        assert_eq!(read.action, Action::Text("hello".into()));
        assert_eq!(read.manner, Manner::Volatile, "of the field that is known");
        for cut in [&[0, 9, 1, 0, 0][..], &[0, 3, 99, 0, 1]] {
            assert_eq!(decode(&[&head[..], cut].concat()), Err(Garbage));
        }
        for flags in [64, 128, EPHEMERAL | NUMBER] {
            let unknown = [1, TEXT, flags, 0, 0, 0, 0, 0, 0, 0, 9, b'x'];
            assert_eq!(decode(&unknown), Err(Garbage), "a flag without a meaning");
        }
    }

    /// Byte for byte, since nodes of several versions speak it to one another while a deploy rolls.
    #[test]
    fn the_bytes_of_this_version_stay() {
        let targets = ["u:a", "all"].into_iter().filter_map(TopicRef::of);
        let scope = Scope {
            targets: targets.collect(),
            except: [SocketId {
                node: NodeId(7),
                number: 3,
            }]
            .into(),
            except_users: ["b"].into(),
        };
        let head = [1, 1, 7, 0, 0, 0, 0, 0, 0, 0, 9];
        let union = *b"\0\0\0\0\0\0\0\x02\0\0\0\x02\0\x03u:a\0\x03all";
        let except = *b"\0\0\0\x01\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x03";
        let users = *b"\0\0\0\x01\0\x01b";
        let names = [&union[..], &except, &users].concat();
        let hi = Action::Text("hi".into());
        let bytes = encode(NodeId(9), Some(2), &scope, &Manner::InTurn, &hi);
        assert_eq!(bytes, [&head[..], &names, b"hi"].concat());

        let mut extended = head;
        extended[2] = 15;
        let later = [&extended[..], &names, &[0, 4, 0xaa, 0, 1, 0xbb], b"hi"].concat();
        assert_eq!(decode(&later), decode(&bytes), "the extension is skipped");
        let read = decode(&bytes).unwrap();
        assert_eq!(
            encode(
                NodeId(9),
                read.union,
                &read.scope,
                &read.manner,
                &read.action
            ),
            bytes
        );

        for (manner, extension) in [
            (Manner::Volatile, &b"\0\x03\x01\0\0"[..]),
            (Manner::Latest("k".into()), b"\0\x04\x02\0\x01k"),
        ] {
            let bytes = encode(NodeId(9), Some(2), &scope, &manner, &hi);
            assert_eq!(bytes, [&extended[..], &names, extension, b"hi"].concat());
        }

        for (manner, extension) in [
            (
                Manner::InTurn,
                &b"\0\x0b\x03\0\x08\x01\x02\x03\x04\x05\x06\x07\x08"[..],
            ),
            (
                Manner::Volatile,
                b"\0\x0e\x01\0\0\x03\0\x08\x01\x02\x03\x04\x05\x06\x07\x08",
            ),
        ] {
            let how = (Lasting::Unsaid, Some(0x0102_0304_0506_0708), Form::Any);
            let bytes = encode_as(how, NodeId(9), Some(2), &scope, &manner, &hi);
            assert_eq!(bytes, [&extended[..], &names, extension, b"hi"].concat());
        }

        let plain = (Lasting::Unsaid, None, Form::Plain);
        for (manner, extension) in [
            (Manner::InTurn, &b"\0\x03\x04\0\0"[..]),
            (Manner::Volatile, b"\0\x06\x01\0\0\x04\0\0"),
        ] {
            let bytes = encode_as(plain, NodeId(9), Some(2), &scope, &manner, &hi);
            assert_eq!(bytes, [&extended[..], &names, extension, b"hi"].concat());
        }

        let answer = Action::Answer {
            id: 5,
            more: true,
            part: b"{}",
        };
        let bytes = encode(NodeId(9), None, &Scope::default(), &Manner::InTurn, &answer);
        assert_eq!(
            bytes[..],
            *b"\x01\x04\0\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\x05\x01{}"
        );
        for (kind, action) in [
            (0, Action::Probe),
            (2, Action::Binary(b"x"[..].into())),
            (3, Action::Control(b"x")),
            (5, Action::Report(b"x")),
            (6, Action::Watch(b"x")),
        ] {
            let bytes = encode(NodeId(9), None, &Scope::default(), &Manner::InTurn, &action);
            let mut later = bytes.to_vec();
            assert_eq!(later[..3], [1, kind, 0]);
            later[2] = 8;
            later.splice(11..11, [0, 3, 0xff, 0, 0]);
            assert_eq!(decode(&later).map(|it| it.action), Ok(action));
        }
    }

    #[test]
    fn a_target_of_a_later_version_concerns_nobody_here() {
        let bytes =
            b"\x01\x01\x01\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\x02\0\0\0\x02\0\x03z:a\0\x03r:bhi";
        let envelope = decode(bytes).unwrap();
        assert_eq!(envelope.scope.targets[..], [TopicRef::of("r:b").unwrap()]);
        assert_eq!(envelope.action, Action::Text("hi".into()));
    }

    #[test]
    fn deep_json_is_carried_as_text_without_recursion() {
        let json = format!(
            "{{\"json\":{}{}}}",
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        assert!(matches!(action_of(&json), Ok(Action::Text(text)) if text.len() == 200_000));
    }
}
