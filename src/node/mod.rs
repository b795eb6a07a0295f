//! The centre of a process: reserves, registers, delivers, sends, hears and drains.

mod admission;
mod answering;
mod asking;
mod attendance;
mod hearing;
mod membership;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use futures::future::join;
use indexmap::IndexMap;
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::task::TaskTracker;

pub(crate) use self::admission::{Refused, Registration, Reservation};
use self::answering::Answering;
use self::asking::Question;
use self::attendance::{Desk, Event};
use self::hearing::Outage;
use crate::backend::{Backend, Bus, BusSettings};
use crate::close::Close;
use crate::config::{CLOSING, Config};
use crate::error::{QueryError, QueryErrorKind, SendError, SendErrorKind};
use crate::gap::Gaps;
use crate::health::{Health, HealthCell, Stats};
use crate::heartbeat::HeartbeatTimes;
use crate::id::{NodeId, UserId};
use crate::members::Members;
use crate::message::Message;
use crate::outbox::{Outbox, Pushed, Swept};
use crate::recent::RecentUnions;
use crate::registry::{Member, Registry};
use crate::roster::{Count, Roster};
use crate::scope::{Route, Scope, Selection};
use crate::share::Share;
use crate::topic::Topic;
use crate::wire::{self, Action, MAX_ENVELOPE};
use crate::ws::frame::Frame;

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
    bus: Box<dyn Bus>,
    registry: RwLock<Registry<Arc<Outbox>>>,
    unions: Mutex<RecentUnions>,
    next_socket: AtomicU64,
    next_union: AtomicU64,
    health: HealthCell,
    gaps: Gaps,
    outage: Mutex<Outage>,
    counters: Counters,
    members: Mutex<Members>,
    /// What this node asks, until it is answered.
    questions: Mutex<HashMap<u64, Arc<Question>>>,
    /// What this node is asked.
    answering: Answering,
    rosters: Arc<Share<Selection, Arc<Roster>>>,
    counts: Arc<Share<Selection, Count>>,
    /// What the presence task is told.
    desk: Desk,
    tasks: TaskTracker,
    /// Every socket whose stream is not gone, for the sweeper.
    live: Mutex<IndexMap<u64, Arc<Outbox>>>,
    /// Sockets with frames of the present wake of the bus.
    collected: Mutex<Vec<Arc<Outbox>>>,
    draining: AtomicBool,
    stopped: AtomicBool,
}

#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    delivered: AtomicU64,
    dropped: AtomicU64,
    slow_closed: AtomicU64,
    bus_gaps: AtomicU64,
    bus_gap_millis: AtomicU64,
    bus_garbage: AtomicU64,
    bus_reconnects: AtomicU64,
    bus_publish_failures: AtomicU64,
    origins_refused: AtomicU64,
    limits_refused: AtomicU64,
    questions_refused: AtomicU64,
}

impl Node {
    /// Must be called within a tokio runtime.
    pub(crate) fn start(config: Config, backend: &Backend) -> Arc<Self> {
        let id = NodeId::random();
        let settings = BusSettings {
            namespace: config.namespace.clone(),
            publish_timeout: config.publish_timeout,
            probe_interval: config.probe_interval,
            linger: config.linger,
        };
        let starting = Health::Degraded {
            since: SystemTime::now(),
            reason: "connecting to the bus".into(),
        };
        let node = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            id,
            started_at: SystemTime::now(),
            members: Mutex::default(),
            questions: Mutex::default(),
            answering: Answering::default(),
            rosters: Arc::new(Share::new()),
            counts: Arc::new(Share::new()),
            desk: Desk::default(),
            own: Topic::node(id),
            all: Topic::all(),
            bus: backend.open(id, settings),
            config,
            registry: RwLock::new(Registry::new()),
            unions: Mutex::default(),
            next_socket: AtomicU64::new(1),
            next_union: AtomicU64::new(1),
            health: HealthCell::new(starting),
            gaps: Gaps::new(),
            outage: Mutex::default(),
            counters: Counters::default(),
            tasks: TaskTracker::new(),
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
        tokio::spawn(sweep(Arc::downgrade(&node)));
        tokio::spawn(membership::attend(Arc::downgrade(&node)));
        tokio::spawn(attendance::attend(Arc::downgrade(&node)));
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

    pub(crate) fn gaps(&self) -> &Gaps {
        &self.gaps
    }

    /// Where the tasks of sockets run, so that a shutdown can wait for them.
    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(SeqCst)
    }

    pub(crate) fn count_refused_origin(&self) {
        self.counters.origins_refused.fetch_add(1, Relaxed);
    }

