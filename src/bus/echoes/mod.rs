//! What this node sends and keeps comes to its own sockets when it comes back, in the order that all get. What the bus refuses is
//! delivered at once instead, or [behind](deferred) what was taken before it, and may come back all the same.
//!
//! ```text
//!           comes back on a topic: delivered, and remembered
//!             +----+
//!             |    v
//!  begin --> begun ---- taken --> what has not come back is awaited; what comes back later is delivered
//!                  ---- failed -> where it has not come back it is delivered, if nothing is awaited there at once; what comes
//!                                 back later is a copy
//! ```

mod deferred;

use std::collections::HashMap;

use smallvec::SmallVec;
use tokio::time::Instant;

use self::deferred::{Deferred, DeferredSend};
use crate::bus::seen::Seen;
use crate::model::id::NodeId;
use crate::model::topic::{Topic, TopicRef};

/// Of one node, by the numbers of its sends; `T` is what of them is delivered here.
#[derive(Debug)]
pub(crate) struct Echoes<T> {
    node: NodeId,
    /// Which of those that have no answer came back, and where.
    begun: HashMap<u64, SmallVec<[Topic; 1]>>,
    /// Delivered without having come back.
    delivered: Seen,
    deferred: Deferred<T>,
}

/// What is to be done when something comes back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Came<T> {
    pub(crate) is_due: bool,
    /// To be delivered before it, whether it is due or not, …
    pub(crate) before: Vec<T>,
    /// … and behind it.
    pub(crate) after: Vec<T>,
}

/// What is to be done about something that failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FailedSend<T> {
    /// On these topics it came back already, or it waits.
    pub(crate) elsewhere: SmallVec<[Topic; 1]>,
    pub(crate) waits: bool,
    /// To be delivered at once, there was too much of it.
    pub(crate) let_go: Vec<T>,
}

impl<T> Came<T> {
    /// Nothing is to be done.
    pub(crate) fn nothing() -> Self {
        Self {
            is_due: false,
            before: Vec::new(),
            after: Vec::new(),
        }
    }

    pub(crate) fn is_alone(&self) -> bool {
        self.before.is_empty() && self.after.is_empty()
    }
}

impl<T> Echoes<T> {
    pub(crate) fn new(node: NodeId) -> Self {
        Self {
            node,
            begun: HashMap::new(),
            delivered: Seen::default(),
            deferred: Deferred::default(),
        }
    }

    pub(crate) fn begin(&mut self, number: u64) {
        self.begun.insert(number, SmallVec::new());
    }

    /// It came back for these topics: one, or all of a union.
    pub(crate) fn came(&mut self, number: u64, topics: &[&str]) -> Came<T> {
        let came = self.deferred.came(number, topics);
        let is_due = match self.begun.get_mut(&number) {
            Some(begun) => {
                let topics = topics.iter().filter_map(|topic| TopicRef::of(topic));
                begun.extend(topics.map(TopicRef::to_topic));
                true
            }
            None => came.is_itself || !self.delivered.contains_lately(self.node, number),
        };
        Came {
            is_due,
            before: came.before,
            after: came.after,
        }
    }

    /// Nobody waits for the answer any more.
    pub(crate) fn end(&mut self, number: u64) {
        self.begun.remove(&number);
    }

    /// The bus took it. Where it has not come back to these topics it is awaited, whether or not somebody is here already.
    pub(crate) fn took(&mut self, number: u64, topics: &[Topic], is_here: bool, now: Instant) {
        let came = self.begun.remove(&number).unwrap_or_default();
        let missing = topics.iter().filter(|topic| !came.contains(topic));
        self.deferred.took(number, missing, is_here, now);
    }

