//! What this node asks all others: a question is published, who is silent is asked by name, and what came is gathered.
//! When, say the rules of [`question`](super::question).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, OptionFuture, join, join_all};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::gather::Answers;
use super::nodes::Nodes;
use super::question::{Census, Next, Question};
use crate::bus::Published;
use crate::bus::control::{Ask, Control};
use crate::bus::reception::Reception;
use crate::bus::scope::{Scope, Selection};
use crate::bus::uplink::Uplink;
use crate::bus::wire::MAX_ENVELOPE;
use crate::home::Ground;
use crate::model::error::PublishError;
use crate::model::id::NodeId;
use crate::model::topic::{Topic, TopicKind};

#[derive(Debug)]
pub(super) struct Questions {
    /// The topic of this node.
    own: Topic,
    publish_timeout: Duration,
    uplink: Arc<Uplink>,
    reception: Arc<Reception>,
    nodes: Arc<Mutex<Nodes>>,
    /// Until they are answered.
    open: Mutex<HashMap<u64, Arc<SharedQuestion>>>,
    next: AtomicU64,
}

/// A question that waits for its answers.
#[derive(Debug)]
struct SharedQuestion {
    question: Mutex<Question>,
    changed: Notify,
}

/// A question that is published, or about to be. Forgotten however the asker ends.
struct OpenQuestion {
    questions: Arc<Questions>,
    id: u64,
    shared: Arc<SharedQuestion>,
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

impl Questions {
    pub(super) fn new(
        ground: &Ground,
        uplink: &Arc<Uplink>,
        nodes: &Arc<Mutex<Nodes>>,
        publish_timeout: Duration,
    ) -> Self {
        Self {
            own: Topic::node(ground.node),
            publish_timeout,
            uplink: uplink.clone(),
            reception: ground.reception.clone(),
            nodes: nodes.clone(),
            open: Mutex::default(),
            next: AtomicU64::new(1),
        }
    }

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
        self.begin_as(self.number(), selection, what)
    }

    /// That of a question to come.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    pub(super) fn begin_as(
        self: &Arc<Self>,
        id: u64,
        selection: &Selection,
        what: Ask,
    ) -> Result<Option<Asked>, PublishError> {
        let carrier = selection.question_carrier();
        let Some(carrier) = carrier.filter(|topic| *topic != self.own) else {
            return Ok(None);
        };
        let scope = selection.scope();
        let ask = Control::Ask { id, what };
        let envelope = self.uplink.write_word(&scope, id, &ask);
        if envelope.len() > MAX_ENVELOPE {
            return Err(PublishError::not_sent(format!(
                "naming the audience takes {} bytes, at most {MAX_ENVELOPE} travel: ask in parts",
                envelope.len()
            )));
        }
        let open = self.open(id);
        let (kind, is_census) = (carrier.kind(), carrier == Topic::nodes());
        let publishing = self.uplink.ask(carrier, envelope, selection.size());
        let census = (!is_census).then(|| self.uplink.probe());
        Ok(Some(Asked {
            open,
            publishing,
            census: census.into(),
            kind,
        }))
    }

    /// Tells a question, unless it is over.
    pub(super) fn tell(&self, id: u64, change: impl FnOnce(&mut Question)) {
        let question = self.open.lock().get(&id).cloned();
        if let Some(question) = question {
            question.update(change);
        }
    }

    /// A node will not answer any more.
    pub(super) fn left(&self, node: NodeId, goodbye: bool) {
        let open: Vec<_> = self.open.lock().values().cloned().collect();
        for question in open {
            question.update(|question| question.gathering().left(node, goodbye));
        }
    }

    fn open(self: &Arc<Self>, id: u64) -> OpenQuestion {
        let question = Question::asked(Instant::now(), self.publish_timeout);
        let shared = Arc::new(SharedQuestion {
            question: Mutex::new(question),
            changed: Notify::new(),
        });
        self.open.lock().insert(id, shared.clone());
        OpenQuestion {
            questions: self.clone(),
            id,
            shared,
        }
    }

    fn known(&self) -> Vec<NodeId> {
        self.nodes.lock().ids().collect()
    }

    fn census(&self, counted: Option<Published>, kind: TopicKind) -> Census {
        let hearing = self.reception.hearing();
        let nodes = self.nodes.lock();
        Census {
            counted: counted.map(|counted| counted.nodes),
            hearing,
            known: nodes.len(),
            all_hear: nodes.hear(kind),
        }
    }

    /// Asks each of them whether there is something to wait for; those who are not on the bus.
    async fn ping(&self, id: u64, silent: Vec<NodeId>) -> Vec<NodeId> {
        let ping = Control::Ping { id };
        let ping = self.uplink.write_word(&Scope::default(), id, &ping);
        let pings = silent.into_iter().map(|node| {
            let pinging = self.uplink.say(Topic::node(node), ping.clone());
            async move { (node, pinging.await) }
        });
        let pinged = join_all(pings).await.into_iter();
        let unreachable =
            pinged.filter(|(_, pinged)| pinged.as_ref().is_ok_and(|pinged| pinged.nodes == 0));
        unreachable.map(|(node, _)| node).collect()
    }
}

impl SharedQuestion {
    fn update(&self, change: impl FnOnce(&mut Question)) {
        change(&mut self.question.lock());
        self.changed.notify_one();
    }
}

impl Asked {
    /// Calls this when it is published; whether it comes back.
    pub(super) fn when_published(self, call: impl FnOnce(bool) + Send + 'static) -> Self {
        let publishing = self.publishing;
        let publishing = async move {
            let published = publishing.await;
            call(matches!(&published, Ok(published) if published.comes_back));
            published
        };
        Self {
            publishing: publishing.boxed(),
            ..self
        }
    }

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
        let (published, counted) = join(publishing, census).await;
        let published = published?;
        let counted = counted.unwrap_or_else(|| Ok(published.clone()));
        let census = open.questions.census(counted.ok(), kind);
        let now = Instant::now();
        open.shared
            .update(|question| question.published(published, census, now));
        open.wait().await;
        let known = open.questions.known();
        Ok(open.shared.question.lock().end(known))
    }
}

impl OpenQuestion {
    async fn wait(&self) {
        let SharedQuestion { question, changed } = &*self.shared;
        let deadline = question.lock().deadline();
        loop {
            let known = || self.questions.known();
            let next = question.lock().next(known, Instant::now());
            match next {
                Next::Over => return,
                Next::Ask(silent) => {
                    let pinging = self.questions.ping(self.id, silent);
                    let Ok(unreachable) = timeout_at(deadline, pinging).await else {
                        return;
                    };
                    question.lock().followed_up(&unreachable, Instant::now());
                }
                Next::Wait(until) => tokio::select! {
                    () = changed.notified() => {}
                    () = sleep_until(until) => {}
                },
            }
        }
    }
}

impl Drop for OpenQuestion {
    fn drop(&mut self) {
        let forgotten = self.questions.open.lock().remove(&self.id);
        drop(forgotten);
    }
}
