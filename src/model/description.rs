//! What kind of device a socket is, in the words of its app.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::DescriptionError;

/// Kept for every socket, and sent with every roster, in bytes.
pub(crate) const MAX_DESCRIPTION: usize = 1024;
/// Of so many devices of a user presence tells.
const MOST: usize = 16;
/// Parsers of JSON give up below 128 levels, and every answer puts some around a description.
const MAX_DEPTH: usize = 100;

/// JSON that every node can read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Description(Arc<str>);

/// What the devices of a user are said to be, each once, and the first of very many. Nearly always none are, so that none
/// costs nearly nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<String>", into = "Vec<String>")]
#[expect(
    clippy::box_collection,
    reason = "a set is three words, and nearly all have none"
)]
pub(crate) struct Descriptions(Option<Box<BTreeSet<Description>>>);

impl Description {
    pub(crate) fn of(value: &impl Serialize) -> Result<Self, DescriptionError> {
        let json = serde_json::to_string(value).map_err(DescriptionError::unwritable)?;
        match json.len() {
            0..=MAX_DESCRIPTION if is_too_deep(&json) => Err(DescriptionError::too_deep(MAX_DEPTH)),
            0..=MAX_DESCRIPTION => Ok(Self(json.into())),
            bytes => Err(DescriptionError::too_long(bytes, MAX_DESCRIPTION)),
        }
    }

    /// That of another node may be nonsense.
    pub(crate) fn value(&self) -> Option<Value> {
        serde_json::from_str(&self.0).ok()
    }
}

impl Descriptions {
    /// Of whichever are many those remain that come first, on whichever node they are put together.
    pub(crate) fn insert(&mut self, description: Description) {
        let all = self.0.get_or_insert_default();
        all.insert(description);
        if all.len() > MOST {
            all.pop_last();
        }
    }

    pub(crate) fn extend(&mut self, others: &Self) {
        let others = others.0.iter().flat_map(|others| others.iter());
        others.for_each(|description| self.insert(description.clone()));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// About what they take on the bus.
    pub(crate) fn size(&self) -> usize {
        let all = self.0.iter().flat_map(|all| all.iter());
        all.map(|description| description.0.len()).sum()
    }

    pub(crate) fn values(&self) -> Vec<Value> {
        let all = self.0.iter().flat_map(|all| all.iter());
        all.filter_map(Description::value).collect()
    }
}

impl From<Vec<String>> for Descriptions {
    fn from(told: Vec<String>) -> Self {
        let mut all = Self::default();
        let told = told.into_iter().map(|json| Description(json.into()));
        told.for_each(|description| all.insert(description));
        all
    }
}

impl From<Descriptions> for Vec<String> {
    fn from(all: Descriptions) -> Self {
        let all = all.0.into_iter().flat_map(|all| *all);
        all.map(|description| description.0.as_ref().to_owned())
            .collect()
    }
}

/// Whether no node could read this valid JSON within an answer.
fn is_too_deep(json: &str) -> bool {
    let around = 127 - MAX_DEPTH;
    let nested = format!("{}{json}{}", "[".repeat(around), "]".repeat(around));
    serde_json::from_str::<Value>(&nested).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_very_many_devices_the_same_ones_are_told_wherever_they_are() {
        let all: Vec<String> = (0..3 * MOST).map(|n| format!("{n:02}")).collect();
        let whole = Descriptions::from(all.clone());
        let mut parts = Descriptions::default();
        for part in all.rchunks(MOST + 3) {
            parts.extend(&Descriptions::from(part.to_vec()));
        }
        assert_eq!(parts, whole);
        assert_eq!(Vec::from(whole.clone()), all[..MOST]);
        parts.extend(&whole);
        assert_eq!((parts.size(), parts.is_empty()), (2 * MOST, false));
        assert_eq!(Descriptions::from(Vec::new()), Descriptions::default());
    }

    #[test]
    fn a_description_is_so_deep_that_every_node_can_read_it() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(!is_too_deep(&nested(MAX_DEPTH)) && is_too_deep(&nested(MAX_DEPTH + 1)));
        assert!(!is_too_deep(&format!("\"{}\"", nested(400))), "no levels");
    }
}
