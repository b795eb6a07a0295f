//! What is to be published, in one piece or in parts.

use std::num::NonZeroU32;

use bytes::Bytes;
use smallvec::SmallVec;

use super::past::{Keeping, KeptList};
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

    /// What must stay in one piece is small, or has one channel.
    pub(super) fn is_large(&self) -> bool {
        self.size == Size::Large
    }

    /// The channels whose turn it is.
    pub(super) fn part(&self) -> &[String] {
        &self.channels[self.begin..self.end]
    }

    pub(super) fn advance(&mut self) {
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
        self.end = self.begin + taken;
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
