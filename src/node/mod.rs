//! The centre of a process: reserves, registers, delivers, sends, hears and drains.

mod admission;
mod answering;
mod asking;
mod counters;
mod delivery;
mod hearing;
mod home;
mod membership;
mod presence;
mod question;
mod sweeper;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use futures::future::join;
use indexmap::IndexMap;
use parking_lot::{Mutex, RwLock};
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::task::TaskTracker;

pub(crate) use self::admission::{Refused, Registration, Reservation};
use self::answering::Answering;
pub(crate) use self::home::ENDED;
use self::membership::Membership;
use self::question::Question;
use self::sweeper::sweep;
use crate::bus::outage::Outage;
use crate::bus::scope::{Reach, Selection};
use crate::bus::topic::Topic;
use crate::bus::uplink::Uplink;
use crate::bus::{Backend, Bus, BusSettings};
use crate::config::{CLOSING, Config, LONGEST};
pub(crate) use crate::counts::Counted;
use crate::counts::Counters;
use crate::local::registry::Registry;
use crate::local::socket::{Sender, SweepEnd};
use crate::model::close::reason;
use crate::model::error::{PublishError, SendError};
use crate::model::gap::GapReaders;
use crate::model::health::{Health, HealthCell};
use crate::model::id::NodeId;
use crate::model::message::Message;
use crate::model::roster::{Count, Roster};
use crate::peers::members::Members;
use crate::peers::share::Share;
use crate::presence::{Mailbox, Task};
use crate::tasks::Tasks;

/// This process's node. Handles and sockets share it; its tasks hold it weakly.
#[derive(Debug)]
pub(crate) struct Node {
    me: Weak<Self>,
    id: NodeId,
    started_at: SystemTime,
    /// The topic of this node, and that of every socket.
    own: Topic,
    all: Topic,
    config: Config,
    bus: Arc<dyn Bus>,
    uplink: Uplink,
    registry: RwLock<Registry<Sender>>,
    next_socket: AtomicU64,
    health: HealthCell,
    gaps: GapReaders,
    outage: Mutex<Outage>,
    counters: Arc<Counters>,
    /// A type of user that was looked for and not there was said at warn.
    said_no_user: AtomicBool,
    members: Mutex<Members>,
    /// What this node asks, until it is answered.
    questions: Mutex<HashMap<u64, Arc<Question>>>,
    /// What this node is asked.
    answering: Answering,
    rosters: Arc<Share<Selection, Arc<Roster>>>,
    counts: Arc<Share<Selection, Count>>,
    /// What the presence task is told.
    presence: Mailbox,
    tasks: Tasks,
    /// With it ended ping, expiry and all that is heard.
    runtime_ended: AtomicBool,
    /// Every socket whose stream is not gone, for the sweeper.
    live: Mutex<IndexMap<u64, SweepEnd>>,
    /// Sockets with frames of the present wake of the bus.
    collected: Mutex<Vec<Sender>>,
    draining: AtomicBool,
    stopped: AtomicBool,
}

