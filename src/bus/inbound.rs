//! What came on the bus, read once into what the parts of a node act on.

use std::borrow::Cow;

use bytes::Bytes;

use crate::bus::control::Control;
use crate::bus::scope::Scope;
use crate::measures::Since;
use crate::model::close::Close;
use crate::model::form::Form;
use crate::model::id::NodeId;
use crate::model::manner::Manner;
use crate::model::message::Message;
use crate::model::topic::Topic;
use crate::ws::frame::Frame;

/// What came, and for whom. Whatever changes the order of what is delivered stands between this and the sockets.
#[derive(Debug, PartialEq)]
pub(crate) enum Inbound<'a> {
    /// Perhaps with when it was sent; and of a union whose, and its number there.
    Message(
        Scope<'a>,
        Content<'a>,
        Manner,
        Form,
        Option<Since>,
        Option<(NodeId, u64)>,
    ),
    /// Of a union that is kept another copy was acted on, with the number of another clock.
    Copy(Scope<'a>),
    Close(Scope<'a>, Close),
    /// For the nodes themselves.
    ToNodes(Option<NodeId>, Content<'a>),
    Peer(PeerWord<'a>),
    Answer(Part<'a>),
    /// Another node's word on who comes and goes, unread: the presence task has the time for it.
    Report(NodeId, &'a [u8]),
    /// Whether another node wants to be told so.
    Watch(NodeId, &'a [u8]),
    /// This node's own question, come back.
    Echo(u64),
    /// This node's own message, come back, and what waited for it.
    Amid(Box<Amid<'a>>),
    /// Nothing to act on: another copy, an echo, a kind that a later version knows, or garbage, which is counted.
    Nothing,
}

/// What came back, amid what did not.
#[derive(Debug, PartialEq)]
pub(crate) struct Amid<'a> {
    pub(crate) before: Vec<Own>,
    pub(crate) inbound: Inbound<'a>,
    pub(crate) after: Vec<Own>,
}

/// Of this node's own message, what is for one topic, or all of a union.
#[derive(Debug, PartialEq)]
pub(crate) struct Own {
    pub(crate) topic: Topic,
    pub(crate) envelope: Bytes,
    /// It failed when sockets with this number and later ones were not there.
    pub(crate) older_than: u64,
}

/// A word of another node, and the sockets that it is about.
#[derive(Debug, PartialEq)]
pub(crate) struct PeerWord<'a> {
    pub(crate) from: NodeId,
    pub(crate) word: Control,
    pub(crate) scope: Scope<'a>,
    pub(crate) hearers: Hearers,
}

/// A part of another node's answer to this question; with `more`, others follow.
#[derive(Debug, PartialEq)]
pub(crate) struct Part<'a> {
    pub(crate) from: NodeId,
    pub(crate) id: u64,
    pub(crate) more: bool,
    pub(crate) part: &'a [u8],
}

/// What sockets get.
#[derive(Debug, PartialEq)]
pub(crate) enum Content<'a> {
    Text(Cow<'a, str>),
    Binary(Cow<'a, [u8]>),
}

/// Who else hears a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hearers {
    /// It came on this node's own topic.
    ThisNode,
    /// Whoever is on the topic.
    Others,
}

impl Content<'_> {
    pub(crate) fn message(&self) -> Message {
        match self {
            Self::Text(text) => Message::from(&**text),
            Self::Binary(bytes) => Message::Binary(Bytes::copy_from_slice(bytes)),
        }
    }

    pub(crate) fn frame(&self) -> Frame {
        match self {
            Self::Text(text) => Frame::text(text),
            Self::Binary(bytes) => Frame::binary(bytes),
        }
    }
}