    /// The bus refused it, or gave no answer. Of each topic, whether somebody is on it here: for the others nothing has to wait.
    /// `of` says what of it is delivered on topics, and its size: on each alone, or of a union on all at once.
    pub(crate) fn fail(
        &mut self,
        number: u64,
        topics: &[(Topic, bool)],
        is_union: bool,
        now: Instant,
        of: impl Fn(&Topic) -> (usize, T),
    ) -> FailedSend<T> {
        self.delivered.insert(self.node, number);
        let mut failed = FailedSend {
            elsewhere: self.begun.remove(&number).unwrap_or_default(),
            waits: false,
            let_go: Vec::new(),
        };
        let units = match is_union {
            true => topics.chunks(topics.len().max(1)),
            false => topics.chunks(1),
        };
        for topics in units {
            let all = topics.iter().map(|(topic, _)| topic);
            let came = all.clone().any(|topic| failed.elsewhere.contains(topic));
            let heard = topics.iter().filter(|(_, is_heard)| *is_heard);
            let heard: SmallVec<[Topic; 1]> = heard.map(|(topic, _)| topic.clone()).collect();
            if came || !self.deferred.is_behind(&heard) {
                continue;
            }
            let (bytes, what) = of(&topics[0].0);
            failed.waits = true;
            failed.elsewhere.extend(all.cloned());
            failed.let_go.extend(self.deferred.wait(DeferredSend {
                number,
                topics: heard,
                since: now,
                bytes,
                what,
            }));
        }
        failed
    }

    /// What was taken by then on such topics has come back, or will not. What is to be delivered now.
    pub(crate) fn settle(&mut self, is_settled: impl Fn(&Topic, Instant) -> bool) -> Vec<T> {
        self.deferred.settle(is_settled)
    }

