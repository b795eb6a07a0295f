//! A question that a node asked of the cluster, and what it was told.

use std::fmt;
use std::str::SplitWhitespace;

use axum_cluster::NodeId;

use crate::words::{Target, next};

#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// Just before the question, and just after the answer.
    pub asked: u64,
    pub told: u64,
    pub verdict: Verdict,
    /// The union that was asked for.
    pub targets: Vec<Target>,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Verdict {
    /// How many sockets, without those of the nodes that did not answer.
    Sockets {
        count: usize,
        /// Whether every node answered; if not, somebody may be missing who is not named.
        complete: bool,
        missing: Vec<NodeId>,
    },
    /// Whether the user is online.
    Online(bool),
    /// Nothing, for too long.
    Unanswered,
}

impl Verdict {
    /// What would be a lie.
    pub fn falsified(self) -> Self {
        match self {
            Self::Sockets { .. } => Self::Sockets {
                count: 0,
                complete: true,
                missing: Vec::new(),
            },
            Self::Online(_) => Self::Online(false),
            Self::Unanswered => Self::Unanswered,
        }
    }
}

impl Answer {
    pub fn read(words: &mut SplitWhitespace<'_>) -> Result<Self, ()> {
        let (asked, told) = (next(words)?, next(words)?);
        let verdict = match words.next().ok_or(())? {
            "sockets" => Verdict::Sockets {
                count: next(words)?,
                complete: next(words)?,
                missing: nodes(words.next().ok_or(())?)?,
            },
            "unanswered" => Verdict::Unanswered,
            "online" => Verdict::Online(next(words)?),
            _ => return Err(()),
        };
        Ok(Self {
            asked,
            told,
            verdict,
            targets: words.map(str::parse).collect::<Result<_, ()>>()?,
        })
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "answered {} {}", self.asked, self.told)?;
        match &self.verdict {
            Verdict::Sockets {
                count,
                complete,
                missing,
            } => {
                let missing: Vec<String> = missing.iter().map(NodeId::to_string).collect();
                write!(
                    f,
                    " sockets {count} {complete} missing:{}",
                    missing.join(",")
                )?;
            }
            Verdict::Unanswered => f.write_str(" unanswered")?,
            Verdict::Online(is_online) => write!(f, " online {is_online}")?,
        }
        let mut targets = self.targets.iter();
        targets.try_for_each(|target| write!(f, " {target}"))
    }
}

fn nodes(text: &str) -> Result<Vec<NodeId>, ()> {
    let names = text.strip_prefix("missing:").ok_or(())?;
    let names = names.split(',').filter(|name| !name.is_empty());
    names.map(|name| name.parse().map_err(drop)).collect()
}
