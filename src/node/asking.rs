//! Questions to other nodes, and commands: what is asked is carried out here too, then everybody's answers
//! are gathered.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use parking_lot::Mutex;
use smallvec::smallvec;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::Node;
use crate::control::{Answer, Ask, Control};
use crate::error::{PublishError, QueryError, QueryErrorKind, SendError, SendErrorKind};
use crate::gather::{Answers, Gathering};
use crate::id::NodeId;
use crate::roster::{Count, NodeInfo, Roster};
use crate::scope::{Scope, Selection};
use crate::topic::Topic;
use crate::wire::{self, Action};

/// A healthy cluster has answered long before: who has not is asked by name, again and again.
const FOLLOW_UP: Duration = Duration::from_millis(100);

/// A question that waits for its answers.
#[derive(Debug, Default)]
pub(super) struct Question {
    gathering: Mutex<Gathering>,
    changed: Notify,
}

impl Question {
    pub(super) fn update(&self, change: impl FnOnce(&mut Gathering)) {
        change(&mut self.gathering.lock());
        self.changed.notify_one();
    }
}

/// Forgets the question however the asker ends.
struct Open<'a> {
    node: &'a Node,
    id: u64,
    question: Arc<Question>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.node.questions.lock().remove(&self.id);
    }
}

/// What became of a command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) local: usize,
    /// Other nodes that carried it out.
    pub(crate) nodes: usize,
    /// Other nodes that are there and did not say so.
    pub(crate) unanswered: usize,
}

impl Node {
    /// Carries a command out here and on every other node.
    pub(crate) async fn command(
        &self,
        selection: &Selection,
        what: Ask,
        local_only: bool,
    ) -> Result<Outcome, SendError> {
        if self.stopped.load(SeqCst) {
            return Err(SendError::refused(SendErrorKind::Down));
        }
        self.counters.sent.fetch_add(1, Relaxed);
        let (local, confirmation) = self.carry_out(&selection.scope(), &what);
        let mut outcome = Outcome {
            local,
            nodes: 0,
            unanswered: 0,
        };
        if !local_only {
            let answers = self.ask(selection, what).await.map_err(|error| {
                self.counters.bus_publish_failures.fetch_add(1, Relaxed);
                let kind = SendErrorKind::Bus(error);
                SendError { local, kind }
            })?;
            outcome.nodes = answers.parts.len();
            outcome.unanswered = answers.missing.len();
        }
        self.settled(confirmation).await;
        Ok(outcome)
    }

    /// Who is meant, everywhere. Identical questions at the same time share the work.
    pub(crate) async fn roster(
        self: &Arc<Self>,
        selection: Selection,
        local_only: bool,
    ) -> Result<Roster, QueryError> {
        self.check_alive()?;
        if local_only {
            return Ok(self.gather_roster(&selection, true).await);
        }
        let (node, key) = (self.clone(), selection.clone());
        let ask = move || {
            let (node, selection) = (node.clone(), selection.clone());
            async move { Arc::new(node.gather_roster(&selection, false).await) }
        };
        let shared = self.rosters.answer(key, ask).await;
        Ok(shared.map(Arc::unwrap_or_clone).unwrap_or_default())
    }

    async fn gather_roster(&self, selection: &Selection, local_only: bool) -> Roster {
        let here = self.members_of(&selection.scope());
        let (mut sockets, others) = tokio::join!(
            self.describe(&here),
            self.ask_others(selection, Ask::Sockets, local_only)
        );
        for answer in answers_in(&others) {
            sockets.extend(answer.sockets);
        }
        sockets.sort_unstable_by_key(|socket| (socket.connected_at, socket.id));
        let missing = others.missing;
        Roster { sockets, missing }
    }

    /// How many are meant, everywhere.
    pub(crate) async fn count(
        self: &Arc<Self>,
        selection: Selection,
        local_only: bool,
    ) -> Result<Count, QueryError> {
        self.check_alive()?;
        if local_only {
            return Ok(self.gather_count(&selection, true).await);
        }
        let (node, key) = (self.clone(), selection.clone());
        let ask = move || {
            let (node, selection) = (node.clone(), selection.clone());
            async move { node.gather_count(&selection, false).await }
        };
        Ok(self.counts.answer(key, ask).await.unwrap_or_default())
    }

    async fn gather_count(&self, selection: &Selection, local_only: bool) -> Count {
        let here = self.members_of(&selection.scope()).len();
        let others = self.ask_others(selection, Ask::Count, local_only).await;
        let there: usize = answers_in(&others).map(|answer| answer.count).sum();
        Count {
            sockets: here + there,
            missing: others.missing,
        }
    }

