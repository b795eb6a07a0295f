//! One question to all other nodes: who is silent is asked by name, and when it is over. Rules without I/O, above those
//! of what was answered ([`gather`](super::gather)).
//!
//! ```text
//!  asked --> published --> wait --> complete ------------------------------> answers
//!               |          ^  |                                                ^
//!               | fails    |  |  100 ms: who is silent is asked by name        |
//!               |          +--+  whether it came; once, where counting is no   |
//!               v             |  use, and then at once: for the same           |
//!             error           +--> the deadline: what is there ----------------+
//! ```
//! Counting ends nearly every question, at the price of one number that the bus tells anyhow. It proves something only
//! while those that took the question are those that are known: so it is looked at first whether somebody is cut off,
//! refused channels, or unknown, and then nobody waits in vain until names are asked for. Asked by name, and again and
//! again, a node shows by its silence that an answer is under way.
//!
//! Those that are known are counted where the question travels: who hears one Redis may be deaf to another, and need not
//! know that yet. So it is no proof either that such a node says it was never asked; and it is asked by name for what the
//! others were asked for. Only then, since as many answers as took the question end it while counting proves something: those
//! of others must not stand for them.

use std::mem::replace;
use std::time::Duration;

use tokio::time::Instant;

use super::gather::{Answers, Gathering};
use crate::bus::Published;
use crate::bus::outage::Span;
use crate::model::id::NodeId;

/// A healthy cluster has answered long before: who has not is asked by name, again and again.
const FOLLOW_UP: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Question {
    /// Just before it was published.
    asked_at: Instant,
    deadline: Instant,
    /// When names are asked for, if counting has not ended it.
    follow_up: Instant,
    gathering: Gathering,
    is_repeated: bool,
}

