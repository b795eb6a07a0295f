//! In which part of a Redis Cluster a topic is at home.
//!
//! A cluster has 16,384 slots, and a name's slot is a checksum: of all of it, or of a tag in it, `{like this}`. A
//! subscription is to channels of one slot, so that by their own slots 100,000 topics would be as many commands. So 64
//! neighbouring slots are a partition: a topic is of that in which its own slot lies, and by the partition's tag, as in
//! `cluster:{6}:u:alice`, all its topics are in one slot. The tag is the smallest number whose own slot lies among these
//! 64, so that partitions are spread over the primaries as slots are, however many there are.

use std::fmt;
use std::ops::{BitAnd, BitOr, Sub};

/// 256 of them are what a cluster consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Partition(u8);

impl Partition {
    pub(crate) const COUNT: usize = 256;

    /// That of the topic with this name, of which each byte counts: there is no `{` in the name of a topic.
    pub(crate) fn of(topic: &str) -> Self {
        Self::around(slot(topic.as_bytes()))
    }

    /// The one that is kept in this slot, if one is.
    pub(crate) fn of_slot(slot: u16) -> Option<Self> {
        let around = (usize::from(slot / BLOCK) < Self::COUNT).then(|| Self::around(slot));
        around.filter(|partition| partition.slot() == slot)
    }

    /// Those that are kept in these slots, both ends included.
    pub(crate) fn between(first: u16, last: u16) -> impl Iterator<Item = Self> {
        let ours = move |partition: &Self| (first..=last).contains(&partition.slot());
        let blocks = (first / BLOCK)..=(last / BLOCK).min(u8::MAX.into());
        blocks.map(|block| Self(block as u8)).filter(ours)
    }

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..=u8::MAX).map(Self)
    }

    /// What stands between `{` and `}` in every name of it.
    pub(crate) fn tag(self) -> &'static str {
        let tag = &TAGS[usize::from(self.0)];
        std::str::from_utf8(&tag.digits[tag.from..]).expect("digits are ASCII")
    }

    /// The slot in which the partition is kept.
    pub(crate) fn slot(self) -> u16 {
        TAGS[usize::from(self.0)].slot
    }

    /// Below [`COUNT`](Self::COUNT).
    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }

    fn around(slot: u16) -> Self {
        Self((slot / BLOCK) as u8)
    }
}

/// Some of all partitions.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct PartitionSet([u64; Partition::COUNT / 64]);

impl PartitionSet {
    pub(crate) const fn new() -> Self {
        Self([0; Partition::COUNT / 64])
    }

    pub(crate) const fn all() -> Self {
        Self([u64::MAX; Partition::COUNT / 64])
    }

    /// Whether it was not there before.
    pub(crate) fn insert(&mut self, partition: Partition) -> bool {
        let is_new = !self.contains(partition);
        let (word, bit) = place(partition);
        self.0[word] |= bit;
        is_new
    }

    /// Whether it was there.
    pub(crate) fn remove(&mut self, partition: Partition) -> bool {
        let was_there = self.contains(partition);
        let (word, bit) = place(partition);
        self.0[word] &= !bit;
        was_there
    }

    pub(crate) fn contains(&self, partition: Partition) -> bool {
        let (word, bit) = place(partition);
        self.0[word] & bit != 0
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::new()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The partitions in their order.
    pub(crate) fn iter(self) -> impl Iterator<Item = Partition> {
        Partition::all().filter(move |partition| self.contains(*partition))
    }
}

fn place(Partition(number): Partition) -> (usize, u64) {
    (usize::from(number / 64), 1 << (number % 64))
}

/// Those of either.
impl BitOr for PartitionSet {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(std::array::from_fn(|n| self.0[n] | other.0[n]))
    }
}

/// Those of both.
impl BitAnd for PartitionSet {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(std::array::from_fn(|n| self.0[n] & other.0[n]))
    }
}

/// Those of the first that are not of the second.
impl Sub for PartitionSet {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(std::array::from_fn(|n| self.0[n] & !other.0[n]))
    }
}

impl FromIterator<Partition> for PartitionSet {
    fn from_iter<I: IntoIterator<Item = Partition>>(partitions: I) -> Self {
        let mut set = Self::new();
        for partition in partitions {
            set.insert(partition);
        }
        set
    }
}

impl fmt::Debug for PartitionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.iter().map(|partition| partition.0))
            .finish()
    }
}

/// A number and its slot.
#[derive(Clone, Copy)]
struct Tag {
    digits: [u8; 3],
    /// Where they begin.
    from: usize,
    slot: u16,
}

impl Tag {
    const fn of(number: u16) -> Self {
        let digits = [number / 100, number / 10 % 10, number % 10];
        let digits = [
            b'0' + digits[0] as u8,
            b'0' + digits[1] as u8,
            b'0' + digits[2] as u8,
        ];
        let from = match number {
            0..10 => 2,
            10..100 => 1,
            _ => 0,
        };
        let slot = slot(digits.split_at(from).1);
        Self { digits, from, slot }
    }
}

static TAGS: [Tag; Partition::COUNT] = tags();

const fn tags() -> [Tag; Partition::COUNT] {
    let mut tags = [None; Partition::COUNT];
    let (mut missing, mut number) = (Partition::COUNT, 0);
    while missing > 0 {
        let tag = Tag::of(number);
        let found = &mut tags[(tag.slot / BLOCK) as usize];
        if found.is_none() {
            *found = Some(tag);
            missing -= 1;
        }
        number += 1;
    }
    let (mut all, mut n) = ([Tag::of(0); Partition::COUNT], 0);
    while n < Partition::COUNT {
        if let Some(tag) = tags[n] {
            all[n] = tag;
        }
        n += 1;
    }
    all
}

