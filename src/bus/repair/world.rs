//! A world of one Redis that keeps what is published, and nodes whose connections break at any moment: whatever happens in
//! whatever order, each socket gets everything once and in order, or is told that it does not.
//!
//! Answers, what is published and what is said on a connection pass at moments of their own. The process may be replaced by
//! one that knows less. Nodes send too, each on a topic one after the other, and what fails they deliver themselves. And where one of
//! the rules is left out, the world finds it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use tokio::time::Instant;

use super::*;
use crate::bus::echoes::Echoes;
use crate::model::history::mark::{Clock, Run};
use crate::model::id::NodeId;

const TOPICS: u8 = 6;
const NODES: usize = 2;
const AT_ONCE: usize = 2;

/// Which rule is left out.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Without {
    Nothing,
    /// It is taken for read before what was on its way has come.
    Barrier,
    /// What is held is not compared with what was read.
    Cuts,
    Repair,
    /// What failed does not wait for what was taken before it.
    Order,
    /// What was delivered of a run is not known in the next.
    Known,
}

/// What becomes of what a node sends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Taken,
    /// It fails, and is kept all the same.
    Unsure,
    Refused,
}

/// A message: where it goes, and which node sent it, if one of these did.
#[derive(Clone, Copy, Debug)]
struct Sent {
    to: u8,
    from: Option<usize>,
    fate: Fate,
}

/// How much there is room for.
#[derive(Clone, Copy, Debug)]
struct Room {
    /// Messages of a topic.
    window: usize,
    /// Steps.
    keep: u64,
    /// What a node may hold.
    bound: usize,
}

const ENOUGH: Room = Room {
    window: usize::MAX,
    keep: u64::MAX,
    bound: usize::MAX,
};

#[derive(Clone, Debug)]
enum Step {
    Send(u8),
    Say(usize, u8, Fate),
    /// A node learns what became of what it sent.
    Told(usize),
    /// So many pass on the connection of a node.
    Hear(usize, u8),
    /// Redis does what it was asked for.
    Execute(usize, u8),
    Answer(usize, u8),
    Kill(usize),
    /// Another process, that has not got the last ones.
    Replace(usize),
    /// Connections stay at the one that it takes over from, which is its replica now and passes on what it publishes.
    Demote(usize),
    Join(usize, u8),
    Leave(usize, u8),
    /// Where nobody was, and something came before; and the connection breaks.
    Enter(usize, u8),
    Advance(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..NODES;
    let fate =
        prop_oneof![5 => Just(Fate::Taken), 1 => Just(Fate::Unsure), 1 => Just(Fate::Refused)];
    let says = (node(), 0..TOPICS, fate);
    prop_oneof![
        10 => (0..TOPICS).prop_map(Step::Send),
        6 => says.prop_map(|(node, topic, fate)| Step::Say(node, topic, fate)),
        8 => node().prop_map(Step::Told),
        10 => (node(), 1..4u8).prop_map(|(node, count)| Step::Hear(node, count)),
        6 => (node(), any::<u8>()).prop_map(|(node, which)| Step::Execute(node, which)),
        6 => (node(), any::<u8>()).prop_map(|(node, which)| Step::Answer(node, which)),
        1 => node().prop_map(Step::Kill),
        1 => (0..4usize).prop_map(Step::Replace),
        1 => (node(), 0..TOPICS).prop_map(|(node, topic)| Step::Join(node, topic)),
        1 => (node(), 0..TOPICS).prop_map(|(node, topic)| Step::Leave(node, topic)),
        1 => (node(), 0..TOPICS).prop_map(|(node, topic)| Step::Enter(node, topic)),
        1 => node().prop_map(Step::Advance),
    ]
}

fn with_replicas() -> impl Strategy<Value = Step> {
    prop_oneof![40 => step(), 1 => (0..4usize).prop_map(Step::Demote)]
}

fn topic(number: u8) -> Topic {
    Topic::room(&number.to_string()).unwrap()
}

#[derive(Clone, Debug)]
enum Said {
    Subscribed(u8),
    Message(u8, Number, u64),
    Probe(u64),
}

#[derive(Debug, Default)]
struct List {
    entries: VecDeque<(Number, u64)>,
    trimmed: bool,
}

struct Redis {
    room: Room,
    run: u32,
    born: Number,
    last: Number,
    now: u64,
    ends: HashMap<Run, Number>,
    lists: BTreeMap<u8, List>,
    /// Of each node: what it is subscribed to, and what is on its way.
    connections: Vec<Option<(HashSet<u8>, VecDeque<Said>)>>,
}

impl Redis {
    fn run(&self) -> Run {
        Run::of(&format!("{:012}", self.run)).unwrap()
    }

