//! Messages to the cluster's processes themselves.

use std::sync::Arc;

use serde::Serialize;
use tokio::task::coop::consume_budget;
use tracing::Instrument;

use crate::broadcast::Broadcaster;
use crate::cluster::Cluster;
use crate::model::delivery::Delivery;
use crate::model::error::SendError;
use crate::model::message::Message;
use crate::node::Node;
use crate::peers::messages::NodeMessages;

/// Every process of the cluster, this one too: what is sent to it is read from [`Cluster::node_messages`].
#[derive(Clone, Debug)]
#[must_use = "nothing is sent before `send`"]
pub struct ToNodes {
    node: Arc<Node>,
}

impl Cluster {
    /// Sends to the processes of the cluster themselves, this one too, and to no sockets: to invalidate caches, for one.
    /// Workers ([`Broadcaster::builder`]) hear it as well, and other programs may send to the channel
    /// `{namespace}:nodes`.
    ///
    /// Promised as for sockets: while the bus is up each process hears it once, what one process sends arrives in the order
    /// sent, and [`gaps`](Self::gaps) tells when something may have been missed. A reader that is more than 256 behind loses
    /// the oldest, which [`NodeMessages::lost`](crate::NodeMessages::lost) tells. So whoever keeps a cache empties it after a gap,
    /// and when something was lost.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), axum_cluster::SendError> {
    /// # let cluster = axum_cluster::Cluster::builder().start();
    /// use futures::StreamExt;
    ///
    /// let (mut messages, mut gaps) = (cluster.node_messages(), cluster.gaps());
    /// tokio::spawn(async move {
    ///     let mut lost = 0;
    ///     loop {
    ///         tokio::select! {
    ///             Some(said) = messages.next() => match messages.lost() {
    ///                 more if more > lost => {
    ///                     lost = more;
    ///                     println!("forget everything");
    ///                 }
    ///                 _ => println!("forget {:?}", said.message),
    ///             },
    ///             Some(_) = gaps.next() => println!("forget everything"),
    ///             else => break,
    ///         }
    ///     }
    /// });
    /// cluster.to_nodes().send("price:42").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn to_nodes(&self) -> ToNodes {
        self.broadcaster().to_nodes()
    }

    /// What is sent [`to_nodes`](Self::to_nodes) from now on. A reader that lags more than 256 behind loses the oldest, which
    /// [`Stats`](crate::Stats) counts in `node_messages_lost`. Ends with the node.
    pub fn node_messages(&self) -> NodeMessages {
        self.broadcaster().node_messages()
    }
}

impl Broadcaster {
    /// Sends to the processes of the cluster themselves: see [`Cluster::to_nodes`].
    pub fn to_nodes(&self) -> ToNodes {
        let node = self.node().clone();
        ToNodes { node }
    }

    /// What is sent to the processes of the cluster: see [`Cluster::node_messages`].
    pub fn node_messages(&self) -> NodeMessages {
        self.node().peers.messages().read()
    }
}

impl ToNodes {
    /// Tells who reads in this process, and publishes once for all others. [`Delivery::local`] is how many read here,
    /// [`Delivery::nodes`] how many other processes took it, workers among them.
    ///
    /// # Errors
    /// Those of [`Audience::send`](crate::Audience::send).
    ///
    /// # Cancel safety
    /// Cancelled, any of the processes may have it.
    pub async fn send(self, message: impl Into<Message>) -> Result<Delivery, SendError> {
        let message = message.into();
        let span = tracing::trace_span!("send to nodes", bytes = message.len());
        self.send_now(message).instrument(span).await
    }

    async fn send_now(self, message: Message) -> Result<Delivery, SendError> {
        let node = self.node;
        if node.ground.home.is_stopped() {
            return Err(SendError::down());
        }
        // Queued by the call, as what is sent to sockets.
        let publishing = node.uplink.send_to_nodes(&message)?;
        let local = node.peers.messages().tell(Some(node.ground.node), message);
        let published = publishing.await;
        consume_budget().await;
        let nodes =
            published.map_err(|error| SendError::bus(local, node.ground.home.explain(error)))?;
        Ok(Delivery {
            spooled: None,
            local,
            nodes: Some(nodes),
            mark: None,
            key: None,
        })
    }

    /// Sends a value as JSON text.
    ///
    /// # Errors
    /// Those of [`send`](Self::send), and when the value cannot be written as JSON.
    ///
    /// # Cancel safety
    /// That of [`send`](Self::send).
    pub async fn send_json<T: Serialize + ?Sized>(self, value: &T) -> Result<Delivery, SendError> {
        let json = serde_json::to_string(value).map_err(SendError::json)?;
        self.send(json).await
    }
}
