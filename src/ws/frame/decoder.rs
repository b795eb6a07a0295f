//! A client's frames, read from bytes that arrive in any pieces.
//!
//! ```text
//!             2 to 14 bytes, as its rules allow
//!  header --------------------------------------> payload
//!     ^                                              |  its last byte: a control frame is said, or a message if this
//!     +----------------------------------------------+  was the last of its frames; else it is kept until then
//!  anything else is a violation, after which nothing can be read
//! ```
//! Between the frames of a message there may be control frames, so each of the two has a place of its own. A message
//! that comes in one piece is made of the bytes where they are.
//!
//! A compressed message (RFC 7692, section 6.2) is inflated as it comes, and never further than it may be large. A few bytes may
//! be much work, so that it is done piece by piece, and only as much in one turn as its [`Allowance`] says: then what has come
//! and is not read yet is [left](Decoder::leave) for the next.

use bytes::Bytes;

use super::allowance::Allowance;
use super::heard::{Heard, Violation};
use super::partial::Partial;
use super::{BINARY, CLOSE, CONTINUATION, DEFLATED, FIN, MASKED, PING, PONG, TEXT};
use crate::model::close::{Close, reason};
use crate::model::message::Message;
use crate::ws::deflate::Inflater;

const RESERVED: u8 = 0x70;
/// Longest payload of a control frame (section 5.5).
const MAX_CONTROL: usize = 125;
/// Two bytes, eight of length, four of mask.
const MAX_HEADER: usize = 14;

/// Reads a client's frames from bytes that arrive in any pieces. Owns no memory between messages.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// Boxed, since between messages there is nothing.
    begun: Option<Box<Begun>>,
}

/// What has come of a message that is not whole.
#[derive(Debug, Default)]
struct Begun {
    header: [u8; MAX_HEADER],
    /// How much of the header is there.
    have: usize,
    frame: Option<Head>,
    control: Vec<u8>,
    message: Option<Partial>,
    /// What came, and is not read yet.
    left: Vec<u8>,
}

/// The frame whose payload is being read.
#[derive(Debug, Clone, Copy)]
struct Head {
    fin: bool,
    opcode: u8,
    /// It is a part of a compressed message.
    deflated: bool,
    mask: [u8; 4],
    remaining: usize,
}

impl Head {
    fn is_control(&self) -> bool {
        self.opcode >= CLOSE
    }
}

impl Decoder {
    /// Reads until something was said, the input is used up, or no more may be inflated; returns how much was used. Unmasks the
    /// input in place. After a violation nothing more can be read.
    pub(crate) fn decode(
        &mut self,
        input: &mut [u8],
        allowance: &mut Allowance,
    ) -> Result<(usize, Option<Heard>), Violation> {
        let mut begun = self
            .begun
            .take()
            .map_or_else(Begun::default, |begun| *begun);
        let decoded = begun.decode(input, allowance)?;
        if !begun.is_nothing() {
            self.begun = Some(Box::new(begun));
        }
        Ok(decoded)
    }

    /// Keeps what is not read in this turn.
    pub(crate) fn leave(&mut self, rest: &[u8]) {
        if !rest.is_empty() {
            self.begun.get_or_insert_default().left = rest.to_vec();
        }
    }

    /// What was not read in the last turn.
    pub(crate) fn take_left(&mut self) -> Vec<u8> {
        let Some(begun) = &mut self.begun else {
            return Vec::new();
        };
        let left = std::mem::take(&mut begun.left);
        if begun.is_nothing() {
            self.begun = None;
        }
        left
    }
}

#[cfg(all(test, feature = "deflate"))]
impl Decoder {
    /// Of the message that is not whole: how much is there, and the memory that it takes.
    pub(super) fn begun_data(&self) -> (usize, usize) {
        let message = self.begun.as_ref().and_then(|begun| begun.message.as_ref());
        message.map_or((0, 0), |message| {
            (message.data.len(), message.data.capacity())
        })
    }

    pub(super) fn is_idle(&self) -> bool {
        self.begun.is_none()
    }
}

impl Begun {
    fn is_nothing(&self) -> bool {
        self.have == 0 && self.frame.is_none() && self.message.is_none() && self.left.is_empty()
    }

