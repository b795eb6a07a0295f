//! What a socket carries: text or binary.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::Deserialize;

use crate::model::error::BadMessage;
use crate::model::utf8::Utf8Bytes;

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
}
