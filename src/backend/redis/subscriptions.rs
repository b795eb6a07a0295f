//! Which channels to subscribe and unsubscribe next: a table, without any I/O.
//!
//! A topic is heard exactly while somebody wants it and a little longer: unsubscribing waits for a
//! linger, so that a reconnecting client costs Redis nothing. Redis carries out the commands of one
//! connection in order and answers each, so a topic is confirmed when its last command was a
//! SUBSCRIBE and nothing sent for it is unanswered.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::backend::Confirmation;
use crate::topic::Topic;

#[derive(Debug)]
pub(crate) struct Subscriptions {
    linger: Duration,
    entries: HashMap<Topic, Entry>,
    /// Topics to look at: what was sent may differ from what is wanted. Empty while there is no
    /// connection.
    changed: VecDeque<Topic>,
    /// The same for what was wanted before this connection: it comes after what changes now, so that
    /// a long restore keeps no newcomer waiting.
    restoring: VecDeque<Topic>,
    /// Topics that nobody wants any more, oldest first, with the end of their linger.
    lingering: VecDeque<(Instant, Topic)>,
    /// Whose commands are unanswered, in the order in which they were sent, and how many were sent before.
    owed: VecDeque<(u64, Topic)>,
    /// Topics sent on this connection.
    sent: u64,
    /// What `sent` was when everything wanted had been sent; while restoring for the first time, then for
    /// the last.
    restored_at: Option<u64>,
    link: Link,
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

/// What is known of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    /// The first attempt still runs: whoever wants a topic may wait for it.
    Starting,
    /// Waiting is pointless.
    Down,
    /// Something was missed, and is told as a gap when all is confirmed: nobody waits.
    Restoring,
    Up,
}

#[derive(Debug, Default)]
struct Entry {
    reasons: usize,
    /// Until when it stays subscribed although nobody wants it.
    linger_until: Option<Instant>,
    /// Whether it is in `changed` or in `restoring`.
    queued: bool,
    /// Whether the last command sent was a SUBSCRIBE.
    subscribed: bool,
    /// How many commands are unanswered.
    unanswered: usize,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Entry {
    fn is_wanted(&self, now: Instant) -> bool {
        self.reasons > 0 || self.subscribed && self.linger_until.is_some_and(|end| now < end)
    }

    fn is_confirmed(&self) -> bool {
        self.subscribed && self.unanswered == 0
    }

    fn is_unused(&self) -> bool {
        self.reasons == 0 && !self.subscribed && self.unanswered == 0 && !self.queued
    }
}

/// What to write now.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Step {
    pub(crate) subscribe: Vec<Topic>,
    pub(crate) unsubscribe: Vec<Topic>,
}

impl Subscriptions {
    pub(crate) fn new(linger: Duration) -> Self {
        Self {
            linger,
            entries: HashMap::new(),
            changed: VecDeque::new(),
            restoring: VecDeque::new(),
            lingering: VecDeque::new(),
            owed: VecDeque::new(),
            sent: 0,
            restored_at: None,
            link: Link::Starting,
            news: News::default(),
        }
    }

    /// Whom to tell of what changed.
    pub(super) fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    /// One more reason to hear a topic.
    pub(crate) fn want(&mut self, topic: &Topic) -> Confirmation {
        let entry = self.entries.entry(topic.clone()).or_default();
        entry.reasons += 1;
        if entry.is_confirmed() {
            return Confirmation::Ready;
        }
        let connected = matches!(self.link, Link::Restoring | Link::Up);
        if connected && !entry.subscribed && !entry.queued {
            entry.queued = true;
            self.changed.push_back(topic.clone());
        }
        if matches!(self.link, Link::Down | Link::Restoring) {
            return Confirmation::Ready;
        }
        let (confirm, confirmed) = oneshot::channel();
        entry.waiting.push(confirm);
        Confirmation::Pending(confirmed)
    }

    /// One reason less.
    pub(crate) fn release(&mut self, topic: &Topic, now: Instant) {
        let Some(entry) = self.entries.get_mut(topic) else {
            return;
        };
        entry.reasons -= 1;
        if entry.reasons > 0 {
            return;
        }
        let waiting = std::mem::take(&mut entry.waiting);
        self.news.given_up.extend(waiting);
        if entry.subscribed {
            let end = now + self.linger;
            entry.linger_until = Some(end);
            self.lingering.push_back((end, topic.clone()));
        }
        self.forget_if_unused(topic.as_str());
    }

