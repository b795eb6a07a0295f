//! The hellos of this node and of others. When they are said, say the rules of [`membership`](super::membership).

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::introduction::Introduction;
use super::membership::{Duty, Greeting, Membership, Welcome};
use super::nodes::Nodes;
use crate::bus::control::{Control, Hello};
use crate::bus::health::HealthChanges;
use crate::bus::inbound::Hearers;
use crate::bus::reception::Reception;
use crate::bus::scope::Scope;
use crate::bus::uplink::Uplink;
use crate::counts::Counters;
use crate::home::{Ground, Home};
use crate::model::id::NodeId;
use crate::model::limits::LONGEST;
use crate::model::topic::Topic;
use crate::presence::Mailbox;

#[derive(Debug)]
pub(super) struct Hellos {
    node: NodeId,
    home: Arc<Home>,
    reception: Arc<Reception>,
    uplink: Arc<Uplink>,
    counters: Arc<Counters>,
    nodes: Arc<Mutex<Nodes>>,
    introduction: Arc<Introduction>,
    presence: Arc<Mailbox>,
}

impl Hellos {
    pub(super) fn new(
        ground: &Ground,
        uplink: &Arc<Uplink>,
        nodes: &Arc<Mutex<Nodes>>,
        introduction: &Arc<Introduction>,
        presence: &Arc<Mailbox>,
    ) -> Self {
        Self {
            node: ground.node,
            home: ground.home.clone(),
            reception: ground.reception.clone(),
            uplink: uplink.clone(),
            counters: ground.counters.clone(),
            nodes: nodes.clone(),
            introduction: introduction.clone(),
            presence: presence.clone(),
        }
    }

    /// Says when to look.
    pub(super) fn changes(&self) -> HealthChanges {
        self.reception.health_changes()
    }

    /// Says when there is something to tell of strays.
    pub(super) fn astray(&self) -> Arc<Notify> {
        self.reception.astray()
    }

    /// What is to be done now.
    pub(super) fn next(&self, membership: &Membership) -> Duty {
        let is_refused = !self.reception.refused_kinds().is_empty();
        membership.next(self.reception.hearing_nodes(), is_refused)
    }

    /// A node said hello, and may want a reply; to this node alone, or to everybody.
    pub(super) fn heard(self: &Arc<Self>, hello: Hello, hearers: Hearers) {
        let Hello {
            node: info,
            lease,
            reply,
            worker,
            refused,
            shards,
            histories,
            heard,
        } = hello;
        let (id, name) = (info.id, info.name.clone());
        let (lease, now) = (Duration::from_millis(lease), Instant::now());
        let of_us = heard.into_iter().find(|(node, _)| *node == self.node);
        let of_us = of_us.map(|(_, micros)| micros);
        self.counters.measures.told_by(id, of_us);
        let is_new = {
            let mut nodes = self.nodes.lock();
            let is_new = nodes.heard(info, lease, worker, now);
            nodes.set_refused(id, refused);
            is_new
        };
        if is_new {
            let name = (!name.is_empty()).then_some(name);
            let worker = worker.then_some(true);
            tracing::info!(node = %self.node, other = %id, name, worker, "a node joined");
            self.compare_shards(id, &shards);
            self.compare_histories(id, &histories);
        }
        let Welcome { joined, greeting } = Welcome::to(is_new, reply, hearers);
        if joined {
            self.presence.joined(id);
        }
        if let Some(greeting) = greeting {
            self.greet(id, greeting);
        }
    }

    /// Whoever keeps less, or not as long, makes positions worth less than all others promise.
    fn compare_histories(&self, id: NodeId, theirs: &[String]) {
        let ours = self.introduction.histories();
        if ours != theirs {
            let (ours, theirs) = (ours.join(" "), theirs.join(" "));
            tracing::warn!(node = %self.node, other = %id, ours, theirs,
                "a node keeps other histories than this one: give all nodes and workers the same");
        }
    }

    /// Whoever shares the topics between other Redises looks for some of them elsewhere, and nobody would notice.
    fn compare_shards(&self, id: NodeId, theirs: &[String]) {
        let ours = self.introduction.shards();
        if ours != theirs {
            self.counters.record_other_shards();
            let (ours, theirs) = (ours.join(" "), theirs.join(" "));
            tracing::warn!(node = %self.node, other = %id, ours, theirs,
                "a node shares the topics between other Redises than this one: give all nodes the same list of shards");
        }
    }

    /// What a node published may have reached others only, while we heard all there was to hear.
    pub(super) fn heard_of_strays(&self, id: NodeId, millis: u64) {
        let now = Instant::now();
        let span = Duration::from_millis(millis).min(LONGEST);
        let from = now.checked_sub(span).unwrap_or(now);
        if !self.reception.others_strayed((from, now)) {
            return;
        }
        tracing::info!(node = %self.node, other = %id, ?span, "a node stood on a replica: what it sent meanwhile may not have arrived");
    }

    /// Tells the others that what we published may not have arrived, and our sockets what the others say so.
    pub(super) async fn tell_of_strays(&self) {
        let reception = &self.reception;
        reception.tell_of_others();
        if let Some(since) = reception.take_strayed() {
            let millis = since.elapsed().as_millis() as u64;
            let strayed = Control::Strayed { millis };
            // Who has followed in part may not be where all meet yet, and was told a gap of that part already.
            let ways = self.uplink.everywhere().into_iter();
            let said = join_all(ways.map(|way| self.say(way, &strayed))).await;
            if said.first() != Some(&true) {
                reception.still_strayed(since);
            }
        }
    }

    /// Says hello to all nodes. Whether it was said.
    pub(super) async fn say_to_all(&self, reply: bool) -> bool {
        self.say_hello(Topic::nodes(), reply).await
    }

    pub(super) async fn say_goodbye(&self) {
        // Without it our lease ends.
        let _ = self.say(Topic::nodes(), &Control::Bye).await;
    }

    /// Tells one node of this one.
    fn greet(self: &Arc<Self>, other: NodeId, greeting: Greeting) {
        let hellos = self.clone();
        self.home.spawn(async move {
            let hello = hellos.say_hello(Topic::node(other), greeting.wants_reply());
            if !hello.await && greeting.must_be_said() {
                hellos.nodes.lock().left(other);
            }
        });
    }

    async fn say_hello(&self, to: Topic, reply: bool) -> bool {
        // After the goodbye it would be believed for a lease.
        if self.home.is_stopped() {
            return false;
        }
        let refused = self.reception.refused_kinds();
        let hello = self.introduction.hello(reply, &refused);
        self.say(to, &hello).await
    }

    async fn say(&self, to: Topic, control: &Control) -> bool {
        let word = self.uplink.write_word(&Scope::default(), 0, control);
        self.uplink.say(to, word).await.is_ok()
    }
}
