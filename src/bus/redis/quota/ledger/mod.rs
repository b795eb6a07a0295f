//! What a node knows of its seats, and what it has to tell Redis: rules without I/O.
//!
//! Redis decides, since of two nodes that decided by themselves each would give away the last seat. It counts what
//! nodes have written: so whatever of this node's seats may differ from that is written before anything is claimed, and
//! whatever nobody knows the outcome of is written again. Of a seat:
//!
//! ```text
//!             claim                 granted                       a newer socket took it
//!  nothing ----------> Waiting -----------------> Held (since) --------------------------> Lost
//!     ^                   |                         |                                       |
//!     |                   | refused, or released    | released                              | released
//!     +-------------------+-------------------------+---------------------------------------+
//! ```
//!
//! A Redis that does not answer keeps nobody out: then this node's own sockets are counted, and it is said that the
//! others were not. One that answers and has lost what was written is another thing: if it counted as silence, a lost
//! key would let in as many as there are nodes. So a claim waits until the loss is mended, and is refused if that takes
//! too long. Of Redis:
//!
//! ```text
//!             joined            this node's seats, or others', are lost
//!  Starting --------> Joined ------------------------------------------> Patchy
//!                      ^  ^                                                |
//!            joined    |  |   a claim is decided by the seats of all       |
//!  Outage -------------+  +------------------------------------------------+
//!
//!  any of them --> Outage, while Redis does not answer: every claim is decided here, at once
//!  any of them --> Patchy, where it has lost what this node wrote
//! ```

use std::collections::VecDeque;

use indexmap::IndexSet;
use tokio::sync::oneshot;

pub(super) use self::batch::{Batch, Verdict, Writes};
use self::seats::{LedgerSeats, SeatStage};
use crate::model::id::{NodeId, SocketId};
use crate::model::topic::Topic;
use crate::quota::{Decision, SeatLimit};

mod batch;
mod seats;

/// Most users written in one command: 1,000 take Redis about a millisecond.
const WRITES: usize = 1000;
/// Most claims in one pipeline.
const CLAIMS: usize = 256;
/// Most claims that wait for Redis; a further one is decided here.
const QUEUE: usize = 64 * 1024;
/// Users remembered for Redis during an outage; with more, all is written anew.
const REMEMBERED: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Ledger {
    node: NodeId,
    limit: SeatLimit,
    stage: Stage,
    seats: LedgerSeats,
    /// Users of whom Redis may know something else.
    dirty: IndexSet<Topic>,
    /// Redis has to forget all it knows of this node.
    anew: bool,
    /// Redis does not have all that this node holds.
    unwritten: bool,
    queue: VecDeque<(Topic, u64)>,
    /// Claims from before the queue, to be asked again.
    put_off: Vec<(Topic, u64)>,
    news: SeatNews,
}

/// What others are to be told, once nothing is locked: it wakes them.
#[derive(Debug, Default)]
#[must_use = "sockets wait for it"]
pub(super) struct SeatNews {
    /// Sockets of this node that lost their seat.
    pub(super) lost: Vec<u64>,
    answers: Vec<(oneshot::Sender<Decision>, Decision)>,
    /// Nobody wants an answer any more.
    dropped: Vec<oneshot::Sender<Decision>>,
}

