//! What goes into the rules of presence, and what comes out.

use std::collections::HashSet;
use std::sync::Weak;

use super::reader::Reader;
use super::word::{Report, WatchRequest, Word};
use crate::model::id::{NodeId, UserId};
use crate::model::topic::Topic;

/// What happened.
#[derive(Debug)]
pub(super) enum Input {
    /// Somebody here reads who comes to a topic and goes from it.
    Reader(Topic, Weak<Reader>),
    /// A node is new, or may have missed what we want to be told.
    Joined(NodeId),
    Left(NodeId),
    /// We may have missed something, and the others what we told.
    Returned,
    /// We could not keep all that was told.
    Missed,
    Report(NodeId, Report),
    /// What another node wants to be told of a topic.
    Request(NodeId, Topic, Watching),
    /// These users' sockets on a topic may be others than before.
    Touched(Topic, HashSet<UserId>),
}

/// What a node wants to be told of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watching {
    Nothing,
    /// Who comes and goes.
    Users,
    /// As what they are described as well.
    Described,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(super) enum Act {
    /// From now on the topic's presence is to be heard. What follows waits until it is.
    Hear(Topic),
    /// The topic's presence need not be heard any more.
    Release(Topic),
    Say(Say),
}

/// What is to be said. What became of it is told with the ticket.
#[derive(Debug, PartialEq)]
pub(super) struct Say {
    pub(super) to: Topic,
    pub(super) word: Word,
    pub(super) ticket: Ticket,
}

/// What was said.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ticket {
    Ask {
        to: Topic,
        topic: Topic,
    },
    /// A part of everybody, to one node.
    Answer {
        to: NodeId,
        topic: Topic,
    },
    /// A part of everybody, to all watchers once more.
    Again(Topic),
    Changes(Topic),
    Unwatch,
}

impl Act {
    /// Asks, on a channel, to be told of a topic.
    pub(super) fn ask(to: Topic, topic: Topic, described: bool) -> Self {
        let name = topic.as_str().to_owned();
        Self::Say(Say {
            to: to.clone(),
            word: Word::Request(WatchRequest::Watch {
                topic: name,
                described,
            }),
            ticket: Ticket::Ask { to, topic },
        })
    }

    /// Tells everybody that a topic is not read here any more.
    pub(super) fn unwatch(topic: &Topic) -> Self {
        let name = topic.as_str().to_owned();
        Self::Say(Say {
            to: Topic::nodes(),
            word: Word::Request(WatchRequest::Unwatch { topic: name }),
            ticket: Ticket::Unwatch,
        })
    }
}

impl Say {
    pub(super) fn report(to: Topic, report: Report, ticket: Ticket) -> Self {
        let word = Word::Report(report);
        Self { to, word, ticket }
    }
}
