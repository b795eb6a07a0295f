//! A window for the project's own benches and fuzz targets. Not part of the public API.

use std::time::SystemTime;

use bytes::Bytes;
use http::Request;
#[cfg(feature = "deflate")]
use http::header::{HeaderMap, HeaderValue, SEC_WEBSOCKET_EXTENSIONS};
use parking_lot::RwLock;
use smallvec::smallvec;

#[cfg(feature = "redis")]
use crate::bus::redis::{RespReader, read_view};
use crate::bus::scope::Scope;
use crate::bus::wire::{self, Action};
use crate::config::Config;
use crate::local::registry::{About, Limits, Registry, Wanted};
use crate::local::socket::{DriverEnd, Sender, SocketEnds};
#[cfg(feature = "metrics")]
use crate::measures::{Measures, Since};
#[cfg(feature = "deflate")]
use crate::model::compression::Compression;
use crate::model::history::token::{self, Key};
use crate::model::id::{NodeId, SocketId, UserId};
use crate::model::limits::OutboxLimits;
use crate::model::manner::Manner;
use crate::model::message::Message;
use crate::model::topic::{Namespace, Topic};
use crate::ws::Agreed;
#[cfg(feature = "deflate")]
use crate::ws::Deflating;
use crate::ws::frame::{Allowance, Decoder, Frame};
use crate::ws::handshake::HandshakeAnswer;

/// Another node, of whose clock something is known.
#[cfg(feature = "metrics")]
const OTHER: NodeId = NodeId(2);

/// Writes the envelope of a message to one topic.
pub fn encode(message: &Message) -> Bytes {
    wire::encode(
        NodeId(1),
        None,
        &Scope::default(),
        &Manner::InTurn,
        &Action::from(message),
    )
}

/// Reads an envelope; whether it made sense.
pub fn decode(bytes: &[u8]) -> bool {
    wire::decode(bytes).is_ok()
}

/// Reads a position, also one that is signed rightly; whether it made sense.
pub fn position(text: &str, signed: &[u8]) -> bool {
    let key = Key::of([1; Key::BYTES]);
    let read = |text: &str| {
        text.parse()
            .is_ok_and(|position| token::read(&position, &key).is_ok())
    };
    read(text) | read(&token::sign(signed.to_vec(), &key))
}

/// Reads a client's frames that come in pieces of this size; what was heard, written down.
pub fn frames(bytes: &[u8], limit: usize, piece: usize) -> (Vec<String>, Option<String>) {
    frames_with(Agreed::NOTHING, bytes, limit, piece)
}

/// [`frames`] of one with which compression was agreed on.
#[cfg(feature = "deflate")]
pub fn deflated_frames(bytes: &[u8], limit: usize, piece: usize) -> (Vec<String>, Option<String>) {
    let mut headers = HeaderMap::new();
    let offer = HeaderValue::from_static("permessage-deflate");
    headers.insert(SEC_WEBSOCKET_EXTENSIONS, offer);
    let agreed = Deflating::from(Compression::default()).agree(&headers);
    frames_with(agreed, bytes, limit, piece)
}

/// Decodes frames in as many turns as it takes.
fn frames_with(
    agreed: Agreed,
    bytes: &[u8],
    limit: usize,
    piece: usize,
) -> (Vec<String>, Option<String>) {
    let mut decoder = Decoder::default();
    let mut heard = Vec::new();
    for piece in bytes.chunks(piece.max(1)) {
        let mut piece = piece.to_vec();
        let mut rest = &mut piece[..];
        while !rest.is_empty() {
            match decoder.decode(rest, &mut Allowance::of(agreed, limit)) {
                Ok((used, said)) => {
                    heard.extend(said.map(|said| format!("{said:?}")));
                    rest = &mut rest[used..];
                }
                Err(violation) => return (heard, Some(format!("{violation:?}"))),
            }
        }
    }
    (heard, None)
}

/// Reads what Redis says, in pieces of this size; what was said, written down, and whether it broke its
/// protocol.
#[cfg(feature = "redis")]
pub fn resp(bytes: &[u8], limit: usize, piece: usize) -> (Vec<String>, bool) {
    let mut reader = RespReader::new(limit);
    let mut said = Vec::new();
    for piece in bytes.chunks(piece.max(1)) {
        reader.space().extend_from_slice(piece);
        let read = reader.read(usize::MAX, |reply| said.push(format!("{reply:?}")));
        if read.is_err() {
            return (said, true);
        }
    }
    (said, false)
}

