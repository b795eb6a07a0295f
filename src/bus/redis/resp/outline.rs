//! Where a reply ends that has come only in part.

use super::cursor::number;
use super::{Bounds, MAX_LINE, MAX_REPLY};

/// Where the values of a reply end, found out as they come and whatever they mean.
#[derive(Debug)]
pub(super) struct Outline {
    /// Where the next value begins, or the reply ends.
    pub(super) at: usize,
    /// Up to where that value's first line has no end.
    pub(super) searched: usize,
    /// Values that are still to come.
    values: usize,
}

impl Default for Outline {
    fn default() -> Self {
        Self {
            at: 0,
            searched: 0,
            values: 1,
        }
    }
}

impl Outline {
    /// Whether nothing has to come any more for [`parse`] to tell what it is, be it nonsense.
    pub(super) fn is_complete(&mut self, input: &[u8], limit: usize, bounds: Bounds) -> bool {
        while self.values > 0 && input.len() > self.at {
            let from = self.searched.max(self.at);
            let Some(length) = input[from..].iter().position(|byte| *byte == b'\n') else {
                self.searched = input.len();
                return input.len() - self.at >= MAX_LINE;
            };
            let (line, next) = (&input[self.at..from + length], from + length + 1);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if next > bounds.bytes || line.len() >= MAX_LINE {
                return true;
            }
            self.at = next;
            self.values -= 1;
            let number = || number(&line[1..]).ok();
            match line.first() {
                Some(b'$') if bounds.arrays && line == b"$-1" => {}
                Some(b'$') => match number() {
                    Some(length) if length <= limit.max(MAX_REPLY) => self.at += length + 2,
                    _ => return true,
                },
                Some(b'*' | b'>') => match number() {
                    Some(values) if values <= bounds.elements => self.values += values,
                    _ => return true,
                },
                _ => {}
            }
        }
        self.values == 0 && input.len() >= self.at
    }
}
