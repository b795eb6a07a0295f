//! What this node asks all others: a question is published, who is silent is asked by name, and what came is gathered.
//! When, say the rules of [`question`](super::question).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, OptionFuture, join, join_all};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::gather::Answers;
use super::nodes::Nodes;
use super::question::{Census, NextAsk, Question};
use crate::bus::Published;
use crate::bus::control::{Ask, Control};
use crate::bus::reception::Reception;
use crate::bus::scope::{Scope, Selection};
use crate::bus::uplink::Uplink;
use crate::bus::wire::MAX_ENVELOPE;
use crate::home::Ground;
use crate::model::error::PublishError;
use crate::model::id::NodeId;
use crate::model::partition::Partition;
use crate::model::topic::{Topic, TopicKind};

/// Most bytes of a question that are said once more to each node by name.
const REPEATED: usize = 64 * 1024;

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
    /// What it is where it may be said by name.
    repeated: Option<Bytes>,
}

/// A question whose publication is queued already.
pub(super) struct AskedQuestion {
    open: OpenQuestion,
    publishing: BoxFuture<'static, Result<Published, PublishError>>,
    /// Tells how many nodes hear what goes the same way, where the question itself does not.
    census: OptionFuture<BoxFuture<'static, Result<Published, PublishError>>>,
    /// On which it travels.
    carrier: Topic,
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
        AskedQuestion::answers(self.begin(selection, what)?).await
    }

    /// Queues a question, by the call itself; `None` where nobody else is asked.
    pub(super) fn begin(
        self: &Arc<Self>,
        selection: &Selection,
        what: Ask,
    ) -> Result<Option<AskedQuestion>, PublishError> {
        self.begin_as(self.number(), selection, what)
    }

    /// The number of a question to come.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    pub(super) fn begin_as(
        self: &Arc<Self>,
        id: u64,
        selection: &Selection,
        what: Ask,
    ) -> Result<Option<AskedQuestion>, PublishError> {
        let carrier = selection.question_carrier();
        let Some(carrier) = carrier.filter(|topic| *topic != self.own) else {
            return Ok(None);
        };
        let (scope, may_overtake) = (selection.scope(), what.may_overtake());
        let ask = Control::Ask { id, what };
        let envelope = self.uplink.write_word(&scope, id, &ask);
        if envelope.len() > MAX_ENVELOPE {
            return Err(PublishError::not_sent(format!(
                "naming the audience takes {} bytes, at most {MAX_ENVELOPE} travel: ask in parts",
                envelope.len()
            )));
        }
        let may_repeat = may_overtake && envelope.len() <= REPEATED;
        let open = self.open(id, may_repeat.then(|| envelope.clone()));
        let publishing = (self.uplink).ask(carrier.clone(), envelope, selection.size());
        let is_census = carrier.kind() == TopicKind::Nodes;
        let census = (!is_census).then(|| self.uplink.probe(&carrier));
        Ok(Some(AskedQuestion {
            open,
            publishing,
            census: census.into(),
            carrier,
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

    fn open(self: &Arc<Self>, id: u64, repeated: Option<Bytes>) -> OpenQuestion {
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
            repeated,
        }
    }

    fn known(&self) -> Vec<NodeId> {
        self.nodes.lock().ids().collect()
    }

    fn census(&self, counted: Option<Published>, carrier: &Topic) -> Census {
        // Where nodes say hello too: a stranger would be counted for one that is known.
        let heard = [carrier, &Topic::nodes()].map(|topic| Partition::of(topic.as_str()));
        let hearing = self.reception.hearing_of(heard.into_iter().collect());
        let nodes = self.nodes.lock();
        Census {
            counted: counted.map(|counted| counted.nodes),
            hearing,
            known: nodes.len(),
            workers: nodes.len() - nodes.ids().count(),
            all_hear: nodes.hear(carrier.kind()),
        }
    }

    /// Asks whether there is something to wait for.
    fn ping(&self, id: u64) -> Bytes {
        let ping = Control::Ping { id };
        self.uplink.write_word(&Scope::default(), id, &ping)
    }

    /// Tells each of them; those who are not on the bus.
    async fn tell_by_name(&self, word: &Bytes, silent: Vec<NodeId>) -> Vec<NodeId> {
        let telling = silent.into_iter().map(|node| {
            let telling = self.uplink.say(Topic::node(node), word.clone());
            async move { (node, telling.await) }
        });
        let told = join_all(telling).await.into_iter();
        let unreachable = told.filter(|(_, told)| told.as_ref().is_ok_and(|told| told.nodes == 0));
        unreachable.map(|(node, _)| node).collect()
    }
}

impl SharedQuestion {
    fn update(&self, change: impl FnOnce(&mut Question)) {
        change(&mut self.question.lock());
        self.changed.notify_one();
    }
}

impl AskedQuestion {
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
            carrier,
        }) = asked
        else {
            return Ok(Answers::of_nobody());
        };
        let (published, counted) = join(publishing, census).await;
        let published = published?;
        let counted = counted.unwrap_or_else(|| Ok(published.clone()));
        let census = open.questions.census(counted.ok(), &carrier);
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
            let (word, silent) = match next {
                NextAsk::Over => return,
                NextAsk::Wait(until) => {
                    tokio::select! {
                        () = changed.notified() => {}
                        () = sleep_until(until) => {}
                    }
                    continue;
                }
                NextAsk::Repeat(silent) => (self.repeated.clone(), silent),
                NextAsk::Ping(silent) => (None, silent),
            };
            let word = word.unwrap_or_else(|| self.questions.ping(self.id));
            let telling = self.questions.tell_by_name(&word, silent);
            let Ok(unreachable) = timeout_at(deadline, telling).await else {
                return;
            };
            question.lock().followed_up(&unreachable, Instant::now());
        }
    }
}

impl Drop for OpenQuestion {
    fn drop(&mut self) {
        let forgotten = self.questions.open.lock().remove(&self.id);
        drop(forgotten);
    }
}
