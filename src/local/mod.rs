//! The sockets of this node: who they are, how they come and go, and what reaches them.

pub(crate) mod admission;
mod delivery;
pub(crate) mod expiry;
pub(crate) mod heartbeat;
pub(crate) mod moves;
pub(crate) mod origin;
pub(crate) mod registry;
pub(crate) mod socket;
mod subscription;
mod sweeper;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use futures::FutureExt;
use indexmap::IndexMap;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::time::{Instant, sleep_until};

use self::heartbeat::HeartbeatTimes;
use self::moves::{Move, Moves};
use self::registry::{Limits, Registry};
use self::socket::{Sender, SweepEnd};
use self::sweeper::sweep;
use crate::home::Home;
use crate::model::close::reason;
use crate::model::id::SocketId;
use crate::model::limits::OutboxLimits;
use crate::model::topic::Topic;
use crate::presence::Mailbox;
use crate::readers::Readers;

/// How long the closing handshake may take, a stalled upgrade too.
pub(crate) const CLOSING: Duration = Duration::from_secs(5);
/// How many sockets are served before other tasks may run: about 0.4 ms of writing.
pub(crate) const CHUNK: usize = 128;
/// What concerns the sockets of a node alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalSettings {
    pub(crate) limits: Limits,
    pub(crate) outbox: OutboxLimits,
    pub(crate) heartbeat: HeartbeatTimes,
    /// How long a newcomer waits until it is heard.
    pub(crate) publish_timeout: Duration,
}

#[derive(Debug)]
pub(crate) struct Local {
    /// The topic of every socket.
    all: Topic,
    settings: LocalSettings,
    home: Arc<Home>,
    registry: RwLock<Registry<Sender>>,
    next_socket: AtomicU64,
    /// Every socket whose stream is not gone, for the sweeper.
    live: Mutex<IndexMap<u64, SweepEnd>>,
    /// Whose handlers want to know what others do to their rooms.
    moves: Mutex<HashMap<u64, Arc<Readers<Move>>>>,
    /// Sockets with frames of the present wake of the bus.
    collected: Mutex<Vec<Sender>>,
    draining: AtomicBool,
    /// Is told who comes and goes.
    presence: Arc<Mailbox>,
}

impl Local {
    pub(crate) fn new(settings: LocalSettings, home: &Arc<Home>, presence: &Arc<Mailbox>) -> Self {
        Self {
            all: Topic::all(),
            settings,
            home: home.clone(),
            registry: RwLock::new(Registry::new()),
            next_socket: AtomicU64::new(1),
            live: Mutex::default(),
            moves: Mutex::default(),
            collected: Mutex::default(),
            draining: AtomicBool::new(false),
            presence: presence.clone(),
        }
    }

    /// Begins to keep time for the sockets.
    pub(crate) fn start(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        self.home
            .keep("sweeper", weak, |local| sweep(local.clone()).boxed());
    }

    /// Who is here.
    pub(crate) fn registry(&self) -> RwLockReadGuard<'_, Registry<Sender>> {
        self.registry.read()
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
        let rest: Vec<SweepEnd> = self.live.lock().values().cloned().collect();
        rest.iter().for_each(SweepEnd::cut);
    }

    /// What others do to the rooms of a socket of this node, from now until it is gone.
    pub(crate) fn moves(&self, socket: SocketId) -> Moves {
        // Whoever is gone is taken out of both, in this order.
        let live = self.live.lock();
        let readers = match live.contains_key(&socket.number) {
            true => self.moves.lock().entry(socket.number).or_default().clone(),
            false => Arc::default(),
        };
        drop(live);
        Moves(readers.read())
    }

    /// Somebody else did this to a socket of this node.
    pub(crate) fn moved(&self, socket: SocketId, what: &Move) {
        let readers = self.moves.lock().get(&socket.number).cloned();
        if let Some(readers) = readers {
            readers.tell(what);
        }
    }

    /// The socket of this number has lost its seat to a newer one.
    pub(crate) fn replaced(&self, number: u64) {
        let socket = self.live.lock().get(&number).map(SweepEnd::sender);
        if let Some(socket) = socket {
            socket.close(reason::REPLACED);
        }
    }
}
