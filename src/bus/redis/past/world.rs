//! Senders with a spool, a Redis that dies, fails over to a replica that lags and comes back, and those who hear: nothing is lost,
//! nothing comes twice, and each sender's messages come in the order in which they were sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use proptest::prelude::*;
use smallvec::smallvec;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::backlog::{Backlog, Turn};
use super::super::pipeline::PublishReply;
use super::super::publication::{Publication, PublicationAnswer, Receivers, Taken};
use super::super::queue::{Queue, Queued, Waiter};
use super::lately::Ends;
use super::room::Room;
use super::{Keeping, KeptList};
use crate::bus::repair::Former;
use crate::bus::scope::Size;
use crate::bus::wire::{Formerly, MOST_FORMER};
use crate::model::error::PublishError;
use crate::model::history::mark::{Mark, Number, Run};
use crate::model::limits::SpoolLimits;

/// Who sent it, and how many that had sent.
type Id = (usize, u64);

/// A rule that is left out.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Without {
    Nothing,
    /// What had no answer is kept again, whether it is there or not.
    Looking,
    /// On another process nobody asks what that knows.
    Asking,
    /// What is kept again does not say where it was.
    Marks,
    /// What was lost comes behind what waits.
    Precedence,
}

#[derive(Debug, Clone)]
enum Step {
    Send(usize),
    /// One pipeline; of how many of it Redis does something, if it dies then.
    Write(usize, Option<usize>),
    /// No connection can be made.
    Refuse(usize),
    Break(usize),
    Replicate,
    Failover,
    /// With all that it had.
    Restart,
    Cut(usize),
    Heal(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0usize..2).prop_map(Step::Send),
        6 => (0usize..2).prop_map(|n| Step::Write(n, None)),
        2 => (0usize..2, 0usize..4).prop_map(|(n, done)| Step::Write(n, Some(done))),
        1 => (0usize..2).prop_map(Step::Refuse),
        1 => (0usize..2).prop_map(Step::Break),
        2 => Just(Step::Replicate),
        1 => Just(Step::Failover),
        1 => Just(Step::Restart),
        1 => (0usize..2).prop_map(Step::Cut),
        2 => (0usize..2).prop_map(Step::Heal),
    ]
}

/// What is kept of one topic, and its clock.
#[derive(Debug, Clone)]
struct Server {
    run: Run,
    clock: Run,
    last: u64,
    ends: BTreeMap<Run, u64>,
    list: Vec<(u64, Formerly, Id)>,
}

struct Hearer {
    heard: Mark,
    former: Former,
    is_there: bool,
    came: Vec<Id>,
    /// They were told a gap in which these were.
    excused: BTreeSet<Id>,
}

struct Sender {
    queue: Arc<Queue>,
    backlog: Backlog,
    /// To which process it is connected.
    run: Option<Run>,
    sent: u64,
    answers: Vec<oneshot::Receiver<PublicationAnswer>>,
}

struct World {
    without: Without,
    runs: u64,
    failovers: usize,
    primary: Server,
    replica: Server,
    senders: [Sender; 2],
    hearers: [Hearer; 2],
    /// Done without an answer, and heard: who has it cannot know it again if it is lost.
    unanswered: BTreeSet<Id>,
    may_come_twice: BTreeSet<Id>,
    again: u64,
}

fn run(number: u64) -> Run {
    Run::of(&format!("{number:012}")).unwrap()
}

impl Server {
    /// What the script does before anything else.
    fn begin(&mut self) {
        if self.clock != self.run {
            self.ends.insert(self.clock, self.last);
            self.clock = self.run;
        }
    }

    fn add(&mut self, formerly: Formerly, id: Id) -> u64 {
        self.begin();
        self.last += 1;
        self.list.push((self.last, formerly, id));
        self.last
    }

    fn find(&self, id: Id, since: u64) -> Option<u64> {
        let found = self
            .list
            .iter()
            .find(|(n, _, one)| *one == id && *n > since);
        found.map(|(n, ..)| *n)
    }
}

