//! Why a socket ended.

use std::fmt;

use serde::Serialize;

use crate::model::code::CloseCode;
use crate::model::utf8::Utf8Bytes;

/// A close code and its reason ([RFC 6455, section 7.4](https://www.rfc-editor.org/rfc/rfc6455#section-7.4)).
///
/// What ends a socket by itself:
///
/// | code | when |
/// |---|---|
/// | 1000 | the handler returned, or dropped its [`Socket`](crate::Socket) |
/// | 1002, 1007 | the client broke the protocol, or sent text that is not UTF-8, or what cannot be inflated |
/// | 1006 | the client vanished or stayed silent (never sent, only reported) |
/// | 1008 | the client sent more than [`inbound_limit`](crate::ClusterBuilder::inbound_limit) allows |
/// | 1009 | the client sent more than `max_message_size`, inflated |
/// | 1011 | the handler panicked |
/// | 1012 | the node is shutting down: reconnect |
/// | 1013 | the client reads too slowly: try again later |
/// | 4401 | the identity expired |
/// | 4403 | no identity |
/// | 4409 | replaced by a newer socket of the user ([`OverLimit::CloseOldest`](crate::OverLimit::CloseOldest)) |
///
/// ```
/// use axum_cluster::{Close, CloseCode};
///
/// let close = Close::new(4001, "logged out"); // your own codes are from 4000 to 4999
/// assert_eq!(close.code, CloseCode(4001));
/// assert_eq!(close.to_string(), "4001 logged out");
/// ```
///
/// As JSON: `{"code": 4001, "reason": ".."}`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
#[non_exhaustive]
pub struct Close {
    /// The code.
    pub code: CloseCode,
    /// The reason, at most 123 bytes on the wire; a longer one is cut at a character boundary, and
    /// reported as it was sent.
    pub reason: Utf8Bytes,
}

impl Close {
    /// [`CloseCode::NORMAL`].
    pub const NORMAL: CloseCode = CloseCode::NORMAL;
    /// [`CloseCode::GOING_AWAY`].
    pub const GOING_AWAY: CloseCode = CloseCode::GOING_AWAY;
    /// [`CloseCode::PROTOCOL_ERROR`].
    pub const PROTOCOL_ERROR: CloseCode = CloseCode::PROTOCOL_ERROR;
    /// [`CloseCode::NO_STATUS`].
    pub const NO_STATUS: CloseCode = CloseCode::NO_STATUS;
    /// [`CloseCode::ABNORMAL`].
    pub const ABNORMAL: CloseCode = CloseCode::ABNORMAL;
    /// [`CloseCode::INVALID_DATA`].
    pub const INVALID_DATA: CloseCode = CloseCode::INVALID_DATA;
    /// [`CloseCode::POLICY_VIOLATION`].
    pub const POLICY_VIOLATION: CloseCode = CloseCode::POLICY_VIOLATION;
    /// [`CloseCode::TOO_BIG`].
    pub const TOO_BIG: CloseCode = CloseCode::TOO_BIG;
    /// [`CloseCode::INTERNAL_ERROR`].
    pub const INTERNAL_ERROR: CloseCode = CloseCode::INTERNAL_ERROR;
    /// [`CloseCode::RESTART`].
    pub const RESTART: CloseCode = CloseCode::RESTART;
    /// [`CloseCode::TRY_AGAIN_LATER`].
    pub const TRY_AGAIN_LATER: CloseCode = CloseCode::TRY_AGAIN_LATER;
    /// [`CloseCode::EXPIRED`].
    pub const EXPIRED: CloseCode = CloseCode::EXPIRED;
    /// [`CloseCode::UNAUTHENTICATED`].
    pub const UNAUTHENTICATED: CloseCode = CloseCode::UNAUTHENTICATED;
    /// [`CloseCode::REPLACED`].
    pub const REPLACED: CloseCode = CloseCode::REPLACED;

    /// Longest reason that fits into a control frame beside the code.
    const MAX_REASON: usize = 123;

    /// A close with this code and reason.
    pub fn new(code: impl Into<CloseCode>, reason: impl Into<Utf8Bytes>) -> Self {
        Self {
            code: code.into(),
            reason: reason.into(),
        }
    }

    pub(crate) const fn from_static(code: CloseCode, reason: &'static str) -> Self {
        Self {
            code,
            reason: Utf8Bytes::from_static(reason),
        }
    }

    /// Whether its code may stand in a Close frame: [`CloseCode::is_sendable`].
    pub fn is_sendable(&self) -> bool {
        self.code.is_sendable()
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
    pub(crate) const NOT_DEFLATE: Close =
        Close::from_static(Close::INVALID_DATA, "the message cannot be inflated");
    /// Said by the handler, where it says so: [`BadMessage::close`](crate::BadMessage::close).
    pub(crate) const NOT_UNDERSTOOD: Close =
        Close::from_static(Close::POLICY_VIOLATION, "the message was not understood");
    /// It is over the inbound limit.
    pub(crate) const TOO_MUCH: Close = Close::from_static(
        Close::POLICY_VIOLATION,
        "too many messages or bytes, send more slowly",
    );
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
            NOT_DEFLATE,
            NOT_UNDERSTOOD,
            TOO_MUCH,
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
    fn it_is_shown_by_code_and_reason() {
        let close = Close::new(4001, "logged \"out\"");
        assert_eq!(close.to_string(), "4001 logged \"out\"");
        assert_eq!(
            serde_json::to_string(&close).unwrap(),
            r#"{"code":4001,"reason":"logged \"out\""}"#
        );
    }
}
