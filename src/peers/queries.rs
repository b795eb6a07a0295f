//! What is asked of all nodes: rosters, counts, which nodes there are, and who is online.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::gather::Answers;
use super::introduction::Introduction;
use super::nodes::Nodes;
use super::questions::Questions;
use super::share::{Flight, Share};
use crate::bus::Hearing;
use crate::bus::control::{Answer, Ask};
use crate::bus::scope::{Reach, Selection};
use crate::home::{Ground, Home};
use crate::local::Sockets;
use crate::model::error::{PublishError, QueryError};
use crate::model::id::{NodeId, UserId};
use crate::model::roster::{Count, NodeInfo, Roster};
use crate::model::topic::Topic;

#[derive(Debug)]
pub(crate) struct Queries {
    home: Arc<Home>,
    bus: Arc<dyn Hearing>,
    questions: Arc<Questions>,
    nodes: Arc<Mutex<Nodes>>,
    introduction: Arc<Introduction>,
    sockets: Sockets,
    rosters: Arc<Share<Selection, Arc<Roster>>>,
    counts: Arc<Share<Selection, Count>>,
}

impl Queries {
    pub(super) fn new(
        ground: &Ground,
        questions: &Arc<Questions>,
        nodes: &Arc<Mutex<Nodes>>,
        introduction: Arc<Introduction>,
        sockets: Sockets,
    ) -> Self {
        Self {
            home: ground.home.clone(),
            bus: ground.bus.clone(),
            questions: questions.clone(),
            nodes: nodes.clone(),
            introduction,
            sockets,
            rosters: Arc::new(Share::new()),
            counts: Arc::new(Share::new()),
        }
    }

    /// Who is meant, everywhere. Identical questions at the same time share the work.
    pub(crate) async fn roster(
        self: &Arc<Self>,
        selection: Selection,
        reach: Reach,
    ) -> Result<Roster, QueryError> {
        self.check_alive()?;
        if reach == Reach::Everywhere {
            let gather = |queries: Arc<Self>, selection| async move {
                Arc::new(queries.gather_roster(&selection, Reach::Everywhere).await)
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
        let here = self.sockets.members_of(&selection.scope());
        let (mut sockets, others) = tokio::join!(
            self.sockets.describe(&here),
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
            let gather = |queries: Arc<Self>, selection| async move {
                queries.gather_count(&selection, Reach::Everywhere).await
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
        let here = self.sockets.members_of(&selection.scope()).len();
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
        let (queries, key) = (self.clone(), selection.clone());
        let ask = move || gather(queries.clone(), key.clone());
        self.home
            .in_time(share.answer(flight, selection.clone(), ask))
            .await
    }

    /// Every node of the cluster, this one first.
    pub(crate) async fn nodes(self: &Arc<Self>) -> Result<Vec<NodeInfo>, QueryError> {
        self.check_alive()?;
        let questions = self.questions.clone();
        let asking = self.home.run(async move {
            let everybody = Selection::of(Topic::nodes());
            questions.ask(&everybody, Ask::Node).await
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
        others.insert(0, self.introduction.info());
        Ok(others)
    }

    /// Which of these users have a socket here, or another node that listens for them.
    pub(crate) async fn online(
        self: &Arc<Self>,
        users: &[UserId],
    ) -> Result<Vec<bool>, QueryError> {
        let topics: Result<Vec<Topic>, _> = users.iter().map(Topic::user).collect();
        let topics = topics.map_err(QueryError::invalid)?;
        let mut online = self.sockets.are_here(&topics);
        let (unknown, elsewhere): (Vec<usize>, Vec<Topic>) = topics
            .into_iter()
            .enumerate()
            .filter(|(at, _)| !online[*at])
            .unzip();
        if !elsewhere.is_empty() {
            let bus = self.bus.clone();
            // The connections are pooled, and would die with the caller's runtime.
            let asking = self
                .home
                .run(async move { bus.listening(&elsewhere).await });
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
        let answers = self.questions.ask(selection, what).await;
        answers.unwrap_or_else(|_| Answers::without(self.everybody()))
    }

    /// All other nodes that are known, in order.
    fn everybody(&self) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = self.nodes.lock().ids().collect();
        nodes.sort_unstable();
        nodes
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
