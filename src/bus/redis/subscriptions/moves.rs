//! Topics that move to another primary of a Redis Cluster, and come from one.
//!
//! A primary ends the subscriptions of a partition that has left it, or refuses them, before anybody knows where it is:
//! then the partition is stranded, and nothing is asked for in it. When its place is known its topics are taken out
//! here and taken in there, with whoever waits. What was taken in nobody heard for a while: until it is confirmed
//! nothing proves that this primary is heard.
//!
//! ```text
//!                ended, or MOVED            it is here after all
//!   carried ----------------------> stranded ------------------------> arriving ----> carried, when all is confirmed
//!      |                               |                                  ^
//!      +-------------------------------+--> taken out here, taken in there: +
//!                 another is its place
//! ```
//! Whoever comes meanwhile is told to look for the place again, or already comes to the new one: so a reason that ends there
//! may be counted before the one that it ends has come.

use std::collections::BTreeMap;
use std::mem::replace;

use tokio::time::Instant;

use super::interest::Confirming;
use super::{Interest, Phase, Subscriptions};
use crate::bus::redis::outstanding::TopicRequest;
use crate::model::partition::{Partition, PartitionSet};
use crate::model::topic::Topic;

/// The partitions of one primary.
#[derive(Debug)]
pub(super) struct Moves {
    carried: PartitionSet,
    stranded: PartitionSet,
    /// Something is not asked for that was taken in; …
    arriving: bool,
    /// … or so much had been sent when it was.
    arriving_at: Option<u64>,
    /// Where the own topic is probed, which must be here.
    probed: Option<Partition>,
}

/// A topic on its way, and all that is wanted of it.
#[derive(Debug)]
pub(in crate::bus::redis) struct Moving {
    topic: Topic,
    reasons: i32,
    waiting: Confirming,
    known: bool,
}

impl Moves {
    pub(super) fn new() -> Self {
        Self {
            carried: PartitionSet::new(),
            stranded: PartitionSet::new(),
            arriving: false,
            arriving_at: None,
            probed: None,
        }
    }

    /// A new connection, on which all is asked for.
    pub(super) fn begin(&mut self) {
        self.stranded = PartitionSet::new();
        (self.arriving, self.arriving_at) = (false, None);
    }

    /// Whether anything may be asked for in it.
    pub(super) fn is_here(&self, partition: Partition) -> bool {
        self.carried.contains(partition) && !self.stranded.contains(partition)
    }

    /// Notes that all that is wanted is sent, with so many commands.
    pub(super) fn sent(&mut self, sent: u64) {
        if self.arriving {
            self.arriving_at.get_or_insert(sent);
        }
    }

    fn has_arrived(&self, answered: u64) -> bool {
        let confirmed = self.arriving_at.is_some_and(|sent| sent <= answered);
        self.stranded.is_empty() && (!self.arriving || confirmed)
    }
}

impl Subscriptions {
    /// Whether a topic is wanted here, and not at another primary.
    pub(in crate::bus::redis) fn carries(&self, topic: &str) -> bool {
        let moves = self.moves.as_ref();
        moves.is_none_or(|moves| moves.carried.contains(Partition::of(topic)))
    }

    /// The partition of a topic on this connection.
    pub(in crate::bus::redis) fn partition(&self, topic: &Topic) -> Option<Partition> {
        let moves = self.moves.as_ref()?;
        match *topic == self.own {
            true => moves.probed,
            false => Some(Partition::of(topic.as_str())),
        }
    }

    /// Where the own topic is probed, in a cluster.
    pub(in crate::bus::redis) fn probed(&self) -> Option<Partition> {
        self.moves.as_ref()?.probed
    }

    /// Whether this is a primary of a Redis Cluster of which nothing is expected yet, or any more: there is no channel on which it
    /// could be probed.
    pub(in crate::bus::redis) fn carries_nothing(&self) -> bool {
        let moves = self.moves.as_ref();
        moves.is_some_and(|moves| moves.probed.is_none())
    }

    /// Whether all that was taken in is confirmed, and nothing is stranded.
    pub(in crate::bus::redis) fn has_arrived(&self) -> bool {
        let answered = self.outstanding.answered_through();
        let moves = self.moves.as_ref();
        moves.is_none_or(|moves| moves.has_arrived(answered))
    }