/// The slot of a name without a tag, or of a tag.
const fn slot(name: &[u8]) -> u16 {
    checksum(name) % SLOTS
}

/// CRC-16/XMODEM, as Redis Cluster's specification has it.
const fn checksum(bytes: &[u8]) -> u16 {
    let (mut sum, mut n) = (0_u16, 0);
    while n < bytes.len() {
        let index = (sum >> 8) as u8 ^ bytes[n];
        sum = (sum << 8) ^ REMAINDERS[index as usize];
        n += 1;
    }
    sum
}

/// The remainder of each byte, by the polynomial 0x1021.
static REMAINDERS: [u16; 256] = {
    let (mut remainders, mut byte) = ([0; 256], 0);
    while byte < 256 {
        let (mut remainder, mut bit) = ((byte as u16) << 8, 0);
        while bit < 8 {
            let carry = remainder >> 15;
            remainder = (remainder << 1) ^ (carry * 0x1021);
            bit += 1;
        }
        remainders[byte] = remainder;
        byte += 1;
    }
    remainders
};

const SLOTS: u16 = 16_384;
/// Slots of one partition.
const BLOCK: u16 = SLOTS / Partition::COUNT as u16;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::model::id::UserId;
    use crate::model::topic::Topic;

    #[test]
    fn slots_are_those_of_redis() {
        assert_eq!(checksum(b"123456789"), 0x31c3);
        // As a server's CLUSTER KEYSLOT says.
        for (name, expected) in [("", 0), ("foo", 12_182), ("bar", 5061), ("hello", 866)] {
            assert_eq!(slot(name.as_bytes()), expected, "{name}");
        }
    }

    #[test]
    fn a_topic_is_kept_where_foreign_publishers_find_it() {
        let alice = Topic::user(&UserId::from("alice")).unwrap();
        assert_eq!(Partition::of(alice.as_str()).tag(), "6");
        let braces = Topic::user(&UserId::from("a{1}")).unwrap();
        assert!(!braces.as_str().contains('{'), "it would be a tag");
    }

    #[test]
    fn the_tag_is_the_smallest_number_of_its_block() {
        let numbers: Vec<u16> = Partition::all().map(|p| p.tag().parse().unwrap()).collect();
        assert_eq!(numbers.len(), Partition::COUNT);
        assert_eq!(numbers.iter().max(), Some(&477));
        for (partition, number) in Partition::all().zip(numbers) {
            let block = |number: u16| slot(number.to_string().as_bytes()) / BLOCK;
            assert_eq!(block(number), u16::from(partition.0));
            assert!((0..number).all(|smaller| block(smaller) != u16::from(partition.0)));
            assert_eq!(Partition::of(partition.tag()), partition);
        }
    }

    #[test]
    fn every_primary_gets_its_share() {
        for (primaries, share) in [
            (3_u32, 85..=86),
            (6, 42..=43),
            (12, 21..=22),
            (16, 16..=16),
            (20, 12..=14),
        ] {
            // As `redis-cli --cluster create` divides them.
            let share_of = |slot: u16| u32::from(slot) * primaries / u32::from(SLOTS);
            for primary in 0..primaries {
                let ours = Partition::all().filter(|p| share_of(p.slot()) == primary);
                assert!(share.contains(&ours.count()), "{primary} of {primaries}");
            }
        }
    }

    #[test]
    fn only_256_slots_are_ours() {
        let slots: BTreeSet<u16> = Partition::all().map(Partition::slot).collect();
        assert_eq!(slots.len(), Partition::COUNT);
        assert!(
            Partition::all()
                .map(Partition::index)
                .eq(0..Partition::COUNT)
        );
        for slot in 0..=u16::MAX {
            let partition = Partition::of_slot(slot);
            assert_eq!(partition.is_some(), slots.contains(&slot), "{slot}");
            assert!(partition.is_none_or(|partition| partition.slot() == slot));
        }
    }

    proptest! {
        #[test]
        fn what_lies_between_slots_is_found(first: u16, last: u16, near in 0u16..200) {
            for last in [last, first.saturating_add(near)] {
                let within = |p: &Partition| (first..=last).contains(&p.slot());
                prop_assert!(Partition::between(first, last).eq(Partition::all().filter(within)));
            }
        }

        #[test]
        fn a_set_is_a_set(inserted: Vec<u8>, removed: Vec<u8>) {
            let (inserted, removed) = (inserted.into_iter().map(Partition), removed.into_iter().map(Partition));
            let mut model: BTreeSet<Partition> = inserted.clone().collect();
            let mut set: PartitionSet = inserted.clone().collect();
            for partition in removed.clone() {
                prop_assert_eq!(set.remove(partition), model.remove(&partition));
            }
            prop_assert!(set.iter().eq(model.iter().copied()));
            prop_assert_eq!((set.len(), set.is_empty()), (model.len(), model.is_empty()));
            let other: PartitionSet = removed.clone().collect();
            let of_both = |p: &Partition| set.contains(*p) && other.contains(*p);
            let of_either = |p: &Partition| set.contains(*p) || other.contains(*p);
            prop_assert!((set & other).iter().eq(Partition::all().filter(of_both)));
            prop_assert!((set | other).iter().eq(Partition::all().filter(of_either)));
            prop_assert!((set - other).iter().eq(set.iter().filter(|p| !other.contains(*p))));
            for partition in inserted {
                prop_assert_eq!(set.insert(partition), model.insert(partition));
            }
            prop_assert_eq!(PartitionSet::all().len(), Partition::COUNT);
        }
    }
}
