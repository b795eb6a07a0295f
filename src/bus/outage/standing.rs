//! How one link stands.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use super::Span;
use crate::model::partition::PartitionSet;
use crate::model::topic::TopicKind;

#[derive(Debug)]
pub(super) struct LinkHealth {
    /// What it carries.
    pub(super) partitions: PartitionSet,
    /// When it was last known to work.
    pub(super) proven: Option<Instant>,
    pub(super) standing: Standing,
    /// Messages may have been missed in its present outage, since then.
    pub(super) gap: Option<Instant>,
    /// The link is down only since something on it is refused: since when and until when the rest was heard.
    pub(super) works: Option<Span>,
    /// Of these kinds something was refused since it was up, the last time for this reason.
    pub(super) refused: Vec<(TopicKind, Arc<str>)>,
}

/// Drawn in [`outage`](super).
#[derive(Debug)]
pub(super) enum Standing {
    /// The link works, and has without a break since what was published then.
    Up(Instant),
    Down {
        since: SystemTime,
        reason: Arc<str>,
    },
}

impl LinkHealth {
    pub(super) fn new(partitions: PartitionSet, now: SystemTime) -> Self {
        Self {
            partitions,
            proven: None,
            standing: Standing::Down {
                since: now,
                reason: "connecting to the bus".into(),
            },
            gap: None,
            works: None,
            refused: Vec::new(),
        }
    }

    /// A topic of this kind is refused; since when and until when the rest was heard, if it was.
    pub(super) fn refuse(&mut self, kind: TopicKind, reason: Arc<str>) -> Option<Span> {
        match self.refused.iter_mut().find(|(it, _)| *it == kind) {
            Some((_, before)) => *before = reason,
            None => self.refused.push((kind, reason)),
        }
        match kind {
            // Whom it does not hear of is not there for it.
            TopicKind::Nodes => None,
            TopicKind::All
            | TopicKind::User
            | TopicKind::Room
            | TopicKind::Socket
            | TopicKind::Node
            | TopicKind::Presence => match self.standing {
                Standing::Up(since) => Some((since, self.proven?)),
                Standing::Down { .. } => self.works,
            },
        }
    }

    /// What is refused, and why: each reason once.
    pub(super) fn refusal(&self) -> Arc<str> {
        let mut reasons: Vec<(&str, String)> = Vec::new();
        for (kind, reason) in &self.refused {
            match reasons.iter_mut().find(|(it, _)| *it == &**reason) {
                Some((_, kinds)) => *kinds += &format!(", {}", kind.whose()),
                None => reasons.push((reason, kind.whose().to_owned())),
            }
        }
        let refusal = |(reason, kinds)| format!("the channels of {kinds} are refused: {reason}");
        let refusals: Vec<String> = reasons.into_iter().map(refusal).collect();
        refusals.join("; ").into()
    }
}