    fn decode(
        &mut self,
        input: &mut [u8],
        allowance: &mut Allowance,
    ) -> Result<(usize, Option<Heard>), Violation> {
        let mut used = 0;
        loop {
            let Some(head) = &mut self.frame else {
                used += self.take_header(&input[used..]);
                if self.have < header_length(&self.header[..self.have]) {
                    return Ok((used, None));
                }
                self.frame = Some(self.check_header(allowance)?);
                self.have = 0;
                continue;
            };
            let mut count = head.remaining.min(input.len() - used);
            if head.deflated {
                if allowance.left() == 0 && head.remaining > 0 {
                    return Ok((used, None));
                }
                count = count.min(PIECE);
            }
            let chunk = &mut input[used..used + count];
            unmask(chunk, head.mask);
            head.mask.rotate_left(count % 4);
            head.remaining -= count;
            used += count;
            let head = *head;
            let heard = match head.deflated {
                false => self.take_payload(head, chunk)?,
                true => self.inflate(head, chunk, allowance)?,
            };
            if heard.is_some() || head.remaining > 0 && used == input.len() {
                return Ok((used, heard));
            }
        }
    }

    /// Takes what belongs to the header; returns how much.
    fn take_header(&mut self, input: &[u8]) -> usize {
        let mut taken = 0;
        while self.have < header_length(&self.header[..self.have]) && taken < input.len() {
            self.header[self.have] = input[taken];
            self.have += 1;
            taken += 1;
        }
        taken
    }

