//! What presence is handed of the node: who is here, and a way to say words.

use std::collections::HashSet;

use super::Peers;
use crate::bus::scope::Scope;
use crate::bus::wire::Action;
use crate::model::id::{NodeId, UserId};
use crate::model::topic::Topic;
use crate::presence::{Here, Host, Mailbox, Word};

impl Here for Peers {
    fn watch(&self, topic: &Topic) -> HashSet<UserId> {
        self.presence.watch(topic, true);
        self.local.registry().users_on(topic)
    }

    fn unwatch(&self, topic: &Topic) {
        self.presence.watch(topic, false);
    }

    fn is_on(&self, user: &UserId, topic: &Topic) -> bool {
        let user = Topic::user(user);
        user.is_ok_and(|user| self.local.registry().has_user_on(&user, topic))
    }

    fn knows(&self, node: NodeId) -> bool {
        self.nodes.lock().contains(node)
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.nodes.lock().ids().collect()
    }
}

impl Host for Peers {
    fn mailbox(&self) -> &Mailbox {
        &self.presence
    }

    async fn say(&self, to: &Topic, word: &Word) -> Option<usize> {
        // Nothing is waited for that is known to fail.
        self.home.reception.hearing_nodes()?;
        let json = word.to_json();
        let action = match word {
            Word::Request(_) => Action::Watch(&json),
            Word::Report(_) => Action::Report(&json),
        };
        let envelope = self.uplink.write(None, &Scope::default(), &action);
        Some(self.uplink.say(to.clone(), envelope).await.ok()?.nodes)
    }

    async fn hear(&self, topic: &Topic) {
        let confirmation = self.home.bus.want(&topic.presence());
        self.local.wait_confirmed(confirmation).await;
    }

    fn release(&self, topic: &Topic) {
        self.home.bus.release(&topic.presence());
    }
}
