//! Ids that the app gives: of users and of rooms.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest user id and room id, in bytes.
const MAX_NAME: usize = 256;

/// Who a socket belongs to: 1 to 256 bytes, compared bytewise.
///
/// Existing auth middleware puts one into the request's extensions, and every
/// [`ClusterSocket`](crate::ClusterSocket) behind it is registered under this id.
///
/// The `From` conversions never fail. An unusable id (empty, or longer than 256 bytes) is refused where it is
/// used, in one way everywhere: [`InvalidId`] says how. [`UserId::try_new`], `parse` and reading from JSON refuse it
/// at once.
///
/// ```
/// use axum_cluster::UserId;
///
/// assert_eq!(UserId::from("alice"), UserId::from(String::from("alice")));
/// assert_eq!(UserId::from(42), "42");
/// assert!(UserId::try_new("").is_err());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(Arc<str>);

/// A room, which exists while a socket is in it: 1 to 256 bytes, compared bytewise. Users and rooms never meet: a room
/// may be called as a user is.
///
/// The `From` conversions never fail. An unusable id (empty, or longer than 256 bytes) is refused where it is
/// used, in one way everywhere: [`InvalidId`] says how. [`RoomId::try_new`], `parse` and reading from JSON refuse it
/// at once.
///
/// ```
/// use axum_cluster::RoomId;
///
/// assert_eq!(RoomId::from("lobby"), RoomId::from(String::from("lobby")));
/// assert_eq!(RoomId::from(7), "7");
/// assert!(RoomId::try_new("x".repeat(257)).is_err());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoomId(Arc<str>);

/// The rule for both.
pub(crate) fn check_name(name: &str) -> Result<(), InvalidId> {
    match name.len() {
        0 => Err(InvalidId::Empty),
        1..=MAX_NAME => Ok(()),
        bytes => Err(InvalidId::TooLong { bytes }),
    }
}

macro_rules! name {
    ($($id:ident),*) => {$(
        impl $id {
            /// Takes an id, checked.
            ///
            /// # Errors
            /// When the id is empty or longer than 256 bytes.
            pub fn try_new(id: impl Into<String>) -> Result<Self, InvalidId> {
                let id = Self(id.into().into());
                id.check().map(|()| id)
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Whether it can be used.
            pub(crate) fn check(&self) -> Result<(), InvalidId> {
                check_name(&self.0)
            }
        }

        from! { $id: &str, String, Box<str>, Arc<str>, Cow<'_, str> => |id| id.into() }
        from! { $id: &&str => |id| (*id).into() }
        from! { $id: &String => |id| id.as_str().into() }
        from! { $id: &$id => |id| id.0.clone() }
        from! { $id: u32, i32, u64, i64 => |id| id.to_string().into() }

        /// Hyphenated and in lower case: `67e55044-10b1-426f-9247-bb680e5fe0c8`.
        #[cfg(feature = "uuid")]
        impl From<uuid::Uuid> for $id {
            fn from(id: uuid::Uuid) -> Self {
                let mut buffer = uuid::Uuid::encode_buffer();
                Self((&*id.hyphenated().encode_lower(&mut buffer)).into())
            }
        }

        impl From<$id> for String {
            fn from(id: $id) -> Self {
                id.0.as_ref().into()
            }
        }

        /// Checked, as by `try_new`.
        impl FromStr for $id {
            type Err = InvalidId;

            fn from_str(id: &str) -> Result<Self, InvalidId> {
                check_name(id).map(|()| Self(id.into()))
            }
        }

        impl AsRef<str> for $id {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $id {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $id {
            fn eq(&self, other: &str) -> bool {
                self.as_str() == other
            }
        }

        impl PartialEq<&str> for $id {
            fn eq(&self, other: &&str) -> bool {
                self.as_str() == *other
            }
        }

        impl PartialEq<String> for $id {
            fn eq(&self, other: &String) -> bool {
                self.as_str() == other
            }
        }

        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($id), "({:?})"), self.as_str())
            }
        }

        impl Serialize for $id {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        /// Refuses an unusable id.
        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::try_new(String::deserialize(deserializer)?).map_err(D::Error::custom)
            }
        }
    )*};
}

macro_rules! from {
    ($id:ident: $($type:ty),* => |$value:ident| $text:expr) => {$(
        impl From<$type> for $id {
            fn from($value: $type) -> Self {
                Self($text)
            }
        }
    )*};
}

