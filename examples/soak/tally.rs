//! What the soak counts.

use std::time::Duration;

/// Messages are counted once per socket but for the first three.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Sends by what they returned.
    pub taken: u64,
    pub unsure: u64,
    pub refused: u64,
    pub delivered: u64,
    pub gaps_told: u64,
    /// Not delivered, and the receiver was told of a gap.
    pub inside: u64,
    /// The same of what is kept: Redis lost it after it was taken, which is counted.
    pub destroyed: u64,
    /// Of unions over several primaries: what came late, across an outage of one of them.
    pub crossed: u64,
    /// Not delivered, and the sender was told that other nodes do not have it, or may not.
    pub sender_told: u64,
    /// Questions that were answered, and those of them that were not whole.
    pub answers: u64,
    pub incomplete: u64,
    /// … and left out a node that they do not name.
    pub unnamed: u64,
    /// Upgrades of users who want too many, and those of them for which only one node was counted.
    pub upgrades: u64,
    pub unchecked: u64,

    // What must not happen.
    /// Not delivered, and nobody was told.
    pub outside: u64,
    /// Said to be lost by Redis, and counted by no node as such.
    pub uncounted: u64,
    pub duplicates: u64,
    pub disorder: u64,
    /// Delivered elsewhere though its sender was told that it was not sent.
    pub refused_arrived: u64,
    /// Delivered to a socket it was not for.
    pub strays: u64,
    /// Not delivered, and the sender lives but has not said what became of it.
    pub unreported: u64,
    /// Said to be whole, with fewer sockets than surely were there.
    pub wrongly_complete: u64,
    /// A user who surely was online, said not to be.
    pub wrongly_offline: u64,
    /// Questions that nobody answered, not even with an error.
    pub unanswered: u64,
    /// Sockets admitted to a user who surely had as many as allowed.
    pub over_limit: u64,
}

impl Tally {
    pub fn is_clean(&self) -> bool {
        let wrong = [
            self.outside,
            self.uncounted,
            self.duplicates,
            self.disorder,
            self.refused_arrived,
            self.strays,
            self.unreported,
            self.wrongly_complete,
            self.wrongly_offline,
            self.unanswered,
            self.over_limit,
        ];
        wrong == [0; 11]
    }
}

/// One fault, from its beginning to the moment when everything worked again.
#[derive(Clone, Debug)]
pub struct Occasion {
    pub name: &'static str,
    /// Redis may lose what it had taken.
    pub destroys: bool,
    pub from: u64,
    /// The first node that said it was degraded, after the beginning.
    pub noticed: Option<Duration>,
    /// All nodes up and every kind of audience heard from each at each, after the fault was over.
    pub healed: Option<Duration>,
    /// When that was.
    pub until: Option<u64>,
    /// Answers to what was asked before that, and how many of them were not whole; and afterwards.
    pub answers: [(u64, u64); 2],
    pub inside: u64,
    pub outside: u64,
}
