//! What is done to sockets everywhere: they join, leave, and are closed.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures::future::join;
use parking_lot::Mutex;
use tokio::task::yield_now;

use super::gather::Answers;
use super::nodes::Nodes;
use super::questions::{AskedQuestion, Questions};
use super::turns::Turns;
use crate::bus::Confirmation;
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
    /// Where messages are kept.
    turns: Option<Arc<Turns>>,
}

impl Commands {
    pub(super) fn new(
        ground: &Ground,
        questions: &Arc<Questions>,
        nodes: &Arc<Mutex<Nodes>>,
        sockets: Sockets,
        keeps: bool,
    ) -> Self {
        Self {
            home: ground.home.clone(),
            counters: ground.counters.clone(),
            questions: questions.clone(),
            nodes: nodes.clone(),
            turns: keeps.then(|| Arc::new(Turns::new(sockets.clone()))),
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
        if let Some(turns) = self.turns.as_ref().filter(|_| reach == Reach::Everywhere) {
            return self.run_in_turn(turns, selection, what).await;
        }
        let (local, confirmation) = self.sockets.carry_out_own(&selection.scope(), &what);
        // Queued by this call, so that it keeps its place among what else is sent.
        let asked = match reach {
            Reach::Here => Ok(None),
            Reach::Everywhere => self.questions.begin(selection, what),
        };
        self.flush().await;
        let sockets = self.sockets.clone();
        let asking = self.home.run(async move {
            let answers = async { AskedQuestion::answers(asked?).await };
            join(answers, sockets.wait_confirmed(confirmation)).await.0
        });
        let answers = match asking.await {
            None if reach == Reach::Here => Ok(Answers::of_nobody()),
            None => Err(PublishError::maybe_sent(self.home.unfinished())),
            Some(answers) => answers,
        };
        self.outcome(local, reach, answers)
    }

    /// Runs a command that is carried out here when it comes back; at once, where it does not.
    async fn run_in_turn(
        &self,
        turns: &Arc<Turns>,
        selection: &Selection,
        what: Ask,
    ) -> Result<Outcome, SendError> {
        let id = self.questions.number();
        let mut carried_out = turns.open(id, selection, &what);
        let waiting = WaitingCommand {
            id,
            turns: turns.clone(),
            home: self.home.clone(),
            sockets: self.sockets.clone(),
        };
        let asked = self.questions.begin_as(id, selection, what);
        let sockets = self.sockets.clone();
        let asking = self.home.run(async move {
            let asked = match asked {
                Ok(Some(asked)) => asked,
                otherwise => {
                    waiting.come().await;
                    return otherwise.map(|_| Answers::of_nobody());
                }
            };
            let turns = waiting.turns.clone();
            let asked = asked.when_published(move |comes_back| {
                if !comes_back {
                    turns.come(id);
                }
            });
            let answers = AskedQuestion::answers(Some(asked)).await;
            waiting.come().await;
            answers
        });
        let answers = match asking.await {
            None => Err(PublishError::maybe_sent(self.home.unfinished())),
            Some(answers) => answers,
        };
        self.flush().await;
        let (local, confirmation) = carried_out
            .try_recv()
            .unwrap_or((0, Confirmation::NotAwaited));
        sockets.wait_confirmed(confirmation).await;
        self.outcome(local, Reach::Everywhere, answers)
    }

    /// What became of a command that concerned so many sockets here.
    fn outcome(
        &self,
        local: usize,
        reach: Reach,
        answers: Result<Answers, PublishError>,
    ) -> Result<Outcome, SendError> {
        let answers = answers.map_err(|error| {
            self.counters.record_failed_publish(error.maybe_sent);
            SendError::bus(local, error)
        })?;
        Ok(Outcome {
            local,
            nodes: (reach == Reach::Everywhere).then(|| self.count_nodes(&answers)),
            unanswered: count_unanswered(&answers),
        })
    }

    /// A question of this node has come back.
    pub(super) fn came_back(&self, id: u64) {
        if let Some(turns) = &self.turns {
            turns.come(id);
        }
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

/// How many have not answered; one at least, where it is not known who.
fn count_unanswered(answers: &Answers) -> usize {
    answers.missing.len().max(usize::from(answers.partial))
}

/// A command that is carried out here however whoever commanded it ends.
struct WaitingCommand {
    id: u64,
    turns: Arc<Turns>,
    home: Arc<Home>,
    sockets: Sockets,
}

impl WaitingCommand {
    /// It has come back, or will not any more.
    async fn come(self) {
        if self.turns.come(self.id) {
            flush_all(self.sockets.clone()).await;
        }
    }
}

impl Drop for WaitingCommand {
    fn drop(&mut self) {
        if self.turns.come(self.id) {
            self.home.spawn(flush_all(self.sockets.clone()));
        }
    }
}

/// Writes all that was collected, letting other tasks run in between.
async fn flush_all(sockets: Sockets) {
    while sockets.flush() {
        yield_now().await;
    }
}
