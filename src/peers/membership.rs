//! This node among the others: it says hello again and again, and notices who no longer does.
//!
//! ```text
//!                         the nodes hear each other                   said
//!  bus down, or new ------------------------------> hello, reply! ------------> hello, a third of a lease later, ...
//!         ^                                               ^  |                              |
//!         |                                               +--+ not said                     |
//!         +---------------------------------------------------------------------------------+  they do not
//! ```
//! Whoever returns asks all others for a reply, and tells presence, since both sides may have missed something. A node
//! is new to us as well when only it has missed us: so who says hello without being known is asked for its own.

use std::sync::Weak;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Peers;
use super::nodes::MARGIN;
use crate::bus::control::{Control, Hello};
use crate::bus::scope::Scope;
use crate::bus::uplink::Hearers;
use crate::model::id::NodeId;
use crate::model::limits::LONGEST;
use crate::model::roster::NodeInfo;
use crate::model::topic::Topic;

impl Peers {
    pub(super) fn introduce(&self) -> NodeInfo {
        let registry = self.local.registry();
        NodeInfo {
            id: self.id,
            name: self.settings.name.clone(),
            started_at: self.started_at,
            sockets: registry.sockets() as u64,
            users: registry.users() as u64,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// A node said hello, and may want a reply; to this node alone, or to everybody.
    pub(super) fn node_said_hello(&self, hello: Hello, hearers: Hearers) {
        let Hello {
            node: info,
            lease,
            reply,
            worker,
            refused,
            shards,
        } = hello;
        let (id, name) = (info.id, info.name.clone());
        let (lease, now) = (Duration::from_millis(lease), Instant::now());
        let is_new = {
            let mut nodes = self.nodes.lock();
            let is_new = nodes.heard(info, lease, worker, now);
            nodes.set_refused(id, refused);
            is_new
        };
        if is_new {
            let name = (!name.is_empty()).then_some(name);
            let worker = worker.then_some(true);
            tracing::info!(node = %self.id, other = %id, name, worker, "a node joined");
            self.compare_shards(id, &shards);
        }
        if is_new || reply {
            self.presence.joined(id);
        }
        if reply {
            self.greet(id, false);
        } else if is_new && hearers == Hearers::Others {
            // It takes us for a node that knows it, and would not tell us again what it wants to be told.
            self.greet(id, true);
        }
    }

    /// Whoever shares the topics between other Redises looks for some of them elsewhere, and nobody would notice.
    fn compare_shards(&self, id: NodeId, theirs: &[String]) {
        let ours = self.home.bus.shared_by();
        if ours != theirs {
            self.home.counters.record_other_shards();
            let (ours, theirs) = (ours.join(" "), theirs.join(" "));
            tracing::warn!(node = %self.id, other = %id, ours, theirs,
                "a node shares the topics between other Redises than this one: give all nodes the same list of shards");
        }
    }

    /// What it published may have reached others only, while we heard all there was to hear.
    pub(super) fn node_strayed(&self, id: NodeId, millis: u64) {
        let now = Instant::now();
        let span = Duration::from_millis(millis).min(LONGEST);
        let from = now.checked_sub(span).unwrap_or(now);
        self.home.reception.others_strayed((from, now));
        tracing::info!(node = %self.id, other = %id, ?span, "a node stood on a replica: what it sent meanwhile may not have arrived");
    }

    /// Tells the others that what we published may not have arrived, and our sockets what the others say so.
    async fn tell_of_strays(&self) {
        let reception = &self.home.reception;
        reception.tell_of_others();
        if let Some(since) = reception.take_strayed() {
            let millis = since.elapsed().as_millis() as u64;
            let strayed = Control::Strayed { millis };
            if !self.say_to(Topic::nodes(), &strayed).await {
                reception.still_strayed(since);
            }
        }
    }

    /// With a goodbye, or without: then it is only not heard any more.
    pub(super) fn node_left(&self, id: NodeId, goodbye: bool) {
        if self.nodes.lock().left(id) {
            tracing::info!(node = %self.id, other = %id, "a node left");
        }
        self.uplink.forget(id);
        self.answering.forget(id);
        self.presence.left(id);
        let questions: Vec<_> = self.questions.lock().values().cloned().collect();
        for question in questions {
            question.update(|gathering| gathering.left(id, goodbye));
        }
    }

    /// Tells one node of this one.
    fn greet(&self, other: NodeId, reply: bool) {
        let Some(peers) = self.me.upgrade() else {
            return;
        };
        self.home.spawn(async move {
            let said = peers.say_hello(Topic::node(other), reply).await;
            if reply && !said {
                // Its next hello finds it new again.
                peers.nodes.lock().left(other);
            }
        });
    }

    /// Says hello on a channel. Whether it was said.
    async fn say_hello(&self, to: Topic, reply: bool) -> bool {
        // After the goodbye it would be believed for a lease.
        if self.home.is_stopped() {
            return false;
        }
        let refused = self.home.reception.refused_kinds();
        let hello = Control::Hello(Hello {
            node: self.introduce(),
            lease: self.settings.lease.as_millis() as u64,
            reply,
            worker: self.settings.worker,
            refused: refused
                .iter()
                .map(|kind| kind.prefix().to_owned())
                .collect(),
            shards: self.home.bus.shared_by().to_vec(),
        });
        self.say_to(to, &hello).await
    }

    pub(crate) async fn say_goodbye(&self) {
        // Without it our lease ends.
        let _ = self.say_to(Topic::nodes(), &Control::Bye).await;
    }

    /// Says hello and gives up who no longer does, while the nodes hear each other. The others know of us since the
    /// bus was up at `known_since`; returns what holds afterwards.
    async fn attend(&self, known_since: Option<Instant>) -> Option<Instant> {
        let Some(hearing @ (since, _)) = self.home.reception.hearing_nodes() else {
            if !self.home.reception.refused_kinds().is_empty() {
                // Whoever asks must know, and does not wait until it is proven that we hear the others.
                self.say_hello(Topic::nodes(), false).await;
            }
            return known_since;
        };
        self.tell_of_strays().await;
        let returned = known_since != Some(since);
        if returned {
            self.presence.returned();
        }
        let expired = self.nodes.lock().expire(hearing);
        expired.into_iter().for_each(|id| self.node_left(id, false));
        match self.say_hello(Topic::nodes(), returned).await {
            true => Some(since),
            false => known_since,
        }
    }

    async fn say_to(&self, to: Topic, control: &Control) -> bool {
        let word = self.uplink.write_word(&Scope::default(), 0, control);
        self.uplink.say(to, word).await.is_ok()
    }
}

/// The task that says hello.
pub(super) struct Membership {
    peers: Weak<Peers>,
    /// The others know of us since the bus was up then.
    known_since: Option<Instant>,
}

impl Membership {
    pub(super) fn new(peers: Weak<Peers>) -> Self {
        Self {
            peers,
            known_since: None,
        }
    }

    /// Says hello until the node is shut down, while it drains too. While the bus is down nobody's lease runs
    /// out, since nobody can be heard.
    pub(super) async fn run(&mut self) {
        let Some((lease, mut changes)) = self
            .peers
            .upgrade()
            .map(|peers| (peers.settings.lease, peers.home.reception.health_changes()))
        else {
            return;
        };
        let mut hello = interval(lease / MARGIN);
        hello.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // It says when to look, and the rest is looked up.
                health = changes.next() => if health.is_none() { return },
                _ = hello.tick() => {}
            };
            let peers = self.peers.upgrade();
            let Some(peers) = peers.filter(|peers| !peers.home.is_stopped()) else {
                return;
            };
            self.known_since = peers.attend(self.known_since).await;
        }
    }
}
