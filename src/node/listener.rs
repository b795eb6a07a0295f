//! The node, as the bus sees it: who acts on what is heard.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::time::Instant;

use super::Node;
use crate::bus::Listener;
use crate::bus::inbound::Inbound;
use crate::bus::outage::LinkId;
use crate::bus::repair::{Due, Fate};
use crate::bus::repairs::{Repairing, Repairs};
use crate::bus::wire::{self, Formerly};
use crate::local::registry::EVERY;
use crate::local::socket::resuming::NumberedPlace;
use crate::model::history::mark::{Clock, Mark, Marks, Number};
use crate::model::partition::{Partition, PartitionSet};
use crate::model::topic::{Topic, TopicKind, TopicRef};

impl Listener for Node {
    fn heard(&self, topic: &str, number: Option<Number>, bytes: &[u8]) {
        if number.is_some() && self.uplink.comes_behind(topic, bytes) {
            return;
        }
        let fate = number.map(|number| self.repairs.came(topic, number, bytes));
        match fate {
            None | Some(Fate::Due) => self.hear(topic, number, bytes, None),
            Some(Fate::Held | Fate::Known) => {}
        }
    }

    fn flush(&self) -> bool {
        self.local.flush()
    }

    fn confirmed(&self, topic: &str) {
        self.repairs.confirmed(topic);
    }

    fn superseded(&self) {
        self.ground.counters.bus_late.fetch_add(1, Relaxed);
    }

    fn garbage(&self) {
        self.uplink.garbage();
    }

    fn replaced(&self, number: u64) {
        self.local.replaced(number);
    }

    fn up(&self, link: LinkId, proven: Instant) {
        self.ground.counters.measures.probed(proven);
        match self.repairs.up(link, proven) {
            Some(repaired) => {
                self.settle(link, proven);
                self.ground.reception.up(link, proven, repaired);
            }
            None => self.ground.reception.works(link, proven),
        }
    }

    fn strayed(&self, link: LinkId, since: Option<Instant>) {
        self.ground.reception.strayed(link, since);
    }

    fn down(&self, link: LinkId, reason: Arc<str>, deaf: bool) {
        if deaf {
            self.repairs.down(link, self.local.newcomers());
        }
        self.ground.reception.down(link, &reason, deaf);
    }

    fn refused(&self, link: LinkId, kind: TopicKind, reason: Arc<str>) {
        self.ground.reception.refused(link, kind, &reason);
    }

    fn moved(&self, partitions: PartitionSet, links: (LinkId, LinkId), at: Instant) {
        let newcomers = self.local.newcomers();
        self.repairs.moved(partitions, links, at, newcomers);
        self.ground.reception.moved(partitions, links, at);
    }

    fn stranded(&self, link: LinkId, partition: Partition) {
        let newcomers = self.local.newcomers();
        self.repairs.stranded(link, partition, newcomers);
    }

    fn works(&self, link: LinkId, proven: Instant) {
        self.ground.counters.measures.probed(proven);
        self.ground.reception.works(link, proven);
        self.repairs.works(link, proven);
        self.settle(link, proven);
    }

    fn rolled_back(&self, messages: u64, since: Option<Instant>) {
        let counter = &self.ground.counters.history_rolled_back;
        counter.fetch_add(messages, Relaxed);
        if messages > 0 {
            let reception = &self.ground.reception;
            let proven = reception.proven_at();
            let since = since.map_or(proven, |since| proven.min(since));
            reception.still_strayed(since);
            reception.others_strayed((since, Instant::now()));
            tracing::warn!(node = %self.ground.node, messages, "redis went on with an older state: the last messages that this node sent \
                are in no history any more");
        }
    }

    fn kept_again(&self, messages: u64) {
        let counter = &self.ground.counters.history_again;
        counter.fetch_add(messages, Relaxed);
    }

    fn spool_dropped(&self, messages: u64, was_lost: bool) {
        let counter = &self.ground.counters.spool_dropped;
        counter.fetch_add(messages, Relaxed);
        if was_lost {
            self.rolled_back(messages, None);
        }
    }

    fn panicked(&self) {
        self.ground.counters.task_panics.fetch_add(1, Relaxed);
    }
}

impl Repairing for Node {
    fn repairs(&self) -> &Repairs {
        &self.repairs
    }

