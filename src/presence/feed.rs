//! What is known of a topic, and who reads it here: readers are told at once.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::directory::{Change, Directory};
use super::reader::Reader;
use super::told::Told;
use super::word::Report;
use crate::model::id::NodeId;

#[derive(Debug)]
pub(super) struct Feed {
    directory: Directory,
    readers: Vec<Weak<Reader>>,
    /// The others are asked as what users are described. They are until nobody reads any more.
    described: bool,
}

impl Feed {
    /// What this node told is known, and no change.
    pub(super) fn new(me: NodeId, grace: Duration, told: &Told, now: Instant) -> Self {
        let mut directory = Directory::new(grace);
        for report in told.everybody(true) {
            directory.heard(me, report, now);
        }
        directory.take_changes();
        Self {
            directory,
            readers: Vec::new(),
            described: false,
        }
    }

    /// Begins with everybody who is online.
    pub(super) fn add(&mut self, reader: Weak<Reader>) {
        if let Some(reader) = reader.upgrade() {
            for user in self.directory.online() {
                reader.push(&Change::Online(user.clone()));
            }
        }
        self.readers.push(reader);
    }

    pub(super) fn heard(&mut self, from: NodeId, report: Report, now: Instant) {
        self.directory.heard(from, report, now);
        self.inform();
    }

    /// A node has left or died: the grace period of its users begins.
    pub(super) fn forget(&mut self, node: NodeId, now: Instant) {
        self.directory.forget(node, now);
    }

    /// Something that was told may have been missed.
    pub(super) fn interrupted(&mut self) {
        self.directory.interrupted();
    }

    /// Ends the grace periods that are over. Whether anybody still reads.
    pub(super) fn advance(&mut self, now: Instant) -> bool {
        self.directory.advance(now);
        self.inform();
        self.readers.retain(|reader| reader.strong_count() > 0);
        !self.readers.is_empty()
    }

    /// Tells readers that ask for descriptions from now on what is known of those. Whether the others are to be asked as
    /// well, which they are once.
    pub(super) fn describe(&mut self) -> bool {
        let asking: Vec<Arc<Reader>> = self.read_by().filter(|it| it.begins_described()).collect();
        for reader in &asking {
            for (user, descriptions) in self.directory.described() {
                reader.push(&Change::Described(user.clone(), descriptions.clone()));
            }
        }
        !asking.is_empty() && !std::mem::replace(&mut self.described, true)
    }

    /// Whether the others are asked as what users are described.
    pub(super) fn is_described(&self) -> bool {
        self.described
    }

    /// When the next grace period ends.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.directory.next_end()
    }

    /// Nothing more will come.
    pub(super) fn end(&self) {
        self.read_by().for_each(|reader| reader.end());
    }

    fn read_by(&self) -> impl Iterator<Item = Arc<Reader>> {
        self.readers.iter().filter_map(Weak::upgrade)
    }

    fn inform(&mut self) {
        let changes = self.directory.take_changes();
        for reader in self.read_by() {
            changes.iter().for_each(|change| reader.push(change));
        }
    }
}
