//! Frames as rules: RFC 6455, section 5, from the server's side. No I/O, no clock. How they are written; [`decoder`] reads
//! them.

mod allowance;
mod decoder;
mod heard;
mod partial;
#[cfg(all(test, feature = "deflate"))]
mod tests;

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};

pub(crate) use self::allowance::Allowance;
pub(crate) use self::decoder::Decoder;
pub(crate) use self::heard::{Heard, Violation};
use crate::model::close::Close;
use crate::model::form::Form;
use crate::model::history::mark::Number;
use crate::model::message::Message;
use crate::model::utf8::Utf8Bytes;
use crate::ws::{Agreed, Deflating};

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

const FIN: u8 = 0x80;
/// The first frame of a compressed message (RFC 7692, section 6).
const DEFLATED: u8 = 0x40;
const MASKED: u8 = 0x80;

/// What begins the texts that are no app's, where a client is told positions.
pub(crate) const MARK: char = '\u{1}';

/// A frame as it goes onto the wire: encoded once, shared by all who get it. No `Bytes`, of which each clone is a call
/// through a table and twice as large: there is one for every recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame(Arc<[u8]>);

impl Frame {
    pub(crate) fn text(text: &str) -> Self {
        Self::new(TEXT, &[text.as_bytes()])
    }

    pub(crate) fn binary(bytes: &[u8]) -> Self {
        Self::new(BINARY, &[bytes])
    }

    pub(crate) fn message(message: &Message) -> Self {
        match message {
            Message::Text(text) => Self::text(text),
            Message::Binary(bytes) => Self::binary(bytes),
        }
    }

    /// It, behind a text with its number, for a client that is told positions.
    pub(crate) fn marked(&self, number: Number) -> Self {
        let mark = Self::text(&format!("{MARK}{}", number.0));
        Self([mark.as_bytes(), self.as_bytes()].concat().into())
    }

    /// Apart from its number, if it has one.
    pub(crate) fn unmarked(self) -> (Option<Number>, Self) {
        let whole = &self.0;
        let is_short_text = matches!(whole.first(), Some(first) if *first == FIN | TEXT);
        let mark = match whole.get(1) {
            Some(length @ 2..=125) if is_short_text => 2 + usize::from(*length),
            _ => return (None, self),
        };
        if whole.len() <= mark {
            return (None, self);
        }
        let digits = std::str::from_utf8(&whole[3..mark]).ok();
        let number = digits.and_then(|digits| digits.parse().ok()).map(Number);
        (number, Self(whole[mark..].into()))
    }

    /// A text of the app as a client gets it that is told positions.
    pub(crate) fn told_apart(&self) -> Option<Self> {
        self.begins_with_mark()
            .then(|| Self::new(TEXT, &[&[MARK as u8], self.payload()]))
    }

    fn begins_with_mark(&self) -> bool {
        let is_text = self.0.first() == Some(&(FIN | TEXT));
        is_text && self.payload().first() == Some(&(MARK as u8))
    }

    /// It, compressed; nothing where that makes it no smaller. A text that some clients get otherwise is not.
    fn deflated(&self, deflating: &Deflating) -> Option<Self> {
        if self.begins_with_mark() {
            return None;
        }
        let opcode = self.0.first()? & !FIN;
        let deflated = deflating.deflate(self.payload())?;
        let frame = Self::new(DEFLATED | opcode, &[&deflated]);
        (frame.len() < self.len()).then_some(frame)
    }

    pub(crate) fn is_deflated(&self) -> bool {
        self.0.first().is_some_and(|first| first & DEFLATED != 0)
    }

    /// A Close frame; without a body when the code may not be sent.
    pub(crate) fn close(close: &Close) -> Self {
        match close.is_sendable() {
            true => Self::new(
                CLOSE,
                &[&close.code.0.to_be_bytes(), close.wire_reason().as_bytes()],
            ),
            false => Self::new(CLOSE, &[]),
        }
    }

