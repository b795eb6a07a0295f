//! The task that says hello again and again, and does what the rules of [`membership`](super::membership) say.

use std::sync::Weak;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::Peers;
use super::membership::{Duty, Membership};
use super::nodes::MARGIN;

/// After a failover many nodes say what strayed: so long they are waited for, and told as one gap.
const TOGETHER: Duration = Duration::from_millis(100);

pub(super) struct PeersTask {
    peers: Weak<Peers>,
    lease: Duration,
    membership: Membership,
}

impl PeersTask {
    pub(super) fn new(peers: Weak<Peers>, lease: Duration) -> Self {
        Self {
            peers,
            lease,
            membership: Membership::default(),
        }
    }

    /// Says hello until the node is shut down, while it drains too. While the bus is down nobody's lease runs
    /// out, since nobody can be heard.
    pub(super) async fn run(&mut self) {
        let peers = self.peers.upgrade();
        let news = peers.map(|peers| (peers.hellos.changes(), peers.hellos.astray()));
        let Some((mut changes, astray)) = news else {
            return;
        };
        let mut hello = interval(self.lease / MARGIN);
        hello.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut strayed = false;
            tokio::select! {
                // It says when to look, and the rest is looked up.
                health = changes.next() => if health.is_none() { return },
                () = astray.notified() => {
                    strayed = true;
                    sleep(TOGETHER).await;
                }
                _ = hello.tick() => {}
            };
            let peers = self.peers.upgrade();
            let Some(peers) = peers.filter(|peers| !peers.home.is_stopped()) else {
                return;
            };
            let duty = peers.hellos.next(&self.membership);
            if strayed {
                // Or it is told as soon as something is heard.
                if let Duty::Attend { .. } = duty {
                    peers.hellos.tell_of_strays().await;
                }
            } else if peers.attend(duty).await {
                self.membership.said(duty);
            }
        }
    }
}

impl Peers {
    /// Does what is to be done now; whether hello was said.
    async fn attend(&self, duty: Duty) -> bool {
        match duty {
            Duty::Nothing => false,
            Duty::Hello => self.hellos.say_to_all(false).await,
            Duty::Attend { hearing, returned } => {
                self.hellos.tell_of_strays().await;
                if returned {
                    self.presence.returned();
                }
                let expired = self.nodes.lock().expire(hearing);
                expired.into_iter().for_each(|id| self.left(id, false));
                self.hellos.say_to_all(returned).await
            }
        }
    }
}
