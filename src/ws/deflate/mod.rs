//! permessage-deflate: RFC 7692, without context takeover in either direction. So nothing is kept between two messages: an
//! idle socket has no more than without, and one compressed frame is right for all who agreed.

mod agreed;
mod deflater;
mod inflater;
mod offer;

use http::HeaderMap;

pub(crate) use self::agreed::Agreed;
pub(crate) use self::inflater::{Inflater, Misfit};
use crate::model::compression::Compression;

/// Whether a node compresses, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deflating(Option<Compression>);

impl Deflating {
    pub(crate) const OFF: Self = Self(None);

    pub(crate) fn is_off(&self) -> bool {
        self.0.is_none()
    }

    /// What is answered to the extensions that a client offers.
    pub(crate) fn agree(&self, headers: &HeaderMap) -> Agreed {
        match self.0 {
            None => Agreed::NOTHING,
            Some(_) => offer::accept(headers),
        }
    }

    /// A payload, compressed; nothing where it is not to be, or would get no smaller.
    pub(crate) fn deflate(&self, payload: &[u8]) -> Option<Vec<u8>> {
        let compression = self.0.filter(|it| it.is_for(payload.len()))?;
        deflater::deflate(payload, compression.tries())
    }

    pub(crate) fn problem(&self) -> Option<String> {
        self.0.and_then(|compression| compression.problem())
    }
}

impl From<Compression> for Deflating {
    fn from(compression: Compression) -> Self {
        Self(Some(compression))
    }
}

/// What ends every flushed part of a DEFLATE stream, and is left out (sections 7.2.1 and 7.2.2).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
