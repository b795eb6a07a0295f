//! What presence is handed of the node: who is here, and a way to say words.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::nodes::Nodes;
use crate::bus::Interests;
use crate::bus::reception::Reception;
use crate::bus::scope::Scope;
use crate::bus::uplink::Uplink;
use crate::bus::wire::Action;
use crate::home::Ground;
use crate::local::Sockets;
use crate::model::description::Descriptions;
use crate::model::id::{NodeId, UserId};
use crate::model::topic::Topic;
use crate::presence::{Here, Host, Mailbox, Word};

#[derive(Debug)]
pub(super) struct PresenceHost {
    bus: Arc<dyn Interests>,
    reception: Arc<Reception>,
    uplink: Arc<Uplink>,
    nodes: Arc<Mutex<Nodes>>,
    sockets: Sockets,
    mailbox: Arc<Mailbox>,
}

impl PresenceHost {
    pub(super) fn new(
        ground: &Ground,
        uplink: &Arc<Uplink>,
        nodes: &Arc<Mutex<Nodes>>,
        sockets: Sockets,
        mailbox: &Arc<Mailbox>,
    ) -> Self {
        Self {
            bus: ground.bus.clone(),
            reception: ground.reception.clone(),
            uplink: uplink.clone(),
            nodes: nodes.clone(),
            sockets,
            mailbox: mailbox.clone(),
        }
    }
}

impl Here for PresenceHost {
    fn watch(&self, topic: &Topic) -> HashMap<UserId, Descriptions> {
        self.mailbox.watch(topic, true);
        self.sockets.users_on(topic)
    }

    fn unwatch(&self, topic: &Topic) {
        self.mailbox.watch(topic, false);
    }

    fn user_on(&self, user: &UserId, topic: &Topic) -> Option<Descriptions> {
        self.sockets.user_on(&Topic::user(user).ok()?, topic)
    }

    fn knows(&self, node: NodeId) -> bool {
        self.nodes.lock().contains(node)
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.nodes.lock().ids().collect()
    }
}

impl Host for PresenceHost {
    fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    async fn say(&self, to: &Topic, word: &Word) -> Option<usize> {
        // Nothing is waited for that is known to fail.
        self.reception.hearing_nodes()?;
        let json = word.to_json();
        let action = match word {
            Word::Request(_) => Action::Watch(&json),
            Word::Report(_) => Action::Report(&json),
        };
        let envelope = self.uplink.write(None, &Scope::default(), &action);
        Some(self.uplink.say(to.clone(), envelope).await.ok()?.nodes)
    }

    async fn hear(&self, topic: &Topic) {
        let confirmation = self.bus.want(&topic.presence());
        self.sockets.wait_confirmed(confirmation).await;
    }

    fn release(&self, topic: &Topic) {
        self.bus.release(&topic.presence());
    }
}
