//! Why a socket ended.

use std::fmt;

use crate::message::Utf8Bytes;

/// A close code and its reason ([RFC 6455, section 7.4](https://www.rfc-editor.org/rfc/rfc6455#section-7.4)).
///
/// What ends a socket by itself:
///
/// | code | when |
/// |---|---|
/// | 1000 | the handler returned, or dropped its [`Socket`](crate::Socket) |
/// | 1002, 1007 | the client broke the protocol, or sent text that is not UTF-8 |
/// | 1006 | the client vanished or stayed silent (never sent, only reported) |
/// | 1009 | the client sent more than `max_message_size` |
/// | 1011 | the handler panicked |
/// | 1012 | the node is shutting down: reconnect |
/// | 1013 | the client reads too slowly: try again later |
/// | 4401 | the identity expired |
/// | 4403 | no identity |
/// | 4409 | replaced by a newer socket of the user ([`OverLimit::CloseOldest`](crate::OverLimit::CloseOldest)) |
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Close {
    /// The code.
    pub code: u16,
    /// The reason, at most 123 bytes on the wire; a longer one is cut at a character boundary, and
    /// reported as it was sent.
    pub reason: Utf8Bytes,
}

impl Close {
    /// The purpose was fulfilled.
    pub const NORMAL: u16 = 1000;
    /// The client leaves, as a browser that closes the page.
    pub const GOING_AWAY: u16 = 1001;
    /// The client broke the protocol.
    pub const PROTOCOL_ERROR: u16 = 1002;
    /// The client's Close frame had no code. Never sent.
    pub const NO_STATUS: u16 = 1005;
    /// The client vanished without a Close frame. Never sent.
    pub const ABNORMAL: u16 = 1006;
    /// Text that is not UTF-8.
    pub const INVALID_DATA: u16 = 1007;
    /// A message over the limit.
    pub const TOO_BIG: u16 = 1009;
    /// The handler panicked.
    pub const INTERNAL_ERROR: u16 = 1011;
    /// The node is shutting down.
    pub const RESTART: u16 = 1012;
    /// The client reads too slowly.
    pub const TRY_AGAIN_LATER: u16 = 1013;
    /// The identity expired.
    pub const EXPIRED: u16 = 4401;
    /// No identity.
    pub const UNAUTHENTICATED: u16 = 4403;
    /// Replaced by a newer socket of the same user.
    pub const REPLACED: u16 = 4409;

    /// Longest reason that fits into a control frame beside the code.
    const MAX_REASON: usize = 123;

    /// A close with this code and reason.
    pub fn new(code: u16, reason: impl Into<Utf8Bytes>) -> Self {
        Self {
            code,
            reason: reason.into(),
        }
    }

    pub(crate) const fn from_static(code: u16, reason: &'static str) -> Self {
        Self {
            code,
            reason: Utf8Bytes::from_static(reason),
        }
    }

    /// Whether this code may stand in a Close frame: 1000–1003, 1007–1014 and 3000–4999.
    pub fn is_sendable(&self) -> bool {
        matches!(self.code, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }

    /// The reason as it goes onto the wire.
    pub(crate) fn wire_reason(&self) -> &str {
        // A character has at most four bytes.
        let ends = (0..=self.reason.len().min(Self::MAX_REASON)).rev();
        let end = ends
            .into_iter()
            .find(|end| self.reason.is_char_boundary(*end));
        &self.reason[..end.unwrap_or_default()]
    }

    /// What the client is told: a reason that fits, and nothing where the code may not be sent.
    pub(crate) fn into_written(self) -> Self {
        let written = self.wire_reason();
        match self.is_sendable() {
            false => Self::from_static(Self::NO_STATUS, ""),
            true if written.len() < self.reason.len() => Self::new(self.code, written),
            true => self,
        }
    }
}

impl fmt::Display for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.reason)
    }
}

/// Every ending that is the crate's own, as the table of [`Close`] documents them. What a user or a client closes
/// with is theirs.
pub(crate) mod reason {
    use super::Close;

