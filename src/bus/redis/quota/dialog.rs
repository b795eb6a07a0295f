//! What is said to Redis of one group's seats, and when: rules without I/O.
//!
//! What is to be said comes out ([`join`](Dialog::join), [`speak`](Dialog::speak)), answers and failures go in, and what they
//! mean to the ledger comes out as [`DialogEvent`]s. Every join raises the epoch, so that whatever was said before is stale when it
//! arrives; after it all is said in one order: what may differ, then claims; and nothing that failed in between is
//! taken for said. One thing at a time is on its way.
//!
//! ```text
//!           due                answered
//!  apart ---------> joining -------------> serving <------------------------------------+
//!   ^ ^                |                      |                                         |
//!   | |                |   a batch, a renewal |          answered                       |
//!   | |                |                      +--------> exchanging --------------------+
//!   | |                |                      |              |                          |
//!   | |                |   none of them, and  |          answered; keys are missing:     |
//!   | |                |   a look is due      |              |  a renewal is due         |
//!   | |                |                      +--------> looking -----------------------+
//!   | |                |                                     |
//!   | +- forgotten: in 10 ms, doubled (Redis answers, and has lost this node's keys or the script)
//!   |                  |                                     |
//!   +--- failed: at once, from the second time on after a pause, and that is an outage; the same without a connection
//!   +--- moved: at once (the group is on another primary now)
//! ```
//! Joining comes first after every failure since nobody knows what of it Redis has done, and there is no other way to
//! make that stale; and after a move since the new primary may have an older copy. It alone is sent whole: a server
//! that was never asked does not know the script. Looking is what makes a node without news notice a loss that others
//! wait for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, RedisError, RedisResult, Value};
use tokio::time::Instant;

use super::lapse::{Lapse, Lapses, RETRY};
use super::ledger::{Batch, Verdict};
use super::missing::Missing;
use super::pace::Pace;
use super::script::{Renewed, Script, joined, renewed, replaced, seen, verdict};
use super::voice::Voice;
use crate::bus::redis::advice::Advice;
use crate::model::topic::Topic;
use crate::quota::SeatLimit;

#[derive(Debug)]
pub(super) struct Dialog {
    script: Script,
    limit: SeatLimit,
    advice: Arc<Advice>,
    phase: Phase,
    voice: Voice,
    pace: Pace,
    lapses: Lapses,
    /// Redis has confirmed all that this node had to write since it began with nothing.
    whole: bool,
    /// What the last renewal told, to be acknowledged with the next.
    known: Renewed,
    missing: Missing,
    events: VecDeque<DialogEvent>,
}

#[derive(Debug)]
enum Phase {
    /// Redis does not listen to this node, and is told who speaks, not before then.
    Apart(Instant),
    Joining,
    Serving,
    Exchanging {
        renews: bool,
        batch: Batch,
    },
    Looking,
}

/// What may be said now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextWord {
    Join,
    /// A batch of the ledger, with claims or without.
    Speak {
        claims: bool,
    },
    /// Nothing: an answer is awaited, or the time to join.
    Rest,
}

/// What became of it, for the ledger.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DialogEvent {
    Joined {
        created: bool,
    },
    Answered {
        user: Topic,
        number: u64,
        verdict: Verdict,
    },
    /// A socket of this node has lost its seat.
    Lost {
        user: String,
        number: u64,
    },
    Failed(Batch),
    /// `aloud` when that has gone on for long, once.
    Forgotten {
        aloud: bool,
    },
    Outage(Arc<str>),
}

/// What is read of the answers, in the order of the commands.
type DialogAnswers = std::vec::IntoIter<RedisResult<Value>>;

impl Dialog {
    /// `patience` is how long a node is waited for whose seats are lost.
    pub(super) fn new(
        script: Script,
        limit: SeatLimit,
        advice: Arc<Advice>,
        pace: Pace,
        patience: Duration,
        now: Instant,
    ) -> Self {
        Self {
            script,
            limit,
            advice,
            phase: Phase::Apart(now),
            voice: Voice::default(),
            pace,
            lapses: Lapses::default(),
            whole: false,
            known: Renewed::default(),
            missing: Missing::new(patience),
            events: VecDeque::new(),
        }
    }

    // What is said ---------------------------------------------------------------------------------

    pub(super) fn next(&self, now: Instant) -> NextWord {
        match self.phase {
            Phase::Apart(until) if until <= now => NextWord::Join,
            Phase::Serving => NextWord::Speak {
                claims: self.pace.may_claim(now),
            },
            Phase::Apart(_) | Phase::Joining | Phase::Exchanging { .. } | Phase::Looking => {
                NextWord::Rest
            }
        }
    }

    /// From here on Redis listens to this epoch alone; `anew` when it has to forget what it knew. So it has as long as it
    /// began with nothing and is not whole yet: what was released before is not written to it, and what it shows now may be a
    /// replica's copy from before it lost everything, with nothing missing that was confirmed.
    pub(super) fn join(&mut self, anew: bool, now: Instant) -> Vec<Cmd> {
        self.phase = Phase::Joining;
        self.voice.begin_epoch();
        let stamp = self.voice.stamp(now);
        let anew = anew || !self.whole;
        vec![self.script.join(stamp, anew, &self.known.nodes)]
    }

    /// Says one batch, and what is due beside it; nothing when there is nothing.
    pub(super) fn speak(&mut self, batch: Batch, now: Instant) -> Vec<Cmd> {
        let renews = self.pace.is_renewal_due(now);
        if renews || !batch.is_empty() {
            return self.exchange(renews, batch, now);
        }
        if self.pace.is_look_due(now) {
            self.phase = Phase::Looking;
            return self.script.look().into();
        }
        Vec::new()
    }

