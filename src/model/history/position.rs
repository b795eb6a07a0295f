//! Up to where somebody has what was sent to him, as a text that anybody may keep.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Up to where a socket, or a page, has what was kept for its audiences: whoever comes back with it gets what it missed.
///
/// Opaque: what is in it is checked where it is used, and a forged one is worth nothing. Its text form, at most 4 KiB of
/// letters, digits and `-._~`, may stand in a URL as it is, and in your own messages.
///
/// ```
/// use axum_cluster::Position;
///
/// let position: Position = "abc-123~4".parse()?;
/// assert_eq!(position.to_string(), "abc-123~4");
/// assert!("no position".parse::<Position>().is_err());
/// # Ok::<(), axum_cluster::InvalidPosition>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Position(Arc<str>);

impl Position {
    /// Longest text.
    pub(crate) const MOST: usize = 4 * 1024;

    /// A position of which nothing is understood.
    pub(crate) fn nothing() -> Self {
        Self("-".into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whoever has it reads what its user missed, so no log shows it.
impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Position(..)")
    }
}

impl FromStr for Position {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let usable = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        match (1..=Self::MOST).contains(&text.len()) && text.bytes().all(usable) {
            true => Ok(Self(text.into())),
            false => Err(InvalidPosition(())),
        }
    }
}

/// The text is not a [`Position`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidPosition(());

impl fmt::Display for InvalidPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a position: at most 4 KiB of letters, digits and -._~ are needed")
    }
}

impl std::error::Error for InvalidPosition {}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_a_short_text_that_may_stand_in_a_url() {
        let long = "x".repeat(Position::MOST + 1);
        for wrong in ["", "a b", "a=b", "ä", "a\n", &long] {
            let said = wrong.parse::<Position>();
            assert_eq!(said, Err(InvalidPosition(())), "{wrong:.20}");
        }
        let position: Position = long[1..].parse().unwrap();
        let json = serde_json::to_string(&position).unwrap();
        assert_eq!(serde_json::from_str::<Position>(&json).unwrap(), position);
        assert_eq!(format!("{position:?}"), "Position(..)");
    }
}
