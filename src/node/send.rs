//! How a message leaves: by the bus, and to the sockets here.

use tokio::task::coop::consume_budget;
use tracing::Instrument;
use tracing::field::Empty;

use super::Node;
use crate::bus::inbound::Own;
use crate::bus::scope::Selection;
use crate::bus::uplink::{CameHere, How, Sent};
use crate::local::registry::EVERY;
use crate::model::error::SendError;
use crate::model::manner::Manner;
use crate::model::message::Message;
use crate::model::topic::Topic;

impl Node {
    /// Publishes once for all other nodes and delivers here: meanwhile, or what is kept when it comes back. Returns the sockets
    /// here and what became of it on the bus.
    pub(crate) async fn send(
        &self,
        selection: &Selection,
        message: &Message,
        manner: &Manner,
        how: How,
    ) -> Result<(usize, Sent), SendError> {
        let (topics, bytes) = (selection.topics(), message.len());
        let span = tracing::trace_span!("send", topics, bytes, local = Empty, nodes = Empty);
        let sending = self.publish_and_deliver(selection, message, manner, how);
        if span.is_disabled() {
            return sending.await;
        }
        let sent = sending.instrument(span.clone()).await;
        if let Ok((local, Sent { nodes, .. })) = &sent {
            span.record("local", local).record("nodes", nodes);
        }
        sent
    }

    async fn publish_and_deliver(
        &self,
        selection: &Selection,
        message: &Message,
        manner: &Manner,
        how: How,
    ) -> Result<(usize, Sent), SendError> {
        let home = &self.ground.home;
        if home.is_stopped() {
            return Err(SendError::down());
        }
        let scope = selection.scope();
        // Queued by the call: sends happen in the order in which they are first polled.
        let sending = self.uplink.send(selection, &scope, message, manner, how)?;
        let local = match sending.is_kept() {
            true => self.local.count(&scope),
            false => {
                let form = how.form;
                self.local.deliver(&scope, message, manner, form).await
            }
        };
        let newcomers = || self.local.newcomers();
        let is_heard = |topic: &Topic| self.local.is_on(topic);
        let sent = sending.end(local, newcomers, is_heard).await;
        // Who sends in a loop that never waits would keep the tasks that write from running.
        consume_budget().await;
        match sent {
            Ok(sent) => Ok((local, sent)),
            Err(refused) => {
                self.deliver_own(&refused.let_go);
                if refused.waits {
                    self.repairs.look();
                }
                match refused.came {
                    // Delivered already, meanwhile or when it came back; or it will be.
                    CameHere::Whole => {}
                    CameHere::On(topics) => {
                        let rest = scope.without(&topics);
                        self.local.deliver(&rest, message, manner, how.form).await;
                    }
                }
                Err(SendError::bus(local, home.explain(refused.error)))
            }
        }
    }

    /// Delivers what failed, by the next flush: it has no number.
    pub(super) fn deliver_own(&self, own: &[Own]) {
        for own in own {
            if let Some((scope, content, manner, form)) = own.read() {
                let frame = || (content.frame(), form);
                let numbers = EVERY.start..own.older_than;
                self.local.collect(&scope, None, numbers, &manner, frame);
            }
        }
    }
}
