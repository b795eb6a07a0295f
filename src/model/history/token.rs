//! What a position says, and how it is written.

use std::fmt::Write as _;

use super::Missed;
use super::mark::{Clock, Mark, Marks, Number, Run};
use super::position::Position;

/// What a position says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    /// Up to where everything of each clock is there.
    pub(crate) marks: Marks,
}

/// Writes a position.
pub(crate) fn write(parts: &Parts) -> Position {
    let mut text = String::from("p");
    for (Clock(clock), Mark { run, number }) in parts.marks.iter() {
        // Writing into a string never fails.
        let _ = write!(text, ".{clock}-{}-{number}", run.as_str());
    }
    text.parse()
        .unwrap_or_else(|_| EMPTY.parse().expect("one letter is a position"))
}

/// Reads one.
pub(crate) fn read(position: &Position) -> Result<Parts, Missed> {
    let mut parts = position.as_str().split('.');
    if parts.next() != Some(EMPTY) {
        return Err(Missed::Foreign);
    }
    let marks = parts.map(|part| mark(part).ok_or(Missed::Foreign));
    let marks = marks.collect::<Result<Marks, _>>()?;
    Ok(Parts { marks })
}

fn mark(part: &str) -> Option<(Clock, Mark)> {
    let (clock, rest) = part.split_once('-')?;
    let (run, number) = rest.split_once('-')?;
    let run = Run::of(run).filter(|_| run.len() == Run::LETTERS)?;
    let number = Number::read(number.as_bytes())?;
    Some((Clock(clock.parse().ok()?), Mark { run, number }))
}

/// That of nothing.
const EMPTY: &str = "p";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_is_written() {
        let run = Run::of("0123456789ab").unwrap();
        let mark = |number| Mark {
            run,
            number: Number(number),
        };
        let marks = [(Clock(3), mark(1)), (Clock(255), mark(u64::from(u32::MAX)))];
        let marks: Marks = marks.into_iter().collect();
        for marks in [Marks::default(), marks] {
            let parts = Parts { marks };
            assert_eq!(read(&write(&parts)), Ok(parts));
        }
        for forged in [
            "x",
            "p.",
            "p.1-0123456789ab-1",
            "p.99999-0123456789ab-0000000000000001",
        ] {
            let forged: Position = forged.parse().unwrap();
            assert_eq!(read(&forged), Err(Missed::Foreign));
        }
    }
}