    fn number(&mut self) -> Number {
        self.last = Number(self.now.max(self.last.0 + 1));
        self.last
    }

    fn send(&mut self, to: u8, id: u64) {
        let number = self.number();
        let list = self.lists.entry(to).or_default();
        list.entries.push_back((number, id));
        if list.entries.len() > self.room.window {
            list.entries.pop_front();
            list.trimmed = true;
        }
        for (channels, out) in self.connections.iter_mut().flatten() {
            if channels.contains(&to) {
                out.push_back(Said::Message(to, number, id));
            }
        }
    }

    fn read(&mut self, read: &Read) -> Vec<TopicPast> {
        let cut = Mark {
            run: self.run(),
            number: self.number(),
        };
        let past = |topic: &Topic| TopicPast {
            clock: Clock(0),
            cut: Some(cut),
            entries: self.past(topic, read.since.unwrap_or(cut)),
        };
        let nobody = [topic(u8::MAX)];
        let topics = match read.topics.is_empty() {
            true => &nobody[..],
            false => &read.topics,
        };
        topics.iter().map(past).collect()
    }

    fn past(&self, topic: &Topic, since: Mark) -> Result<Vec<Entry>, Missed> {
        let from = match since.run == self.run() {
            true => since.number,
            false => *self.ends.get(&since.run).ok_or(Missed::Forgotten)?,
        };
        let from = from.min(since.number);
        if from < self.born {
            return Err(Missed::Forgotten);
        }
        if from.0.saturating_add(self.room.keep) < self.now {
            return Err(Missed::Late);
        }
        let name = topic.as_room().unwrap();
        let Some(list) = self.lists.get(&name.as_str().parse().unwrap()) else {
            return Ok(Vec::new());
        };
        let known = list.entries.iter().any(|(number, _)| *number <= from);
        if list.trimmed && !known {
            return Err(Missed::TooMany);
        }
        let new = list.entries.iter().filter(|(number, _)| *number > from);
        let entry = |(number, id): &(Number, u64)| Entry {
            number: *number,
            envelope: Bytes::copy_from_slice(&id.to_be_bytes()),
        };
        Ok(new.map(entry).collect())
    }

