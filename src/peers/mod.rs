//! The other nodes of the cluster: who they are, what they are asked, and what they ask.

mod answering;
#[cfg(feature = "dashboard")]
pub(crate) mod checkup;
mod commands;
mod gather;
mod hellos;
mod host;
mod introduction;
mod membership;
pub(crate) mod messages;
mod nodes;
mod queries;
mod question;
mod questions;
mod share;
mod task;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;
use tokio::time::Instant;

use self::answering::Answering;
#[cfg(feature = "dashboard")]
use self::checkup::Checkup;
use self::commands::Commands;
use self::hellos::Hellos;
use self::host::PresenceHost;
use self::introduction::Introduction;
use self::messages::MessageReaders;
use self::nodes::Nodes;
use self::queries::Queries;
use self::questions::Questions;
use self::task::PeersTask;
use crate::bus::control::Control;
use crate::bus::inbound::{Part, PeerWord};
use crate::bus::uplink::Uplink;
use crate::counts::Stats;
use crate::home::{Ground, Home};
use crate::local::Sockets;
use crate::model::history::Histories;
use crate::model::id::NodeId;
use crate::presence::{self, Mailbox};

/// What this node is to the others.
#[derive(Debug, Clone)]
pub(crate) struct PeerSettings {
    pub(crate) name: String,
    /// The node sends and asks, and never holds a socket.
    pub(crate) worker: bool,
    pub(crate) lease: Duration,
    pub(crate) publish_timeout: Duration,
    pub(crate) presence_grace: Duration,
    pub(crate) histories: Histories,
}

/// Puts what concerns the others together, and hands each part what is heard for it.
#[derive(Debug)]
pub(crate) struct Peers {
    node: NodeId,
    home: Arc<Home>,
    uplink: Arc<Uplink>,
    presence: Arc<Mailbox>,
    nodes: Arc<Mutex<Nodes>>,
    hellos: Arc<Hellos>,
    host: Arc<PresenceHost>,
    questions: Arc<Questions>,
    answering: Arc<Answering>,
    queries: Arc<Queries>,
    commands: Arc<Commands>,
    messages: MessageReaders,
    introduction: Arc<Introduction>,
    #[cfg(feature = "dashboard")]
    checkup: Arc<Checkup>,
}

impl Peers {
    pub(crate) fn new(
        settings: PeerSettings,
        ground: &Ground,
        uplink: &Arc<Uplink>,
        sockets: Sockets,
        presence: &Arc<Mailbox>,
    ) -> Arc<Self> {
        let nodes: Arc<Mutex<Nodes>> = Arc::default();
        let timeout = settings.publish_timeout;
        let introduction = Arc::new(Introduction::new(
            ground,
            &settings,
            &nodes,
            sockets.clone(),
        ));
        let questions = Arc::new(Questions::new(ground, uplink, &nodes, timeout));
        Arc::new(Self {
            node: ground.node,
            home: ground.home.clone(),
            uplink: uplink.clone(),
            presence: presence.clone(),
            hellos: Arc::new(Hellos::new(ground, uplink, &nodes, &introduction, presence)),
            host: Arc::new(PresenceHost::new(
                ground,
                uplink,
                &nodes,
                sockets.clone(),
                presence,
            )),
            answering: Arc::new(Answering::new(
                ground,
                uplink,
                sockets.clone(),
                &introduction,
            )),
            queries: Arc::new(Queries::new(
                ground,
                &questions,
                &nodes,
                introduction.clone(),
                sockets.clone(),
            )),
            commands: Arc::new(Commands::new(
                ground,
                &questions,
                &nodes,
                sockets,
                !settings.histories.is_off(),
            )),
            messages: MessageReaders::new(ground),
            #[cfg(feature = "dashboard")]
            checkup: Arc::new(Checkup::new(ground, uplink, &nodes, &introduction)),
            introduction,
            questions,
            nodes,
        })
    }

