//! What a client may send, and cost in one turn.

use crate::ws::Agreed;

/// How large a message may be, and what may be inflated in one turn.
#[derive(Debug)]
pub(crate) struct Allowance {
    /// Largest message, in bytes.
    limit: usize,
    /// Whether compressed messages may come at all.
    inflates: bool,
    /// So many bytes more.
    left: usize,
}

impl Allowance {
    /// Of a client with which this was agreed on.
    pub(crate) fn of(agreed: Agreed, limit: usize) -> Self {
        Self {
            limit,
            inflates: agreed.inflates(),
            left: TURN,
        }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Whether a message may be more than the bytes that came for it.
    pub(crate) fn inflates(&self) -> bool {
        self.inflates
    }

    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Takes what was needed off the allowance.
    pub(super) fn spend(&mut self, work: usize) {
        self.left = self.left.saturating_sub(work);
    }
}

/// So much is inflated in one turn, so that other tasks may run: about a millisecond.
const TURN: usize = 256 * 1024;