    /// Another process takes over, without the last messages; these.
    fn replace(&mut self, lost: usize) -> Vec<u64> {
        let numbers = self.lists.values().flat_map(|list| &list.entries);
        let mut numbers: Vec<Number> = numbers.map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        let mut rolled_back = Vec::new();
        if let Some(first) = numbers
            .len()
            .checked_sub(lost)
            .and_then(|at| numbers.get(at))
        {
            for list in self.lists.values_mut() {
                let lost = list.entries.iter().filter(|(number, _)| number >= first);
                rolled_back.extend(lost.map(|(_, id)| *id));
                list.entries.retain(|(number, _)| number < first);
            }
            self.last = Number(first.0 - 1);
        }
        self.ends.insert(self.run(), self.last);
        self.run += 1;
        rolled_back
    }
}

struct Socket {
    number: u64,
    topic: u8,
    got: Vec<u64>,
    /// It has to get everything that is sent later than this; none while it waits.
    since: Option<u64>,
    /// What was sent before its topic was heard is not for it, and may come before that is known.
    not_before: u64,
}

/// What a node asked for.
enum Asked {
    Read(usize, Read),
    Probe(u64),
}

struct Node {
    repair: Repair,
    echoes: Echoes<u64>,
    /// What it has sent, and has not been told of.
    untold: VecDeque<(u64, Sent)>,
    sockets: Vec<Socket>,
    next_socket: u64,
    confirmed: HashSet<u8>,
    /// They were confirmed since somebody wants them.
    known: HashSet<u8>,
    asked: Vec<Asked>,
    answers: Vec<(usize, Vec<TopicPast>)>,
    probe: Option<u64>,
    probes: u64,
    /// All of it, in the order in which it came.
    got: Vec<u64>,
}

impl Node {
    fn wanted(&self) -> HashSet<u8> {
        self.sockets.iter().map(|socket| socket.topic).collect()
    }

    fn deliver(&mut self, topic: &str, envelope: &[u8], older_than: Option<u64>) {
        let id = u64::from_be_bytes(envelope.try_into().unwrap());
        self.got.push(id);
        for socket in &mut self.sockets {
            let meant = older_than.is_none_or(|number| socket.number < number);
            if meant && topic == super::world::topic(socket.topic).as_str() {
                socket.got.push(id);
            }
        }
    }

    /// What came, of this node itself or of others.
    fn hear(&mut self, to: &str, envelope: &[u8], (is_own, older_than): (bool, Option<u64>)) {
        if !is_own {
            return self.deliver(to, envelope, older_than);
        }
        let id = u64::from_be_bytes(envelope.try_into().unwrap());
        let came = self.echoes.came(id, &[to]);
        let own = |own: u64| (own.to_be_bytes(), None);
        let itself = came.is_due.then_some((id.to_be_bytes(), older_than));
        let before = came.before.into_iter().map(own);
        let after = came.after.into_iter().map(own);
        for (envelope, older_than) in before.chain(itself).chain(after) {
            self.deliver(to, &envelope, older_than);
        }
    }

    /// What it sent failed, or did not.
    fn told(&mut self, without: Without) {
        let Some((id, sent)) = self.untold.pop_front() else {
            return;
        };
        let (topics, now) = ([topic(sent.to)], Instant::now());
        if sent.fate == super::world::Fate::Taken {
            return self.echoes.took(id, &topics, true, now);
        }
        let heard = [(topic(sent.to), self.wanted().contains(&sent.to))];
        let failed = self.echoes.fail(id, &heard, false, now, |_| (1, id));
        assert!(failed.let_go.is_empty(), "there is room for all");
        let waits = failed.waits && without != Without::Order;
        if waits || !failed.waits && failed.elsewhere.contains(&topics[0]) {
            return;
        }
        self.deliver(topics[0].as_str(), &id.to_be_bytes(), None);
    }

    /// All that was taken has come back, or will not.
    fn settle(&mut self, sent: &[Sent]) {
        for id in self.echoes.settle(|_, _| true) {
            let to = topic(sent[id as usize].to);
            self.deliver(to.as_str(), &id.to_be_bytes(), None);
        }
    }

    fn disconnected(&mut self) {
        let wanted = self.wanted();
        self.known.retain(|topic| wanted.contains(topic));
        self.confirmed.clear();
        self.lost(self.next_socket);
    }

    /// Another process numbers.
    fn begin_anew(&mut self) {
        self.lost(u64::MAX);
    }

