//! The commands that Redis has not answered in full, in the order in which they were sent.
//!
//! Redis answers a command for each of its topics, in order, or refuses it as a whole; a refusal names no channel. So it
//! belongs to the first command of which nothing is answered. What is answered out of turn shows that an answer was
//! lost: what was sent before it has a hole then, and nothing stands for that.
//!
//! ```text
//! SUBSCRIBE a b c      a is answered: never refused any more
//! UNSUBSCRIBE d        <- an error is for this one
//! SUBSCRIBE e
//! ```

use std::collections::VecDeque;

use crate::model::partition::Partition;
use crate::model::topic::Topic;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Subscribe,
    Unsubscribe,
}

/// What is to be written as one command.
#[derive(Debug, PartialEq)]
pub(super) struct TopicRequest {
    pub(super) verb: Verb,
    pub(super) topics: Vec<Topic>,
    /// In a Redis Cluster: where they all are.
    pub(super) partition: Option<Partition>,
}

#[derive(Debug, Default)]
pub(super) struct Outstanding {
    commands: VecDeque<Owed>,
    /// Topics sent, and answered or refused.
    sent: u64,
    answered: u64,
}

#[derive(Debug)]
struct Owed {
    verb: Verb,
    partition: Option<Partition>,
    /// How many topics were sent before it.
    place: u64,
    /// Topics without an answer, the next first.
    topics: VecDeque<Topic>,
    /// This command is answered in part, or a later one is: so Redis did not refuse it.
    begun: bool,
}

impl Owed {
    fn find(&self, topic: &str) -> Option<usize> {
        self.topics.iter().position(|owed| owed.as_str() == topic)
    }
}

