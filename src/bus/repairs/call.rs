//! What is asked at once.

use std::sync::Arc;

use crate::bus::Archive;
use crate::bus::outage::LinkId;
use crate::bus::past::{Past, ReadLimits};
use crate::bus::repair::Read;
use crate::model::history::mark::{Clock, Marks};
use crate::model::topic::Topic;

/// Reads of several clocks, of each one.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) link: LinkId,
    /// Only how far the clocks have come.
    pub(super) is_tick: bool,
    pub(super) parts: Vec<CallPart>,
}

#[derive(Debug)]
pub(super) struct CallPart {
    pub(super) clock: Clock,
    pub(super) turn: u64,
    /// The place of the read.
    pub(super) at: usize,
    pub(super) read: Read,
    /// Where the clocks are asked how far they have come: the last topic that is heard by then.
    pub(super) youngest: u64,
    /// Is asked for where no topic is, for the sake of the cut.
    pub(super) nobody: Topic,
}

impl Call {
    /// Asks once.
    pub(super) async fn ask(&self, archive: &dyn Archive) -> Result<Past, Arc<str>> {
        let mut topics = Vec::new();
        for part in &self.parts {
            match part.read.topics.is_empty() {
                true => topics.push(part.nobody.clone()),
                false => topics.extend_from_slice(&part.read.topics),
            }
        }
        let since = self
            .parts
            .iter()
            .map(|part| Some((part.clock, part.read.since?)));
        let since: Option<Marks> = since.collect();
        // In one answer: nothing is left out for want of room.
        let limits = ReadLimits {
            entries: since.as_ref().map_or(1, |_| 1 << 30),
            bytes: 1 << 40,
        };
        let past = archive.read(&topics, since.as_ref(), limits).await?;
        match past.topics.len() == topics.len() {
            true => Ok(past),
            false => Err("not all topics were answered".into()),
        }
    }
}
