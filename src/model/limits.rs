//! How much is kept for a client that reads slowly, and what happens then; and how long anything may take at most.

use std::time::Duration;

/// No setting needs more, and no sum of times overflows.
pub(crate) const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// What to do with a client that reads more slowly than messages come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SlowConsumer {
    /// Close it with 1013 and discard what was queued: it reconnects and starts afresh. The default,
    /// since a client that silently lost messages is wrong without knowing it.
    #[default]
    Close,
    /// Discard its oldest messages and go on; for feeds where only the newest counts.
    DropOldest,
}

/// How much may wait for the bus to be back, and how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SpoolLimits {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    pub(crate) wait: Duration,
}

/// How much an outbox holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutboxLimits {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    pub(crate) policy: SlowConsumer,
}
