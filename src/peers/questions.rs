//! What this node asks all others: a question is published, who is silent is asked by name, and what came is gathered.
//! When, say the rules of [`question`](super::question).

use std::sync::Arc;

use futures::future::{BoxFuture, OptionFuture, join, join_all};
use parking_lot::Mutex;
use smallvec::smallvec;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Peers;
use super::gather::Answers;
use super::question::{Census, Next, Question};
use crate::bus::Published;
use crate::bus::control::{Ask, Control};
use crate::bus::scope::{Scope, Selection};
use crate::bus::wire::{Action, MAX_ENVELOPE};
use crate::model::error::PublishError;
use crate::model::id::NodeId;
use crate::model::topic::{Topic, TopicKind};

/// A question that waits for its answers.
#[derive(Debug)]
pub(super) struct SharedQuestion {
    question: Mutex<Question>,
    changed: Notify,
}

impl SharedQuestion {
    pub(super) fn update(&self, change: impl FnOnce(&mut Question)) {
        change(&mut self.question.lock());
        self.changed.notify_one();
    }
}

/// A question that is published, or about to be. Forgotten however the asker ends.
struct OpenQuestion {
    peers: Arc<Peers>,
    id: u64,
    question: Arc<SharedQuestion>,
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
        let question = Arc::new(SharedQuestion {
            question: Mutex::new(Question::asked(
                Instant::now(),
                self.settings.publish_timeout,
            )),
            changed: Notify::new(),
        });
        self.questions.lock().insert(id, question.clone());
        let open = OpenQuestion {
            peers: self.clone(),
            id,
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
        let (published, counted) = join(publishing, census).await;
        let published = published?;
        let counted = counted.unwrap_or(Ok(published));
        let census = open.census(counted.ok(), kind);
        let now = Instant::now();
        open.question
            .update(|question| question.published(published, census, now));
        open.wait().await;
        let known = open.peers.nodes.lock().ids().collect::<Vec<_>>();
        Ok(open.question.question.lock().end(known))
    }
}

impl OpenQuestion {
    fn census(&self, counted: Option<Published>, kind: TopicKind) -> Census {
        let hearing = self.peers.home.reception.hearing();
        let nodes = self.peers.nodes.lock();
        Census {
            counted: counted.map(|counted| counted.nodes),
            hearing,
            known: nodes.len(),
            all_hear: nodes.hear(kind),
        }
    }

    async fn wait(&self) {
        let deadline = self.question.question.lock().deadline();
        loop {
            let known = || self.peers.nodes.lock().ids().collect();
            let next = self.question.question.lock().next(known, Instant::now());
            match next {
                Next::Over => return,
                Next::Ask(silent) => {
                    let Ok(unreachable) = timeout_at(deadline, self.ping(silent)).await else {
                        return;
                    };
                    let mut question = self.question.question.lock();
                    question.followed_up(&unreachable, Instant::now());
                }
                Next::Wait(until) => tokio::select! {
                    () = self.question.changed.notified() => {}
                    () = sleep_until(until) => {}
                },
            }
        }
    }

    /// Asks each of them whether there is something to wait for; those who are not on the bus.
    async fn ping(&self, silent: Vec<NodeId>) -> Vec<NodeId> {
        let (uplink, id) = (&self.peers.uplink, self.id);
        let ping = uplink.write_word(&Scope::default(), id, &Control::Ping { id });
        let pings = silent.into_iter().map(|node| {
            let pinging = uplink.say(Topic::node(node), ping.clone());
            async move { (node, pinging.await) }
        });
        let pinged = join_all(pings).await.into_iter();
        let unreachable =
            pinged.filter(|(_, pinged)| pinged.as_ref().is_ok_and(|pinged| pinged.nodes == 0));
        unreachable.map(|(node, _)| node).collect()
    }
}
