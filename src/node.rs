//! This process's node: what its parts are, in which order they start and stop, and who acts on what is heard.

mod resume;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use futures::FutureExt;
use futures::future::join;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::Instrument;
use tracing::field::Empty;

use crate::bus::inbound::Inbound;
use crate::bus::outage::LinkId;
use crate::bus::repair::{Due, Fate};
use crate::bus::repairs::{Repairing, Repairs, Task};
use crate::bus::scope::Selection;
use crate::bus::uplink::{Came, How, Sent, Uplink};
use crate::bus::{Backend, Bus, Listener};
use crate::config::Config;
use crate::home::Ground;
use crate::local::admission::{Refused, Reservation};
use crate::local::{CLOSING, Local, Sockets};
use crate::model::error::SendError;
use crate::model::history::mark::Number;
use crate::model::id::{NodeId, UserId};
use crate::model::limits::LONGEST;
use crate::model::manner::Manner;
use crate::model::message::Message;
use crate::model::partition::{Partition, PartitionSet};
use crate::model::topic::{Topic, TopicKind, TopicRef};
use crate::peers::Peers;
use crate::presence::Mailbox;

/// How long before the end of a shutdown the bus is left, with or without an answer of every client.
const LEAVING: Duration = Duration::from_millis(500);

/// Handles and sockets share it; the tasks of its parts hold those weakly.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) ground: Ground,
    pub(crate) local: Arc<Local>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) presence: Arc<Mailbox>,
    pub(crate) uplink: Arc<Uplink>,
    pub(crate) repairs: Repairs,
    /// A type of user that was looked for and not there was said at warn.
    pub(crate) said_no_user: AtomicBool,
}

impl Node {
    /// Must be called within a tokio runtime.
    pub(crate) fn start(config: Config, backend: &Backend) -> Arc<Self> {
        let id = NodeId::random();
        let bus: Arc<dyn Bus> = backend.open(id, config.bus()).into();
        let ground = Ground::here(id, bus, config.publish_timeout, &config.histories);
        let presence = Arc::new(Mailbox::default());
        let uplink = Arc::new(Uplink::new(
            id,
            ground.bus.clone(),
            ground.counters.clone(),
            config.histories,
            config.publish_timeout,
        ));
        let local = Arc::new(Local::new(config.local(), &ground, &presence));
        let sockets = Sockets::of(&local);
        let peers = Peers::new(config.peers(), &ground, &uplink, sockets, &presence);
        let (bus, counters) = (ground.bus.clone(), ground.counters.clone());
        let repairs = Repairs::new(bus, config.histories, counters);
        let node = Arc::new(Self {
            config,
            ground,
            local,
            peers,
            presence,
            uplink,
            repairs,
            said_no_user: AtomicBool::new(false),
        });
        tracing::info!(node = %id, namespace = node.config.namespace.as_str(), "node started");
        let (bus, listener) = (&node.ground.bus, Arc::downgrade(&node));
        bus.start(listener);
        // Single sockets are reached through it. Never released: it lives as long as the bus.
        bus.want(&Topic::node(id));
        bus.want(&Topic::nodes());
        node.local.start();
        node.start_repairs();
        node.peers.start(&node.config.peers());
        node
    }

    /// What is kept is read again where it was missed.
    fn start_repairs(self: &Arc<Self>) {
        if !self.repairs.are_off() {
            let task = Task::new(self, self.config.publish_timeout);
            let home = &self.ground.home;
            home.keep("repairs", task, |task| task.run().boxed());
        }
    }

    /// Takes a place for a socket of this user, for whom the cluster's messages then come here.
    pub(crate) async fn reserve(&self, user: UserId) -> Result<Reservation, Refused> {
        let (reservation, replaced) = self.local.reserve(user).await?;
        if !replaced.is_empty() {
            self.peers.commands().replace(replaced);
        }
        Ok(reservation)
    }

    /// Publishes once for all other nodes and delivers here: meanwhile, or what is kept when it comes back. Returns the sockets
    /// here and what became of it on the bus.
    pub(crate) async fn send(
        &self,
        selection: &Selection,
        message: &Message,
        manner: &Manner,
        how: How,
    ) -> Result<(usize, Sent), SendError> {
        let (topics, bytes) = (selection.topics(), message.len());
        let span = tracing::trace_span!("send", topics, bytes, local = Empty, nodes = Empty);
        let sending = self.publish_and_deliver(selection, message, manner, how);
        if span.is_disabled() {
            return sending.await;
        }
        let sent = sending.instrument(span.clone()).await;
        if let Ok((local, Sent { nodes, .. })) = sent {
            span.record("local", local).record("nodes", nodes);
        }
        sent
    }

    async fn publish_and_deliver(
        &self,
        selection: &Selection,
        message: &Message,
        manner: &Manner,
        how: How,
    ) -> Result<(usize, Sent), SendError> {
        let home = &self.ground.home;
        if home.is_stopped() {
            return Err(SendError::down());
        }
        let scope = selection.scope();
        // Queued by the call: sends happen in the order in which they are first polled.
        let sending = self.uplink.send(selection, &scope, message, manner, how)?;
        let local = match sending.is_kept() {
            true => self.local.count(&scope),
            false => self.local.deliver(&scope, message, manner).await,
        };
        let sent = sending.end().await;
        // Who sends in a loop that never waits would keep the tasks that write from running.
        consume_budget().await;
        match sent {
            Ok(sent) => Ok((local, sent)),
            Err((error, came)) => {
                match came {
                    // Delivered already: meanwhile, or when it came back.
                    Came::Whole => {}
                    Came::On(topics) => {
                        let rest = scope.without(&topics);
                        self.local.deliver(&rest, message, manner).await;
                    }
                }
                Err(SendError::bus(local, home.explain(error)))
            }
        }
    }

