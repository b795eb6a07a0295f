//! Which channels to subscribe and unsubscribe next: a table, without any I/O.
//!
//! A topic is heard exactly while somebody wants it and a little longer: unsubscribing waits for a
//! linger, so that a reconnecting client costs Redis nothing. Redis carries out the commands of one
//! connection in order and answers each, so a topic is confirmed when its last command was a
//! SUBSCRIBE and nothing sent for it is unanswered.
//!
//! A refusal is told to those who wait, and asked for again after a pause ([`Refusals`]). And an UNSUBSCRIBE that
//! answers none of ours means that Redis ended a subscription by itself: taken for an answer, it would leave the topic
//! confirmed, and deaf.
//!
//! ```text
//!          step              answered
//!   due ---------> asked ----------------> confirmed
//!    ^               | refused                 |
//!    |               v                         |
//!    +-- a pause - refused                     |
//!    +-----------------------------------------+  ended by Redis, or not wanted for a linger
//! ```
//!
//! Beside that there is the phase of all, which says whether it is worth waiting: while the first connection is made,
//! and while one works. In an outage it is not: whoever wants a topic goes on unheard, and must be confirmed before the
//! bus is up again. That somebody goes on for want of patience is such an outage too.
//!
//! ```text
//!            connected                              all that nobody waited for is confirmed
//!  Starting -----------> Up <------------------------------------------ Restoring
//!     |                  |  |   somebody lost patience, or was ended        ^  ^
//!     |                  |  +-----------------------------------------------+  |
//!     |   disconnected   v                                 connected           |
//!     +---------------> Down --------------------------------------------------+
//! ```

use std::collections::{HashMap, VecDeque};
use std::mem::{replace, take};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

pub(super) use self::answers::{Answered, Refusal};
use self::interest::Interest;
use self::moves::Moves;
use super::outstanding::Outstanding;
use super::refusals::Refusals;
use crate::bus::Confirmation;
use crate::model::topic::{Topic, TopicKind};

mod answers;
mod asking;
mod interest;
mod moves;

#[derive(Debug)]
pub(super) struct Subscriptions {
    linger: Duration,
    /// Without it the connection is of no use: wanted always, and asked for first and alone.
    own: Topic,
    interests: HashMap<Topic, Interest>,
    /// Topics to look at: what was sent may differ from what is wanted. Empty while there is no
    /// connection.
    changed: VecDeque<Topic>,
    /// Topics to look at that were wanted before this connection: they come after what changes now, so that
    /// a long restore keeps no newcomer waiting.
    restoring: VecDeque<Topic>,
    /// Topics that nobody wants any more, oldest first, with the end of their linger.
    lingering: VecDeque<(Instant, Topic)>,
    /// Topics that Redis refuses, or does not take together with others.
    refusals: Refusals,
    outstanding: Outstanding,
    /// How much had been sent when everything wanted had been sent; while restoring for the first time, then for
    /// the last.
    restored_at: Option<u64>,
    phase: Phase,
    /// In a Redis Cluster.
    moves: Option<Moves>,
    /// Since it was taken last.
    news: News,
}

/// Whom to tell that the wait is over: without the lock around the table, since a waker is foreign code.
#[derive(Debug, Default)]
#[must_use = "who waits is to be told"]
pub(super) struct News {
    confirmed: Vec<oneshot::Sender<()>>,
    /// Dropped: there is nothing to wait for.
    given_up: Vec<oneshot::Sender<()>>,
}

impl News {
    pub(super) fn tell(self) {
        for waiting in self.confirmed {
            // Fails only when the waiter gave up.
            let _ = waiting.send(());
        }
    }
}

/// How the connection stands, for those who wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The first attempt still runs: whoever wants a topic may wait for it.
    Starting,
    /// Waiting is pointless.
    Down,
    /// Something was missed, and is told as a gap when all is confirmed: nobody waits.
    Restoring,
    Up,
}

