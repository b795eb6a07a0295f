//! What is kept: a past that is read, a Close that is kept for who is cut off, and who does not keep what this node would.

use std::collections::HashSet;
use std::slice;
use std::sync::atomic::Ordering::Relaxed;

use futures::future::BoxFuture;
use smallvec::{SmallVec, smallvec};
use tokio::time::Instant;

use super::Uplink;
use super::hearing::whom;
use super::sending::Course;
use crate::bus::Published;
use crate::bus::echoes::Came;
use crate::bus::inbound::{Content, Own};
use crate::bus::past::{Keep, ReadLimits};
use crate::bus::scope::{Scope, Selection};
use crate::bus::wire::{self, Action, Envelope, Lasting, ONE_COPY};
use crate::measures::Since;
use crate::model::close::Close;
use crate::model::error::{PublishError, QueryError};
use crate::model::form::Form;
use crate::model::history::Kept;
use crate::model::history::mark::Number;
use crate::model::history::token::{self, Parts};
use crate::model::id::NodeId;
use crate::model::manner::Manner;
use crate::model::message::Message;
use crate::model::topic::{Topic, TopicRef};

/// Most nodes that are remembered for that.
const MOST_UNKEPT: usize = 1024;

const NOT_ONE: &str = "history is told of one audience at a time: one user, one room, or all";
const OFF: &str = "nothing is kept of such an audience: set `user_history`, `room_history` or `all_history` when the cluster is built";

/// Nodes that do not keep what this one would.
#[derive(Debug, Default)]
pub(super) struct Unkept {
    known: HashSet<NodeId>,
    news: Option<NodeId>,
}

impl Uplink {
    /// Whether a node should have kept this.
    pub(super) fn look_whether_kept(&self, topic: TopicRef<'_>, envelope: &Envelope<'_>) {
        let is_kept = |topic: &TopicRef<'_>| self.histories.of(topic.kind()).is_some();
        let concerns = match envelope.scope.targets.as_slice() {
            [] => is_kept(&topic),
            targets => targets.iter().any(is_kept),
        };
        let (Some(from), Lasting::Unsaid, Action::Text(_) | Action::Binary(_)) =
            (envelope.origin, envelope.lasting, &envelope.action)
        else {
            return;
        };
        if !concerns {
            return;
        }
        self.counters.history_unkept.fetch_add(1, Relaxed);
        let mut unkept = self.unkept.lock();
        if unkept.known.len() < MOST_UNKEPT && unkept.known.insert(from) {
            unkept.news = Some(from);
        }
    }

    /// A node that was just found not to keep what it should, once.
    pub(crate) fn take_unkept(&self) -> Option<NodeId> {
        if self.histories.is_off() {
            return None;
        }
        self.unkept.lock().news.take()
    }

