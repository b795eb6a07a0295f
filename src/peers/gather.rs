//! When a question to several nodes is answered: rules without I/O.
//!
//! The bus tells how many nodes took a question, so that many answers end it. What takes longer than
//! usual is followed up by name: a node that is gone, or that was never asked, is waited for no longer,
//! and one that stays silent until the deadline is named as missing.
//!
//! That a question never came is proof of nothing where it may have been missed: a node that is told of it says
//! for how long it has heard everything, which must be longer than the question is old when that arrives. So the
//! way there and back counts against it, and no two clocks are compared. It may not know yet that it hears one Redis of
//! several no more: so of those that the bus counts there, no more may say so than did not take the question.
//!
//! ```text
//!  of a node:
//!             its last part came
//!  silent ------------------------> finished
//!     |
//!     |  what it says, or that it is asked by name, may show that nothing will come
//!     +--> unasked       the question never came, though everything was heard: not waited for
//!     +--> deaf          nothing came: missing
//!     +--> refused       it came and is not answered: missing
//!     +--> unreachable   not on the bus: missing, if counting does not end it
//!     +--> still silent  at the end of time: missing, if counting does not end it
//!
//!  of the question: complete when as many have finished or refused as the bus says have taken it, and it is certain
//!  who those are; or when nobody of those asked by name is silent. In either case we must have heard our own copy, if
//!  there was one: else the answers may have been lost.
//! ```

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;

use crate::bus::Published;
use crate::model::id::NodeId;

#[derive(Debug, Default)]
pub(crate) struct Gathering {
    /// What became of the question: how many other nodes took it.
    promised: Option<Published>,
    /// Our own copy of it came back.
    came_back: bool,
    /// A node has left meanwhile, and nobody knows whether it was one of those.
    uncertain: bool,
    /// How many nodes that hold sockets hear whatever goes the way of the question, as the bus counts.
    present: usize,
    answers: HashMap<NodeId, Vec<Bytes>>,
    finished: HashSet<NodeId>,
    /// Nodes that have nothing to do with the question.
    unasked: HashSet<NodeId>,
    /// Nodes that the question never reached, as nothing did: they are coming back.
    deaf: HashSet<NodeId>,
    /// Nodes asked by name that may still answer.
    awaited: Option<HashSet<NodeId>>,
    /// Nodes that are there but cut off from the bus.
    unreachable: HashSet<NodeId>,
    /// Nodes that got the question and do not answer it.
    refused: HashSet<NodeId>,
    /// Nodes that said goodbye meanwhile: each may be one of those that took the question.
    gone: usize,
    /// Time ended before the answers were there.
    late: bool,
}

impl Gathering {
    /// The bus handed the question to so many nodes.
    pub(crate) fn promise(&mut self, published: Published) {
        self.promised = Some(published);
    }

    /// We heard the question ourselves.
    pub(crate) fn came_back(&mut self) {
        self.came_back = true;
    }

    /// A part of a node's answer; with `more`, others follow.
    pub(crate) fn answered(&mut self, node: NodeId, part: Bytes, more: bool) {
        if self.finished.contains(&node) {
            return;
        }
        self.answers.entry(node).or_default().push(part);
        if !more {
            self.finished.insert(node);
            self.unreachable.remove(&node);
            self.deaf.remove(&node);
            self.no_longer_awaited(node);
        }
    }

    /// The question, which is so old, never came to a node asked by name that has heard everything for so long. If
    /// that is not long enough it is asked again: perhaps its words were only slow.
    pub(crate) fn unasked(&mut self, node: NodeId, heard: Duration, age: Duration) {
        if age <= heard {
            self.unasked.insert(node);
        } else if heard.is_zero() && !self.finished.contains(&node) {
            self.deaf.insert(node);
        } else {
            return;
        }
        self.no_longer_awaited(node);
    }

    /// A node got the question and will not answer it: what it holds is missing.
    pub(crate) fn refused(&mut self, node: NodeId) {
        if !self.finished.contains(&node) {
            self.refused.insert(node);
            self.no_longer_awaited(node);
        }
    }

    /// A node has left, or is given up since it said nothing for a lease: it will not answer any more. Only of one
    /// that said goodbye it is known that its sockets are gone.
    pub(crate) fn left(&mut self, node: NodeId, goodbye: bool) {
        if !self.finished.contains(&node) {
            self.uncertain = true;
            self.gone += usize::from(goodbye);
            self.no_longer_awaited(node);
        }
    }