    /// Of which partitions messages may still come on this connection: what Redis said before it ended them is read before
    /// that.
    pub(in crate::bus::redis) fn heard(&self) -> PartitionSet {
        let Some(moves) = self.moves.as_ref().filter(|_| self.is_connected()) else {
            return PartitionSet::new();
        };
        let asked = |(topic, interest): (&Topic, &Interest)| {
            let partition = self.partition(topic);
            partition.filter(|_| interest.subscribed || interest.unanswered > 0)
        };
        let heard: PartitionSet = self.interests.iter().filter_map(asked).collect();
        heard - moves.stranded
    }

    /// These partitions come: whoever wants a topic of them is welcome already.
    pub(in crate::bus::redis) fn expect(&mut self, partitions: PartitionSet) {
        if let Some(moves) = &mut self.moves {
            moves.carried = moves.carried | partitions;
            self.choose_probe();
        }
    }

    /// A partition is not here, and nobody knows where.
    pub(super) fn strand(&mut self, partition: Partition) {
        if let Some(moves) = &mut self.moves
            && moves.carried.contains(partition)
        {
            moves.stranded.insert(partition);
        }
    }

    /// What is stranded of these is here after all.
    pub(in crate::bus::redis) fn unstrand(&mut self, partitions: PartitionSet, now: Instant) {
        let Some(moves) = &mut self.moves else {
            return;
        };
        let back = moves.stranded & partitions;
        if back.is_empty() {
            return;
        }
        moves.stranded = moves.stranded - back;
        let probed = moves.probed;
        let is_connected = self.is_connected();
        let mut topics = Vec::new();
        for (topic, interest) in &mut self.interests {
            let partition = match *topic == self.own {
                true => probed,
                false => Some(Partition::of(topic.as_str())),
            };
            let is_back = partition.is_some_and(|partition| back.contains(partition));
            if is_back
                && is_connected
                && interest.is_wanted(now) != interest.subscribed
                && !interest.queued
            {
                interest.queued = true;
                topics.push(topic.clone());
            }
        }
        self.restore(topics);
        self.arrive();
    }

    /// Redis says that the first command of which nothing is answered belongs elsewhere, if it is of this slot. Another may
    /// be meant, which was answered before: an UNSUBSCRIBE of what had moved, in full or but for what was not heard yet. The
    /// partition that is stranded.
    pub(in crate::bus::redis) fn misplaced(&mut self, slot: u16) -> Option<Partition> {
        let first = self.outstanding.refusable();
        let refused = match first.is_some_and(|partition| partition.slot() == slot) {
            true => self.outstanding.refuse(),
            false => self.outstanding.refuse_rest(Partition::of_slot(slot)?),
        };
        let TopicRequest {
            topics, partition, ..
        } = refused?;
        let partition = partition?;
        for topic in topics {
            if let Some(interest) = self.interests.get_mut(&topic) {
                interest.unanswered -= 1;
                // Else what was sent later decides. And two that are of the same slot may be taken for one another.
                if interest.unanswered == 0 {
                    interest.subscribed = false;
                }
            }
            self.forget_if_unused(topic.as_str());
        }
        self.strand(partition);
        Some(partition)
    }

    /// Takes out the topics of partitions whose place is elsewhere.
    pub(in crate::bus::redis) fn take_out(
        &mut self,
        partitions: PartitionSet,
        now: Instant,
    ) -> Vec<Moving> {
        let Some(moves) = &mut self.moves else {
            return Vec::new();
        };
        moves.carried = moves.carried - partitions;
        moves.stranded = moves.stranded - partitions;
        let mut moving = Vec::new();
        for (topic, interest) in &mut self.interests {
            if !partitions.contains(Partition::of(topic.as_str())) {
                continue;
            }
            // It stays for its own sake, once.
            let kept = i32::from(*topic == self.own);
            let reasons = interest.reasons - kept;
            interest.reasons = kept;
            let waiting = interest.take_waiting();
            if let Some(place) = interest.take_refused() {
                self.refusals.forget(place, now);
            }
            if kept == 0 {
                interest.linger(None);
                interest.subscribed &= interest.unanswered > 0;
                interest.queued = false;
            }
            if reasons != 0 || !waiting.is_empty() {
                moving.push(Moving {
                    topic: topic.clone(),
                    reasons,
                    waiting,
                    known: interest.known,
                });
            }
        }
        self.interests.retain(|_, interest| !interest.is_unused());
        self.choose_probe();
        moving
    }

