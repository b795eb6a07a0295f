//! What became of what an end did.

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushed {
    Taken,
    /// Taken, at the price of this many older ones.
    Dropped(usize),
    /// Taken in the place of an older one of its key.
    Superseded,
    /// Not taken, since it would have had to wait.
    LeftOut,
    /// The client is too slow: its socket ends, with this many messages discarded.
    Overflowed(usize),
    /// It has it already.
    Known,
    /// The socket has ended.
    Closed,
}

impl Pushed {
    /// Taken, at the price of so many.
    pub(super) fn instead_of(dropped: usize) -> Self {
        match dropped {
            0 => Self::Taken,
            _ => Self::Dropped(dropped),
        }
    }

    /// Whether the client will get it.
    pub(crate) fn is_taken(self) -> bool {
        matches!(self, Self::Taken | Self::Dropped(_) | Self::Superseded)
    }
}

/// What became of a frame that was to be collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "the first of a wake has to be flushed"]
pub(crate) struct Collected {
    pub(crate) pushed: Pushed,
    /// The frame is the first since the last flush, and so the one that asks for the next.
    pub(crate) wants_flush: bool,
}

/// Who writes what was collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// All that was collected is written, as far as the kernel took it.
    Here,
    /// The socket's task has to, in its next turn.
    ByTask,
}

/// What the life of a socket asks of its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LifeStage {
    Open,
    /// Something ended it: the Close frame is queued or written.
    Ending,
    /// No more time: drop the stream.
    Cut,
}

/// What the sweeper found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Swept {
    Fine,
    /// The client accepted nothing for too long; this many messages are discarded.
    Stalled(usize),
}