/// Reads how a cluster is divided, as Redis says it; how many partitions have a primary, and how many have none.
#[cfg(feature = "redis")]
pub fn view(bytes: &[u8]) -> Option<(usize, usize)> {
    read_view(bytes)
}

/// Checks a handshake; whether it may be answered.
pub fn handshake(request: Request<()>) -> bool {
    let (parts, ()) = request.into_parts();
    HandshakeAnswer::check(&parts).is_ok_and(|mut handshake| {
        handshake.choose_protocol(&parts.headers, ["chat"]);
        handshake.response().status().is_informational()
    })
}

/// A node's registry with sockets that nobody drives, each of a user of its own.
#[derive(Debug)]
pub struct FanOut {
    registry: RwLock<Registry<Sender>>,
    rooms: Vec<Topic>,
    drivers: Vec<DriverEnd>,
    limits: OutboxLimits,
    #[cfg(feature = "metrics")]
    measures: Measures,
}

impl FanOut {
    /// So many rooms with so many sockets each.
    pub fn new(rooms: usize, sockets: usize) -> Self {
        let namespace = Namespace::new(Namespace::DEFAULT).expect("the default is valid");
        let mut fan_out = Self {
            registry: RwLock::new(Registry::new()),
            rooms: Vec::new(),
            drivers: Vec::new(),
            limits: Config::new(namespace).outbox,
            #[cfg(feature = "metrics")]
            measures: Measures::default(),
        };
        #[cfg(feature = "metrics")]
        {
            let sent = fan_out.measures.said_at(Since::now()).unwrap_or_default();
            let _ = fan_out.measures.heard(OTHER, sent);
            fan_out.measures.told_by(OTHER, Some(0));
        }
        for number in 0..rooms {
            let room = Topic::room(&number.to_string()).expect("a number is a valid name");
            (0..sockets).for_each(|_| fan_out.connect(&room));
            fan_out.rooms.push(room);
        }
        fan_out
    }

    fn connect(&mut self, room: &Topic) {
        let number = self.drivers.len() as u64;
        let (node, user) = (NodeId(1), UserId::from(number));
        let topic = Topic::user(&user).expect("a number is a valid id");
        let id = SocketId { node, number };
        let SocketEnds { sender, driver, .. } =
            SocketEnds::new(id, user, topic.clone(), None, Agreed::NOTHING);
        let registry = self.registry.get_mut();
        let taken = registry.take_place(&topic, Limits::default());
        taken.expect("there is no limit");
        let about = About {
            connected_at: SystemTime::UNIX_EPOCH,
            description: None,
        };
        registry.insert(sender, about);
        registry.join(id, room);
        self.drivers.push(driver);
    }

    /// What a node does for one message to a room, but for the system calls.
    pub fn deliver(&self, room: usize, message: &Message) -> usize {
        let scope = Scope {
            targets: smallvec![(&self.rooms[room]).into()],
            ..Scope::default()
        };
        let wanted = Wanted::of(&scope);
        let members = self.registry.read().select(&wanted);
        let frame = Frame::message(message);
        members
            .into_iter()
            .filter(|socket| {
                socket
                    .send(&frame, &Manner::InTurn, &self.limits)
                    .is_taken()
            })
            .count()
    }

    /// [`deliver`](Self::deliver), with all that a send and its delivery measure.
    #[cfg(feature = "metrics")]
    pub fn deliver_measured(&self, room: usize, message: &Message) -> usize {
        let since = self.measures.sending();
        let sent = since.and_then(|since| self.measures.said_at(since));
        let sent = sent.and_then(|at| self.measures.heard(OTHER, at));
        let taken = self.deliver(room, message);
        self.measures.fanned_out(taken as u64);
        if let Some(since) = since {
            self.measures.published(since);
        }
        if let Some(sent) = sent {
            self.measures.delivered(sent);
        }
        taken
    }

    /// Empties the outboxes, as their drivers would.
    pub fn drain(&self) {
        self.drivers.iter().for_each(DriverEnd::forget);
    }
}