    /// Takes in the topics of partitions whose place is here now.
    pub(in crate::bus::redis) fn take_in(&mut self, moving: Vec<Moving>) {
        let connected = self.is_connected();
        let mut topics = Vec::new();
        for Moving {
            topic,
            reasons,
            waiting,
            known,
        } in moving
        {
            let interest = self.interests.entry(topic.clone()).or_default();
            interest.reasons += reasons;
            interest.known |= known;
            if connected && interest.reasons > 0 && !interest.subscribed && !interest.queued {
                interest.queued = true;
                topics.push(topic.clone());
            }
            match (interest.is_confirmed(), self.phase) {
                (true, _) => self.news.confirmed.extend(waiting),
                (false, Phase::Down | Phase::Restoring) => self.news.given_up.extend(waiting),
                (false, Phase::Starting | Phase::Up) => interest.wait(waiting),
            }
            self.forget_if_unused(topic.as_str());
        }
        self.restore(topics);
        self.arrive();
    }

    fn arrive(&mut self) {
        if let Some(moves) = &mut self.moves {
            (moves.arriving, moves.arriving_at) = (true, None);
        }
    }

    /// In the own topic's partition, if that is here: there it is one channel for both.
    fn choose_probe(&mut self) {
        let Some(moves) = &mut self.moves else {
            return;
        };
        let home = Partition::of(self.own.as_str());
        let probed = match moves.carried.contains(home) {
            true => Some(home),
            false => moves.probed.filter(|at| moves.carried.contains(*at)),
        };
        let probed = probed.or_else(|| moves.carried.iter().next());
        if probed == moves.probed {
            return;
        }
        moves.probed = probed;
        if !self.is_connected() {
            return;
        }
        if let Some(interest) = self.interests.get_mut(&self.own) {
            // What is unanswered was about the other channel, and is not heard any more.
            interest.subscribed = false;
            if !replace(&mut interest.queued, true) {
                self.restoring.push_back(self.own.clone());
            }
        }
        self.arrive();
    }

    /// A command of one partition at a time, as a cluster demands.
    pub(super) fn by_partition(&self, topics: Vec<Topic>) -> Vec<(Option<Partition>, Vec<Topic>)> {
        if self.moves.is_none() {
            return vec![(None, topics)];
        }
        let mut parts = BTreeMap::<_, Vec<Topic>>::new();
        for topic in topics {
            parts.entry(self.partition(&topic)).or_default().push(topic);
        }
        parts.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, VecDeque};
    use std::sync::LazyLock;
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::sync::oneshot;

    use super::*;
    use crate::bus::Confirmation;
    use crate::bus::redis::outstanding::Verb;
    use crate::bus::redis::subscriptions::Answered;

    const LINGER: Duration = Duration::from_secs(2);
    const TOPICS: u8 = 6;

    fn own() -> Topic {
        Topic::room("own").unwrap()
    }

    /// Of three partitions; the last is the own one.
    fn topic(n: u8) -> Topic {
        static TOPICS: LazyLock<Vec<Topic>> = LazyLock::new(|| {
            let home = [Topic::room("a").unwrap(), Topic::room("b").unwrap(), own()];
            let names = || (0_u32..).map(|n| Topic::room(&n.to_string()).unwrap());
            let beside = |n: usize| {
                names()
                    .filter(|topic| of(topic) == of(&home[n % 3]))
                    .nth(n / 3)
            };
            (0..usize::from(self::TOPICS)).filter_map(beside).collect()
        });
        TOPICS[usize::from(n)].clone()
    }

    fn of(topic: &Topic) -> Partition {
        Partition::of(topic.as_str())
    }

    fn partitions() -> [Partition; 3] {
        [0, 1, 2].map(|n| of(&topic(n)))
    }

    /// What a primary is to say.
    #[derive(Debug)]
    enum Said {
        Subscribed(Topic),
        Unsubscribed(Partition, Topic),
        Moved(u16),
    }

