//! This node among the others: it says hello again and again, and notices who no longer does.

use std::sync::Weak;
use std::time::Duration;

use futures::StreamExt;
use smallvec::smallvec;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Node;
use super::attendance::Event;
use crate::control::Control;
use crate::health::Health;
use crate::id::NodeId;
use crate::members::MARGIN;
use crate::roster::NodeInfo;
use crate::scope::Scope;
use crate::topic::Topic;

impl Node {
    pub(super) fn introduce(&self) -> NodeInfo {
        let registry = self.registry.read();
        NodeInfo {
            id: self.id,
            name: self.config.name.clone(),
            started_at: self.started_at,
            sockets: registry.sockets() as u64,
            users: registry.users() as u64,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    pub(super) fn node_said_hello(&self, info: NodeInfo, lease: u64) {
        let (id, name) = (info.id, info.name.clone());
        let lease = Duration::from_millis(lease);
        if self.members.lock().heard(info, lease, Instant::now()) {
            tracing::info!(node = %self.id, other = %id, name, "a node joined");
            self.desk.tell(Event::Joined(id));
        }
    }

    pub(super) fn node_left(&self, id: NodeId) {
        if self.members.lock().left(id) {
            tracing::info!(node = %self.id, other = %id, "a node left");
        }
        self.desk.tell(Event::Left(id));
        let questions: Vec<_> = self.questions.lock().values().cloned().collect();
        for question in questions {
            question.update(|gathering| gathering.left(id));
        }
    }

    /// Tells one node of this one.
    pub(super) fn greet(&self, other: NodeId) {
        if let Some(node) = self.me.upgrade() {
            self.tasks
                .spawn(async move { node.say_hello(Topic::node(other), false).await });
        }
    }

    async fn say_hello(&self, to: Topic, reply: bool) {
        let (node, lease) = (self.introduce(), self.config.lease.as_millis() as u64);
        let hello = Control::Hello { node, lease, reply };
        self.say_to(to, &hello).await;
    }

    pub(super) async fn say_goodbye(&self) {
        self.say_to(Topic::nodes(), &Control::Bye).await;
    }

    async fn say_to(&self, to: Topic, control: &Control) {
        let envelope = self.say(&Scope::default(), 0, control);
        // The next hello says the same.
        let _ = self.bus.publish(smallvec![to], envelope).await;
    }
}

/// Says hello as long as the node lives. While the bus is down nobody's lease runs out, since nobody can
/// be heard.
pub(super) async fn attend(node: Weak<Node>) {
    let Some((lease, mut changes)) = node
        .upgrade()
        .map(|node| (node.config.lease, node.health.changes()))
    else {
        return;
    };
    let mut hello = interval(lease / MARGIN);
    hello.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut up = false;
    loop {
        let was_up = up;
        tokio::select! {
            health = changes.next() => match health {
                Some(health) => up = health == Health::Up,
                None => return,
            },
            _ = hello.tick() => {}
        };
        let Some(node) = node.upgrade() else { return };
        if !up {
            continue;
        }
        let returned = !was_up;
        if returned {
            node.members.lock().spare(Instant::now());
            node.desk.tell(Event::Returned);
        }
        let expired = node.members.lock().expire(Instant::now());
        expired.into_iter().for_each(|id| node.node_left(id));
        node.say_hello(Topic::nodes(), returned).await;
    }
}
