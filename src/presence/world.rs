//! Three nodes with their mailboxes and rules, over a channel that loses, repeats and delays, in virtual time: whatever
//! happens, in the end every reader has been told the truth, and every change once.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::mem::take;
use std::rc::Rc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use proptest::prelude::*;
use serde_json::Value;
use tokio::time::Instant;

use super::act::Act;
use super::machine::Machine;
use super::{Here, Mailbox, Presence, PresenceChange, Word};
use crate::model::description::Descriptions;
use crate::model::id::{NodeId, UserId};
use crate::model::topic::Topic;

const NODES: usize = 3;
const GRACE: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_secs(1);

/// The rest of a node, as presence sees it.
#[derive(Debug, Default)]
pub(super) struct Outside {
    mailbox: Mailbox,
    watched: RefCell<HashSet<Topic>>,
    users: HashMap<(Topic, UserId), Descriptions>,
    members: HashSet<NodeId>,
}

impl Outside {
    pub(super) fn knowing(nodes: impl IntoIterator<Item = NodeId>) -> Self {
        Self {
            members: nodes.into_iter().collect(),
            ..Self::default()
        }
    }

    pub(super) fn put(&mut self, topic: &Topic, user: &UserId, here: bool) {
        let place = (topic.clone(), user.clone());
        match here {
            true => _ = self.users.entry(place).or_default(),
            false => _ = self.users.remove(&place),
        }
    }

    pub(super) fn describe(&mut self, topic: &Topic, user: &UserId, json: &str) {
        let description = Descriptions::from(vec![json.to_owned()]);
        self.users
            .insert((topic.clone(), user.clone()), description);
    }

    pub(super) fn is_watched(&self, topic: &Topic) -> bool {
        self.watched.borrow().contains(topic)
    }
}

impl Here for Outside {
    fn watch(&self, topic: &Topic) -> HashMap<UserId, Descriptions> {
        assert!(self.watched.borrow_mut().insert(topic.clone()), "twice");
        self.mailbox.watch(topic, true);
        let users = self.users.iter().filter(|((on, _), _)| on == topic);
        users
            .map(|((_, user), it)| (user.clone(), it.clone()))
            .collect()
    }

    fn unwatch(&self, topic: &Topic) {
        assert!(self.watched.borrow_mut().remove(topic), "twice");
        self.mailbox.watch(topic, false);
    }

    fn user_on(&self, user: &UserId, topic: &Topic) -> Option<Descriptions> {
        self.users.get(&(topic.clone(), user.clone())).cloned()
    }

    fn knows(&self, node: NodeId) -> bool {
        self.members.contains(&node)
    }

    fn nodes(&self) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = self.members.iter().copied().collect();
        nodes.sort_unstable();
        nodes
    }
}

#[derive(Clone, Debug)]
enum Event {
    Join(usize, usize, u8),
    Leave(usize, usize, u8),
    /// What a user is on a node who is there, which may be nothing.
    Describe(usize, usize, u8, u8),
    /// Somebody begins to read a topic on a node, perhaps with what users are described as.
    Open(usize, usize, bool),
    /// The oldest reader of a node goes.
    Close(usize),
    /// A node looks at what came.
    Look(usize),
    /// A node hears the next of what is on its way.
    Deliver(usize),
    /// And hears it twice.
    Repeat(usize),
    /// More came than a node keeps.
    Overflow(usize),
    /// The next word of a node gets lost, as it knows, though the bus is up.
    Refuse(usize),
    /// What a node says gets lost, with or without its knowing, and so does what it is told.
    CutOff(usize, bool),
    /// The bus is back, and that is known with the node's next look; its hello follows.
    Heal(usize),
    /// A node is silent for a lease: the others take it for gone.
    Expire(usize),
    /// A node dies, which the others learn by its lease, and another comes in its place.
    Crash(usize),
    /// Time goes by, and all that is on its way arrives.
    Wait,
    /// Time goes by, and nothing arrives.
    Lag,
}

