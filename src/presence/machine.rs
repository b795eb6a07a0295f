//! The rules of presence on one node, without I/O: what happens goes in by [`handle`](Machine::handle), what is to be
//! done comes out of [`poll_act`](Machine::poll_act), one by one, and what became of it goes in by
//! [`said`](Machine::said).
//!
//! A topic is kept while somebody wants to know of it, here or elsewhere, and both halves hang on that alone:
//!
//! ```text
//!            a reader here, or a request of another node
//!  nothing ---------------------------------------------> Watched
//!     ^                                                     told      what the others know of this node
//!     |                                                     watchers  which of them are told
//!     +---------------------------------------------------- feed      what is known of all, for readers here
//!        neither feed nor watchers are left
//! ```
//!
//! What is told is a state and not a history: everybody first, then what differs from what was told. So whatever may
//! have been lost is mended by everybody once more, and nobody has to know what it was. That holds only while a list and
//! the changes after it leave in the order in which they were found, or a user who left between the two stays for ever.
//! That is why there is one queue, in which each thing is done before the next is asked for. A list is put together when
//! its turn comes, as many may wait for one, and nothing else is said between its parts. Whatever can wait and be said
//! again stands behind that queue, in [`Unsaid`]:
//!
//! ```text
//!  poll_act:  the rest of a list  >  what was found, in order  >  what is unsaid, in portions
//!  said:      taken: the next | by nobody: there is no watcher any more | lost: everybody again
//! ```

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Weak;
use std::time::Duration;

use tokio::time::Instant;

use super::Here;
use super::act::{Act, Input, Say, Ticket, Watching};
use super::feed::Feed;
use super::reader::Reader;
use super::told::Told;
use super::unsaid::{NextUnsaid, Unsaid};
use super::word::Report;
use crate::model::id::{NodeId, UserId};
use crate::model::topic::Topic;

#[derive(Debug)]
pub(super) struct Machine {
    me: NodeId,
    grace: Duration,
    topics: HashMap<Topic, Watched>,
    /// What is to be done next, in this order.
    errands: VecDeque<Errand>,
    /// The parts of a list of everybody that are still to be said.
    list: VecDeque<Say>,
    unsaid: Unsaid,
}

#[derive(Debug)]
enum Errand {
    Act(Act),
    Answer { to: NodeId, topic: Topic },
    Again(Topic),
    Changes { topic: Topic, report: Report },
}

#[derive(Debug)]
struct Watched {
    told: Told,
    /// Other nodes that are told, and whether also as what users are described.
    watchers: HashMap<NodeId, bool>,
    /// For readers of this node.
    feed: Option<Feed>,
}

impl Machine {
    pub(super) fn new(me: NodeId, grace: Duration) -> Self {
        Self {
            me,
            grace,
            topics: HashMap::new(),
            errands: VecDeque::new(),
            list: VecDeque::new(),
            unsaid: Unsaid::default(),
        }
    }

    /// Something happened. Readers are told at once, before anything is said to others.
    pub(super) fn handle(&mut self, input: Input, here: &impl Here, now: Instant) {
        match input {
            Input::Reader(topic, reader) => self.add_reader(topic, reader, here, now),
            Input::Joined(other) => self.ask(&Topic::node(other)),
            Input::Left(other) => self.forget(other, now),
            Input::Returned => {
                for topic in self.topics.keys() {
                    self.unsaid.tell(topic.clone());
                }
                self.interrupted();
                self.ask(&Topic::nodes());
            }
            Input::Missed => {
                self.interrupted();
                for other in here.nodes() {
                    self.ask(&Topic::node(other));
                }
                self.unsaid.ask_one_by_one();
            }
            Input::Report(from, report) => self.heard(from, report, here, now),
            Input::Request(from, topic, Watching::Nothing) => {
                if let Some(watched) = self.topics.get_mut(&topic) {
                    watched.watchers.remove(&from);
                }
            }
            Input::Request(from, topic, watching) => {
                let described = watching == Watching::Described;
                let watched = self.watched(&topic, here);
                watched.watchers.insert(from, described);
                let to = from;
                self.errands.push_back(Errand::Answer { to, topic });
            }
            Input::Touched(topic, users) => self.touched(&topic, users, here, now),
        }
    }

