//! What is kept, where there is no Redis: one clock, and a list of each topic. Time is an argument, in microseconds since 1970.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::Entry;
use super::proof::{self, Chronicle, ListLost};
use crate::model::history::mark::{Mark, Number, Run};
use crate::model::history::{History, Missed};

#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    chronicle: Chronicle,
    lists: HashMap<String, List>,
    /// When which list may be looked at, since it may be over.
    ends: BTreeSet<(u64, String)>,
}

#[derive(Clone, Debug)]
struct List {
    /// The oldest first.
    entries: VecDeque<Entry>,
    /// Nothing was before the first of them, or it was gone by itself.
    is_whole: bool,
    over_at: u64,
}

impl Store {
    /// Gives so many numbers in a row; the first of them. Whatever has them already is in the lists by now, and nothing that comes
    /// later has.
    pub(crate) fn advance(&mut self, run: Run, now: u64, count: u64) -> Number {
        self.chronicle.advance(run, now, count)
    }

    /// Keeps what has the last number.
    pub(crate) fn append(&mut self, key: &str, entry: Entry, history: &History, now: u64) {
        self.end(now);
        let over_at = now + 1000 * history.lifetime_millis();
        let list = self.lists.entry(key.to_owned()).or_insert_with(|| {
            self.ends.insert((over_at, key.to_owned()));
            List {
                entries: VecDeque::new(),
                is_whole: true,
                over_at,
            }
        });
        list.over_at = over_at;
        list.entries.push_back(entry);
        if list.entries.len() > history.most() {
            let surplus = list.entries.len() - history.messages;
            list.entries.drain(..surplus);
            list.is_whole = false;
        }
    }

    /// What came since a position, or what there is; not more than so many.
    pub(crate) fn read(
        &self,
        key: &str,
        since: Option<Mark>,
        history: &History,
        now: u64,
        most: usize,
        lost: ListLost,
    ) -> Result<Vec<Entry>, Missed> {
        let list = self.lists.get(key).filter(|list| now < list.over_at);
        let entries = list.map(|list| &list.entries);
        let count = entries.map_or(0, VecDeque::len);
        let Some(since) = since else {
            let begin = count.saturating_sub(most);
            return Ok(entries.into_iter().flatten().skip(begin).cloned().collect());
        };
        let keep = 1000 * history.keep_millis();
        let from = self.chronicle.continued(since, keep)?;
        let numbers = (0..count).filter_map(|n| Some(entries?.get(n)?.number));
        let numbers: Vec<Number> = numbers.collect();
        let is_whole = list.is_some_and(|list| list.is_whole);
        let begin = proof::since(numbers.into_iter(), is_whole, from, lost)?;
        match count - begin > most {
            true => Err(Missed::TooMany),
            false => Ok(entries.into_iter().flatten().skip(begin).cloned().collect()),
        }
    }

