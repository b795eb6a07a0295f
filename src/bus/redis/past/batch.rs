//! Messages that are kept and follow one another are one command: so many that a busy node pays little for each, and so few that
//! Redis serves others within milliseconds. A union is never cut: its numbers would differ.

use std::sync::Arc;

use tokio::time::Instant;

use super::super::command::Appended;
use super::super::pipeline::{Pipeline, Unusable};
use super::super::publication::Publication;
use super::refresh::Refreshes;
use crate::bus::wire::write_formerly;
use crate::model::history::mark::Number;

/// Most messages of one command, …
const MOST: usize = 256;
/// … and most bytes.
const MOST_BYTES: usize = 256 * 1024;
/// Most that are looked for in one command.
const MOST_AGAIN: usize = 64;

#[derive(Debug, Default)]
pub(in crate::bus::redis) struct AppendBatch<'a> {
    clock: Option<&'a Arc<str>>,
    messages: Vec<Appended<'a>>,
    bytes: usize,
    /// Of this one topic alone, if its keys are on their way.
    alone: Option<&'a str>,
}

impl<'a> AppendBatch<'a> {
    /// Adds the next messages of a publication, as many as there is room for beside what is there. Whether it is complete.
    pub(in crate::bus::redis) fn add(
        &mut self,
        publication: &'a Publication,
        from: &mut usize,
        refreshes: &mut Refreshes,
        now: Instant,
    ) -> bool {
        let Some(keeping) = &publication.keep else {
            return true;
        };
        let part = publication.part();
        let is_first = self.messages.is_empty();
        let alone = publication.goes_alone.then(|| publication.topic());
        if !is_first && (self.clock != Some(&keeping.clock) || self.alone != alone) {
            return false;
        }
        self.alone = alone;
        if keeping.is_union && !is_first && !self.has_room(part.len(), publication.envelope.len()) {
            return false;
        }
        self.clock = Some(&keeping.clock);
        let lists = publication.kept_part();
        let mut is_same = false;
        for (channel, list) in part.iter().zip(lists).skip(*from) {
            let bytes = if is_same {
                0
            } else {
                publication.envelope.len()
            };
            let must = keeping.is_union || self.messages.is_empty();
            if !must && !self.has_room(1, bytes) {
                return false;
            }
            let refresh = list
                .as_ref()
                .is_some_and(|list| refreshes.is_due(&list.key, list.lifetime, now));
            self.messages.push(Appended {
                list: list
                    .as_ref()
                    .map(|list| (&*list.key, list.messages, list.lifetime)),
                refresh,
                same_number: keeping.is_union && *from > 0,
                channel,
                envelope: match is_same {
                    true => &[],
                    false => &publication.envelope,
                },
            });
            self.bytes += bytes;
            is_same = true;
            *from += 1;
        }
        true
    }

    /// Adds it to a pipeline, and begins anew.
    pub(in crate::bus::redis) async fn append(
        &mut self,
        open: &mut Pipeline,
    ) -> Result<(), Unusable> {
        let batch = std::mem::take(self);
        match batch.clock {
            Some(clock) => open.append(clock, &batch.messages).await,
            None => Ok(()),
        }
    }

    fn has_room(&self, messages: usize, bytes: usize) -> bool {
        self.messages.len() + messages <= MOST && self.bytes + bytes <= MOST_BYTES
    }
}

/// Messages that may be there already.
#[derive(Debug, Default)]
pub(in crate::bus::redis) struct Again<'a> {
    clock: Option<&'a Arc<str>>,
    /// The earliest.
    since: Option<Number>,
    messages: Vec<(Appended<'a>, String)>,
    bytes: usize,
}

impl<'a> Again<'a> {
    /// As [`AppendBatch::add`].
    pub(in crate::bus::redis) fn add(
        &mut self,
        publication: &'a Publication,
        from: &mut usize,
    ) -> bool {
        let Some(keeping) = &publication.keep else {
            return true;
        };
        let (part, size) = (publication.part(), publication.envelope.len());
        let is_first = self.messages.is_empty();
        if !is_first && self.clock != Some(&keeping.clock)
            || keeping.is_union && !is_first && !self.has_room(part.len(), size)
        {
            return false;
        }
        let doubt = publication.doubt();
        let formerly = doubt.map_or_else(String::new, |doubt| write_formerly(&doubt.formerly));
        let since = doubt.and_then(|doubt| doubt.since);
        let since = since.map(|since| since.number);
        self.clock = Some(&keeping.clock);
        self.since = match self.since {
            Some(earliest) => Some(earliest.min(since.unwrap_or_default())),
            None => since,
        };
        let lists = publication.kept_part();
        for (channel, list) in part.iter().zip(lists).skip(*from) {
            let same_number = keeping.is_union && *from > 0;
            if !keeping.is_union && !self.messages.is_empty() && !self.has_room(1, size) {
                return false;
            }
            let message = Appended {
                list: list
                    .as_ref()
                    .map(|list| (&*list.key, list.messages, list.lifetime)),
                refresh: true,
                same_number,
                channel,
                envelope: match same_number {
                    true => &[],
                    false => &publication.envelope,
                },
            };
            self.bytes += message.envelope.len();
            self.messages.push((message, formerly.clone()));
            *from += 1;
        }
        true
    }

    /// As [`AppendBatch::append`].
    pub(in crate::bus::redis) async fn append(
        &mut self,
        open: &mut Pipeline,
    ) -> Result<(), Unusable> {
        let again = std::mem::take(self);
        match again.clock {
            Some(clock) => {
                let since = again.since.unwrap_or_default();
                open.append_again(clock, since, &again.messages).await
            }
            None => Ok(()),
        }
    }

    fn has_room(&self, messages: usize, bytes: usize) -> bool {
        self.messages.len() + messages <= MOST_AGAIN && self.bytes + bytes <= MOST_BYTES
    }
}