    /// So many others hear whatever goes the way of the question, of so many that are known, workers among them: with
    /// fewer, somebody is cut off, and counting cannot tell whom the question did not reach.
    pub(crate) fn present(&mut self, present: usize, known: usize, workers: usize) {
        self.uncertain |= present < known;
        self.present = present.saturating_sub(workers);
    }

    /// Whether counting cannot end it.
    pub(crate) fn is_uncertain(&self) -> bool {
        self.uncertain
    }

    /// Redis refuses somebody channels such as that of the question.
    pub(crate) fn not_all_hear(&mut self) {
        self.uncertain = true;
    }

    /// Of the nodes that are known, those to ask by name.
    pub(crate) fn follow_up(&mut self, known: impl IntoIterator<Item = NodeId>) -> Vec<NodeId> {
        let open: HashSet<NodeId> = known
            .into_iter()
            .filter(|id| !self.is_over_for(id))
            .collect();
        let names = open.iter().copied().collect();
        self.awaited = Some(open);
        names
    }

    /// A node asked by name is not on the bus: waiting for it is pointless.
    pub(crate) fn unreachable(&mut self, node: NodeId) {
        self.unreachable.insert(node);
        self.no_longer_awaited(node);
    }

    /// Whether nodes have to be asked by name, since counting can no longer end it.
    pub(crate) fn needs_names(&self) -> bool {
        self.uncertain && self.awaited.is_none()
    }

    pub(crate) fn is_complete(&self) -> bool {
        let is_named = self.awaited.as_ref().is_some_and(HashSet::is_empty);
        self.is_counted() || is_named && self.is_heard()
    }

    /// There is no more time. Where nobody was asked by name, all that are known and silent are missing.
    pub(crate) fn end(&mut self, known: impl IntoIterator<Item = NodeId>) {
        self.late = !self.is_complete();
        if self.late && self.awaited.is_none() {
            self.follow_up(known);
        }
    }

    /// What was answered whole, and who did not answer. A part of an answer counts as none.
    pub(crate) fn into_answers(mut self) -> Answers {
        let counted = self.is_counted();
        // Somebody took the question and did not answer, and nobody knows who it was.
        let unknown = self.owed() > self.gone;
        let is_whole = counted || !self.is_denied_by_too_many();
        let mut missing = self.refused;
        missing.extend(self.deaf);
        if !counted {
            missing.extend(self.awaited.into_iter().flatten());
            missing.extend(self.unreachable);
        }
        let mut missing: Vec<NodeId> = missing.into_iter().collect();
        missing.sort_unstable();
        self.answers.retain(|node, _| self.finished.contains(node));
        Answers {
            parts: self.answers,
            partial: !missing.is_empty() || self.late || unknown || !is_whole,
            missing,
        }
    }

    /// How many took the question and have not answered.
    fn owed(&self) -> usize {
        let accounted = self.finished.len() + self.refused.len();
        self.taken().saturating_sub(accounted)
    }

    /// How many took the question, ourselves aside.
    fn taken(&self) -> usize {
        let promised = self.promised.clone().unwrap_or_default();
        let ourselves = usize::from(self.came_back && !promised.comes_back);
        promised.nodes.saturating_sub(ourselves)
    }

    /// Of those that are counted some took the question. If more than the rest say that it never came, somebody of them hears
    /// less than it knows.
    fn is_denied_by_too_many(&self) -> bool {
        !self.unasked.is_empty() && self.unasked.len() + self.taken() > self.present
    }

    /// Whether we hear what is answered, as far as can be told.
    fn is_heard(&self) -> bool {
        self.came_back
            || !self
                .promised
                .as_ref()
                .is_some_and(|promised| promised.comes_back)
    }

    fn is_over_for(&self, node: &NodeId) -> bool {
        let over = [&self.finished, &self.unasked, &self.deaf, &self.refused];
        over.into_iter().any(|nodes| nodes.contains(node))
    }

    fn is_counted(&self) -> bool {
        let promised = self.promised.as_ref().filter(|_| !self.uncertain);
        let accounted = self.finished.len() + self.refused.len();
        promised.is_some_and(|promised| accounted >= promised.nodes) && self.is_heard()
    }

    fn no_longer_awaited(&mut self, node: NodeId) {
        if let Some(awaited) = &mut self.awaited {
            awaited.remove(&node);
        }
    }
}

/// What a question brought.
#[derive(Debug)]
pub(crate) struct Answers {
    pub(crate) parts: HashMap<NodeId, Vec<Bytes>>,
    /// Nodes that are there and did not answer, in order.
    pub(crate) missing: Vec<NodeId>,
    /// Whether somebody has not answered; that may be a node that is not known here.
    pub(crate) partial: bool,
}