    /// Drops the lists that are over.
    fn end(&mut self, now: u64) {
        while let Some((at, key)) = self.ends.first().filter(|(at, _)| *at <= now).cloned() {
            self.ends.remove(&(at, key.clone()));
            match self.lists.get(&key).map(|list| list.over_at) {
                Some(over_at) if now < over_at => {
                    self.ends.insert((over_at, key));
                }
                _ => {
                    self.lists.remove(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    const HISTORY: History = History {
        messages: 8,
        keep: Duration::from_secs(10),
    };
    const KEEP: u64 = 10_000_000;
    const TOPICS: [&str; 2] = ["a", "b"];
    /// Of which the last number is known, as of the large unions at Redis.
    const KNOWN: usize = 1;

    /// Redis, and what can happen to it.
    #[derive(Debug, Clone)]
    enum Step {
        Send(usize),
        /// So many to one topic.
        Burst(usize, usize),
        /// Somebody hears what comes until now, and goes away: his position.
        Leave,
        /// Whoever left as this one comes back.
        Return(usize),
        Pass(u64),
        /// Its clock is set.
        Set(i64),
        /// What would be found after a crash or a failover.
        Save,
        /// Another process goes on with that.
        Restore,
        /// The process that was there before is the primary again, with what the present one has.
        Back,
        Flush,
        Evict(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0usize..2).prop_map(Step::Send),
            1 => (0usize..2, 1usize..16).prop_map(|(topic, count)| Step::Burst(topic, count)),
            3 => Just(Step::Leave),
            4 => (0usize..8).prop_map(Step::Return),
            2 => (1u64..6_000_000).prop_map(Step::Pass),
            1 => (-3_000_000i64..3_000_000).prop_map(Step::Set),
            2 => Just(Step::Save),
            1 => Just(Step::Restore),
            1 => Just(Step::Back),
            1 => Just(Step::Flush),
            1 => (0usize..2).prop_map(Step::Evict),
        ]
    }

    /// Who is away: since when, and what of each topic he has.
    #[derive(Debug, Clone)]
    struct Away {
        since: Mark,
        has: [Vec<u64>; 2],
        flushes: usize,
        /// How much time has passed since then.
        left_at: u64,
    }

    /// Also what is true, by which the answers are judged.
    struct World {
        store: Store,
        /// That of the topic of which it is known.
        last: Number,
        saved: (Store, Number, [Vec<u64>; 2]),
        run: Run,
        earlier: Option<Run>,
        runs: u64,
        /// Real time, and how far Redis' clock is off.
        passed: u64,
        off: i64,
        was_set_back: bool,
        has_lost: bool,
        /// What was sent to each topic and was not lost with a process, in order.
        truth: [Vec<u64>; 2],
        next: u64,
        flushes: usize,
        evicts: bool,
        away: Vec<Away>,
        /// What was told whole.
        proven: usize,
    }

    fn run(number: u64) -> Run {
        Run::of(&format!("{number:012}")).unwrap()
    }

    impl World {
        fn new() -> Self {
            Self {
                store: Store::default(),
                last: Number::default(),
                saved: Default::default(),
                run: run(0),
                earlier: None,
                runs: 0,
                passed: 1_000_000_000,
                off: 0,
                was_set_back: false,
                has_lost: false,
                truth: Default::default(),
                next: 0,
                flushes: 0,
                evicts: false,
                away: Vec::new(),
                proven: 0,
            }
        }

        fn now(&self) -> u64 {
            self.passed.saturating_add_signed(self.off)
        }

        fn apply(&mut self, step: Step) {
            self.passed += 10;
            match step {
                Step::Send(topic) => self.send(topic),
                Step::Burst(topic, count) => (0..count).for_each(|_| self.send(topic)),
                Step::Leave => self.leave(),
                Step::Return(n) if !self.away.is_empty() => self.come_back(n % self.away.len()),
                Step::Return(_) => {}
                Step::Pass(micros) => self.passed += micros,
                // Nobody can tell who came back, or forgot all, and had its time set back as well.
                Step::Set(micros) if micros < 0 && self.has_lost => {}
                Step::Set(micros) => {
                    self.off += micros;
                    self.was_set_back |= micros < 0;
                }
                Step::Save => self.save(),
                Step::Restore => {
                    (self.store, self.last, self.truth) = self.saved.clone();
                    self.runs += 1;
                    self.earlier = Some(std::mem::replace(&mut self.run, run(self.runs)));
                }
                Step::Back | Step::Flush if self.was_set_back => {}
                Step::Back => {
                    self.has_lost = true;
                    if let Some(earlier) = self.earlier.as_mut() {
                        std::mem::swap(earlier, &mut self.run);
                        // What is from before that would take its numbers for those of its first time.
                        self.store.advance(self.run, self.now(), 1);
                        self.save();
                    }
                }
                Step::Flush => {
                    self.has_lost = true;
                    (self.store, self.last) = Default::default();
                    self.flushes += 1;
                    // What it had is gone for a replica as well.
                    self.save();
                }
                Step::Evict(topic) => {
                    self.evicts |= self.store.lists.remove(TOPICS[topic]).is_some();
                }
            }
        }

        fn save(&mut self) {
            self.saved = (self.store.clone(), self.last, self.truth.clone());
        }

        fn send(&mut self, topic: usize) {
            let now = self.now();
            let number = self.store.advance(self.run, now, 1);
            if topic == KNOWN {
                self.last = number;
            }
            let envelope = Bytes::copy_from_slice(&self.next.to_be_bytes());
            let entry = Entry { number, envelope };
            self.store.append(TOPICS[topic], entry, &HISTORY, now);
            self.truth[topic].push(self.next);
            self.next += 1;
        }

        fn leave(&mut self) {
            let number = self.store.advance(self.run, self.now(), 1);
            self.away.push(Away {
                since: Mark {
                    run: self.run,
                    number,
                },
                has: self.truth.clone(),
                flushes: self.flushes,
                left_at: self.passed,
            });
        }

        fn come_back(&mut self, n: usize) {
            let away = self.away[n].clone();
            let now = self.now();
            self.store.advance(self.run, now, 1);
            for (topic, key) in TOPICS.into_iter().enumerate() {
                let lost = ListLost {
                    evicts: self.evicts,
                    last: (topic == KNOWN).then_some(self.last),
                };
                let read = |since| self.store.read(key, since, &HISTORY, now, 1000, lost);
                let sent =
                    |entry: &Entry| u64::from_be_bytes(entry.envelope[..].try_into().unwrap());
                let missed = self.truth[topic]
                    .iter()
                    .filter(|sent| !away.has[topic].contains(sent));
                let missed: Vec<u64> = missed.copied().collect();
                match read(Some(away.since)) {
                    Ok(entries) => {
                        self.proven += 1;
                        let told: Vec<u64> = entries.iter().map(sent).collect();
                        assert_eq!(told, missed, "exactly what was missed");
                        assert_eq!(away.flushes, self.flushes, "nobody knows what is gone");
                    }
                    // Only for a reason.
                    Err(Missed::TooMany) => assert!(missed.len() >= HISTORY.messages),
                    Err(Missed::Late) => {
                        let slack = 3_000_000 * 40;
                        assert!(self.passed - away.left_at + slack > KEEP);
                    }
                    Err(Missed::Forgotten) => {
                        let same = away.since.run == self.run && self.runs == 0;
                        let evicted = self.evicts && (topic != KNOWN || !missed.is_empty());
                        assert!(!same || self.flushes > away.flushes || evicted);
                    }
                    Err(Missed::Foreign) => panic!("it is ours"),
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn what_is_told_is_exactly_what_was_missed(steps in proptest::collection::vec(step(), 1..60)) {
            let mut world = World::new();
            for step in steps {
                world.apply(step);
            }
        }
    }

    /// As a replica that passes on, under the run that it had, what the next one numbers: nobody knows of which run such a number is,
    /// nor whether all that is older was passed on.
    #[test]
    fn who_left_by_an_old_primary_gets_again_what_that_passed_on_and_no_less() {
        let (mut store, now) = (Store::default(), 1_000_000_000);
        let mut send = |run, n: u8| {
            let number = store.advance(run, now, 1);
            let envelope = Bytes::copy_from_slice(&[n]);
            store.append("a", Entry { number, envelope }, &HISTORY, now);
            number
        };
        send(run(0), 1);
        let numbers = [2, 3, 4].map(|n| send(run(1), n));
        let told = |number| {
            let since = Some(Mark {
                run: run(0),
                number,
            });
            let read = store.read("a", since, &HISTORY, now, 10, ListLost::default());
            let sent = |entry: Entry| entry.envelope[0];
            read.unwrap().into_iter().map(sent).collect::<Vec<_>>()
        };
        assert_eq!(told(numbers[1]), [2, 3, 4], "two of them again");
    }

    #[test]
    fn in_quiet_times_everything_is_told() {
        let mut world = World::new();
        world.apply(Step::Send(0));
        for _ in 0..20 {
            world.apply(Step::Leave);
            world.apply(Step::Burst(0, 3));
            world.apply(Step::Pass(1_000_000));
            let last = world.away.len() - 1;
            world.apply(Step::Return(last));
        }
        assert_eq!(world.proven, 40);
        world.apply(Step::Pass(20_000_000));
        world.apply(Step::Send(1));
        assert_eq!(world.store.lists.len(), 1, "what is over takes no memory");
        assert_eq!(world.store.ends.len(), 1);
    }
}