impl Node {
    /// Must be called within a tokio runtime.
    pub(crate) fn start(config: Config, backend: &Backend) -> Arc<Self> {
        let id = NodeId::random();
        let settings = BusSettings {
            namespace: config.namespace.clone(),
            publish_timeout: config.publish_timeout,
            probe_interval: config.probe_interval,
            lease: config.lease,
            linger: config.linger,
            seats: config.seats,
        };
        let bus: Arc<dyn Bus> = backend.open(id, settings).into();
        let counters = Arc::new(Counters::default());
        let uplink = Uplink::new(id, bus.clone(), counters.clone());
        let links = bus.links().iter().copied();
        let outage = Outage::new(links, Instant::now(), SystemTime::now());
        let node = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            id,
            started_at: SystemTime::now(),
            members: Mutex::default(),
            questions: Mutex::default(),
            answering: Answering::default(),
            rosters: Arc::new(Share::new()),
            counts: Arc::new(Share::new()),
            presence: Mailbox::default(),
            own: Topic::node(id),
            all: Topic::all(),
            bus,
            uplink,
            config,
            registry: RwLock::new(Registry::new()),
            next_socket: AtomicU64::new(1),
            health: HealthCell::new(outage.health()),
            gaps: GapReaders::new(),
            outage: Mutex::new(outage),
            counters,
            said_no_user: AtomicBool::new(false),
            tasks: Tasks::here(),
            runtime_ended: AtomicBool::new(false),
            live: Mutex::default(),
            collected: Mutex::default(),
            draining: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        });
        tracing::info!(node = %id, namespace = node.config.namespace.as_str(), "node started");
        let listener = Arc::downgrade(&node);
        node.bus.start(listener);
        // Single sockets are reached through it. Never released: it lives as long as the bus.
        node.bus.want(&node.own);
        node.bus.want(&Topic::nodes());
        let weak = || Arc::downgrade(&node);
        node.keep("sweeper", weak(), |node| sweep(node.clone()).boxed());
        node.keep("membership", Membership::new(weak()), |task| {
            task.run().boxed()
        });
        let presence = Task::new(weak(), id, node.config.presence_grace);
        node.keep("presence", presence, |task| task.run().boxed());
        node
    }

    pub(crate) fn id(&self) -> NodeId {
        self.id
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn health(&self) -> &HealthCell {
        &self.health
    }

    pub(crate) fn gaps(&self) -> &GapReaders {
        &self.gaps
    }

    /// Where the tasks of sockets run, so that a shutdown can wait for them.
    pub(crate) fn tasks(&self) -> &TaskTracker {
        self.tasks.tracker()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(SeqCst)
    }

    /// Delivers here and publishes once for all other nodes. Returns the sockets here and, where it
    /// can be known, the other nodes.
    pub(crate) async fn send(
        &self,
        selection: &Selection,
        message: &Message,
        reach: Reach,
    ) -> Result<(usize, Option<usize>), SendError> {
        if self.stopped.load(SeqCst) {
            return Err(SendError::down());
        }
        let scope = selection.scope();
        // Queued by the call: sends happen in the order in which they are first polled.
        let publishing = self.uplink.send(selection, &scope, message, reach);
        let publishing = publishing?;
        let local = self.deliver(&scope, message).await;
        let published = publishing.await;
        // Who sends in a loop that never waits would keep the tasks that write from running.
        consume_budget().await;
        let nodes = published.map_err(|error| {
            let error = match self.has_lost_its_runtime() {
                true => PublishError {
                    reason: ENDED.into(),
                    ..error
                },
                false => error,
            };
            SendError::bus(local, error)
        })?;
        Ok((local, nodes))
    }

    /// Refuses new sockets, closes the others at random moments of the window, waits for their
    /// tasks and leaves the bus. May be called again when it was cancelled.
    pub(crate) async fn shutdown(&self, window: Duration) {
        let (start, window) = (Instant::now(), window.min(LONGEST));
        let deadline = start + window + CLOSING;
        self.draining.store(true, SeqCst);
        if self
            .health
            .update(|health| (*health != Health::Down).then_some(Health::Draining))
        {
            tracing::info!(node = %self.id, sockets = self.stats().sockets, "draining");
        }
        let mut moments: Vec<(Instant, Sender)> = {
            let registry = self.registry.read();
            let at = |outbox: &Sender| (start + window.mul_f64(fastrand::f64()), outbox.clone());
            registry.members().map(at).collect()
        };
        moments.sort_unstable_by_key(|(moment, _)| *moment);
        for (moment, outbox) in moments {
            sleep_until(moment).await;
            outbox.close(reason::RESTART);
        }
        self.tasks.tracker().close();
        if timeout_at(deadline - LEAVING, self.tasks.tracker().wait())
            .await
            .is_err()
        {
            // They had their time to answer. Without streams only handlers can still run.
            let rest: Vec<SweepEnd> = self.live.lock().values().cloned().collect();
            rest.iter().for_each(SweepEnd::cut);
        }
        self.stopped.store(true, SeqCst);
        self.presence.stop();
        let leaving = async {
            let _ = timeout(LEAVING / 2, self.say_goodbye()).await;
            self.bus.stop().await;
        };
        let _ = timeout_at(deadline, join(self.tasks.tracker().wait(), leaving)).await;
        if self.health.update(|_| Some(Health::Down)) {
            tracing::info!(node = %self.id, "node stopped");
        }
    }
}

/// How long before the end of a shutdown the bus is left, with or without an answer of every client.
const LEAVING: Duration = Duration::from_millis(500);
