//! The parts into which topics fall, where several servers share them.

use std::fmt;

/// One of 256 parts of the topics.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Partition(u8);

impl Partition {
    pub(crate) const COUNT: usize = 256;

    /// That of a topic's name.
    pub(crate) fn of(topic: &str) -> Self {
        Self((slot(topic.as_bytes()) >> 6) as u8)
    }

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..=u8::MAX).map(Self)
    }

    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

fn slot(bytes: &[u8]) -> u16 {
    let mut crc = 0u16;
    for byte in bytes {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
        }
    }
    crc & 0x3fff
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of partitions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct PartitionSet([u64; 4]);

impl PartitionSet {
    pub(crate) fn all() -> Self {
        Self([u64::MAX; 4])
    }

    pub(crate) fn insert(&mut self, partition: Partition) {
        self.0[partition.index() / 64] |= 1 << (partition.index() % 64);
    }

    pub(crate) fn remove(&mut self, partition: Partition) {
        self.0[partition.index() / 64] &= !(1 << (partition.index() % 64));
    }

    pub(crate) fn contains(&self, partition: Partition) -> bool {
        self.0[partition.index() / 64] & 1 << (partition.index() % 64) != 0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Partition> + use<> {
        let set = *self;
        Partition::all().filter(move |partition| set.contains(*partition))
    }
}

impl std::ops::BitOr for PartitionSet {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(std::array::from_fn(|n| self.0[n] | other.0[n]))
    }
}

impl std::ops::BitAnd for PartitionSet {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(std::array::from_fn(|n| self.0[n] & other.0[n]))
    }
}

impl std::ops::Sub for PartitionSet {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(std::array::from_fn(|n| self.0[n] & !other.0[n]))
    }
}

impl FromIterator<Partition> for PartitionSet {
    fn from_iter<I: IntoIterator<Item = Partition>>(partitions: I) -> Self {
        let mut set = Self::default();
        partitions.into_iter().for_each(|one| set.insert(one));
        set
    }
}

impl fmt::Debug for PartitionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