    /// Refuses new sockets, closes the others at random moments of the window, waits for their
    /// tasks and leaves the bus. May be called again when it was cancelled.
    pub(crate) async fn shutdown(&self, window: Duration) {
        let (start, window) = (Instant::now(), window.min(LONGEST));
        let deadline = start + window + CLOSING;
        self.local.begin_draining();
        let (node, home) = (self.ground.node, &self.ground.home);
        let (reception, tasks) = (&self.ground.reception, home.tracker());
        if reception.drains() {
            tracing::info!(%node, sockets = self.local.sizes().sockets, "draining");
        }
        self.local.drain(window).await;
        tasks.close();
        let answered = timeout_at(deadline - LEAVING, tasks.wait()).await;
        if answered.is_err() {
            self.local.cut_the_rest();
        }
        home.stop();
        self.presence.stop();
        self.peers.end();
        let leaving = async {
            let _ = timeout(LEAVING / 2, self.peers.say_goodbye()).await;
            self.ground.bus.stop().await;
        };
        let _ = timeout_at(deadline, join(tasks.wait(), leaving)).await;
        if reception.ends() {
            tracing::info!(%node, "node stopped");
        }
    }

    /// Acts on what came: for all sockets, or only for those with smaller numbers.
    fn hear(&self, topic: &str, number: Option<Number>, bytes: &[u8], older_than: Option<u64>) {
        match self.uplink.open(topic, number, bytes) {
            Inbound::Message(scope, content, manner) => {
                if let Some(from) = self.uplink.take_unkept() {
                    self.peers.tell_unkept(from);
                }
                let number = number.zip(TopicRef::of(topic));
                let number = number
                    .map(|(number, topic)| (self.ground.bus.clock(&topic.to_topic()), number));
                self.local
                    .collect(&scope, number, older_than, &manner, || content.frame());
            }
            Inbound::Close(scope, close) => {
                self.local.collect_close(&scope, older_than, &close);
            }
            Inbound::ToNodes(from, content) => {
                self.peers.messages().tell(from, content.message());
            }
            Inbound::Peer(word) => self.peers.heard_word(word),
            Inbound::Answer(part) => self.peers.heard_answer(&part),
            Inbound::Report(from, json) => self.presence.heard_report(from, json),
            Inbound::Watch(from, json) => self.presence.heard_request(from, json),
            Inbound::Echo(id) => self.peers.heard_itself(id),
            Inbound::Nothing => {}
        }
    }
}

impl Listener for Node {
    fn heard(&self, topic: &str, number: Option<Number>, bytes: &[u8]) {
        let fate = number.map(|number| self.repairs.came(topic, number, bytes));
        match fate {
            None | Some(Fate::Due) => self.hear(topic, number, bytes, None),
            Some(Fate::Held | Fate::Known) => {}
        }
    }

    fn flush(&self) -> bool {
        self.local.flush()
    }

    fn garbage(&self) {
        self.uplink.garbage();
    }

    fn replaced(&self, number: u64) {
        self.local.replaced(number);
    }

    fn up(&self, link: LinkId, proven: Instant) {
        self.ground.counters.measures.probed(proven);
        match self.repairs.up(link, proven) {
            Some(repaired) => self.ground.reception.up(link, proven, repaired),
            None => self.ground.reception.works(link, proven),
        }
    }

    fn strayed(&self, link: LinkId, since: Option<Instant>) {
        self.ground.reception.strayed(link, since);
    }

    fn down(&self, link: LinkId, reason: Arc<str>, deaf: bool) {
        if deaf {
            self.repairs.down(link, self.local.newcomers());
        }
        self.ground.reception.down(link, &reason, deaf);
    }

    fn refused(&self, link: LinkId, kind: TopicKind, reason: Arc<str>) {
        self.ground.reception.refused(link, kind, &reason);
    }

    fn moved(&self, partitions: PartitionSet, links: (LinkId, LinkId), at: Instant) {
        self.repairs
            .moved(partitions, links, self.local.newcomers());
        self.ground.reception.moved(partitions, links, at);
    }

    fn stranded(&self, link: LinkId, partition: Partition) {
        let newcomers = self.local.newcomers();
        self.repairs.stranded(link, partition, newcomers);
    }

    fn works(&self, link: LinkId, proven: Instant) {
        self.ground.counters.measures.probed(proven);
        self.ground.reception.works(link, proven);
        self.repairs.works(link, proven);
    }

    fn rolled_back(&self, messages: u64) {
        let counter = &self.ground.counters.history_rolled_back;
        counter.fetch_add(messages, Relaxed);
        if messages > 0 {
            let reception = &self.ground.reception;
            let since = reception.proven_at();
            reception.still_strayed(since);
            reception.others_strayed((since, Instant::now()));
            tracing::warn!(node = %self.ground.node, messages, "redis went on with an older state: the last messages that this node sent \
                are in no history any more");
        }
    }

    fn panicked(&self) {
        self.ground.counters.task_panics.fetch_add(1, Relaxed);
    }
}

impl Repairing for Node {
    fn repairs(&self) -> &Repairs {
        &self.repairs
    }

    fn topics(&self) -> Vec<Topic> {
        self.local.topics()
    }

    fn missed(&self, due: &Due) {
        let Due {
            topic,
            number,
            envelope,
            older_than,
        } = due;
        self.hear(topic, Some(*number), envelope, *older_than);
    }

    fn flush(&self) -> bool {
        self.local.flush()
    }
}
