//! What a node reports to the driver, a line each.

use std::fmt;
use std::str::FromStr;

use axum_cluster::SocketId;

use crate::answer::Answer;
use crate::words::{Outcome, next};

/// A line that a node prints.
#[derive(Clone, PartialEq, Debug)]
pub enum Report {
    Port(u16),
    Sent {
        audience: usize,
        number: u64,
        sent: u64,
        done: u64,
        outcome: Outcome,
    },
    Up(u64),
    Degraded(u64),
    Gap {
        from: u64,
        until: u64,
    },
    /// How many messages of its own it has counted as lost by Redis since it began, and of how many topics it has missed
    /// something that was kept.
    Lost {
        at: u64,
        rolled_back: u64,
        missed: u64,
    },
    Ended {
        socket: SocketId,
        code: u16,
    },
    Answered(Answer),
    /// What it was told to do is done; after `hush`, no message follows.
    Done,
    Stats(String),
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "port {port}"),
            Self::Sent {
                audience,
                number,
                sent,
                done,
                outcome,
            } => {
                write!(f, "sent {audience} {number} {sent} {done} {outcome:?}")
            }
            Self::Up(at) => write!(f, "up {at}"),
            Self::Degraded(at) => write!(f, "degraded {at}"),
            Self::Gap { from, until } => write!(f, "gap {from} {until}"),
            Self::Lost {
                at,
                rolled_back,
                missed,
            } => write!(f, "lost {at} {rolled_back} {missed}"),
            Self::Ended { socket, code } => write!(f, "ended {socket} {code}"),
            Self::Answered(answer) => answer.fmt(f),
            Self::Done => f.write_str("done"),
            Self::Stats(stats) => write!(f, "stats {stats}"),
        }
    }
}

impl FromStr for Report {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.split_whitespace();
        Ok(match words.next().ok_or(())? {
            "port" => Self::Port(next(&mut words)?),
            "sent" => Self::Sent {
                audience: next(&mut words)?,
                number: next(&mut words)?,
                sent: next(&mut words)?,
                done: next(&mut words)?,
                outcome: match words.next().ok_or(())? {
                    "Taken" => Outcome::Taken,
                    "Unsure" => Outcome::Unsure,
                    "Refused" => Outcome::Refused,
                    _ => return Err(()),
                },
            },
            "up" => Self::Up(next(&mut words)?),
            "degraded" => Self::Degraded(next(&mut words)?),
            "gap" => Self::Gap {
                from: next(&mut words)?,
                until: next(&mut words)?,
            },
            "lost" => Self::Lost {
                at: next(&mut words)?,
                rolled_back: next(&mut words)?,
                missed: next(&mut words)?,
            },
            "ended" => Self::Ended {
                socket: next(&mut words)?,
                code: next(&mut words)?,
            },
            "answered" => Self::Answered(Answer::read(&mut words)?),
            "done" => Self::Done,
            "stats" => Self::Stats(words.collect::<Vec<_>>().join(" ")),
            _ => return Err(()),
        })
    }
}
