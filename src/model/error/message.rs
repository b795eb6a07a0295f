//! Why a message is not what was expected.

use std::error::Error;
use std::fmt;
use std::str::Utf8Error;
use std::sync::Arc;

use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use serde::de::IgnoredAny;

use super::{Reason, answer};
use crate::model::close::{Close, reason};

/// A message is not what its reader expects. The socket lives on: the handler answers, or ends it with
/// [`close`](Self::close).
///
/// ```
/// use axum_cluster::{BadMessageKind, CloseCode, Message};
///
/// let bad = Message::from("[1, 2]").json::<u64>().unwrap_err();
/// assert_eq!(bad.kind(), BadMessageKind::Data);
/// assert_eq!(bad.close().code, CloseCode::POLICY_VIOLATION);
/// ```
///
/// Its text says what was wrong with what, and for that may quote some of what the client sent: log it where that may be
/// known. `Debug` shows kind and place only, and as a response it is a 400 that says no more than the kind.
#[derive(Clone)]
pub struct BadMessage(Flaw);

/// What kind of failure a [`BadMessage`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BadMessageKind {
    /// It was to be text, and is not UTF-8; the source is a [`Utf8Error`].
    NotUtf8,
    /// It is no JSON; the source is a [`serde_json::Error`].
    Syntax,
    /// It is JSON of another shape; the source is a [`serde_json::Error`].
    Data,
}

#[derive(Clone)]
enum Flaw {
    NotUtf8(Utf8Error),
    Json(BadMessageKind, Arc<serde_json::Error>),
}

impl BadMessage {
    pub(crate) fn not_utf8(error: Utf8Error) -> Self {
        Self(Flaw::NotUtf8(error))
    }

    /// The payload tells the kinds apart: a reader stops at the first thing that it does not want, before or after
    /// what is no JSON.
    pub(crate) fn json(error: serde_json::Error, payload: &[u8]) -> Self {
        let kind = match serde_json::from_slice::<IgnoredAny>(payload) {
            Ok(_) => BadMessageKind::Data,
            Err(_) => BadMessageKind::Syntax,
        };
        Self(Flaw::Json(kind, Arc::new(error)))
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> BadMessageKind {
        match &self.0 {
            Flaw::NotUtf8(_) => BadMessageKind::NotUtf8,
            Flaw::Json(kind, _) => *kind,
        }
    }

    /// The conventional close for it: 1008 "the message was not understood", which tells nothing of the app.
    ///
    /// Not 1007: that is for data which contradicts the *type of the message*, as text that is not UTF-8 does
    /// ([RFC 6455, section 7.4.1](https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1)), and which the socket refuses
    /// by itself before a handler sees it. A whole text or binary message that the app does not want is within
    /// the protocol and violates the app's own rule, for which 1008 is; so the two stay apart in
    /// [`Stats`](crate::Stats) as well.
    pub fn close(&self) -> Close {
        reason::NOT_UNDERSTOOD
    }

    fn class(&self) -> &'static str {
        match self.kind() {
            BadMessageKind::NotUtf8 => "the message is not UTF-8",
            BadMessageKind::Syntax => "the message is no JSON",
            BadMessageKind::Data => "the message is JSON of another shape",
        }
    }
}

impl fmt::Display for BadMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.class())?;
        match &self.0 {
            Flaw::NotUtf8(error) => error.fmt(f),
            Flaw::Json(_, error) => error.fmt(f),
        }
    }
}

impl fmt::Debug for BadMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("BadMessage");
        shown.field("kind", &self.kind());
        match &self.0 {
            Flaw::NotUtf8(error) => shown.field("valid_up_to", &error.valid_up_to()),
            Flaw::Json(_, error) => shown
                .field("line", &error.line())
                .field("column", &error.column()),
        };
        shown.finish()
    }
}

impl Error for BadMessage {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(match &self.0 {
            Flaw::NotUtf8(error) => error,
            Flaw::Json(_, error) => &**error,
        })
    }
}

impl IntoResponse for BadMessage {
    fn into_response(self) -> Response {
        let class = self.class();
        answer(StatusCode::BAD_REQUEST, class, &Reason(class.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::message::Message;

    fn bad(text: &str) -> BadMessage {
        Message::from(text).json::<[u8; 2]>().unwrap_err()
    }

    #[test]
    fn what_is_no_json_and_what_is_another_are_told_apart() {
        for text in ["", "hello", "[1", "[1, 2", "{]", "[1,2] [3]"] {
            assert_eq!(bad(text).kind(), BadMessageKind::Syntax, "{text}");
        }
        for text in ["[1, 2, 3]", "[1, 256]", "{}", "null", "\"[1,2]\""] {
            assert_eq!(bad(text).kind(), BadMessageKind::Data, "{text}");
        }
    }

    #[test]
    fn it_says_what_its_source_says() {
        let not_utf8 = Message::from(vec![0xff]).into_text().unwrap_err();
        assert_eq!(not_utf8.kind(), BadMessageKind::NotUtf8);
        for bad in [bad("{"), bad("{}"), not_utf8] {
            let source = bad.source().expect("every kind has one").to_string();
            assert!(bad.to_string().ends_with(&source), "{bad}");
            assert_eq!(bad.clone().into_response().status(), 400);
            assert_eq!(bad.close().code, 1008);
        }
    }
}
