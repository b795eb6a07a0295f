//! Which of the sentinels' answers holds, whom to ask, and when: rules without I/O.
//!
//! Sentinels number their decisions: each failover has a higher epoch than the one before, agreed on by a majority, so the
//! answer with the highest epoch wins however few give it, and a sentinel that was cut off together with the old primary
//! leads nobody back there. An older answer than that which was followed wins only when nobody has confirmed the newer
//! one for a while and a majority gives the older: then the sentinels were set up anew. Who takes its own answer for down
//! is not counted, nor who has no connection there, unless its decision is a new one: then it has only just made it
//! (for 0.9 s after a failover all of them say so, measured). While nobody's counts, what is known holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::answer::{Condition, SentinelAnswer};
use crate::bus::redis::address::ServerAddress;

/// After a hint they are asked again so soon, then after twice as long, and so on up to the interval: some of them hear of
/// a decision later than others. Never sooner.
const QUICK: Duration = Duration::from_millis(100);
/// … but after a hint for so long no rarer than this: a primary that is gone is replaced within a minute or so
/// (`down-after-milliseconds` is 30 s by default), and the sentinel that is listened to may have gone with it.
const BRISK: Duration = Duration::from_millis(800);
const RESTLESS: Duration = Duration::from_secs(60);
/// An epoch that nobody confirms for so long may have been forgotten by the sentinels: longer than any of them
/// misses a question, shorter than anybody notices who sets them up anew.
const FORGOTTEN: Duration = Duration::from_secs(10);
/// More sentinels of one primary are not asked.
const MOST: usize = 32;
/// Failures that are told at once.
const QUOTED: usize = 3;

#[derive(Debug)]
pub(super) struct Council {
    service: String,
    /// Named by the URL: always asked.
    seeds: Vec<ServerAddress>,
    /// Named by other sentinels, by their ids, but for seeds that answer.
    learned: BTreeMap<String, ServerAddress>,
    followed: Option<Followed>,
    interval: Duration,
    pause: Duration,
    hinted: Instant,
    asked: Instant,
    due: Instant,
}

/// The answer that holds.
#[derive(Debug)]
struct Followed {
    epoch: u64,
    primary: ServerAddress,
    /// When it was last given.
    confirmed: Instant,
}

/// What the answers come to.
#[derive(Debug, PartialEq)]
pub(super) enum CouncilFinding {
    /// The primary is where it was.
    Confirmed,
    /// It is there, by the decision with this number.
    Moved { primary: ServerAddress, epoch: u64 },
    /// Nobody's answer counts.
    Untold(Arc<str>),
}

/// What became of one question.
pub(super) type Said = Result<SentinelAnswer, Arc<str>>;
/// What one of the sentinels said.
pub(super) type HostSaid = (ServerAddress, Said);

impl Council {
    /// The first question is due at once.
    pub(super) fn new(
        service: &str,
        seeds: Vec<ServerAddress>,
        interval: Duration,
        now: Instant,
    ) -> Self {
        Self {
            service: service.to_owned(),
            seeds,
            learned: BTreeMap::new(),
            followed: None,
            interval,
            pause: QUICK,
            hinted: now,
            asked: now,
            due: now,
        }
    }

    /// Whom to ask. Never nobody.
    pub(super) fn sentinels(&self) -> Vec<ServerAddress> {
        let learned = self.learned.values();
        let learned = learned.filter(|sentinel| !self.seeds.contains(sentinel));
        let all = self.seeds.iter().chain(learned);
        all.take(MOST.max(self.seeds.len())).cloned().collect()
    }

    /// When to ask.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Notes that the sentinels were asked.
    pub(super) fn asked(&mut self, now: Instant) {
        self.asked = now;
        self.due = now + self.pause.min(self.interval);
        let is_restless = now.saturating_duration_since(self.hinted) < RESTLESS;
        let longest = if is_restless { BRISK } else { self.interval };
        self.pause = self.pause.saturating_mul(2).min(longest);
    }

