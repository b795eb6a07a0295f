//! Where something was kept, if it was lost there and is kept again: it stands before the envelope, so that whoever has it from
//! there knows it again. What was lost more than once has several such marks, the oldest first.
//!
//! ```text
//! run      12 letters    \  as often as it was lost, at most four times
//! number   16 digits     /
//! ```
//! No envelope begins with a letter or a digit.

use smallvec::SmallVec;

use super::Garbage;
use crate::model::history::mark::{Mark, Number, Run};

/// Under which marks.
pub(crate) type Formerly = SmallVec<[Mark; 1]>;

/// Most marks that are told.
pub(crate) const MOST_FORMER: usize = 4;
/// How long one is.
#[cfg(any(test, feature = "redis"))]
pub(crate) const FORMER: usize = Run::LETTERS + Number::DIGITS;

/// Where it was kept, and the envelope.
pub(crate) fn formerly(bytes: &[u8]) -> Result<(Formerly, &[u8]), Garbage> {
    let (mut marks, mut rest) = (Formerly::new(), bytes);
    while rest.first().is_some_and(u8::is_ascii_alphanumeric) {
        if marks.len() == MOST_FORMER {
            return Err(Garbage);
        }
        let (run, numbered) = rest.split_at_checked(Run::LETTERS).ok_or(Garbage)?;
        let (number, envelope) = numbered.split_at_checked(Number::DIGITS).ok_or(Garbage)?;
        let run = std::str::from_utf8(run).ok().and_then(Run::of);
        let (Some(run), Some(number)) = (run, Number::read(number)) else {
            return Err(Garbage);
        };
        marks.push(Mark { run, number });
        rest = envelope;
    }
    Ok((marks, rest))
}

/// Writes the former marks as they stand there.
#[cfg(any(test, feature = "redis"))]
pub(crate) fn write_formerly(marks: &[Mark]) -> String {
    let mut written = String::with_capacity(marks.len() * FORMER);
    for mark in marks {
        written.push_str(mark.run.as_str());
        written.push_str(&mark.number.to_string());
    }
    written
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn where_it_was_is_read_as_it_is_written(
            marks in proptest::collection::vec(("[0-9a-f]{12}", 0u64..9_999_999_999_999_999), 0..=MOST_FORMER),
            envelope in "[\u{0}\u{1}{].{0,20}",
        ) {
            let mark = |(run, number): &(String, u64)| Mark {
                run: Run::of(run).unwrap(),
                number: Number(*number),
            };
            let marks: Formerly = marks.iter().map(mark).collect();
            let written = [write_formerly(&marks).as_bytes(), envelope.as_bytes()].concat();
            prop_assert_eq!(formerly(&written), Ok((marks, envelope.as_bytes())));
        }

        #[test]
        fn whatever_else_stands_there_is_no_panic(bytes: Vec<u8>, text in "[0-9a-f]{0,200}") {
            let _ = formerly(&bytes);
            let _ = formerly(text.as_bytes());
        }
    }

    /// Byte for byte, as all that nodes say to one another.
    #[test]
    fn the_bytes_of_this_version_stay() {
        let mark = Mark {
            run: Run::of("0123456789ab").unwrap(),
            number: Number(7),
        };
        assert_eq!(write_formerly(&[mark]), "0123456789ab0000000000000007");
        let five = write_formerly(&[mark; MOST_FORMER + 1]);
        for garbage in [
            "x",
            "0123456789ab000000000000000",
            "0123456789abx000000000000007",
            &five,
        ] {
            assert_eq!(formerly(garbage.as_bytes()), Err(Garbage), "{garbage}");
        }
    }
}
