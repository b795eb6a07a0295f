//! Times as milliseconds since 1970: what every language reads.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serializer};

pub(crate) fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    to.serialize_u64(since.as_millis() as u64)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
    // A century that no clock names is as good as any other.
    let millis = Duration::from_millis(u64::deserialize(from)?);
    Ok(UNIX_EPOCH.checked_add(millis).unwrap_or(UNIX_EPOCH))
}
