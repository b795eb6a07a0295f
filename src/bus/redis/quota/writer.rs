//! The task that tells Redis about this node's seats and asks for new ones: it connects, sends and waits.
//!
//! What is said, and what an answer means, is up to the [`Dialog`] of each group. Groups on one primary share a
//! [`SeatLink`], so that a node costs each primary one connection and four round trips a second however many they are;
//! none waits for another primary.

use std::sync::Arc;
use std::time::Duration;

use bb8_redis::bb8::ManageConnection;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use futures::stream::{FuturesUnordered, StreamExt};
use redis::Cmd;
use tokio::time::{Instant, sleep_until, timeout};

use super::dialog::{Dialog, DialogEvent, NextWord};
use super::group::SeatGroup;
use super::ledger::Ledger;
use super::link::{FlightEnd, LinkFlight, LinkStage, SeatLink, SeatLinks, shared_out};
use super::pace::Pace;
use super::script::{Script, Terms};
use super::{SharedLedgers, now};
use crate::bus::BusSettings;
use crate::bus::redis::advice::Advice;
use crate::bus::redis::connection::{CommandPipeline, Connector};
use crate::bus::redis::words;
use crate::model::id::NodeId;

#[derive(Debug)]
pub(in crate::bus::redis) struct SeatWriter {
    seats: Arc<SharedLedgers>,
    /// One per group.
    dialogs: Vec<Dialog>,
    links: SeatLinks,
    /// How many groups are limited by this node's own count.
    outages: usize,
}

impl SeatWriter {
    pub(in crate::bus::redis) fn new(
        seats: Arc<SharedLedgers>,
        advice: &Arc<Advice>,
        node: NodeId,
        settings: &BusSettings,
    ) -> Self {
        let (lease, patience) = (settings.lease, settings.publish_timeout / 2);
        let now = Instant::now();
        let pace = Pace::new(lease, patience, now);
        let grace = pace.grace();
        let dialog = |group: &SeatGroup| {
            let script = Script::new(group.leases.clone(), node, Terms { lease, grace });
            let (advice, pace) = (advice.clone(), pace.clone());
            Dialog::new(script, seats.limit, advice, pace, patience, now)
        };
        Self {
            dialogs: seats.groups.iter().map(dialog).collect(),
            seats,
            links: SeatLinks::default(),
            outages: 0,
        }
    }

    /// Keeps Redis informed, for ever.
    pub(in crate::bus::redis) async fn run(&mut self) {
        self.begin();
        let mut flights = FuturesUnordered::new();
        loop {
            let now = Instant::now();
            self.follow(now);
            self.tell_late(now);
            // Or what leaves would not know of it.
            self.tell();
            flights.extend(self.take_off(now));
            tokio::select! {
                Some((link, end)) = flights.next(), if !flights.is_empty() => self.land(link, end),
                () = self.seats.changed.notified() => {}
                () = sleep_or_wait(self.poll_timeout(now)) => {}
            }
        }
    }

    /// Nothing is certain of what Redis knows.
    fn begin(&mut self) {
        let now = Instant::now();
        self.links = SeatLinks::of(&self.seats.groups);
        for (group, dialog) in self.seats.groups.iter().zip(&mut self.dialogs) {
            group.ledger.lock().begin();
            dialog.begin_anew(now);
        }
    }

    /// Goes where the keys are.
    fn follow(&mut self, now: Instant) {
        let groups = self.seats.groups.iter().zip(&mut self.dialogs).enumerate();
        for (number, (group, dialog)) in groups {
            let news = group.take_news();
            if let Some(connector) = news.moved {
                self.links.lead(number, connector);
                dialog.begin_anew(now);
            }
            if news.unverified {
                dialog.verify(now);
            }
        }
        self.links.close_unused();
    }

    /// Whoever waits for Redis meanwhile is told what this node knows: opening a connection may take longer.
    fn tell_late(&mut self, now: Instant) {
        for (number, link) in &mut self.links.links {
            if link.take_late(now) {
                on(&self.links.of_groups, &mut self.dialogs, *number)
                    .for_each(|(_, dialog)| dialog.late());
            }
        }
    }