/// Who is there, as far as this node can tell once its question is published.
#[derive(Debug, Clone, Copy)]
pub(super) struct Census {
    /// How many others took what all nodes hear who hear the question; none if that could not be published.
    pub(super) counted: Option<usize>,
    /// Since when this node has heard everything that goes the way of the question.
    pub(super) hearing: Option<Span>,
    /// How many others are known, …
    pub(super) known: usize,
    /// … and of them workers, whom nobody asks by name.
    pub(super) workers: usize,
    /// Whether a question on such a channel comes to all who have to hear it.
    pub(super) all_hear: bool,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextAsk {
    /// These are asked by name for what the others were asked for: who was counted does not say whom it reached.
    Repeat(Vec<NodeId>),
    /// These are asked by name whether there is something to wait for.
    Ping(Vec<NodeId>),
    /// Until something comes, or until then.
    Wait(Instant),
    Over,
}

impl Question {
    pub(super) fn asked(now: Instant, timeout: Duration) -> Self {
        Self {
            asked_at: now,
            deadline: now + timeout,
            follow_up: now + FOLLOW_UP,
            gathering: Gathering::default(),
            is_repeated: false,
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What came of it.
    pub(super) fn gathering(&mut self) -> &mut Gathering {
        &mut self.gathering
    }

    /// It never came to a node that has heard everything for so long.
    pub(super) fn unasked(&mut self, node: NodeId, heard: Duration, now: Instant) {
        let age = now.saturating_duration_since(self.asked_at);
        self.gathering.unasked(node, heard, age);
    }

    /// The bus took it. What is not answered within `FOLLOW_UP` is followed up.
    pub(super) fn published(&mut self, published: Published, census: Census, now: Instant) {
        // We are among those that are counted, or not: who has just come back does not know.
        let hears = census
            .hearing
            .is_some_and(|(since, _)| since <= self.asked_at);
        let present = census.counted.filter(|_| hears).unwrap_or(0);
        self.gathering
            .present(present, census.known, census.workers);
        if !census.all_hear {
            self.gathering.not_all_hear();
        }
        self.gathering.promise(published);
        self.follow_up = now + FOLLOW_UP;
    }

    /// What is next, with the nodes that are known.
    pub(super) fn next(&mut self, known: impl FnOnce() -> Vec<NodeId>, now: Instant) -> NextAsk {
        if self.gathering.is_complete() || self.deadline <= now {
            return NextAsk::Over;
        }
        if self.gathering.needs_names() || self.follow_up <= now {
            self.follow_up = now + FOLLOW_UP;
            let silent = self.gathering.follow_up(known());
            let is_repeated =
                !self.gathering.is_uncertain() || replace(&mut self.is_repeated, true);
            return match is_repeated {
                true => NextAsk::Ping(silent),
                false => NextAsk::Repeat(silent),
            };
        }
        NextAsk::Wait(self.follow_up.min(self.deadline))
    }

    /// Those who were silent have been asked by name, as far as they could be reached.
    pub(super) fn followed_up(&mut self, unreachable: &[NodeId], now: Instant) {
        for node in unreachable {
            self.gathering.unreachable(*node);
        }
        self.follow_up = now + FOLLOW_UP;
    }

    /// There is nothing to wait for any more, or no time: what is there must do.
    pub(super) fn end(&mut self, known: impl IntoIterator<Item = NodeId>) -> Answers {
        let mut gathering = std::mem::take(&mut self.gathering);
        gathering.end(known);
        gathering.into_answers()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const TIMEOUT: Duration = Duration::from_secs(2);
    const MS: Duration = Duration::from_millis(1);

    fn sound(nodes: usize, since: Instant) -> Census {
        Census {
            counted: Some(nodes),
            hearing: Some((since, since)),
            known: nodes,
            workers: 0,
            all_hear: true,
        }
    }

    /// To two nodes, both of which are known and took it.
    fn published(start: Instant, change: impl FnOnce(&mut Census)) -> Question {
        let mut question = Question::asked(start, TIMEOUT);
        let mut census = sound(2, start);
        change(&mut census);
        let (nodes, comes_back) = (2, false);
        question.published(
            Published {
                nodes,
                comes_back,
                ..Published::default()
            },
            census,
            start + 5 * MS,
        );
        question
    }

    fn answer(question: &mut Question, node: NodeId) {
        let part = Bytes::from_static(b"{}");
        question.gathering().answered(node, part, false);
    }

    fn next(question: &mut Question, now: Instant) -> NextAsk {
        question.next(|| vec![A, B], now)
    }

    fn pinged(question: &mut Question, now: Instant) -> Vec<NodeId> {
        match next(question, now) {
            NextAsk::Ping(names) => sorted(names),
            other => panic!("{other:?}"),
        }
    }

    fn repeated_to(question: &mut Question, now: Instant) -> Vec<NodeId> {
        match next(question, now) {
            NextAsk::Repeat(names) => sorted(names),
            other => panic!("{other:?}"),
        }
    }

    fn sorted(mut names: Vec<NodeId>) -> Vec<NodeId> {
        names.sort_unstable();
        names
    }

    #[test]
    fn counting_ends_it_and_nobody_is_asked_by_name() {
        let start = Instant::now();
        let mut question = published(start, |_| {});
        let first = start + 5 * MS + FOLLOW_UP;
        assert_eq!(next(&mut question, start + 5 * MS), NextAsk::Wait(first));
        answer(&mut question, A);
        assert_eq!(next(&mut question, start + 6 * MS), NextAsk::Wait(first));
        answer(&mut question, B);
        assert_eq!(next(&mut question, start + 7 * MS), NextAsk::Over);
        let answers = question.end([A, B]);
        assert_eq!((answers.parts.len(), answers.partial), (2, false));
    }

    #[test]
    fn who_is_silent_is_asked_by_name_again_and_again_until_the_deadline() {
        let start = Instant::now();
        let mut question = published(start, |_| {});
        answer(&mut question, A);
        let mut now = start + 5 * MS + FOLLOW_UP;
        assert_eq!(next(&mut question, now - MS), NextAsk::Wait(now));
        for _ in 0..3 {
            assert_eq!(pinged(&mut question, now), [B]);
            // The pings took some time.
            question.followed_up(&[], now + 30 * MS);
            now += 30 * MS + FOLLOW_UP;
            assert_eq!(next(&mut question, now - MS), NextAsk::Wait(now));
        }
        let deadline = start + TIMEOUT;
        question.followed_up(&[], deadline - MS);
        assert_eq!(next(&mut question, deadline - MS), NextAsk::Wait(deadline));
        assert_eq!(next(&mut question, deadline), NextAsk::Over);
        let answers = question.end([A, B]);
        assert_eq!((answers.missing, answers.partial), (vec![B], true));
    }

    #[test]
    fn where_counting_proves_nothing_names_are_asked_for_at_once() {
        let start = Instant::now();
        let changes: [fn(&mut Census); 4] = [
            |census| census.known = 3,
            |census| census.counted = None,
            |census| census.hearing = None,
            |census| census.all_hear = false,
        ];
        for change in changes {
            let mut question = published(start, change);
            answer(&mut question, A);
            assert_eq!(repeated_to(&mut question, start + 6 * MS), [B]);
            let then = start + 6 * MS + FOLLOW_UP;
            assert_eq!(
                next(&mut question, start + 6 * MS),
                NextAsk::Wait(then),
                "once"
            );
            assert_eq!(pinged(&mut question, then), [B], "that is repeated once");
        }
    }

    /// Who did not take it would answer instead of those who did, and nobody would wait for these.
    #[test]
    fn a_slow_question_is_not_repeated_where_counting_ends_it() {
        let start = Instant::now();
        let known = |census: &mut Census| (census.known, census.counted) = (4, Some(4));
        let mut question = published(start, known);
        let due = start + 5 * MS + FOLLOW_UP;
        assert_eq!(pinged(&mut question, due), [A, B]);
        question.gathering().left(NodeId(3), true);
        let due = due + FOLLOW_UP;
        assert_eq!(
            repeated_to(&mut question, due),
            [A, B],
            "now it proves nothing"
        );
        assert_eq!(pinged(&mut question, due + FOLLOW_UP), [A, B]);
    }

    #[test]
    fn who_came_back_after_it_asked_cannot_count() {
        let start = Instant::now();
        let late = |since| move |census: &mut Census| census.hearing = Some((since, since));
        let mut question = published(start, late(start));
        assert!(matches!(
            next(&mut question, start + 5 * MS),
            NextAsk::Wait(_)
        ));
        let mut question = published(start, late(start + MS));
        assert_eq!(repeated_to(&mut question, start + 5 * MS), [A, B]);
    }

    #[test]
    fn who_is_not_on_the_bus_is_waited_for_no_longer() {
        let start = Instant::now();
        let mut question = published(start, |census| census.known = 3);
        answer(&mut question, A);
        assert_eq!(repeated_to(&mut question, start + 6 * MS), [B]);
        question.followed_up(&[B], start + 7 * MS);
        assert_eq!(next(&mut question, start + 7 * MS), NextAsk::Over);
        assert_eq!(question.end([A, B]).missing, [B]);
    }

    #[test]
    fn that_it_never_came_is_believed_of_who_heard_for_longer_than_it_is_old() {
        let start = Instant::now();
        let mut question = published(start, |census| census.known = 3);
        answer(&mut question, A);
        assert_eq!(repeated_to(&mut question, start + 6 * MS), [B]);
        question.unasked(B, 9 * MS, start + 10 * MS);
        assert!(
            matches!(next(&mut question, start + 10 * MS), NextAsk::Wait(_)),
            "asked again"
        );
        question.unasked(B, 10 * MS, start + 10 * MS);
        assert_eq!(next(&mut question, start + 10 * MS), NextAsk::Over);
    }

    #[test]
    fn what_could_not_be_published_in_time_is_over() {
        let start = Instant::now();
        let mut question = Question::asked(start, TIMEOUT);
        assert_eq!(question.deadline(), start + TIMEOUT);
        assert_eq!(next(&mut question, start + TIMEOUT), NextAsk::Over);
        assert_eq!(question.end([A, B]).missing, [A, B]);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Answer(u64),
        More(u64),
        Refuse(u64),
        Unasked(u64, u64),
        Left(u64, bool),
        CameBack,
        Nothing,
    }

    fn event() -> impl Strategy<Value = Event> {
        let node = || 1..5u64;
        prop_oneof![
            node().prop_map(Event::Answer),
            node().prop_map(Event::More),
            node().prop_map(Event::Refuse),
            (node(), 0..3000u64).prop_map(|(node, heard)| Event::Unasked(node, heard)),
            (node(), any::<bool>()).prop_map(|(node, goodbye)| Event::Left(node, goodbye)),
            Just(Event::CameBack),
            Just(Event::Nothing),
        ]
    }

    proptest! {
        /// Whatever comes: it is over by its deadline, it waits for a time that is to come, and it asks by name once in a
        /// while. Who answered is not asked, and is not missing.
        #[test]
        fn it_ends_in_time_and_asks_by_name_now_and_then(
            events in proptest::collection::vec((event(), 0..400u64), 0..40),
            took in 0..5usize,
            known in 0..5usize,
            all_hear in any::<bool>(),
            comes_back in any::<bool>(),
        ) {
            let ids = || (1..=known as u64).map(NodeId).collect::<Vec<_>>();
            let (start, mut answered) = (Instant::now(), Vec::new());
            let mut question = Question::asked(start, TIMEOUT);
            let census = Census { known, all_hear, ..sound(took, start) };
            question.published(Published {
            nodes: took,
            comes_back,
            ..Published::default()
        }, census, start);
            let (mut now, mut asked) = (start, Vec::new());
            let mut events = events.into_iter();
            loop {
                match question.next(ids, now) {
                    NextAsk::Over => break,
                    NextAsk::Repeat(names) | NextAsk::Ping(names) => {
                        prop_assert!(names.iter().all(|node| !answered.contains(node)));
                        question.followed_up(&[], now);
                        asked.push(now);
                    }
                    NextAsk::Wait(until) => {
                        prop_assert!(now < until && until <= start + TIMEOUT);
                        let Some((event, pause)) = events.next() else {
                            now = until;
                            continue;
                        };
                        now = until.min(now + Duration::from_millis(pause));
                        match event {
                            Event::Answer(node) => {
                                answer(&mut question, NodeId(node));
                                answered.push(NodeId(node));
                            }
                            Event::More(node) => {
                                question.gathering().answered(NodeId(node), Bytes::new(), true);
                            }
                            Event::Refuse(node) => question.gathering().refused(NodeId(node)),
                            Event::Unasked(node, heard) => {
                                question.unasked(NodeId(node), Duration::from_millis(heard), now);
                            }
                            Event::Left(node, goodbye) => {
                                question.gathering().left(NodeId(node), goodbye);
                            }
                            Event::CameBack => question.gathering().came_back(),
                            Event::Nothing => {}
                        }
                    }
                }
            }
            prop_assert!(now <= start + TIMEOUT);
            let pauses = asked.windows(2).map(|pair| pair[1] - pair[0]);
            prop_assert!(pauses.into_iter().all(|pause| pause >= FOLLOW_UP), "{asked:?}");
        }
    }
}