    fn check_header(&self, allowance: &Allowance) -> Result<Head, Violation> {
        let limit = allowance.limit();
        let [first, second, ..] = self.header;
        let (fin, opcode) = (first & FIN != 0, first & 0x0f);
        let may_be_deflated = allowance.inflates() && matches!(opcode, TEXT | BINARY);
        let allowed = if may_be_deflated { DEFLATED } else { 0 };
        if first & RESERVED & !allowed != 0 || second & MASKED == 0 {
            return Err(Violation::Protocol);
        }
        let mask = self.have - 4;
        let length = match &self.header[2..mask] {
            [] => u64::from(second & !MASKED),
            [a, b] => u64::from(u16::from_be_bytes([*a, *b])),
            bytes => bytes
                .iter()
                .fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        if length >> 63 != 0 {
            return Err(Violation::Protocol);
        }
        let begun = self.message.as_ref();
        let inflater = begun.and_then(|message| message.inflater.as_ref());
        let deflated = first & DEFLATED != 0 || opcode == CONTINUATION && inflater.is_some();
        match opcode {
            CONTINUATION if begun.is_none() => return Err(Violation::Protocol),
            TEXT | BINARY if begun.is_some() => return Err(Violation::Protocol),
            CLOSE | PING | PONG if !fin || length > MAX_CONTROL as u64 => {
                return Err(Violation::Protocol);
            }
            CONTINUATION | TEXT | BINARY if deflated => {
                let before = inflater.map_or(0, Inflater::came);
                if length > deflated_limit(limit).saturating_sub(before) as u64 {
                    return Err(Violation::TooBig);
                }
            }
            CONTINUATION | TEXT | BINARY => {
                let before = begun.map_or(0, |message| message.data.len());
                if length > (limit - before) as u64 {
                    return Err(Violation::TooBig);
                }
            }
            CLOSE | PING | PONG => {}
            _ => return Err(Violation::Protocol),
        }
        let mask = [0, 1, 2, 3].map(|byte| self.header[mask + byte]);
        Ok(Head {
            fin,
            opcode,
            deflated,
            mask,
            remaining: length as usize,
        })
    }

    /// Takes unmasked payload; says what was heard when it completes something.
    fn take_payload(&mut self, head: Head, chunk: &[u8]) -> Result<Option<Heard>, Violation> {
        let complete = head.remaining == 0;
        if complete {
            self.frame = None;
        }
        if head.is_control() {
            if !complete || !self.control.is_empty() {
                self.control.extend_from_slice(chunk);
            }
            if !complete {
                return Ok(None);
            }
            let collected = std::mem::take(&mut self.control);
            let payload = if collected.is_empty() {
                chunk
            } else {
                &collected
            };
            return control(head.opcode, payload).map(Some);
        }
        if complete && head.fin && self.message.is_none() {
            return whole(head.opcode == TEXT, chunk).map(Some);
        }
        let text = head.opcode == TEXT;
        let message = self.message.get_or_insert_with(|| Partial {
            text,
            ..Partial::default()
        });
        message.extend(chunk, complete && head.fin)?;
        if !complete || !head.fin {
            return Ok(None);
        }
        let message = self.message.take().unwrap_or_default();
        message.finish().map(Some)
    }

    /// Takes unmasked payload of a compressed message.
    fn inflate(
        &mut self,
        head: Head,
        chunk: &[u8],
        allowance: &mut Allowance,
    ) -> Result<Option<Heard>, Violation> {
        let complete = head.remaining == 0;
        if complete {
            self.frame = None;
        }
        let message = self.message.get_or_insert_with(|| Partial {
            text: head.opcode == TEXT,
            inflater: Inflater::of(head.deflated),
            ..Partial::default()
        });
        let work = message.inflate(chunk, complete && head.fin, allowance.limit())?;
        allowance.spend(work);
        if !complete || !head.fin {
            return Ok(None);
        }
        let message = self.message.take().unwrap_or_default();
        message.finish().map(Some)
    }
}

/// A message that came in one piece.
fn whole(text: bool, payload: &[u8]) -> Result<Heard, Violation> {
    Ok(Heard::Message(match text {
        true => Message::Text(
            std::str::from_utf8(payload)
                .map_err(|_| Violation::NotUtf8)?
                .into(),
        ),
        false => Message::Binary(Bytes::copy_from_slice(payload)),
    }))
}

/// Largest compressed form of a message: what does not get smaller may get a little larger.
fn deflated_limit(limit: usize) -> usize {
    limit.saturating_add(limit / 8).saturating_add(64)
}

fn control(opcode: u8, payload: &[u8]) -> Result<Heard, Violation> {
    match (opcode, payload) {
        (PING, _) => Ok(Heard::Ping(payload.to_vec())),
        (PONG, _) => Ok(Heard::Pong),
        (_, []) => Ok(Heard::Close(reason::NO_STATUS)),
        (_, [a, b, reason @ ..]) => {
            let reason = std::str::from_utf8(reason).map_err(|_| Violation::NotUtf8)?;
            let close = Close::new(u16::from_be_bytes([*a, *b]), reason);
            if close.is_sendable() {
                Ok(Heard::Close(close))
            } else {
                Err(Violation::Protocol)
            }
        }
        (_, [_]) => Err(Violation::Protocol),
    }
}

/// How long the header is, as far as its beginning tells.
fn header_length(beginning: &[u8]) -> usize {
    let mask = 4;
    match beginning.get(1) {
        None => 2,
        // A frame without a mask is wrong, however it goes on.
        Some(second) if second & MASKED == 0 => 2,
        Some(second) => match second & !MASKED {
            126 => 2 + 2 + mask,
            127 => 2 + 8 + mask,
            _ => 2 + mask,
        },
    }
}

/// So many bytes are inflated at once: to 258 KiB at most.
const PIECE: usize = 256;

/// Eight bytes at a time, which the compiler turns into wider still.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    rest.iter_mut()
        .zip(mask.iter().cycle())
        .for_each(|(byte, mask)| *byte ^= mask);
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::ws::Agreed;
    use crate::ws::frame::Frame;

    const LIMIT: usize = 70_000;

    /// A client's frame.
    fn client(fin: bool, opcode: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut frame = Frame::new(opcode, &[payload]).as_bytes().to_vec();
        frame[0] = frame[0] & !FIN | if fin { FIN } else { 0 };
        frame[1] |= MASKED;
        let header = frame.len() - payload.len();
        unmask(&mut frame[header..], mask);
        frame.splice(header..header, mask);
        frame
    }

