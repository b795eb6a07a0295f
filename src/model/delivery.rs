//! What became of a send, and of a command.

use serde::Serialize;

use crate::model::history::mark::{Clock, Mark};
use crate::model::history::position::Position;
use crate::model::history::token::{self, Key, Parts};

/// What became of a send. As JSON: `local`, `nodes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Delivery {
    pub(crate) local: usize,
    pub(crate) nodes: Option<usize>,
    /// The number under which it is kept.
    #[serde(skip)]
    pub(crate) mark: Option<(Clock, Mark)>,
    /// What its position is signed with.
    #[serde(skip)]
    pub(crate) key: Option<Key>,
}

impl Delivery {
    /// Sockets of this node that took it.
    pub fn local(&self) -> usize {
        self.local
    }

    /// Other nodes that took it, of which each delivers to its own sockets. `None` after
    /// [`local()`](crate::Audience::local), and for a union of several targets, where it is not known. Another program
    /// that subscribes to the channel counts as a node, and so does a node in its linger.
    pub fn nodes(&self) -> Option<usize> {
        self.nodes
    }

    /// Behind which of what is kept it comes: whoever goes on from here has it, and misses nothing that comes after it. `None`
    /// where nothing is kept ([`ClusterBuilder::user_history`](crate::ClusterBuilder::user_history)), and for a union of targets
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
