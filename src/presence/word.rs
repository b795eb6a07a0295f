//! What nodes say to one another of who is online.

use serde::{Deserialize, Serialize};

use crate::id::UserId;

/// Whether a node wants to be told of a topic's users.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WatchRequest {
    /// It does: first of everybody, then of every change.
    Watch { topic: String },
    /// It does no longer.
    Unwatch { topic: String },
}

impl WatchRequest {
    pub(crate) fn topic(&self) -> &str {
        match self {
            Self::Watch { topic } | Self::Unwatch { topic } => topic,
        }
    }
}

/// What nodes tell one another of a topic's users.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// Everybody of the sender, in parts.
    Everybody {
        topic: String,
        users: Vec<UserId>,
        first: bool,
        last: bool,
    },
    /// Who came to the sender, and who went.
    Changes {
        topic: String,
        online: Vec<UserId>,
        offline: Vec<UserId>,
    },
}

impl Report {
    pub(crate) fn topic(&self) -> &str {
        match self {
            Self::Everybody { topic, .. } | Self::Changes { topic, .. } => topic,
        }
    }
}