fn event() -> impl Strategy<Value = Event> {
    let (n, t, u) = (0..NODES, 0usize..2, 0u8..5);
    prop_oneof![
        8 => (n.clone(), t.clone(), u.clone()).prop_map(|(n, t, u)| Event::Join(n, t, u)),
        6 => (n.clone(), t.clone(), u).prop_map(|(n, t, u)| Event::Leave(n, t, u)),
        5 => (n.clone(), t.clone(), 0u8..5, 0u8..3).prop_map(|(n, t, u, d)| Event::Describe(n, t, u, d)),
        2 => (n.clone(), t, any::<bool>()).prop_map(|(n, t, described)| Event::Open(n, t, described)),
        1 => n.clone().prop_map(Event::Close),
        6 => n.clone().prop_map(Event::Look),
        6 => n.clone().prop_map(Event::Deliver),
        2 => n.clone().prop_map(Event::Repeat),
        6 => Just(Event::Wait),
    ]
}

fn fault() -> impl Strategy<Value = Event> {
    let n = 0..NODES;
    prop_oneof![
        8 => event(),
        1 => (n.clone(), any::<bool>()).prop_map(|(n, known)| Event::CutOff(n, known)),
        1 => n.clone().prop_map(Event::Heal),
        2 => n.clone().prop_map(Event::Refuse),
        1 => n.clone().prop_map(Event::Overflow),
        1 => n.clone().prop_map(Event::Expire),
        1 => n.prop_map(Event::Crash),
        1 => Just(Event::Lag),
    ]
}

