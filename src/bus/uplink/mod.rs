//! This node's end of the bus, as messages see it: what is sent is written and queued here, and what came is read
//! here, once, into what the parts of a node act on.

mod hearing;
mod keeping;
mod sending;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use smallvec::smallvec;

use self::keeping::Unkept;
pub(crate) use self::keeping::{read_entry, union_of};
pub(crate) use self::sending::{CameHere, How, Sent};
use crate::bus::control::Control;
use crate::bus::echoes::Echoes;
use crate::bus::eras::Eras;
use crate::bus::inbound::Own;
use crate::bus::keyring::Keyring;
use crate::bus::scope::{Scope, Size};
use crate::bus::seen::Seen;
use crate::bus::wire::{self, Action, Lasting, MAX_ENVELOPE, ONE_COPY};
use crate::bus::{Archive, Bus, Publish, Published};
use crate::counts::Counters;
use crate::measures::Since;
use crate::model::error::{PublishError, SendError};
use crate::model::form::Form;
use crate::model::history::Histories;
use crate::model::id::NodeId;
use crate::model::manner::Manner;
use crate::model::message::Message;
use crate::model::topic::Topic;

#[derive(Debug)]
pub(crate) struct Uplink {
    node: NodeId,
    own: Topic,
    bus: Arc<dyn Publish>,
    archive: Arc<dyn Archive>,
    counters: Arc<Counters>,
    /// Unions of which a copy came.
    unions: Mutex<Seen>,
    next_union: AtomicU64,
    /// Whether anything has moved, as others say: until then nothing can come late.
    has_moved: AtomicBool,
    eras: Mutex<Eras>,
    histories: Histories,
    pub(crate) keyring: Arc<Keyring>,
    /// Where something is kept.
    echoes: Mutex<Echoes<Own>>,
    unkept: Mutex<Unkept>,
}

impl Uplink {
    pub(crate) fn new(
        node: NodeId,
        bus: Arc<dyn Bus>,
        counters: Arc<Counters>,
        histories: Histories,
        publish_timeout: Duration,
    ) -> Self {
        Self {
            keyring: Arc::new(Keyring::new(bus.clone(), publish_timeout)),
            node,
            own: Topic::node(node),
            archive: bus.clone(),
            bus,
            counters,
            unions: Mutex::default(),
            next_union: AtomicU64::new(ONE_COPY + 1),
            has_moved: AtomicBool::new(false),
            eras: Mutex::default(),
            histories,
            echoes: Mutex::new(Echoes::new(node)),
            unkept: Mutex::default(),
        }
    }

    /// Publishes a message for the other nodes themselves; queued by the call. Resolves to how many took it.
    pub(crate) fn send_to_nodes(
        &self,
        message: &Message,
    ) -> Result<impl Future<Output = Result<usize, PublishError>> + use<'_>, SendError> {
        let (scope, manner) = (Scope::default(), Manner::InTurn);
        let since = self.counters.measures.sending();
        let how = (Lasting::Unsaid, since, Form::Any);
        let envelope = self.write_message(how, None, &scope, message, &manner)?;
        self.counters.sent.fetch_add(1, Relaxed);
        let publishing = self.say(Topic::nodes(), envelope);
        Ok(async move {
            let published = self
                .published(since, publishing.await)
                .inspect_err(|error| {
                    self.counters.record_failed_publish(error.maybe_sent);
                })?;
            Ok(published.nodes)
        })
    }

    fn published(
        &self,
        since: Option<Since>,
        published: Result<Published, PublishError>,
    ) -> Result<Published, PublishError> {
        if let (Ok(_), Some(since)) = (&published, since) {
            self.counters.measures.published(since);
        }
        published
    }

    fn write_message(
        &self,
        (lasting, since, form): (Lasting, Option<Since>, Form),
        union: Option<u64>,
        scope: &Scope<'_>,
        message: &Message,
        manner: &Manner,
    ) -> Result<Bytes, SendError> {
        let action = Action::from(message);
        let said_at = since.and_then(|since| self.counters.measures.said_at(since));
        let how = (lasting, said_at, form);
        let envelope = wire::encode_as(how, self.node, union, scope, manner, &action);
        let (bytes, limit) = (envelope.len(), MAX_ENVELOPE);
        match bytes > limit {
            true => Err(SendError::too_large(bytes, limit)),
            false => Ok(envelope),
        }
    }

    pub(crate) fn write(
        &self,
        union: Option<u64>,
        scope: &Scope<'_>,
        action: &Action<'_>,
    ) -> Bytes {
        let said_at = self.counters.measures.said_at(Since::now());
        let how = (Lasting::Unsaid, said_at, Form::Any);
        wire::encode_as(how, self.node, union, scope, &Manner::InTurn, action)
    }

    /// An envelope that names its whole scope, on whatever channel it travels.
    pub(crate) fn write_word(&self, scope: &Scope<'_>, id: u64, word: &Control) -> Bytes {
        let json = serde_json::to_vec(word).expect("control is plain data");
        self.write(Some(id), scope, &Action::Control(&json))
    }

    /// Tells other nodes something; queued by the call.
    pub(crate) fn say(
        &self,
        to: Topic,
        envelope: Bytes,
    ) -> BoxFuture<'static, Result<Published, PublishError>> {
        self.bus.publish(smallvec![to], envelope, Size::Small, None)
    }

    /// Asks whoever is on a topic; queued by the call, among what else is of its audience's size.
    pub(crate) fn ask(
        &self,
        on: Topic,
        question: Bytes,
        size: Size,
    ) -> BoxFuture<'static, Result<Published, PublishError>> {
        self.bus.publish(smallvec![on], question, size, None)
    }

    /// Says nothing, to learn how many nodes hear what goes the way of this topic.
    pub(crate) fn probe(
        &self,
        topic: &Topic,
    ) -> BoxFuture<'static, Result<Published, PublishError>> {
        let probe = self.write(None, &Scope::default(), &Action::Probe);
        self.say(self.bus.census(topic), probe)
    }

    /// Where something has to be said that all nodes are to hear, even those that are cut off from where they meet.
    pub(crate) fn everywhere(&self) -> Vec<Topic> {
        self.bus.everywhere()
    }

    /// The node has left, and sends no more copies.
    pub(crate) fn forget(&self, node: NodeId) {
        self.unions.lock().forget(node);
        self.eras.lock().forget(node);
        self.counters.measures.forget(node);
    }
}
