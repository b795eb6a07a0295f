//! One layer makes the WebSockets of any axum app work across a cluster, through Redis.

#![warn(unreachable_pub)]

mod backend;
mod broadcast;
mod builder;
mod close;
mod cluster;
mod config;
mod driver;
mod error;
mod extract;
mod health;
mod heartbeat;
mod id;
mod inbox;
mod layer;
mod message;
mod node;
mod origin;
mod outbox;
mod recent;
mod registry;
mod scope;
mod socket;
mod topic;
mod wire;
mod ws;

pub use backend::Backend;
pub use broadcast::{Audience, Broadcaster, Delivery};
pub use builder::Builder;
pub use close::Close;
pub use cluster::Cluster;
pub use config::Unauthenticated;
pub use error::{Closed, ConnectError, JoinError, QueryError, SendError};
pub use extract::{ClusterRejection, ClusterSocket};
pub use health::{Health, Stats};
pub use id::{InvalidId, InvalidSocketId, SocketId, UserId};
pub use layer::{ClusterLayer, ClusterService};
pub use message::{Message, Utf8Bytes};
pub use outbox::SlowConsumer;
pub use socket::Socket;
