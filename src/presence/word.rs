//! What nodes say to one another of who is online.
//!
//! Each of the two has a kind of envelope of its own. A request is a few bytes, of which the last counts, and is parsed
//! where it is heard; a report may name 5,000 users, and has to be known for one without being parsed there.

use serde::{Deserialize, Serialize};

use crate::model::id::UserId;

/// What one node says to another, or to all that hear a topic's channel.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Word {
    Request(WatchRequest),
    Report(Report),
}

impl Word {
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let json = match self {
            Self::Request(request) => serde_json::to_vec(request),
            Self::Report(report) => serde_json::to_vec(report),
        };
        json.expect("words are plain data")
    }
}

/// Whether a node wants to be told of a topic's users.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WatchRequest {
    /// The node wants to be told: first of everybody, then of every change.
    Watch { topic: String },
    /// The node wants to be told no longer.
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
