//! What a connection asks for next.

use std::mem::replace;

use tokio::time::Instant;

use super::{Phase, Subscriptions};
use crate::bus::redis::outstanding::{TopicRequest, Verb};
use crate::model::topic::Topic;

impl Subscriptions {
    /// What to write now, at most `limit` topics; empty when there is nothing to do.
    pub(in crate::bus::redis) fn step(&mut self, now: Instant, limit: usize) -> Vec<TopicRequest> {
        self.look_again(now);
        let (mut requests, mut room) = (Vec::new(), limit);
        while let Some(group) = self.refusals.next_group(room) {
            room -= group.len();
            let wanted = |topic: &Topic| self.turn(topic, now).is_some();
            let group = group.into_iter().filter(wanted).collect();
            self.send(Verb::Subscribe, group, &mut requests);
        }
        let (mut subscribe, mut unsubscribe) = (Vec::new(), Vec::new());
        while subscribe.len() + unsubscribe.len() < room {
            let next = self.changed.pop_front();
            let Some(topic) = next.or_else(|| self.restoring.pop_front()) else {
                break;
            };
            match self.turn(&topic, now) {
                Some(Verb::Subscribe) => subscribe.push(topic),
                Some(Verb::Unsubscribe) => unsubscribe.push(topic),
                None => {}
            }
        }
        self.send(Verb::Subscribe, subscribe, &mut requests);
        self.send(Verb::Unsubscribe, unsubscribe, &mut requests);
        let is_sent = self.changed.is_empty() && self.restoring.is_empty();
        if self.is_connected() && is_sent && !self.refusals.has_groups() {
            self.mark_restored();
        }
        requests
    }

    /// Whose linger ended, and who was refused long enough ago, has its turn.
    fn look_again(&mut self, now: Instant) {
        while self.lingering.front().is_some_and(|(end, _)| *end <= now) {
            let Some((_, topic)) = self.lingering.pop_front() else {
                break;
            };
            let Some(interest) = self.interests.get_mut(&topic) else {
                continue;
            };
            if !interest.is_wanted(now) && !replace(&mut interest.queued, true) {
                self.changed.push_back(topic);
            }
        }
        for (place, topic) in self.refusals.again(now) {
            let Some(interest) = self.interests.get_mut(&topic) else {
                continue;
            };
            interest.refuse(place);
            if !interest.subscribed && !replace(&mut interest.queued, true) {
                self.refusals.group(vec![topic]);
            }
        }
    }

    /// What to send for a topic now, if anything.
    fn turn(&mut self, topic: &Topic, now: Instant) -> Option<Verb> {
        let (partition, is_nowhere) = (self.partition(topic), self.carries_nothing());
        let interest = self.interests.get_mut(topic)?;
        interest.queued = false;
        if is_nowhere {
            // Its own topic too: that is asked for where the first partition comes.
            self.forget_if_unused(topic.as_str());
            return None;
        }
        if let (Some(partition), Some(moves)) = (partition, &self.moves)
            && !moves.is_here(partition)
        {
            self.forget_if_unused(topic.as_str());
            return None;
        }
        let wanted = interest.is_wanted(now);
        if wanted == interest.subscribed {
            self.forget_if_unused(topic.as_str());
            return None;
        }
        interest.subscribed = wanted;
        interest.unanswered += 1;
        Some(match wanted {
            true => Verb::Subscribe,
            false => Verb::Unsubscribe,
        })
    }

    fn send(&mut self, verb: Verb, topics: Vec<Topic>, requests: &mut Vec<TopicRequest>) {
        if topics.is_empty() {
            return;
        }
        for (partition, topics) in self.by_partition(topics) {
            let request = TopicRequest {
                verb,
                topics,
                partition,
            };
            self.outstanding.push(&request);
            requests.push(request);
        }
    }

    /// Everything wanted is sent. Nobody waits behind a long restore: only when that is answered, and for
    /// no longer than it takes to confirm those who came meanwhile.
    fn mark_restored(&mut self) {
        let sent = self.outstanding.sent();
        if let Some(moves) = &mut self.moves {
            moves.sent(sent);
        }
        let restored_at = *self.restored_at.get_or_insert(sent);
        if self.phase == Phase::Restoring && self.outstanding.answered_through() >= restored_at {
            (self.phase, self.restored_at) = (Phase::Up, Some(sent));
        }
    }
}
