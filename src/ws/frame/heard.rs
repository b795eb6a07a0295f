//! What comes from a client: something that it said, or how it broke the rules.

use crate::model::close::{Close, reason};
use crate::model::message::Message;
use crate::ws::deflate::Misfit;

/// What a client said.
#[derive(Debug, PartialEq)]
pub(crate) enum Heard {
    Message(Message),
    /// With the payload that the pong must carry.
    Ping(Vec<u8>),
    Pong,
    Close(Close),
}

/// How a client broke the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Violation {
    Protocol,
    NotUtf8,
    NotDeflate,
    TooBig,
}

impl From<Misfit> for Violation {
    fn from(misfit: Misfit) -> Self {
        match misfit {
            Misfit::Broken => Self::NotDeflate,
            Misfit::TooMuch => Self::TooBig,
        }
    }
}

impl Violation {
    /// What to close with (section 7.4.1).
    pub(crate) fn close(self) -> Close {
        match self {
            Self::Protocol => reason::PROTOCOL,
            Self::NotUtf8 => reason::NOT_UTF8,
            Self::NotDeflate => reason::NOT_DEFLATE,
            Self::TooBig => reason::TOO_BIG,
        }
    }
}