    /// What can leave now.
    fn take_off(&mut self, now: Instant) -> Vec<BoxFuture<'static, (u64, FlightEnd)>> {
        let Self {
            seats,
            dialogs,
            links,
            ..
        } = self;
        let leaves = |(number, link): (&u64, &mut SeatLink)| {
            let here = on(&links.of_groups, dialogs, *number);
            let (flight, number) = (fly(seats, link, here, now)?, *number);
            Some(async move { (number, flight.await) }.boxed())
        };
        links.links.iter_mut().filter_map(leaves).collect()
    }

    /// Takes what came of it.
    fn land(&mut self, number: u64, end: FlightEnd) {
        let (now, random) = (Instant::now(), fastrand::f64());
        let Some(link) = self.links.links.get_mut(&number) else {
            // All have left it.
            return;
        };
        let stage = std::mem::replace(&mut link.stage, LinkStage::Closed);
        match (stage, end) {
            (LinkStage::Asking(asked), FlightEnd::Answered(connection, answers)) => {
                link.stage = LinkStage::Open(connection);
                for (group, answers) in shared_out(asked, answers) {
                    self.dialogs[group].answered(answers, now, random);
                }
            }
            (LinkStage::Asking(asked), FlightEnd::Broke(error)) => {
                let asked = asked.iter().filter_map(|asked| asked.group);
                asked.for_each(|group| self.dialogs[group].failed(&error, now, random));
            }
            (_, FlightEnd::Opened(Ok(connection))) => link.stage = LinkStage::Open(connection),
            (_, FlightEnd::Opened(Err(error)) | FlightEnd::Broke(error)) => {
                on(&self.links.of_groups, &mut self.dialogs, number)
                    .for_each(|(_, dialog)| dialog.failed(&error, now, random));
            }
            (stage, FlightEnd::Answered(..)) => link.stage = stage,
        }
    }

    /// When something is to be said, or told, without news.
    fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let late = self.links.links.values().filter_map(SeatLink::late);
        let dialogs = self.dialogs.iter().zip(&self.links.of_groups);
        let idle = dialogs.filter(|(_, number)| !self.links.is_busy(**number));
        let due = idle.filter_map(|(dialog, _)| dialog.poll_timeout(now));
        due.chain(late).min()
    }

    /// Tells the ledgers what came of it.
    fn tell(&mut self) {
        for (number, dialog) in self.dialogs.iter_mut().enumerate() {
            let group = &self.seats.groups[number];
            while let Some(event) = dialog.poll_event() {
                heed(&self.seats, group, event, &mut self.outages);
            }
        }
    }

    /// Deletes what this node has in Redis, where Redis answers.
    pub(in crate::bus::redis) async fn leave(&mut self) {
        self.links = SeatLinks::of(&self.seats.groups);
        let leaving = self.links.links.iter().map(|(number, link)| {
            let mut commands = CommandPipeline::new();
            on(&self.links.of_groups, &mut self.dialogs, *number)
                .for_each(|(_, dialog)| commands.add_command(dialog.leave()));
            leave(link.connector.clone(), commands, self.seats.deadline)
        });
        join_all(leaving.collect::<Vec<_>>()).await;
    }
}

/// The dialogs of the groups that are on this link.
fn on<'a>(
    of_groups: &'a [u64],
    dialogs: &'a mut [Dialog],
    link: u64,
) -> impl Iterator<Item = (usize, &'a mut Dialog)> {
    let dialogs = dialogs.iter_mut().enumerate();
    dialogs.filter(move |(group, _)| of_groups[*group] == link)
}

/// The link at work, if somebody on it has something to say.
fn fly<'a>(
    seats: &SharedLedgers,
    link: &mut SeatLink,
    mut dialogs: impl Iterator<Item = (usize, &'a mut Dialog)>,
    now: Instant,
) -> Option<LinkFlight> {
    if link.is_busy() {
        return None;
    }
    if !link.is_open() {
        let is_due = dialogs.any(|(_, dialog)| dialog.next(now) != NextWord::Rest);
        return is_due.then(|| link.open(seats.deadline, now));
    }
    let said = dialogs.map(|(group, dialog)| (group, say(&seats.groups[group], dialog, now)));
    link.ask(said.collect())
}