    /// Everything heard when the input comes in these pieces.
    fn hear(input: &[u8], cuts: &[usize]) -> (Vec<Heard>, Option<Violation>) {
        let mut decoder = Decoder::default();
        let mut heard = Vec::new();
        let mut start = 0;
        for end in cuts.iter().copied().chain([input.len()]) {
            let mut piece = input[start..end].to_vec();
            let mut rest = &mut piece[..];
            while !rest.is_empty() {
                match decoder.decode(rest, &mut Allowance::of(Agreed::NOTHING, LIMIT)) {
                    Ok((used, said)) => {
                        assert!(used > 0 || said.is_some(), "no progress");
                        heard.extend(said);
                        rest = &mut rest[used..];
                    }
                    Err(violation) => return (heard, Some(violation)),
                }
            }
            start = end;
        }
        (heard, None)
    }

    #[derive(Clone, Debug)]
    enum Said {
        Message {
            text: bool,
            payload: Vec<u8>,
            pieces: Vec<usize>,
            pings: bool,
        },
        Ping(Vec<u8>),
    }

    fn said() -> impl Strategy<Value = Said> {
        let payload = prop_oneof![
            vec(any::<u8>(), 0..300),
            "\\PC{0,100}".prop_map(String::into_bytes)
        ];
        prop_oneof![
            4 => (any::<bool>(), payload, vec(0usize..300, 0..4), any::<bool>())
                .prop_map(|(text, payload, pieces, pings)| Said::Message { text, payload, pieces, pings }),
            1 => vec(any::<u8>(), 0..=MAX_CONTROL).prop_map(Said::Ping),
        ]
    }

    proptest! {
        /// Fragments, interleaved pings and any split into reads give the same messages.
        #[test]
        fn any_split_gives_the_same_messages(all in vec(said(), 1..5), mask: [u8; 4], mut cuts in vec(any::<prop::sample::Index>(), 0..20)) {
            let (mut input, mut expected) = (Vec::new(), Vec::new());
            let mut violated = None;
            for said in &all {
                match said {
                    Said::Ping(payload) => {
                        input.extend(client(true, PING, mask, payload));
                        expected.push(Heard::Ping(payload.clone()));
                    }
                    Said::Message { text, payload, pieces, pings } => {
                        let mut ends: Vec<usize> = pieces.iter().map(|end| end % (payload.len() + 1)).collect();
                        ends.sort_unstable();
                        ends.push(payload.len());
                        let mut start = 0;
                        for (n, end) in ends.iter().enumerate() {
                            let opcode = if n > 0 { CONTINUATION } else if *text { TEXT } else { BINARY };
                            input.extend(client(n + 1 == ends.len(), opcode, mask, &payload[start..*end]));
                            start = *end;
                            if *pings && n + 1 < ends.len() {
                                input.extend(client(true, PING, mask, b"between"));
                                expected.push(Heard::Ping(b"between".to_vec()));
                            }
                        }
                        match (text, String::from_utf8(payload.clone())) {
                            (true, Ok(text)) => expected.push(Heard::Message(text.into())),
                            (true, Err(_)) => { violated = Some(Violation::NotUtf8); break }
                            (false, _) => expected.push(Heard::Message(payload.clone().into())),
                        }
                    }
                }
            }
            let mut cuts: Vec<usize> = cuts.drain(..).map(|cut| cut.index(input.len())).collect();
            cuts.sort_unstable();
            let (heard, violation) = hear(&input, &cuts);
            prop_assert_eq!(violation, violated);
            if violated.is_some() {
                // Bad text may be noticed before the pings that follow within it.
                prop_assert!(expected.starts_with(&heard));
            } else {
                prop_assert_eq!(heard, expected);
            }
        }

        #[test]
        fn any_bytes_are_heard_or_refused_never_a_panic(bytes: Vec<u8>) {
            let _ = hear(&bytes, &[]);
        }

        #[test]
        fn unmasking_is_the_same_from_any_offset(payload: Vec<u8>, mask: [u8; 4], cut: prop::sample::Index) {
            let plain: Vec<u8> = payload.iter().enumerate().map(|(n, byte)| byte ^ mask[n % 4]).collect();
            let cut = cut.index(payload.len() + 1);
            let mut split = payload;
            unmask(&mut split[..cut], mask);
            let mut rotated = mask;
            rotated.rotate_left(cut % 4);
            unmask(&mut split[cut..], rotated);
            prop_assert_eq!(split, plain);
        }
    }

