//! The sockets of this node: who they are, how they come and go, and what reaches them.

pub(crate) mod admission;
mod delivery;
pub(crate) mod expiry;
mod flushers;
pub(crate) mod heartbeat;
mod live;
mod moment;
pub(crate) mod moves;
pub(crate) mod origin;
pub(crate) mod registry;
pub(crate) mod socket;
mod sockets;
pub(crate) mod subscription;
mod sweeper;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use futures::FutureExt;
use parking_lot::{Mutex, RwLock};
use tokio::time::{Instant, sleep_until};

use self::flushers::Flushers;
use self::heartbeat::HeartbeatTimes;
use self::live::Live;
use self::moves::Moves;
use self::registry::{Limits, Registry};
use self::socket::{Sender, SweepEnd};
pub(crate) use self::sockets::{Resumes, Sockets};
use self::sweeper::sweep;
use crate::bus::Interests;
use crate::counts::Counters;
use crate::home::{Ground, Home};
use crate::model::close::reason;
use crate::model::history::mark::Marks;
use crate::model::id::{NodeId, SocketId};
use crate::model::limits::OutboxLimits;
use crate::model::topic::Topic;
use crate::presence::Mailbox;
use crate::ws::Deflating;

/// How long the closing handshake may take, a stalled upgrade too.
pub(crate) const CLOSING: Duration = Duration::from_secs(5);
/// How many sockets are served before other tasks may run: about 0.4 ms of writing.
pub(crate) const CHUNK: usize = 128;
/// What concerns the sockets of a node alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalSettings {
    pub(crate) limits: Limits,
    pub(crate) outbox: OutboxLimits,
    /// That a client may send, in bytes.
    pub(crate) max_message_size: usize,
    pub(crate) deflating: Deflating,
    pub(crate) heartbeat: HeartbeatTimes,
    /// How long a newcomer waits until it is heard.
    pub(crate) publish_timeout: Duration,
}

/// How many are here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) sockets: usize,
    pub(crate) users: usize,
    pub(crate) rooms: usize,
}

#[derive(Debug)]
pub(crate) struct Local {
    node: NodeId,
    /// The topic of every socket.
    all: Topic,
    settings: LocalSettings,
    home: Arc<Home>,
    bus: Arc<dyn Interests>,
    counters: Arc<Counters>,
    registry: RwLock<Registry<Sender>>,
    next_socket: AtomicU64,
    live: Live,
    /// Sockets with frames of the present wake of the bus.
    collected: Mutex<Vec<Sender>>,
    flushers: Flushers,
    draining: AtomicBool,
    /// Is told who comes and goes.
    presence: Arc<Mailbox>,
    /// Where something is kept.
    resumes: OnceLock<Weak<dyn Resumes>>,
}

impl Local {
    pub(crate) fn new(settings: LocalSettings, ground: &Ground, presence: &Arc<Mailbox>) -> Self {
        Self {
            node: ground.node,
            all: Topic::all(),
            settings,
            home: ground.home.clone(),
            bus: ground.bus.clone(),
            counters: ground.counters.clone(),
            registry: RwLock::new(Registry::new()),
            next_socket: AtomicU64::new(1),
            live: Live::default(),
            collected: Mutex::default(),
            flushers: Flushers::on(ground.home.runtime().metrics().num_workers()),
            draining: AtomicBool::new(false),
            presence: presence.clone(),
            resumes: OnceLock::new(),
        }
    }

    /// Clients may come back, and this one knows what they missed.
    pub(crate) fn resume_by(&self, resumes: Weak<dyn Resumes>) {
        let _ = self.resumes.set(resumes);
    }

    /// Begins to keep time for the sockets, and to help where much is to be written.
    pub(crate) fn start(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        self.home
            .keep("sweeper", weak, |local| sweep(local.clone()).boxed());
        self.start_flushers();
    }

    pub(crate) fn sizes(&self) -> Sizes {
        let registry = self.registry.read();
        Sizes {
            sockets: registry.sockets(),
            users: registry.users(),
            rooms: registry.rooms(),
        }
    }

    /// Sockets that come from now on have this number or later ones.
    pub(crate) fn newcomers(&self) -> u64 {
        self.next_socket.load(SeqCst)
    }

    /// Whether a socket of this node is on a topic.
    pub(crate) fn is_on(&self, topic: &Topic) -> bool {
        let registry = self.registry.read();
        match *topic == self.all {
            true => registry.sockets() > 0,
            false => registry.has_member(topic),
        }
    }

    /// Every topic on which there is a socket of this node.
    pub(crate) fn topics(&self) -> Vec<Topic> {
        let registry = self.registry.read();
        let mut topics = registry.topics();
        if registry.sockets() > 0 {
            topics.push(self.all.clone());
        }
        topics
    }

    /// Everything of these clocks up to here is delivered: clients that are so far behind, in microseconds, are told.
    pub(crate) fn renew(&self, heard: &Marks, behind: u64) {
        let members: Vec<Sender> = self.registry.read().members().cloned().collect();
        for socket in members {
            socket.release(|resuming| resuming.renew(heard, behind).into_iter().collect());
        }
    }

    pub(crate) fn outbox(&self) -> &OutboxLimits {
        &self.settings.outbox
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(SeqCst)
    }

    /// From now on nobody is admitted.
    pub(crate) fn begin_draining(&self) {
        self.draining.store(true, SeqCst);
    }

    /// Closes every socket at a random moment of the window.
    pub(crate) async fn drain(&self, window: Duration) {
        let start = Instant::now();
        let at = |socket: &Sender| (start + window.mul_f64(fastrand::f64()), socket.clone());
        let mut moments: Vec<(Instant, Sender)> = self.registry.read().members().map(at).collect();
        moments.sort_unstable_by_key(|(moment, _)| *moment);
        for (moment, socket) in moments {
            sleep_until(moment).await;
            socket.close(reason::RESTART);
        }
    }

    /// Ends those that have not answered their Close. Without streams only handlers can still run.
    pub(crate) fn cut_the_rest(&self) {
        self.live.all().iter().for_each(SweepEnd::cut);
    }

    /// What others do to the rooms of a socket of this node, from now until it is gone.
    pub(crate) fn moves(&self, socket: SocketId) -> Moves {
        self.live.moves(socket)
    }

    /// The socket of this number has lost its seat to a newer one.
    pub(crate) fn replaced(&self, number: u64) {
        if let Some(socket) = self.live.sender(number) {
            socket.close(reason::REPLACED);
        }
    }
}
