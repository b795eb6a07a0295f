//! What became of a send, and of a command.

use std::fmt;
use std::hash::{Hash, Hasher};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use serde::Serialize;

use crate::model::error::{PublishError, SendError};
use crate::model::history::mark::{Clock, Mark};
use crate::model::history::position::Position;
use crate::model::history::token::{self, Key, Parts};

/// What became of a send. As JSON: `local`, `nodes`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Delivery {
    pub(crate) local: usize,
    pub(crate) nodes: Option<usize>,
    /// The number under which it is kept.
    #[serde(skip)]
    pub(crate) mark: Option<(Clock, Mark)>,
    /// What its position is signed with.
    #[serde(skip)]
    pub(crate) key: Option<Key>,
    /// It waits for the bus to be back.
    #[serde(skip)]
    pub(crate) spooled: Option<Spooled>,
}

/// What becomes of what waits for the bus to be back. The same for all clones.
#[derive(Clone)]
pub(crate) struct Spooled(Shared<BoxFuture<'static, Result<Settled, PublishError>>>);

/// What became of it.
#[derive(Debug, Clone)]
pub(crate) struct Settled {
    pub(crate) nodes: Option<usize>,
    pub(crate) mark: Option<(Clock, Mark)>,
    pub(crate) key: Option<Key>,
}

impl Spooled {
    pub(crate) fn new(settled: BoxFuture<'static, Result<Settled, PublishError>>) -> Self {
        Self(settled.shared())
    }
}

impl fmt::Debug for Spooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Spooled")
    }
}

impl PartialEq for Spooled {
    fn eq(&self, other: &Self) -> bool {
        self.0.ptr_eq(&other.0)
    }
}

impl Eq for Spooled {}

impl Hash for Spooled {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.ptr_hash(state);
    }
}

impl Delivery {
    /// Sockets of this node that took it; of what [waits](Self::spooled) none has yet.
    pub fn local(&self) -> usize {
        match self.spooled {
            Some(_) => 0,
            None => self.local,
        }
    }

    /// Whether it waits for Redis to be back, in the node's [`spool`](crate::ClusterBuilder::spool): nobody has it yet, and its
    /// [`settled`](Self::settled) says what becomes of it.
    pub fn spooled(&self) -> bool {
        self.spooled.is_some()
    }

    /// What became of it, as soon as that is known: at once, unless it was [`spooled`](Self::spooled); then when Redis is
    /// back and has taken it, or when it is dropped. That takes at most as long as
    /// [`spool`](crate::ClusterBuilder::spool) lets it wait, and what Redis takes to answer. [`local`](Self::local) is then how many sockets it had when it was sent.
    ///
    /// # Errors
    /// A [`SendError`] of kind [`Dropped`](crate::SendErrorKind::Dropped) says why: it waited too long, the node ended, or
    /// Redis refused it; and whether it may be kept all the same, since Redis gave no answer.
    ///
    /// # Cancel safety
    /// Cancelled, nothing is lost: it is sent all the same, and may be asked again.
    pub async fn settled(&self) -> Result<Self, SendError> {
        let Some(spooled) = &self.spooled else {
            return Ok(self.clone());
        };
        match spooled.0.clone().await {
            Ok(Settled { nodes, mark, key }) => Ok(Self {
                local: self.local,
                nodes,
                mark,
                key,
                spooled: None,
            }),
            Err(error) => Err(SendError::dropped(error)),
        }
    }

    /// Other nodes that took it, of which each delivers to its own sockets. `None` after
    /// [`local()`](crate::Audience::local), and for a union of several targets, where it is not known. Another program
    /// that subscribes to the channel counts as a node, and so does a node in its linger.
    pub fn nodes(&self) -> Option<usize> {
        self.nodes
    }

    /// Behind which of what is kept it comes: whoever goes on from here has it, and misses nothing that comes after it. `None`
    /// where nothing is kept ([`ClusterBuilder::user_history`](crate::ClusterBuilder::user_history)), of what still
    /// [waits](Self::spooled), and for a union of targets
    /// that are not all in one place (in a Redis Cluster, or with several Redises).
    pub fn position(&self) -> Option<Position> {
        let (clock, mark) = self.mark?;
        let parts = Parts {
            marks: [(clock, mark)].into_iter().collect(),
            clock,
            ..Parts::default()
        };
        Some(token::write(&parts, &self.key?))
    }
}

/// What became of a command: [`Audience::close`](crate::Audience::close), [`join`](crate::Audience::join) or
/// [`leave`](crate::Audience::leave). As JSON: `local`, `nodes`, `unanswered`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), axum_cluster::SendError> {
/// # let broadcaster = axum_cluster::Cluster::builder().start().broadcaster();
/// let joined = broadcaster.to_user("alice").join("vip").await?;
/// if joined.unanswered() > 0 {
///     println!("{} nodes may not have done it", joined.unanswered());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Outcome {
    pub(crate) local: usize,
    pub(crate) nodes: Option<usize>,
    pub(crate) unanswered: usize,
}

impl Outcome {
    /// Sockets of this node that it concerned.
    pub fn local(&self) -> usize {
        self.local
    }

    /// Other nodes that said they carried it out. `None` after [`local()`](crate::Audience::local).
    pub fn nodes(&self) -> Option<usize> {
        self.nodes
    }

    /// Other nodes that are there and did not say within `publish_timeout` that they carried it out; they may have. At least 1
    /// where somebody did not and it is not known who, such as a node that hears one of several Redises no more and has not
    /// noticed yet.
    pub fn unanswered(&self) -> usize {
        self.unanswered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_it_is_shown_as_json() {
        let delivery = Delivery {
            local: 1,
            nodes: None,
            mark: None,
            key: None,
            spooled: None,
        };
        let json = serde_json::to_string(&delivery).unwrap();
        assert_eq!(json, r#"{"local":1,"nodes":null}"#);
        let outcome = Outcome {
            local: 1,
            nodes: Some(2),
            unanswered: 3,
        };
        let json = serde_json::to_string(&outcome).unwrap();
        assert_eq!(json, r#"{"local":1,"nodes":2,"unanswered":3}"#);
    }
}
