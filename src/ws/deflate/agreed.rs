//! What a client and this node agreed on.

use http::HeaderValue;

/// Whether a client gets compressed messages, and which, and whether it may send some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Agreed {
    /// The client looks back over no more than 2 to the power of these; 0 where nothing is compressed.
    bits: u8,
    /// Whether it named them.
    is_named: bool,
}

impl Agreed {
    pub(crate) const NOTHING: Self = Self {
        bits: 0,
        is_named: false,
    };

    pub(super) fn new(named: Option<u8>) -> Self {
        Self {
            bits: named.unwrap_or(MOST_BITS),
            is_named: named.is_some(),
        }
    }

    /// Whether the client may compress.
    pub(crate) fn inflates(self) -> bool {
        self.bits > 0
    }

    /// Whether it may get a message of so many bytes compressed. With a smaller window (section 7.1.2.1) only one that fits
    /// into that, whatever it repeats: what all others get is right for it as well.
    pub(crate) fn takes(self, bytes: usize) -> bool {
        self.bits == MOST_BITS || bytes <= 1 << self.bits && self.bits > 0
    }

    /// `Sec-WebSocket-Extensions` of the answer (section 7.1).
    pub(crate) fn header(self) -> Option<HeaderValue> {
        let answer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        let value = match (self.bits, self.is_named) {
            (0, _) => return None,
            (_, false) => Ok(HeaderValue::from_static(answer)),
            (bits, true) => {
                HeaderValue::try_from(format!("{answer}; server_max_window_bits={bits}"))
            }
        };
        value.ok()
    }
}

/// What everybody can look back over who names no less: 32 KiB.
const MOST_BITS: u8 = 15;
