//! Questions to other nodes, and commands: what is asked is carried out here too, then everybody's answers
//! are gathered.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use futures::future::{BoxFuture, OptionFuture, join, join_all};
use parking_lot::Mutex;
use smallvec::smallvec;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Node;
use crate::backend::{Listener, Published};
use crate::control::{Answer, Ask, Control};
use crate::delivery::Outcome;
use crate::error::{PublishError, QueryError, SendError};
use crate::gather::{Answers, Gathering};
use crate::id::NodeId;
use crate::roster::{Count, NodeInfo, Roster};
use crate::scope::{Reach, Scope, Selection};
use crate::share::Flight;
use crate::topic::{Topic, TopicKind};
use crate::wire::{Action, MAX_ENVELOPE};

/// A healthy cluster has answered long before: who has not is asked by name, again and again.
const FOLLOW_UP: Duration = Duration::from_millis(100);

/// A question that waits for its answers.
#[derive(Debug)]
pub(super) struct Question {
    /// Just before it was published.
    pub(super) asked_at: Instant,
    gathering: Mutex<Gathering>,
    changed: Notify,
}

impl Question {
    fn new(asked_at: Instant) -> Self {
        Self {
            asked_at,
            gathering: Mutex::default(),
            changed: Notify::new(),
        }
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Gathering)) {
        change(&mut self.gathering.lock());
        self.changed.notify_one();
    }
}

/// A question that is published, or about to be. Forgotten however the asker ends.
struct Open {
    node: Arc<Node>,
    id: u64,
    question: Arc<Question>,
    deadline: Instant,
}

/// A question whose publication is queued already.
struct Asked {
    open: Open,
    publishing: BoxFuture<'static, Result<Published, PublishError>>,
    /// Tells how many nodes are on the bus at all, where the question itself does not.
    census: OptionFuture<BoxFuture<'static, Result<Published, PublishError>>>,
    /// Of the channel on which it travels.
    kind: TopicKind,
}

impl Drop for Open {
    fn drop(&mut self) {
        let forgotten = self.node.questions.lock().remove(&self.id);
        drop(forgotten);
    }
}

impl Node {
    /// Carries a command out here and on every other node.
    pub(crate) async fn command(
        self: &Arc<Self>,
        selection: &Selection,
        what: Ask,
        reach: Reach,
    ) -> Result<Outcome, SendError> {
        if self.stopped.load(SeqCst) {
            return Err(SendError::down());
        }
        self.counters.sent.fetch_add(1, Relaxed);
        let (local, confirmation) = self.carry_out(&selection.scope(), &what);
        // Queued by this call, so that it keeps its place among what else is sent.
        let asked = match reach {
            Reach::Here => Ok(None),
            Reach::Everywhere => self.begin(selection, what),
        };
        if self.settle() {
            let node = self.clone();
            // In a task, since a caller that gives up leaves nobody unclosed.
            let settling = self.spawn(async move {
                while node.settle() {
                    yield_now().await;
                }
            });
            let _ = settling.await;
        }
        let node = self.clone();
        let asking = self.at_home(async move {
            let answers = async { Asked::answers(asked?).await };
            join(answers, node.settled(confirmation)).await.0
        });
        let answers = match asking.await {
            None if reach == Reach::Here => Ok(Answers::of_nobody()),
            None => Err(PublishError::maybe_sent(self.unfinished())),
            Some(answers) => answers,
        };
        let answers = answers.map_err(|error| {
            self.counters.note_failed_publish(error.maybe_sent);
            SendError::bus(local, error)
        })?;
        let nodes = {
            let members = self.members.lock();
            let parts = answers.parts.keys();
            parts.filter(|id| !members.is_worker(**id)).count()
        };
        Ok(Outcome {
            local,
            nodes: (reach == Reach::Everywhere).then_some(nodes),
            unanswered: answers.missing.len(),
        })
    }

    /// Who is meant, everywhere. Identical questions at the same time share the work.
    pub(crate) async fn roster(
        self: &Arc<Self>,
        selection: Selection,
        reach: Reach,
    ) -> Result<Roster, QueryError> {
        self.check_alive()?;
        if reach == Reach::Everywhere {
            let (node, key) = (self.clone(), selection.clone());
            let ask = move || {
                let (node, selection) = (node.clone(), selection.clone());
                async move { Arc::new(node.gather_roster(&selection, Reach::Everywhere).await) }
            };
            let shared = self.rosters.answer(self.flight(), key.clone(), ask);
            return Ok(match self.in_time(shared).await {
                Some(roster) => Arc::unwrap_or_clone(roster),
                None => Roster {
                    missing: self.everybody(),
                    partial: true,
                    ..self.gather_roster(&key, Reach::Here).await
                },
            });
        }
        Ok(self.gather_roster(&selection, Reach::Here).await)
    }