    /// What to write now, at most `limit` topics; empty when there is nothing to do.
    pub(crate) fn step(&mut self, now: Instant, limit: usize) -> Step {
        while self.next_expiry().is_some_and(|end| end <= now) {
            let Some((_, topic)) = self.lingering.pop_front() else {
                break;
            };
            let Some(entry) = self.entries.get_mut(&topic) else {
                continue;
            };
            if !entry.is_wanted(now) && !entry.queued {
                entry.queued = true;
                self.changed.push_back(topic);
            }
        }
        let mut step = Step::default();
        while step.subscribe.len() + step.unsubscribe.len() < limit {
            let next = self.changed.pop_front();
            let Some(topic) = next.or_else(|| self.restoring.pop_front()) else {
                break;
            };
            let Some(entry) = self.entries.get_mut(&topic) else {
                continue;
            };
            entry.queued = false;
            let wanted = entry.is_wanted(now);
            if wanted == entry.subscribed {
                self.forget_if_unused(topic.as_str());
                continue;
            }
            entry.subscribed = wanted;
            entry.unanswered += 1;
            self.owed.push_back((self.sent, topic.clone()));
            self.sent += 1;
            let list = if wanted {
                &mut step.subscribe
            } else {
                &mut step.unsubscribe
            };
            list.push(topic);
        }
        let connected = matches!(self.link, Link::Restoring | Link::Up);
        if connected && self.changed.is_empty() && self.restoring.is_empty() {
            self.mark_restored();
        }
        step
    }

    /// Everything wanted is sent. Nobody waits behind a long restore: only when that is answered, and for
    /// no longer than it takes to confirm those who came meanwhile.
    fn mark_restored(&mut self) {
        let sent = *self.restored_at.get_or_insert(self.sent);
        if self.link == Link::Restoring && self.are_answered(sent) {
            (self.link, self.restored_at) = (Link::Up, Some(self.sent));
        }
    }

    /// Topics sent on this connection that Redis has not answered yet.
    pub(crate) fn unanswered(&self) -> usize {
        self.owed.len()
    }

    /// Whether so many, those sent first, are answered. Not counted: when an answer was lost, a later one must not
    /// stand for it.
    fn are_answered(&self, sent: u64) -> bool {
        self.owed.front().is_none_or(|(before, _)| *before >= sent)
    }

