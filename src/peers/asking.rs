//! What is asked of all nodes: rosters, counts, nodes, and commands, which are carried out here too.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures::future::join;
use tokio::task::yield_now;

use super::Peers;
use super::gather::Answers;
use super::questions::Asked;
use super::share::{Flight, Share};
use crate::bus::control::{Answer, Ask};
use crate::bus::scope::{Reach, Selection};
use crate::local::Local;
use crate::model::close::reason;
use crate::model::delivery::Outcome;
use crate::model::error::{PublishError, QueryError, SendError};
use crate::model::id::{NodeId, SocketId, UserId};
use crate::model::roster::{Count, NodeInfo, Roster};
use crate::model::topic::Topic;

impl Peers {
    /// Carries a command out here and on every other node.
    pub(crate) async fn command(
        self: &Arc<Self>,
        selection: &Selection,
        what: Ask,
        reach: Reach,
    ) -> Result<Outcome, SendError> {
        if self.home.is_stopped() {
            return Err(SendError::down());
        }
        self.home.counters.sent.fetch_add(1, Relaxed);
        let (local, confirmation) = self.carry_out(&selection.scope(), &what);
        // Queued by this call, so that it keeps its place among what else is sent.
        let asked = match reach {
            Reach::Here => Ok(None),
            Reach::Everywhere => self.begin(selection, what),
        };
        if self.local.flush() {
            // In a task too, since a caller that gives up leaves nobody unclosed; and here, since nobody may drive that.
            self.home.spawn(flush_all(self.local.clone()));
            flush_all(self.local.clone()).await;
        }
        let peers = self.clone();
        let asking = self.home.run(async move {
            let answers = async { Asked::answers(asked?).await };
            join(answers, peers.local.wait_confirmed(confirmation))
                .await
                .0
        });
        let answers = match asking.await {
            None if reach == Reach::Here => Ok(Answers::of_nobody()),
            None => Err(PublishError::maybe_sent(self.home.unfinished())),
            Some(answers) => answers,
        };
        let answers = answers.map_err(|error| {
            self.home.counters.record_failed_publish(error.maybe_sent);
            SendError::bus(local, error)
        })?;
        let nodes = {
            let nodes = self.nodes.lock();
            let parts = answers.parts.keys();
            parts.filter(|id| !nodes.is_worker(**id)).count()
        };
        Ok(Outcome {
            local,
            nodes: (reach == Reach::Everywhere).then_some(nodes),
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
        let (peers, close) = (self.clone(), Ask::from(&reason::REPLACED));
        self.home.spawn(async move {
            let _ = peers.command(&selection, close, Reach::Everywhere).await;
        });
    }

    /// Who is meant, everywhere. Identical questions at the same time share the work.
    pub(crate) async fn roster(
        self: &Arc<Self>,
        selection: Selection,
        reach: Reach,
    ) -> Result<Roster, QueryError> {
        self.check_alive()?;
        if reach == Reach::Everywhere {
            let gather = |peers: Arc<Self>, selection| async move {
                Arc::new(peers.gather_roster(&selection, Reach::Everywhere).await)
            };
            let shared = self.shared(&self.rosters, &selection, gather).await;
            if let Some(roster) = shared {
                return Ok(Arc::unwrap_or_clone(roster));
            }
        }
        let here = self.gather_roster(&selection, Reach::Here).await;
        Ok(match reach {
            Reach::Here => here,
            Reach::Everywhere => Roster {
                missing: self.everybody(),
                partial: true,
                ..here
            },
        })
    }

    async fn gather_roster(self: &Arc<Self>, selection: &Selection, reach: Reach) -> Roster {
        let here = self.local.members_of(&selection.scope());
        let (mut sockets, others) = tokio::join!(
            self.local.describe(&here),
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
            let gather = |peers: Arc<Self>, selection| async move {
                peers.gather_count(&selection, Reach::Everywhere).await
            };
            let shared = self.shared(&self.counts, &selection, gather).await;
            if let Some(count) = shared {
                return Ok(count);
            }
        }
        let here = self.gather_count(&selection, Reach::Here).await;
        Ok(match reach {
            Reach::Here => here,
            Reach::Everywhere => Count {
                missing: self.everybody(),
                partial: true,
                ..here
            },
        })
    }

    async fn gather_count(self: &Arc<Self>, selection: &Selection, reach: Reach) -> Count {
        let here = self.local.members_of(&selection.scope()).len();
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

    /// The answer to a question that is shared with whoever asks it, too: on our runtime, and no longer than any answer
    /// can take. `None` where nothing came of it.
    async fn shared<V, F>(
        self: &Arc<Self>,
        share: &Arc<Share<Selection, V>>,
        selection: &Selection,
        gather: impl Fn(Arc<Self>, Selection) -> F + Send + 'static,
    ) -> Option<V>
    where
        V: Clone + Send + Sync + 'static,
        F: Future<Output = V> + Send + 'static,
    {
        let flight = Flight {
            runtime: self.home.runtime(),
            longest: self.home.longest(),
        };
        let (peers, key) = (self.clone(), selection.clone());
        let ask = move || gather(peers.clone(), key.clone());
        self.home
            .in_time(share.answer(flight, selection.clone(), ask))
            .await
    }

    /// Every node of the cluster, this one first.
    pub(crate) async fn nodes(self: &Arc<Self>) -> Result<Vec<NodeInfo>, QueryError> {
        self.check_alive()?;
        let peers = self.clone();
        let asking = self.home.run(async move {
            let everybody = Selection::of(Topic::nodes());
            peers.ask(&everybody, Ask::Node).await
        });
        let answers = asking.await;
        let answers =
            answers.unwrap_or_else(|| Err(PublishError::maybe_sent(self.home.unfinished())));
        let answers = answers.map_err(|error| QueryError::bus(error.reason))?;
        let said_hello = self.nodes.lock().infos().cloned().collect::<Vec<_>>();
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

    /// Which of these users have a socket here, or another node that listens for them.
    pub(crate) async fn online(
        self: &Arc<Self>,
        users: &[UserId],
    ) -> Result<Vec<bool>, QueryError> {
        let topics: Result<Vec<Topic>, _> = users.iter().map(Topic::user).collect();
        let topics = topics.map_err(QueryError::invalid)?;
        let mut online: Vec<bool> = {
            let registry = self.local.registry();
            let here = topics.iter().map(|topic| registry.has_member(topic));
            here.collect()
        };
        let (unknown, elsewhere): (Vec<usize>, Vec<Topic>) = topics
            .into_iter()
            .enumerate()
            .filter(|(at, _)| !online[*at])
            .unzip();
        if !elsewhere.is_empty() {
            let peers = self.clone();
            // The connections are pooled, and would die with the caller's runtime.
            let asking = self
                .home
                .run(async move { peers.home.bus.listening(&elsewhere).await });
            let nodes = asking.await;
            let nodes = nodes.unwrap_or_else(|| Err(self.home.unfinished().into()));
            let nodes = nodes.map_err(QueryError::bus)?;
            for (at, nodes) in unknown.into_iter().zip(nodes) {
                online[at] = nodes > 0;
            }
        }
        Ok(online)
    }

    fn check_alive(&self) -> Result<(), QueryError> {
        match self.home.is_stopped() {
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
        let mut nodes: Vec<NodeId> = self.nodes.lock().ids().collect();
        nodes.sort_unstable();
        nodes
    }
}

/// Writes all that was collected, letting other tasks run in between.
async fn flush_all(local: Arc<Local>) {
    while local.flush() {
        yield_now().await;
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
