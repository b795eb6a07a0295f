//! A Redis Cluster: primaries and their replicas, slots that move, and a bus between them that may be cut.

#[path = "cluster_bus.rs"]
mod cluster_bus;

use std::collections::{BTreeSet, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::ops::RangeInclusive;
use std::thread::sleep;
use std::time::{Duration, Instant};

use cluster_bus::{Cut, Way};

use super::{RedisServer, START, free_port};

/// So long a node is silent before the others take it for gone, in milliseconds.
pub const NODE_TIMEOUT: &str = "1500";
const SLOTS: usize = 16_384;
/// Slots that move at once.
const BATCH: usize = 64;

#[derive(Debug)]
pub struct RedisCluster {
    /// The primaries of the start, then as many of their replicas, and so on.
    pub nodes: Vec<RedisServer>,
    ids: Vec<String>,
    options: Vec<String>,
    /// Who is cut off, and the ways to each node's bus that mind it.
    cut: Option<Cut>,
    ways: Vec<Way>,
}

impl RedisCluster {
    /// Waits until every node calls the cluster well and knows every other.
    pub fn start(primaries: usize, replicas_each: usize) -> Self {
        Self::with_options(primaries, replicas_each, &[])
    }

    /// With further options of every server.
    pub fn with_options(primaries: usize, replicas_each: usize, options: &[&str]) -> Self {
        Self::build(primaries, replicas_each, options, None)
    }

    /// One whose nodes may be [cut off](Self::cut) from one another.
    pub fn severable(primaries: usize, replicas_each: usize, options: &[&str]) -> Self {
        Self::build(primaries, replicas_each, options, Some(Cut::default()))
    }

    fn build(primaries: usize, replicas_each: usize, options: &[&str], cut: Option<Cut>) -> Self {
        let mut cluster = Self {
            nodes: Vec::new(),
            ids: Vec::new(),
            options: options.iter().map(ToString::to_string).collect(),
            cut,
            ways: Vec::new(),
        };
        for _ in 0..primaries * (1 + replicas_each) {
            cluster.bring();
        }
        for n in 0..primaries {
            let first = SLOTS * n / primaries;
            let last = SLOTS * (n + 1) / primaries - 1;
            cluster.ok(n, &format!("CLUSTER SET-CONFIG-EPOCH {}", n + 1));
            cluster.ok(n, &format!("CLUSTER ADDSLOTSRANGE {first} {last}"));
        }
        for n in 1..cluster.nodes.len() {
            cluster.meet(n);
        }
        cluster.wait_for_one_another(0);
        for n in primaries..cluster.nodes.len() {
            let primary = &cluster.ids[n % primaries];
            cluster.ok(n, &format!("CLUSTER REPLICATE {primary}"));
        }
        cluster.wait_for_one_another(primaries * replicas_each);
        cluster
    }

    /// What a node of ours is given.
    pub fn url(&self) -> String {
        let hosts = self.nodes.iter();
        let hosts: Vec<_> = hosts.map(|n| format!("127.0.0.1:{}", n.port())).collect();
        format!("redis-cluster://{}", hosts.join(","))
    }

    /// What this node answers to one command, each element in a line of its own.
    pub fn ask(&self, node: usize, command: &str) -> String {
        ask(&self.nodes[node], command).expect("it answers")
    }

    /// Valkey takes some commands only while its replicas follow.
    fn ok(&self, node: usize, command: &str) {
        let mut answer = self.ask(node, command);
        let deadline = Instant::now() + START;
        while answer.starts_with("NOREPLICAS") && Instant::now() < deadline {
            sleep(Duration::from_millis(10));
            answer = self.ask(node, command);
        }
        assert_eq!(answer, "OK", "{command}");
    }

    /// The channels that somebody hears at this node, of those that begin so.
    pub fn heard_at(&self, node: usize, prefix: &str) -> BTreeSet<String> {
        let heard = self.ask(node, &format!("PUBSUB SHARDCHANNELS {prefix}*"));
        heard.lines().map(str::to_owned).collect()
    }

    /// How often this was called, at all nodes that run.
    pub fn calls(&self, command: &str) -> u64 {
        let running = self.nodes.iter().filter(|node| node.is_running());
        running.map(|node| node.calls(command)).sum()
    }

    /// Whose slot this is, as the node says.
    pub fn owner(&self, slot: u16, as_said_by: usize) -> Option<usize> {
        let nodes = self.ask(as_said_by, "CLUSTER NODES");
        let owns = |line: &&str| line.split(' ').skip(8).any(|range| contains(range, slot));
        let id = nodes.lines().find(owns)?.split(' ').next()?;
        self.ids.iter().position(|known| known == id)
    }

    pub fn is_primary(&self, node: usize) -> bool {
        self.ask(node, "ROLE").starts_with("master")
    }

    /// Whether this node takes the cluster for well.
    pub fn is_well(&self, node: usize) -> bool {
        let info = ask(&self.nodes[node], "CLUSTER INFO");
        info.is_ok_and(|info| info.contains("cluster_state:ok"))
    }

    /// Moves slots key by key, one after the other, as resharding does.
    pub fn move_slots(&self, slots: impl IntoIterator<Item = u16>, to: usize) {
        for slot in slots {
            self.begin_move(slot, to);
            self.move_keys(slot, to);
            self.flip(slot, to);
        }
    }

    /// From now on the slot is on its way.
    pub fn begin_move(&self, slot: u16, to: usize) {
        let from = self.owner(slot, to).expect("somebody owns it");
        let (source, target) = (&self.ids[from], &self.ids[to]);
        self.ok(to, &format!("CLUSTER SETSLOT {slot} IMPORTING {source}"));
        self.ok(from, &format!("CLUSTER SETSLOT {slot} MIGRATING {target}"));
    }

    /// Moves what is in it, and returns how many keys that were.
    pub fn move_keys(&self, slot: u16, to: usize) -> usize {
        let from = self.owner(slot, to).expect("somebody owns it");
        let (mut moved, port) = (0, self.nodes[to].port());
        loop {
            let keys = self.ask(from, &format!("CLUSTER GETKEYSINSLOT {slot} 100"));
            if keys.is_empty() {
                return moved;
            }
            moved += keys.lines().count();
            let keys = keys.replace('\n', " ");
            let command = format!("MIGRATE 127.0.0.1 {port} \"\" 0 5000 KEYS {keys}");
            self.ok(from, &command);
        }
    }

    /// From now on the slot is there, which all primaries are told.
    pub fn flip(&self, slot: u16, to: usize) {
        let from = self.owner(slot, to).expect("somebody owns it");
        let told = (0..self.nodes.len()).filter(|node| ![from, to].contains(node));
        for node in [to, from].into_iter().chain(told) {
            if self.nodes[node].is_running() && self.is_primary(node) {
                let command = format!("CLUSTER SETSLOT {slot} NODE {}", self.ids[to]);
                self.ok(node, &command);
            }
        }
    }

    /// Moves a slot as a whole, which Valkey 9 can, and waits until all know.
    pub fn move_at_once(&self, slot: u16, to: usize) {
        let from = self.owner(slot, to).expect("somebody owns it");
        let target = &self.ids[to];
        let command = format!("CLUSTER MIGRATESLOTS SLOTSRANGE {slot} {slot} NODE {target}");
        self.ok(from, &command);
        wait("the slot has moved", || {
            let mut running = (0..self.nodes.len()).filter(|node| self.nodes[*node].is_running());
            running.all(|node| self.owner(slot, node) == Some(to))
        });
    }

    /// Moves slots that hold no keys, many at a time, as a rebalance does. They have one owner.
    pub fn move_range(&self, slots: RangeInclusive<u16>, to: usize) {
        let slots: Vec<u16> = slots.collect();
        let from = self.owner(slots[0], to).expect("somebody owns it");
        let (source, target) = (&self.ids[from], &self.ids[to]);
        for batch in slots.chunks(BATCH) {
            self.set_slots(to, batch, &format!("IMPORTING {source}"));
            self.set_slots(from, batch, &format!("MIGRATING {target}"));
            let told = (0..self.nodes.len()).filter(|node| ![from, to].contains(node));
            for node in [to, from].into_iter().chain(told) {
                if self.nodes[node].is_running() && self.is_primary(node) {
                    self.set_slots(node, batch, &format!("NODE {target}"));
                }
            }
        }
    }

    fn set_slots(&self, node: usize, slots: &[u16], what: &str) {
        let commands: String = slots
            .iter()
            .map(|slot| format!("CLUSTER SETSLOT {slot} {what}\r\n"))
            .collect();
        let answers = ask_all(&self.nodes[node], &commands, slots.len());
        let answers = answers.expect("it answers");
        // Who has lost its last slot follows whoever got it, and knows from there.
        let follows = || !self.is_primary(node);
        let is_told = answers.iter().all(|ok| ok == "OK");
        assert!(is_told || follows(), "{what}: {answers:?}");
    }

    /// Whether this node passes on what is sent to this topic, to somebody.
    pub fn is_heard_at(&self, node: usize, topic: &str) -> bool {
        let channels = self.ask(node, "PUBSUB SHARDCHANNELS");
        let ends = format!("}}:{topic}");
        channels.lines().any(|channel| channel.ends_with(&ends))
    }

    /// How the others know this node.
    pub fn id(&self, node: usize) -> &str {
        &self.ids[node]
    }

    /// One more primary, that owns nothing yet.
    pub fn add_primary(&mut self) -> usize {
        let new = self.bring();
        self.meet(new);
        wait("the new node is known", || {
            let others = (0..new).filter(|node| self.nodes[*node].is_running());
            let mut nodes = others.map(|node| self.ask(node, "CLUSTER NODES"));
            nodes.all(|nodes| nodes.contains(&self.ids[new]) && !nodes.contains("handshake"))
                && self.is_well(new)
        });
        new
    }

    /// Takes a node that owns nothing out, and ends it.
    pub fn remove(&mut self, node: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            if self.nodes[other].is_running() {
                self.ok(other, &format!("CLUSTER FORGET {}", self.ids[node]));
            }
        }
        self.nodes[node].kill();
    }

    /// Makes a replica the primary gracefully, and waits until it is.
    pub fn fail_over(&self, replica: usize) {
        self.ok(replica, "CLUSTER FAILOVER");
        wait("the replica is promoted", || self.is_primary(replica));
    }

    /// Cuts these off from the others, of a [severable](Self::severable) cluster: they reach one another.
    pub fn cut(&self, nodes: &[usize]) {
        let ids: HashSet<String> = nodes.iter().map(|node| self.ids[*node].clone()).collect();
        self.cut.as_ref().expect("it is severable").set(ids);
    }

    pub fn heal(&self) {
        self.cut(&[]);
    }

    fn bring(&mut self) -> usize {
        let bus = free_port();
        let bus_port = bus.to_string();
        let mut options = vec!["--cluster-enabled", "yes", "--cluster-port", &bus_port];
        options.extend(["--cluster-node-timeout", NODE_TIMEOUT]);
        options.extend(["--repl-diskless-sync-delay", "0"]);
        // However long a replica has missed its primary: the machine may be slow.
        options.extend(["--cluster-replica-validity-factor", "0"]);
        options.extend(self.options.iter().map(String::as_str));
        let way = self.cut.as_ref().map(|cut| Way::to(bus, cut.clone()));
        let announced = way.as_ref().map(|way| way.port().to_string());
        if let Some(port) = &announced {
            options.extend(["--cluster-announce-bus-port", port]);
        }
        self.nodes.push(RedisServer::with_options(&options));
        let new = self.nodes.len() - 1;
        let id = self.ask(new, "CLUSTER MYID");
        if let Some(way) = way {
            way.leads_to(&id);
            self.ways.push(way);
        }
        self.ids.push(id);
        new
    }

    fn meet(&self, node: usize) {
        let first = self.nodes.iter().find(|node| node.is_running());
        let first = first.expect("somebody is left");
        let bus = match self.ways.get(node) {
            Some(way) => way.port().to_string(),
            None => setting(&self.nodes[node], "cluster-port"),
        };
        let command = format!("CLUSTER MEET 127.0.0.1 {} {bus}", self.nodes[node].port());
        assert_eq!(ask(first, &command).expect("it answers"), "OK");
    }

    fn wait_for_one_another(&self, replicas: usize) {
        let known = self.nodes.len();
        for (n, node) in self.nodes.iter().enumerate() {
            wait("the nodes know one another", || {
                let nodes = self.ask(n, "CLUSTER NODES");
                let is_settled = !["handshake", "fail?", "noaddr"]
                    .iter()
                    .any(|flag| nodes.contains(flag));
                let follows = self.is_primary(n)
                    || ask(node, "INFO replication")
                        .is_ok_and(|info| info.contains("master_link_status:up"));
                nodes.lines().count() == known
                    && nodes.matches("slave ").count() == replicas
                    && is_settled
                    && follows
                    && self.is_well(n)
            });
        }
    }
}