    fn topics(&self) -> Vec<Topic> {
        self.local.topics()
    }

    fn missed(&self, due: &Due) {
        let Due {
            topic,
            number,
            envelope,
            older_than,
        } = due;
        self.uplink.note_era(topic, envelope);
        self.hear(topic, Some(*number), envelope, *older_than);
    }

    fn renew(&self, heard: &Marks, behind: u64) {
        self.local.renew(heard, behind);
    }

    fn let_go(&self, now: Instant) -> Option<Instant> {
        let (overdue, next) = self.uplink.overdue(now);
        self.deliver_own(&overdue);
        next
    }

    fn go_on(&self, clocks: &[(Clock, Mark)]) {
        self.local.go_on(clocks);
    }

    fn flush(&self) -> bool {
        self.local.flush()
    }
}

impl Node {
    /// A link is proven: what was taken before, and has not come back if all is repaired, will not.
    fn settle(&self, link: LinkId, proven: Instant) {
        let Some(heard) = self.repairs.heard_on(link) else {
            return;
        };
        let is_settled =
            |topic: &Topic, at| at <= proven && heard.contains(Partition::of(topic.as_str()));
        let own = self.uplink.settle(is_settled);
        if !own.is_empty() {
            self.deliver_own(&own);
            // It flushes.
            self.repairs.look();
        }
    }

    /// Acts on what came: for all sockets, or only for those with smaller numbers.
    fn hear(&self, topic: &str, number: Option<Number>, bytes: &[u8], older_than: Option<u64>) {
        let (formerly, bytes) = match number {
            None => (Formerly::new(), bytes),
            Some(_) => match wire::formerly(bytes) {
                Ok(read) => read,
                Err(_) => return self.garbage(),
            },
        };
        let mut numbers = EVERY.start..older_than.unwrap_or(EVERY.end);
        if !formerly.is_empty()
            && let Some(newcomers) = self.repairs.had(topic, &formerly)
        {
            numbers.start = newcomers;
            if numbers.is_empty() {
                return;
            }
        }
        let inbound = self.uplink.open(topic, number, bytes);
        self.act_on(inbound, topic, (number, &formerly), numbers);
    }

    fn clock_of(&self, topic: &str) -> Option<Clock> {
        let topic = TopicRef::of(topic)?;
        Some(self.ground.bus.clock(&topic.to_topic()))
    }

    fn act_on(
        &self,
        inbound: Inbound<'_>,
        topic: &str,
        (number, formerly): (Option<Number>, &[Mark]),
        numbers: Range<u64>,
    ) {
        match inbound {
            Inbound::Amid(amid) => {
                self.deliver_own(&amid.before);
                self.act_on(amid.inbound, topic, (number, formerly), numbers);
                self.deliver_own(&amid.after);
            }
            Inbound::Message(scope, content, manner, form, sent, union) => {
                if let Some(from) = self.uplink.take_unkept() {
                    self.peers.tell_unkept(from);
                }
                let place = number.zip(self.clock_of(topic));
                let place = place.map(|(number, clock)| NumberedPlace {
                    clock,
                    number,
                    formerly,
                    union,
                });
                let frame = || (content.frame(), form);
                let taken = self.local.collect(&scope, place, numbers, &manner, frame);
                if let Some(sent) = sent.filter(|_| taken > 0) {
                    self.ground.counters.measures.delivered(sent);
                }
            }
            Inbound::Copy(scope) => {
                if let Some((number, clock)) = number.zip(self.clock_of(topic)) {
                    let is_of = |topic: &Topic| self.ground.bus.clock(topic) == clock;
                    self.local.note_copy(scope, (clock, number), numbers, is_of);
                }
            }
            Inbound::Close(scope, close) => {
                self.local.collect_close(&scope, numbers, &close);
            }
            Inbound::ToNodes(from, content) => {
                self.peers.messages().tell(from, content.message());
            }
            Inbound::Peer(word) => self.peers.heard_word(word),
            Inbound::Answer(part) => self.peers.heard_answer(&part),
            Inbound::Report(from, json) => self.presence.heard_report(from, json),
            Inbound::Watch(from, json) => self.presence.heard_request(from, json),
            Inbound::Echo(id) => self.peers.heard_itself(id),
            Inbound::Nothing => {}
        }
    }
}