impl Subscriptions {
    /// `own` is the topic on which the probe comes back.
    pub(super) fn new(linger: Duration, own: Topic) -> Self {
        Self {
            linger,
            interests: HashMap::from([(own.clone(), Interest::wanted())]),
            own,
            changed: VecDeque::new(),
            restoring: VecDeque::new(),
            lingering: VecDeque::new(),
            refusals: Refusals::default(),
            outstanding: Outstanding::default(),
            restored_at: None,
            phase: Phase::Starting,
            moves: None,
            news: News::default(),
        }
    }

    /// Of one primary of a Redis Cluster, which carries nothing yet.
    pub(super) fn sharded(linger: Duration, own: Topic) -> Self {
        Self {
            moves: Some(Moves::new()),
            ..Self::new(linger, own)
        }
    }

    /// Whom to tell of what changed.
    pub(super) fn take_news(&mut self) -> News {
        take(&mut self.news)
    }

    /// One more reason to hear a topic.
    pub(super) fn want(&mut self, topic: &Topic) -> Confirmation {
        let connected = self.is_connected();
        let interest = self.interests.entry(topic.clone()).or_default();
        interest.reasons += 1;
        interest.linger(None);
        if interest.is_confirmed() || interest.is_refused() {
            return Confirmation::NotAwaited;
        }
        if connected && !interest.subscribed && !replace(&mut interest.queued, true) {
            self.changed.push_back(topic.clone());
        }
        if matches!(self.phase, Phase::Down | Phase::Restoring) {
            return Confirmation::NotAwaited;
        }
        let (confirm, confirmed) = oneshot::channel();
        interest.wait([confirm]);
        Confirmation::Pending(confirmed)
    }

    /// One reason less to hear a topic.
    pub(super) fn release(&mut self, topic: &Topic, now: Instant) {
        if self.moves.is_some() && !self.interests.contains_key(topic) {
            self.interests.insert(topic.clone(), Interest::default());
        }
        let Some(interest) = self.interests.get_mut(topic) else {
            return;
        };
        interest.reasons -= 1;
        if interest.reasons != 0 {
            return;
        }
        let waiting = interest.take_waiting();
        self.news.given_up.extend(waiting);
        if let Some(place) = interest.take_refused() {
            self.refusals.forget(place, now);
        }
        if interest.subscribed {
            let end = now + self.linger;
            interest.linger(Some(end));
            self.lingering.push_back((end, topic.clone()));
        }
        self.forget_if_unused(topic.as_str());
    }

    /// Topics sent on this connection that Redis has not answered yet.
    pub(super) fn unanswered(&self) -> usize {
        self.outstanding.unanswered()
    }

    /// Whether something wanted is not confirmed.
    pub(super) fn is_behind(&self) -> bool {
        self.unanswered() > 0 || !self.changed.is_empty() || self.refusals.has_groups()
    }

