//! What presence is handed of the node: who is here, and a way to say words.

use std::collections::HashSet;

use super::Node;
use crate::bus::scope::Scope;
use crate::bus::topic::Topic;
use crate::bus::wire::Action;
use crate::model::id::{NodeId, UserId};
use crate::presence::{Here, Host, Mailbox, Presence, Word};

impl Node {
    /// A reader of who comes to a topic and goes from it.
    pub(crate) fn presence(&self, topic: Topic, users: Option<HashSet<UserId>>) -> Presence {
        self.presence.reader(topic, users)
    }
}

impl Here for Node {
    fn watch(&self, topic: &Topic) -> HashSet<UserId> {
        self.presence.watch(topic, true);
        self.registry.read().users_on(topic)
    }

    fn unwatch(&self, topic: &Topic) {
        self.presence.watch(topic, false);
    }

    fn is_on(&self, user: &UserId, topic: &Topic) -> bool {
        let user = Topic::user(user);
        user.is_ok_and(|user| self.registry.read().has_user_on(&user, topic))
    }

    fn knows(&self, node: NodeId) -> bool {
        self.members.lock().contains(node)
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.members.lock().ids().collect()
    }
}

impl Host for Node {
    fn mailbox(&self) -> &Mailbox {
        &self.presence
    }

    async fn say(&self, to: &Topic, word: &Word) -> Option<usize> {
        // Nothing is waited for that is known to fail.
        self.hearing_nodes()?;
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
        self.settled(confirmation).await;
    }

    fn release(&self, topic: &Topic) {
        self.bus.release(&topic.presence());
    }
}
