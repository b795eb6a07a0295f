//! What nodes say to one another beside messages. JSON, so that later versions can add words: what a
//! node does not know, it ignores.

use serde::{Deserialize, Serialize};

use crate::model::close::Close;
use crate::model::roster::{NodeInfo, SocketInfo};
use crate::model::vitals::Vitals;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Control {
    /// Wants an answer that names this id, on the asker's own channel.
    Ask { id: u64, what: Ask },
    /// Wants to know at once when this question never came.
    Ping { id: u64 },
    /// The question never came, and everything was heard for so many microseconds: none while something may be missed. On
    /// the asker's own channel.
    Unasked {
        id: u64,
        /// Nodes before this word were believed.
        #[serde(default = "always")]
        heard: u64,
    },
    /// The question came, and is not answered: too many others are. On the asker's own channel.
    Refused { id: u64 },
    /// A node is there.
    Hello(Hello),
    /// A node stood on the wrong server: what it said in the last so many milliseconds may not have arrived.
    Strayed { millis: u64 },
    /// Somebody looks at a dashboard: wants the vitals, on the asker's own channel. The asker's time comes back with them,
    /// so that it need not keep when it asked.
    Examine { at: u64 },
    /// How a node does.
    Vitals { at: u64, vitals: Box<Vitals> },
    /// A node leaves.
    Bye,
}

/// Said again and again.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) node: NodeInfo,
    /// For so many milliseconds it is there, unless it says so once more.
    pub(crate) lease: u64,
    /// Whoever hears it is to say it too, and whom it wants to be told of.
    pub(crate) reply: bool,
    /// The node holds no sockets and never will. Nodes before this word took a worker for a node.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) worker: bool,
    /// Redis refuses it channels of these kinds, so that not every question comes to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) refused: Vec<String>,
    /// By which names it knows the Redises that share its topics, sorted; none, where there is one, or where these share by
    /// themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) shards: Vec<String>,
    /// What it keeps of what is sent to whom; none, where it keeps nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) histories: Vec<String>,
}

fn always() -> u64 {
    u64::MAX
}

fn is_false(worker: &bool) -> bool {
    !worker
}

/// What is asked of the sockets in the envelope's scope.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ask {
    /// Who they are.
    Sockets,
    /// How many they are.
    Count,
    /// How the node describes itself.
    Node,
    /// To end.
    Close { code: u16, reason: String },
    /// To join a room.
    Join { room: String },
    /// To leave a room.
    Leave { room: String },
}

impl Ask {
    /// Whether it may come before what was sent earlier: it changes nothing.
    pub(crate) fn may_overtake(&self) -> bool {
        match self {
            Self::Sockets | Self::Count | Self::Node => true,
            Self::Close { .. } | Self::Join { .. } | Self::Leave { .. } => false,
        }
    }
}

impl From<&Close> for Ask {
    fn from(close: &Close) -> Self {
        Self::Close {
            code: close.code.0,
            reason: close.wire_reason().to_owned(),
        }
    }
}

/// One part of one node's answer; what was not asked for is left out.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// How many sockets it concerned.
    #[serde(default)]
    pub(crate) count: usize,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sockets: Vec<SocketInfo>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<NodeInfo>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_another_version_are_no_error_where_they_are_additions() {
        let later = r#"{"ask":{"id":1,"what":"count","since":7}}"#;
        assert!(matches!(
            serde_json::from_str(later).unwrap(),
            Control::Ask {
                id: 1,
                what: Ask::Count
            }
        ));
        let answer: Answer = serde_json::from_str(r#"{"count":2,"mood":"good"}"#).unwrap();
        assert_eq!((answer.count, answer.sockets.len()), (2, 0));
        assert!(serde_json::from_str::<Control>(r#"{"dance":{}}"#).is_err());
        let earlier = r#"{"unasked":{"id":4}}"#;
        assert!(matches!(
            serde_json::from_str(earlier).unwrap(),
            Control::Unasked {
                id: 4,
                heard: u64::MAX
            }
        ));
    }

    #[test]
    fn the_words_of_this_version_stay() {
        for (control, json) in [
            (
                Control::Ask {
                    id: 1,
                    what: Ask::Sockets,
                },
                r#"{"ask":{"id":1,"what":"sockets"}}"#,
            ),
            (
                Control::Ask {
                    id: 2,
                    what: Ask::Join { room: "x".into() },
                },
                r#"{"ask":{"id":2,"what":{"join":{"room":"x"}}}}"#,
            ),
            (Control::Ping { id: 3 }, r#"{"ping":{"id":3}}"#),
            (
                Control::Unasked { id: 4, heard: 5 },
                r#"{"unasked":{"id":4,"heard":5}}"#,
            ),
            (Control::Examine { at: 6 }, r#"{"examine":{"at":6}}"#),
            (Control::Bye, r#""bye""#),
        ] {
            assert_eq!(serde_json::to_string(&control).unwrap(), json);
        }
    }

    #[test]
    fn a_hello_says_of_workers_alone_that_they_are() {
        let node = r#"{"id":"0000000000000001","name":"a","started_at":0,"sockets":0,"users":0,"version":"1"}"#;
        for (worker, word) in [(false, ""), (true, r#","worker":true"#)] {
            let json = format!(r#"{{"hello":{{"node":{node},"lease":1,"reply":false{word}}}}}"#);
            let hello: Control = serde_json::from_str(&json).unwrap();
            assert!(matches!(&hello, Control::Hello(hello) if hello.worker == worker));
            assert_eq!(serde_json::to_string(&hello).unwrap(), json);
        }
    }
}