    /// When [`step`](Self::step) has something to do without any other event.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.lingering.front().map(|(end, _)| *end)
    }

    /// Redis answered a SUBSCRIBE or an UNSUBSCRIBE of this topic; whether that was its turn. If not, an
    /// answer was lost.
    pub(crate) fn answered(&mut self, topic: &str) -> bool {
        let Some(entry) = self.entries.get_mut(topic) else {
            return false;
        };
        if entry.unanswered == 0 {
            return false;
        }
        let turn = self.owed.iter();
        let turn = turn
            .map(|(_, owed)| owed.as_str())
            .position(|owed| owed == topic);
        if let Some(turn) = turn {
            self.owed.remove(turn);
        }
        entry.unanswered -= 1;
        if entry.is_confirmed() {
            let waiting = std::mem::take(&mut entry.waiting);
            self.news.confirmed.extend(waiting);
        }
        self.forget_if_unused(topic);
        turn == Some(0)
    }

    /// A new connection: nothing is subscribed on it. The channel of all nodes comes last: who is counted there is
    /// reached by everything else.
    pub(crate) fn connected(&mut self) {
        self.link = match self.link {
            Link::Starting => Link::Up,
            _ => Link::Restoring,
        };
        for (topic, entry) in &mut self.entries {
            entry.queued = true;
            self.restoring.push_back(topic.clone());
        }
        let nodes = Topic::nodes();
        if let Some(at) = self.restoring.iter().position(|topic| *topic == nodes) {
            self.restoring.swap(at, self.restoring.len() - 1);
        }
    }

    /// Somebody waited too long and goes on unheard: all is to be confirmed once more.
    pub(crate) fn doubt(&mut self) {
        if self.link == Link::Up {
            (self.link, self.restored_at) = (Link::Restoring, None);
        }
    }

    /// The connection is lost, or could not be made: nobody waits for it any longer.
    pub(crate) fn disconnected(&mut self) {
        self.link = Link::Down;
        (self.sent, self.restored_at) = (0, None);
        self.owed = VecDeque::new();
        self.changed = VecDeque::new();
        self.restoring = VecDeque::new();
        self.lingering = VecDeque::new();
        self.entries.retain(|_, entry| {
            self.news.given_up.append(&mut entry.waiting);
            *entry = Entry {
                reasons: entry.reasons,
                ..Entry::default()
            };
            entry.reasons > 0
        });
    }

    /// Whether everything for which nobody waited is confirmed: since an outage, or since a
    /// [`doubt`](Self::doubt).
    pub(crate) fn is_restored(&self) -> bool {
        self.link == Link::Up && self.restored_at.is_some_and(|sent| self.are_answered(sent))
    }

    pub(crate) fn is_confirmed(&self, topic: &Topic) -> bool {
        self.entries.get(topic).is_some_and(Entry::is_confirmed)
    }

    fn forget_if_unused(&mut self, topic: &str) {
        if self.entries.get(topic).is_some_and(Entry::is_unused) {
            self.entries.remove(topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const LINGER: Duration = Duration::from_secs(2);

    fn topic(n: u8) -> Topic {
        Topic::room(&n.to_string()).unwrap()
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
        commands: VecDeque<(bool, Topic)>,
        answers: VecDeque<Topic>,
        subscribed: HashSet<Topic>,
        wanted: Vec<u8>,
        waiting: Vec<(u8, oneshot::Receiver<()>)>,
        /// Who is admitted without a confirmation.
        unheard: Vec<u8>,
    }

    impl World {
        fn new() -> Self {
            Self {
                table: Subscriptions::new(LINGER),
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
                        Confirmation::Ready => self.unheard.push(n),
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
                    let step = self.table.step(self.now, 2);
                    self.commands
                        .extend(step.subscribe.into_iter().map(|topic| (true, topic)));
                    self.commands
                        .extend(step.unsubscribe.into_iter().map(|topic| (false, topic)));
                }
                Event::Serve => {
                    if let Some((subscribe, topic)) = self.commands.pop_front() {
                        if subscribe {
                            self.subscribed.insert(topic.clone());
                        } else {
                            self.subscribed.remove(&topic);
                        }
                        self.answers.push_back(topic);
                    }
                }
                Event::Answer => {
                    if let Some(topic) = self.answers.pop_front() {
                        self.table.answered(topic.as_str());
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
                        self.table.doubt();
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
            let wanted: HashSet<Topic> = world.wanted.iter().copied().map(topic).collect();
            prop_assert_eq!(&world.subscribed, &wanted);
            prop_assert_eq!(world.table.entries.len(), wanted.len());

            for n in world.wanted.clone() {
                world.apply(Event::Release(n));
            }
            world.now += LINGER;
            world.settle();
            prop_assert!(world.subscribed.is_empty() && world.table.entries.is_empty(), "a leak");
            prop_assert!(world.table.changed.is_empty() && world.table.restoring.is_empty());
            prop_assert!(world.table.lingering.is_empty());
        }
    }

    fn connected() -> (Subscriptions, Instant) {
        let mut table = Subscriptions::new(LINGER);
        table.connected();
        (table, Instant::now())
    }

    #[test]
    fn a_reconnect_within_the_linger_costs_nothing() {
        let (mut table, now) = connected();
        let _ = table.want(&topic(1));
        assert_eq!(table.step(now, 10).subscribe, [topic(1)]);
        table.answered(topic(1).as_str());
        table.release(&topic(1), now);
        assert_eq!(table.step(now + LINGER / 2, 10), Step::default());
        assert!(matches!(table.want(&topic(1)), Confirmation::Ready));
        assert_eq!(table.step(now + LINGER * 2, 10), Step::default());
        assert_eq!(table.next_expiry(), None);
    }

    #[test]
    fn who_may_not_write_is_woken_by_the_end_of_a_linger_once() {
        let (mut table, now) = connected();
        let _ = table.want(&topic(1));
        table.step(now, 10);
        table.answered(topic(1).as_str());
        table.release(&topic(1), now);
        let end = now + LINGER;
        assert_eq!(table.next_expiry(), Some(end));
        assert_eq!(table.step(end, 0), Step::default());
        assert_eq!(table.next_expiry(), None);
        assert_eq!(table.step(end, 10).unsubscribe, [topic(1)]);
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
            Step::default(),
            "nothing to write without a connection"
        );
        table.connected();
        let sizes: Vec<usize> = (0..4)
            .map(|_| table.step(now, 100).subscribe.len())
            .collect();
        assert_eq!(sizes, [100, 100, 50, 0]);
    }

    #[test]
    fn who_is_counted_as_a_node_is_reached_by_everything() {
        let (mut table, now) = connected();
        let _ = table.want(&Topic::nodes());
        for n in 0..250 {
            let _ = table.want(&topic(n));
        }
        table.disconnected();
        table.connected();
        assert_eq!(table.step(now, 200).subscribe.len(), 200);
        let _ = table.want(&topic(251));
        let subscribe = table.step(now, 200).subscribe;
        assert_eq!(
            (subscribe.len(), subscribe.last()),
            (52, Some(&Topic::nodes()))
        );
    }

    #[test]
    fn who_comes_during_a_restore_is_served_first() {
        let (mut table, now) = connected();
        for n in 0..250 {
            let _ = table.want(&topic(n));
        }
        table.disconnected();
        table.connected();
        assert_eq!(table.step(now, 100).subscribe.len(), 100);
        for n in [251, 252] {
            assert!(matches!(table.want(&topic(n)), Confirmation::Ready));
        }
        let step = table.step(now, 100);
        assert_eq!(step.subscribe[..2], [topic(251), topic(252)]);
        assert_eq!(step.subscribe.len(), 100, "the restore goes on");
        table.step(now, 100);
        assert!(matches!(table.want(&topic(253)), Confirmation::Ready));
        for n in 0..253 {
            table.answered(topic(n).as_str());
        }
        assert!(!table.is_restored(), "one more was let in");
        assert_eq!(table.step(now, 100).subscribe, [topic(253)]);
        assert!(
            matches!(table.want(&topic(254)), Confirmation::Pending(_)),
            "who comes now would be heard after the end"
        );
        table.answered(topic(253).as_str());
        assert!(table.is_restored());
    }

    #[test]
    fn who_goes_on_unheard_is_confirmed_before_all_is_well_again() {
        let (mut table, now) = connected();
        table.step(now, 10);
        assert!(table.is_restored());
        let _ = table.want(&topic(1));
        assert!(table.is_restored(), "whoever waits is no reason");
        table.doubt();
        assert!(!table.is_restored());
        assert!(matches!(table.want(&topic(2)), Confirmation::Ready));
        assert_eq!(table.step(now, 10).subscribe, [topic(1), topic(2)]);
        for n in [1, 2] {
            table.step(now, 10);
            assert!(!table.is_restored());
            table.answered(topic(n).as_str());
        }
        table.step(now, 10);
        assert!(table.is_restored());
        assert!(matches!(table.want(&topic(3)), Confirmation::Pending(_)));
    }

    #[test]
    fn nobody_waits_for_a_connection_that_is_down() {
        let mut table = Subscriptions::new(LINGER);
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
        assert!(matches!(table.want(&topic(2)), Confirmation::Ready));
    }

    #[test]
    fn churn_during_an_outage_leaves_nothing() {
        let mut table = Subscriptions::new(LINGER);
        table.disconnected();
        for n in 0..100 {
            let _ = table.want(&topic(n));
            table.release(&topic(n), Instant::now());
        }
        assert!(table.entries.is_empty() && table.changed.is_empty() && table.lingering.is_empty());
    }

    /// Else whoever comes later would renew the patience with what was lost.
    #[test]
    fn an_answer_out_of_turn_is_no_progress() {
        let mut table = Subscriptions::new(LINGER);
        let now = Instant::now();
        table.connected();
        for n in 1..=3 {
            table.want(&topic(n));
        }
        assert_eq!(table.step(now, 10).subscribe, [1, 2, 3].map(topic));
        assert!(table.answered(topic(1).as_str()));
        assert!(!table.answered(topic(3).as_str()), "that of 2 was lost");
        assert!(table.is_confirmed(&topic(3)), "it is heard all the same");
        table.doubt();
        table.step(now, 10);
        for later in [4, 5] {
            table.want(&topic(later));
            table.step(now, 10);
            assert!(!table.answered(topic(later).as_str()), "still");
            table.step(now, 10);
            assert!(!table.is_restored(), "2 is not confirmed");
        }
        assert!(table.answered(topic(2).as_str()));
        table.step(now, 10);
        assert!(table.is_restored());
    }
}