    /// Ends what is over by now, gives up what nobody needs, and lets the next portion begin.
    pub(super) fn advance(&mut self, here: &impl Here, now: Instant) {
        let mut ended = HashSet::new();
        for (topic, watched) in &mut self.topics {
            let Some(feed) = &mut watched.feed else {
                continue;
            };
            if !feed.advance(now) {
                watched.feed = None;
                ended.insert(topic.clone());
            } else if feed.describe() {
                self.unsaid.ask(Topic::nodes(), topic.clone());
            }
        }
        if !ended.is_empty() {
            self.unsaid.forget_asks_for(&ended);
        }
        for topic in ended {
            let unwatch = Act::unwatch(&topic);
            let acts = [Act::Release(topic), unwatch];
            self.errands.extend(acts.map(Errand::Act));
        }
        self.topics.retain(|topic, watched| {
            let needed = watched.feed.is_some() || !watched.watchers.is_empty();
            if !needed {
                here.unwatch(topic);
                self.unsaid.forget_tell(topic);
            }
            needed
        });
        self.unsaid.advance(now);
    }

    /// When [`advance`](Self::advance) has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let ends = self.feeds().filter_map(Feed::next_end);
        ends.chain(self.unsaid.pause_ends()).min()
    }

    /// What to do next, unless nothing is to be done before something else happens. It is done before this is asked
    /// again.
    pub(super) fn poll_act(&mut self, now: Instant) -> Option<Act> {
        loop {
            if let Some(part) = self.list.pop_front() {
                return Some(Act::Say(part));
            }
            let act = match self.errands.pop_front() {
                Some(errand) => self.begin(errand),
                None => match self.unsaid.poll(now)? {
                    NextUnsaid::Ask { to, topic } => {
                        let feed = self.topics.get(&topic).and_then(|it| it.feed.as_ref());
                        let described = feed.is_some_and(Feed::is_described);
                        Some(Act::ask(to, topic, described))
                    }
                    NextUnsaid::Tell(topic) => self.begin(Errand::Again(topic)),
                },
            };
            if act.is_some() {
                return act;
            }
        }
    }

    /// How many nodes took what was said; none if it may be lost.
    pub(super) fn said(&mut self, ticket: Ticket, took: Option<usize>, now: Instant) {
        match (ticket, took) {
            (Ticket::Ask { to, .. }, Some(_)) => self.unsaid.asked(&to),
            (Ticket::Ask { to, topic }, None) => {
                self.unsaid.failed(NextUnsaid::Ask { to, topic }, now)
            }
            (Ticket::Answer { to, topic }, Some(0)) => {
                // It has left, and said so before.
                self.list.clear();
                if let Some(watched) = self.topics.get_mut(&topic) {
                    watched.watchers.remove(&to);
                }
            }
            (Ticket::Answer { topic, .. }, None) => {
                self.list.clear();
                self.unsaid.tell(topic);
            }
            (Ticket::Again(topic), None) => {
                self.list.clear();
                self.unsaid.failed(NextUnsaid::Tell(topic), now);
            }
            (Ticket::Changes(topic), None) => self.unsaid.tell(topic),
            (Ticket::Again(topic) | Ticket::Changes(topic), Some(0)) => {
                self.list.clear();
                if let Some(watched) = self.topics.get_mut(&topic) {
                    watched.watchers.clear();
                }
            }
            (Ticket::Answer { .. } | Ticket::Again(_) | Ticket::Changes(_), Some(_)) => {}
            // Whoever does not hear it will find that nobody listens.
            (Ticket::Unwatch, _) => {}
        }
    }

    /// Nothing more will be handled.
    pub(super) fn end(&self) {
        self.feeds().for_each(Feed::end);
    }

    fn feeds(&self) -> impl Iterator<Item = &Feed> {
        let watched = self.topics.values();
        watched.filter_map(|watched| watched.feed.as_ref())
    }

    fn watched(&mut self, topic: &Topic, here: &impl Here) -> &mut Watched {
        self.topics.entry(topic.clone()).or_insert_with(|| Watched {
            told: Told::new(topic.clone(), here.watch(topic)),
            watchers: HashMap::new(),
            feed: None,
        })
    }

    fn add_reader(&mut self, topic: Topic, reader: Weak<Reader>, here: &impl Here, now: Instant) {
        let (me, grace) = (self.me, self.grace);
        let watched = self.watched(&topic, here);
        let is_new = watched.feed.is_none();
        let told = &watched.told;
        let feed = watched
            .feed
            .get_or_insert_with(|| Feed::new(me, grace, told, now));
        feed.add(reader);
        if is_new {
            self.errands
                .push_back(Errand::Act(Act::Hear(topic.clone())));
            self.unsaid.ask(Topic::nodes(), topic);
        }
    }

    /// Asks for all that is read here.
    fn ask(&mut self, to: &Topic) {
        let read = self.topics.iter().filter(|(_, it)| it.feed.is_some());
        for (topic, _) in read {
            self.unsaid.ask(to.clone(), topic.clone());
        }
    }

    fn forget(&mut self, other: NodeId, now: Instant) {
        self.unsaid.forget_asks_to(&Topic::node(other));
        for watched in self.topics.values_mut() {
            watched.watchers.remove(&other);
            if let Some(feed) = &mut watched.feed {
                feed.forget(other, now);
            }
        }
    }

    fn interrupted(&mut self) {
        let feeds = self.topics.values_mut().filter_map(|it| it.feed.as_mut());
        feeds.for_each(Feed::interrupted);
    }

    fn heard(&mut self, from: NodeId, report: Report, here: &impl Here, now: Instant) {
        let topic = Topic::with_presence(report.topic());
        let Some(watched) = topic.and_then(|topic| self.topics.get_mut(&topic)) else {
            return;
        };
        // Of a node that is not known, nobody would ever notice the end: it says hello first.
        if let Some(feed) = &mut watched.feed
            && here.knows(from)
        {
            feed.heard(from, report, now);
        }
    }

    fn touched(&mut self, topic: &Topic, users: HashSet<UserId>, here: &impl Here, now: Instant) {
        let Some(watched) = self.topics.get_mut(topic) else {
            return;
        };
        let changes = watched
            .told
            .changes(users, |user| here.user_on(user, topic));
        for report in changes {
            if let Some(feed) = &mut watched.feed {
                feed.heard(self.me, report.clone(), now);
            }
            let report = match watched.is_described() {
                true => Some(report),
                false => report.undescribed(),
            };
            if let Some(report) = report.filter(|_| !watched.watchers.is_empty()) {
                let topic = topic.clone();
                self.errands.push_back(Errand::Changes { topic, report });
            }
        }
    }

    /// Puts it together now that its turn has come, unless nobody waits for it any more.
    fn begin(&mut self, errand: Errand) -> Option<Act> {
        match errand {
            Errand::Act(act) => Some(act),
            Errand::Changes { topic, report } => {
                let watched = self.topics.get(&topic)?;
                let is_wanted = !watched.watchers.is_empty();
                let (to, ticket) = (topic.presence(), Ticket::Changes(topic));
                is_wanted.then(|| Act::Say(Say::report(to, report, ticket)))
            }
            Errand::Answer { to, topic } => {
                let watched = self.topics.get(&topic)?;
                let described = *watched.watchers.get(&to)?;
                let ticket = Ticket::Answer { to, topic };
                self.list = watched.list(&Topic::node(to), described, &ticket);
                None
            }
            Errand::Again(topic) => {
                let watched = self.topics.get(&topic)?;
                if !watched.watchers.is_empty() {
                    let described = watched.is_described();
                    self.list = watched.list(&topic.presence(), described, &Ticket::Again(topic));
                }
                None
            }
        }
    }
}

