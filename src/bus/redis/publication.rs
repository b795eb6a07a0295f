//! What is to be published, in one piece or in parts.

use std::num::NonZeroU32;

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};
use tokio::sync::oneshot;

use super::address::ServerAddress;
use super::past::{Doubt, Keeping, KeptList};
use crate::bus::scope::Size;
use crate::bus::wire::{self, STAMP};
use crate::model::error::PublishError;
use crate::model::history::mark::Mark;
use crate::model::partition::Partition;

/// Most channels of a large union in one pipeline: few enough that Redis serves the others within milliseconds, and
/// so many that a union of 100,000 takes 50 round trips, half a second on a link of 10 ms; …
pub(super) const PART: usize = 2048;
/// … and most bytes of payload: 2,048 of 1 KiB, which take a link of 1 Gbit/s 17 ms.
const PART_BYTES: usize = 2 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Publication {
    pub(super) channels: SmallVec<[String; 1]>,
    pub(super) envelope: Bytes,
    /// Whoever publishes wants to know whether it went to a replica.
    pub(super) is_probe: bool,
    pub(super) size: Size,
    /// In a Redis Cluster: where all its channels are.
    pub(super) partition: Option<Partition>,
    /// Of that partition where it is published, if anything has moved.
    pub(super) era: Option<NonZeroU32>,
    /// The one that its envelope says.
    stamped: Option<NonZeroU32>,
    /// Its keys are on their way, each by itself: it shares no command with another topic's.
    pub(super) goes_alone: bool,
    /// Where its keys are already, of a slot on its way.
    pub(super) asks: Option<ServerAddress>,
    /// Where its channels are kept, if they are.
    pub(super) keep: Option<Box<Keeping>>,
    /// On how many channels it was published before this turn, …
    begin: usize,
    /// … and on how many with it.
    end: usize,
}

impl Publication {
    pub(super) fn new(
        channels: SmallVec<[String; 1]>,
        envelope: Bytes,
        size: Size,
        partition: Option<Partition>,
    ) -> Self {
        Self {
            channels,
            envelope,
            is_probe: false,
            size,
            partition,
            era: None,
            stamped: None,
            goes_alone: false,
            asks: None,
            keep: None,
            begin: 0,
            end: 0,
        }
    }

    pub(super) fn probe(channels: SmallVec<[String; 1]>, envelope: Bytes) -> Self {
        Self {
            is_probe: true,
            ..Self::new(channels, envelope, Size::Small, None)
        }
    }

    pub(super) fn kept(self, keep: Option<Box<Keeping>>) -> Self {
        Self { keep, ..self }
    }

    /// Has what is kept say its era, which it may have changed while it waited.
    pub(super) fn stamp(&mut self) {
        let Some(era) = self.era.filter(|_| self.keep.is_some()) else {
            return;
        };
        if self.stamped != Some(era) {
            let before = self.stamped.map_or(0, |_| STAMP);
            let envelope = [&wire::stamp(era)[..], &self.envelope[before..]].concat();
            (self.envelope, self.stamped) = (envelope.into(), Some(era));
        }
    }

    /// Where the channels whose turn it is are kept.
    pub(super) fn kept_part(&self) -> &[Option<KeptList>] {
        match &self.keep {
            Some(keeping) => &keeping.lists[self.begin..self.end],
            None => &[],
        }
    }

    /// What tells it from what is published on or kept of other topics.
    pub(super) fn topic(&self) -> &str {
        let lists = self.keep.iter().flat_map(|keep| keep.lists.iter());
        let list = lists.flatten().map(|list| list.key.as_str()).next();
        list.or(self.channels.first().map(String::as_str))
            .unwrap_or_default()
    }

    /// What must stay in one piece is small, or has one channel.
    pub(super) fn is_large(&self) -> bool {
        self.size == Size::Large
    }

    /// The channels whose turn it is.
    pub(super) fn part(&self) -> &[String] {
        &self.channels[self.begin..self.end]
    }

    /// A part that may be there already has its turn once more.
    pub(super) fn advance(&mut self) {
        if self.is_in_doubt() && self.begin < self.end {
            return;
        }
        self.begin = self.end;
        let most = match self.is_large() {
            _ if self.keep.as_ref().is_some_and(|keeping| keeping.is_union) => self.channels.len(),
            true => (PART_BYTES / self.envelope.len().max(1)).clamp(1, PART),
            false => self.channels.len(),
        };
        self.end = self.channels.len().min(self.begin + most);
    }

    /// So many of the part were taken; what follows is to be published again, elsewhere or later.
    pub(super) fn keep(&mut self, taken: usize) {
        self.begin += taken;
        self.end = self.begin;
    }

    /// Whether it waits for Redis, if that is away.
    /// Where it is kept, if it may have to be looked for there.
    pub(super) fn spooled_lists(&self) -> impl Iterator<Item = &KeptList> {
        let keeping = self.keep.as_ref().filter(|keeping| keeping.spools);
        let lists = keeping.into_iter().flat_map(|keeping| &keeping.lists);
        lists.flatten()
    }

    pub(super) fn spools(&self) -> bool {
        self.keep.as_ref().is_some_and(|keeping| keeping.spools)
    }