    /// Begins to say hello, and to tell who comes and goes.
    pub(crate) fn start(self: &Arc<Self>, settings: &PeerSettings) {
        let home = &self.home;
        let membership = PeersTask::new(Arc::downgrade(self), settings.lease);
        home.keep("membership", membership, |task| task.run().boxed());
        let host = Arc::downgrade(&self.host);
        let presence = presence::PresenceTask::new(host, self.node, settings.presence_grace);
        home.keep("presence", presence, |task| task.run().boxed());
    }

    pub(crate) fn queries(&self) -> &Arc<Queries> {
        &self.queries
    }

    pub(crate) fn commands(&self) -> &Arc<Commands> {
        &self.commands
    }

    pub(crate) fn messages(&self) -> &MessageReaders {
        &self.messages
    }

    #[cfg(feature = "dashboard")]
    pub(crate) fn checkup(&self) -> &Arc<Checkup> {
        &self.checkup
    }

    pub(crate) fn stats(&self) -> Stats {
        self.introduction.stats()
    }

    /// Nothing more will come for those who read.
    pub(crate) fn end(&self) {
        self.messages.end();
        #[cfg(feature = "dashboard")]
        self.checkup.end();
    }

    pub(crate) fn heard_word(&self, word: PeerWord<'_>) {
        let PeerWord {
            from,
            word,
            scope,
            hearers,
        } = word;
        match word {
            Control::Ask { id, what } => self.answering.heard_question(from, id, &scope, what),
            Control::Ping { id } => self.answering.heard_ping(from, id),
            Control::Unasked { id, heard } => {
                let (heard, now) = (Duration::from_micros(heard), Instant::now());
                self.questions
                    .tell(id, |question| question.unasked(from, heard, now));
            }
            Control::Refused { id } => {
                self.questions
                    .tell(id, |question| question.gathering().refused(from));
            }
            Control::Hello(hello) => self.hellos.heard(hello, hearers),
            Control::Strayed { millis } => self.hellos.heard_of_strays(from, millis),
            Control::Examine { at } => self.answering.heard_examination(from, at),
            #[cfg(feature = "dashboard")]
            Control::Vitals { at, vitals } => self.checkup.heard(at, *vitals),
            #[cfg(not(feature = "dashboard"))]
            Control::Vitals { .. } => {}
            Control::Bye => self.left(from, true),
        }
    }

    /// What this node published as well: its own copy of a question proves that it hears the answers.
    pub(crate) fn heard_itself(&self, id: u64) {
        self.commands.came_back(id);
        self.questions
            .tell(id, |question| question.gathering().came_back());
    }

    pub(crate) fn heard_answer(&self, answer: &Part<'_>) {
        let Part {
            from,
            id,
            more,
            part,
        } = *answer;
        let part = || Bytes::copy_from_slice(part);
        self.questions.tell(id, |question| {
            question.gathering().answered(from, part(), more);
        });
    }

    /// A node does not keep what this one would.
    pub(crate) fn tell_unkept(&self, from: NodeId) {
        let nodes = self.nodes.lock();
        let name = nodes.name(from).filter(|name| !name.is_empty());
        let name = name.map(str::to_owned);
        drop(nodes);
        tracing::warn!(node = %self.node, other = %from, name, "a node sends without keeping what this one keeps: give all nodes and \
            workers the same `user_history`, `room_history` and `all_history`");
    }

    pub(crate) async fn say_goodbye(&self) {
        self.hellos.say_goodbye().await;
    }

    /// With a goodbye, or without: then it is only not heard any more.
    fn left(&self, id: NodeId, goodbye: bool) {
        if self.nodes.lock().left(id) {
            tracing::info!(node = %self.node, other = %id, "a node left");
        }
        self.uplink.forget(id);
        self.answering.forget(id);
        self.presence.left(id);
        self.questions.left(id, goodbye);
    }
}