impl Watched {
    /// Whether anybody else is told as what users are described.
    fn is_described(&self) -> bool {
        self.watchers.values().any(|described| *described)
    }

    /// Everybody, in parts.
    fn list(&self, to: &Topic, described: bool, ticket: &Ticket) -> VecDeque<Say> {
        let parts = self.told.everybody(described).into_iter();
        let said = |part| Say::report(to.clone(), part, ticket.clone());
        parts.map(said).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::{FutureExt, StreamExt};

    use super::*;
    use crate::presence::told::PART;
    use crate::presence::unsaid::{PORTION, RETRY};
    use crate::presence::word::Word;
    use crate::presence::world::Outside;
    use crate::presence::{Presence, PresenceChange};

    const ME: NodeId = NodeId(0);
    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const GRACE: Duration = Duration::from_secs(5);

    /// A machine that knows A and B, and what it does.
    struct Rig {
        machine: Machine,
        outside: Outside,
        now: Instant,
    }

    impl Rig {
        fn new() -> Self {
            Self {
                machine: Machine::new(ME, GRACE),
                outside: Outside::knowing([A, B]),
                now: Instant::now(),
            }
        }

        fn handle(&mut self, input: Input) {
            self.machine.handle(input, &self.outside, self.now);
        }

        fn read(&mut self, topic: &Topic) -> Presence {
            let reader = Arc::new(Reader::new(None, Arc::default()));
            self.handle(Input::Reader(topic.clone(), Arc::downgrade(&reader)));
            Presence::new(reader)
        }

        /// So many users are here already.
        fn crowd(&mut self, topic: &Topic, users: usize) {
            for n in 0..users {
                self.outside.put(topic, &user(&n.to_string()), true);
            }
        }

        fn touch(&mut self, topic: &Topic, users: &[&str], here: bool) {
            for user in users {
                self.outside.put(topic, &(*user).into(), here);
            }
            let users = users.iter().map(|user| UserId::from(*user)).collect();
            self.handle(Input::Touched(topic.clone(), users));
        }

        /// What is done until the next pause, if everything that is said is taken by so many.
        fn acts(&mut self, took: Option<usize>) -> Vec<Act> {
            self.machine.advance(&self.outside, self.now);
            let act = || {
                let act = self.machine.poll_act(self.now)?;
                if let Act::Say(say) = &act {
                    self.machine.said(say.ticket.clone(), took, self.now);
                }
                Some(act)
            };
            std::iter::from_fn(act).collect()
        }

        fn watched(&self, topic: &Topic) -> bool {
            self.machine.topics.contains_key(topic)
        }
    }

    fn room(n: usize) -> Topic {
        Topic::room(&n.to_string()).unwrap()
    }

    fn user(name: &str) -> UserId {
        name.into()
    }

    /// What a reader can read now.
    fn told(presence: &mut Presence) -> Vec<PresenceChange> {
        std::iter::from_fn(|| presence.next().now_or_never().flatten()).collect()
    }

    fn online(name: &str) -> PresenceChange {
        PresenceChange::Online(user(name))
    }

    fn offline(name: &str) -> PresenceChange {
        PresenceChange::Offline(user(name))
    }

    fn changes(topic: &Topic, online: &[&str], offline: &[&str]) -> Report {
        let users = |names: &[&str]| names.iter().map(|name| user(name)).collect();
        Report::Changes {
            topic: topic.as_str().to_owned(),
            online: users(online),
            offline: users(offline),
            described: Vec::new(),
        }
    }

    fn everybody(topic: &Topic, names: &[&str]) -> Report {
        Report::Everybody {
            topic: topic.as_str().to_owned(),
            users: names.iter().map(|name| user(name)).collect(),
            described: None,
            first: true,
            last: true,
        }
    }

    fn answer(to: NodeId, topic: &Topic, names: &[&str]) -> Act {
        let ticket = Ticket::Answer {
            to,
            topic: topic.clone(),
        };
        Act::Say(Say::report(
            Topic::node(to),
            everybody(topic, names),
            ticket,
        ))
    }

    fn changed(topic: &Topic, online: &[&str], offline: &[&str]) -> Act {
        let (to, ticket) = (topic.presence(), Ticket::Changes(topic.clone()));
        Act::Say(Say::report(to, changes(topic, online, offline), ticket))
    }

    fn again(topic: &Topic, names: &[&str]) -> Act {
        let (to, ticket) = (topic.presence(), Ticket::Again(topic.clone()));
        Act::Say(Say::report(to, everybody(topic, names), ticket))
    }

    #[test]
    fn the_first_reader_is_told_who_is_here_and_asks_once_the_others_are_heard() {
        let (mut rig, all) = (Rig::new(), Topic::all());
        rig.outside.put(&all, &user("x"), true);
        let mut first = rig.read(&all);
        assert_eq!(told(&mut first), [online("x")]);
        let asked = [
            Act::Hear(all.clone()),
            Act::ask(Topic::nodes(), all.clone(), false),
        ];
        assert_eq!(rig.acts(Some(2)), asked);
        rig.handle(Input::Report(A, everybody(&all, &["y"])));
        assert_eq!(told(&mut first), [online("y")]);
        let mut second = rig.read(&all);
        assert_eq!(told(&mut second).len(), 2);
        assert_eq!(rig.acts(Some(2)), [], "all is known already");
    }

    #[test]
    fn the_last_reader_releases_the_topic_and_all_that_was_to_be_asked() {
        let (mut rig, all) = (Rig::new(), Topic::all());
        let readers = [rig.read(&all), rig.read(&all)];
        assert_eq!(rig.acts(None).len(), 2);
        let [first, last] = readers;
        drop(first);
        rig.now += RETRY;
        assert_eq!(
            rig.acts(None),
            [Act::ask(Topic::nodes(), all.clone(), false)]
        );
        drop(last);
        rig.now += RETRY;
        assert_eq!(
            rig.acts(None),
            [Act::Release(all.clone()), Act::unwatch(&all)]
        );
        assert!(!rig.watched(&all) && !rig.outside.is_watched(&all));
        let mut back = rig.read(&all);
        assert_eq!(told(&mut back), []);
        assert_eq!(rig.acts(Some(1)).len(), 2, "it begins anew");
    }

    #[test]
    fn who_wants_to_be_told_is_told_everybody_and_then_what_changes() {
        let (mut rig, all) = (Rig::new(), Topic::all());
        rig.touch(&all, &["x"], true);
        assert_eq!(rig.acts(Some(1)), [], "nobody watches");
        rig.handle(Input::Request(A, all.clone(), Watching::Users));
        assert_eq!(rig.acts(Some(1)), [answer(A, &all, &["x"])]);
        rig.touch(&all, &["x"], true);
        assert_eq!(rig.acts(Some(1)), [], "no change");
        rig.touch(&all, &["y"], true);
        rig.handle(Input::Request(B, all.clone(), Watching::Users));
        rig.touch(&all, &["x"], false);
        let order = [
            changed(&all, &["y"], &[]),
            answer(B, &all, &["y"]),
            changed(&all, &[], &["x"]),
        ];
        assert_eq!(rig.acts(Some(1)), order, "as it came");
        rig.handle(Input::Request(A, all.clone(), Watching::Nothing));
        rig.handle(Input::Request(B, all.clone(), Watching::Nothing));
        rig.touch(&all, &["z"], true);
        assert_eq!(rig.acts(Some(1)), []);
        assert!(!rig.watched(&all) && !rig.outside.is_watched(&all));
    }

    #[test]
    fn nothing_comes_between_the_parts_of_a_list() {
        let (mut rig, all) = (Rig::new(), Topic::all());
        rig.crowd(&all, 2 * PART + 1);
        rig.handle(Input::Request(A, all.clone(), Watching::Users));
        rig.touch(&all, &["x"], true);
        let acts = rig.acts(Some(1));
        let is_part = |act: &Act| {
            matches!(
                act,
                Act::Say(Say {
                    ticket: Ticket::Answer { .. },
                    ..
                })
            )
        };
        assert_eq!(acts.len(), 4);
        assert!(acts[..3].iter().all(is_part), "{acts:?}");
        assert_eq!(acts[3], changed(&all, &["x"], &[]));
    }

    #[test]
    fn who_has_left_is_told_no_more_and_the_topic_is_given_up() {
        let (mut rig, all) = (Rig::new(), Topic::all());
        rig.crowd(&all, 2 * PART);
        rig.handle(Input::Request(A, all.clone(), Watching::Users));
        assert_eq!(rig.acts(Some(0)).len(), 1, "nobody takes the second part");
        assert_eq!(rig.acts(Some(0)), []);
        assert!(!rig.watched(&all));

        for other in [A, B] {
            rig.handle(Input::Request(other, all.clone(), Watching::Users));
        }
        assert_eq!(rig.acts(Some(1)).len(), 4);
        rig.handle(Input::Left(A));
        rig.touch(&all, &["x"], true);
        rig.touch(&all, &["y"], true);
        assert_eq!(
            rig.acts(Some(0)),
            [changed(&all, &["x"], &[])],
            "B went in silence"
        );
        rig.touch(&all, &["z"], true);
        assert_eq!(rig.acts(Some(0)), []);
        assert!(!rig.watched(&all));
    }

    #[test]
    fn an_answer_for_whom_nobody_waits_any_more_is_not_put_together() {
        let (mut rig, all) = (Rig::new(), Topic::all());
        rig.handle(Input::Request(A, all.clone(), Watching::Users));
        rig.handle(Input::Left(A));
        assert_eq!(rig.acts(Some(1)), []);
        rig.handle(Input::Request(A, all.clone(), Watching::Users));
        rig.handle(Input::Request(B, all.clone(), Watching::Users));
        rig.handle(Input::Left(A));
        assert_eq!(rig.acts(Some(1)), [answer(B, &all, &[])]);
    }

    #[test]
    fn what_may_be_lost_is_mended_by_everybody_once_more() {
        let (mut rig, all) = (Rig::new(), Topic::all());
        rig.handle(Input::Request(A, all.clone(), Watching::Users));
        assert_eq!(rig.acts(Some(1)).len(), 1);
        rig.touch(&all, &["x"], true);
        let said = [changed(&all, &["x"], &[]), again(&all, &["x"])];
        assert_eq!(rig.acts(None), said);
        assert_eq!(rig.machine.poll_timeout(), Some(rig.now + RETRY));
        rig.touch(&all, &["x"], false);
        assert_eq!(rig.acts(None), [changed(&all, &[], &["x"])], "a pause");
        rig.now += RETRY;
        assert_eq!(rig.acts(Some(1)), [again(&all, &[])]);
        assert_eq!(rig.machine.poll_timeout(), None);
        rig.handle(Input::Request(B, all.clone(), Watching::Users));
        let said = [answer(B, &all, &[]), again(&all, &[])];
        assert_eq!(rig.acts(None), said, "so is an answer");
    }

    #[test]
    fn a_list_of_which_a_part_may_be_lost_is_not_gone_on_with() {
        let (mut rig, all) = (Rig::new(), Topic::all());
        rig.crowd(&all, 2 * PART);
        rig.handle(Input::Request(A, all.clone(), Watching::Users));
        assert_eq!(
            rig.acts(None).len(),
            2,
            "one part of the answer, and one once more"
        );
        rig.now += RETRY;
        assert_eq!(rig.acts(Some(1)).len(), 2, "both parts");
        assert_eq!(rig.acts(Some(1)), []);
    }

    #[test]
    fn after_an_outage_all_is_asked_and_told_again_in_portions() {
        let mut rig = Rig::new();
        let readers: Vec<Presence> = (0..PORTION + 1).map(|n| rig.read(&room(n))).collect();
        for n in 0..PORTION + 1 {
            rig.handle(Input::Request(A, room(n), Watching::Users));
        }
        while !rig.acts(Some(1)).is_empty() {}
        rig.handle(Input::Returned);
        assert_eq!(rig.acts(Some(1)).len(), 2 * PORTION);
        assert_eq!(rig.machine.poll_timeout(), Some(rig.now), "at once");
        let rest = rig.acts(Some(1));
        assert!(matches!(
            &rest[..],
            [
                Act::Say(Say {
                    ticket: Ticket::Ask { .. },
                    ..
                }),
                Act::Say(Say {
                    ticket: Ticket::Again(_),
                    ..
                })
            ]
        ));
        assert_eq!(rig.machine.poll_timeout(), None);
        drop(readers);
    }

    #[test]
    fn a_bus_that_is_down_is_tried_once_in_a_while() {
        let mut rig = Rig::new();
        let _readers: Vec<Presence> = (0..9).map(|n| rig.read(&room(n))).collect();
        let acts = rig.acts(None);
        assert_eq!(acts.len(), 10, "nine to be heard, and one is asked");
        for _ in 0..3 {
            assert_eq!(rig.acts(None), []);
            rig.now += RETRY;
            assert_eq!(rig.acts(None).len(), 1);
        }
        rig.now += RETRY;
        assert_eq!(rig.acts(Some(1)).len(), 9);
    }

    #[test]
    fn who_was_told_more_than_it_could_keep_asks_one_node_after_the_other() {
        let mut rig = Rig::new();
        let _readers: Vec<Presence> = (0..3).map(|n| rig.read(&room(n))).collect();
        assert_eq!(rig.acts(Some(2)).len(), 6, "all at once");
        rig.handle(Input::Missed);
        for other in [B, A] {
            let asked = rig.acts(Some(1));
            assert_eq!(asked.len(), 3);
            let to_other = |act: &Act| matches!(act, Act::Say(say) if say.to == Topic::node(other));
            assert!(asked.iter().all(to_other), "{asked:?}");
            rig.now += RETRY;
        }
        assert_eq!(rig.acts(Some(1)), []);
    }

    #[test]
    fn a_new_node_is_asked_and_one_that_left_is_not() {
        let (mut rig, all) = (Rig::new(), Topic::all());
        let _reader = rig.read(&all);
        assert_eq!(rig.acts(Some(0)).len(), 2);
        rig.handle(Input::Joined(A));
        rig.handle(Input::Joined(B));
        rig.handle(Input::Left(B));
        assert_eq!(rig.acts(Some(1)), [Act::ask(Topic::node(A), all, false)]);
    }

    #[test]
    fn a_node_that_left_takes_its_users_along_after_the_grace_period() {
        let (mut rig, all) = (Rig::new(), Topic::all());
        let mut reader = rig.read(&all);
        rig.acts(Some(2));
        rig.handle(Input::Report(A, everybody(&all, &["x"])));
        assert_eq!(told(&mut reader), [online("x")]);
        rig.handle(Input::Left(A));
        let end = rig.now + GRACE;
        assert_eq!(rig.machine.poll_timeout(), Some(end));
        rig.now = end - Duration::from_millis(1);
        rig.acts(Some(2));
        assert_eq!(told(&mut reader), []);
        rig.now = end;
        rig.acts(Some(2));
        assert_eq!(told(&mut reader), [offline("x")]);
        assert_eq!(rig.machine.poll_timeout(), None);
    }

    #[test]
    fn only_of_nodes_whose_end_would_be_noticed_anything_is_believed() {
        let (mut rig, all) = (Rig::new(), Topic::all());
        let mut reader = rig.read(&all);
        rig.handle(Input::Report(NodeId(9), everybody(&all, &["x"])));
        rig.handle(Input::Report(A, everybody(&room(1), &["y"])));
        assert_eq!(told(&mut reader), []);
        rig.handle(Input::Report(A, changes(&all, &["z"], &[])));
        assert_eq!(told(&mut reader), [online("z")], "control");
    }

    #[test]
    fn readers_here_are_told_of_this_nodes_users_whatever_the_bus_does() {
        let (mut rig, all) = (Rig::new(), Topic::all());
        let mut reader = rig.read(&all);
        rig.handle(Input::Request(A, all.clone(), Watching::Users));
        rig.touch(&all, &["x"], true);
        assert_eq!(told(&mut reader), [online("x")], "before anything is said");
        rig.touch(&all, &["x"], false);
        rig.handle(Input::Report(A, changes(&all, &["x"], &[])));
        rig.now += GRACE;
        rig.acts(None);
        assert_eq!(told(&mut reader), [], "they are there");
    }

    #[test]
    fn a_list_that_an_outage_cut_is_not_taken_for_a_whole_one() {
        let (mut rig, all) = (Rig::new(), Topic::all());
        let mut reader = rig.read(&all);
        rig.handle(Input::Report(A, everybody(&all, &["x"])));
        let part = |first, last| Report::Everybody {
            topic: all.as_str().to_owned(),
            users: Vec::new(),
            described: None,
            first,
            last,
        };
        for cut in [Input::Returned, Input::Missed] {
            rig.handle(Input::Report(A, part(true, false)));
            rig.handle(cut);
            rig.handle(Input::Report(A, part(false, true)));
        }
        rig.now += GRACE;
        rig.acts(Some(1));
        assert_eq!(told(&mut reader), [online("x")]);
    }

    #[test]
    fn descriptions_are_said_to_who_asks_for_them_and_nothing_while_nobody_does() {
        let (mut rig, all) = (Rig::new(), Topic::all());
        rig.touch(&all, &["x"], true);
        let describe = |rig: &mut Rig, json: &str| {
            rig.outside.describe(&all, &user("x"), json);
            rig.handle(Input::Touched(all.clone(), [user("x")].into()));
        };
        let are = |json: &str| vec![(user("x"), vec![json.to_owned()].into())];
        rig.handle(Input::Request(A, all.clone(), Watching::Users));
        describe(&mut rig, "1");
        assert_eq!(rig.acts(Some(1)), [answer(A, &all, &["x"])]);
        describe(&mut rig, "2");
        assert_eq!(rig.acts(Some(1)), [], "A does not ask");
        rig.handle(Input::Request(B, all.clone(), Watching::Described));
        let [Act::Say(said)] = &rig.acts(Some(1))[..] else {
            panic!("an answer")
        };
        let Word::Report(Report::Everybody { described, .. }) = &said.word else {
            panic!("{said:?}")
        };
        assert_eq!(*described, Some(are("2")));
        describe(&mut rig, "3");
        let [Act::Say(said)] = &rig.acts(Some(1))[..] else {
            panic!("a change")
        };
        let Word::Report(Report::Changes { described, .. }) = &said.word else {
            panic!("{said:?}")
        };
        assert_eq!(*described, are("3"));
        rig.handle(Input::Request(B, all.clone(), Watching::Nothing));
        describe(&mut rig, "4");
        assert_eq!(rig.acts(Some(1)), [], "B does not either");
    }

    #[test]
    fn a_reader_that_asks_for_descriptions_has_the_others_asked_for_them_once() {
        let (mut rig, all) = (Rig::new(), Topic::all());
        rig.outside.describe(&all, &user("x"), "1");
        let plain = rig.read(&all);
        assert_eq!(rig.acts(Some(2)).len(), 2, "control");
        let is = |name: &str, json: i32| PresenceChange::Described {
            user: user(name),
            descriptions: vec![json.into()],
        };
        let mut first = rig.read(&all).described();
        let asked = [Act::ask(Topic::nodes(), all.clone(), true)];
        assert_eq!(rig.acts(Some(2)), asked);
        assert_eq!(told(&mut first), [online("x"), is("x", 1)]);
        let mut second = rig.read(&all).described();
        assert_eq!(rig.acts(Some(2)), []);
        assert_eq!(told(&mut second).len(), 2);
        let mut report = changes(&all, &["y"], &[]);
        if let Report::Changes { described, .. } = &mut report {
            described.push((user("y"), vec!["2".to_owned()].into()));
        }
        rig.handle(Input::Report(A, report));
        for reader in [&mut first, &mut second] {
            assert_eq!(told(reader), [online("y"), is("y", 2)]);
        }
        let mut plain = plain;
        assert_eq!(told(&mut plain).len(), 2, "it did not ask");
    }

    #[test]
    fn all_readers_end_with_it() {
        let mut rig = Rig::new();
        let mut readers = [rig.read(&Topic::all()), rig.read(&room(1))];
        rig.machine.end();
        for reader in &mut readers {
            assert_eq!(reader.next().now_or_never(), Some(None));
        }
    }
}