    fn exchange(&mut self, renews: bool, batch: Batch, now: Instant) -> Vec<Cmd> {
        let (voice, script) = (&mut self.voice, &self.script);
        let mut said = Vec::new();
        if renews {
            self.pace.renews(now);
            said.push(script.renew(voice.stamp(now), &self.known.replaced));
        }
        if batch.has_writes() {
            voice.says();
            said.push(script.write(voice.stamp(now), &batch.writes, batch.whole));
        }
        let given_up = self.missing.given_up(now);
        let claims = batch.claims.iter();
        said.extend(claims.map(|(user, number)| {
            voice.says();
            script.claim(voice.stamp(now), user, *number, self.limit, &given_up)
        }));
        self.phase = Phase::Exchanging { renews, batch };
        said
    }

    /// When something is to be said, whether or not there is news; none while an answer is awaited.
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        match self.phase {
            Phase::Apart(until) => Some(until),
            Phase::Serving => Some(self.pace.timeout(now)),
            Phase::Joining | Phase::Exchanging { .. } | Phase::Looking => None,
        }
    }

    // What is heard --------------------------------------------------------------------------------

    /// Redis has answered what was said last. `random` in 0.0..1.0.
    pub(super) fn answered(&mut self, answers: Vec<RedisResult<Value>>, now: Instant, random: f64) {
        if let Err(lapse) = self.hear(answers.into_iter(), now) {
            self.lapsed(lapse, now, random);
        }
    }

    /// It has not, and will not; or there is no connection to say anything on.
    pub(super) fn failed(&mut self, error: &RedisError, now: Instant, random: f64) {
        let lapse = Lapse::of(error, &self.advice);
        self.lapsed(lapse, now, random);
    }

    /// A connection takes longer than anybody waits for a seat.
    pub(super) fn late(&mut self) {
        let reason = "redis accepted no connection in time";
        self.events.push_back(DialogEvent::Outage(reason.into()));
    }

    /// Redis is reached anew, and may have forgotten the seats: a pause ends, a renewal is due.
    pub(super) fn verify(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Apart(until) => *until = now.min(*until),
            _ => self.pace.verify(),
        }
    }

    /// The keys are on another primary now, or who speaks begins anew: an answer that is awaited does not come.
    pub(super) fn begin_anew(&mut self, now: Instant) {
        self.lapses.end();
        self.part(now);
    }

    pub(super) fn poll_event(&mut self) -> Option<DialogEvent> {
        self.events.pop_front()
    }

    /// What is said when the node leaves.
    pub(super) fn leave(&self) -> Cmd {
        self.script.leave()
    }

    fn hear(&mut self, mut answers: DialogAnswers, now: Instant) -> Result<(), Lapse> {
        match std::mem::replace(&mut self.phase, Phase::Serving) {
            // Whether Redis keeps what it is told is still to be seen.
            Phase::Joining => return self.joined(&mut answers, now),
            Phase::Looking => self.looked(&mut answers, now)?,
            Phase::Exchanging { renews, mut batch } => {
                let taken = self.take(renews, &mut batch, &mut answers, now);
                if taken.is_err() {
                    self.phase = Phase::Exchanging { renews, batch };
                    return taken;
                }
            }
            unasked @ (Phase::Apart(_) | Phase::Serving) => {
                self.phase = unasked;
                return Ok(());
            }
        }
        self.lapses.end();
        self.pace.answered(now);
        Ok(())
    }

    fn joined(&mut self, answers: &mut DialogAnswers, now: Instant) -> Result<(), Lapse> {
        let joined = joined(&self.one(answers)?).ok_or_else(Lapse::nonsense)?;
        if joined.created {
            self.known.replaced.clear();
            self.whole = false;
        }
        let remembered = std::mem::replace(&mut self.known.nodes, joined.nodes);
        if remembered.is_empty() {
            // Nobody would decide a newcomer's claims any sooner.
            self.pace.put_off(joined.others, now);
        }
        self.voice.set_clock(joined.millis, now);
        self.pace.joined(now);
        let created = joined.created;
        self.events.push_back(DialogEvent::Joined { created });
        Ok(())
    }

    /// Whether Redis still has this node's keys; the renewal restores what can be restored.
    fn looked(&mut self, answers: &mut DialogAnswers, now: Instant) -> Result<(), Lapse> {
        let answers = [self.one(answers)?, self.one(answers)?];
        if !seen(&answers, self.voice.stamp(now)) {
            self.pace.verify();
        }
        Ok(())
    }

    /// Takes the answers to a batch, in its order, and out of it what is answered.
    fn take(
        &mut self,
        renews: bool,
        batch: &mut Batch,
        answers: &mut DialogAnswers,
        now: Instant,
    ) -> Result<(), Lapse> {
        if renews {
            self.known = renewed(&self.one(answers)?).ok_or_else(Lapse::nonsense)?;
            self.voice.set_clock(self.known.millis, now);
            let lost = replaced(&self.known.replaced).into_iter();
            self.events.extend(lost.map(|(user, number)| {
                let user = user.to_owned();
                DialogEvent::Lost { user, number }
            }));
        }
        if batch.has_writes() {
            self.one(answers)?;
            self.voice.hears();
            self.voice.confirm();
            batch.writes.clear();
            self.whole |= std::mem::take(&mut batch.whole);
        }
        while !batch.claims.is_empty() {
            let verdict = verdict(&self.one(answers)?).ok_or_else(Lapse::nonsense)?;
            self.voice.hears();
            self.heed(&verdict, now);
            if let Some((user, number)) = batch.claims.pop_front() {
                self.events.push_back(DialogEvent::Answered {
                    user,
                    number,
                    verdict,
                });
            }
        }
        Ok(())
    }

    fn one(&self, answers: &mut DialogAnswers) -> Result<Value, Lapse> {
        let answer = answers.next().ok_or_else(Lapse::nonsense)?;
        answer.map_err(|error| Lapse::of(&error, &self.advice))
    }

    /// Learns from a verdict who is missing, and what time it is.
    fn heed(&mut self, verdict: &Verdict, now: Instant) {
        match verdict {
            Verdict::Missing { nodes, millis } => {
                self.missing.told(nodes.clone(), now);
                self.voice.set_clock(*millis, now);
                self.pace.put_off(RETRY, now);
            }
            Verdict::Granted { whole: true, .. } | Verdict::Refused { whole: true } => {
                self.missing.told(Vec::new(), now);
            }
            Verdict::Granted { .. } | Verdict::Refused { .. } => {}
        }
        if let Verdict::Granted { .. } = verdict {
            self.voice.confirm();
        }
    }

    fn lapsed(&mut self, lapse: Lapse, now: Instant, random: f64) {
        match lapse {
            Lapse::Forgotten => {
                let (wait, aloud) = self.lapses.forgotten();
                self.part(now + wait);
                self.events.push_back(DialogEvent::Forgotten { aloud });
            }
            Lapse::Failed(reason) => {
                let pause = self.lapses.failed(random);
                self.part(now + pause.unwrap_or_default());
                if pause.is_some() {
                    self.events.push_back(DialogEvent::Outage(reason));
                }
            }
        }
    }

    /// Nobody knows what Redis has done of what was said last.
    fn part(&mut self, until: Instant) {
        let phase = std::mem::replace(&mut self.phase, Phase::Apart(until));
        if let Phase::Exchanging { batch, .. } = phase {
            self.events.push_back(DialogEvent::Failed(batch));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::sync::oneshot;

    use super::super::ledger::Ledger;
    use super::super::script::{Terms, leases};
    use super::*;
    use crate::bus::redis::command::Dialect;
    use crate::model::id::NodeId;
    use crate::model::topic::Namespace;
    use crate::quota::{Decision, OverLimit};

    const MS: Duration = Duration::from_millis(1);
    const LEASE: Duration = Duration::from_secs(15);
    const PATIENCE: Duration = Duration::from_millis(2500);
    const LIMIT: usize = 2;

    fn limit() -> SeatLimit {
        let over = OverLimit::Refuse;
        SeatLimit {
            sockets: LIMIT,
            over,
        }
    }

    fn dialog(now: Instant) -> Dialog {
        let namespace = Namespace::new("x").unwrap();
        let pace = Pace::new(LEASE, PATIENCE, now);
        let (lease, grace) = (LEASE, pace.grace());
        let script = Script::new(leases(&namespace, None), NodeId(1), Terms { lease, grace });
        let advice = Arc::new(Advice::new(None, &namespace, Dialect::Plain));
        Dialog::new(script, limit(), advice, pace, PATIENCE, now)
    }

    fn user(name: u8) -> Topic {
        Topic::room(&name.to_string()).unwrap()
    }

    fn claiming(users: &[u8]) -> Batch {
        Batch {
            claims: users
                .iter()
                .map(|name| (user(*name), u64::from(*name)))
                .collect(),
            ..Batch::default()
        }
    }

    fn writing(name: u8) -> Batch {
        Batch {
            writes: vec![(user(name), "5:1,".to_owned())],
            whole: true,
            ..Batch::default()
        }
    }

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn array(parts: &[&str]) -> Value {
        Value::Array(parts.iter().map(|part| bulk(part)).collect())
    }

    /// What a join is answered, where Redis remembers nobody for so long.
    fn welcome(created: bool, others: i64, nodes: &str) -> Value {
        let (created, others) = (Value::Int(created.into()), Value::Int(others));
        Value::Array(vec![created, others, bulk(nodes), bulk("1000")])
    }

    fn refusal(words: &str) -> RedisError {
        let answer = redis::parse_redis_value(format!("-{words}\r\n").as_bytes());
        answer
            .and_then(Value::extract_error)
            .expect_err("it is one")
    }

    fn broken() -> RedisError {
        std::io::Error::from(std::io::ErrorKind::BrokenPipe).into()
    }

    /// The arguments of a command; those of the script from its operation on.
    fn words(command: &Cmd) -> Vec<String> {
        let words = command.args_iter().map(|arg| match arg {
            redis::Arg::Simple(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        });
        let words: Vec<String> = words.collect();
        match &*words[0] {
            "EVAL" | "EVALSHA" => words[5..].to_vec(),
            _ => words,
        }
    }

    fn operations(said: &[Cmd]) -> Vec<String> {
        said.iter()
            .map(|command| words(command).remove(0))
            .collect()
    }

    fn events(dialog: &mut Dialog) -> Vec<DialogEvent> {
        std::iter::from_fn(|| dialog.poll_event()).collect()
    }

    /// Joined, with this to write.
    fn serving(now: Instant) -> Dialog {
        let mut dialog = dialog(now);
        assert_eq!(operations(&dialog.join(true, now)), ["join"]);
        dialog.answered(vec![Ok(welcome(true, 0, ""))], now, 1.0);
        assert_eq!(events(&mut dialog), [DialogEvent::Joined { created: true }]);
        assert_eq!(operations(&dialog.speak(writing(1), now)), ["write"]);
        dialog.answered(vec![Ok(Value::Int(1))], now, 1.0);
        assert_eq!(events(&mut dialog), []);
        dialog
    }

    fn speaks() -> NextWord {
        NextWord::Speak { claims: true }
    }

    #[test]
    fn one_thing_is_said_at_a_time_and_joining_is_the_first() {
        let now = Instant::now();
        let mut dialog = dialog(now);
        assert_eq!(dialog.poll_timeout(now), Some(now));
        for answers in [
            vec![Ok(welcome(true, 0, ""))],
            vec![Ok(Value::Int(1)), Ok(Value::Int(0))],
            vec![Ok(array(&["1", "0"])), Ok(bulk("1"))],
        ] {
            let said = match dialog.next(now) {
                NextWord::Join => dialog.join(true, now),
                NextWord::Speak { .. } if !matches!(dialog.voice.stamp(now).says, 0) => {
                    dialog.speak(Batch::default(), now + LOOK)
                }
                NextWord::Speak { .. } => {
                    let mut batch = writing(1);
                    batch.claims = claiming(&[2]).claims;
                    dialog.speak(batch, now)
                }
                NextWord::Rest => panic!("it is due"),
            };
            assert_eq!(said.len(), answers.len(), "{:?}", operations(&said));
            assert_eq!(
                dialog.next(now + LEASE),
                NextWord::Rest,
                "an answer is awaited"
            );
            assert_eq!(dialog.poll_timeout(now), None);
            dialog.answered(answers, now, 1.0);
        }
        assert_eq!(dialog.next(now), speaks());
    }

    const LOOK: Duration = Duration::from_millis(250);

    #[test]
    fn a_batch_is_said_in_order_and_each_answer_belongs_to_its_command() {
        let now = Instant::now();
        let mut dialog = serving(now);
        let mut batch = writing(1);
        batch.claims = claiming(&[2, 3]).claims;
        let later = now + LEASE / 3;
        let said = dialog.speak(batch, later);
        assert_eq!(operations(&said), ["renew", "write", "claim", "claim"]);
        let stamps = said.iter().map(|command| words(command)[2..8].to_vec());
        for (stamp, says) in stamps.zip(["1", "2", "3", "4"]) {
            let millis = (1000 + LEASE.as_millis() / 3).to_string();
            assert_eq!(stamp, ["1", "15000", "750", &millis, says, "1"]);
        }
        let renewed = array(&["u:a=1,u:b=ff,", "1,2", "9000"]);
        let granted = array(&["granted", "77", "0000000000000009-1"]);
        let answers = vec![
            Ok(renewed),
            Ok(Value::Int(1)),
            Ok(granted),
            Ok(Value::Int(0)),
        ];
        dialog.answered(answers, later, 1.0);
        let heard = events(&mut dialog);
        let lost = |user: &str, number| {
            let user = user.to_owned();
            DialogEvent::Lost { user, number }
        };
        assert_eq!(heard[..2], [lost("u:a", 1), lost("u:b", 255)]);
        assert!(
            matches!(&heard[2], DialogEvent::Answered { user, number: 2, verdict: Verdict::Granted { since: 77, .. } } if *user == self::user(2)),
            "{heard:?}"
        );
        let (user, number) = (self::user(3), 3);
        let verdict = Verdict::Refused { whole: true };
        assert_eq!(
            heard[3..],
            [DialogEvent::Answered {
                user,
                number,
                verdict
            }]
        );
        let stamp = dialog.voice.stamp(later);
        assert_eq!((stamp.millis, stamp.confirmed), (9000, 3), "it was granted");
    }

    #[test]
    fn a_grant_confirms_and_a_refusal_does_not() {
        let now = Instant::now();
        let mut dialog = serving(now);
        for (answer, confirmed) in [
            (Value::Int(0), 1),
            (Value::Int(-1), 1),
            (array(&["unchecked", "5"]), 4),
        ] {
            dialog.speak(claiming(&[1]), now);
            dialog.answered(vec![Ok(answer)], now, 1.0);
            assert_eq!(dialog.voice.stamp(now).confirmed, confirmed);
        }
    }

    #[test]
    fn who_comes_first_claims_when_others_must_have_come() {
        let now = Instant::now();
        let mut dialog = dialog(now);
        dialog.join(true, now);
        dialog.answered(vec![Ok(welcome(true, 750, "others,1"))], now, 1.0);
        assert_eq!(
            dialog.next(now + 749 * MS),
            NextWord::Speak { claims: false }
        );
        assert_eq!(dialog.next(now + 750 * MS), speaks());
        // One who remembers others waits for those alone, and tells them.
        dialog.begin_anew(now);
        assert_eq!(words(&dialog.join(true, now)[0])[9], "others,1");
        let later = now + LEASE;
        dialog.answered(vec![Ok(welcome(true, 750, "others,1"))], later, 1.0);
        assert_eq!(dialog.next(later), speaks());
    }

    #[test]
    fn who_has_nothing_to_say_looks_and_renews_when_something_is_missing() {
        let now = Instant::now();
        let mut dialog = serving(now);
        assert!(dialog.speak(Batch::default(), now).is_empty());
        assert_eq!(dialog.poll_timeout(now), Some(now + LOOK));
        for (kept, leased, renews) in [
            (["1", "1"], bulk("99"), false),
            (["1", "0"], bulk("99"), true),
            (["2", "1"], bulk("99"), true),
            (["1", "1"], Value::Nil, true),
        ] {
            let due = dialog.poll_timeout(now).unwrap();
            let said = dialog.speak(Batch::default(), due);
            assert_eq!(operations(&said), ["HMGET", "ZSCORE"]);
            dialog.answered(vec![Ok(array(&kept)), Ok(leased)], due, 1.0);
            assert_eq!(dialog.poll_timeout(due) == Some(due), renews, "{kept:?}");
            if renews {
                let said = dialog.speak(Batch::default(), due);
                assert_eq!(operations(&said), ["renew"]);
                dialog.answered(vec![Ok(array(&["", "1", "1000"]))], due, 1.0);
            }
        }
        assert_eq!(events(&mut dialog), []);
    }

    #[test]
    fn what_a_renewal_told_is_acknowledged_by_the_next_if_the_keys_are_the_same() {
        let now = Instant::now();
        let mut dialog = serving(now);
        let renew = |dialog: &mut Dialog| {
            dialog.verify(now);
            words(&dialog.speak(Batch::default(), now)[0])[8].clone()
        };
        let told = || vec![Ok(array(&["u:a=1,", "1", "5"]))];
        assert_eq!(renew(&mut dialog), "");
        dialog.answered(told(), now, 1.0);
        assert_eq!(renew(&mut dialog), "u:a=1,");
        dialog.failed(&broken(), now, 1.0);
        for (created, acknowledged) in [(false, "u:a=1,"), (true, "")] {
            dialog.join(false, now);
            dialog.answered(vec![Ok(welcome(created, 0, "1"))], now, 1.0);
            assert_eq!(renew(&mut dialog), acknowledged);
            dialog.begin_anew(now);
        }
    }

    #[test]
    fn claims_wait_for_who_is_missing_and_give_it_up_in_its_time() {
        let start = Instant::now();
        let (mut dialog, mut now) = (serving(start), start);
        let ask = |dialog: &mut Dialog, now, answer| {
            let said = dialog.speak(claiming(&[1]), now);
            let given_up = words(said.last().unwrap())[12].clone();
            let answers = match said.len() {
                1 => vec![Ok(answer)],
                _ => vec![Ok(array(&["", "1", "5"])), Ok(answer)],
            };
            dialog.answered(answers, now, 1.0);
            given_up
        };
        let missing = || array(&["missing", "4000", "b=1"]);
        assert_eq!(ask(&mut dialog, now, missing()), "");
        assert_eq!(dialog.voice.stamp(now).millis, 4000);
        assert_eq!(dialog.next(now), NextWord::Speak { claims: false });
        assert_eq!(dialog.poll_timeout(now), Some(now + RETRY));
        now += RETRY;
        assert_eq!(dialog.next(now), speaks());
        assert_eq!(ask(&mut dialog, now, missing()), "");
        now = start + PATIENCE;
        assert_eq!(ask(&mut dialog, now, Value::Int(-1)), "b=1,");
        assert_eq!(
            ask(&mut dialog, now, Value::Int(0)),
            "b=1,",
            "it is not back"
        );
        assert_eq!(ask(&mut dialog, now, missing()), "", "it was");
    }

    #[test]
    fn a_failure_is_repaired_at_once_and_the_next_is_an_outage() {
        let now = Instant::now();
        let mut dialog = serving(now);
        dialog.speak(claiming(&[1]), now);
        dialog.failed(&broken(), now, 1.0);
        assert_eq!(events(&mut dialog), [DialogEvent::Failed(claiming(&[1]))]);
        assert_eq!(dialog.next(now), NextWord::Join);
        let epoch = |said: &[Cmd]| words(&said[0])[2].clone();
        assert_eq!(epoch(&dialog.join(false, now)), "2");
        for millis in [200, 400, 800] {
            dialog.failed(&broken(), now, 0.5);
            assert!(matches!(&events(&mut dialog)[..], [DialogEvent::Outage(_)]));
            let until = now + millis * MS / 2;
            assert_eq!(dialog.poll_timeout(now), Some(until));
            assert_eq!(dialog.next(until - MS), NextWord::Rest);
            assert_eq!(dialog.next(until), NextWord::Join);
        }
        // That Redis greets proves nothing; that it takes something does.
        for (takes, outage) in [(false, true), (true, false)] {
            dialog.join(false, now);
            dialog.answered(vec![Ok(welcome(false, 0, "1"))], now, 1.0);
            if takes {
                dialog.speak(writing(1), now);
                dialog.answered(vec![Ok(Value::Int(1))], now, 1.0);
            }
            events(&mut dialog);
            dialog.failed(&broken(), now, 1.0);
            let told = events(&mut dialog);
            let is_outage = |event: &DialogEvent| matches!(event, DialogEvent::Outage(_));
            assert_eq!(told.iter().any(is_outage), outage, "{told:?}");
        }
    }

    #[test]
    fn what_was_answered_before_a_failure_is_not_said_again() {
        let now = Instant::now();
        for (answered, left) in [(0, (true, 2)), (1, (false, 2)), (2, (false, 1))] {
            let mut dialog = serving(now);
            let mut batch = writing(1);
            batch.claims = claiming(&[2, 3]).claims;
            dialog.speak(batch, now);
            let answers = [Value::Int(1), Value::Int(0), Value::Int(0)].map(Ok);
            let mut answers: Vec<_> = answers.into_iter().take(answered).collect();
            answers.push(Err(refusal("OOM command not allowed")));
            dialog.answered(answers, now, 1.0);
            match events(&mut dialog).pop() {
                Some(DialogEvent::Failed(batch)) => {
                    assert_eq!((batch.has_writes(), batch.claims.len()), left);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_redis_has_lost_is_told_again_more_and_more_slowly() {
        let now = Instant::now();
        let mut dialog = serving(now);
        for (words, millis) in [("STALE another epoch", 10), ("NOSCRIPT none", 20)] {
            dialog.speak(claiming(&[1]), now);
            dialog.answered(vec![Err(refusal(words))], now, 1.0);
            let aloud = false;
            let told = [
                DialogEvent::Failed(claiming(&[1])),
                DialogEvent::Forgotten { aloud },
            ];
            assert_eq!(events(&mut dialog), told);
            assert_eq!(dialog.poll_timeout(now), Some(now + millis * MS));
            assert_eq!(dialog.next(now), NextWord::Rest);
            dialog.join(false, now);
            dialog.answered(vec![Ok(welcome(true, 0, "1"))], now, 1.0);
            events(&mut dialog);
        }
    }

    #[test]
    fn what_makes_no_sense_is_a_failure() {
        let now = Instant::now();
        let nonsense = |dialog: &mut Dialog, answers: Vec<Value>| {
            dialog.answered(answers.into_iter().map(Ok).collect(), now, 1.0);
            assert!(
                matches!(dialog.phase, Phase::Apart(_)),
                "{:?}",
                dialog.phase
            );
        };
        for answers in [vec![], vec![Value::Int(1)], vec![array(&["1", "2"])]] {
            let mut dialog = dialog(now);
            dialog.join(true, now);
            nonsense(&mut dialog, answers);
        }
        for answers in [vec![], vec![Value::Int(7)], vec![array(&["perhaps", "1"])]] {
            let mut dialog = serving(now);
            dialog.speak(claiming(&[1]), now);
            nonsense(&mut dialog, answers);
            assert_eq!(events(&mut dialog), [DialogEvent::Failed(claiming(&[1]))]);
        }
        for answers in [vec![], vec![Value::Nil]] {
            let mut dialog = serving(now);
            dialog.verify(now);
            dialog.speak(Batch::default(), now);
            nonsense(&mut dialog, answers);
        }
        let mut dialog = serving(now);
        dialog.speak(Batch::default(), now + LOOK);
        nonsense(&mut dialog, vec![Value::Nil]);
    }

    /// A slot that moves key by key, as each command meets it.
    #[test]
    fn while_keys_move_it_is_as_if_redis_did_not_answer() {
        let now = Instant::now();
        for words in [
            "MOVED 5 127.0.0.1:1",
            "ASK 5 127.0.0.1:1",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "CROSSSLOT Keys in request don't hash to the same slot",
            "CLUSTERDOWN The cluster is down",
            "ERR Script attempted to access a non local key in a cluster node script: 1",
        ] {
            let refused = || vec![Err(refusal(words))];
            let mut looking = serving(now);
            looking.speak(Batch::default(), now + LOOK);
            looking.answered(refused(), now, 1.0);
            assert_eq!(events(&mut looking), [], "{words}");
            assert_eq!(looking.next(now), NextWord::Join);

            let mut dialog = serving(now);
            dialog.speak(claiming(&[1, 2]), now);
            let answers = vec![Ok(array(&["granted", "5"])), Err(refusal(words))];
            dialog.answered(answers, now, 1.0);
            let told = events(&mut dialog);
            assert!(matches!(told[0], DialogEvent::Answered { number: 1, .. }));
            assert_eq!(
                told[1..],
                [DialogEvent::Failed(claiming(&[2]))],
                "it is asked again"
            );
            dialog.join(false, now);
            dialog.answered(refused(), now, 1.0);
            match &events(&mut dialog)[..] {
                [DialogEvent::Outage(reason)] => assert!(reason.starts_with(words), "{reason}"),
                other => panic!("{words}: {other:?}"),
            }
            dialog.join(false, now);
            dialog.answered(vec![Ok(welcome(false, 0, "1"))], now, 1.0);
            let created = false;
            assert_eq!(
                events(&mut dialog),
                [DialogEvent::Joined { created }],
                "over"
            );
        }
    }

    #[test]
    fn who_reaches_redis_anew_verifies_now() {
        let now = Instant::now();
        let mut dialog = dialog(now);
        for _ in 0..9 {
            dialog.failed(&broken(), now, 1.0);
        }
        assert_eq!(dialog.next(now), NextWord::Rest, "control");
        dialog.verify(now);
        assert_eq!(dialog.next(now), NextWord::Join);
        // Meanwhile it may have joined the old one.
        dialog.join(false, now);
        dialog.verify(now);
        dialog.answered(vec![Ok(welcome(false, 0, "1"))], now, 1.0);
        assert_eq!(dialog.poll_timeout(now), Some(now));
        assert_eq!(operations(&dialog.speak(Batch::default(), now)), ["renew"]);
        dialog.answered(vec![Ok(array(&["", "1", "5"]))], now, 1.0);
        assert!(dialog.poll_timeout(now) > Some(now), "once");
    }

    #[test]
    fn who_has_moved_joins_there_and_what_the_old_place_says_is_not_heard() {
        let now = Instant::now();
        let mut dialog = serving(now);
        for _ in 0..3 {
            dialog.failed(&broken(), now, 1.0);
        }
        dialog.join(false, now);
        dialog.answered(vec![Ok(welcome(false, 0, "1"))], now, 1.0);
        dialog.speak(claiming(&[1]), now);
        events(&mut dialog);
        dialog.begin_anew(now);
        assert_eq!(events(&mut dialog), [DialogEvent::Failed(claiming(&[1]))]);
        dialog.answered(vec![Ok(array(&["granted", "5"]))], now, 1.0);
        assert_eq!(events(&mut dialog), [], "its epoch is over");
        assert_eq!(dialog.next(now), NextWord::Join);
        dialog.join(false, now);
        dialog.failed(&broken(), now, 1.0);
        assert_eq!(dialog.next(now), NextWord::Join, "the first failure there");
    }

    #[test]
    fn until_all_is_written_every_join_is_anew() {
        let now = Instant::now();
        let asks = |dialog: &mut Dialog| words(&dialog.join(false, now)[0])[8].clone();
        let mut dialog = serving(now);
        dialog.begin_anew(now);
        assert_eq!(asks(&mut dialog), "", "control: it was written");
        dialog.answered(vec![Ok(welcome(true, 0, "1"))], now, 1.0);
        for whole in [false, true] {
            let mut batch = writing(1);
            batch.whole = whole;
            dialog.speak(batch, now);
            dialog.answered(vec![Ok(Value::Int(1))], now, 1.0);
            dialog.begin_anew(now);
            assert_eq!(asks(&mut dialog), if whole { "" } else { "anew" });
            dialog.answered(vec![Ok(welcome(!whole, 0, "1"))], now, 1.0);
        }
        dialog.begin_anew(now);
        assert_eq!(asks(&mut dialog), "", "and stays so");
    }

    #[test]
    fn a_late_connection_is_an_outage_and_no_failure() {
        let now = Instant::now();
        let mut dialog = dialog(now);
        dialog.late();
        assert!(matches!(&events(&mut dialog)[..], [DialogEvent::Outage(_)]));
        dialog.failed(&broken(), now, 1.0);
        assert_eq!(dialog.next(now), NextWord::Join, "it is the first");
    }

    // A world of one node --------------------------------------------------------------------------

    /// What Redis has of the node.
    #[derive(Debug, Default, Clone)]
    struct Keys {
        epoch: u64,
        said: u64,
        whole: bool,
        users: std::collections::BTreeMap<String, String>,
    }

    #[derive(Debug, Default, Clone)]
    struct Redis {
        keys: Option<Keys>,
        knows_script: bool,
    }

    impl Redis {
        fn run(&mut self, command: &Cmd) -> RedisResult<Value> {
            let words = words(command);
            let number = |at: usize| words[at].parse::<u64>().unwrap();
            if words[0] == "HMGET" {
                let keys = self.keys.clone().unwrap_or_default();
                return Ok(array(&[&keys.epoch.to_string(), &keys.said.to_string()]));
            }
            if words[0] == "ZSCORE" {
                return Ok(self.keys.as_ref().map_or(Value::Nil, |_| bulk("1")));
            }
            let (epoch, says, confirmed) = (number(2), number(6), number(7));
            if words[0] == "join" {
                self.knows_script = true;
                let kept = self
                    .keys
                    .take()
                    .filter(|keys| words[8] != "anew" && keys.whole && keys.said >= confirmed);
                let created = kept.is_none();
                let keys = self.keys.insert(kept.unwrap_or_default());
                (keys.epoch, keys.said) = (epoch, says);
                return Ok(welcome(created, 0, "1"));
            }
            if !self.knows_script {
                return Err(refusal("NOSCRIPT none"));
            }
            let current = self.keys.as_mut();
            let Some(keys) = current.filter(|keys| keys.epoch == epoch && keys.said >= confirmed)
            else {
                return Err(refusal("STALE another"));
            };
            match &*words[0] {
                "renew" => Ok(array(&["", "1", "1000"])),
                "write" => {
                    keys.said = says;
                    for pair in words[8..].chunks(2) {
                        match &*pair[0] {
                            "whole" => keys.whole = true,
                            _ => drop(keys.users.insert(pair[0].clone(), pair[1].clone())),
                        }
                    }
                    Ok(Value::Int(1))
                }
                "claim" => {
                    assert!(keys.whole, "claims come after all that is held");
                    let seats = keys.users.entry(words[8].clone()).or_default();
                    if seats.matches(',').count() >= LIMIT {
                        return Ok(Value::Int(0));
                    }
                    keys.said = says;
                    *seats += &format!("5:{},", words[9]);
                    Ok(array(&["granted", "5"]))
                }
                other => panic!("{other}"),
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Fault {
        None,
        /// The connection breaks when so many commands are carried out.
        Breaks(usize),
        /// From this one on they are refused.
        Refuses(usize, &'static str),
        /// Commands are carried out when something else has long begun.
        Late,
        Flush,
        ScriptFlush,
        /// It has what it had when that was last said, or now from now on.
        Older(bool),
        /// The same, from when so many commands were carried out.
        Lags(usize),
        Verify,
        /// The keys are on another server, which does not know the script.
        Moved,
        Slow,
    }

    #[derive(Debug, Clone)]
    enum Step {
        Claim(u8),
        Release(prop::sample::Index),
        Speak(Fault),
    }

    fn step() -> impl Strategy<Value = Step> {
        let words = prop::sample::select(vec!["MOVED 5 h:1", "TRYAGAIN", "ASK 5 h:1", "OOM"]);
        let fault = prop_oneof![
            6 => Just(Fault::None),
            2 => (0..4usize).prop_map(Fault::Breaks),
            2 => (0..4usize, words).prop_map(|(from, words)| Fault::Refuses(from, words)),
            1 => Just(Fault::Late),
            1 => Just(Fault::Flush),
            1 => Just(Fault::ScriptFlush),
            2 => any::<bool>().prop_map(Fault::Older),
            1 => (0..4usize).prop_map(Fault::Lags),
            1 => Just(Fault::Verify),
            1 => Just(Fault::Moved),
            1 => Just(Fault::Slow),
        ];
        prop_oneof![
            3 => (0..3u8).prop_map(Step::Claim),
            2 => any::<prop::sample::Index>().prop_map(Step::Release),
            6 => fault.prop_map(Step::Speak),
        ]
    }

    struct World {
        dialog: Dialog,
        ledger: Ledger,
        redis: Redis,
        saved: Redis,
        late: Vec<Cmd>,
        now: Instant,
    }

    impl World {
        /// Says what is due, and takes what becomes of it.
        fn speak(&mut self, fault: &Fault) {
            self.befall(fault);
            self.settle();
            self.now = self.dialog.poll_timeout(self.now).unwrap().max(self.now) + MS;
            let (now, dialog) = (self.now, &mut self.dialog);
            let said = match dialog.next(now) {
                NextWord::Join => dialog.join(self.ledger.is_anew(), now),
                NextWord::Speak { claims } => dialog.speak(self.ledger.next_batch(claims), now),
                NextWord::Rest => vec![],
            };
            // What an earlier connection still had on its way arrives in between.
            let late = std::mem::take(&mut self.late);
            let arrive = match fault {
                Fault::Breaks(arrive) | Fault::Refuses(arrive, _) => *arrive,
                Fault::Late => 0,
                _ => usize::MAX,
            };
            let arrived = said.iter().take(arrive).enumerate();
            let mut answers: Vec<_> = arrived
                .map(|(n, command)| {
                    if matches!(fault, Fault::Lags(at) if *at == n) {
                        self.saved = self.redis.clone();
                    }
                    self.redis.run(command)
                })
                .collect();
            late.iter()
                .for_each(|command| drop(self.redis.run(command)));
            match fault {
                Fault::Breaks(_) | Fault::Late => self.dialog.failed(&broken(), now, 1.0),
                Fault::Refuses(from, words) => {
                    answers.extend((*from..said.len()).map(|_| Err(refusal(words))));
                    self.dialog.answered(answers, now, 1.0);
                }
                _ => self.dialog.answered(answers, now, 1.0),
            }
            if let Fault::Late = fault {
                self.late = said;
            }
            self.settle();
        }

        fn befall(&mut self, fault: &Fault) {
            match fault {
                // Not a replica that lags: its copy is from before, and may come back.
                Fault::Flush => self.redis.keys = None,
                Fault::ScriptFlush => self.redis.knows_script = false,
                Fault::Older(true) => self.saved = self.redis.clone(),
                Fault::Older(false) => self.redis.keys.clone_from(&self.saved.keys),
                Fault::Verify => self.dialog.verify(self.now),
                Fault::Slow => self.dialog.late(),
                Fault::Moved => {
                    self.redis.knows_script = false;
                    self.dialog.begin_anew(self.now);
                }
                Fault::None
                | Fault::Breaks(_)
                | Fault::Refuses(..)
                | Fault::Late
                | Fault::Lags(_) => {}
            }
        }

        fn settle(&mut self) {
            while let Some(event) = self.dialog.poll_event() {
                match event {
                    DialogEvent::Joined { created } => drop(self.ledger.joined(created)),
                    DialogEvent::Answered {
                        user,
                        number,
                        verdict,
                    } => self.ledger.answered(&user, number, verdict),
                    DialogEvent::Lost { user, number } => self.ledger.lose(&user, number),
                    DialogEvent::Failed(batch) => self.ledger.failed(batch),
                    DialogEvent::Forgotten { .. } => self.ledger.forgotten(),
                    DialogEvent::Outage(_) => drop(self.ledger.outage(5)),
                }
            }
            self.ledger.take_news().answer();
        }
    }

    proptest! {
        /// Whatever breaks, is lost, comes late or is refused in between: in the end Redis has what is held here, and
        /// everyone who asked has an answer.
        #[test]
        fn redis_ends_with_the_truth(steps in prop::collection::vec(step(), 1..60)) {
            let now = Instant::now();
            let mut world = World {
                dialog: dialog(now),
                ledger: Ledger::new(NodeId(1), limit()),
                redis: Redis::default(),
                saved: Redis::default(),
                late: Vec::new(),
                now,
            };
            world.ledger.begin();
            let mut asked: Vec<(Topic, u64, oneshot::Receiver<Decision>)> = Vec::new();
            let calm = std::iter::repeat_n(Step::Speak(Fault::None), 100);
            for (number, step) in steps.into_iter().chain(calm).enumerate() {
                match step {
                    Step::Claim(name) => {
                        let answer = world.ledger.claim(&user(name), number as u64, 5);
                        asked.push((user(name), number as u64, answer));
                    }
                    Step::Release(_) if asked.is_empty() => {}
                    Step::Release(which) => {
                        let (user, number, _) = asked.swap_remove(which.index(asked.len()));
                        world.ledger.release(&user, number);
                    }
                    Step::Speak(fault) => world.speak(&fault),
                }
            }
            let mut truth: std::collections::BTreeMap<String, usize> = Default::default();
            for (user, number, mut answer) in asked {
                let decision = answer.try_recv().expect("an answer");
                prop_assert_eq!(decision.granted.is_some(), world.ledger.holds(&user, number));
                if decision.granted.is_some() {
                    *truth.entry(user.as_str().to_owned()).or_default() += 1;
                }
            }
            prop_assert!(truth.values().all(|held| *held <= LIMIT), "{:?}", truth);
            let keys = world.redis.keys.expect("it has joined");
            prop_assert!(keys.whole);
            let known = keys.users.into_iter().map(|(user, seats)| (user, seats.matches(',').count()));
            prop_assert_eq!(known.filter(|(_, held)| *held > 0).collect::<std::collections::BTreeMap<_, _>>(), truth);
        }
    }
}
