//! The numbers of what is kept, and who gave them.
//!
//! A clock gives each message that is kept a number: microseconds of its Redis' time, made strictly increasing. A run is a
//! process that did so; a number means something in its run alone, since a process that takes over may begin with an older
//! state. There is a clock for each Redis; in a Redis Cluster one for each partition.

use std::fmt;

use smallvec::SmallVec;

/// A message's, in microseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Number(pub(crate) u64);

impl Number {
    /// How many digits it is written with: so that what is compared as text is compared as numbers, until 2286.
    pub(crate) const DIGITS: usize = 16;

    pub(crate) fn read(digits: &[u8]) -> Option<Self> {
        if digits.len() != Self::DIGITS {
            return None;
        }
        let mut number = 0;
        for digit in digits {
            let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
            number = number * 10 + u64::from(digit);
        }
        Some(Self(number))
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016}", self.0)
    }
}

/// The process that numbered: the beginning of what Redis calls its `run_id`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Run([u8; Run::LETTERS]);

impl Run {
    pub(crate) const LETTERS: usize = 12;

    /// The run whose name is the first letters of this.
    pub(crate) fn of(id: &str) -> Option<Self> {
        let letters = id.as_bytes().first_chunk()?;
        letters
            .iter()
            .all(u8::is_ascii_alphanumeric)
            .then_some(Self(*letters))
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("letters are ASCII")
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Run({})", self.as_str())
    }
}

/// How far a clock had come, or somebody who heard it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mark {
    pub(crate) run: Run,
    pub(crate) number: Number,
}

impl Mark {
    /// Whether whoever has heard up to here has what was kept under one of these.
    pub(crate) fn covers(&self, marks: &[Self]) -> bool {
        let is_covered = |mark: &Self| mark.run == self.run && mark.number <= self.number;
        marks.iter().any(is_covered)
    }
}

/// Which clock: the same on all nodes. That of the only Redis is the first; where several Redises share the topics it is the
/// place of one's name among all, sorted; in a Redis Cluster the partition's index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Clock(pub(crate) u16);

/// How far each clock had come, as far as is known: one mark a clock, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Marks(SmallVec<[(Clock, Mark); 1]>);

impl Marks {
    pub(crate) fn of(&self, clock: Clock) -> Option<Mark> {
        let at = self.place(clock).ok()?;
        Some(self.0[at].1)
    }

    /// Sets the mark of a clock, instead of the one that there was.
    pub(crate) fn set(&mut self, clock: Clock, mark: Mark) {
        match self.place(clock) {
            Ok(at) => self.0[at].1 = mark,
            Err(at) => self.0.insert(at, (clock, mark)),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Clock, Mark)> {
        self.0.iter().copied()
    }

    fn place(&self, clock: Clock) -> Result<usize, usize> {
        self.0.binary_search_by_key(&clock, |(clock, _)| *clock)
    }
}

impl FromIterator<(Clock, Mark)> for Marks {
    fn from_iter<I: IntoIterator<Item = (Clock, Mark)>>(marks: I) -> Self {
        let mut all = Self::default();
        marks
            .into_iter()
            .for_each(|(clock, mark)| all.set(clock, mark));
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_is_read_as_it_is_written() {
        for number in [0, 7, 1_790_000_000_123_456, 9_999_999_999_999_999] {
            let text = Number(number).to_string();
            assert_eq!(Number::read(text.as_bytes()), Some(Number(number)));
        }
        for wrong in [
            "",
            "1",
            "000000000000000x",
            "00000000000000001",
            "+000000000000001",
        ] {
            assert_eq!(Number::read(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn a_run_is_the_beginning_of_an_id() {
        let run = Run::of("0123456789abcdef0123456789abcdef01234567").unwrap();
        assert_eq!(run.as_str(), "0123456789ab");
        assert_eq!(
            (Run::of("0123456789a"), Run::of("0123456789a\r\n")),
            (None, None)
        );
    }

    proptest! {
        #[test]
        fn of_each_clock_there_is_the_last_mark(set in proptest::collection::vec((0u16..5, any::<u64>()), 0..20)) {
            let run = Run::of("abcdefabcdef").unwrap();
            let mark = |number| Mark { run, number: Number(number) };
            let marks: Marks = set.iter().map(|(clock, n)| (Clock(*clock), mark(*n))).collect();
            for clock in 0..5 {
                let last = set.iter().rev().find(|(one, _)| *one == clock);
                prop_assert_eq!(marks.of(Clock(clock)), last.map(|(_, n)| mark(*n)));
            }
            prop_assert!(marks.iter().map(|(clock, _)| clock).is_sorted());
        }
    }
}
