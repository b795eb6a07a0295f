//! What Redis says to a subscriber and to a publisher (RESP2, with RESP3 pushes understood as well), read
//! in place: a message is handed on as slices of the read buffer.
//!
//! A message larger than the limit is skipped as it arrives, so that no publisher can make a node
//! allocate. What is not complete is not parsed again until it is: however it is cut, every byte is looked
//! at a few times only.
//!
//! ```text
//!               complete: handed on
//!  at a reply ----------------------> at the next
//!    |     ^
//!    |     +--- too long, known from its beginning: Oversized, and skipped as it arrives
//!    |
//!    +--> incomplete: an outline says how much of it is there, until it is complete; or broken, for good
//! ```

use bytes::{Buf, BytesMut};

use self::cursor::parse;
use self::outline::Outline;

mod cursor;
mod outline;

/// One thing that Redis said.
#[derive(Debug, PartialEq)]
pub(crate) enum Reply<'a> {
    Message {
        channel: &'a [u8],
        payload: &'a [u8],
    },
    /// A message too large to be one of ours; it will be skipped.
    Oversized,
    /// The answer to a SUBSCRIBE of one channel.
    Subscribed {
        channel: &'a [u8],
    },
    /// The answer to an UNSUBSCRIBE of one channel; or Redis ended the subscription by itself.
    Unsubscribed {
        channel: &'a [u8],
    },
    /// The answer to HELLO; role and mode are absent where Redis does not tell them.
    Hello {
        role: Option<&'a [u8]>,
        mode: Option<&'a [u8]>,
    },
    Error(&'a [u8]),
    Integer(usize),
    /// A text.
    Bulk(&'a [u8]),
    /// Several values, where they are [wanted](RespReader::of_values).
    Array(Items<'a>),
    /// Anything else: OK, PONG.
    Other,
}

/// Redis broke its own protocol; only a new connection helps.
#[derive(Debug, PartialEq)]
pub(crate) struct Broken;

/// Bytes as they arrive, and what of them is to be skipped.
#[derive(Debug)]
pub(crate) struct RespReader {
    buffer: BytesMut,
    skip: usize,
    limit: usize,
    bounds: Bounds,
    /// How far the first reply has come, if it was not complete when it was parsed.
    incomplete: Option<Outline>,
}

/// What is in an array.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Items<'a> {
    rest: &'a [u8],
    left: usize,
}

/// One item of an array.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Item<'a> {
    Bulk(&'a [u8]),
    Integer(usize),
    Error(&'a [u8]),
    /// Anything else.
    Other,
}

/// What a reply that is no message may be at most, …
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// … in bytes, …
    bytes: usize,
    /// … and in elements of one array.
    elements: usize,
    /// Whether arrays are read that are no pushes.
    arrays: bool,
}

/// Room for one read.
const CHUNK: usize = 64 * 1024;
/// Longest line: errors and lengths.
const MAX_LINE: usize = 4 * 1024;
/// Longest reply that is no message. A HELLO of a server with a few modules takes less than 1 KiB.
const MAX_REPLY: usize = 64 * 1024;
/// Most elements of a HELLO, and of what is in it: the modules of the server.
const MAX_FIELDS: usize = 1024;
/// Of a subscriber, …
const PUSHES: Bounds = Bounds {
    bytes: MAX_REPLY,
    elements: MAX_FIELDS,
    arrays: false,
};
/// … and of who runs scripts: an answer for each of the topics of a union, with its reason.
const VALUES: Bounds = Bounds {
    bytes: 32 * 1024 * 1024,
    elements: 128 * 1024,
    arrays: true,
};

impl RespReader {
    /// `limit` is the size of the largest message that is wanted, in bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::with_capacity(CHUNK),
            skip: 0,
            limit,
            bounds: PUSHES,
            incomplete: None,
        }
    }

    /// One that reads what scripts answer as well.
    pub(crate) fn of_values(limit: usize) -> Self {
        Self {
            bounds: VALUES,
            ..Self::new(limit)
        }
    }

    /// The space into which the next bytes are read.
    pub(crate) fn space(&mut self) -> &mut BytesMut {
        if self.buffer.is_empty() && self.buffer.capacity() > CHUNK {
            self.buffer = BytesMut::new();
        }
        self.buffer.reserve(CHUNK / 4);
        &mut self.buffer
    }

    /// Hands on what is complete, at most so many replies; whether there may be more.
    pub(crate) fn read(
        &mut self,
        most: usize,
        mut on: impl FnMut(Reply<'_>),
    ) -> Result<bool, Broken> {
        let (mut used, mut replies) = (0, 0);
        let result = loop {
            if replies == most {
                break Ok(true);
            }
            let skipped = self.skip.min(self.buffer.len() - used);
            self.skip -= skipped;
            used += skipped;
            let rest = &self.buffer[used..];
            if let Some(outline) = &mut self.incomplete
                && !outline.is_complete(rest, self.limit, self.bounds)
            {
                break Ok(false);
            }
            match parse(rest, self.limit, self.bounds) {
                Ok(Some((length, reply))) => {
                    on(reply);
                    replies += 1;
                    self.incomplete = None;
                    // What is longer than the buffer is skipped as it arrives.
                    self.skip = length;
                }
                Ok(None) => {
                    let seen = self.incomplete.is_some();
                    let outline = self.incomplete.get_or_insert_default();
                    // What is complete makes sense, or never will.
                    break match seen || outline.is_complete(rest, self.limit, self.bounds) {
                        true => Err(Broken),
                        false => Ok(false),
                    };
                }
                Err(broken) => break Err(broken),
            }
        };
        self.buffer.advance(used);
        result
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(channel: &str, payload: &[u8]) -> Vec<u8> {
        let mut out = format!(
            "*3\r\n$7\r\nmessage\r\n${}\r\n{channel}\r\n${}\r\n",
            channel.len(),
            payload.len()
        )
        .into_bytes();
        out.extend(payload);
        out.extend(b"\r\n");
        out
    }

    /// Something that Redis says, something like it, or a part of that.
    fn value() -> impl Strategy<Value = Vec<u8>> {
        let text = |text: &'static str| Just(text.as_bytes().to_vec());
        let hello = "*8\r\n$6\r\nserver\r\n$5\r\nredis\r\n$4\r\nrole\r\n$7\r\nreplica\r\n\
                     $5\r\nproto\r\n:2\r\n$7\r\nmodules\r\n*1\r\n*2\r\n:1\r\n$1\r\nx\r\n";
        prop_oneof![
            4 => (0usize..400).prop_map(|size| message("n:u", &vec![b'x'; size])),
            2 => text("*3\r\n$9\r\nsubscribe\r\n$3\r\nn:u\r\n:1\r\n"),
            2 => text(hello),
            1 => text("-ERR no\r\n"),
            1 => text(":7\r\n"),
            1 => text("*2\r\n$4\r\npong\r\n$0\r\n\r\n"),
            1 => text("*3\r\n$7\r\nmessage\r\n*2\r\n"),
            1 => "[*>$:+\\-0-3a\r\n]{0,8}".prop_map(String::into_bytes),
        ]
    }

    fn read(
        limit: usize,
        pieces: impl IntoIterator<Item = Vec<u8>>,
    ) -> Result<Vec<String>, Broken> {
        let (said, end) = read_all(limit, pieces);
        end.map(|()| said)
    }

    /// Everything said, written down, when the input arrives in pieces; and whether it broke.
    fn read_all(
        limit: usize,
        pieces: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> (Vec<String>, Result<(), Broken>) {
        let mut reader = RespReader::new(limit);
        let mut said = Vec::new();
        for piece in pieces {
            reader.space().extend_from_slice(piece.as_ref());
            let read = reader.read(usize::MAX, |reply| {
                said.push(match reply {
                    Reply::Message { channel, payload } => {
                        format!("{}={}", channel.escape_ascii(), payload.escape_ascii())
                    }
                    Reply::Subscribed { channel } => format!("+{}", channel.escape_ascii()),
                    Reply::Unsubscribed { channel } => format!("-{}", channel.escape_ascii()),
                    Reply::Error(text) => format!("error {}", text.escape_ascii()),
                    Reply::Hello {
                        role: Some(role), ..
                    } => format!("role {}", role.escape_ascii()),
                    other => format!("{other:?}"),
                });
            });
            if let Err(broken) = read {
                return (said, Err(broken));
            }
            assert!(reader.buffer.capacity() <= 2 * CHUNK + limit);
        }
        (said, Ok(()))
    }

    fn conversation() -> (Vec<u8>, Vec<&'static str>) {
        let mut input = b"+OK\r\n*3\r\n$9\r\nsubscribe\r\n$3\r\nn:u\r\n:1\r\n".to_vec();
        input.extend(message("n:u", b"a\r\nb"));
        input.extend(message("n:u", b""));
        input.extend(message("n:u", &[b'x'; 300]));
        input.extend(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n-NOPERM no\r\n");
        input.extend(b"*8\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:2\r\n");
        input.extend(b"$4\r\nrole\r\n$7\r\nreplica\r\n$7\r\nmodules\r\n*1\r\n*2\r\n");
        input.extend(b"$4\r\nargs\r\n*1\r\n$1\r\nx\r\n");
        input.extend(b"*4\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:2\r\n");
        input.extend(b">3\r\n$11\r\nunsubscribe\r\n$3\r\nn:u\r\n:0\r\n");
        let said = vec![
            "Other",
            "+n:u",
            "n:u=a\\r\\nb",
            "n:u=",
            "Oversized",
            "Other",
            "error NOPERM no",
            "role replica",
            "Hello { role: None, mode: None }",
            "-n:u",
        ];
        (input, said)
    }

    proptest! {
        #[test]
        fn any_split_of_the_stream_says_the_same(mut cuts in proptest::collection::vec(0usize..700, 0..12)) {
            let (input, expected) = conversation();
            cuts.retain(|cut| *cut < input.len());
            cuts.sort_unstable();
            let ends = cuts.iter().copied().chain([input.len()]);
            let starts = [0].into_iter().chain(cuts.iter().copied());
            let pieces = starts.zip(ends).map(|(start, end)| input[start..end].to_vec());
            prop_assert_eq!(read(256, pieces).unwrap(), expected);
        }

        #[test]
        fn pieces_of_anything_say_what_the_whole_says(
            values in proptest::collection::vec(value(), 0..12),
            cuts in proptest::collection::vec(1usize..40, 1..12),
        ) {
            let input = values.concat();
            let (whole, whole_end) = read_all(256, [&input[..]]);
            let mut rest = &input[..];
            let pieces = cuts.iter().cycle().map_while(|cut| {
                let (piece, left) = rest.split_at_checked(*cut).unwrap_or((rest, &[]));
                rest = left;
                (!piece.is_empty()).then_some(piece)
            });
            let (said, end) = read_all(256, pieces);
            prop_assert_eq!(said, whole);
            // In pieces, nonsense is known as such when it is complete.
            prop_assert!(end.is_ok() || whole_end.is_err());
        }

        #[test]
        fn garbage_is_an_error_never_a_panic(bytes: Vec<u8>, text in "[*>$:+\\-0-9a-z\r\n]{0,60}") {
            let _ = read(256, [bytes]);
            let _ = read(256, [text.into_bytes()]);
        }
    }

    #[test]
    fn what_a_script_answers_is_read_value_by_value_however_it_comes() {
        let reply = b"*7\r\n$2\r\na\r\r\n:7\r\n-OOM no\r\n$-1\r\n*1\r\n:1\r\n+OK\r\n:0\r\n:5\r\n";
        let expected = [
            Item::Bulk(b"a\r"),
            Item::Integer(7),
            Item::Error(b"OOM no"),
            Item::Other,
            Item::Other,
            Item::Other,
            Item::Integer(0),
        ];
        for size in 1..reply.len() {
            let (mut reader, mut seen) = (RespReader::of_values(256), 0);
            for piece in reply.chunks(size) {
                reader.space().extend_from_slice(piece);
                let on = |reply: Reply<'_>| {
                    match reply {
                        Reply::Array(items) => assert_eq!(items.collect::<Vec<_>>(), expected),
                        other => assert_eq!(other, Reply::Integer(5)),
                    }
                    seen += 1;
                };
                reader.read(usize::MAX, on).unwrap();
            }
            assert_eq!(seen, 2, "in pieces of {size}");
        }
        let mut reader = RespReader::new(256);
        reader.space().extend_from_slice(reply);
        let read = reader.read(usize::MAX, |_| ());
        assert_eq!(
            read,
            Err(Broken),
            "nobody asked a subscriber's Redis for it"
        );
    }

    #[test]
    fn a_message_over_the_limit_is_skipped_without_being_kept() {
        let mut reader = RespReader::new(1024);
        let mut input = message("n:u", &vec![b'x'; 40_000_000]);
        input.extend(message("n:u", b"after"));
        let mut said = Vec::new();
        for piece in input.chunks(10_000) {
            reader.space().extend_from_slice(piece);
            let seen = |reply: Reply<'_>| said.push(format!("{reply:?}").starts_with("Message"));
            reader.read(usize::MAX, seen).unwrap();
            assert!(
                reader.buffer.capacity() < 1_000_000,
                "{}",
                reader.buffer.capacity()
            );
        }
        assert_eq!(said, [false, true]);
    }

    /// 1,000 modules with 1,000 words each are within every other bound.
    #[test]
    fn a_hello_without_end_is_given_up() {
        let mut reader = RespReader::new(10_000_000);
        let head = "*4\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nmodules\r\n*1000\r\n";
        let module = format!("*1000\r\n{}", "$4\r\nword\r\n".repeat(1000));
        let input = [head.to_owned(), module.repeat(1000)].concat();
        let mut read = 0;
        let broken = input.as_bytes().chunks(1000).any(|piece| {
            reader.space().extend_from_slice(piece);
            read += piece.len();
            reader.read(usize::MAX, |_| ()).is_err()
        });
        assert!(broken && read <= MAX_REPLY + 1000, "{read} bytes were read");
    }

    /// A HELLO with so many elements.
    fn hello(elements: usize) -> Vec<u8> {
        let fields = "$1\r\nx\r\n:1\r\n".repeat(elements / 2 - 1);
        let head = format!("*{elements}\r\n$6\r\nserver\r\n$5\r\nredis\r\n");
        [head, fields].concat().into_bytes()
    }

    #[test]
    fn every_byte_of_an_incomplete_reply_is_looked_at_once() {
        let reply = hello(MAX_FIELDS);
        assert!(reply.len() < MAX_REPLY);
        let mut outline = Outline::default();
        let mut steps = 0;
        for end in 1..=reply.len() {
            let before = outline.at.max(outline.searched);
            let complete = outline.is_complete(&reply[..end], 256, PUSHES);
            assert_eq!(complete, end == reply.len(), "after {end} bytes");
            steps += outline.at.max(outline.searched) - before;
        }
        assert!(steps <= reply.len(), "{steps} steps");
    }

    /// Parsed again for every byte, one that is eight times as long takes 64 times as long.
    #[test]
    fn a_reply_in_pieces_is_not_parsed_again_for_each() {
        let quickest = |elements: usize| {
            let reply = hello(elements);
            let times = (0..5).map(|_| {
                let begun = std::time::Instant::now();
                assert!(read_all(256, reply.chunks(1)).1.is_ok());
                begun.elapsed()
            });
            times.min().unwrap()
        };
        let (short, long) = (quickest(MAX_FIELDS / 8), quickest(MAX_FIELDS));
        assert!(long < 30 * short, "{short:?}, then {long:?}");
    }

    #[test]
    fn a_broken_stream_is_noticed() {
        for input in [
            "x\r\n",
            "+OK\n",
            "*3\r\n$7\r\nmessage\r\n$99999\r\n",
            "$-5\r\n",
            "*2\r\n$3\r\nfoo\r\n$3\r\nbar\r\n",
            "*4\r\n$6\r\nserver\r\n$5\r\nredis\r\n$1\r\nx\r\n*9999\r\n",
            "*4\r\n$6\r\nserver\r\n$5\r\nredis\r\n$1\r\nx\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
            "\r\n",
            "$18446744073709551615\r\n",
        ] {
            assert_eq!(
                read(256, [input.as_bytes().to_vec()]),
                Err(Broken),
                "{input:?}"
            );
        }
        assert_eq!(read(256, [vec![b'+'; MAX_LINE + 1]]), Err(Broken));
    }

    #[test]
    fn memory_of_a_large_message_is_given_back() {
        let mut reader = RespReader::new(10_000_000);
        for piece in message("n:u", &vec![b'x'; 5_000_000]).chunks(60_000) {
            reader.space().extend_from_slice(piece);
            reader.read(usize::MAX, |_| ()).unwrap();
        }
        assert!(reader.space().capacity() <= CHUNK);
    }
}