    pub(crate) fn stats(&self) -> Stats {
        let registry = self.registry.read();
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        let Counters {
            sent,
            delivered,
            dropped,
            slow_closed,
            bus_gaps,
            bus_gap_millis,
            bus_garbage,
            bus_reconnects,
            bus_publish_failures,
            origins_refused,
            limits_refused,
            questions_refused,
        } = &self.counters;
        Stats {
            sockets: registry.sockets() as u64,
            users: registry.users() as u64,
            rooms: registry.rooms() as u64,
            nodes: 1 + self.members.lock().ids().count() as u64,
            sent: count(sent),
            delivered: count(delivered),
            dropped: count(dropped),
            slow_closed: count(slow_closed),
            bus_gaps: count(bus_gaps),
            bus_gap_millis: count(bus_gap_millis),
            bus_garbage: count(bus_garbage),
            bus_reconnects: count(bus_reconnects),
            bus_publish_failures: count(bus_publish_failures),
            origins_refused: count(origins_refused),
            limits_refused: count(limits_refused),
            questions_refused: count(questions_refused),
        }
    }

    // Delivery -------------------------------------------------------------------------------------

    /// Hands a message to the sockets of this node, writing as far as the kernel takes it and never
    /// waiting for one. Lets other tasks run between chunks. Returns how many took it.
    async fn deliver(&self, scope: &Scope<'_>, message: &Message) -> usize {
        let members = self.registry.read().select(scope);
        if members.is_empty() {
            return 0;
        }
        let frame = Frame::message(message);
        let limits = &self.config.outbox;
        let take = |outbox: &Arc<Outbox>| self.note(outbox, outbox.send(&frame, limits));
        let taken = in_chunks(&members, take).await;
        self.counters.delivered.fetch_add(taken as u64, Relaxed);
        taken
    }

    /// The same for what the bus brought: collected, so that all of one wake leaves each socket in one
    /// write.
    fn collect(&self, scope: &Scope<'_>, frame: impl FnOnce() -> Frame) {
        let members = self.registry.read().select(scope);
        if members.is_empty() {
            return;
        }
        let frame = frame();
        let mut taken = 0;
        for outbox in members {
            let (pushed, first) = outbox.collect(&frame, &self.config.outbox);
            taken += u64::from(self.note(&outbox, pushed));
            if first {
                self.collected.lock().push(outbox);
            }
        }
        self.counters.delivered.fetch_add(taken, Relaxed);
    }

    /// Counts what became of a frame; whether it was taken.
    fn note(&self, outbox: &Arc<Outbox>, pushed: Pushed) -> bool {
        match pushed {
            Pushed::Taken | Pushed::Closed => {}
            Pushed::Replaced(lost) => {
                self.counters.dropped.fetch_add(lost as u64, Relaxed);
            }
            Pushed::Overflowed(lost) => self.note_slow(outbox, lost),
        }
        pushed.is_taken()
    }

    fn note_slow(&self, outbox: &Arc<Outbox>, lost: usize) {
        self.counters.slow_closed.fetch_add(1, Relaxed);
        self.counters.dropped.fetch_add(lost as u64, Relaxed);
        let (socket, user) = (outbox.id(), outbox.user());
        tracing::warn!(%socket, %user, dropped = lost, "slow consumer closed");
    }

    /// Keeps time for all sockets.
    fn sweep(&self, times: &HeartbeatTimes) {
        let now = Instant::now();
        let mut from = 0;
        loop {
            let live = self.live.lock();
            let Some(chunk) = live
                .as_slice()
                .get_range(from..(from + CHUNK).min(live.len()))
            else {
                return;
            };
            let chunk: Vec<Arc<Outbox>> = chunk.values().cloned().collect();
            drop(live);
            if chunk.is_empty() {
                return;
            }
            from += chunk.len();
            for outbox in &chunk {
                if let Swept::Stalled(lost) = outbox.sweep(now, times) {
                    self.note_slow(outbox, lost);
                }
            }
        }
    }

    /// Delivers here, then publishes once for all other nodes. Returns the sockets here and, where it
    /// can be known, the other nodes.
    pub(crate) async fn send(
        &self,
        selection: &Selection,
        message: &Message,
        local_only: bool,
    ) -> Result<(usize, Option<usize>), SendError> {
        if self.stopped.load(SeqCst) {
            return Err(SendError::refused(SendErrorKind::Down));
        }
        let scope = selection.scope();
        let (topics, union) = match selection.route() {
            _ if local_only => (SmallVec::new(), None),
            Route::Separate(topics) => (topics, None),
            Route::Union(topics) => (topics, Some(self.next_union.fetch_add(1, Relaxed))),
        };
        let topics: SmallVec<[Topic; 1]> = topics
            .into_iter()
            .filter(|topic| *topic != self.own)
            .collect();
        let envelope = match topics.is_empty() {
            true => None,
            false => Some(self.envelope(union, &scope, message)?),
        };
        self.counters.sent.fetch_add(1, Relaxed);
        let local = self.deliver(&scope, message).await;
        let single = scope.targets.len() == 1 && !local_only;
        let nodes = match envelope {
            None => 0,
            Some(envelope) => self.bus.publish(topics, envelope).await.map_err(|error| {
                self.counters.bus_publish_failures.fetch_add(1, Relaxed);
                SendError {
                    local,
                    kind: SendErrorKind::Bus(error),
                }
            })?,
        };
        Ok((local, single.then_some(nodes)))
    }

