//! How many sockets a user may have in the whole cluster, and which has to go.

/// What happens when a user's sockets in the cluster are at their limit and one more comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OverLimit {
    /// The new one is refused with 429: the default.
    #[default]
    Refuse,
    /// The new one enters, and the user's oldest is closed with 4409 "replaced by a newer socket", on
    /// whichever node it is.
    CloseOldest,
}

/// The limit, and what happens at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SeatLimit {
    pub(crate) sockets: usize,
    pub(crate) over: OverLimit,
}

impl SeatLimit {
    /// How many of the oldest lose their seat, so that one more fits beside those that are held; `None`
    /// when it is refused.
    pub(crate) fn make_room(self, held: usize) -> Option<usize> {
        match self.over {
            _ if held < self.sockets => Some(0),
            OverLimit::Refuse => None,
            OverLimit::CloseOldest => Some(held + 1 - self.sockets),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_over_the_limit_has_to_go() {
        let limit = |over| SeatLimit { sockets: 3, over };
        let refuse = [0, 2, 3, 7].map(|held| limit(OverLimit::Refuse).make_room(held));
        assert_eq!(refuse, [Some(0), Some(0), None, None]);
        let replace = [0, 2, 3, 7].map(|held| limit(OverLimit::CloseOldest).make_room(held));
        assert_eq!(replace, [Some(0), Some(0), Some(1), Some(5)]);
    }
}