    fn lost(&mut self, newcomers: u64) {
        self.asked.clear();
        self.answers.clear();
        self.probe = None;
        self.repair.lost(newcomers);
    }
}

struct World {
    without: Without,
    redis: Redis,
    nodes: Vec<Node>,
    sent: Vec<Sent>,
    rolled_back: HashSet<u64>,
    /// Which nodes are connected to a replica.
    strayed: [bool; NODES],
    has_strayed: bool,
    gone: Vec<Socket>,
    missed: usize,
    repaired: usize,
}

impl World {
    fn new(without: Without, room: Room) -> Self {
        let node = |at: usize| Node {
            repair: Repair::new(room.bound),
            echoes: Echoes::new(NodeId(at as u64)),
            untold: VecDeque::new(),
            sockets: Vec::new(),
            next_socket: 0,
            confirmed: HashSet::new(),
            known: HashSet::new(),
            asked: Vec::new(),
            answers: Vec::new(),
            probe: None,
            probes: 0,
            got: Vec::new(),
        };
        let mut world = Self {
            without,
            redis: Redis {
                room,
                run: 0,
                born: Number(1),
                last: Number(1),
                now: 2,
                ends: HashMap::new(),
                lists: BTreeMap::new(),
                connections: vec![None; NODES],
            },
            nodes: (0..NODES).map(node).collect(),
            sent: Vec::new(),
            rolled_back: HashSet::new(),
            strayed: [false; NODES],
            has_strayed: false,
            gone: Vec::new(),
            missed: 0,
            repaired: 0,
        };
        if without == Without::Known {
            let nodes = world.nodes.iter_mut();
            nodes.for_each(|node| node.repair.known = Known::new(0));
        }
        for node in 0..NODES {
            for topic in 0..TOPICS - 1 {
                world.take(Step::Join(node, topic));
            }
        }
        world.settle();
        world
    }

    fn take(&mut self, step: Step) {
        self.redis.now += 1;
        match step {
            Step::Send(to) => self.send(Sent {
                to,
                from: None,
                fate: Fate::Taken,
            }),
            Step::Say(node, to, fate) => self.say(node, to, fate),
            Step::Told(node) => self.nodes[node].told(self.without),
            Step::Hear(node, count) => (0..count).for_each(|_| self.hear(node)),
            Step::Execute(node, which) => self.execute(node, which.into()),
            Step::Answer(node, which) => self.answer(node, which.into()),
            Step::Kill(node) => {
                self.redis.connections[node] = None;
                self.strayed[node] = false;
                self.nodes[node].disconnected();
            }
            Step::Replace(lost) => {
                self.rolled_back.extend(self.redis.replace(lost));
                (0..NODES).for_each(|node| self.take(Step::Kill(node)));
            }
            Step::Demote(lost) => {
                self.rolled_back.extend(self.redis.replace(lost));
                (self.strayed, self.has_strayed) = ([true; NODES], true);
            }
            Step::Join(node, topic) => {
                let is_heard = |(channels, _): &(HashSet<u8>, _)| channels.contains(&topic);
                let is_heard = self.redis.connections[node].as_ref().is_some_and(is_heard);
                let node = &mut self.nodes[node];
                node.sockets.push(Socket {
                    not_before: match is_heard {
                        true => 0,
                        false => self.sent.len() as u64,
                    },
                    number: node.next_socket,
                    topic,
                    got: Vec::new(),
                    since: None,
                });
                node.next_socket += 1;
            }
            Step::Leave(node, topic) => {
                let leaves = |socket: &mut Socket| socket.topic == topic;
                let gone = self.nodes[node].sockets.extract_if(.., leaves);
                self.gone.extend(gone.map(|socket| Socket {
                    since: None,
                    ..socket
                }));
                // It lingers until what is on its way has come.
                if let Some((channels, out)) = &mut self.redis.connections[node]
                    && out.is_empty()
                    && self.nodes[node].repair.is_live()
                {
                    channels.remove(&topic);
                    self.nodes[node].confirmed.remove(&topic);
                    self.nodes[node].known.remove(&topic);
                }
            }
            Step::Enter(node, topic) => {
                let sent = Step::Send(topic);
                let steps = [Step::Leave(node, topic), sent, Step::Join(node, topic)];
                let steps = steps.into_iter().chain([Step::Kill(node)]);
                steps.for_each(|step| self.take(step));
            }
            Step::Advance(node) => self.advance(node),
        }
        (0..NODES).for_each(|node| self.turn(node));
    }