impl Hearer {
    fn hear(&mut self, number: u64, formerly: &Formerly, id: Id) {
        self.heard.number = Number(number);
        if self.former.had(formerly).is_none() {
            self.came.push(id);
        }
    }

    /// As it is read, and proven.
    fn come_back(&mut self, server: &mut Server, all: impl Iterator<Item = Id>) {
        server.begin();
        let from = match self.heard.run == server.run {
            true => Some(self.heard.number.0),
            false => {
                let end = server.ends.get(&self.heard.run);
                end.map(|end| self.heard.number.0.min(*end))
            }
        };
        if self.heard.run != server.run {
            self.former.add(self.heard, u64::MAX);
        }
        self.heard.run = server.run;
        match from {
            None => self.excused.extend(all),
            Some(from) => {
                let news = server.list.iter().filter(|(n, ..)| *n > from);
                for (number, formerly, id) in news.cloned().collect::<Vec<_>>() {
                    self.hear(number, &formerly, id);
                }
            }
        }
        self.heard.number = Number(server.last);
        self.is_there = true;
    }
}

impl Sender {
    fn new() -> Self {
        let limits = SpoolLimits {
            messages: 100_000,
            bytes: 1 << 30,
            wait: Duration::from_secs(3600),
        };
        Self {
            queue: Arc::default(),
            backlog: Backlog::spooling(Arc::new(Room::new(limits))),
            run: None,
            sent: 0,
            answers: Vec::new(),
        }
    }

    fn send(&mut self, n: usize) {
        let (reply, answer) = oneshot::channel();
        let envelope = Bytes::from(format!("{n} {}", self.sent));
        self.sent += 1;
        let list = KeptList {
            key: "l".into(),
            messages: 100,
            lifetime: 1,
        };
        let keeping = Keeping {
            clock: "c".into(),
            lists: smallvec![Some(list)],
            is_union: false,
            spools: true,
            doubt: None,
        };
        let publication = Publication::new(smallvec!["x".into()], envelope, Size::Small, None);
        let publication = publication.kept(Some(Box::new(keeping)));
        let deadline = Instant::now() + Duration::from_secs(3600);
        let queued = Queued::new(publication, deadline, reply);
        self.backlog
            .admit(queued.admitted(&self.queue, Waiter::new));
        self.answers.push(answer);
    }
}

fn id(publication: &Publication) -> Id {
    let text = std::str::from_utf8(&publication.envelope).unwrap();
    let (sender, number) = text.split_once(' ').unwrap();
    (sender.parse().unwrap(), number.parse().unwrap())
}

impl World {
    fn new(without: Without) -> Self {
        let server = Server {
            run: run(0),
            clock: run(0),
            last: 0,
            ends: BTreeMap::new(),
            list: Vec::new(),
        };
        let hearer = || Hearer {
            heard: Mark {
                run: run(0),
                number: Number(0),
            },
            former: Former::default(),
            is_there: true,
            came: Vec::new(),
            excused: BTreeSet::new(),
        };
        Self {
            without,
            runs: 0,
            failovers: 0,
            primary: server.clone(),
            replica: server,
            senders: [Sender::new(), Sender::new()],
            hearers: [hearer(), hearer()],
            unanswered: BTreeSet::new(),
            may_come_twice: BTreeSet::new(),
            again: 0,
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Send(n) => self.senders[n].send(n),
            Step::Write(n, dies_after) => self.write(n, dies_after),
            Step::Refuse(n) if self.senders[n].run.is_none() => {
                let error = PublishError::not_sent("refused");
                self.senders[n].backlog.fail(&error);
            }
            Step::Refuse(_) => {}
            Step::Break(n) => self.break_link(n),
            Step::Replicate => self.replica = self.primary.clone(),
            // What is lost more often than that is not known again.
            Step::Failover if self.failovers < MOST_FORMER => {
                self.failovers += 1;
                let next = self.replica.clone();
                self.begin_run(next);
            }
            Step::Failover => {}
            Step::Restart => {
                let next = self.primary.clone();
                self.begin_run(next);
            }
            Step::Cut(n) => self.hearers[n].is_there = false,
            Step::Heal(n) => self.heal(n),
        }
    }

