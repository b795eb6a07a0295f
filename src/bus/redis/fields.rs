//! What is read of an answer that redis-rs has parsed.

use redis::Value;

/// Names and values in turn.
pub(super) struct Fields<'a>(&'a [Value]);

impl<'a> Fields<'a> {
    pub(super) fn of(value: &'a Value) -> Option<Self> {
        match value {
            Value::Array(fields) => Some(Self(fields)),
            _ => None,
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        let mut fields = self.0.chunks_exact(2);
        let found = fields.find(|field| text(&field[0]) == Some(name))?;
        text(&found[1])
    }
}

pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(text) => std::str::from_utf8(text).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

/// Answers as servers give them, and others.
#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in crate::bus::redis) fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    /// Of texts like these, among other things.
    pub(in crate::bus::redis) fn any_value(texts: &'static str) -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Nil),
            any::<i64>().prop_map(Value::Int),
            (0i64..20_000).prop_map(Value::Int),
            texts.prop_map(|text| bulk(&text)),
        ];
        leaf.prop_recursive(4, 64, 12, |inner| {
            proptest::collection::vec(inner, 0..12).prop_map(Value::Array)
        })
    }
}