/// By the polynomial 0x1021, bit by bit.
fn slot(name: &str) -> u16 {
    let bit = |sum: u16, _| match sum & 0x8000 {
        0 => sum << 1,
        _ => sum << 1 ^ 0x1021,
    };
    let byte = |sum: u16, byte| (0..8).fold(sum ^ u16::from(byte) << 8, bit);
    name.bytes().fold(0, byte) % SLOTS as u16
}

/// The part of all topics to which this one belongs, below 256.
pub fn part(topic: &str) -> u16 {
    slot(topic) / 64
}

fn tag(part: u16) -> String {
    let mut numbers = (0..).map(|number: u32| number.to_string());
    let tag = numbers.find(|number| self::part(number) == part);
    tag.expect("there is one below 500")
}

/// The slot in which all topics of a part are.
pub fn slot_of(part: u16) -> u16 {
    slot(&tag(part))
}

/// How all channels of a part begin, in the namespace of the tests.
pub fn prefix_of(part: u16) -> String {
    format!("cluster:{{{}}}:", tag(part))
}

fn contains(range: &str, slot: u16) -> bool {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) => (first..=last).contains(&slot),
        _ => false,
    }
}

fn setting(node: &RedisServer, name: &str) -> String {
    let pair = ask(node, &format!("CONFIG GET {name}")).expect("it answers");
    pair.lines().nth(1).unwrap_or_default().to_owned()
}

