//! What is done to sockets everywhere: they join, leave, and are closed.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures::future::join;
use parking_lot::Mutex;
use tokio::task::yield_now;

use super::gather::Answers;
use super::nodes::Nodes;
use super::questions::{Asked, Questions};
use crate::bus::control::Ask;
use crate::bus::scope::{Reach, Selection};
use crate::counts::Counters;
use crate::home::{Ground, Home};
use crate::local::Sockets;
use crate::model::close::reason;
use crate::model::delivery::Outcome;
use crate::model::error::{PublishError, SendError};
use crate::model::id::SocketId;
use crate::model::topic::Topic;

#[derive(Debug)]
pub(crate) struct Commands {
    home: Arc<Home>,
    counters: Arc<Counters>,
    questions: Arc<Questions>,
    nodes: Arc<Mutex<Nodes>>,
    sockets: Sockets,
}

impl Commands {
    pub(super) fn new(
        ground: &Ground,
        questions: &Arc<Questions>,
        nodes: &Arc<Mutex<Nodes>>,
        sockets: Sockets,
    ) -> Self {
        Self {
            home: ground.home.clone(),
            counters: ground.counters.clone(),
            questions: questions.clone(),
            nodes: nodes.clone(),
            sockets,
        }
    }

    /// Carries a command out here and on every other node.
    pub(crate) async fn run(
        &self,
        selection: &Selection,
        what: Ask,
        reach: Reach,
    ) -> Result<Outcome, SendError> {
        if self.home.is_stopped() {
            return Err(SendError::down());
        }
        self.counters.sent.fetch_add(1, Relaxed);
        let (local, confirmation) = self.sockets.carry_out(&selection.scope(), &what);
        // Queued by this call, so that it keeps its place among what else is sent.
        let asked = match reach {
            Reach::Here => Ok(None),
            Reach::Everywhere => self.questions.begin(selection, what),
        };
        self.flush().await;
        let sockets = self.sockets.clone();
        let asking = self.home.run(async move {
            let answers = async { Asked::answers(asked?).await };
            join(answers, sockets.wait_confirmed(confirmation)).await.0
        });
        let answers = match asking.await {
            None if reach == Reach::Here => Ok(Answers::of_nobody()),
            None => Err(PublishError::maybe_sent(self.home.unfinished())),
            Some(answers) => answers,
        };
        let answers = answers.map_err(|error| {
            self.counters.record_failed_publish(error.maybe_sent);
            SendError::bus(local, error)
        })?;
        Ok(Outcome {
            local,
            nodes: (reach == Reach::Everywhere).then(|| self.count_nodes(&answers)),
            unanswered: answers.missing.len(),
        })
    }

    /// Closes these sockets of other nodes, whose seats newer ones took. Should it not arrive, their nodes learn it
    /// with the next renewal of their lease.
    pub(crate) fn replace(self: &Arc<Self>, sockets: Vec<SocketId>) {
        let mut selection = Selection::default();
        sockets
            .into_iter()
            .for_each(|socket| selection.add(Topic::socket(socket)));
        let (commands, close) = (self.clone(), Ask::from(&reason::REPLACED));
        self.home.spawn(async move {
            let _ = commands.run(&selection, close, Reach::Everywhere).await;
        });
    }

    /// Writes the Closes that were collected here.
    async fn flush(&self) {
        if self.sockets.flush() {
            // In a task too, since a caller that gives up leaves nobody unclosed; and here, since nobody may drive that.
            self.home.spawn(flush_all(self.sockets.clone()));
            flush_all(self.sockets.clone()).await;
        }
    }

    /// How many have answered, workers apart.
    fn count_nodes(&self, answers: &Answers) -> usize {
        let nodes = self.nodes.lock();
        let parts = answers.parts.keys();
        parts.filter(|id| !nodes.is_worker(**id)).count()
    }
}

/// Writes all that was collected, letting other tasks run in between.
async fn flush_all(sockets: Sockets) {
    while sockets.flush() {
        yield_now().await;
    }
}
