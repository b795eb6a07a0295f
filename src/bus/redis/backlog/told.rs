//! What Redis said to a turn, and what of that is to be published again.

use smallvec::SmallVec;
use tokio::time::Instant;

use super::{Backlog, TurnAnswered};
use crate::bus::redis::address::ServerAddress;
use crate::bus::redis::command::{asked, is_on_its_way};
use crate::bus::redis::pipeline::{PublishReply, RefusedPublish};
use crate::bus::redis::publication::{Publication, Receivers, Taken};
use crate::bus::redis::queue::Waiter;
use crate::model::error::PublishError;
use crate::model::history::mark::Mark;
use crate::model::partition::Partition;

/// What Redis said to a part of a publication.
pub(super) struct PartTold {
    pub(super) sum: Receivers,
    /// To so many of it.
    pub(super) taken: usize,
    /// The others are to be published again.
    pub(super) again: Option<AgainReason>,
    /// There, if somebody said where.
    pub(super) asks: Option<ServerAddress>,
    /// Of those that are kept, where there is a spool.
    pub(super) marks: SmallVec<[Option<Mark>; 1]>,
}

/// Why something is to be published again.
#[derive(Clone, Copy)]
pub(super) enum AgainReason {
    /// And whether it has arrived there.
    Elsewhere(Partition, bool),
    /// Redis has forgotten the script.
    Unknown,
    /// It takes nothing for now.
    Away,
}

impl PartTold {
    pub(super) fn by(
        replies: impl Iterator<Item = PublishReply>,
        mut sum: Receivers,
        partition: Option<Partition>,
        spools: bool,
    ) -> Self {
        let (mut taken, mut again, mut asks, mut marks) = (0, None, None, SmallVec::new());
        for reply in replies {
            match (reply, partition) {
                // All that follows is refused alike.
                (Err(RefusedPublish::Elsewhere(words)), Some(partition)) => {
                    again = Some(AgainReason::Elsewhere(partition, !is_on_its_way(&words)));
                    asks = asked(&words);
                }
                (Err(RefusedPublish::Unknown), _) => again = again.or(Some(AgainReason::Unknown)),
                (Err(RefusedPublish::Away(_)), _) if spools => {
                    again = again.or(Some(AgainReason::Away))
                }
                (reply, _) => {
                    if spools {
                        marks.push(reply.as_ref().ok().and_then(|taken| taken.mark));
                    }
                    sum = and(sum, reply);
                    taken += 1;
                }
            }
        }
        Self {
            sum,
            taken,
            again,
            asks,
            marks,
        }
    }
}

/// What of a turn is to be published again.
#[derive(Default)]
pub(super) struct Rest {
    elsewhere: Vec<(Partition, bool, Publication, Waiter)>,
    /// Some of that is there already.
    has_arrived: bool,
    unknown: Vec<(Publication, Waiter)>,
    /// What may wait in the spool.
    pub(super) spooled: Vec<(Publication, Waiter)>,
    is_away: bool,
}

impl Rest {
    pub(super) fn add(
        &mut self,
        again: AgainReason,
        spools: bool,
        (publication, waiter): (Publication, Waiter),
    ) {
        match again {
            AgainReason::Elsewhere(partition, has_arrived) => {
                self.has_arrived |= has_arrived;
                let refused = (partition, has_arrived, publication, waiter);
                self.elsewhere.push(refused);
            }
            AgainReason::Unknown if !spools => self.unknown.push((publication, waiter)),
            AgainReason::Unknown => self.spooled.push((publication, waiter)),
            AgainReason::Away => {
                self.is_away = true;
                self.spooled.push((publication, waiter));
            }
        }
    }

    /// It waits for its next turn.
    pub(super) fn wait(mut self, backlog: &mut Backlog) -> TurnAnswered {
        let waits = |(_, waiter): &(Publication, Waiter)| waiter.waits();
        match self.is_away || backlog.is_spooling() || self.spooled.iter().any(waits) {
            true => backlog.return_to_spool(self.spooled),
            false => self.unknown.extend(self.spooled),
        }
        backlog.put_back(self.unknown);
        if self.is_away {
            backlog.is_away();
        }
        match self.elsewhere.is_empty() {
            false => backlog.stall(self.elsewhere, Instant::now()),
            true => backlog.goes_on(),
        }
        TurnAnswered {
            is_astray: false,
            is_elsewhere: self.has_arrived,
            is_away: self.is_away,
        }
    }
}

/// Redis refuses a command whole, but another one of a union may have gone out.
pub(super) fn and(sum: Receivers, reply: PublishReply) -> Receivers {
    match (sum, reply) {
        (Ok(all), Ok(taken)) => Ok(Taken {
            receivers: all.receivers + taken.receivers,
            mark: taken.mark.or(all.mark),
        }),
        (Ok(all), Err(refused)) => Err(PublishError {
            maybe_sent: all.receivers > 0 || all.mark.is_some() || refused.is_kept(),
            on_replica: false,
            reason: refused.reason(),
        }),
        (Err(error), Ok(taken)) => Err(PublishError {
            maybe_sent: error.maybe_sent || taken.receivers > 0 || taken.mark.is_some(),
            ..error
        }),
        (Err(error), Err(refused)) => Err(PublishError {
            maybe_sent: error.maybe_sent || refused.is_kept(),
            ..error
        }),
    }
}