    /// Something hints at a change: ask now, and again soon.
    pub(super) fn hurry(&mut self, now: Instant) {
        (self.pause, self.hinted) = (QUICK, now);
        self.due = self.due.min((self.asked + QUICK).max(now));
    }

    /// Whether one of these tells of a newer decision than that which is followed: then there is nothing to wait for.
    pub(super) fn is_news(&self, answers: &[HostSaid]) -> bool {
        let newest = self.newest(answers);
        let followed = self.followed.as_ref();
        followed.is_some_and(|followed| newest > Some(followed.epoch))
    }

    /// Whether these may be enough, whatever the others would say: one of them knows as much as is known already, or
    /// more than half have answered. One that was cut off is neither.
    pub(super) fn suffices(&self, answers: &[HostSaid]) -> bool {
        let newest = self.newest(answers);
        let followed = self.followed.as_ref();
        if followed.is_some_and(|followed| newest >= Some(followed.epoch)) {
            return true;
        }
        let sound = answers.iter();
        let sound = sound.filter_map(|(host, answer)| Some(voter(host, answer.as_ref().ok()?)));
        let voters: BTreeSet<_> = sound.collect();
        self.is_majority(voters.len(), answers)
    }

    fn newest(&self, answers: &[HostSaid]) -> Option<u64> {
        let held = self.followed.as_ref().map(|followed| followed.epoch);
        let (ballots, ..) = count(answers.to_vec(), held);
        ballots.into_keys().map(|(epoch, _)| epoch).max()
    }

    /// Of the sentinels that there are, by their ids: one that is silent may have been asked by two addresses.
    fn is_majority(&self, voters: usize, answers: &[HostSaid]) -> bool {
        let known = answers.iter().flat_map(|(_, answer)| answer);
        let known = known.map(|answer| answer.others.len() + 1).max();
        let known = known.unwrap_or(0).max(self.seeds.len());
        voters * 2 > known.max(self.learned.len())
    }

    /// These are the answers of a round that began at that time, and this comes of them.
    pub(super) fn hear(&mut self, answers: Vec<HostSaid>, asked: Instant) -> CouncilFinding {
        self.learn(&answers);
        self.judge(answers, asked)
    }

    /// The same of a part of them, by which nobody is known to be left out.
    pub(super) fn judge(&mut self, answers: Vec<HostSaid>, asked: Instant) -> CouncilFinding {
        let held = self.followed.as_ref();
        let (ballots, doubts, failures) =
            count(answers.clone(), held.map(|followed| followed.epoch));
        let held = held.map(|followed| (followed.epoch, followed.primary.clone()));
        let best = ballots
            .iter()
            .max_by_key(|(word, voters)| (word.0, Some(*word) == held.as_ref(), voters.len()));
        let Some(((epoch, primary), voters)) = best else {
            return CouncilFinding::Untold(self.untold(doubts, &failures));
        };
        let majority = self.is_majority(voters.len(), &answers);
        let Some(followed) = &mut self.followed else {
            return self.follow(*epoch, primary.clone(), asked);
        };
        let holds = followed.primary == *primary;
        let is_newest = *epoch > followed.epoch || (*epoch == followed.epoch && holds);
        let unconfirmed = asked.saturating_duration_since(followed.confirmed);
        let is_anew = majority && unconfirmed >= FORGOTTEN;
        if !is_newest && !is_anew {
            let reason = "only sentinels that were cut off answer, and name an older primary";
            return CouncilFinding::Untold(reason.into());
        }
        if holds {
            (followed.epoch, followed.confirmed) = (*epoch, asked.max(followed.confirmed));
            return CouncilFinding::Confirmed;
        }
        self.follow(*epoch, primary.clone(), asked)
    }

    fn follow(&mut self, epoch: u64, primary: ServerAddress, confirmed: Instant) -> CouncilFinding {
        self.followed = Some(Followed {
            epoch,
            primary: primary.clone(),
            confirmed,
        });
        CouncilFinding::Moved { primary, epoch }
    }

