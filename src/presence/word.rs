//! What nodes say to one another of who is online.
//!
//! Each of the two has a kind of envelope of its own. A request is a few bytes, of which the last counts, and is parsed
//! where it is heard; a report may name 5,000 users, and has to be known for one without being parsed there.

use serde::{Deserialize, Serialize};

use crate::model::description::Descriptions;
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
    Watch {
        topic: String,
        /// As what they are described as well. Nodes before this word tell nothing of that.
        #[serde(default, skip_serializing_if = "is_false")]
        described: bool,
    },
    /// The node wants to be told no longer.
    Unwatch { topic: String },
}

impl WatchRequest {
    pub(crate) fn topic(&self) -> &str {
        match self {
            Self::Watch { topic, .. } | Self::Unwatch { topic } => topic,
        }
    }
}

fn is_false(described: &bool) -> bool {
    !described
}

/// What nodes tell one another of a topic's users.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// Everybody of the sender, in parts.
    Everybody {
        topic: String,
        users: Vec<UserId>,
        /// Those of them who are described. Without it nothing is said of that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        described: Option<Vec<(UserId, Descriptions)>>,
        first: bool,
        last: bool,
    },
    /// Who came to the sender, and who went.
    Changes {
        topic: String,
        online: Vec<UserId>,
        offline: Vec<UserId>,
        /// Who is there and is described otherwise than before, or newly.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        described: Vec<(UserId, Descriptions)>,
    },
}

impl Report {
    pub(crate) fn topic(&self) -> &str {
        match self {
            Self::Everybody { topic, .. } | Self::Changes { topic, .. } => topic,
        }
    }

    /// Of changes, for those who only want to know who comes and goes, if anybody does.
    pub(super) fn undescribed(mut self) -> Option<Self> {
        if let Self::Changes {
            online,
            offline,
            described,
            ..
        } = &mut self
        {
            described.clear();
            if online.is_empty() && offline.is_empty() {
                return None;
            }
        }
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Byte for byte as before, where nobody asks for descriptions: nodes of several versions speak it to one another.
    #[test]
    fn the_words_of_this_version_stay() {
        let topic = || "all".to_owned();
        let described = vec![("x".into(), vec![r#"{"a":1}"#.to_owned()].into())];
        let everybody = |described| Report::Everybody {
            topic: topic(),
            users: vec!["x".into()],
            described,
            first: true,
            last: true,
        };
        let changes = |described| Report::Changes {
            topic: topic(),
            online: vec!["x".into()],
            offline: Vec::new(),
            described,
        };
        let watch = |described| {
            Word::Request(WatchRequest::Watch {
                topic: topic(),
                described,
            })
        };
        for (word, json) in [
            (watch(false), r#"{"watch":{"topic":"all"}}"#),
            (watch(true), r#"{"watch":{"topic":"all","described":true}}"#),
            (
                Word::Report(everybody(None)),
                r#"{"everybody":{"topic":"all","users":["x"],"first":true,"last":true}}"#,
            ),
            (
                Word::Report(everybody(Some(described.clone()))),
                r#"{"everybody":{"topic":"all","users":["x"],"described":[["x",["{\"a\":1}"]]],"first":true,"last":true}}"#,
            ),
            (
                Word::Report(changes(Vec::new())),
                r#"{"changes":{"topic":"all","online":["x"],"offline":[]}}"#,
            ),
            (
                Word::Report(changes(described)),
                r#"{"changes":{"topic":"all","online":["x"],"offline":[],"described":[["x",["{\"a\":1}"]]]}}"#,
            ),
        ] {
            assert_eq!(word.to_json(), json.as_bytes());
            let read = match word {
                Word::Request(_) => serde_json::from_str(json).map(Word::Request),
                Word::Report(_) => serde_json::from_str(json).map(Word::Report),
            };
            assert_eq!(read.unwrap(), word);
        }
    }
}