    fn send(&mut self, sent: Sent) {
        if sent.fate != Fate::Refused {
            self.redis.send(sent.to, self.sent.len() as u64);
        }
        self.sent.push(sent);
    }

    /// One after the other.
    fn say(&mut self, at: usize, to: u8, fate: Fate) {
        let (id, from) = (self.sent.len() as u64, Some(at));
        let node = &mut self.nodes[at];
        if node.untold.iter().all(|(_, sent)| sent.to != to) {
            let sent = Sent { to, from, fate };
            node.echoes.begin(id);
            node.untold.push_back((id, sent));
            self.send(sent);
        }
    }

    fn hear(&mut self, at: usize) {
        let Some((_, out)) = &mut self.redis.connections[at] else {
            return;
        };
        let Some(said) = out.pop_front() else { return };
        let node = &mut self.nodes[at];
        match said {
            Said::Subscribed(to) => {
                node.confirmed.insert(to);
                if node.known.insert(to) {
                    node.repair.confirmed(topic(to));
                }
            }
            Said::Message(to, number, id) => {
                let (to, envelope) = (topic(to), id.to_be_bytes());
                let is_own = self.sent[id as usize].from == Some(at);
                if node.repair.came(to.as_str(), number, &envelope) == super::Fate::Due {
                    node.hear(to.as_str(), &envelope, (is_own, None));
                }
            }
            Said::Probe(number) if node.probe == Some(number) => {
                node.probe = None;
                node.repair.came_back();
            }
            Said::Probe(_) => {}
        }
    }

    fn execute(&mut self, at: usize, which: usize) {
        let node = &mut self.nodes[at];
        if node.asked.is_empty() {
            return;
        }
        match node.asked.swap_remove(which % node.asked.len()) {
            Asked::Read(place, read) => {
                node.answers.push((place, self.redis.read(&read)));
            }
            Asked::Probe(number) => {
                if let Some((_, out)) = &mut self.redis.connections[at] {
                    out.push_back(Said::Probe(number));
                }
            }
        }
    }

    fn answer(&mut self, at: usize, which: usize) {
        let node = &mut self.nodes[at];
        if node.answers.is_empty() {
            return;
        }
        let (place, mut past) = node.answers.swap_remove(which % node.answers.len());
        for topic in &mut past {
            match self.without {
                Without::Cuts => {
                    topic.cut = topic.cut.map(|cut| Mark {
                        number: Number(0),
                        ..cut
                    });
                }
                Without::Repair => topic.entries = Ok(Vec::new()),
                Without::Barrier | Without::Order | Without::Known | Without::Nothing => {}
            }
        }
        let read = |topic: &TopicPast| topic.entries.as_ref().map_or(0, Vec::len);
        self.repaired += past.iter().map(read).sum::<usize>();
        if !node.repair.answered(place, past) {
            assert!(self.has_strayed, "one process at a time");
            node.begin_anew();
        }
    }

    /// A probe that was numbered came back, as far as this one knows.
    fn advance(&mut self, at: usize) {
        let Some((_, out)) = &self.redis.connections[at] else {
            return;
        };
        if out.is_empty() {
            let number = self.redis.number();
            let run = self.redis.run();
            let node = &mut self.nodes[at];
            let youngest = node.repair.youngest().unwrap_or_default();
            if !node.repair.advance(Mark { run, number }, youngest) {
                node.begin_anew();
            }
            if node.repair.is_live() {
                node.settle(&self.sent);
            }
        }
    }

