//! Close codes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A close code ([RFC 6455, section 7.4](https://www.rfc-editor.org/rfc/rfc6455#section-7.4)): any number, of which
/// some may be sent ([`is_sendable`](Self::is_sendable)). Your own are from 4000 to 4999. As JSON it is the number.
///
/// ```
/// use axum_cluster::{Close, CloseCode};
///
/// const LOGGED_OUT: CloseCode = CloseCode(4001);
///
/// let close = Close::new(LOGGED_OUT, "logged out");
/// assert_eq!(close, Close::new(4001, "logged out"));
/// assert_eq!(close.code, 4001);
/// match close.code {
///     LOGGED_OUT => println!("not by us"),
///     CloseCode::NORMAL => println!("goodbye"),
///     code => println!("ended with {code}"),
/// }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CloseCode(pub u16);

impl CloseCode {
    /// 1000: the purpose was fulfilled.
    pub const NORMAL: Self = Self(1000);
    /// 1001: the client leaves, as a browser that closes the page.
    pub const GOING_AWAY: Self = Self(1001);
    /// 1002: the client broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1002);
    /// 1003: a kind of message that is not understood, such as binary.
    pub const UNSUPPORTED_DATA: Self = Self(1003);
    /// 1005: the client's Close frame had no code. Never sent.
    pub const NO_STATUS: Self = Self(1005);
    /// 1006: the client vanished without a Close frame. Never sent.
    pub const ABNORMAL: Self = Self(1006);
    /// 1007: text that is not UTF-8, or what cannot be inflated.
    pub const INVALID_DATA: Self = Self(1007);
    /// 1008: a message that a rule of the app forbids, or more of them than it allows.
    pub const POLICY_VIOLATION: Self = Self(1008);
    /// 1009: a message over the limit.
    pub const TOO_BIG: Self = Self(1009);
    /// 1011: the handler panicked.
    pub const INTERNAL_ERROR: Self = Self(1011);
    /// 1012: the node is shutting down.
    pub const RESTART: Self = Self(1012);
    /// 1013: the client reads too slowly.
    pub const TRY_AGAIN_LATER: Self = Self(1013);
    /// 4401: the identity expired.
    pub const EXPIRED: Self = Self(4401);
    /// 4403: no identity.
    pub const UNAUTHENTICATED: Self = Self(4403);
    /// 4409: replaced by a newer socket of the same user.
    pub const REPLACED: Self = Self(4409);

    /// The number.
    pub const fn as_u16(self) -> u16 {
        self.0
    }

    /// Whether it may stand in a Close frame: 1000–1003, 1007–1014 and 3000–4999.
    pub const fn is_sendable(self) -> bool {
        matches!(self.0, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }
}

impl From<u16> for CloseCode {
    fn from(code: u16) -> Self {
        Self(code)
    }
}

impl From<CloseCode> for u16 {
    fn from(code: CloseCode) -> Self {
        code.0
    }
}

impl PartialEq<u16> for CloseCode {
    fn eq(&self, other: &u16) -> bool {
        self.0 == *other
    }
}

impl PartialEq<CloseCode> for u16 {
    fn eq(&self, other: &CloseCode) -> bool {
        *self == other.0
    }
}

/// The number alone.
impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_codes_are_not_sendable() {
        for code in [0, 999, 1004, 1005, 1006, 1015, 2999, 5000] {
            assert!(!CloseCode(code).is_sendable(), "{code}");
        }
        for code in [1000, 1012, 3000, 4403, 4999] {
            assert!(CloseCode(code).is_sendable(), "{code}");
        }
    }

    #[test]
    fn a_code_is_its_number() {
        assert_eq!(CloseCode::EXPIRED, 4401);
        assert_eq!(4401, CloseCode::EXPIRED);
        assert_eq!(u16::from(CloseCode::from(4001)), CloseCode(4001).as_u16());
        assert_eq!(format!("{:>6}", CloseCode::NORMAL), "  1000");
        assert_eq!(serde_json::to_string(&CloseCode(4001)).unwrap(), "4001");
        assert_eq!(serde_json::from_str::<CloseCode>("4001").unwrap(), 4001);
    }
}