fn say(group: &SeatGroup, dialog: &mut Dialog, now: Instant) -> Vec<Cmd> {
    match dialog.next(now) {
        NextWord::Join => {
            let anew = group.ledger.lock().is_anew();
            dialog.join(anew, now)
        }
        NextWord::Speak { claims } => {
            let batch = group.ledger.lock().next_batch(claims);
            dialog.speak(batch, now)
        }
        NextWord::Rest => Vec::new(),
    }
}

fn heed(seats: &SharedLedgers, group: &SeatGroup, event: DialogEvent, outages: &mut usize) {
    match event {
        DialogEvent::Answered {
            user,
            number,
            verdict,
        } => seats.change(group, |ledger| ledger.answered(&user, number, verdict)),
        DialogEvent::Lost { user, number } => {
            seats.change(group, |ledger| ledger.lose(&user, number))
        }
        DialogEvent::Failed(batch) => seats.change(group, |ledger| ledger.failed(batch)),
        DialogEvent::Joined { created } => {
            if seats.change(group, |ledger| ledger.joined(created)) {
                *outages = outages.saturating_sub(1);
                if *outages == 0 {
                    tracing::info!("sockets per user are limited in the whole cluster again");
                }
            }
        }
        DialogEvent::Outage(reason) => {
            if seats.change(group, |ledger| ledger.outage(now())) {
                *outages += 1;
                if *outages == 1 {
                    tracing::warn!(
                        %reason,
                        "sockets per user are limited by this node's own count for now"
                    );
                }
            }
        }
        DialogEvent::Forgotten { aloud } => {
            seats.change(group, Ledger::forgotten);
            tell_forgotten(aloud);
        }
    }
}

fn tell_forgotten(aloud: bool) {
    if aloud {
        tracing::warn!(
            "redis loses the seats of this node again and again, and nobody is let in meanwhile: it must not evict \
            them (maxmemory-policy volatile-* or allkeys-*), nor must anybody delete them"
        );
    } else {
        tracing::debug!("redis has lost this node's seats, or the script: once more");
    }
}

async fn leave(connector: Connector, commands: CommandPipeline, deadline: Duration) {
    let leaving = async {
        let mut connection = connector.connect().await?;
        connection.run(&commands).await
    };
    let reason = match timeout(deadline, leaving).await {
        Ok(Ok(_)) => return,
        Ok(Err(error)) => words(&error),
        Err(_) => "redis did not answer in time".to_owned(),
    };
    tracing::debug!(%reason, "the seats stay in redis until their lease ends");
}

async fn sleep_or_wait(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::connector;
    use super::*;
    use crate::bus::redis::command::Dialect;
    use crate::quota::{OverLimit, SeatLimit};

    /// What was asked of the old primary is not answered any more.
    #[tokio::test]
    async fn who_moves_joins_at_the_new_primary_whatever_it_waited_for() {
        let (sockets, over) = (1, OverLimit::Refuse);
        let limit = SeatLimit { sockets, over };
        let settings = BusSettings::plain(Duration::from_secs(3600));
        let [here, there] = [1, 2].map(|port| connector(&format!("redis://127.0.0.1:{port}")));
        let groups = ["0", "1"].map(|tag| (tag, here.clone()));
        let seats = SharedLedgers::tagged(NodeId(1), limit, &settings, groups, |_| 0);
        let seats = Arc::new(seats);
        let advice = Arc::new(Advice::new(None, &settings.namespace, Dialect::Plain));
        let mut writer = SeatWriter::new(seats.clone(), &advice, NodeId(1), &settings);
        let now = Instant::now();
        writer.begin();
        for dialog in &mut writer.dialogs {
            dialog.join(true, now);
            assert_eq!(dialog.next(now), NextWord::Rest, "control: it waits");
        }
        seats.follow(1, &there);
        writer.follow(now);
        let next = |group: usize| writer.dialogs[group].next(now);
        assert_eq!((next(0), next(1)), (NextWord::Rest, NextWord::Join));
    }
}
