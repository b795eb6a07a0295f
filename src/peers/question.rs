//! One question to all other nodes: it is published, who is silent is asked by name, and what came is gathered.
//!
//! ```text
//!  begin: queued --> published --> wait --> complete ------------------> answers
//!                       |          ^  |                                    ^
//!                       | fails    |  |  100 ms, or counting is no use:    |
//!                       v          +--+  who is silent is asked by name    |
//!                     error           |                                    |
//!                                     +--> the deadline: what is there ----+
//! ```

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, OptionFuture, join, join_all};
use parking_lot::Mutex;
use smallvec::smallvec;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Peers;
use super::gather::{Answers, Gathering};
use crate::bus::Published;
use crate::bus::control::{Ask, Control};
use crate::bus::scope::{Scope, Selection};
use crate::bus::wire::{Action, MAX_ENVELOPE};
use crate::model::error::PublishError;
use crate::model::id::NodeId;
use crate::model::topic::{Topic, TopicKind};

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
struct OpenQuestion {
    peers: Arc<Peers>,
    id: u64,
    question: Arc<Question>,
    deadline: Instant,
}

/// A question whose publication is queued already.
pub(super) struct Asked {
    open: OpenQuestion,
    publishing: BoxFuture<'static, Result<Published, PublishError>>,
    /// Tells how many nodes are on the bus at all, where the question itself does not.
    census: OptionFuture<BoxFuture<'static, Result<Published, PublishError>>>,
    /// Of the channel on which it travels.
    kind: TopicKind,
}

impl Drop for OpenQuestion {
    fn drop(&mut self) {
        let forgotten = self.peers.questions.lock().remove(&self.id);
        drop(forgotten);
    }
}

impl Peers {
    pub(super) async fn ask(
        self: &Arc<Self>,
        selection: &Selection,
        what: Ask,
    ) -> Result<Answers, PublishError> {
        Asked::answers(self.begin(selection, what)?).await
    }

    /// Queues a question, by the call itself; `None` where nobody else is asked.
    pub(super) fn begin(
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
        let open = OpenQuestion {
            peers: self.clone(),
            id,
            deadline: question.asked_at + self.settings.publish_timeout,
            question,
        };
        let size = selection.size();
        let (kind, is_census) = (carrier.kind(), carrier == Topic::nodes());
        let publishing = self.home.bus.publish(smallvec![carrier], envelope, size);
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
    pub(super) async fn answers(asked: Option<Self>) -> Result<Answers, PublishError> {
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
            let nodes = open.peers.nodes.lock();
            (nodes.len(), nodes.hear(kind))
        };
        let present = match census.unwrap_or(Ok(published)) {
            // We are among those that are counted, or not: who has just come back does not know.
            Ok(census) if open.hears() => census.nodes,
            _ => 0,
        };
        open.question.update(|gathering| {
            gathering.present(present, known);
            if !all_hear {
                gathering.not_all_hear();
            }
            gathering.promise(published);
        });
        let _ = timeout_at(open.deadline, open.wait()).await;
        let mut gathering = std::mem::take(&mut *open.question.gathering.lock());
        gathering.end(open.peers.nodes.lock().ids());
        Ok(gathering.into_answers())
    }
}

impl OpenQuestion {
    /// Whether this node has heard everything since before it asked.
    fn hears(&self) -> bool {
        let hearing = self.peers.home.reception.hearing();
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
        let known: Vec<NodeId> = self.peers.nodes.lock().ids().collect();
        let silent = self.question.gathering.lock().follow_up(known);
        let (uplink, id) = (&self.peers.uplink, self.id);
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