    /// One primary and the table for it.
    struct Primary {
        table: Subscriptions,
        asked: VecDeque<TopicRequest>,
        subscribed: BTreeSet<(Partition, String)>,
        said: VecDeque<Said>,
    }

    /// Two primaries, where each partition really is, and where it is thought to be.
    struct World {
        primaries: [Primary; 2],
        really: [usize; 3],
        thought: [usize; 3],
        wanted: Vec<u8>,
        waiting: Vec<oneshot::Receiver<()>>,
        now: Instant,
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Want(u8),
        Release(usize),
        Flip(usize),
        /// The partitions are where they are thought to be.
        View,
        Write(usize),
        Serve(usize),
        Hear(usize),
        Wait,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..TOPICS).prop_map(Step::Want),
            2 => (0usize..8).prop_map(Step::Release),
            1 => (0usize..3).prop_map(Step::Flip),
            1 => Just(Step::View),
            4 => (0usize..2).prop_map(Step::Write),
            4 => (0usize..2).prop_map(Step::Serve),
            4 => (0usize..2).prop_map(Step::Hear),
            1 => Just(Step::Wait),
        ]
    }

    impl Primary {
        fn new(carried: impl IntoIterator<Item = Partition>) -> Self {
            let mut table = Subscriptions::sharded(LINGER, own());
            table.expect(carried.into_iter().collect());
            table.connected();
            Self {
                table,
                asked: VecDeque::new(),
                subscribed: BTreeSet::new(),
                said: VecDeque::new(),
            }
        }

        fn write(&mut self, now: Instant) {
            for request in self.table.step(now, 100) {
                let alike = |topic: &Topic| self.table.partition(topic) == request.partition;
                assert!(request.topics.iter().all(alike), "one partition a command");
                self.asked.push_back(request);
            }
        }

        fn serve(&mut self, is_owner: impl Fn(Partition) -> bool) {
            let Some(TopicRequest {
                verb,
                topics,
                partition: Some(partition),
            }) = self.asked.pop_front()
            else {
                return;
            };
            match (verb, is_owner(partition)) {
                (Verb::Subscribe, true) => {
                    for topic in topics {
                        self.subscribed.insert((partition, topic.as_str().into()));
                        self.said.push_back(Said::Subscribed(topic));
                    }
                }
                (Verb::Subscribe, false) => self.said.push_back(Said::Moved(partition.slot())),
                (Verb::Unsubscribe, true) => {
                    for topic in topics {
                        self.subscribed.remove(&(partition, topic.as_str().into()));
                        self.said.push_back(Said::Unsubscribed(partition, topic));
                    }
                }
                // The pushes were the answers, and here is one more.
                (Verb::Unsubscribe, false) => self.said.push_back(Said::Moved(partition.slot())),
            }
        }

        fn ends(&mut self, partition: Partition) {
            let ended: Vec<_> = self
                .subscribed
                .iter()
                .filter(|(at, _)| *at == partition)
                .cloned()
                .collect();
            for (at, name) in ended {
                let all = (0..TOPICS).map(topic).chain([own()]);
                let topic = all
                    .into_iter()
                    .find(|topic| topic.as_str() == name)
                    .unwrap();
                self.subscribed.remove(&(at, name));
                self.said.push_back(Said::Unsubscribed(at, topic));
            }
        }

        /// As the link does.
        fn hear(&mut self, now: Instant) {
            match self.said.pop_front() {
                Some(Said::Subscribed(topic)) => {
                    self.table.answered(Verb::Subscribe, topic.as_str(), now);
                }
                Some(Said::Unsubscribed(at, topic))
                    if topic != own() || self.table.probed() == Some(at) =>
                {
                    self.table.answered(Verb::Unsubscribe, topic.as_str(), now);
                }
                Some(Said::Moved(slot)) => _ = self.table.misplaced(slot),
                Some(Said::Unsubscribed(..)) | None => {}
            }
            self.table.take_news().tell();
        }
    }

    impl World {
        fn new() -> Self {
            let [a, b, home] = partitions();
            let rest = |n: usize| {
                Partition::all()
                    .filter(move |one| ![a, b, home].contains(one))
                    .filter(move |one| one.index() % 2 == n)
            };
            Self {
                primaries: [
                    Primary::new(rest(0).chain([a, home])),
                    Primary::new(rest(1).chain([b])),
                ],
                really: [0, 1, 0],
                thought: [0, 1, 0],
                wanted: Vec::new(),
                waiting: Vec::new(),
                now: Instant::now(),
            }
        }

        fn owner(&self, partition: Partition) -> usize {
            match partitions().iter().position(|one| *one == partition) {
                Some(n) => self.really[n],
                None => partition.index() % 2,
            }
        }

        fn table(&mut self, n: u8) -> &mut Subscriptions {
            &mut self.primaries[self.thought[usize::from(n % 3)]].table
        }

        fn step(&mut self, step: Step) {
            let now = self.now;
            match step {
                Step::Want(n) => {
                    let table = self.table(n);
                    assert!(table.carries(topic(n).as_str()));
                    if let Confirmation::Pending(waiting) = table.want(&topic(n)) {
                        self.waiting.push(waiting);
                    }
                    self.wanted.push(n);
                }
                Step::Release(at) if !self.wanted.is_empty() => {
                    let n = self.wanted.swap_remove(at % self.wanted.len());
                    self.table(n).release(&topic(n), now);
                }
                Step::Release(_) => {}
                Step::Flip(n) => {
                    self.primaries[self.really[n]].ends(partitions()[n]);
                    self.really[n] = 1 - self.really[n];
                }
                Step::View => self.view(),
                Step::Write(at) => self.primaries[at].write(now),
                Step::Serve(at) => {
                    let really = self.really;
                    let owner = |partition: Partition| {
                        let ours = partitions().iter().position(|one| *one == partition);
                        ours.map_or(partition.index() % 2, |n| really[n])
                    };
                    self.primaries[at].serve(|partition| owner(partition) == at);
                }
                Step::Hear(at) => self.primaries[at].hear(now),
                Step::Wait => self.now += LINGER / 2,
            }
        }

        fn view(&mut self) {
            for (n, partition) in partitions().into_iter().enumerate() {
                let set: PartitionSet = [partition].into_iter().collect();
                let (from, to) = (self.thought[n], self.really[n]);
                if from != to {
                    self.primaries[to].table.expect(set);
                    let moving = self.primaries[from].table.take_out(set, self.now);
                    self.primaries[to].table.take_in(moving);
                    self.thought[n] = to;
                }
            }
            for n in 0..2 {
                let carried = Partition::all()
                    .filter(|one| self.owner(*one) == n)
                    .collect();
                self.primaries[n].table.unstrand(carried, self.now);
            }
        }

        /// What is heard where it is proven.
        fn check(&self) {
            for primary in &self.primaries {
                let table = &primary.table;
                if !table.is_restored() || !table.has_arrived() || !primary.said.is_empty() {
                    continue;
                }
                for n in &self.wanted {
                    let (topic, home) = (topic(*n), of(&topic(*n)));
                    if table.carries(topic.as_str()) && table.is_confirmed(&topic) {
                        let heard = primary.subscribed.contains(&(home, topic.as_str().into()));
                        assert!(heard, "{topic:?} is deaf and confirmed");
                    }
                }
            }
        }

        fn settle(&mut self) {
            for _ in 0..60 {
                self.step(Step::View);
                for at in [0, 1] {
                    self.step(Step::Write(at));
                    for _ in 0..20 {
                        self.step(Step::Serve(at));
                        self.step(Step::Hear(at));
                    }
                }
            }
        }
    }

    #[test]
    fn messages_may_come_until_redis_has_ended_a_topic_of_their_partition() {
        let now = Instant::now();
        let [one, other, home] = partitions();
        let mut primary = Primary::new([one, other, home]);
        let _ = (primary.table.want(&topic(0)), primary.table.want(&topic(1)));
        assert!(primary.table.heard().is_empty(), "nothing is asked for");
        let asked = primary.table.step(now, 100);
        let all: PartitionSet = [one, other, home].into_iter().collect();
        assert_eq!(primary.table.heard(), all, "before the answer is read");
        for topic in asked.into_iter().flat_map(|request| request.topics) {
            primary.table.answered(Verb::Subscribe, topic.as_str(), now);
        }
        assert_eq!(primary.table.heard(), all);
        let ended = topic(0);
        let ended = primary
            .table
            .answered(Verb::Unsubscribe, ended.as_str(), now);
        assert_eq!(ended, Answered::Stranded);
        let rest: PartitionSet = [other, home].into_iter().collect();
        assert_eq!(primary.table.heard(), rest);
        primary.table.disconnected();
        assert!(primary.table.heard().is_empty());
    }

    proptest! {
        #[test]
        fn whatever_moves_is_heard_where_it_is(steps in prop::collection::vec(step(), 0..80)) {
            let mut world = World::new();
            for step in steps {
                world.step(step);
                world.check();
            }
            world.settle();
            for (at, primary) in world.primaries.iter().enumerate() {
                let wanted = world.wanted.iter().map(|n| topic(*n));
                let mut expected: BTreeSet<_> = wanted
                    .filter(|topic| world.owner(of(topic)) == at)
                    .map(|topic| (of(&topic), topic.as_str().to_owned()))
                    .collect();
                let probed = primary.table.probed().expect("each carries something");
                expected.insert((probed, own().as_str().to_owned()));
                let lingers = |one: &&(Partition, String)| !expected.contains(one);
                let more = primary.subscribed.iter().filter(lingers).count();
                prop_assert!(expected.is_subset(&primary.subscribed), "{:?} of {:?}", primary.subscribed, expected);
                prop_assert!(primary.table.is_restored() && primary.table.has_arrived());
                prop_assert!(more <= usize::from(TOPICS) + 1);
            }
            for waiting in &mut world.waiting {
                let told = waiting.try_recv();
                prop_assert!(told != Err(oneshot::error::TryRecvError::Empty), "who waits is told");
            }
            for n in std::mem::take(&mut world.wanted) {
                let now = world.now;
                world.table(n).release(&topic(n), now);
            }
            for _ in 0..4 {
                world.step(Step::Wait);
                world.settle();
            }
            for primary in &world.primaries {
                prop_assert_eq!(primary.table.interests.len(), 1, "{:?}", &primary.table.interests);
            }
        }
    }

    /// It is answered by the end of one, and a refusal of the other.
    #[test]
    fn an_unsubscribe_of_what_was_ended_and_what_was_never_heard_is_over() {
        let (mut primary, now) = (Primary::new(Partition::all()), Instant::now());
        let [heard, unheard] = [topic(0), topic(3)];
        _ = primary.table.want(&heard);
        primary.write(now);
        while !primary.asked.is_empty() {
            primary.serve(|_| true);
        }
        _ = primary.table.want(&unheard);
        primary.write(now);
        for topic in [&heard, &unheard] {
            primary.table.release(topic, now);
        }
        primary.write(now + LINGER);
        primary.ends(of(&heard));
        while !primary.asked.is_empty() {
            primary.serve(|_| false);
        }
        while !primary.said.is_empty() {
            primary.hear(now);
        }
        assert_eq!(primary.table.unanswered(), 0, "{:?}", primary.table);
    }

    /// (valkey#1066) An UNSUBSCRIBE that comes too late is answered twice.
    #[test]
    fn the_answer_too_many_is_nobodys() {
        let mut primary = Primary::new(Partition::all());
        let now = Instant::now();
        let settle = |primary: &mut Primary| {
            primary.write(now);
            for _ in 0..20 {
                primary.serve(|_| true);
                primary.hear(now);
            }
        };
        let topic = topic(0);
        _ = primary.table.want(&topic);
        settle(&mut primary);
        assert!(primary.table.is_confirmed(&topic), "control");
        primary.table.release(&topic, now);
        let after = now + LINGER;
        let asked = primary.table.step(after, 100);
        assert_eq!(asked[0].verb, Verb::Unsubscribe);
        // Another partition's command is behind it.
        let other = super::tests::topic(1);
        _ = primary.table.want(&other);
        assert_eq!(primary.table.step(after, 100)[0].verb, Verb::Subscribe);
        assert_eq!(
            primary
                .table
                .answered(Verb::Unsubscribe, topic.as_str(), after),
            Answered::InTurn,
            "the push"
        );
        assert_eq!(primary.table.misplaced(of(&topic).slot()), None);
        assert_eq!(
            primary
                .table
                .answered(Verb::Subscribe, other.as_str(), after),
            Answered::InTurn
        );
        assert!(primary.table.is_confirmed(&other));
    }
}