    /// What a node does by itself.
    fn turn(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let wanted = node.wanted();
        let (channels, out) = self.redis.connections[at].get_or_insert_default();
        for topic in wanted.difference(&channels.clone()) {
            channels.insert(*topic);
            out.push_back(Said::Subscribed(*topic));
        }
        if node.repair.is_deaf() && wanted.is_subset(&node.confirmed) {
            let mut topics: Vec<u8> = wanted.into_iter().collect();
            topics.sort_unstable();
            let topics = topics.into_iter().map(topic).collect();
            node.repair.begin(topics, AT_ONCE);
        }
        while let Some((place, read)) = node.repair.next_read(AT_ONCE, None) {
            node.asked.push(Asked::Read(place, read));
        }
        if !node.repair.is_read() {
            // What was dropped meanwhile is read again: a probe from before proves nothing.
            node.probe = None;
        } else if node.probe.is_none() {
            node.probes += 1;
            match self.without {
                Without::Barrier => _ = node.repair.came_back(),
                _ => {
                    node.probe = Some(node.probes);
                    node.asked.push(Asked::Probe(node.probes));
                }
            }
        }
        let sent = Some(self.sent.len() as u64);
        for (missed, _) in node.repair.take_missed() {
            self.missed += 1;
            for socket in &mut node.sockets {
                if topic(socket.topic) == missed {
                    socket.since = socket.since.and(sent);
                }
            }
        }
        while let Some(due) = node.repair.next() {
            let id = u64::from_be_bytes(due.envelope[..].try_into().unwrap());
            let is_own = self.sent[id as usize].from == Some(at);
            node.hear(&due.topic, &due.envelope, (is_own, due.older_than));
        }
        node.repair.delivered();
        if node.repair.is_live() {
            for socket in &mut node.sockets {
                if node.confirmed.contains(&socket.topic) {
                    socket.since = socket.since.or(sent);
                }
            }
        }
    }

    /// Nothing breaks any more.
    fn settle(&mut self) {
        for node in 0..NODES {
            if self.strayed[node] {
                self.take(Step::Kill(node));
            }
        }
        for _ in 0..2000 {
            for node in 0..NODES {
                self.take(Step::Execute(node, 0));
                self.take(Step::Answer(node, 0));
                self.take(Step::Hear(node, 1));
                self.take(Step::Told(node));
                self.take(Step::Advance(node));
            }
            let is_done = |at: usize| {
                let is_empty = self.redis.connections[at]
                    .as_ref()
                    .is_some_and(|(_, out)| out.is_empty());
                let node = &self.nodes[at];
                is_empty && node.repair.is_live() && node.untold.is_empty()
            };
            if (0..NODES).all(is_done) {
                return;
            }
        }
        panic!("it does not end");
    }

    /// What is wrong, if anything.
    fn judge(&self, one_order: bool) -> Result<(), String> {
        for (at, node) in self.nodes.iter().enumerate() {
            if one_order && !is_rising(node.got.iter().filter(|id| self.is_taken(**id))) {
                return Err(format!("twice or out of order: {:?}", node.got));
            }
            for socket in &node.sockets {
                self.find_lost(at, socket)?;
            }
        }
        let sockets = self.nodes.iter().flat_map(|node| &node.sockets);
        for socket in sockets.chain(&self.gone) {
            let once: HashSet<&u64> = socket.got.iter().collect();
            let in_order = (0..NODES).all(|from| {
                let is_of = |id: &&u64| {
                    **id >= socket.not_before && self.sent[**id as usize].from == Some(from)
                };
                is_rising(socket.got.iter().filter(is_of))
            });
            // Of a run that goes on all is read, of whenever a topic was not heard yet.
            let is_due = |id: &&u64| !self.has_strayed || **id >= socket.not_before;
            let taken = socket.got.iter().filter(is_due);
            let taken = taken.filter(|id| self.is_taken(**id));
            if once.len() < socket.got.len() || !in_order || !is_rising(taken) {
                return Err(format!("twice or out of order: {:?}", socket.got));
            }
        }
        Ok(())
    }