    fn begin_run(&mut self, next: Server) {
        self.runs += 1;
        let kept = |id: &Id| next.find(*id, 0).is_some();
        let lost = self.unanswered.iter().filter(|id| !kept(id));
        self.may_come_twice.extend(lost.copied());
        self.primary = Server {
            run: run(self.runs),
            ..next
        };
        self.replica = self.primary.clone();
        (0..2).for_each(|n| self.break_link(n));
        self.hearers.iter_mut().for_each(|one| one.is_there = false);
    }

    fn break_link(&mut self, n: usize) {
        self.senders[n].run = None;
        self.senders[n].backlog.unsettle();
    }

    fn heal(&mut self, n: usize) {
        let sent = self.senders.each_ref().map(|sender| sender.sent);
        let all = (0..2).flat_map(|n| (0..sent[n]).map(move |k| (n, k)));
        if !self.hearers[n].is_there {
            self.hearers[n].come_back(&mut self.primary, all);
        }
    }

    /// As the publisher does.
    fn settle(&mut self, n: usize) {
        let run = self.primary.run;
        let sender = &mut self.senders[n];
        sender.run = Some(run);
        let Some(spool) = &mut sender.backlog.spool else {
            return;
        };
        self.primary.begin();
        let end = |of: Run| self.primary.ends.get(&of).map(|end| Number(*end));
        let unproven = spool.unproven(run).into_iter();
        let ends: Ends = unproven
            .map(|asked| {
                let end = match self.without {
                    Without::Asking => Some(Number(u64::MAX)),
                    _ => end(asked.1),
                };
                (asked, end)
            })
            .collect();
        let waiting = match self.without {
            Without::Precedence => std::iter::from_fn(|| spool.pop()).collect(),
            _ => Vec::new(),
        };
        self.again += spool.settle(run, &ends, &sender.queue, Instant::now());
        if !waiting.is_empty() {
            let lost: Vec<_> = std::iter::from_fn(|| spool.pop()).collect();
            spool.push_first(waiting.into_iter().chain(lost));
        }
    }

    fn write(&mut self, n: usize, dies_after: Option<usize>) {
        if self.senders[n].run.is_none() {
            self.settle(n);
        }
        let mut turn = Turn::default();
        self.senders[n].backlog.take_turn(&mut turn);
        let done = dies_after.unwrap_or(usize::MAX);
        let mut replies: Vec<PublishReply> = Vec::new();
        for publication in turn.publications.iter().take(done) {
            let number = self.publish(publication);
            if dies_after.is_some() {
                self.unanswered.insert(id(publication));
            } else {
                self.unanswered.remove(&id(publication));
            }
            let mark = Some(Mark {
                run: self.primary.run,
                number: Number(number),
            });
            replies.push(Ok(Taken { receivers: 2, mark }));
        }
        let sender = &mut self.senders[n];
        match dies_after {
            None => {
                turn.answer(replies.into_iter(), &mut sender.backlog);
            }
            Some(_) => {
                let error = PublishError::maybe_sent("lost");
                turn.fail(&error, &mut sender.backlog, sender.run.take());
                sender.backlog.unsettle();
            }
        }
    }

    fn publish(&mut self, publication: &Publication) -> u64 {
        let (id, doubt) = (id(publication), publication.doubt().cloned());
        let doubt = doubt.unwrap_or_default();
        let mut formerly = doubt.formerly;
        if let Some(since) = doubt.since
            && self.without != Without::Looking
        {
            assert_eq!(since.run, self.primary.run, "it is settled");
            if let Some(number) = self.primary.find(id, since.number.0) {
                return number;
            }
        }
        if self.without == Without::Marks {
            formerly.clear();
        }
        let number = self.primary.add(formerly.clone(), id);
        for hearer in self.hearers.iter_mut().filter(|hearer| hearer.is_there) {
            hearer.hear(number, &formerly, id);
        }
        number
    }