    /// When [`step`](Self::step) has something to do without any other event.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let linger = self.lingering.front().map(|(end, _)| *end);
        linger.into_iter().chain(self.refusals.next_at()).min()
    }

    /// A new connection: nothing is subscribed on it.
    pub(super) fn connected(&mut self) {
        self.phase = match self.phase {
            Phase::Starting => Phase::Up,
            _ => Phase::Restoring,
        };
        if let Some(moves) = &mut self.moves {
            moves.begin();
        }
        self.refusals.group(vec![self.own.clone()]);
        let mut topics = Vec::with_capacity(self.interests.len());
        for (topic, interest) in &mut self.interests {
            interest.queued = true;
            if *topic != self.own {
                topics.push(topic.clone());
            }
        }
        self.restore(topics);
    }

    /// The channels of all nodes come last: who is counted there is reached by everything else.
    fn restore(&mut self, topics: Vec<Topic>) {
        let counts = |topic: &Topic| topic.kind() == TopicKind::Nodes;
        let (last, first): (Vec<_>, Vec<_>) = topics.into_iter().partition(counts);
        self.restoring.extend(first);
        self.restoring.extend(last);
    }

    /// Somebody waited too long and goes on unheard: all is to be confirmed once more.
    pub(super) fn confirm_anew(&mut self) {
        if self.phase == Phase::Up {
            (self.phase, self.restored_at) = (Phase::Restoring, None);
        }
    }

    /// The connection is lost, or could not be made: nobody waits for it any longer.
    pub(super) fn disconnected(&mut self) {
        self.phase = Phase::Down;
        (self.outstanding, self.restored_at) = (Outstanding::default(), None);
        self.changed = VecDeque::new();
        self.restoring = VecDeque::new();
        self.lingering = VecDeque::new();
        self.refusals = Refusals::default();
        self.interests.retain(|_, interest| {
            self.news.given_up.extend(interest.take_waiting());
            *interest = interest.unheard();
            interest.reasons > 0
        });
    }

    /// Whether everything for which nobody waited is confirmed, but for what is refused: since an outage, or since a
    /// [`confirm_anew`](Self::confirm_anew).
    pub(super) fn is_restored(&self) -> bool {
        self.phase == Phase::Up
            && self
                .restored_at
                .is_some_and(|sent| self.outstanding.answered_through() >= sent)
    }

    /// Whether somebody goes on unheard because Redis refuses a topic, or did until a moment ago.
    pub(super) fn has_refused(&self, now: Instant) -> bool {
        self.refusals.stand(now)
    }

    /// Whether Redis refuses this topic, and somebody wants it.
    pub(super) fn is_refused(&self, topic: &Topic) -> bool {
        let interest = self.interests.get(topic);
        interest.is_some_and(Interest::is_refused)
    }

    pub(super) fn is_confirmed(&self, topic: &Topic) -> bool {
        self.interests
            .get(topic)
            .is_some_and(Interest::is_confirmed)
    }

    fn is_connected(&self) -> bool {
        matches!(self.phase, Phase::Restoring | Phase::Up)
    }

    fn forget_if_unused(&mut self, topic: &str) {
        if self.interests.get(topic).is_some_and(Interest::is_unused) {
            self.interests.remove(topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::bus::redis::outstanding::{TopicRequest, Verb};

    const LINGER: Duration = Duration::from_secs(2);

    fn topic(n: u8) -> Topic {
        Topic::room(&n.to_string()).unwrap()
    }

    fn own() -> Topic {
        Topic::room("own").unwrap()
    }

    /// What is asked for, beside the own topic.
    fn subscribed(commands: &[TopicRequest]) -> Vec<Topic> {
        let subscribe = commands
            .iter()
            .filter(|command| command.verb == Verb::Subscribe);
        let topics = subscribe.flat_map(|command| command.topics.clone());
        topics.filter(|topic| *topic != own()).collect()
    }

    /// The first command is answered.
    fn greet(table: &mut Subscriptions, now: Instant) {
        table.connected();
        let commands = table.step(now, 1);
        assert_eq!(commands.len(), 1);
        assert_eq!(commands[0].topics, [own()], "first, and alone");
        answer(table, &own(), now);
    }

    fn answer(table: &mut Subscriptions, topic: &Topic, now: Instant) -> bool {
        table.answered(Verb::Subscribe, topic.as_str(), now) == Answered::InTurn
    }

    /// One event of a history; numbers choose topics.
    #[derive(Clone, Debug)]
    enum Event {
        Want(u8),
        Release(u8),
        /// Half a linger passes.
        Wait,
        /// The task writes its next commands.
        Write,
        /// Redis carries out the oldest command.
        Serve,
        /// Its oldest answer arrives.
        Answer,
        Disconnect,
        Connect,
        /// The oldest waiter has no more patience.
        Impatience,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0u8..3).prop_map(Event::Want),
            4 => (0u8..3).prop_map(Event::Release),
            2 => Just(Event::Wait),
            4 => Just(Event::Write),
            4 => Just(Event::Serve),
            4 => Just(Event::Answer),
            1 => Just(Event::Disconnect),
            2 => Just(Event::Connect),
            1 => Just(Event::Impatience),
        ]
    }

    /// A Redis with one connection whose both directions are queues.
    struct World {
        table: Subscriptions,
        now: Instant,
        connected: bool,
        commands: VecDeque<(Verb, Topic)>,
        answers: VecDeque<(Verb, Topic)>,
        subscribed: HashSet<Topic>,
        wanted: Vec<u8>,
        waiting: Vec<(u8, oneshot::Receiver<()>)>,
        /// Who is admitted without a confirmation.
        unheard: Vec<u8>,
    }

    impl World {
        fn new() -> Self {
            Self {
                table: Subscriptions::new(LINGER, own()),
                now: Instant::now(),
                connected: false,
                commands: VecDeque::new(),
                answers: VecDeque::new(),
                subscribed: HashSet::new(),
                wanted: Vec::new(),
                waiting: Vec::new(),
                unheard: Vec::new(),
            }
        }

        fn apply(&mut self, event: Event) {
            match event {
                Event::Want(n) => {
                    self.wanted.push(n);
                    match self.table.want(&topic(n)) {
                        Confirmation::NotAwaited => self.unheard.push(n),
                        Confirmation::Pending(confirmed) => self.waiting.push((n, confirmed)),
                    }
                }
                Event::Release(n) => {
                    if let Some(at) = self.wanted.iter().position(|wanted| *wanted == n) {
                        self.wanted.swap_remove(at);
                        self.table.release(&topic(n), self.now);
                        self.unheard.retain(|unheard| self.wanted.contains(unheard));
                    }
                }
                Event::Wait => self.now += LINGER / 2,
                Event::Write if self.connected => {
                    for command in self.table.step(self.now, 2) {
                        let verb = command.verb;
                        let sent = command.topics.into_iter().map(|topic| (verb, topic));
                        self.commands.extend(sent);
                    }
                }
                Event::Serve => {
                    if let Some((verb, topic)) = self.commands.pop_front() {
                        match verb {
                            Verb::Subscribe => self.subscribed.insert(topic.clone()),
                            Verb::Unsubscribe => self.subscribed.remove(&topic),
                        };
                        self.answers.push_back((verb, topic));
                    }
                }
                Event::Answer => {
                    if let Some((verb, topic)) = self.answers.pop_front() {
                        let answer = self.table.answered(verb, topic.as_str(), self.now);
                        assert_eq!(answer, Answered::InTurn);
                    }
                }
                Event::Disconnect => {
                    self.connected = false;
                    self.commands.clear();
                    self.answers.clear();
                    self.subscribed.clear();
                    self.table.disconnected();
                }
                Event::Connect if !self.connected => {
                    self.connected = true;
                    self.table.connected();
                }
                Event::Impatience if !self.waiting.is_empty() => {
                    let (n, mut confirmed) = self.waiting.remove(0);
                    if confirmed.try_recv().is_err() && self.wanted.contains(&n) {
                        self.table.confirm_anew();
                        self.unheard.push(n);
                    }
                }
                Event::Write | Event::Connect | Event::Impatience => {}
            }
            self.table.take_news().tell();
        }

        fn check(&mut self) {
            for n in 0..3 {
                let in_flight = self.commands.iter().any(|(_, t)| *t == topic(n));
                if self.table.is_confirmed(&topic(n)) {
                    assert!(
                        self.subscribed.contains(&topic(n)) && !in_flight,
                        "confirmed but deaf"
                    );
                }
            }
            let (table, wanted, connected) = (&self.table, &self.wanted, self.connected);
            if table.is_restored() {
                for n in self.unheard.drain(..) {
                    assert!(self.subscribed.contains(&topic(n)), "restored but deaf");
                }
            }
            let unheard = &mut self.unheard;
            self.waiting
                .retain_mut(|(n, confirmed)| match confirmed.try_recv() {
                    Ok(()) => {
                        assert!(
                            table.is_confirmed(&topic(*n)),
                            "told to be heard, but is not"
                        );
                        false
                    }
                    // Told to stop waiting: only without a connection, or when nobody wants it.
                    Err(oneshot::error::TryRecvError::Closed) => {
                        assert!(!connected || !wanted.contains(n), "left without an answer");
                        if wanted.contains(n) {
                            unheard.push(*n);
                        }
                        false
                    }
                    Err(oneshot::error::TryRecvError::Empty) => true,
                });
        }

        /// Lets everything happen that is under way.
        fn settle(&mut self) {
            self.apply(Event::Connect);
            for _ in 0..40 {
                for event in [Event::Write, Event::Serve, Event::Answer] {
                    self.apply(event);
                    self.check();
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn no_interleaving_leaves_a_wanted_topic_deaf(events in proptest::collection::vec(event(), 0..120)) {
            let mut world = World::new();
            for event in events {
                world.apply(event);
                world.check();
            }
            world.settle();
            prop_assert!(world.table.is_restored());
            prop_assert!(world.waiting.is_empty(), "a waiter was forgotten");
            for n in &world.wanted {
                prop_assert!(world.table.is_confirmed(&topic(*n)));
            }

            world.now += LINGER;
            world.settle();
            let wanted = world.wanted.iter().copied().map(topic);
            let wanted: HashSet<Topic> = wanted.chain([own()]).collect();
            prop_assert_eq!(&world.subscribed, &wanted);
            prop_assert_eq!(world.table.interests.len(), wanted.len());

            for n in world.wanted.clone() {
                world.apply(Event::Release(n));
            }
            world.now += LINGER;
            world.settle();
            prop_assert_eq!(&world.subscribed, &HashSet::from([own()]));
            prop_assert_eq!(world.table.interests.len(), 1, "a leak");
            prop_assert!(world.table.changed.is_empty() && world.table.restoring.is_empty());
            prop_assert!(world.table.lingering.is_empty());
        }
    }

    fn connected() -> (Subscriptions, Instant) {
        let mut table = Subscriptions::new(LINGER, own());
        let now = Instant::now();
        greet(&mut table, now);
        (table, now)
    }

    #[test]
    fn a_reconnect_within_the_linger_costs_nothing() {
        let (mut table, now) = connected();
        let _ = table.want(&topic(1));
        assert_eq!(subscribed(&table.step(now, 10)), [topic(1)]);
        answer(&mut table, &topic(1), now);
        table.release(&topic(1), now);
        assert_eq!(table.step(now + LINGER / 2, 10), []);
        assert!(matches!(table.want(&topic(1)), Confirmation::NotAwaited));
        assert_eq!(table.step(now + LINGER * 2, 10), []);
        assert_eq!(table.next_expiry(), None);
    }

    #[test]
    fn who_may_not_write_is_woken_by_the_end_of_a_linger_once() {
        let (mut table, now) = connected();
        let _ = table.want(&topic(1));
        table.step(now, 10);
        answer(&mut table, &topic(1), now);
        table.release(&topic(1), now);
        let end = now + LINGER;
        assert_eq!(table.next_expiry(), Some(end));
        assert_eq!(table.step(end, 0), []);
        assert_eq!(table.next_expiry(), None);
        let (verb, topics) = (Verb::Unsubscribe, vec![topic(1)]);
        let expected = TopicRequest {
            verb,
            topics,
            partition: None,
        };
        assert_eq!(table.step(end, 10), [expected]);
    }

    #[test]
    fn everything_is_restored_in_bounded_steps() {
        let (mut table, now) = connected();
        for n in 0..250 {
            let _ = table.want(&topic(n));
        }
        table.disconnected();
        assert_eq!(
            table.step(now, 100),
            [],
            "nothing to write without a connection"
        );
        greet(&mut table, now);
        let sizes: Vec<usize> = (0..4)
            .map(|_| subscribed(&table.step(now, 100)).len())
            .collect();
        assert_eq!(sizes, [100, 100, 50, 0]);
    }

    #[test]
    fn who_is_counted_as_a_node_is_reached_by_everything() {
        let (mut table, now) = connected();
        let nodes = Topic::nodes_by_partition()[..2].to_vec();
        for topic in &nodes {
            let _ = table.want(topic);
        }
        for n in 0..250 {
            let _ = table.want(&topic(n));
        }
        table.disconnected();
        greet(&mut table, now);
        assert_eq!(subscribed(&table.step(now, 200)).len(), 200);
        let _ = table.want(&topic(251));
        let mut subscribe = subscribed(&table.step(now, 200));
        assert_eq!(subscribe.len(), 53);
        let last = subscribe.split_off(51);
        assert!(nodes.iter().all(|topic| last.contains(topic)), "{last:?}");
    }

    #[test]
    fn who_comes_during_a_restore_is_served_first() {
        let (mut table, now) = connected();
        for n in 0..250 {
            let _ = table.want(&topic(n));
        }
        table.disconnected();
        greet(&mut table, now);
        assert_eq!(subscribed(&table.step(now, 100)).len(), 100);
        for n in [251, 252] {
            assert!(matches!(table.want(&topic(n)), Confirmation::NotAwaited));
        }
        let step = subscribed(&table.step(now, 100));
        assert_eq!(step[..2], [topic(251), topic(252)]);
        assert_eq!(step.len(), 100, "the restore goes on");
        table.step(now, 100);
        assert!(matches!(table.want(&topic(253)), Confirmation::NotAwaited));
        for n in 0..253 {
            answer(&mut table, &topic(n), now);
        }
        assert!(!table.is_restored(), "one more was let in");
        assert_eq!(subscribed(&table.step(now, 100)), [topic(253)]);
        assert!(
            matches!(table.want(&topic(254)), Confirmation::Pending(_)),
            "who comes now would be heard after the end"
        );
        answer(&mut table, &topic(253), now);
        assert!(table.is_restored());
    }

    #[test]
    fn who_goes_on_unheard_is_confirmed_before_all_is_well_again() {
        let (mut table, now) = connected();
        table.step(now, 10);
        assert!(table.is_restored());
        let _ = table.want(&topic(1));
        assert!(table.is_restored(), "whoever waits is no reason");
        table.confirm_anew();
        assert!(!table.is_restored());
        assert!(matches!(table.want(&topic(2)), Confirmation::NotAwaited));
        assert_eq!(subscribed(&table.step(now, 10)), [topic(1), topic(2)]);
        for n in [1, 2] {
            table.step(now, 10);
            assert!(!table.is_restored());
            answer(&mut table, &topic(n), now);
        }
        table.step(now, 10);
        assert!(table.is_restored());
        assert!(matches!(table.want(&topic(3)), Confirmation::Pending(_)));
    }

    #[test]
    fn nobody_waits_for_a_connection_that_is_down() {
        let mut table = Subscriptions::new(LINGER, own());
        let Confirmation::Pending(mut first) = table.want(&topic(1)) else {
            panic!("starting")
        };
        table.disconnected();
        table.take_news().tell();
        assert!(
            first
                .try_recv()
                .is_err_and(|e| e == oneshot::error::TryRecvError::Closed)
        );
        assert!(matches!(table.want(&topic(2)), Confirmation::NotAwaited));
    }

    #[test]
    fn churn_during_an_outage_leaves_nothing() {
        let mut table = Subscriptions::new(LINGER, own());
        table.disconnected();
        for n in 0..100 {
            let _ = table.want(&topic(n));
            table.release(&topic(n), Instant::now());
        }
        assert_eq!(table.interests.len(), 1);
        assert!(table.changed.is_empty() && table.lingering.is_empty());
    }

    /// Else whoever comes later would renew the patience with what was lost.
    #[test]
    fn an_answer_out_of_turn_is_no_progress() {
        let (mut table, now) = connected();
        for n in 1..=3 {
            table.want(&topic(n));
        }
        assert_eq!(subscribed(&table.step(now, 10)), [1, 2, 3].map(topic));
        assert!(answer(&mut table, &topic(1), now));
        assert!(!answer(&mut table, &topic(3), now), "that of 2 was lost");
        assert!(table.is_confirmed(&topic(3)), "it is heard all the same");
        table.confirm_anew();
        table.step(now, 10);
        for later in [4, 5] {
            table.want(&topic(later));
            table.step(now, 10);
            assert!(!answer(&mut table, &topic(later), now), "still");
            table.step(now, 10);
            assert!(!table.is_restored(), "2 is not confirmed");
        }
        assert!(answer(&mut table, &topic(2), now));
        table.step(now, 10);
        assert!(table.is_restored());
    }

    /// Waits for these topics, which are asked for in one command.
    fn asked(table: &mut Subscriptions, now: Instant, topics: u8) -> Vec<oneshot::Receiver<()>> {
        let want = |n| match table.want(&topic(n)) {
            Confirmation::Pending(confirmed) => confirmed,
            Confirmation::NotAwaited => panic!("{n} is not heard yet"),
        };
        let waiting = (0..topics).map(want).collect();
        let expected: Vec<Topic> = (0..topics).map(topic).collect();
        assert_eq!(subscribed(&table.step(now, 100)), expected);
        waiting
    }

    fn is_told(waiting: &mut oneshot::Receiver<()>) -> Option<bool> {
        match waiting.try_recv() {
            Ok(()) => Some(true),
            Err(oneshot::error::TryRecvError::Closed) => Some(false),
            Err(oneshot::error::TryRecvError::Empty) => None,
        }
    }

    #[test]
    fn a_refused_topic_costs_those_beside_it_nothing_but_a_moment() {
        let (mut table, now) = connected();
        let mut waiting = asked(&mut table, now, 5);
        let mut refused = Vec::new();
        // Redis refuses whatever 3 is in.
        table.refused(now);
        assert!(waiting.iter_mut().all(|one| is_told(one).is_none()));
        for _ in 0..5 {
            for command in table.step(now, 100) {
                if command.topics.contains(&topic(3)) {
                    refused.push(table.refused(now));
                } else {
                    for topic in &command.topics {
                        assert!(answer(&mut table, topic, now));
                    }
                }
            }
        }
        table.take_news().tell();
        let told: Vec<_> = waiting.iter_mut().map(is_told).collect();
        assert_eq!(told, [true, true, true, false, true].map(Some));
        assert_eq!(refused.last(), Some(&Refusal::Topic(topic(3))));
        assert!(table.is_restored() && table.has_refused(now));
        assert!(
            matches!(table.want(&topic(3)), Confirmation::NotAwaited),
            "nobody waits for it"
        );
        assert_eq!(table.step(now, 100), [], "it is left alone for a while");

        let again = table.next_expiry().unwrap();
        assert_eq!(subscribed(&table.step(again, 100)), [topic(3)]);
        assert!(table.has_refused(again), "not yet");
        answer(&mut table, &topic(3), again);
        assert!(!table.has_refused(again) && table.is_restored());
        assert!(table.is_confirmed(&topic(3)));
        assert_eq!(table.next_expiry(), None);
    }

    #[test]
    fn whoever_leaves_is_refused_nothing() {
        let (mut table, now) = connected();
        asked(&mut table, now, 1);
        assert_eq!(table.refused(now), Refusal::Topic(topic(0)));
        table.release(&topic(0), now);
        let over = table.next_expiry().unwrap();
        assert!(table.has_refused(now) && !table.has_refused(over));
        table.step(over, 100);
        assert_eq!(table.next_expiry(), None);
        asked(&mut table, now, 1);
        table.release(&topic(0), now);
        assert_eq!(table.refused(now), Refusal::Undecided, "nobody is there");
        table.step(now + LINGER, 100);
        assert_eq!(table.interests.len(), 1, "a leak");
    }

    #[test]
    fn what_the_connection_cannot_do_without_is_told_from_a_topic() {
        let mut table = Subscriptions::new(LINGER, own());
        let now = Instant::now();
        table.want(&topic(1));
        table.connected();
        assert_eq!(table.step(now, 100).len(), 2);
        assert_eq!(table.refused(now), Refusal::Vital, "it comes first");

        let (mut table, now) = connected();
        assert_eq!(table.refused(now), Refusal::Vital, "nothing was asked");
        asked(&mut table, now, 1);
        answer(&mut table, &topic(0), now);
        table.release(&topic(0), now);
        assert_eq!(table.step(now + LINGER, 100).len(), 1);
        assert_eq!(
            table.refused(now),
            Refusal::Vital,
            "it would be heard for ever"
        );
    }

    /// While all is restored: nobody waits for those beside the refused.
    #[test]
    fn nobody_is_forgotten_who_is_refused_among_others() {
        let (mut table, now) = connected();
        for n in 0..3 {
            table.want(&topic(n));
        }
        table.disconnected();
        greet(&mut table, now);
        assert_eq!(subscribed(&table.step(now, 100)).len(), 3);
        table.refused(now);
        assert!(!table.is_restored());
        let commands = table.step(now, 100);
        assert_eq!(commands.len(), 2, "in halves");
        answer(&mut table, &commands[0].topics[0], now);
        table.step(now, 100);
        assert!(!table.is_restored(), "two are not heard");
        for topic in &commands[1].topics {
            answer(&mut table, topic, now);
        }
        table.step(now, 100);
        assert!(table.is_restored() && !table.has_refused(now));
    }

    /// An error behind half an answer is not for the rest of it.
    #[test]
    fn a_refusal_belongs_to_a_command_of_which_nothing_is_answered() {
        let (mut table, now) = connected();
        let mut waiting = asked(&mut table, now, 2);
        answer(&mut table, &topic(0), now);
        table.want(&topic(7));
        assert_eq!(subscribed(&table.step(now, 100)), [topic(7)]);
        assert_eq!(table.refused(now), Refusal::Topic(topic(7)));
        table.take_news().tell();
        let told: Vec<_> = waiting.iter_mut().map(is_told).collect();
        assert_eq!(told, [Some(true), None]);
    }

    #[test]
    fn a_subscription_that_redis_ends_is_never_deaf_and_confirmed() {
        let (mut table, now) = connected();
        asked(&mut table, now, 2);
        let ended = |table: &mut Subscriptions, n| {
            table.answered(Verb::Unsubscribe, topic(n).as_str(), now)
        };
        assert_eq!(
            ended(&mut table, 0),
            Answered::Stray,
            "its answer will tell"
        );
        answer(&mut table, &topic(0), now);
        answer(&mut table, &topic(1), now);
        assert!(table.is_restored(), "control");

        assert_eq!(ended(&mut table, 0), Answered::Ended);
        assert!(!table.is_confirmed(&topic(0)) && table.is_confirmed(&topic(1)));
        assert!(!table.is_restored(), "somebody goes on unheard");
        assert_eq!(ended(&mut table, 0), Answered::Stray, "once");
        assert_eq!(subscribed(&table.step(now, 100)), [topic(0)]);
        answer(&mut table, &topic(0), now);
        table.step(now, 100);
        assert!(table.is_restored() && table.is_confirmed(&topic(0)));

        table.release(&topic(1), now);
        assert_eq!(ended(&mut table, 1), Answered::Stray, "nobody wants it");
        assert!(table.is_restored());
        assert_eq!(
            table.answered(Verb::Unsubscribe, "r:foreign", now),
            Answered::Stray
        );
    }

    /// The answer to the UNSUBSCRIBE is lost; taken for it, what follows would leave the topic deaf.
    #[test]
    fn what_was_lost_is_not_answered_by_what_comes_unasked() {
        let (mut table, now) = connected();
        asked(&mut table, now, 1);
        answer(&mut table, &topic(0), now);
        table.release(&topic(0), now);
        assert_eq!(table.step(now + LINGER, 100).len(), 1);
        table.want(&topic(0));
        assert_eq!(subscribed(&table.step(now, 100)), [topic(0)]);
        assert!(!answer(&mut table, &topic(0), now), "one was lost before");
        assert!(
            table.is_confirmed(&topic(0)),
            "what was sent last is answered"
        );
        assert_eq!(table.unanswered(), 0);
        let ended = table.answered(Verb::Unsubscribe, topic(0).as_str(), now);
        assert_eq!(ended, Answered::Ended);
        assert!(!table.is_confirmed(&topic(0)));
    }
}