    /// The handler returned, or dropped its socket.
    pub(crate) const DONE: Close = Close::from_static(Close::NORMAL, "");
    pub(crate) const PANICKED: Close =
        Close::from_static(Close::INTERNAL_ERROR, "the handler panicked");
    /// Its outbox is full.
    pub(crate) const SLOW: Close = Close::from_static(Close::TRY_AGAIN_LATER, "slow consumer");
    /// The kernel took nothing for it within the write timeout.
    pub(crate) const STALLED: Close =
        Close::from_static(Close::TRY_AGAIN_LATER, "the client accepts nothing");
    /// No pong came in time.
    pub(crate) const SILENT: Close = Close::from_static(Close::ABNORMAL, "no sign of life");
    /// Its stream ended, or failed, without a Close frame.
    pub(crate) const VANISHED: Close =
        Close::from_static(Close::ABNORMAL, "the connection was lost");
    /// The server kept the stream, or the client left before it had the answer.
    pub(crate) const NOT_OPENED: Close =
        Close::from_static(Close::ABNORMAL, "the handshake was not completed");
    /// The runtime ended, or a task of the crate panicked.
    pub(crate) const DROPPED: Close =
        Close::from_static(Close::ABNORMAL, "the socket's task was dropped");
    /// The node is at its end, and nobody had closed this one.
    pub(crate) const STOPPED: Close = Close::from_static(Close::ABNORMAL, "the node stopped");
    pub(crate) const RESTART: Close =
        Close::from_static(Close::RESTART, "the server restarts, please reconnect");
    pub(crate) const EXPIRED: Close = Close::from_static(Close::EXPIRED, "the identity expired");
    pub(crate) const UNAUTHENTICATED: Close =
        Close::from_static(Close::UNAUTHENTICATED, "authentication required");
    pub(crate) const REPLACED: Close =
        Close::from_static(Close::REPLACED, "replaced by a newer socket");
    pub(crate) const PROTOCOL: Close = Close::from_static(Close::PROTOCOL_ERROR, "protocol error");
    pub(crate) const NOT_UTF8: Close = Close::from_static(Close::INVALID_DATA, "text is not UTF-8");
    pub(crate) const TOO_BIG: Close = Close::from_static(Close::TOO_BIG, "message too big");
    /// What a client is taken to have said whose Close frame is empty.
    pub(crate) const NO_STATUS: Close = Close::from_static(Close::NO_STATUS, "");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_reasons_fit_into_a_frame() {
        use reason::*;
        for close in [
            DONE,
            PANICKED,
            SLOW,
            STALLED,
            RESTART,
            EXPIRED,
            UNAUTHENTICATED,
            REPLACED,
            PROTOCOL,
            NOT_UTF8,
            TOO_BIG,
        ] {
            assert_eq!(close.clone().into_written(), close);
        }
        for close in [SILENT, VANISHED, NOT_OPENED, DROPPED, STOPPED, NO_STATUS] {
            assert!(!close.is_sendable(), "{close} is only reported");
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let close = Close::new(4000, "é".repeat(100));
        assert_eq!(close.wire_reason().len(), 122);
        assert_eq!(close.into_written().reason, "é".repeat(61).as_str());
        let whole = Close::new(4000, "x".repeat(123));
        assert_eq!(whole.clone().into_written(), whole);
        assert_eq!(Close::new(4000, "short").wire_reason(), "short");
        assert_eq!(
            Close::new(1006, "forged").into_written(),
            Close::new(1005, "")
        );
    }

    #[test]
    fn reserved_codes_are_not_sendable() {
        for code in [0, 999, 1004, 1005, 1006, 1015, 2999, 5000] {
            assert!(!Close::new(code, "").is_sendable(), "{code}");
        }
        for code in [1000, 1012, 3000, 4403, 4999] {
            assert!(Close::new(code, "").is_sendable(), "{code}");
        }
    }
}
