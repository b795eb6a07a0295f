//! A message that has begun to come.

use bytes::Bytes;

use super::heard::{Heard, Violation};
use crate::model::message::Message;
use crate::model::utf8::Utf8Bytes;
use crate::ws::deflate::Inflater;

/// A message of which some frames are there.
#[derive(Debug, Default)]
pub(super) struct Partial {
    pub(super) text: bool,
    pub(super) data: Vec<u8>,
    /// How much of `data` is known to be whole characters.
    pub(super) valid: usize,
    pub(super) inflater: Option<Inflater>,
}

impl Partial {
    /// Allocates for what has come, never for what a header promises.
    pub(super) fn extend(&mut self, chunk: &[u8], last: bool) -> Result<(), Violation> {
        self.data.extend_from_slice(chunk);
        self.check_text(last)
    }

    /// Returns how much work it was, in bytes.
    pub(super) fn inflate(
        &mut self,
        chunk: &[u8],
        last: bool,
        limit: usize,
    ) -> Result<usize, Violation> {
        let Some(inflater) = &mut self.inflater else {
            return Ok(0);
        };
        let work = inflater.inflate(chunk, &mut self.data, limit)?;
        if last {
            inflater.finish(&mut self.data, limit)?;
        }
        self.check_text(last)?;
        Ok(work)
    }

    fn check_text(&mut self, last: bool) -> Result<(), Violation> {
        if !self.text {
            return Ok(());
        }
        match std::str::from_utf8(&self.data[self.valid..]) {
            Ok(_) => self.valid = self.data.len(),
            // A character may still be incomplete, unless this is the end.
            Err(error) if error.error_len().is_none() && !last => self.valid += error.valid_up_to(),
            Err(_) => return Err(Violation::NotUtf8),
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Heard, Violation> {
        self.data.shrink_to_fit();
        let bytes = Bytes::from(self.data);
        Ok(Heard::Message(match self.text {
            true => Message::Text(Utf8Bytes::try_from(bytes).map_err(|_| Violation::NotUtf8)?),
            false => Message::Binary(bytes),
        }))
    }
}
