//! What becomes of a message for which a client is too slow.

use std::sync::Arc;

/// How a message waits for a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Manner {
    /// In its place, as the limits and the policy of the outbox say.
    #[default]
    InTurn,
    /// Not at all: where others wait already it is left out.
    Volatile,
    /// In the place of the one of the same key that waits already.
    Latest(Arc<str>),
}