name!(UserId, RoomId);

/// Why a [`UserId`] or a [`RoomId`] cannot be used.
///
/// A call that returns a `Result` refuses such an id with an error whose kind is `InvalidId` and whose
/// [`source`](std::error::Error::source) is this, and does nothing; an upgrade is answered with 400, and this is the
/// source of its [`ClusterRejection`](crate::ClusterRejection). For the few that
/// return none it is the id of nobody, and the log says so at debug: [`Socket::leave`](crate::Socket::leave) does
/// nothing, in [`Broadcaster::presence_of`](crate::Broadcaster::presence_of) it is never online, and
/// [`Broadcaster::presence_in`](crate::Broadcaster::presence_in) ends at once.
///
/// As a response it is a 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InvalidId {
    /// It has no bytes.
    Empty,
    /// It has more than 256 bytes.
    TooLong {
        /// How many it has.
        bytes: usize,
    },
}

impl InvalidId {
    /// Logs the error where none can be returned.
    pub(crate) fn log(self, call: &'static str) {
        tracing::debug!(call, error = %self, "an id that cannot be used is taken for nobody's");
    }
}

impl fmt::Display for InvalidId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the id is empty: 1 to 256 bytes are needed"),
            Self::TooLong { bytes } => {
                write!(
                    f,
                    "the id has {bytes} bytes: at most {MAX_NAME} are allowed"
                )
            }
        }
    }
}

impl std::error::Error for InvalidId {}

impl IntoResponse for InvalidId {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, self.to_string()).into_response()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use super::*;

    #[test]
    fn ids_are_one_to_256_bytes() {
        assert_eq!(UserId::try_new(""), Err(InvalidId::Empty));
        assert!(UserId::try_new("x").is_ok());
        assert!(RoomId::try_new("x".repeat(256)).is_ok());
        let long = "é".repeat(129);
        let too_long = InvalidId::TooLong { bytes: 258 };
        assert_eq!(RoomId::try_new(long.as_str()), Err(too_long));
        assert_eq!(long.parse::<UserId>(), Err(too_long));
        assert!(serde_json::from_value::<RoomId>(long.clone().into()).is_err());
        assert_eq!(UserId::from(long).check(), Err(too_long), "later");
    }

    #[test]
    fn an_id_is_made_of_whatever_is_text_or_a_number() {
        let text = String::from("7");
        let ids = [
            RoomId::from("7"),
            RoomId::from(&"7"),
            RoomId::from(&text),
            RoomId::from(text.clone()),
            RoomId::from(Cow::from("7")),
            RoomId::from(Box::<str>::from("7")),
            RoomId::from(Arc::<str>::from("7")),
            RoomId::from(&RoomId::from("7")),
            RoomId::from(7_i32),
            RoomId::from(7_u64),
            "7".parse().unwrap(),
            serde_json::from_str(r#""7""#).unwrap(),
        ];
        for id in ids {
            assert!(id == "7" && id == *"7" && id.as_ref() == "7", "{id:?}");
            assert_eq!(
                (id.to_string(), format!("{id:>2}")),
                ("7".into(), " 7".into())
            );
            assert_eq!(serde_json::to_string(&id).unwrap(), r#""7""#);
            assert_eq!(String::from(id), text);
        }
    }

    #[test]
    fn an_id_is_found_by_its_text() {
        let ids = ["b", "a", "B"].map(UserId::from);
        assert!(HashSet::from(ids.clone()).contains("a"));
        let sorted = BTreeSet::from(ids);
        assert!(sorted.contains("B") && !sorted.contains("A"));
        assert_eq!(Vec::from_iter(&sorted), ["B", "a", "b"]);
        assert_eq!(
            format!("{sorted:?}"),
            r#"{UserId("B"), UserId("a"), UserId("b")}"#
        );
    }

    #[cfg(feature = "uuid")]
    #[test]
    fn a_uuid_is_written_with_hyphens_in_lower_case() {
        let uuid = uuid::Uuid::from_u128(0x67E5_5044_10B1_426F_9247_BB68_0E5F_E0C8);
        assert_eq!(UserId::from(uuid), "67e55044-10b1-426f-9247-bb680e5fe0c8");
    }
}