    /// Keeps a Close, so that it reaches those who are cut off; whoever is there was told otherwise. Queued by the call; nothing, where
    /// nothing is kept.
    pub(crate) fn keep_close(
        &self,
        selection: &Selection,
        close: &Close,
    ) -> Option<BoxFuture<'static, Result<Published, PublishError>>> {
        let Course { keep, .. } = self.course(selection, false);
        // Where each copy is for its own topic alone, none names the others.
        let (keep, is_union) = match keep? {
            Keep::Each => (Keep::Silent(selection.filter(|_| true)), false),
            keep => (keep, true),
        };
        let number = self.next_union.fetch_add(1, Relaxed);
        let action = Action::Close {
            code: close.code.0,
            reason: close.wire_reason().into(),
        };
        let (scope, manner) = (selection.scope(), Manner::InTurn);
        let (lasting, union) = (Lasting::Kept(number), is_union.then_some(number));
        let how = (
            lasting,
            self.counters.measures.said_at(Since::now()),
            Form::Any,
        );
        let envelope = wire::encode_as(how, self.node, union, &scope, &manner, &action);
        let (nowhere, size) = (SmallVec::new(), selection.size());
        Some(self.bus.publish(nowhere, envelope, size, Some(keep)))
    }

    /// What becomes of this node's own message that came back.
    pub(super) fn comes_back(
        &self,
        topic: TopicRef<'_>,
        number: Option<Number>,
        envelope: &Envelope<'_>,
    ) -> Came<Own> {
        match (number, envelope.lasting) {
            (Some(_), Lasting::Kept(number)) => {
                let union = envelope.scope.targets.iter().map(|target| target.as_str());
                let topics: SmallVec<[&str; 1]> = match envelope.union {
                    Some(_) => union.collect(),
                    None => smallvec![topic.as_str()],
                };
                self.echoes.lock().came(number, &topics)
            }
            _ => Came::nothing(),
        }
    }

    /// What was taken by then on such topics has come back, or will not: what waited for it.
    pub(crate) fn settle(&self, is_settled: impl Fn(&Topic, Instant) -> bool) -> Vec<Own> {
        match self.histories.is_off() {
            true => Vec::new(),
            false => self.echoes.lock().settle(is_settled),
        }
    }

    /// What has waited too long for what was sent before it, and is to be delivered; and when there is more.
    pub(crate) fn overdue(&self, now: Instant) -> (Vec<Own>, Option<Instant>) {
        let (overdue, next) = self.echoes.lock().overdue(now);
        self.record_unordered(overdue.len());
        (overdue, next)
    }

    pub(super) fn record_unordered(&self, count: usize) {
        let counter = &self.counters.history_unordered;
        counter.fetch_add(count as u64, Relaxed);
    }

    /// What is kept of one topic.
    pub(crate) async fn kept(&self, selection: &Selection) -> Result<Kept, QueryError> {
        let Some(topic) = selection.only() else {
            return Err(QueryError::not_kept(NOT_ONE));
        };
        let Some(history) = self.histories.of(topic.kind()) else {
            return Err(QueryError::not_kept(OFF));
        };
        let limits = ReadLimits {
            // One is what is asked for where nothing is wanted but a cut.
            entries: history.most().max(2),
            bytes: usize::MAX,
        };
        let topics = slice::from_ref(topic);
        let past = self.archive.read(topics, None, limits).await;
        let past = past.map_err(QueryError::bus)?;
        let key = self.keyring.key().await.map_err(QueryError::bus)?;
        let parts = Parts {
            clock: self.archive.clock(topic),
            marks: past.cuts(),
            ..Parts::default()
        };
        let entries = past.topics.into_iter().find_map(|topic| topic.entries.ok());
        let entries = entries.unwrap_or_default();
        let messages = entries.iter().filter_map(|entry| {
            let (_, content) = read_entry(&entry.envelope)?;
            Some(content.message())
        });
        let mut messages: Vec<Message> = messages.collect();
        messages.drain(..messages.len().saturating_sub(history.messages));
        Ok(Kept {
            messages,
            position: token::write(&parts, &key),
        })
    }
}

impl Own {
    /// Reads the envelope as sockets get it.
    pub(crate) fn read(&self) -> Option<(Scope<'_>, Content<'_>, Manner, Form)> {
        let topic = TopicRef::from(&self.topic);
        let envelope = wire::decode(&self.envelope).ok()?;
        let scope = whom(topic, envelope.union, envelope.scope);
        let content = content(envelope.action)?;
        Some((scope, content, envelope.manner, envelope.form))
    }
}

/// What is kept, as those get it who missed it.
pub(crate) fn read_entry(entry: &[u8]) -> Option<(Scope<'_>, Content<'_>)> {
    let (_, stamped) = wire::formerly(entry).ok()?;
    let (_, envelope) = wire::unstamped(stamped).ok()?;
    let Envelope { scope, action, .. } = wire::decode(envelope).ok()?;
    Some((scope, content(action)?))
}

/// Which union it is a copy of, if it is one: whose, and its number there.
pub(crate) fn union_of(entry: &[u8]) -> Option<(NodeId, u64)> {
    let (_, stamped) = wire::formerly(entry).ok()?;
    let (_, envelope) = wire::unstamped(stamped).ok()?;
    let Envelope { origin, union, .. } = wire::decode(envelope).ok()?;
    origin.zip(union.filter(|union| *union != ONE_COPY))
}

fn content(action: Action<'_>) -> Option<Content<'_>> {
    match action {
        Action::Text(text) => Some(Content::Text(text)),
        Action::Binary(bytes) => Some(Content::Binary(bytes)),
        _ => None,
    }
}
