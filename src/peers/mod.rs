//! The other nodes of the cluster: who they are, what they are asked, and what they ask.

mod answering;
mod asking;
mod gather;
mod hellos;
mod host;
mod membership;
pub(crate) mod messages;
mod nodes;
mod question;
mod questions;
mod share;

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use parking_lot::Mutex;

use self::answering::Answering;
use self::hellos::Hellos;
use self::messages::NodeMessage;
use self::nodes::Nodes;
use self::questions::SharedQuestion;
use self::share::Share;
use crate::bus::scope::Selection;
use crate::bus::uplink::Uplink;
use crate::home::Home;
use crate::local::Local;
use crate::model::id::NodeId;
use crate::model::roster::{Count, Roster};
use crate::model::topic::Topic;
use crate::presence::{Mailbox, Task};
use crate::readers::Readers;

/// What this node is to the others.
#[derive(Debug, Clone)]
pub(crate) struct PeerSettings {
    pub(crate) name: String,
    /// The node sends and asks, and never holds a socket.
    pub(crate) worker: bool,
    pub(crate) lease: Duration,
    pub(crate) publish_timeout: Duration,
    pub(crate) presence_grace: Duration,
}

#[derive(Debug)]
pub(crate) struct Peers {
    me: Weak<Self>,
    id: NodeId,
    /// The topic of this node.
    own: Topic,
    started_at: SystemTime,
    settings: PeerSettings,
    home: Arc<Home>,
    uplink: Arc<Uplink>,
    local: Arc<Local>,
    presence: Arc<Mailbox>,
    nodes: Mutex<Nodes>,
    /// What this node asks, until it is answered.
    questions: Mutex<HashMap<u64, Arc<SharedQuestion>>>,
    /// What this node is asked.
    answering: Answering,
    rosters: Arc<Share<Selection, Arc<Roster>>>,
    counts: Arc<Share<Selection, Count>>,
    /// Who reads what is sent to the nodes.
    messages: Readers<NodeMessage>,
}

impl Peers {
    pub(crate) fn new(
        settings: PeerSettings,
        home: &Arc<Home>,
        uplink: &Arc<Uplink>,
        local: &Arc<Local>,
        presence: &Arc<Mailbox>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            id: home.node,
            own: Topic::node(home.node),
            started_at: SystemTime::now(),
            settings,
            home: home.clone(),
            uplink: uplink.clone(),
            local: local.clone(),
            presence: presence.clone(),
            nodes: Mutex::default(),
            questions: Mutex::default(),
            answering: Answering::default(),
            rosters: Arc::new(Share::new()),
            counts: Arc::new(Share::new()),
            messages: Readers::default(),
        })
    }

    /// Begins to say hello, and to tell who comes and goes.
    pub(crate) fn start(self: &Arc<Self>) {
        let home = &self.home;
        let hellos = Hellos::new(self.me.clone());
        home.keep("membership", hellos, |task| task.run().boxed());
        let presence = Task::new(self.me.clone(), self.id, self.settings.presence_grace);
        home.keep("presence", presence, |task| task.run().boxed());
    }

    /// How many other nodes say hello, workers apart.
    pub(crate) fn count_nodes(&self) -> usize {
        self.nodes.lock().ids().count()
    }
}