/// What is on its way to a node.
#[derive(Clone, Debug)]
enum Packet {
    Word(NodeId, Rc<Word>),
    Hello {
        from: NodeId,
        reply: bool,
        to_one: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Link {
    Up,
    /// It is up again, and the node is to learn that it was not.
    Back,
    Cut {
        known: bool,
    },
}

/// A reader, and whom it shows as online.
struct Screen {
    topic: Topic,
    presence: Presence,
    shown: HashSet<UserId>,
    /// As what; none, if it does not ask.
    described: Option<HashMap<UserId, Vec<Value>>>,
}

struct Node {
    id: NodeId,
    machine: Machine,
    outside: Outside,
    link: Link,
    /// Its next word is refused.
    refused: bool,
    heard: HashSet<Topic>,
    arriving: VecDeque<Packet>,
    screens: VecDeque<Screen>,
    /// Who was on it when it last looked.
    noticed: HashSet<(Topic, UserId)>,
}

impl Node {
    fn new(id: u64) -> Self {
        let id = NodeId(id);
        Self {
            id,
            machine: Machine::new(id, GRACE),
            outside: Outside::default(),
            link: Link::Up,
            refused: false,
            heard: HashSet::from([Topic::nodes(), Topic::node(id)]),
            arriving: VecDeque::new(),
            screens: VecDeque::new(),
            noticed: HashSet::new(),
        }
    }

    fn is_cut(&self) -> bool {
        matches!(self.link, Link::Cut { .. })
    }
}

struct World {
    nodes: Vec<Node>,
    next_id: u64,
    topics: [Topic; 2],
    now: Instant,
    /// When each user was last noticed on a topic, on any node.
    seen: HashMap<(Topic, UserId), Instant>,
    disturbed: bool,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            nodes: (1..=NODES as u64).map(Node::new).collect(),
            next_id: NODES as u64 + 1,
            topics: [Topic::all(), Topic::room("a").unwrap()],
            now: Instant::now(),
            seen: HashMap::new(),
            disturbed: false,
        };
        (0..NODES).for_each(|n| world.say_hello(n, true));
        world.settle();
        world
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Join(n, t, u) => self.put(n, t, u, true),
            Event::Leave(n, t, u) => self.put(n, t, u, false),
            Event::Describe(n, t, u, d) => self.describe(n, t, u, d),
            Event::Open(n, t, described) => {
                let (node, topic) = (&mut self.nodes[n], self.topics[t].clone());
                let presence = node.outside.mailbox.reader(topic.clone(), None);
                node.screens.push_back(Screen {
                    topic,
                    presence: match described {
                        true => presence.described(),
                        false => presence,
                    },
                    shown: HashSet::new(),
                    described: described.then(HashMap::new),
                });
            }
            Event::Close(n) => drop(self.nodes[n].screens.pop_front()),
            Event::Look(n) => {
                self.look(n);
            }
            Event::Deliver(n) => {
                self.deliver(n);
            }
            Event::Repeat(n) => {
                if let Some(next) = self.nodes[n].arriving.front().cloned() {
                    self.nodes[n].arriving.push_front(next);
                }
            }
            Event::Overflow(n) => {
                self.disturbed = true;
                self.nodes[n].outside.mailbox.overflow();
            }
            Event::Refuse(n) => {
                self.disturbed = true;
                self.nodes[n].refused = true;
            }
            Event::CutOff(n, known) => {
                self.disturbed = true;
                self.nodes[n].link = Link::Cut { known };
                self.nodes[n].arriving.clear();
            }
            Event::Heal(n) => match self.nodes[n].is_cut() {
                true => self.nodes[n].link = Link::Back,
                false => self.say_hello(n, false),
            },
            Event::Expire(n) => self.lose(n),
            Event::Crash(n) => {
                self.lose(n);
                self.nodes[n] = Node::new(self.next_id);
                self.next_id += 1;
                self.say_hello(n, true);
            }
            Event::Wait => {
                self.settle();
                self.check_now();
                self.pass();
            }
            Event::Lag => {
                self.disturbed = true;
                self.pass();
            }
        }
        self.read();
    }

    fn put(&mut self, n: usize, t: usize, u: u8, here: bool) {
        let place = (self.topics[t].clone(), UserId::from(u64::from(u)));
        let Node {
            outside, noticed, ..
        } = &mut self.nodes[n];
        outside.put(&place.0, &place.1, here);
        outside.mailbox.touch(&place.1, [&place.0]);
        if !here && noticed.contains(&place) {
            self.seen.insert(place, self.now);
        }
    }

    fn describe(&mut self, n: usize, t: usize, u: u8, d: u8) {
        let (topic, user) = (&self.topics[t], UserId::from(u64::from(u)));
        let outside = &mut self.nodes[n].outside;
        if outside.user_on(&user, topic).is_none() {
            return;
        }
        match d {
            0 => {
                outside.put(topic, &user, false);
                outside.put(topic, &user, true);
            }
            d => outside.describe(topic, &user, &format!("\"device {d}\"")),
        }
        outside.mailbox.touch(&user, [topic]);
    }

    /// The others do not know a node any more.
    fn lose(&mut self, n: usize) {
        self.disturbed = true;
        let id = self.nodes[n].id;
        for node in &mut self.nodes {
            if node.outside.members.remove(&id) {
                node.outside.mailbox.left(id);
            }
        }
    }

    fn pass(&mut self) {
        for n in 0..NODES {
            self.notice(n);
        }
        self.now += STEP;
        for n in 0..NODES {
            self.look(n);
        }
    }

    fn notice(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.noticed = node.outside.users.keys().cloned().collect();
        let seen = node.noticed.iter().map(|place| (place.clone(), self.now));
        self.seen.extend(seen);
    }

    fn say_hello(&mut self, n: usize, reply: bool) {
        let from = self.nodes[n].id;
        let to_one = false;
        let hello = Packet::Hello {
            from,
            reply,
            to_one,
        };
        self.publish(n, &Topic::nodes(), &hello);
    }

    /// How many took it; none if the sender knows that it is lost.
    fn publish(&mut self, n: usize, to: &Topic, packet: &Packet) -> Option<usize> {
        let link = self.nodes[n].link;
        if link == (Link::Cut { known: true }) {
            return None;
        }
        let mut took = 0;
        for (m, node) in self.nodes.iter_mut().enumerate() {
            if m == n || !node.heard.contains(to) || node.link == (Link::Cut { known: true }) {
                continue;
            }
            // Who does not know that it is cut off is counted, and so is who hears nothing of it.
            took += 1;
            if !node.is_cut() && link != (Link::Cut { known: false }) {
                node.arriving.push_back(packet.clone());
            }
        }
        Some(took)
    }

    /// Whether there was anything.
    fn deliver(&mut self, n: usize) -> bool {
        let Some(packet) = self.nodes[n].arriving.pop_front() else {
            return false;
        };
        let mailbox = &self.nodes[n].outside.mailbox;
        match packet {
            Packet::Word(from, word) => match &*word {
                Word::Report(_) => mailbox.heard_report(from, &word.to_json()),
                Word::Request(_) => mailbox.heard_request(from, &word.to_json()),
            },
            Packet::Hello {
                from,
                reply,
                to_one,
            } => self.heard_hello(n, from, reply, to_one),
        }
        true
    }

    /// As `Node::node_said_hello`.
    fn heard_hello(&mut self, n: usize, other: NodeId, reply: bool, to_one: bool) {
        let outside = &mut self.nodes[n].outside;
        let is_new = outside.members.insert(other);
        if is_new || reply {
            outside.mailbox.joined(other);
        }
        if reply || is_new && !to_one {
            let hello = Packet::Hello {
                from: self.nodes[n].id,
                reply: !reply,
                to_one: true,
            };
            self.publish(n, &Topic::node(other), &hello);
        }
    }

    /// As the task does; whether anything was done.
    fn look(&mut self, n: usize) -> bool {
        let now = self.now;
        if self.nodes[n].link == Link::Back {
            self.nodes[n].link = Link::Up;
            self.nodes[n].outside.mailbox.returned();
            self.say_hello(n, true);
        }
        self.notice(n);
        let Node {
            machine, outside, ..
        } = &mut self.nodes[n];
        let mut busy = false;
        for input in outside.mailbox.take().expect("it runs").inputs() {
            machine.handle(input, outside, now);
            busy = true;
        }
        machine.advance(outside, now);
        while let Some(act) = self.nodes[n].machine.poll_act(now) {
            busy = true;
            match act {
                Act::Hear(topic) => assert!(self.nodes[n].heard.insert(topic.presence())),
                Act::Release(topic) => assert!(self.nodes[n].heard.remove(&topic.presence())),
                Act::Say(say) => {
                    let packet = Packet::Word(self.nodes[n].id, say.word.into());
                    let took = match take(&mut self.nodes[n].refused) {
                        true => None,
                        false => self.publish(n, &say.to, &packet),
                    };
                    self.nodes[n].machine.said(say.ticket, took, now);
                }
            }
        }
        busy
    }

    /// Until nothing is on its way, and nothing to be said before time goes by.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 1000, "it never ends");
            let mut busy = false;
            for n in 0..NODES {
                while self.deliver(n) {}
                busy |= self.look(n);
            }
            if !busy && self.nodes.iter().all(|node| node.arriving.is_empty()) {
                return;
            }
        }
    }

    /// Takes what the readers are told.
    fn read(&mut self) {
        for screen in self.nodes.iter_mut().flat_map(|node| &mut node.screens) {
            while let Some(change) = screen.presence.next().now_or_never() {
                match change.expect("the node lives") {
                    PresenceChange::Online(user) => assert!(screen.shown.insert(user), "twice"),
                    PresenceChange::Described { user, descriptions } => {
                        assert!(screen.shown.contains(&user), "of nobody");
                        let described = screen.described.as_mut().expect("it asked");
                        let before = match descriptions.is_empty() {
                            true => described.remove(&user),
                            false => described.insert(user, descriptions.clone()),
                        };
                        assert_ne!(before, Some(descriptions), "twice");
                    }
                    PresenceChange::Offline(user) => {
                        assert!(screen.shown.remove(&user), "twice");
                        screen.described.as_mut().map(|it| it.remove(&user));
                        let seen = self.seen[&(screen.topic.clone(), user)];
                        assert!(self.disturbed || seen + GRACE <= self.now, "a flap");
                    }
                }
            }
        }
    }

    fn truth(&self, topic: &Topic) -> HashSet<UserId> {
        let users = self.nodes.iter().flat_map(|node| node.outside.users.keys());
        let on = users.filter(|(on, _)| on == topic);
        on.map(|(_, user)| user.clone()).collect()
    }

    /// As what those are described who are there.
    fn described(&self, topic: &Topic) -> HashMap<UserId, Vec<Value>> {
        let mut described: HashMap<UserId, Descriptions> = HashMap::new();
        let users = self.nodes.iter().flat_map(|node| &node.outside.users);
        for ((_, user), it) in users.filter(|((on, _), _)| on == topic) {
            described.entry(user.clone()).or_default().extend(it);
        }
        described.retain(|_, it| !it.is_empty());
        let values = described.into_iter();
        values.map(|(user, it)| (user, it.values())).collect()
    }

    /// What is shown of those who are there.
    fn check_described(&self, screen: &Screen) {
        let truth = self.truth(&screen.topic);
        if let Some(mut shown) = screen.described.clone() {
            shown.retain(|user, _| truth.contains(user));
            assert_eq!(shown, self.described(&screen.topic));
        }
    }

    /// While all goes well, what is shown is the truth, and who left within the grace period.
    fn check_now(&mut self) {
        self.read();
        if self.disturbed {
            return;
        }
        for screen in self.nodes.iter().flat_map(|node| &node.screens) {
            let truth = self.truth(&screen.topic);
            assert!(truth.is_subset(&screen.shown), "somebody is not shown");
            self.check_described(screen);
            for user in screen.shown.difference(&truth) {
                let seen = self.seen[&(screen.topic.clone(), user.clone())];
                assert!(seen + GRACE > self.now, "somebody is shown too long");
            }
        }
    }

    /// The lease of whoever died ends, though its last hello came late.
    fn bury(&mut self) {
        let alive: HashSet<NodeId> = self.nodes.iter().map(|node| node.id).collect();
        for node in &mut self.nodes {
            let Outside {
                members, mailbox, ..
            } = &mut node.outside;
            let dead = members.extract_if(|id| !alive.contains(id));
            dead.for_each(|id| mailbox.left(id));
        }
    }

    fn check_end(&mut self) {
        for n in 0..NODES {
            self.apply(Event::Heal(n));
        }
        self.settle();
        self.bury();
        for _ in 0..=GRACE.as_secs() + NODES as u64 {
            self.apply(Event::Wait);
        }
        for n in 0..NODES {
            // Whoever was taken for gone says hello, as all do again and again.
            self.apply(Event::Heal(n));
        }
        for _ in 0..=GRACE.as_secs() + NODES as u64 {
            self.apply(Event::Wait);
        }
        for node in &self.nodes {
            for screen in &node.screens {
                assert_eq!(screen.shown, self.truth(&screen.topic));
                self.check_described(screen);
            }
            assert_eq!(node.machine.poll_timeout(), None);
        }
    }

    /// When the last reader is gone, nothing is heard, kept or said any more.
    fn check_silence(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.screens.clear());
        self.settle();
        // Who could not say that it no longer reads is found out by the next change, and the one after it is none.
        for _ in 0..2 {
            for (n, t) in [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)] {
                let joined = self.nodes[n]
                    .outside
                    .user_on(&0.into(), &self.topics[t])
                    .is_some();
                self.put(n, t, 0, !joined);
            }
            self.settle();
        }
        for node in &self.nodes {
            assert!(node.outside.watched.borrow().is_empty());
            assert_eq!(node.heard.len(), 2);
        }
    }
}

fn play(events: Vec<Event>) {
    let mut world = World::new();
    for event in events {
        world.apply(event);
    }
    world.check_end();
    world.check_silence();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn while_all_goes_well_every_reader_shows_the_truth(events in prop::collection::vec(event(), 0..80)) {
        play(events);
    }

    #[test]
    fn every_history_ends_in_the_truth(events in prop::collection::vec(fault(), 0..80)) {
        play(events);
    }
}
