//! How the node stands.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Serialize, Serializer};

use super::millis;

/// How the node stands towards the bus.
///
/// Local delivery works in every state but [`Down`](Health::Down).
///
/// As JSON: `{"state": "up"}`, `{"state": "degraded", "since": 0, "reason": ".."}` (milliseconds since 1970),
/// `{"state": "draining"}` or `{"state": "down"}`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Health {
    /// The probe came back, and every socket that is admitted is heard: messages travel both ways. A
    /// newcomer waits until its subscriptions are confirmed.
    Up,
    /// The bus is not usable, or Redis refuses some channels: then `reason` says whose, what others send there is
    /// missed, and everything else works as when up. The node serves its own sockets and returns by itself.
    Degraded {
        /// Since when.
        #[serde(serialize_with = "millis::serialize")]
        since: SystemTime,
        /// Why, in Redis' own words where it has spoken, with the fix where one is known.
        #[serde(serialize_with = "as_text")]
        reason: Arc<str>,
    },
    /// [`Cluster::shutdown`](crate::Cluster::shutdown) has begun: no new sockets.
    Draining,
    /// Shut down: sends fail, nothing is left on the bus.
    Down,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up => f.write_str("up"),
            Self::Degraded { reason, .. } => write!(f, "degraded: {reason}"),
            Self::Draining => f.write_str("draining"),
            Self::Down => f.write_str("down"),
        }
    }
}

fn as_text<S: Serializer>(text: &Arc<str>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_shown_as_json() {
        let degraded = Health::Degraded {
            since: SystemTime::UNIX_EPOCH,
            reason: "gone".into(),
        };
        for (health, json) in [
            (Health::Up, r#"{"state":"up"}"#),
            (
                degraded,
                r#"{"state":"degraded","since":0,"reason":"gone"}"#,
            ),
            (Health::Draining, r#"{"state":"draining"}"#),
        ] {
            assert_eq!(serde_json::to_string(&health).unwrap(), json);
        }
    }
}