/// One command by a connection of its own: quicker than `redis-cli`, and moving slots takes thousands.
fn ask(node: &RedisServer, command: &str) -> std::io::Result<String> {
    let answers = ask_all(node, &format!("{command}\r\n"), 1)?;
    Ok(answers.concat())
}

/// So many commands at once, each with its end of the line.
fn ask_all(node: &RedisServer, commands: &str, count: usize) -> std::io::Result<Vec<String>> {
    let mut stream = TcpStream::connect(("127.0.0.1", node.port()))?;
    stream.set_read_timeout(Some(START))?;
    stream.write_all(commands.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut answers = Vec::new();
    for _ in 0..count {
        let mut lines = Vec::new();
        read(&mut reader, &mut lines)?;
        answers.push(lines.join("\n"));
    }
    Ok(answers)
}

fn read(reader: &mut impl BufRead, lines: &mut Vec<String>) -> std::io::Result<()> {
    let mut head = String::new();
    reader.read_line(&mut head)?;
    let head = head.trim_end();
    let length = || head[1..].parse::<usize>().ok();
    match head.as_bytes().first() {
        Some(b'$') => {
            if let Some(length) = length() {
                let mut text = vec![0; length + 2];
                reader.read_exact(&mut text)?;
                lines.push(String::from_utf8_lossy(&text[..length]).into_owned());
            }
        }
        Some(b'*') => {
            for _ in 0..length().unwrap_or(0) {
                read(reader, lines)?;
            }
        }
        Some(_) => lines.push(head[1..].to_owned()),
        None => return Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
    Ok(())
}

fn wait(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + START;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        sleep(Duration::from_millis(10));
    }
}
