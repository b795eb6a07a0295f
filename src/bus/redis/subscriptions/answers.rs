//! What Redis said, and what that means for who waits.

use std::mem::replace;

use tokio::time::Instant;

use super::Subscriptions;
use crate::bus::redis::outstanding::{TopicRequest, Verb};
use crate::model::topic::Topic;

/// What Redis said of one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::bus::redis) enum Answered {
    /// What was to be answered next.
    InTurn,
    /// An answer before it was lost.
    OutOfTurn,
    /// Redis ended, unasked, a subscription that is wanted. It is asked for anew.
    Ended,
    /// A Redis Cluster ended it, since its partition is at another primary.
    Stranded,
    /// Nothing that concerns us.
    Stray,
}

/// What Redis refused.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::bus::redis) enum Refusal {
    /// What the connection cannot do without.
    Vital,
    /// This topic. Whoever waited does not any longer; it is asked for again after a pause.
    Topic(Topic),
    /// What nobody waits for, or some of several topics, which are asked for apart.
    Undecided,
}

impl Subscriptions {
    /// Redis said that a topic is subscribed, or is not any longer.
    pub(in crate::bus::redis) fn answered(
        &mut self,
        verb: Verb,
        topic: &str,
        now: Instant,
    ) -> Answered {
        let unanswered = self
            .interests
            .get(topic)
            .map_or(0, |interest| interest.unanswered);
        let Some((in_turn, struck)) = self.outstanding.strike(verb, topic, unanswered) else {
            return self.unasked(verb, topic);
        };
        if let Some(interest) = self.interests.get_mut(topic) {
            interest.unanswered -= struck;
            // It was taken out meanwhile, and its end is not told any more.
            interest.subscribed &= interest.reasons > 0 || interest.linger_until().is_some();
            if interest.is_confirmed() {
                let waiting = interest.take_waiting();
                self.news.confirmed.extend(waiting);
                if let Some(place) = interest.take_refused() {
                    self.refusals.grant(place, now);
                }
            }
        }
        self.forget_if_unused(topic);
        match in_turn {
            true => Answered::InTurn,
            false => Answered::OutOfTurn,
        }
    }

    /// Whether a topic is confirmed that was not before, on whatever connection: said once.
    pub(in crate::bus::redis) fn is_newly_heard(&mut self, topic: &str) -> bool {
        let interest = self.interests.get_mut(topic);
        interest.is_some_and(|it| it.is_confirmed() && !replace(&mut it.known, true))
    }

    /// Redis said what answers nothing. While something is unanswered for the topic, that answer will tell.
    fn unasked(&mut self, verb: Verb, topic: &str) -> Answered {
        let Some((key, interest)) = self.interests.get_key_value(topic) else {
            return Answered::Stray;
        };
        if verb == Verb::Subscribe || !interest.is_confirmed() {
            return Answered::Stray;
        }
        let (key, is_wanted) = (key.clone(), interest.reasons > 0);
        let asks_here = is_wanted && self.moves.is_none();
        if let Some(interest) = self.interests.get_mut(topic) {
            interest.subscribed = false;
            if asks_here && !replace(&mut interest.queued, true) {
                self.changed.push_back(key.clone());
            }
        }
        if !is_wanted {
            self.forget_if_unused(topic);
            return Answered::Stray;
        }
        match self.partition(&key) {
            Some(partition) => {
                self.strand(partition);
                Answered::Stranded
            }
            None => {
                self.confirm_anew();
                Answered::Ended
            }
        }
    }

    /// Redis refused a command: the first of which it has answered nothing.
    pub(in crate::bus::redis) fn refused(&mut self, now: Instant) -> Refusal {
        let was_restored = self.is_restored();
        let Some(TopicRequest { verb, topics, .. }) = self.outstanding.refuse() else {
            return Refusal::Vital;
        };
        let alone = topics.len() == 1;
        if verb == Verb::Unsubscribe || alone && topics[0] == self.own {
            return Refusal::Vital;
        }
        let mut unheard = Vec::new();
        for topic in topics {
            if let Some(interest) = self.interests.get_mut(&topic) {
                interest.unanswered -= 1;
                // Else what was sent later decides.
                if interest.unanswered == 0 {
                    interest.subscribed = false;
                    unheard.push(topic);
                }
            }
        }
        if alone {
            return unheard
                .pop()
                .map_or(Refusal::Undecided, |topic| self.refuse(topic, now));
        }
        if !was_restored {
            // Among them may be some for whom nobody waited.
            self.confirm_anew();
        }
        unheard.retain(|topic| {
            let interest = self.interests.get_mut(topic);
            interest.is_some_and(|interest| !replace(&mut interest.queued, true))
        });
        self.refusals.halve(unheard);
        Refusal::Undecided
    }

    fn refuse(&mut self, topic: Topic, now: Instant) -> Refusal {
        let Some(interest) = self.interests.get_mut(&topic) else {
            return Refusal::Undecided;
        };
        if interest.reasons == 0 {
            self.forget_if_unused(topic.as_str());
            return Refusal::Undecided;
        }
        let waiting = interest.take_waiting();
        self.news.given_up.extend(waiting);
        if !interest.is_refused() {
            interest.refuse(self.refusals.refuse(topic.clone(), now));
        }
        Refusal::Topic(topic)
    }
}