impl Answers {
    /// Nobody else is asked.
    pub(crate) fn of_nobody() -> Self {
        Self {
            parts: HashMap::new(),
            missing: Vec::new(),
            partial: false,
        }
    }

    /// Nobody could be asked.
    pub(crate) fn without(missing: Vec<NodeId>) -> Self {
        Self {
            parts: HashMap::new(),
            missing,
            partial: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);

    fn answer(gathering: &mut Gathering, node: NodeId) {
        gathering.answered(node, Bytes::from_static(b"{}"), false);
    }

    fn begin(gathering: &mut Gathering, node: NodeId) {
        gathering.answered(node, Bytes::from_static(b"{}"), true);
    }

    fn unasked(gathering: &mut Gathering, node: NodeId) {
        let age = Duration::from_millis(100);
        gathering.unasked(node, age, age);
    }

    fn of(nodes: usize) -> Published {
        Published {
            nodes,
            ..Published::default()
        }
    }

    fn promised(nodes: usize) -> Gathering {
        let mut gathering = Gathering::default();
        gathering.promise(of(nodes));
        gathering
    }

    #[test]
    fn as_many_answers_as_the_bus_promised_end_it() {
        let mut gathering = Gathering::default();
        answer(&mut gathering, A);
        assert!(!gathering.is_complete(), "an answer may overtake the count");
        gathering.promise(of(2));
        begin(&mut gathering, B);
        assert!(!gathering.is_complete(), "more was announced");
        answer(&mut gathering, B);
        assert!(gathering.is_complete());
        answer(&mut gathering, B);
        let answers = gathering.into_answers();
        assert_eq!((answers.parts[&A].len(), answers.parts[&B].len()), (1, 2));
        assert_eq!(answers.missing, []);
        assert!(promised(0).is_complete(), "nobody is asked");
    }

    #[test]
    fn who_stays_silent_is_named() {
        let mut gathering = promised(3);
        answer(&mut gathering, A);
        let mut names = gathering.follow_up([A, B, C]);
        names.sort_unstable();
        assert_eq!(names, [B, C]);
        answer(&mut gathering, C);
        begin(&mut gathering, B);
        assert!(!gathering.is_complete());
        let answers = gathering.into_answers();
        assert_eq!((answers.parts.len(), answers.missing), (2, vec![B]));
    }

    #[test]
    fn who_was_never_asked_neither_counts_nor_is_missing() {
        let mut gathering = promised(2);
        answer(&mut gathering, A);
        gathering.follow_up([A, B, C]);
        unasked(&mut gathering, C);
        assert!(!gathering.is_complete(), "the other one is B");
        assert_eq!(gathering.follow_up([A, B, C]), [B]);
        let answers = gathering.into_answers();
        assert_eq!((answers.parts.len(), answers.missing), (1, vec![B]));
    }

    #[test]
    fn who_did_not_hear_everything_cannot_know_that_it_was_not_asked() {
        let mut gathering = promised(2);
        answer(&mut gathering, A);
        gathering.follow_up([A, B, C]);
        gathering.unasked(C, Duration::ZERO, Duration::from_micros(1));
        assert!(
            !gathering.is_complete(),
            "C stands for nobody who was asked"
        );
        assert_eq!(gathering.follow_up([A, B, C]), [B]);
        let age = Duration::from_millis(100);
        gathering.unasked(B, age - Duration::from_micros(1), age);
        assert_eq!(gathering.follow_up([A, B, C]), [B], "asked once more");
        answer(&mut gathering, B);
        assert!(gathering.is_complete());
        let answers = gathering.into_answers();
        assert_eq!((answers.missing, answers.partial), (vec![C], true));
    }

    #[test]
    fn who_is_silent_at_an_early_end_is_named() {
        let mut gathering = promised(2);
        answer(&mut gathering, A);
        gathering.end([A, B]);
        assert_eq!(gathering.into_answers().missing, [B]);
        let mut gathering = promised(1);
        answer(&mut gathering, A);
        gathering.end([A, B]);
        assert_eq!(gathering.into_answers().missing, [], "nobody else took it");
    }

    #[test]
    fn who_is_reached_after_all_is_not_missing() {
        let mut gathering = promised(2);
        gathering.follow_up([A, B]);
        gathering.unreachable(B);
        answer(&mut gathering, B);
        assert_eq!(gathering.into_answers().missing, [A]);
    }

    #[test]
    fn who_is_cut_off_is_named_and_not_waited_for() {
        let mut gathering = promised(2);
        answer(&mut gathering, A);
        gathering.follow_up([A, B]);
        gathering.unreachable(B);
        assert!(gathering.is_complete());
        assert_eq!(gathering.into_answers().missing, [B]);
    }

    #[test]
    fn a_stranger_that_listens_along_delays_but_does_not_block() {
        let mut gathering = promised(2);
        gathering.follow_up([A]);
        answer(&mut gathering, A);
        assert!(gathering.is_complete());
        assert_eq!(gathering.into_answers().missing, []);
    }

    #[test]
    fn a_node_that_leaves_is_neither_waited_for_nor_missing() {
        let mut gathering = promised(2);
        answer(&mut gathering, A);
        gathering.left(C, true);
        assert!(!gathering.is_complete() && gathering.needs_names());
        gathering.follow_up([A, B]);
        gathering.left(B, true);
        assert!(gathering.is_complete() && !gathering.needs_names());
        let answers = gathering.into_answers();
        assert_eq!((answers.parts.len(), answers.missing), (1, vec![]));
    }

    #[test]
    fn who_refuses_is_named_and_not_waited_for() {
        let mut gathering = promised(2);
        answer(&mut gathering, A);
        gathering.refused(B);
        assert!(gathering.is_complete());
        assert_eq!(gathering.into_answers().missing, [B]);

        let mut gathering = promised(2);
        answer(&mut gathering, A);
        gathering.follow_up([A, B, C]);
        unasked(&mut gathering, C);
        gathering.refused(B);
        assert!(gathering.is_complete());
        assert_eq!(gathering.into_answers().missing, [B]);
    }

    #[test]
    fn who_does_not_hear_itself_believes_no_count() {
        let mut gathering = Gathering::default();
        gathering.promise(Published {
            nodes: 0,
            comes_back: true,
            ..Published::default()
        });
        assert!(!gathering.is_complete());
        gathering.follow_up([]);
        assert!(!gathering.is_complete(), "nobody is known");
        gathering.came_back();
        assert!(gathering.is_complete(), "control");

        let mut deaf = Gathering::default();
        deaf.promise(Published {
            nodes: 0,
            comes_back: true,
            ..Published::default()
        });
        deaf.end([A]);
        let answers = deaf.into_answers();
        assert_eq!((answers.missing, answers.partial), (vec![A], true));
    }

    #[test]
    fn who_took_the_question_and_is_known_to_nobody_is_missing_all_the_same() {
        let mut gathering = promised(2);
        answer(&mut gathering, A);
        gathering.follow_up([A]);
        assert!(gathering.is_complete(), "nobody is waited for");
        let answers = gathering.into_answers();
        assert_eq!((answers.missing, answers.partial), (vec![], true));

        let mut gathering = promised(2);
        answer(&mut gathering, A);
        gathering.left(B, false);
        gathering.follow_up([A]);
        assert!(gathering.into_answers().partial, "it was only not heard");
    }

    #[test]
    fn with_fewer_on_the_bus_than_are_known_counting_ends_nothing() {
        let mut gathering = promised(1);
        answer(&mut gathering, A);
        gathering.present(2, 2, 0);
        assert!(gathering.is_complete(), "control");
        gathering.present(1, 2, 0);
        assert!(!gathering.is_complete() && gathering.needs_names());
        gathering.follow_up([A, B]);
        gathering.unreachable(B);
        assert!(gathering.is_complete());
        let answers = gathering.into_answers();
        assert_eq!((answers.missing, answers.partial), (vec![B], true));
    }

    #[test]
    fn who_says_that_it_never_came_and_is_not_counted_is_not_believed() {
        let of_three = |present, workers| {
            let mut gathering = promised(1);
            gathering.present(present, 3 + workers, workers);
            answer(&mut gathering, A);
            gathering.follow_up([A, B, C]);
            unasked(&mut gathering, B);
            unasked(&mut gathering, C);
            assert!(gathering.is_complete(), "nobody is waited for");
            let answers = gathering.into_answers();
            (answers.missing, answers.partial)
        };
        assert_eq!(of_three(3, 0), (vec![], false), "control");
        assert_eq!(of_three(2, 0), (vec![], true), "one of both is deaf");
        assert_eq!(of_three(4, 1), (vec![], false), "control");
        assert_eq!(of_three(3, 1), (vec![], true), "a worker stands for nobody");
    }
}
