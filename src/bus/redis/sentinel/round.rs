//! Who of the sentinels has been asked and has answered, and when no more is waited for: rules without I/O.
//!
//! Who is silent delays nobody: it is not asked again before it is given up, and the others are. What comes late belongs to
//! the next round, so that a slow one is heard as well.
//!
//! ```text
//!           those that owe nothing are asked            one answers
//!   between -----------------------------------> begun -------------> answered
//!     ^                                            |                     |
//!     |  all have, or it has taken 5.5 s           |                     |  the same; or that may be enough, and
//!     +--------------------------------------------+---------------------+  the first answer is 0.5 s old
//! ```
//! Of each there is beside that whether it owes an answer, from one round to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::council::{HostSaid, Said};
use crate::bus::redis::address::ServerAddress;

/// From the connect to the answer: four round trips of 1.2 s, since a slow link is no dead one.
pub(super) const ASKING: Duration = Duration::from_secs(5);
/// So long after the first answer the others are waited for, if it is of use.
const PATIENCE: Duration = Duration::from_millis(500);
/// The longest round: whoever was asked at its begin has answered or is given up.
const LONGEST: Duration = Duration::from_millis(5500);

#[derive(Debug, Default)]
pub(super) struct Round {
    /// None between two rounds.
    begun: Option<Instant>,
    /// When somebody answered first in this round.
    answered: Option<Instant>,
    /// Who owes an answer, and since when.
    silent: BTreeMap<ServerAddress, Instant>,
    /// The last word of each, and when it was asked for.
    said: BTreeMap<ServerAddress, (Instant, Said)>,
}

impl Round {
    /// Begins a round if there is none, and tells who of these is to be asked now.
    pub(super) fn ask(
        &mut self,
        sentinels: Vec<ServerAddress>,
        now: Instant,
    ) -> Vec<ServerAddress> {
        self.begun.get_or_insert(now);
        let idle = sentinels.into_iter();
        let idle: BTreeSet<_> = idle.filter(|one| !self.silent.contains_key(one)).collect();
        self.silent
            .extend(idle.iter().map(|one| (one.clone(), now)));
        idle.into_iter().collect()
    }

    pub(super) fn answered(&mut self, sentinel: ServerAddress, said: Said, now: Instant) {
        if self.begun.is_some() && said.is_ok() {
            self.answered.get_or_insert(now);
        }
        let asked = self.silent.remove(&sentinel).unwrap_or(now);
        self.said.insert(sentinel, (asked, said));
    }

    /// When it is over, by what has been said so far; `suffices`: that may be enough.
    pub(super) fn ends(&self, suffices: bool) -> Option<Instant> {
        let begun = self.begun?;
        let patience = self.answered.filter(|_| suffices);
        let patience = patience.map(|answered| answered + PATIENCE);
        let ends = patience.map_or(begun + LONGEST, |patience| patience.min(begun + LONGEST));
        Some(if self.silent.is_empty() { begun } else { ends })
    }

    /// What has been said so far, and when the first of that was asked for.
    pub(super) fn said(&self) -> (Vec<HostSaid>, Option<Instant>) {
        let said = self.said.iter();
        let said = said.map(|(sentinel, (_, said))| (sentinel.clone(), said.clone()));
        let asked = self.said.values().filter(|(_, said)| said.is_ok());
        (said.collect(), asked.map(|(asked, _)| *asked).min())
    }

    /// The round is over.
    pub(super) fn end(&mut self) {
        (self.begun, self.answered) = (None, None);
        self.said.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::redis::sentinel::answer::{Condition, SentinelAnswer};

    const MS: Duration = Duration::from_millis(1);

    fn host(port: u16) -> ServerAddress {
        ServerAddress::new("h", port)
    }

    fn sound() -> Said {
        Ok(SentinelAnswer {
            id: None,
            epoch: 1,
            primary: host(70),
            standing: Condition::Well,
            others: Vec::new(),
        })
    }

    fn refused() -> Said {
        Err("refused".into())
    }

    /// Three are asked.
    fn round() -> (Round, Instant) {
        let (mut round, now) = (Round::default(), Instant::now());
        assert_eq!(round.ends(true), None, "control");
        let asked = round.ask([1, 2, 3].map(host).to_vec(), now);
        assert_eq!(asked, [1, 2, 3].map(host));
        (round, now)
    }

    fn heard(round: &Round) -> Vec<u16> {
        let (said, _) = round.said();
        said.into_iter()
            .map(|(sentinel, _)| sentinel.port)
            .collect()
    }

    #[test]
    fn it_is_over_when_all_have_answered() {
        let (mut round, now) = round();
        for n in [1, 2, 3] {
            assert!(round.ends(true) > Some(now + MS), "control");
            round.answered(host(n), if n == 2 { refused() } else { sound() }, now + MS);
        }
        assert!(round.ends(false) <= Some(now + MS));
        round.end();
        assert_eq!((round.ends(true), heard(&round)), (None, vec![]));
    }

    #[test]
    fn who_is_silent_is_waited_for_a_moment_only() {
        let (mut round, now) = round();
        assert_eq!(round.ends(true), Some(now + LONGEST), "nobody has answered");
        round.answered(host(1), refused(), now + MS);
        assert_eq!(round.ends(true), Some(now + LONGEST), "no answer");
        round.answered(host(2), sound(), now + 2 * MS);
        assert_eq!(round.ends(true), Some(now + 2 * MS + PATIENCE));
        assert_eq!(round.ends(false), Some(now + LONGEST), "it does not do");
        // A hint: whoever has answered is asked again, and nobody waits for longer.
        let asked = round.ask([1, 2, 3].map(host).to_vec(), now + 100 * MS);
        assert_eq!(asked, [1, 2].map(host));
        round.answered(host(2), sound(), now + 101 * MS);
        assert_eq!(round.ends(true), Some(now + 2 * MS + PATIENCE));
    }

    #[test]
    fn what_comes_late_belongs_to_the_next_round() {
        let (mut round, now) = round();
        round.answered(host(1), sound(), now + MS);
        round.end();
        round.answered(host(3), sound(), now + 2 * PATIENCE);
        assert_eq!(round.ends(true), None);
        let next = now + 3 * PATIENCE;
        assert_eq!(
            round.ask([1, 2, 3].map(host).to_vec(), next),
            [1, 3].map(host)
        );
        assert_eq!(round.ends(true), Some(next + LONGEST), "it ends no round");
        round.answered(host(1), sound(), next + MS);
        assert_eq!(round.ends(true), Some(next + MS + PATIENCE));
        assert_eq!(heard(&round), [1, 3]);
        assert_eq!(round.said().1, Some(now), "that was asked for then");
    }
}
