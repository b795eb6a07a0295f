//! What kind of device a socket is, in the words of its app.

use serde::Serialize;
use serde_json::Value;

use super::error::DescriptionError;

/// Kept for every socket, and sent with every roster, in bytes.
pub(crate) const MAX_DESCRIPTION: usize = 1024;
/// Parsers of JSON give up below 128 levels, and every answer puts some around a description.
const MAX_DEPTH: usize = 100;

/// JSON that every node can read.
#[derive(Debug, Clone)]
pub(crate) struct Description(pub(crate) Box<str>);

impl Description {
    pub(crate) fn of(value: &impl Serialize) -> Result<Self, DescriptionError> {
        let json = serde_json::to_string(value).map_err(DescriptionError::unwritable)?;
        match json.len() {
            0..=MAX_DESCRIPTION if is_too_deep(&json) => Err(DescriptionError::too_deep(MAX_DEPTH)),
            0..=MAX_DESCRIPTION => Ok(Self(json.into())),
            bytes => Err(DescriptionError::too_long(bytes, MAX_DESCRIPTION)),
        }
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
    fn a_description_is_so_deep_that_every_node_can_read_it() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(!is_too_deep(&nested(MAX_DEPTH)) && is_too_deep(&nested(MAX_DEPTH + 1)));
        assert!(!is_too_deep(&format!("\"{}\"", nested(400))), "no levels");
    }
}