    pub(crate) fn ping() -> Self {
        Self::new(PING, &[])
    }

    /// Answers a ping with its own payload, at most 125 bytes.
    pub(crate) fn pong(payload: &[u8]) -> Self {
        Self::new(PONG, &[payload])
    }

    pub(crate) fn is_ping(&self) -> bool {
        self.0.first() == Some(&(FIN | PING))
    }

    pub(crate) fn is_pong(&self) -> bool {
        self.0.first() == Some(&(FIN | PONG))
    }

    #[cfg(feature = "testing")]
    pub(crate) fn is_close(&self) -> bool {
        self.0.first() == Some(&(FIN | CLOSE))
    }

    /// What it carries, without copying; `None` for a control frame.
    pub(crate) fn into_message(self) -> Option<Message> {
        let header = self.header_length();
        let kind = self.0.first()? & !FIN;
        let payload = Bytes::from_owner(self.0).slice(header..);
        match kind {
            TEXT => {
                let text = Utf8Bytes::try_from(payload).expect("it was made of text");
                Some(Message::Text(text))
            }
            BINARY => Some(Message::Binary(payload)),
            _ => None,
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn payload(&self) -> &[u8] {
        self.0.get(self.header_length()..).unwrap_or_default()
    }

    fn header_length(&self) -> usize {
        match self.0.get(1) {
            Some(126) => 4,
            Some(127) => 10,
            _ => 2,
        }
    }

    fn new(opcode: u8, parts: &[&[u8]]) -> Self {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let mut header: SmallVec<[u8; 10]> = smallvec![FIN | opcode];
        match length {
            0..=125 => header.push(length as u8),
            126..=0xffff => {
                header.push(126);
                header.extend((length as u16).to_be_bytes());
            }
            _ => {
                header.push(127);
                header.extend((length as u64).to_be_bytes());
            }
        }
        let length = header.len() + length;
        // Of zeros first: an `Arc` of a `Vec` is allocated and copied once more. Of a large one that is little, and byte by byte is
        // much where nothing is optimised.
        let mut frame: Arc<[u8]> = match length {
            0..1024 => (0..length).map(|_| 0).collect(),
            _ => vec![0; length].into(),
        };
        let mut rest = Arc::get_mut(&mut frame).expect("nobody else has it yet");
        for part in [header.as_slice()].iter().chain(parts) {
            let (place, left) = rest.split_at_mut(part.len());
            place.copy_from_slice(part);
            rest = left;
        }
        Self(frame)
    }
}

/// A message as it goes to many: its frame, and that compressed, which is made when the first gets it so. Whoever hands it out
/// holds no lock then.
#[derive(Debug)]
pub(crate) struct Framed {
    plain: Frame,
    deflating: Deflating,
    deflated: OnceLock<Option<Frame>>,
}

impl Framed {
    pub(crate) fn new(plain: Frame, form: Form, deflating: Deflating) -> Self {
        let deflating = match form {
            Form::Any => deflating,
            Form::Plain => Deflating::OFF,
        };
        Self {
            plain,
            deflating,
            deflated: OnceLock::new(),
        }
    }

    /// As a client gets it with which this was agreed on.
    pub(crate) fn of(&self, agreed: Agreed) -> &Frame {
        if !agreed.takes(self.plain.payload().len()) {
            return &self.plain;
        }
        let deflated = self
            .deflated
            .get_or_init(|| self.plain.deflated(&self.deflating));
        deflated.as_ref().unwrap_or(&self.plain)
    }

    /// By how many bytes a frame of it is smaller.
    pub(crate) fn saved_by(&self, frame: &Frame) -> usize {
        self.plain.len().saturating_sub(frame.len())
    }

    /// Whether anybody got it compressed.
    pub(crate) fn was_deflated(&self) -> bool {
        self.deflated.get().is_some_and(Option::is_some)
    }
}