    /// Whether its part, or all of it, may be there already.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.doubt().is_some_and(|doubt| doubt.since.is_some())
    }

    pub(super) fn doubt(&self) -> Option<&Doubt> {
        self.keep.as_ref()?.doubt.as_deref()
    }

    pub(super) fn doubt_mut(&mut self) -> Option<&mut Doubt> {
        Some(self.keep.as_mut()?.doubt.get_or_insert_default())
    }

    /// In how many lists it is kept.
    pub(super) fn kept_lists(&self) -> usize {
        let keeping = self.keep.as_ref();
        keeping.map_or(0, |keeping| keeping.lists.iter().flatten().count())
    }

    /// Redis took the first channels of the part, each under its number. As publications of one number each; what is left is of no
    /// use any more.
    pub(super) fn take_units(&mut self, marks: &[Option<Mark>]) -> SmallVec<[(Mark, Self); 1]> {
        let Some(keeping) = &mut self.keep else {
            return SmallVec::new();
        };
        if marks.len() == self.end - self.begin
            && let Some(doubt) = &mut keeping.doubt
        {
            doubt.since = None;
        }
        if keeping.is_union || self.channels.len() == 1 {
            let whole = marks.len() == self.channels.len();
            let Some(mark) = marks.iter().flatten().next().filter(|_| whole) else {
                return SmallVec::new();
            };
            let (channels, keep) = (std::mem::take(&mut self.channels), self.keep.take());
            (self.begin, self.end) = (0, 0);
            let unit = Self::new(channels, self.envelope.clone(), self.size, self.partition);
            return smallvec![(*mark, unit.kept(keep))];
        }
        let taken = marks.iter().enumerate().filter_map(|(n, mark)| {
            let place = self.begin + n;
            let (mark, list) = ((*mark)?, keeping.lists[place].take()?);
            let keep = Keeping {
                clock: keeping.clock.clone(),
                lists: smallvec![Some(list)],
                is_union: false,
                spools: true,
                doubt: None,
            };
            let channels = smallvec![std::mem::take(&mut self.channels[place])];
            let unit = Self::new(channels, self.envelope.clone(), Size::Small, self.partition);
            Some((mark, unit.kept(Some(Box::new(keep)))))
        });
        taken.collect()
    }

    pub(super) fn is_finished(&self) -> bool {
        self.end == self.channels.len()
    }
}

/// To how many it went, and under which number if it is kept: the last of several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) receivers: usize,
    pub(super) mark: Option<Mark>,
}

/// Of what is not kept.
impl From<usize> for Taken {
    fn from(receivers: usize) -> Self {
        let mark = None;
        Self { receivers, mark }
    }
}

/// What becomes of one.
pub(super) type Receivers = Result<Taken, PublishError>;

/// What is told to whoever publishes one: what became of it, or that it waits.
pub(super) type PublicationAnswer = Result<PublicationTold, PublishError>;

#[derive(Debug, Default)]
pub(super) struct PublicationTold {
    pub(super) receivers: usize,
    pub(super) mark: Option<Mark>,
    /// Of what waits for Redis to be back.
    pub(super) later: Option<oneshot::Receiver<Receivers>>,
}

impl From<Taken> for PublicationTold {
    fn from(Taken { receivers, mark }: Taken) -> Self {
        let later = None;
        Self {
            receivers,
            mark,
            later,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::history::mark::{Number, Run};

    fn kept(channels: usize, is_union: bool) -> Publication {
        let list = |n: usize| KeptList {
            key: n.to_string(),
            messages: 1,
            lifetime: 1,
        };
        let keeping = Keeping {
            clock: "clock".into(),
            lists: (0..channels).map(|n| Some(list(n))).collect(),
            is_union,
            spools: true,
            doubt: None,
        };
        let channels = (0..channels).map(|n| n.to_string()).collect();
        let publication = Publication::new(channels, Bytes::new(), Size::Small, None);
        publication.kept(Some(Box::new(keeping)))
    }

    fn mark(number: u64) -> Mark {
        Mark {
            run: Run::of("abcdefabcdef").unwrap(),
            number: Number(number),
        }
    }

    #[test]
    fn what_has_a_number_of_its_own_may_be_kept_again_by_itself() {
        let mut each = kept(3, false);
        each.advance();
        let units = each.take_units(&[Some(mark(1)), None, Some(mark(3))]);
        let told = units
            .iter()
            .map(|(mark, one)| (mark.number.0, one.channels.concat()));
        let told: Vec<_> = told.collect();
        assert_eq!(told, [(1, "0".to_owned()), (3, "2".to_owned())]);
        for (_, mut one) in units {
            assert_eq!((one.kept_lists(), one.is_finished()), (1, false));
            one.advance();
            assert_eq!((one.part().len(), one.is_finished()), (1, true));
        }
        let mut union = kept(3, true);
        union.advance();
        assert!(
            union.take_units(&[Some(mark(1))]).is_empty(),
            "only as a whole"
        );
        let units = union.take_units(&[Some(mark(1)); 3]);
        assert_eq!((units.len(), units[0].1.kept_lists()), (1, 3));
    }

    #[test]
    fn what_may_be_there_has_its_turn_again_as_it_was() {
        let mut each = kept(3, false);
        each.advance();
        each.keep(1);
        each.advance();
        assert_eq!(each.part(), ["1", "2"]);
        if let Some(doubt) = each.doubt_mut() {
            doubt.since = Some(mark(1));
        }
        each.advance();
        assert_eq!(each.part(), ["1", "2"]);
        each.keep(1);
        each.advance();
        assert_eq!(each.part(), ["2"]);
        each.take_units(&[Some(mark(7))]);
        assert!(!each.is_in_doubt(), "it is known");
    }
}