    fn envelope(
        &self,
        union: Option<u64>,
        scope: &Scope<'_>,
        message: &Message,
    ) -> Result<bytes::Bytes, SendError> {
        let envelope = wire::encode(self.id, union, scope, &Action::from(message));
        if envelope.len() > MAX_ENVELOPE {
            let (bytes, limit) = (envelope.len(), MAX_ENVELOPE);
            return Err(SendError::refused(SendErrorKind::TooLarge { bytes, limit }));
        }
        Ok(envelope)
    }

    /// Which of these users have a socket here, or another node that listens for them.
    pub(crate) async fn online(&self, users: &[UserId]) -> Result<Vec<bool>, QueryError> {
        let fail = |kind| QueryError { kind };
        let topics: Result<Vec<Topic>, _> = users.iter().map(Topic::user).collect();
        let topics = topics.map_err(|error| fail(QueryErrorKind::InvalidId(error)))?;
        let mut online: Vec<bool> = {
            let registry = self.registry.read();
            let here = topics.iter().map(|topic| registry.has_member(topic));
            here.collect()
        };
        let (unknown, elsewhere): (Vec<usize>, Vec<Topic>) = topics
            .into_iter()
            .enumerate()
            .filter(|(at, _)| !online[*at])
            .unzip();
        if !elsewhere.is_empty() {
            let nodes = self.bus.listening(&elsewhere).await;
            let nodes = nodes.map_err(|reason| fail(QueryErrorKind::Bus(reason)))?;
            for (at, nodes) in unknown.into_iter().zip(nodes) {
                online[at] = nodes > 0;
            }
        }
        Ok(online)
    }

    // The end --------------------------------------------------------------------------------------

    /// Refuses new sockets, closes the others at random moments of the window, waits for their
    /// tasks and leaves the bus. May be called again when it was cancelled.
    pub(crate) async fn shutdown(&self, window: Duration) {
        let start = Instant::now();
        let deadline = start + window + CLOSING;
        self.draining.store(true, SeqCst);
        if self
            .health
            .update(|health| (*health != Health::Down).then_some(Health::Draining))
        {
            tracing::info!(node = %self.id, sockets = self.stats().sockets, "draining");
        }
        let mut moments: Vec<(Instant, Arc<Outbox>)> = {
            let registry = self.registry.read();
            let at =
                |outbox: &Arc<Outbox>| (start + window.mul_f64(fastrand::f64()), outbox.clone());
            registry.members().map(at).collect()
        };
        moments.sort_unstable_by_key(|(moment, _)| *moment);
        for (moment, outbox) in moments {
            sleep_until(moment).await;
            outbox.close(restarting());
        }
        self.tasks.close();
        if timeout_at(deadline - LEAVING, self.tasks.wait())
            .await
            .is_err()
        {
            // They had their time to answer. Without streams only handlers can still run.
            let rest: Vec<Arc<Outbox>> = self.live.lock().values().cloned().collect();
            rest.iter().for_each(|outbox| outbox.cut());
        }
        self.stopped.store(true, SeqCst);
        self.desk.tell(Event::Stop);
        let leaving = async {
            let _ = timeout(LEAVING / 2, self.say_goodbye()).await;
            self.bus.stop().await;
        };
        let _ = timeout_at(deadline, join(self.tasks.wait(), leaving)).await;
        if self.health.update(|_| Some(Health::Down)) {
            tracing::info!(node = %self.id, "node stopped");
        }
    }
}

/// How long before the end of a shutdown the bus is left, with or without an answer of every client.
const LEAVING: Duration = Duration::from_millis(500);
/// How many sockets are served before other tasks may run: about 0.4 ms of writing.
const CHUNK: usize = 128;

async fn in_chunks(members: &[Arc<Outbox>], serve: impl Fn(&Arc<Outbox>) -> bool) -> usize {
    let mut served = 0;
    for (n, chunk) in members.chunks(CHUNK).enumerate() {
        if n > 0 {
            yield_now().await;
        }
        served += chunk.iter().filter(|outbox| serve(outbox)).count();
    }
    served
}

/// Sweeps as long as the node lives.
async fn sweep(node: Weak<Node>) {
    let Some(config) = node.upgrade().map(|node| node.config.clone()) else {
        return;
    };
    let Config {
        ping_interval,
        pong_timeout,
        write_timeout,
        ..
    } = config;
    let times = HeartbeatTimes {
        ping_interval,
        pong_timeout,
        write_timeout,
    };
    loop {
        sleep(times.tick()).await;
        let Some(node) = node.upgrade() else { return };
        if catch_unwind(AssertUnwindSafe(|| node.sweep(&times))).is_err() {
            tracing::error!("the sweeper panicked and goes on");
        }
    }
}

fn restarting() -> Close {
    Close::from_static(Close::RESTART, "the server restarts, please reconnect")
}