    /// When all is well again.
    fn end(mut self) -> Result<Self, String> {
        for n in 0..2 {
            for _ in 0..4 {
                self.write(n, None);
            }
            self.heal(n);
        }
        for (n, sender) in self.senders.iter_mut().enumerate() {
            if sender.backlog.has_work() {
                return Err(format!("something waits at {n}"));
            }
            for (k, answer) in sender.answers.drain(..).enumerate() {
                let told = answer.now_or_never().ok_or("no answer")?;
                let told = told.map_err(|_| "nobody answers")?;
                let settled: Receivers = match told.map_err(|error| error.to_string())?.later {
                    None => continue,
                    Some(later) => {
                        let later = later.now_or_never().ok_or(format!("{n} {k} waits"))?;
                        later.map_err(|_| "nobody settles")?
                    }
                };
                settled.map_err(|error| error.to_string())?;
            }
        }
        for hearer in &self.hearers {
            self.check(hearer)?;
        }
        Ok(self)
    }

    fn check(&self, hearer: &Hearer) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        let mut last: [Option<u64>; 2] = [None; 2];
        for id in &hearer.came {
            if !seen.insert(*id) {
                if self.may_come_twice.contains(id) {
                    continue;
                }
                return Err(format!("{id:?} came twice: {:?}", hearer.came));
            }
            if last[id.0].is_some_and(|last| last > id.1) {
                return Err(format!("{id:?} came late: {:?}", hearer.came));
            }
            last[id.0] = Some(id.1);
        }
        for n in 0..2 {
            for k in 0..self.senders[n].sent {
                if !seen.contains(&(n, k)) && !hearer.excused.contains(&(n, k)) {
                    return Err(format!("{:?} is lost: {:?}", (n, k), hearer.came));
                }
            }
        }
        Ok(())
    }

    fn play(without: Without, steps: impl IntoIterator<Item = Step>) -> Result<Self, String> {
        let mut world = Self::new(without);
        steps.into_iter().for_each(|step| world.take(step));
        world.end()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn nothing_is_lost_or_comes_twice_or_late(steps in proptest::collection::vec(step(), 0..60)) {
        let end = World::play(Without::Nothing, steps);
        prop_assert!(end.is_ok(), "{}", end.err().unwrap_or_default());
    }
}

/// What a lagging replica loses while more waits.
fn failover() -> Vec<Step> {
    vec![
        Step::Send(0),
        Step::Write(0, None),
        Step::Replicate,
        Step::Send(0),
        Step::Send(0),
        Step::Write(0, None),
        Step::Cut(1),
        Step::Failover,
        Step::Refuse(0),
        Step::Send(0),
        Step::Heal(0),
        Step::Write(0, None),
        Step::Failover,
        Step::Send(0),
    ]
}

/// A link that breaks when Redis has done what was asked.
fn unanswered() -> Vec<Step> {
    vec![
        Step::Send(0),
        Step::Send(0),
        Step::Write(0, Some(1)),
        Step::Send(0),
        Step::Write(0, None),
    ]
}

#[test]
fn each_rule_is_needed() {
    for (without, steps, fault) in [
        (Without::Looking, unanswered(), "twice"),
        (Without::Asking, failover(), "lost"),
        (Without::Marks, failover(), "twice"),
        (Without::Precedence, late(), "waits"),
    ] {
        let well = World::play(Without::Nothing, steps.clone());
        assert!(well.is_ok(), "control: {:?}", well.err());
        let end = World::play(without, steps).err().unwrap_or_default();
        assert!(end.contains(fault), "{without:?}: {end}");
    }
    let well = World::play(Without::Nothing, failover()).ok().unwrap();
    assert!(well.again > 0, "control: something was lost");
}

/// Nobody has heard what is lost before what came after it.
fn late() -> Vec<Step> {
    vec![
        Step::Replicate,
        Step::Cut(0),
        Step::Cut(1),
        Step::Send(0),
        Step::Write(0, None),
        Step::Failover,
        Step::Refuse(0),
        Step::Send(0),
        Step::Refuse(0),
        Step::Write(0, None),
    ]
}