    /// What tungstenite makes of the same bytes.
    fn hear_by_tungstenite(input: &[u8]) -> (Vec<Heard>, Option<Violation>) {
        use tokio_tungstenite::tungstenite::error::{Error, ProtocolError};
        use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
        use tokio_tungstenite::tungstenite::{Message as Theirs, WebSocket};

        struct Bytes<'a>(&'a [u8]);
        impl std::io::Read for Bytes<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                self.0.read(buffer)
            }
        }
        impl std::io::Write for Bytes<'_> {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }

        let config = WebSocketConfig::default()
            .max_message_size(Some(LIMIT))
            .max_frame_size(Some(LIMIT));
        let mut theirs = WebSocket::from_raw_socket(Bytes(input), Role::Server, Some(config));
        let mut heard = Vec::new();
        loop {
            heard.push(match theirs.read() {
                Ok(Theirs::Text(text)) => Heard::Message(text.as_str().into()),
                Ok(Theirs::Binary(bytes)) => Heard::Message(bytes.into()),
                Ok(Theirs::Ping(payload)) => Heard::Ping(payload.to_vec()),
                Ok(Theirs::Pong(_)) => Heard::Pong,
                Ok(Theirs::Close(None)) => Heard::Close(Close::new(1005, "")),
                Ok(Theirs::Close(Some(close))) => {
                    Heard::Close(Close::new(u16::from(close.code), close.reason.as_str()))
                }
                Ok(Theirs::Frame(_)) => continue,
                Err(Error::Capacity(_)) => return (heard, Some(Violation::TooBig)),
                Err(Error::Utf8(_)) => return (heard, Some(Violation::NotUtf8)),
                Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))
                | Err(Error::ConnectionClosed) => {
                    return (heard, None);
                }
                Err(_) => return (heard, Some(Violation::Protocol)),
            });
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// Valid frames with a byte changed here and there, split anywhere, against another library.
        #[test]
        fn another_library_hears_the_same(
            frames in vec((any::<bool>(), prop_oneof![0u8..3, 8u8..11, 0u8..16], any::<[u8; 4]>(), vec(32u8..127, 0..140)), 1..5),
            changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..2),
            cuts in vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut input: Vec<u8> = frames.iter().flat_map(|(fin, opcode, mask, payload)| client(*fin, *opcode, *mask, payload)).collect();
            for (at, byte) in changes {
                let at = at.index(input.len());
                input[at] = byte;
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len())).collect();
            cuts.sort_unstable();
            let (mut ours, our_violation) = hear(&input, &cuts);
            let (theirs, their_violation) = hear_by_tungstenite(&input);
            // After a Close they stop, and a bad code in it they answer instead of refusing it.
            if let Some(end) = theirs.iter().position(|heard| matches!(heard, Heard::Close(_))) {
                prop_assert_eq!(&theirs[..end], &ours[..end.min(ours.len())]);
                let refused = ours.len() == end && our_violation == Some(Violation::Protocol);
                prop_assert!(refused || ours.get(end) == theirs.get(end));
            } else if their_violation.is_some() || our_violation.is_some() {
                // We name bad text and bad frames as soon as they are certain, they when all has come.
                ours.truncate(theirs.len());
                prop_assert_eq!(&ours[..], &theirs[..ours.len()]);
                prop_assert!(our_violation.is_some(), "they refuse with {:?}", their_violation);
            } else {
                prop_assert_eq!(ours, theirs);
            }
        }
    }

    #[test]
    fn lengths_are_written_in_the_shortest_form() {
        for (length, header) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let frame = Frame::binary(&vec![7; length]);
            assert_eq!(frame.len(), header + length);
            let masked = client(true, BINARY, [1, 2, 3, 4], &vec![7; length]);
            assert_eq!(
                hear(&masked, &[]).0,
                [Heard::Message(vec![7; length].into())]
            );
        }
        assert_eq!(Frame::text("hi").as_bytes(), b"\x81\x02hi");
        assert_eq!(
            Frame::close(&Close::new(1000, "x")).as_bytes(),
            b"\x88\x03\x03\xe8x"
        );
        assert_eq!(Frame::close(&Close::new(1006, "x")).as_bytes(), b"\x88\x00");
    }

    #[test]
    fn every_breach_is_named() {
        let zero = [0; 4];
        for (what, frame, violation) in [
            (
                "a reserved bit",
                vec![0xc1, 0x80, 0, 0, 0, 0],
                Violation::Protocol,
            ),
            (
                "a reserved opcode",
                vec![0x83, 0x80, 0, 0, 0, 0],
                Violation::Protocol,
            ),
            (
                "a reserved control opcode",
                vec![0x8b, 0x80, 0, 0, 0, 0],
                Violation::Protocol,
            ),
            (
                "no mask",
                vec![0x81, 0x01, b'x', 0, 0, 0],
                Violation::Protocol,
            ),
            (
                "a fragmented ping",
                client(false, PING, zero, b""),
                Violation::Protocol,
            ),
            (
                "a long ping",
                client(true, PING, zero, &[0; 126]),
                Violation::Protocol,
            ),
            (
                "a continuation of nothing",
                client(true, CONTINUATION, zero, b""),
                Violation::Protocol,
            ),
            (
                "a close of one byte",
                client(true, CLOSE, zero, b"x"),
                Violation::Protocol,
            ),
            (
                "a close with 1005",
                client(true, CLOSE, zero, &1005u16.to_be_bytes()),
                Violation::Protocol,
            ),
            (
                "a close with 2999",
                client(true, CLOSE, zero, &2999u16.to_be_bytes()),
                Violation::Protocol,
            ),
            (
                "a close with bad text",
                client(true, CLOSE, zero, b"\x03\xe8\xff"),
                Violation::NotUtf8,
            ),
            (
                "bad text",
                client(true, TEXT, zero, b"\xff"),
                Violation::NotUtf8,
            ),
            (
                "half a character",
                client(true, TEXT, zero, b"\xc3"),
                Violation::NotUtf8,
            ),
            (
                "a length with its highest bit",
                vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                Violation::Protocol,
            ),
            (
                "a message over the limit",
                vec![0x82, 0xff, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
                Violation::TooBig,
            ),
        ] {
            assert_eq!(hear(&frame, &[]), (vec![], Some(violation)), "{what}");
        }
        let mut two_beginnings = client(false, TEXT, zero, b"a");
        two_beginnings.extend(client(true, TEXT, zero, b"b"));
        assert_eq!(hear(&two_beginnings, &[]).1, Some(Violation::Protocol));
        let mut growing = client(false, BINARY, zero, &[0; 65_000]);
        growing.extend(client(true, CONTINUATION, zero, &[0; 65_000]));
        assert_eq!(hear(&growing, &[]).1, Some(Violation::TooBig));
    }

    #[test]
    fn bad_text_is_noticed_before_the_message_ends() {
        let mut input = client(false, TEXT, [0; 4], b"ok \xe2\x82");
        assert_eq!(
            hear(&input, &[]).1,
            None,
            "a character may still be completed"
        );
        input.extend(client(false, CONTINUATION, [0; 4], b"\xff"));
        assert_eq!(hear(&input, &[]).1, Some(Violation::NotUtf8));
    }

    #[test]
    fn a_million_pieces_take_no_more_than_their_message() {
        let mut decoder = Decoder::default();
        for piece in 0..1_000_000 {
            let opcode = if piece == 0 { BINARY } else { CONTINUATION };
            // Each second one is empty.
            let mut frame = client(false, opcode, [7; 4], &[7][..piece % 2]);
            assert_eq!(
                decoder.decode(
                    &mut frame,
                    &mut Allowance::of(Agreed::NOTHING, usize::MAX >> 1)
                ),
                Ok((frame.len(), None))
            );
        }
        let begun = decoder.begun.expect("half a message");
        let data = &begun.message.expect("of which a part is there").data;
        assert_eq!(data.len(), 500_000);
        assert!(data.capacity() <= 2 * data.len(), "{}", data.capacity());
    }

    #[test]
    fn a_promise_of_much_allocates_nothing() {
        let mut decoder = Decoder::default();
        let mut header = [0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(
            decoder.decode(
                &mut header,
                &mut Allowance::of(Agreed::NOTHING, usize::MAX >> 1)
            ),
            Ok((14, None))
        );
        let message = decoder.begun.and_then(|begun| begun.message);
        assert!(message.is_none_or(|message| message.data.capacity() == 0));
    }
}