    /// Every node of the cluster, this one first.
    pub(crate) async fn nodes(&self) -> Result<Vec<NodeInfo>, QueryError> {
        self.check_alive()?;
        let everybody = Selection::of(Topic::nodes());
        let answers = self.ask(&everybody, Ask::Node).await;
        let answers = answers.map_err(|error| QueryError {
            kind: QueryErrorKind::Bus(error.reason),
        })?;
        for info in answers_in(&answers).filter_map(|answer| answer.node) {
            self.members.lock().described(info);
        }
        let mut others: Vec<NodeInfo> = self.members.lock().infos().cloned().collect();
        others.sort_unstable_by_key(|info| (info.started_at, info.id));
        others.insert(0, self.introduce());
        Ok(others)
    }

    fn check_alive(&self) -> Result<(), QueryError> {
        match self.stopped.load(SeqCst) {
            true => Err(QueryError {
                kind: QueryErrorKind::Down,
            }),
            false => Ok(()),
        }
    }

    /// For questions that are answered in part where they cannot be answered whole.
    async fn ask_others(&self, selection: &Selection, what: Ask, local_only: bool) -> Answers {
        if local_only {
            return Answers::default();
        }
        let answers = self.ask(selection, what).await;
        answers.unwrap_or_else(|_| {
            let mut missing: Vec<NodeId> = self.members.lock().ids().collect();
            missing.sort_unstable();
            let parts = Default::default();
            Answers { parts, missing }
        })
    }

    async fn ask(&self, selection: &Selection, what: Ask) -> Result<Answers, PublishError> {
        let carrier = selection.question_carrier();
        let Some(carrier) = carrier.filter(|topic| *topic != self.own) else {
            return Ok(Answers::default());
        };
        let id = self.next_union.fetch_add(1, Relaxed);
        let question = Arc::new(Question::default());
        self.questions.lock().insert(id, question.clone());
        let open = Open {
            node: self,
            id,
            question,
        };
        let deadline = Instant::now() + self.config.publish_timeout;
        let envelope = self.say(&selection.scope(), id, &Control::Ask { id, what });
        let promised = self.bus.publish(smallvec![carrier], envelope).await?;
        open.question
            .update(|gathering| gathering.promise(promised));
        open.wait(deadline).await;
        let gathering = std::mem::take(&mut *open.question.gathering.lock());
        Ok(gathering.into_answers())
    }

    /// An envelope that names its whole scope, on whatever channel it travels.
    pub(super) fn say(&self, scope: &Scope<'_>, id: u64, control: &Control) -> Bytes {
        let json = serde_json::to_vec(control).expect("control is plain data");
        wire::encode(self.id, Some(id), scope, &Action::Control(&json))
    }
}

impl Open<'_> {
    async fn wait(&self, deadline: Instant) {
        let mut follow_up = Instant::now() + FOLLOW_UP;
        loop {
            let (complete, needs_names) = {
                let gathering = self.question.gathering.lock();
                (gathering.is_complete(), gathering.needs_names())
            };
            let now = Instant::now();
            if complete || deadline <= now {
                return;
            }
            if needs_names || follow_up <= now {
                self.follow_up().await;
                follow_up = now + FOLLOW_UP;
                continue;
            }
            tokio::select! {
                () = self.question.changed.notified() => {}
                () = sleep_until(deadline.min(follow_up)) => {}
            }
        }
    }

    /// Asks everybody who has not answered to do so at once.
    async fn follow_up(&self) {
        let known: Vec<NodeId> = self.node.members.lock().ids().collect();
        let silent = self.question.gathering.lock().follow_up(known);
        let envelope = self
            .node
            .say(&Scope::default(), self.id, &Control::Ping { id: self.id });
        let pings = silent.into_iter().map(|node| {
            let pinging = self
                .node
                .bus
                .publish(smallvec![Topic::node(node)], envelope.clone());
            async move { (node, pinging.await) }
        });
        for (node, pinged) in join_all(pings).await {
            if matches!(pinged, Ok(0)) {
                self.question.gathering.lock().unreachable(node);
            }
        }
    }
}

/// The answers that make sense; those of a version that speaks otherwise are left out.
fn answers_in(answers: &Answers) -> impl Iterator<Item = Answer> {
    let parts = answers.parts.values().flatten();
    parts.filter_map(|part| serde_json::from_slice(part).ok())
}