    async fn gather_roster(self: &Arc<Self>, selection: &Selection, reach: Reach) -> Roster {
        let here = self.members_of(&selection.scope());
        let (mut sockets, others) = tokio::join!(
            self.describe(&here),
            self.ask_others(selection, Ask::Sockets, reach)
        );
        let (answers, missing, partial) = read(others);
        sockets.extend(answers.into_iter().flat_map(|answer| answer.sockets));
        sockets.sort_unstable_by_key(|socket| (socket.connected_at, socket.id));
        Roster {
            sockets,
            missing,
            partial,
        }
    }

    /// How many are meant, everywhere.
    pub(crate) async fn count(
        self: &Arc<Self>,
        selection: Selection,
        reach: Reach,
    ) -> Result<Count, QueryError> {
        self.check_alive()?;
        if reach == Reach::Everywhere {
            let (node, key) = (self.clone(), selection.clone());
            let ask = move || {
                let (node, selection) = (node.clone(), selection.clone());
                async move { node.gather_count(&selection, Reach::Everywhere).await }
            };
            let shared = self.counts.answer(self.flight(), key.clone(), ask);
            return Ok(match self.in_time(shared).await {
                Some(count) => count,
                None => Count {
                    missing: self.everybody(),
                    partial: true,
                    ..self.gather_count(&key, Reach::Here).await
                },
            });
        }
        Ok(self.gather_count(&selection, Reach::Here).await)
    }

    async fn gather_count(self: &Arc<Self>, selection: &Selection, reach: Reach) -> Count {
        let here = self.members_of(&selection.scope()).len();
        let others = self.ask_others(selection, Ask::Count, reach).await;
        let (answers, missing, partial) = read(others);
        let sockets = answers
            .iter()
            .fold(here, |sockets, answer| sockets.saturating_add(answer.count));
        Count {
            sockets,
            missing,
            partial,
        }
    }

    /// How a shared question runs: on our runtime, and no longer than any answer can take.
    fn flight(&self) -> Flight<'_> {
        Flight {
            runtime: self.tasks.runtime(),
            longest: self.longest(),
        }
    }

    /// Every node of the cluster, this one first.
    pub(crate) async fn nodes(self: &Arc<Self>) -> Result<Vec<NodeInfo>, QueryError> {
        self.check_alive()?;
        let node = self.clone();
        let asking = self.at_home(async move {
            let everybody = Selection::of(Topic::nodes());
            node.ask(&everybody, Ask::Node).await
        });
        let answers = asking.await;
        let answers = answers.unwrap_or_else(|| Err(PublishError::maybe_sent(self.unfinished())));
        let answers = answers.map_err(|error| QueryError::bus(error.reason))?;
        let said_hello = self.members.lock().infos().cloned().collect::<Vec<_>>();
        let answered = read(answers).0.into_iter().filter_map(|answer| answer.node);
        let others: HashMap<NodeId, NodeInfo> = said_hello
            .into_iter()
            .chain(answered)
            .map(|info| (info.id, info))
            .collect();
        let mut others: Vec<NodeInfo> = others.into_values().collect();
        others.sort_unstable_by_key(|info| (info.started_at, info.id));
        others.insert(0, self.introduce());
        Ok(others)
    }

    fn check_alive(&self) -> Result<(), QueryError> {
        match self.stopped.load(SeqCst) {
            true => Err(QueryError::down()),
            false => Ok(()),
        }
    }

    /// For questions that are answered in part where they cannot be answered whole.
    async fn ask_others(
        self: &Arc<Self>,
        selection: &Selection,
        what: Ask,
        reach: Reach,
    ) -> Answers {
        if reach == Reach::Here {
            return Answers::of_nobody();
        }
        let answers = self.ask(selection, what).await;
        answers.unwrap_or_else(|_| Answers::without(self.everybody()))
    }

    /// All other nodes that are known, in order.
    fn everybody(&self) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = self.members.lock().ids().collect();
        nodes.sort_unstable();
        nodes
    }

    async fn ask(
        self: &Arc<Self>,
        selection: &Selection,
        what: Ask,
    ) -> Result<Answers, PublishError> {
        Asked::answers(self.begin(selection, what)?).await
    }

    /// Queues a question, by the call itself; `None` where nobody else is asked.
    fn begin(
        self: &Arc<Self>,
        selection: &Selection,
        what: Ask,
    ) -> Result<Option<Asked>, PublishError> {
        let carrier = selection.question_carrier();
        let Some(carrier) = carrier.filter(|topic| *topic != self.own) else {
            return Ok(None);
        };
        let (id, scope) = (self.uplink.next_question(), selection.scope());
        let ask = Control::Ask { id, what };
        let envelope = self.uplink.write_word(&scope, id, &ask);
        if envelope.len() > MAX_ENVELOPE {
            return Err(PublishError::not_sent(format!(
                "naming the audience takes {} bytes, at most {MAX_ENVELOPE} travel: ask in parts",
                envelope.len()
            )));
        }
        let question = Arc::new(Question::new(Instant::now()));
        self.questions.lock().insert(id, question.clone());
        let open = Open {
            node: self.clone(),
            id,
            deadline: question.asked_at + self.config.publish_timeout,
            question,
        };
        let size = selection.size();
        let (kind, is_census) = (carrier.kind(), carrier == Topic::nodes());
        let publishing = self.bus.publish(smallvec![carrier], envelope, size);
        let census = (!is_census).then(|| {
            let probe = self.uplink.write(None, &Scope::default(), &Action::Probe);
            self.uplink.say(Topic::nodes(), probe)
        });
        Ok(Some(Asked {
            open,
            publishing,
            census: census.into(),
            kind,
        }))
    }
}