impl Outstanding {
    pub(super) fn push(&mut self, request: &TopicRequest) {
        self.commands.push_back(Owed {
            verb: request.verb,
            partition: request.partition,
            place: self.sent,
            topics: request.topics.iter().cloned().collect(),
            begun: false,
        });
        self.sent += request.topics.len() as u64;
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// How much of what was sent is answered without a hole.
    pub(super) fn answered_through(&self) -> u64 {
        let first = self.commands.front();
        first.map_or(self.sent, |owed| owed.place)
    }

    pub(super) fn unanswered(&self) -> usize {
        (self.sent - self.answered) as usize
    }

    /// Strikes out what is answered, if anything is: whether it was its turn, and how many commands of this topic
    /// that was, of so many. One that was sent earlier is answered, or its answer was lost.
    pub(super) fn strike(&mut self, verb: Verb, topic: &str, most: u32) -> Option<(bool, u32)> {
        let is_asked = |owed: &Owed| owed.verb == verb && owed.find(topic).is_some();
        // Most that Redis says unasked is told from the count alone.
        let turn = (most > 0).then(|| self.commands.iter().position(is_asked))??;
        let in_turn = turn == 0 && self.commands[0].find(topic) == Some(0);
        let mut struck = 0;
        for (n, owed) in self.commands.iter_mut().take(turn + 1).enumerate().rev() {
            // An UNSUBSCRIBE may be answered by what comes unasked, which says nothing of what was sent before it.
            owed.begun |= n == turn || verb == Verb::Subscribe;
            if struck < most
                && let Some(place) = owed.find(topic)
            {
                owed.topics.remove(place);
                struck += 1;
            }
        }
        self.answered += struck as u64;
        while self
            .commands
            .front()
            .is_some_and(|owed| owed.topics.is_empty())
        {
            self.commands.pop_front();
        }
        Some((in_turn, struck))
    }

    /// The partition of the first command of which Redis has answered nothing.
    pub(super) fn refusable(&self) -> Option<Partition> {
        self.commands.iter().find(|owed| !owed.begun)?.partition
    }

    /// Takes out what Redis refused: the first command of which it has answered nothing.
    pub(super) fn refuse(&mut self) -> Option<TopicRequest> {
        self.take_out(|owed| !owed.begun)
    }

    /// Takes out the rest of an UNSUBSCRIBE in this partition. What seemed to answer it came unasked.
    pub(super) fn refuse_rest(&mut self, partition: Partition) -> Option<TopicRequest> {
        self.take_out(|owed| {
            owed.begun && owed.verb == Verb::Unsubscribe && owed.partition == Some(partition)
        })
    }

    fn take_out(&mut self, which: impl Fn(&Owed) -> bool) -> Option<TopicRequest> {
        let turn = self.commands.iter().position(which)?;
        let owed = self.commands.remove(turn)?;
        self.answered += owed.topics.len() as u64;
        Some(TopicRequest {
            verb: owed.verb,
            partition: owed.partition,
            topics: owed.topics.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> Topic {
        Topic::room(name).unwrap()
    }

    /// `+ab` subscribes both, `-c` unsubscribes.
    fn sent(commands: &[&str]) -> Outstanding {
        let mut outstanding = Outstanding::default();
        for command in commands {
            let (verb, names) = command.split_at(1);
            let topics = names.chars().map(|name| topic(&name.to_string()));
            outstanding.push(&TopicRequest {
                partition: None,
                verb: match verb {
                    "+" => Verb::Subscribe,
                    _ => Verb::Unsubscribe,
                },
                topics: topics.collect(),
            });
        }
        outstanding
    }

    fn refused(outstanding: &mut Outstanding) -> Option<Vec<Topic>> {
        outstanding.refuse().map(|request| request.topics)
    }

    #[test]
    fn answers_in_turn_settle_what_was_sent() {
        let mut outstanding = sent(&["+ab", "-c"]);
        let answer = |outstanding: &mut Outstanding, verb, name: &str| {
            let struck = outstanding.strike(verb, topic(name).as_str(), 1);
            (
                struck,
                outstanding.answered_through(),
                outstanding.unanswered(),
            )
        };
        let in_turn = Some((true, 1));
        let (subscribe, unsubscribe) = (Verb::Subscribe, Verb::Unsubscribe);
        assert_eq!(answer(&mut outstanding, subscribe, "a"), (in_turn, 0, 2));
        assert_eq!(answer(&mut outstanding, subscribe, "b"), (in_turn, 2, 1));
        assert_eq!(
            answer(&mut outstanding, subscribe, "c"),
            (None, 2, 1),
            "another verb"
        );
        assert_eq!(answer(&mut outstanding, unsubscribe, "c"), (in_turn, 3, 0));
        assert_eq!(answer(&mut outstanding, unsubscribe, "c"), (None, 3, 0));
    }

    #[test]
    fn nothing_stands_for_an_answer_that_was_lost() {
        let mut outstanding = sent(&["+a", "+b", "+c"]);
        for name in ["b", "c"] {
            let struck = outstanding.strike(Verb::Subscribe, topic(name).as_str(), 1);
            assert_eq!(
                (struck, outstanding.answered_through()),
                (Some((false, 1)), 0)
            );
        }
        assert_eq!(outstanding.unanswered(), 1);
        assert_eq!(
            refused(&mut outstanding),
            None,
            "what follows was carried out"
        );
    }

    #[test]
    fn what_was_sent_earlier_for_a_topic_is_over_with_its_answer() {
        let mut outstanding = sent(&["+a", "-a", "+a", "+b"]);
        let struck = outstanding.strike(Verb::Unsubscribe, topic("a").as_str(), 3);
        assert_eq!((struck, outstanding.unanswered()), (Some((false, 2)), 2));
        let struck = outstanding.strike(Verb::Subscribe, topic("a").as_str(), 1);
        assert_eq!(struck, Some((true, 1)));
    }

    #[test]
    fn a_refusal_is_for_the_first_command_without_an_answer() {
        let mut outstanding = sent(&["+ab", "-c", "+d"]);
        outstanding.strike(Verb::Subscribe, topic("a").as_str(), 1);
        assert_eq!(refused(&mut outstanding), Some(vec![topic("c")]));
        assert_eq!(refused(&mut outstanding), Some(vec![topic("d")]));
        assert_eq!(refused(&mut outstanding), None);
        assert_eq!(outstanding.unanswered(), 1);
    }

    /// It comes before the answer to what was sent earlier.
    #[test]
    fn a_subscription_that_ends_by_itself_says_nothing_of_others() {
        let mut outstanding = sent(&["+a", "-b"]);
        let struck = outstanding.strike(Verb::Unsubscribe, topic("b").as_str(), 1);
        assert_eq!(struck, Some((false, 1)));
        assert_eq!(refused(&mut outstanding), Some(vec![topic("a")]));
    }
}