    /// What has waited too long, and is to be delivered now; and when there is more.
    pub(crate) fn overdue(&mut self, now: Instant) -> (Vec<T>, Option<Instant>) {
        (self.deferred.overdue(now), self.deferred.until())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics(names: &[&str]) -> Vec<Topic> {
        let named = names.iter().filter_map(|name| TopicRef::of(name));
        named.map(TopicRef::to_topic).collect()
    }

    fn names(topics: &[Topic]) -> Vec<&str> {
        topics.iter().map(Topic::as_str).collect()
    }

    /// What is delivered of a send on a topic.
    type Copy = (u64, String);

    fn copy(number: u64, topic: &str) -> Copy {
        (number, topic.to_owned())
    }

    struct World(Echoes<Copy>);

    impl World {
        fn new(begun: impl IntoIterator<Item = u64>) -> Self {
            let mut echoes = Echoes::new(NodeId(1));
            begun.into_iter().for_each(|number| echoes.begin(number));
            Self(echoes)
        }

        fn took(&mut self, number: u64, names: &[&str]) {
            self.0.took(number, &topics(names), true, Instant::now());
        }

        /// Where it is not to be delivered at once.
        fn fail(&mut self, number: u64, names: &[&str], is_union: bool) -> Vec<String> {
            let of = |topic: &Topic| (1, copy(number, topic.as_str()));
            let topics = topics(names).into_iter();
            let heard: Vec<_> = topics
                .map(|topic| (topic.clone(), !topic.as_str().ends_with("away")))
                .collect();
            let failed = self.0.fail(number, &heard, is_union, Instant::now(), of);
            assert_eq!(failed.let_go, []);
            let elsewhere = self::names(&failed.elsewhere).into_iter();
            elsewhere.map(str::to_owned).collect()
        }

        fn comes(&mut self, number: u64, names: &[&str]) -> bool {
            let came = self.0.came(number, names);
            assert!(came.is_alone(), "{came:?}");
            came.is_due
        }
    }

    #[test]
    fn what_is_sent_is_delivered_once_on_each_topic_whatever_becomes_of_it() {
        let mut world = World::new([7, 8]);
        assert!(world.comes(7, &["u:a"]), "before the answer");
        world.took(7, &["u:a", "u:b"]);
        assert!(world.comes(7, &["u:b"]), "after it");

        assert!(world.comes(8, &["u:a"]));
        assert_eq!(world.fail(8, &["u:a", "u:b"], false), ["u:a"]);
        assert!(!world.comes(8, &["u:b"]), "it was delivered at once");
        assert!(world.comes(9, &["u:b"]), "of a call that was cancelled");
        assert!(world.0.begun.is_empty());
    }

    #[test]
    fn what_is_older_than_everything_that_failed_is_no_copy() {
        let mut world = World::new([1_000_000]);
        world.fail(1_000_000, &["u:a"], false);
        assert!(world.comes(5, &["u:a"]));
    }

    #[test]
    fn what_failed_waits_where_something_is_awaited_and_nowhere_else() {
        let mut world = World::new(1..6);
        world.took(1, &["u:a", "u:b"]);
        assert_eq!(world.fail(2, &["u:a", "u:c"], false), ["u:a"]);
        assert_eq!(world.fail(3, &["u:c"], false), [""; 0]);
        assert_eq!(world.fail(4, &["u:a"], false), ["u:a"], "behind another");
        assert!(world.comes(1, &["u:b"]));
        let came = world.0.came(1, &["u:a"]);
        assert!(came.is_due && came.before.is_empty());
        assert_eq!(came.after, [copy(2, "u:a"), copy(4, "u:a")]);
        assert_eq!(world.fail(5, &["u:a"], false), [""; 0]);
        assert!(!world.comes(2, &["u:a"]), "it was delivered");
    }

    #[test]
    fn what_failed_does_not_wait_where_nobody_is() {
        let mut world = World::new(1..5);
        world.took(1, &["u:away"]);
        assert_eq!(world.fail(2, &["u:away"], false), [""; 0]);
        assert_eq!(world.fail(3, &["u:away", "r:x"], true), [""; 0]);
        world.took(1, &["r:x"]);
        let waits = world.fail(4, &["u:away", "r:x"], true);
        assert_eq!(waits, ["u:away", "r:x"], "of a union all, behind one");
        assert_eq!(world.0.came(1, &["r:x"]).after, [copy(4, "u:away")]);
    }

    #[test]
    fn what_waits_comes_before_what_was_sent_later() {
        let mut world = World::new(1..6);
        world.took(1, &["r:x"]);
        world.fail(2, &["r:x", "r:y"], true);
        world.fail(3, &["r:y"], false);
        world.took(4, &["r:y"]);
        let came = world.0.came(4, &["r:y"]);
        assert_eq!(came.before, [copy(2, "r:x"), copy(3, "r:y")]);
        assert!(world.comes(1, &["r:x"]), "late, as all of a broken link");
        assert_eq!(world.0.deferred.until(), None);
    }

    #[test]
    fn what_waits_and_comes_itself_was_taken_all_the_same() {
        let mut world = World::new(1..3);
        world.took(1, &["r:x"]);
        assert_eq!(world.fail(2, &["r:x", "r:y"], true), ["r:x", "r:y"]);
        assert!(world.comes(2, &["r:x", "r:y"]), "as it is kept");
        assert!(!world.comes(2, &["r:x", "r:y"]), "once");
        assert!(world.comes(1, &["r:x"]));
    }

    #[test]
    fn what_will_not_come_back_is_waited_for_until_that_is_known() {
        let mut world = World::new(1..4);
        world.took(1, &["r:x", "r:y"]);
        world.fail(2, &["r:x"], false);
        world.fail(3, &["r:y"], false);
        assert_eq!(world.0.settle(|_, at| at < Instant::now() - LONG), []);
        let settled = world.0.settle(|topic, _| topic.as_str() == "r:x");
        assert_eq!(settled, [copy(2, "r:x")]);
        let (overdue, next) = world.0.overdue(Instant::now());
        assert_eq!((overdue, next.is_some()), (Vec::new(), true));
        let (overdue, next) = world.0.overdue(Instant::now() + LONG);
        assert_eq!((overdue, next), (vec![copy(3, "r:y")], None));
    }

    #[test]
    fn no_more_waits_than_there_is_room_for() {
        let mut echoes = Echoes::new(NodeId(1));
        let (topics, now) = (topics(&["r:x"]), Instant::now());
        echoes.took(1, &topics, true, now);
        let heard = [(topics[0].clone(), true)];
        let mut fail = |number| echoes.fail(number, &heard, false, now, |_| (3 << 20, number));
        assert!(fail(2).let_go.is_empty());
        assert!(fail(3).let_go.is_empty());
        let failed = fail(4);
        assert_eq!((failed.let_go, failed.waits), (vec![2, 3, 4], true));
    }

    const LONG: std::time::Duration = std::time::Duration::from_secs(60);
}