impl Asked {
    /// At the deadline what is there must do.
    async fn answers(asked: Option<Self>) -> Result<Answers, PublishError> {
        let Some(Self {
            open,
            publishing,
            census,
            kind,
        }) = asked
        else {
            return Ok(Answers::of_nobody());
        };
        let (published, census) = join(publishing, census).await;
        let published = published?;
        let (known, all_hear) = {
            let members = open.node.members.lock();
            (members.len(), members.hear(kind))
        };
        let present = match census.unwrap_or(Ok(published)) {
            // We are among those that are counted, or not: who has just come back does not know.
            Ok(census) if open.hears() => census.nodes,
            _ => 0,
        };
        open.question.update(|gathering| {
            gathering.present(present, known);
            if !all_hear {
                gathering.doubt();
            }
            gathering.promise(published);
        });
        let _ = timeout_at(open.deadline, open.wait()).await;
        let mut gathering = std::mem::take(&mut *open.question.gathering.lock());
        gathering.end(open.node.members.lock().ids());
        Ok(gathering.into_answers())
    }
}

impl Open {
    /// Whether this node has heard everything since before it asked.
    fn hears(&self) -> bool {
        let hearing = self.node.hearing();
        hearing.is_some_and(|(since, _)| since <= self.question.asked_at)
    }

    async fn wait(&self) {
        let mut follow_up = Instant::now() + FOLLOW_UP;
        loop {
            let (complete, needs_names) = {
                let gathering = self.question.gathering.lock();
                (gathering.is_complete(), gathering.needs_names())
            };
            if complete {
                return;
            }
            if needs_names || follow_up <= Instant::now() {
                self.follow_up().await;
                follow_up = Instant::now() + FOLLOW_UP;
                continue;
            }
            tokio::select! {
                () = self.question.changed.notified() => {}
                () = sleep_until(follow_up) => {}
            }
        }
    }

    /// Asks everybody who has not answered whether there is something to wait for.
    async fn follow_up(&self) {
        let known: Vec<NodeId> = self.node.members.lock().ids().collect();
        let silent = self.question.gathering.lock().follow_up(known);
        let (uplink, id) = (&self.node.uplink, self.id);
        let ping = uplink.write_word(&Scope::default(), id, &Control::Ping { id });
        let pings = silent.into_iter().map(|node| {
            let pinging = uplink.say(Topic::node(node), ping.clone());
            async move { (node, pinging.await) }
        });
        for (node, pinged) in join_all(pings).await {
            if pinged.is_ok_and(|pinged| pinged.nodes == 0) {
                self.question.gathering.lock().unreachable(node);
            }
        }
    }
}

/// The answers that make sense, who is missing, and whether anybody is; a node whose answer makes no sense
/// has not answered.
fn read(answers: Answers) -> (Vec<Answer>, Vec<NodeId>, bool) {
    let Answers {
        parts,
        mut missing,
        mut partial,
    } = answers;
    let mut read = Vec::new();
    for (node, parts) in parts {
        let parts = parts.iter().map(|part| serde_json::from_slice(part));
        match parts.collect::<Result<Vec<Answer>, _>>() {
            Ok(answer) => read.extend(answer),
            Err(_) => {
                missing.push(node);
                partial = true;
            }
        }
    }
    missing.sort_unstable();
    (read, missing, partial)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn an_answer_that_makes_no_sense_is_none() {
        let part = |json: &'static str| Bytes::from_static(json.as_bytes());
        let answers = Answers {
            parts: HashMap::from([
                (NodeId(1), vec![part(r#"{"count":2}"#), part("{")]),
                (NodeId(2), vec![part(r#"{"count":3}"#)]),
            ]),
            missing: vec![NodeId(3)],
            partial: false,
        };
        let (read, missing, partial) = read(answers);
        assert_eq!(read.iter().map(|answer| answer.count).sum::<usize>(), 3);
        assert_eq!((missing, partial), (vec![NodeId(1), NodeId(3)], true));
    }
}
