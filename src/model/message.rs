//! What a socket carries: text or binary.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::ops::Deref;

use bytes::Bytes;
use bytestring::ByteString;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::error::BadMessage;

/// Text that is cheap to clone: UTF-8 over reference-counted bytes.
///
/// ```
/// use axum_cluster::Utf8Bytes;
///
/// let text = Utf8Bytes::from("hello");
/// assert_eq!(text.as_str(), "hello");
/// assert!(text.starts_with("he")); // it is a `str`
/// assert_eq!(String::from(text), "hello");
/// ```
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Utf8Bytes(ByteString);

impl Utf8Bytes {
    /// Wraps a literal without copying.
    pub const fn from_static(text: &'static str) -> Self {
        Self(ByteString::from_static(text))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The bytes of the text, without copying.
    pub fn into_bytes(self) -> Bytes {
        self.0.into_bytes()
    }
}

impl Deref for Utf8Bytes {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Utf8Bytes {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Utf8Bytes {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Utf8Bytes {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for Utf8Bytes {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<Utf8Bytes> for String {
    fn from(text: Utf8Bytes) -> Self {
        text.0.into()
    }
}

/// Without copying.
impl From<Utf8Bytes> for Bytes {
    fn from(text: Utf8Bytes) -> Self {
        text.into_bytes()
    }
}

impl TryFrom<Bytes> for Utf8Bytes {
    type Error = std::str::Utf8Error;

    fn try_from(bytes: Bytes) -> Result<Self, Self::Error> {
        ByteString::try_from(bytes).map(Self)
    }
}

impl PartialEq<str> for Utf8Bytes {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Utf8Bytes {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl fmt::Display for Utf8Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Utf8Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl Serialize for Utf8Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for Utf8Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Into::into)
    }
}

/// A WebSocket message. Text stays text and binary stays binary, byte for byte, on every node.
///
/// Cloning never copies the payload.
///
/// ```
/// use axum_cluster::Message;
///
/// assert_eq!(Message::from("hi").as_text(), Some("hi"));
/// assert_eq!(Message::from(vec![1, 2, 3]).len(), 3);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub enum Message {
    /// A text message ([RFC 6455, section 5.6](https://www.rfc-editor.org/rfc/rfc6455#section-5.6)).
    Text(Utf8Bytes),
    /// A binary message.
    Binary(Bytes),
}

impl Message {
    /// A text message.
    pub fn text(text: impl Into<Utf8Bytes>) -> Self {
        Self::Text(text.into())
    }

    /// A binary message.
    pub fn binary(bytes: impl Into<Bytes>) -> Self {
        Self::Binary(bytes.into())
    }

    /// The text, if this is a text message.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Binary(_) => None,
        }
    }

    /// The payload of either kind.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_str().as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }

    /// The payload of either kind, without copying.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Text(text) => text.into_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }

    /// The text of either kind, without copying: a binary message counts where its payload is UTF-8.
    /// [`as_text`](Self::as_text) tells the kinds apart.
    ///
    /// # Errors
    /// A [`BadMessage`] of kind `NotUtf8`.
    pub fn into_text(self) -> Result<Utf8Bytes, BadMessage> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Binary(bytes) => Utf8Bytes::try_from(bytes).map_err(BadMessage::not_utf8),
        }
    }

    /// The payload of either kind, read as JSON. What it is read into may borrow from the message.
    ///
    /// ```
    /// use axum_cluster::Message;
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Say<'a> { room: &'a str }
    ///
    /// let message = Message::from(r#"{"room": "lobby"}"#);
    /// let say: Say = message.json()?;
    /// assert_eq!(say.room, "lobby");
    /// # Ok::<(), axum_cluster::BadMessage>(())
    /// ```
    ///
    /// # Errors
    /// A [`BadMessage`] of kind `Syntax` for what is no JSON, and of kind `Data` for another shape than that of `T`.
    pub fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, BadMessage> {
        let payload = self.as_bytes();
        serde_json::from_slice(payload).map_err(|error| BadMessage::json(error, payload))
    }

    /// Length of the payload in bytes.
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    /// Whether the payload is empty. An empty message is still delivered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<&str> for Message {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Message {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<Utf8Bytes> for Message {
    fn from(text: Utf8Bytes) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<u8>> for Message {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Binary(bytes.into())
    }
}

impl From<Bytes> for Message {
    fn from(bytes: Bytes) -> Self {
        Self::Binary(bytes)
    }
}

impl From<Cow<'_, str>> for Message {
    fn from(text: Cow<'_, str>) -> Self {
        text.into_owned().into()
    }
}

impl From<&[u8]> for Message {
    fn from(bytes: &[u8]) -> Self {
        Self::Binary(Bytes::copy_from_slice(bytes))
    }
}

/// The payload of either kind, without copying.
impl From<Message> for Bytes {
    fn from(message: Message) -> Self {
        message.into_bytes()
    }
}

/// The payload of either kind.
impl From<Message> for Vec<u8> {
    fn from(message: Message) -> Self {
        message.into_bytes().into()
    }
}

/// [`Message::into_text`].
impl TryFrom<Message> for Utf8Bytes {
    type Error = BadMessage;

    fn try_from(message: Message) -> Result<Self, BadMessage> {
        message.into_text()
    }
}

/// [`Message::into_text`].
impl TryFrom<Message> for String {
    type Error = BadMessage;

    fn try_from(message: Message) -> Result<Self, BadMessage> {
        message.into_text().map(Into::into)
    }
}

/// Shows the kind and the length, never the payload: messages end up in logs.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.as_text().is_some() {
            "Text"
        } else {
            "Binary"
        };
        write!(f, "{kind}({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use super::*;

    #[test]
    fn a_message_is_whatever_its_reader_wants_it_to_be() {
        let all = [Message::text("[7]"), Message::binary(b"[7]".as_slice())];
        assert_ne!(all[0], all[1], "they are told apart");
        for message in all {
            assert_eq!(message.json::<[u8; 1]>().unwrap(), [7]);
            assert_eq!(message.clone().into_text().unwrap(), "[7]");
            assert_eq!(String::try_from(message.clone()).unwrap(), "[7]");
            assert_eq!(Bytes::from(message.clone()), "[7]");
            assert_eq!(Vec::from(message), b"[7]");
        }
        assert_eq!(Message::from(&[0xff][..]), Message::from(vec![0xff]));
        assert_eq!(Message::from(Cow::from("x")), Message::from("x"));
        assert!(Message::binary(vec![0xff]).into_text().is_err());
    }

    #[test]
    fn text_is_found_and_written_as_text() {
        let words = ["b", "a"].map(Utf8Bytes::from);
        assert!(HashSet::from(words.clone()).contains("a"));
        let sorted = BTreeSet::from(words);
        assert!(sorted.contains("b") && Vec::from_iter(&sorted) == ["a", "b"]);
        let json = serde_json::to_string(&sorted).unwrap();
        assert_eq!(json, r#"["a","b"]"#);
        assert_eq!(
            serde_json::from_str::<BTreeSet<Utf8Bytes>>(&json).unwrap(),
            sorted
        );
        assert_eq!(Bytes::from(Utf8Bytes::from_static("hi")), "hi");
    }
}
