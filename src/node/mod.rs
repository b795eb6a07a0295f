//! This process's node: what its parts are, and in which order they start and stop.

mod listener;
mod resume;
mod send;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use futures::FutureExt;
use futures::future::join;
use tokio::time::{Instant, timeout, timeout_at};

use self::resume::{Waiting, keep_asking};
use crate::bus::repairs::{Repairs, RepairsTask};
use crate::bus::uplink::Uplink;
use crate::bus::{Backend, Bus};
use crate::config::Config;
use crate::home::Ground;
use crate::local::admission::{RefusedSocket, Reservation};
use crate::local::{CLOSING, Local, Sockets};
use crate::model::id::{NodeId, UserId};
use crate::model::limits::LONGEST;
use crate::model::topic::Topic;
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
    repairs: Repairs,
    /// For what they missed.
    waiting: Waiting,
    /// A type of user that was looked for and not there was said at warn.
    said_no_user: AtomicBool,
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
            waiting: Waiting::default(),
            said_no_user: AtomicBool::new(false),
        });
        tracing::info!(node = %id, namespace = node.config.namespace.as_str(), "node started");
        if node.resumes() {
            let resumes = Arc::downgrade(&node);
            node.local.resume_by(resumes);
        }
        let (bus, listener) = (&node.ground.bus, Arc::downgrade(&node));
        bus.start(listener);
        // Single sockets are reached through it. Never released: it lives as long as the bus.
        bus.want(&Topic::node(id));
        bus.censuses()
            .iter()
            .for_each(|topic| drop(bus.want(topic)));
        node.local.start();
        node.start_repairs();
        node.peers.start(&node.config.peers());
        node
    }

    /// What is kept is read again where it was missed, by this node or by clients.
    fn start_repairs(self: &Arc<Self>) {
        if !self.repairs.are_off() {
            let task = RepairsTask::new(self, self.config.publish_timeout);
            let home = &self.ground.home;
            home.keep("repairs", task, |task| task.run().boxed());
            keep_asking(self);
        }
    }

    /// Whether it is to be said at warn that a type of user was looked for and not there.
    pub(crate) fn says_no_user(&self) -> bool {
        !self.said_no_user.swap(true, Relaxed)
    }

    /// Takes a place for a socket of this user, for whom the cluster's messages then come here.
    pub(crate) async fn reserve(&self, user: UserId) -> Result<Reservation, RefusedSocket> {
        let (reservation, replaced) = self.local.reserve(user).await?;
        if !replaced.is_empty() {
            self.peers.commands().replace(replaced);
        }
        Ok(reservation)
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
        let spooled = timeout_at(start + window, self.ground.bus.drained());
        let _ = join(self.local.drain(window), spooled).await;
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
}