    /// Whoever is named by those who answered is asked too; while nobody answers, those who were named before.
    fn learn(&mut self, answers: &[HostSaid]) {
        let answers: Vec<_> = answers
            .iter()
            .filter_map(|(host, answer)| Some((host, answer.as_ref().ok()?)))
            .collect();
        if answers.is_empty() {
            return;
        }
        let seeds = answers.iter().filter(|(host, _)| self.seeds.contains(host));
        let seeds: BTreeSet<_> = seeds.filter_map(|(_, answer)| answer.id.as_ref()).collect();
        let others = answers.iter().flat_map(|(_, answer)| &answer.others);
        let others = others.filter(|(id, _)| !seeds.contains(id));
        self.learned = others.cloned().collect();
    }

    fn untold(&self, doubts: bool, failures: &[(ServerAddress, Arc<str>)]) -> Arc<str> {
        if doubts {
            return format!("the sentinels say that `{}` is down", self.service).into();
        }
        let quoted = failures.iter().take(QUOTED);
        let quoted: Vec<_> = quoted.map(|(host, why)| format!("{host}: {why}")).collect();
        format!(
            "no sentinel tells where `{}` is ({})",
            self.service,
            quoted.join(", ")
        )
        .into()
    }
}

/// An answer, and who gives it.
type Ballots = BTreeMap<(u64, ServerAddress), BTreeSet<String>>;

/// Each sentinel has one vote, however many addresses it has. Besides: whether somebody doubts its own, and who failed.
fn count(
    answers: Vec<HostSaid>,
    held: Option<u64>,
) -> (Ballots, bool, Vec<(ServerAddress, Arc<str>)>) {
    let (mut ballots, mut doubts, mut failures) = (Ballots::new(), false, Vec::new());
    let sound = answers.iter().flat_map(|(_, answer)| answer);
    let sound = sound.filter(|answer| answer.standing == Condition::Well);
    let newest = sound.map(|answer| answer.epoch).max().max(held);
    for (sentinel, answer) in answers {
        let counts = |answer: &SentinelAnswer| match answer.standing {
            Condition::Well => true,
            Condition::Unreached => newest.is_some_and(|newest| answer.epoch > newest),
            Condition::Down => false,
        };
        match answer {
            Ok(answer) if !counts(&answer) => doubts = true,
            Ok(answer) => {
                let voter = voter(&sentinel, &answer);
                let word = (answer.epoch, answer.primary);
                ballots.entry(word).or_default().insert(voter);
            }
            Err(why) => failures.push((sentinel, why)),
        }
    }
    (ballots, doubts, failures)
}

