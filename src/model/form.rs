//! In which form a message may reach clients.

/// Compressed where a client takes that, or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Form {
    #[default]
    Any,
    /// It holds a secret beside what others choose, and its length would tell of it.
    Plain,
}