    /// What failed has its place among what its node sent, and no other.
    fn is_taken(&self, id: u64) -> bool {
        self.sent[id as usize].fate == Fate::Taken
    }

    fn find_lost(&self, at: usize, socket: &Socket) -> Result<(), String> {
        let since = socket.since.expect("all is confirmed");
        let sent = (0..).zip(&self.sent).skip(since as usize);
        let lost = sent.filter(|(id, sent)| {
            let is_owed = self.is_taken(*id) || sent.from == Some(at);
            let is_lost = self.is_taken(*id) && self.rolled_back.contains(id);
            sent.to == socket.topic && is_owed && !is_lost && !socket.got.contains(id)
        });
        match lost.map(|(id, _)| id).next() {
            Some(lost) => Err(format!("{lost} is lost: {:?} since {since}", socket.got)),
            None => Ok(()),
        }
    }
}

fn is_rising<'a>(ids: impl Iterator<Item = &'a u64>) -> bool {
    ids.is_sorted_by(|one, next| one < next)
}

fn live(steps: Vec<Step>, without: Without, room: Room) -> World {
    let mut world = World::new(without, room);
    steps.into_iter().for_each(|step| world.take(step));
    world.settle();
    world
}

proptest! {
    #![proptest_config(Config::with_cases(96))]

    #[test]
    fn nothing_is_lost_and_nothing_comes_twice(steps in vec(step(), 0..400)) {
        let world = live(steps, Without::Nothing, ENOUGH);
        prop_assert_eq!(world.judge(true), Ok(()));
        prop_assert_eq!(world.missed, 0, "there is room for all");
    }

    #[test]
    fn what_a_replica_passed_on_does_not_come_twice(steps in vec(with_replicas(), 0..400)) {
        let world = live(steps, Without::Nothing, ENOUGH);
        prop_assert_eq!(world.judge(false), Ok(()));
        prop_assert_eq!(world.missed, 0, "there is room for all");
    }

    #[test]
    fn who_holds_little_reads_again(steps in vec(step(), 0..400), bound in 0..600usize) {
        let world = live(steps, Without::Nothing, Room { bound, ..ENOUGH });
        prop_assert_eq!(world.judge(false), Ok(()));
        prop_assert_eq!(world.missed, 0, "there is room for all");
    }

    #[test]
    fn what_is_not_kept_any_more_is_told(
        steps in vec(step(), 0..400),
        window in 1..4usize,
        keep in 20..400u64,
    ) {
        let world = live(steps, Without::Nothing, Room { window, keep, ..ENOUGH });
        prop_assert_eq!(world.judge(true), Ok(()));
    }
}

/// The same steps for all: the faults are there, and the rules are what helps against them.
#[test]
fn each_rule_is_needed() {
    let wrong = |step: BoxedStrategy<Step>, without| {
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        let mut repaired = 0;
        let worlds = (0..60).filter(|_| {
            let steps = vec(step.clone(), 400)
                .new_tree(&mut runner)
                .unwrap()
                .current();
            let world = live(steps, without, ENOUGH);
            repaired += world.repaired;
            world.judge(!world.has_strayed).is_err()
        });
        (worlds.count(), repaired)
    };
    let (failed, repaired) = wrong(step().boxed(), Without::Nothing);
    assert_eq!(failed, 0);
    assert!(repaired > 200, "control: {repaired} were missed");
    for without in [
        Without::Barrier,
        Without::Cuts,
        Without::Repair,
        Without::Order,
    ] {
        let (failed, _) = wrong(step().boxed(), without);
        assert!(failed > 3, "{without:?}: {failed}");
    }
    let (failed, _) = wrong(with_replicas().boxed(), Without::Known);
    assert!(failed > 3, "what a replica passed on: {failed}");
}