/// Who says so; an address, where it does not tell who it is.
fn voter(sentinel: &ServerAddress, answer: &SentinelAnswer) -> String {
    let id = answer.id.clone();
    id.unwrap_or_else(|| sentinel.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);
    const INTERVAL: Duration = Duration::from_secs(5);
    const SENTINELS: usize = 3;

    fn host(port: u16) -> ServerAddress {
        ServerAddress::new("h", port)
    }

    /// Of three that know one another.
    fn council() -> (Council, Instant) {
        let (now, seeds) = (Instant::now(), (1..=3).map(host).collect());
        (Council::new("m", seeds, INTERVAL, now), now)
    }

    /// A sentinel's word: a decision and where the primary is, which it reaches or not, or takes for down; or none.
    #[derive(Clone, Copy, Debug)]
    enum Word {
        Says(u64, u16),
        Unreached(u64, u16),
        Down(u64, u16),
        Silent,
    }

    use Word::{Down, Says, Silent, Unreached};

    fn round(words: [Word; SENTINELS]) -> Vec<HostSaid> {
        let ids = || (1..).take(SENTINELS);
        let answers = ids().zip(words).map(|(n, word)| {
            let (epoch, port, standing) = match word {
                Says(epoch, port) => (epoch, port, Condition::Well),
                Unreached(epoch, port) => (epoch, port, Condition::Unreached),
                Down(epoch, port) => (epoch, port, Condition::Down),
                Silent => return (host(n), Err("refused".into())),
            };
            let others = ids().filter(|other| *other != n);
            let answer = SentinelAnswer {
                id: Some(n.to_string()),
                epoch,
                primary: host(port),
                standing,
                others: others.map(|n| (n.to_string(), host(n))).collect(),
            };
            (host(n), Ok(answer))
        });
        answers.collect()
    }

    fn moved(epoch: u64, port: u16) -> CouncilFinding {
        let primary = host(port);
        CouncilFinding::Moved { primary, epoch }
    }

    fn is_untold(finding: &CouncilFinding, why: &str) -> bool {
        matches!(finding, CouncilFinding::Untold(reason) if reason.contains(why))
    }

    #[test]
    fn the_highest_epoch_wins_however_few_give_it() {
        let (mut council, now) = council();
        let first = round([Says(0, 70), Says(0, 70), Silent]);
        assert_eq!(council.hear(first, now), moved(0, 70));
        let same = round([Says(0, 70), Silent, Silent]);
        assert_eq!(council.hear(same, now), CouncilFinding::Confirmed);
        let one_knows = round([Says(0, 70), Says(1, 71), Says(0, 70)]);
        assert_eq!(council.hear(one_knows, now), moved(1, 71));
        // T5: the one that was cut off with the old primary.
        let differ = round([Says(0, 70), Says(1, 71), Says(1, 71)]);
        assert_eq!(council.hear(differ, now), CouncilFinding::Confirmed);
        let alone = council.hear(round([Says(0, 70), Silent, Silent]), now + 3600 * S);
        assert!(is_untold(&alone, "older"), "{alone:?}");
        let back = round([Says(2, 70), Says(2, 70), Says(2, 70)]);
        assert_eq!(council.hear(back, now), moved(2, 70));
    }

    #[test]
    fn who_takes_its_own_answer_for_down_is_not_counted() {
        let (mut council, now) = council();
        let down = council.hear(round([Down(4, 70), Unreached(4, 70), Silent]), now);
        assert!(is_untold(&down, "`m` is down"), "{down:?}");
        let one = round([Down(4, 70), Says(3, 71), Silent]);
        assert_eq!(council.hear(one, now), moved(3, 71));
    }

    #[test]
    fn who_has_only_just_decided_has_no_connection_there_yet() {
        let (mut council, now) = council();
        assert_eq!(council.hear(round([Says(1, 70); 3]), now), moved(1, 70));
        let lost = council.hear(round([Unreached(1, 70); 3]), now);
        assert!(is_untold(&lost, "down"), "nothing new: {lost:?}");
        let decided = round([Down(1, 70), Unreached(2, 71), Down(1, 70)]);
        assert_eq!(council.hear(decided, now), moved(2, 71));
        let still = council.hear(round([Unreached(2, 71), Silent, Silent]), now);
        assert!(is_untold(&still, "down"), "{still:?}");
        // Nor is who was cut off believed by a node that has only just started.
        let (mut council, now) = self::council();
        let started = round([Says(0, 70), Unreached(1, 71), Unreached(1, 71)]);
        assert_eq!(council.hear(started, now), moved(1, 71));
    }

    #[test]
    fn sentinels_that_were_set_up_anew_are_followed_when_nobody_knows_better() {
        let (mut council, now) = council();
        assert_eq!(council.hear(round([Says(9, 70); 3]), now), moved(9, 70));
        let anew = || round([Says(0, 71); 3]);
        assert!(is_untold(
            &council.hear(anew(), now + FORGOTTEN - S),
            "older"
        ));
        assert_eq!(council.hear(anew(), now + FORGOTTEN), moved(0, 71));
        // Half of them, or one that knows nobody: no majority.
        let half = round([Says(0, 70), Says(0, 71), Silent]);
        assert_eq!(
            council.hear(half, now + 2 * FORGOTTEN),
            CouncilFinding::Confirmed
        );
        let other = round([Says(0, 70), Silent, Silent]);
        assert!(is_untold(
            &council.hear(other, now + 4 * FORGOTTEN),
            "older"
        ));
    }

    #[test]
    fn nobody_who_answers_is_no_reason_to_go() {
        let (mut council, now) = council();
        council.hear(round([Says(0, 70); 3]), now);
        let gone = council.hear(round([Silent; 3]), now + 3600 * S);
        assert!(is_untold(&gone, "h:1: refused, h:2: refused"), "{gone:?}");
        let again = round([Silent, Silent, Says(0, 70)]);
        assert_eq!(
            council.hear(again, now + 3601 * S),
            CouncilFinding::Confirmed
        );
    }

    #[test]
    fn sentinels_are_learned_and_never_forgotten_for_silence() {
        let now = Instant::now();
        let mut council = Council::new("m", vec![host(1)], INTERVAL, now);
        assert_eq!(council.sentinels(), [host(1)]);
        let one = round([Says(0, 70), Silent, Silent]).drain(..1).collect();
        council.hear(one, now);
        assert_eq!(council.sentinels(), [1, 2, 3].map(host));
        council.hear(round([Silent; 3]), now);
        assert_eq!(council.sentinels(), [1, 2, 3].map(host));
        // By the others the seed is named under another name: it is asked by that while it is silent, and never twice.
        let other_name = ServerAddress::new("10.0.0.1", 1);
        for (seed, asked_by_it) in [(Silent, true), (Says(0, 70), false)] {
            let mut answers = round([seed, Says(0, 70), Says(0, 70)]);
            for (_, answer) in answers.iter_mut().skip(1) {
                let others = &mut answer.as_mut().unwrap().others;
                others.retain(|(id, _)| id != "1");
                others.push(("1".into(), other_name.clone()));
            }
            council.hear(answers, now);
            assert_eq!(council.sentinels().contains(&other_name), asked_by_it);
        }
        assert_eq!(council.sentinels(), [1, 2, 3].map(host));
    }

    #[test]
    fn one_sentinel_under_two_names_has_one_vote() {
        let (mut council, now) = council();
        council.hear(round([Says(9, 70); 3]), now);
        let mut twice = round([Says(0, 71), Silent, Says(0, 71)]);
        twice[2].1.as_mut().unwrap().id = Some("1".into());
        let finding = council.hear(twice, now + FORGOTTEN);
        assert!(is_untold(&finding, "older"), "{finding:?}");
    }

    #[test]
    fn a_hint_is_followed_by_questions_that_become_rarer() {
        let (mut council, now) = council();
        assert_eq!(council.due(), now);
        let mut pause = || {
            let due = council.due();
            council.asked(due);
            council.due() - due
        };
        let pauses: Vec<_> = (0..6).map(|_| pause().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 800, 800]);
        let pauses: Vec<_> = (0..90).map(|_| pause()).collect();
        assert_eq!(pauses.last(), Some(&INTERVAL), "nothing has happened");
        let asked = council.due() - INTERVAL;
        council.hurry(asked);
        assert_eq!(council.due(), asked + QUICK, "never sooner");
        council.hurry(asked + S);
        assert_eq!(council.due(), asked + QUICK, "what is due stays due");
        council.asked(asked + S);
        assert_eq!(council.due(), asked + S + QUICK);
    }

    #[test]
    fn what_is_newer_is_news_at_once_and_what_is_older_does_not_do() {
        let (mut council, now) = council();
        let one = round([Says(7, 70), Silent, Silent]);
        assert!(!council.is_news(&one) && !council.suffices(&one), "T5");
        assert!(council.suffices(&round([Says(7, 70), Down(7, 70), Silent])));
        council.hear(round([Says(8, 71); 3]), now);
        assert!(!council.is_news(&one) && !council.suffices(&one), "T5");
        let two = round([Says(7, 70), Says(7, 70), Silent]);
        assert!(!council.is_news(&two) && council.suffices(&two), "most");
        let same = round([Silent, Says(8, 71), Silent]);
        assert!(!council.is_news(&same) && council.suffices(&same));
        for newer in [Says(9, 70), Unreached(9, 70)] {
            let newer = round([Says(8, 71), Silent, newer]);
            assert!(council.is_news(&newer) && council.suffices(&newer));
        }
        let down = round([Silent, Down(9, 70), Silent]);
        assert!(!council.is_news(&down) && !council.suffices(&down));
    }

    /// Its machine is silent, and the others tell its address where the URL has its name.
    #[test]
    fn a_sentinel_that_is_asked_by_two_addresses_counts_once() {
        let (mut council, now) = council();
        let by_address = |words| {
            let mut answers = round(words);
            for (_, answer) in &mut answers {
                let others = answer.iter_mut().flat_map(|answer| &mut answer.others);
                others
                    .filter(|(id, _)| id == "3")
                    .for_each(|(_, host)| host.name = "10.0.0.3".into());
            }
            answers
        };
        council.hear(by_address([Says(9, 70), Says(9, 70), Silent]), now);
        assert_eq!(council.sentinels().len(), SENTINELS + 1, "control");
        let anew = || by_address([Says(0, 71), Says(0, 71), Silent]);
        assert!(council.suffices(&anew()));
        assert_eq!(council.hear(anew(), now + FORGOTTEN), moved(0, 71));
    }

    fn word() -> impl Strategy<Value = Word> {
        let (epoch, port) = (0u64..4, 70u16..73);
        prop_oneof![
            3 => (epoch.clone(), port.clone()).prop_map(|(epoch, port)| Says(epoch, port)),
            1 => (epoch.clone(), port.clone()).prop_map(|(epoch, port)| Unreached(epoch, port)),
            1 => (epoch, port).prop_map(|(epoch, port)| Down(epoch, port)),
            1 => Just(Silent),
        ]
    }

    proptest! {
        #[test]
        fn nobody_is_led_back_by_a_minority(rounds in proptest::collection::vec(([word(), word(), word()], 0u32..6), 1..40)) {
            let (mut council, mut now) = council();
            let mut held: Option<(u64, u16)> = None;
            for (words, seconds) in rounds {
                now += S * seconds;
                let finding = council.hear(round(words), now);
                let sound = words.iter().filter_map(|word| match word {
                    Says(epoch, _) => Some(*epoch),
                    _ => None,
                });
                let known = sound.max().max(held.map(|(epoch, _)| epoch));
                let counted = words.iter().filter_map(|word| match word {
                    Says(epoch, port) => Some((*epoch, *port)),
                    Unreached(epoch, port) => known.filter(|known| epoch > known).map(|_| (*epoch, *port)),
                    _ => None,
                });
                let counted: Vec<_> = counted.collect();
                let says = |epoch: u64, port: u16| counted.iter().filter(|word| **word == (epoch, port)).count();
                let newest = counted.iter().map(|(epoch, _)| *epoch).max();
                match finding {
                    CouncilFinding::Moved { primary, epoch } => {
                        prop_assert_eq!(Some(epoch), newest);
                        prop_assert!(says(epoch, primary.port) > 0);
                        if let Some((before, _)) = held {
                            prop_assert!(epoch > before || 2 * says(epoch, primary.port) > SENTINELS);
                        }
                        held = Some((epoch, primary.port));
                    }
                    CouncilFinding::Confirmed => {
                        let port = held.unwrap().1;
                        let epoch = newest.unwrap();
                        prop_assert!(says(epoch, port) > 0);
                        held = Some((epoch, port));
                    }
                    CouncilFinding::Untold(_) => {
                        // Whatever is newer than what holds is followed.
                        prop_assert!(held.map_or(newest.is_none(), |(epoch, _)| newest.is_none_or(|newest| newest <= epoch)));
                    }
                }
                prop_assert!(!council.sentinels().is_empty());
            }
        }
    }
}