impl SeatNews {
    /// Answers the claims.
    pub(super) fn answer(self) {
        for (reply, decision) in self.answers {
            // Fails only when the socket is gone; its release follows.
            let _ = reply.send(decision);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing is known of Redis yet: it is worth waiting for.
    Starting,
    Joined,
    /// Redis answers, and has lost what others wrote, or this node: it is worth waiting for, and who waited too
    /// long is refused. Else a lost key would let in as many as there are nodes.
    Patchy,
    Outage,
}

impl Ledger {
    pub(super) fn new(node: NodeId, limit: SeatLimit) -> Self {
        Self {
            node,
            limit,
            stage: Stage::Starting,
            seats: LedgerSeats::default(),
            dirty: IndexSet::new(),
            anew: true,
            unwritten: true,
            queue: VecDeque::new(),
            put_off: Vec::new(),
            news: SeatNews::default(),
        }
    }

    // For sockets ----------------------------------------------------------------------------------

    /// Asks for a seat. In an outage the answer is there at once.
    pub(super) fn claim(
        &mut self,
        user: &Topic,
        number: u64,
        now: u64,
    ) -> oneshot::Receiver<Decision> {
        let (reply, answer) = oneshot::channel();
        self.seats.insert(user, number, SeatStage::Waiting(reply));
        if self.stage == Stage::Outage || self.queue.len() >= QUEUE {
            self.decide_here(user, number, now);
        } else {
            self.queue.push_back((user.clone(), number));
        }
        answer
    }

    /// Answers a claim that Redis has not answered, by the sockets of this node. Not where Redis answers others:
    /// then it is refused.
    pub(super) fn decide_here(&mut self, user: &Topic, number: u64, now: u64) {
        let Some(reply) = self.seats.take_waiting(user, number) else {
            return;
        };
        // Redis may have granted it all the same.
        self.mark(user);
        let mut held = self.seats.held(user);
        let room = match self.stage {
            Stage::Patchy => None,
            _ => self.limit.make_room(held.len()),
        };
        if let Some(over) = room {
            held.truncate(over);
            held.iter()
                .for_each(|(_, number)| self.lose(user.as_str(), *number));
            self.seats.insert(user, number, SeatStage::Held(now));
        }
        let (granted, checked) = (room.map(|_| Vec::new()), false);
        self.news
            .answers
            .push((reply, Decision { granted, checked }));
    }

    pub(super) fn release(&mut self, user: &Topic, number: u64) {
        match self.seats.remove(user, number) {
            Some(SeatStage::Waiting(reply)) => self.news.dropped.push(reply),
            Some(SeatStage::Held(_) | SeatStage::Lost) => self.mark(user),
            None => {}
        }
    }

    pub(super) fn holds(&self, user: &Topic, number: u64) -> bool {
        self.seats.holds(user, number)
    }

    /// A socket of this node has lost its seat to a newer one.
    pub(super) fn lose(&mut self, user: &str, number: u64) {
        if self.seats.lose(user, number) {
            self.news.lost.push(number);
        }
    }

    pub(super) fn take_news(&mut self) -> SeatNews {
        std::mem::take(&mut self.news)
    }

    // For the writer -------------------------------------------------------------------------------

    /// Nothing is certain of what Redis knows.
    pub(super) fn begin(&mut self) {
        self.anew = true;
    }

    pub(super) fn is_anew(&self) -> bool {
        self.anew
    }

    /// Redis counts this node's seats from now on, and has none of them yet when they were `created`.
    /// Returns whether that ends an outage.
    pub(super) fn joined(&mut self, created: bool) -> bool {
        self.anew = false;
        self.unwritten = created;
        if created {
            self.dirty = self.seats.users().cloned().collect();
        }
        let before = self.stage;
        if before != Stage::Patchy {
            self.stage = Stage::Joined;
        }
        before == Stage::Outage
    }

    /// Redis answers, and no longer knows this node.
    pub(super) fn forgotten(&mut self) {
        self.stage = Stage::Patchy;
    }

    /// Redis does not answer: who waits is answered here. Returns whether an outage begins.
    pub(super) fn outage(&mut self, now: u64) -> bool {
        let before = std::mem::replace(&mut self.stage, Stage::Outage);
        let put_off = std::mem::take(&mut self.put_off);
        for (user, number) in put_off.into_iter().chain(std::mem::take(&mut self.queue)) {
            self.decide_here(&user, number, now);
        }
        if self.dirty.len() > REMEMBERED {
            self.dirty = IndexSet::new();
            self.anew = true;
        }
        before != Stage::Outage
    }

    /// What is to be said next, with claims or without.
    pub(super) fn next_batch(&mut self, claims: bool) -> Batch {
        let mut batch = Batch::default();
        while batch.writes.len() < WRITES
            && let Some(user) = self.dirty.pop()
        {
            let seats = self.seats.written(&user);
            batch.writes.push((user, seats));
        }
        // A claim counts what was written: not before all is.
        if !self.dirty.is_empty() {
            return batch;
        }
        batch.whole = std::mem::take(&mut self.unwritten);
        if !claims {
            return batch;
        }
        for claim in self.put_off.drain(..).rev() {
            self.queue.push_front(claim);
        }
        // While nobody is let in, one finds out for all.
        let most = if self.stage == Stage::Patchy {
            1
        } else {
            CLAIMS
        };
        while batch.claims.len() < most
            && let Some((user, number)) = self.queue.pop_front()
        {
            if self.seats.is_waiting(&user, number) {
                batch.claims.push_back((user, number));
            }
        }
        batch
    }

    /// Redis has answered a claim.
    pub(super) fn answered(&mut self, user: &Topic, number: u64, verdict: Verdict) {
        match verdict {
            Verdict::Missing { .. } => return self.put_off(user, number),
            Verdict::Refused { whole: false } => {}
            Verdict::Granted { .. } | Verdict::Refused { whole: true } => {
                self.stage = Stage::Joined
            }
        }
        let Some(reply) = self.seats.take_waiting(user, number) else {
            // Its socket is gone, or was answered here meanwhile.
            return self.mark(user);
        };
        let (granted, checked) = match verdict {
            Verdict::Granted {
                since,
                replaced,
                whole,
            } => {
                self.seats.insert(user, number, SeatStage::Held(since));
                let node = self.node;
                let (own, others): (Vec<SocketId>, _) =
                    replaced.into_iter().partition(|socket| socket.node == node);
                own.iter()
                    .for_each(|socket| self.lose(user.as_str(), socket.number));
                (Some(others), whole)
            }
            _ => (None, true),
        };
        self.news
            .answers
            .push((reply, Decision { granted, checked }));
    }

    /// Redis decides it when the seats of all nodes are there.
    fn put_off(&mut self, user: &Topic, number: u64) {
        self.stage = Stage::Patchy;
        self.put_off.push((user.clone(), number));
    }

    /// Nobody knows what of it Redis has done.
    pub(super) fn failed(&mut self, batch: Batch) {
        self.unwritten |= batch.whole;
        for (user, _) in batch.writes {
            self.mark(&user);
        }
        for (user, number) in batch.claims.into_iter().rev() {
            self.mark(&user);
            self.queue.push_front((user, number));
        }
    }

    fn mark(&mut self, user: &Topic) {
        // Else everyone will be written.
        if !self.anew {
            self.dirty.insert(user.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::quota::OverLimit;

    const NODE: NodeId = NodeId(1);

    fn ledger(sockets: usize, over: OverLimit) -> Ledger {
        Ledger::new(NODE, SeatLimit { sockets, over })
    }

    fn joined(sockets: usize, over: OverLimit) -> Ledger {
        let mut ledger = ledger(sockets, over);
        ledger.joined(true);
        assert!(ledger.next_batch(true).whole, "there is nothing to write");
        ledger
    }

    /// What sockets are told.
    fn news(ledger: &mut Ledger) -> Vec<u64> {
        let mut news = ledger.take_news();
        let lost = std::mem::take(&mut news.lost);
        news.answer();
        lost
    }

    fn granted_by_redis(since: u64) -> Verdict {
        let (replaced, whole) = (vec![], true);
        Verdict::Granted {
            since,
            replaced,
            whole,
        }
    }

    fn missing() -> Verdict {
        let (nodes, millis) = (vec!["b=1".to_owned()], 0);
        Verdict::Missing { nodes, millis }
    }

    fn user(name: u8) -> Topic {
        Topic::room(&name.to_string()).unwrap()
    }

    fn granted(checked: bool) -> Option<Decision> {
        let granted = Some(vec![]);
        Some(Decision { granted, checked })
    }

    #[test]
    fn what_was_released_is_written_before_anything_is_claimed() {
        let mut ledger = joined(2, OverLimit::Refuse);
        let mut answer = ledger.claim(&user(1), 7, 0);
        assert_eq!(ledger.next_batch(true).claims, [(user(1), 7)]);
        ledger.answered(&user(1), 7, granted_by_redis(5));
        news(&mut ledger);
        assert_eq!(answer.try_recv().ok(), granted(true));
        ledger.release(&user(1), 7);
        let _waits = ledger.claim(&user(2), 8, 0);
        let batch = ledger.next_batch(true);
        assert_eq!(batch.writes, [(user(1), String::new())]);
        assert_eq!(batch.claims, [(user(2), 8)]);
    }

    #[test]
    fn much_is_written_in_steps_and_claims_wait_for_the_last() {
        let mut ledger = joined(1, OverLimit::Refuse);
        let topic = |number: u64| Topic::room(&number.to_string()).unwrap();
        for number in 0..WRITES as u64 + 1 {
            ledger
                .seats
                .insert(&topic(number), number, SeatStage::Held(0));
            ledger.release(&topic(number), number);
        }
        let _waits = ledger.claim(&topic(0), u64::MAX, 0);
        let batch = ledger.next_batch(true);
        assert_eq!((batch.writes.len(), batch.claims.len()), (WRITES, 0));
        let batch = ledger.next_batch(true);
        assert_eq!((batch.writes.len(), batch.claims.len()), (1, 1));
    }

    #[test]
    fn a_seat_granted_to_a_socket_that_left_is_given_back() {
        let mut ledger = joined(2, OverLimit::Refuse);
        let answer = ledger.claim(&user(1), 7, 0);
        ledger.next_batch(true);
        drop(answer);
        ledger.release(&user(1), 7);
        assert!(
            ledger.next_batch(true).is_empty(),
            "redis has not granted it"
        );
        ledger.answered(&user(1), 7, granted_by_redis(5));
        news(&mut ledger);
        assert_eq!(ledger.next_batch(true).writes, [(user(1), String::new())]);
    }

    #[test]
    fn in_an_outage_the_limit_is_this_nodes() {
        let mut ledger = joined(2, OverLimit::Refuse);
        let mut waiting = ledger.claim(&user(1), 1, 10);
        assert!(ledger.outage(11), "it begins");
        assert!(!ledger.outage(12), "it goes on");
        news(&mut ledger);
        assert_eq!(waiting.try_recv().ok(), granted(false));
        let mut second = ledger.claim(&user(1), 2, 12);
        let mut third = ledger.claim(&user(1), 3, 13);
        news(&mut ledger);
        assert_eq!(second.try_recv().ok(), granted(false));
        let refused = third.try_recv().unwrap();
        assert_eq!((refused.granted, refused.checked), (None, false));
        assert!(ledger.joined(true), "it is over");
        let written = (user(1), "11:1,12:2,".to_owned());
        assert_eq!(ledger.next_batch(true).writes, [written]);
    }

    #[test]
    fn in_an_outage_the_oldest_of_this_node_goes() {
        let mut ledger = joined(2, OverLimit::CloseOldest);
        ledger.outage(0);
        let mut lost = Vec::new();
        for (number, since) in [(1, 20), (2, 10), (3, 30)] {
            let mut answer = ledger.claim(&user(1), number, since);
            lost.extend(news(&mut ledger));
            assert_eq!(answer.try_recv().ok(), granted(false));
        }
        assert_eq!(lost, [2]);
        assert!(!ledger.holds(&user(1), 2) && ledger.holds(&user(1), 3));
    }

    #[test]
    fn what_redis_cannot_count_waits_and_is_refused_in_the_end() {
        let mut ledger = joined(2, OverLimit::Refuse);
        let mut answers = [1, 2, 3].map(|number| ledger.claim(&user(1), number, 0));
        assert_eq!(ledger.next_batch(true).claims.len(), 3);
        for number in [1, 2] {
            ledger.answered(&user(1), number, missing());
        }
        ledger.answered(&user(1), 3, granted_by_redis(5));
        news(&mut ledger);
        assert_eq!(answers[2].try_recv().ok(), granted(true));
        ledger.forgotten();
        assert!(ledger.next_batch(false).is_empty(), "not yet");
        assert_eq!(
            ledger.next_batch(true).claims,
            [(user(1), 1)],
            "one asks for all"
        );
        ledger.answered(&user(1), 1, missing());
        ledger.decide_here(&user(1), 1, 9);
        news(&mut ledger);
        let refused = answers[0].try_recv().unwrap();
        assert_eq!((refused.granted, refused.checked), (None, false));
        assert_eq!(
            ledger.next_batch(true).claims,
            [(user(1), 2)],
            "the first is over"
        );
        ledger.answered(&user(1), 2, missing());
        assert!(ledger.outage(9), "it is this node's count again");
        news(&mut ledger);
        assert_eq!(answers[1].try_recv().ok(), granted(false));
    }

    #[test]
    fn all_is_written_before_redis_calls_it_whole() {
        let mut ledger = joined(1, OverLimit::Refuse);
        for number in 0..WRITES as u64 + 1 {
            ledger.seats.insert(
                &Topic::room(&number.to_string()).unwrap(),
                number,
                SeatStage::Held(0),
            );
        }
        ledger.joined(true);
        let first = ledger.next_batch(true);
        assert_eq!((first.writes.len(), first.whole), (WRITES, false));
        let second = ledger.next_batch(true);
        assert_eq!((second.writes.len(), second.whole), (1, true));
        assert!(ledger.next_batch(true).is_empty());
        ledger.failed(second);
        assert!(ledger.next_batch(true).whole, "it is said again");
        ledger.joined(false);
        assert!(!ledger.next_batch(true).whole, "redis has it");
    }

    #[test]
    fn a_million_users_who_leave_in_an_outage_are_not_remembered() {
        let mut ledger = joined(1, OverLimit::Refuse);
        ledger.outage(0);
        for number in 0..=REMEMBERED as u64 {
            let user = Topic::room(&number.to_string()).unwrap();
            drop(ledger.claim(&user, number, 0));
            ledger.release(&user, number);
            news(&mut ledger);
        }
        ledger.outage(1);
        assert!(ledger.is_anew() && ledger.dirty.is_empty());
    }

    /// A Redis of one node: what its hash holds of each user.
    #[derive(Default)]
    struct Hash(HashMap<Topic, String>, Whole);

    /// Whether all that the node holds was written to it.
    type Whole = bool;

    impl Hash {
        fn write(&mut self, batch: &Batch) {
            self.1 |= batch.whole;
            for (user, seats) in &batch.writes {
                match seats.is_empty() {
                    true => self.0.remove(user),
                    false => self.0.insert(user.clone(), seats.clone()),
                };
            }
        }

        fn claim(&mut self, user: &Topic, number: u64, limit: usize, now: u64) -> Verdict {
            let seats = self.0.entry(user.clone()).or_default();
            if seats.matches(',').count() >= limit {
                return Verdict::Refused { whole: true };
            }
            *seats += &format!("{now}:{number:x},");
            granted_by_redis(now)
        }
    }

    #[derive(Debug, Clone)]
    enum Event {
        Claim(u8),
        Release(prop::sample::Index),
        /// A batch, of which so many commands are answered and one more is carried out without.
        Batch(usize),
        /// A batch whose claims Redis puts off, since somebody's seats are lost.
        PutOff,
        Outage,
        /// Redis was reached again, with its data or without.
        Joined(bool),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0..3u8).prop_map(Event::Claim),
            3 => any::<prop::sample::Index>().prop_map(Event::Release),
            3 => (0..4usize).prop_map(Event::Batch),
            1 => Just(Event::PutOff),
            1 => Just(Event::Outage),
            1 => any::<bool>().prop_map(Event::Joined),
        ]
    }

    proptest! {
        /// Whatever fails in between: in the end Redis knows exactly the seats that are held here, and
        /// everyone who asked has an answer.
        #[test]
        fn redis_ends_with_the_truth(events in prop::collection::vec(event(), 1..80)) {
            const LIMIT: usize = 2;
            let (mut ledger, mut redis) = (ledger(LIMIT, OverLimit::Refuse), Hash::default());
            let mut up = false;
            let mut asked: Vec<(Topic, u64, oneshot::Receiver<Decision>)> = Vec::new();
            // One claim ends what was put off.
            let all_said = [Event::Batch(usize::MAX), Event::Batch(usize::MAX), Event::Batch(usize::MAX)];
            let end = [Event::Joined(true)].into_iter().chain(all_said);
            for (now, event) in events.into_iter().chain(end).enumerate() {
                let now = now as u64;
                match event {
                    Event::Claim(name) => {
                        let answer = ledger.claim(&user(name), now, now);
                        asked.push((user(name), now, answer));
                    }
                    Event::Release(_) if asked.is_empty() => {}
                    Event::Release(which) => {
                        let (user, number, _) = asked.swap_remove(which.index(asked.len()));
                        ledger.release(&user, number);
                    }
                    Event::Batch(_) | Event::PutOff if !up => {}
                    Event::PutOff => {
                        let batch = ledger.next_batch(true);
                        redis.write(&batch);
                        for (user, number) in batch.claims {
                            ledger.answered(&user, number, missing());
                        }
                    }
                    Event::Batch(answered) => {
                        let mut batch = ledger.next_batch(true);
                        redis.write(&batch);
                        if answered > 0 {
                            batch.writes.clear();
                            batch.whole = false;
                        }
                        for _ in 0..answered {
                            let Some((user, number)) = batch.claims.pop_front() else { break };
                            ledger.answered(&user, number, redis.claim(&user, number, LIMIT, now));
                        }
                        if let Some((user, number)) = batch.claims.front() {
                            redis.claim(user, *number, LIMIT, now);
                        }
                        up = batch.is_empty();
                        ledger.failed(batch);
                    }
                    Event::Outage => {
                        up = false;
                        ledger.outage(now);
                    }
                    Event::Joined(kept) => {
                        let created = ledger.is_anew() || !kept || !redis.1;
                        if created {
                            redis = Hash::default();
                        }
                        ledger.joined(created);
                        up = true;
                    }
                }
            }
            news(&mut ledger);
            let mut truth: HashMap<Topic, usize> = HashMap::new();
            for (user, number, mut answer) in asked {
                let decision = answer.try_recv().expect("an answer");
                prop_assert_eq!(decision.granted.is_some(), ledger.holds(&user, number));
                if decision.granted.is_some() {
                    *truth.entry(user).or_default() += 1;
                }
            }
            prop_assert!(truth.values().all(|held| *held <= LIMIT));
            let known = redis.0.iter().map(|(user, seats)| (user.clone(), seats.matches(',').count()));
            prop_assert_eq!(known.filter(|(_, held)| *held > 0).collect::<HashMap<_, _>>(), truth);
            for user in (0..3).map(user) {
                prop_assert_eq!(redis.0.get(&user).cloned().unwrap_or_default().len(), ledger.seats.written(&user).len());
            }
        }
    }
}
