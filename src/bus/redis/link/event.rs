//! What a link tells.

use std::sync::Arc;

use tokio::time::Instant;

use crate::model::partition::Partition;
use crate::model::topic::Topic;

/// What is to be told.
#[derive(Debug, PartialEq)]
pub(in crate::bus::redis) enum Event<'a> {
    /// Redis is no replica, or does not tell its role; then in these words.
    Greeted {
        untold: Option<Arc<str>>,
    },
    Heard {
        topic: &'a str,
        payload: &'a [u8],
    },
    /// A topic is heard from now on that was not before, on whatever connection.
    Confirmed {
        topic: &'a str,
    },
    /// What is kept came from a primary that has lost its place.
    Superseded,
    /// This cannot be a message.
    Garbage,
    /// Everything that is wanted is heard, and was when the probe was published that came back.
    Up {
        proven: Instant,
    },
    /// The link works, but Redis refuses a topic: the bus is not up. `proven` unless that topic is the nodes'.
    Works {
        proven: Option<Instant>,
    },
    /// The bus is not usable. `deaf`: messages may be missed.
    Down {
        reason: Arc<str>,
        deaf: bool,
    },
    /// Redis refuses this topic: messages to it are missed, all others go on.
    Refused {
        topic: Topic,
        reason: Arc<str>,
    },
    /// A partition is at another primary of the cluster: its place is to be found out. This one is not heard any more, if it
    /// was.
    Stranded {
        partition: Option<Partition>,
    },
    /// Redis ended this subscription by itself. That the bus is down is told next.
    Moved {
        topic: &'a str,
    },
}

/// Why a connection is of no use, or no longer.
#[derive(Debug, PartialEq)]
pub(in crate::bus::redis) struct Lost {
    pub(in crate::bus::redis) reason: Arc<str>,
    /// What was published may have reached only a part of the cluster.
    pub(in crate::bus::redis) strayed: bool,
}

impl<T: Into<Arc<str>>> From<T> for Lost {
    fn from(reason: T) -> Self {
        Self {
            reason: reason.into(),
            strayed: false,
        }
    }
}
