//! The turns that have left on a long link and are not answered: several pipelines, one behind the other.
//!
//! Only of what is never published again, whatever Redis says to it: else what follows would be there before it. So nothing that is
//! kept is among them, no probe, and of large unions one at a time, whose next part waits for the answer to this one.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::backlog::{Backlog, LATE, Turn, UNANSWERED};
use super::pipeline::{BROKEN, Pipeline, PublishReply, Unusable};
use super::stride::Stride;
use crate::bus::wire;
use crate::model::error::PublishError;

/// So many are used again.
const SPARE: usize = 16;

#[derive(Debug, Default)]
pub(super) struct PublishTurns {
    unanswered: VecDeque<Unanswered>,
    /// To the first of them.
    replies: VecDeque<PublishReply>,
    spare: Vec<Turn>,
}

#[derive(Debug)]
struct Unanswered {
    turn: Turn,
    owed: usize,
    /// The publication that is written next, and the channel of its part.
    next: (usize, usize),
    /// When somebody has waited long enough; or, where nobody waits any more, when it is given up.
    deadline: Instant,
    until: Instant,
}

impl PublishTurns {
    /// Has one turn follow the other, until all are answered and what is next goes alone, or nothing is. `more` takes over what was
    /// queued, `filled` tells of it. Cancelled, or after an error, the connection is useless, and all have to [fail](Self::fail).
    pub(super) async fn run(
        &mut self,
        (open, stride): (&mut Pipeline, &mut Stride),
        backlog: &mut Backlog,
        mut more: impl FnMut(&mut Backlog),
        filled: &Notify,
        patience: Duration,
    ) -> Result<(), Unusable> {
        loop {
            more(backlog);
            let now = Instant::now();
            backlog.expire(LATE);
            self.expire(now)?;
            self.fill(open);
            let may_follow = stride.is_long() && open.is_written() && !backlog.goes_alone();
            let has_next = may_follow && backlog.has_next(!self.has_large());
            let next = match has_next {
                true => stride.next(backlog.is_full(), now),
                false => None,
            };
            if next.is_some_and(|next| next <= now) {
                let (messages, bytes) = self.leave(backlog, now + patience);
                stride.left(messages, bytes, now);
                self.fill(open);
            } else if self.unanswered.is_empty() {
                return Ok(());
            }
            let deadlines = self.unanswered.iter().map(|one| one.deadline);
            let wake = deadlines.chain(next).chain(backlog.next_deadline()).min();
            let mut pumped = Ok(());
            tokio::select! {
                biased;
                done = open.pump(&mut self.replies) => pumped = done,
                () = filled.notified(), if may_follow && !has_next => {}
                () = sleep_until(wake.unwrap_or(now)) => {}
            }
            self.answer(backlog, stride)?;
            pumped?;
        }
    }

    /// Nobody knows what became of them.
    pub(super) fn fail(&mut self, error: &PublishError, backlog: &mut Backlog) {
        for mut one in self.unanswered.drain(..) {
            one.turn.fail(error, backlog, None);
        }
        self.replies.clear();
    }

    fn has_large(&self) -> bool {
        let turns = self.unanswered.iter().map(|one| &one.turn);
        // The last of its turn.
        let last = turns.filter_map(|turn| turn.publications.last());
        last.into_iter().any(|publication| publication.is_large())
    }

    /// How many messages leave, and bytes of payload.
    fn leave(&mut self, backlog: &mut Backlog, until: Instant) -> (usize, usize) {
        let mut turn = self.spare.pop().unwrap_or_default();
        let has_large = self.has_large();
        backlog.take_next(&mut turn, !has_large);
        let (mut owed, mut bytes) = (0, 0);
        for publication in &turn.publications {
            owed += publication.part().len();
            bytes += publication.part().len() * publication.envelope.len();
        }
        let deadline = turn.waiters.deadline().unwrap_or(until);
        self.unanswered.push_back(Unanswered {
            turn,
            owed,
            next: (0, 0),
            deadline,
            until,
        });
        (owed, bytes)
    }

    /// Adds as much of the last to what is written as there is room for.
    fn fill(&mut self, open: &mut Pipeline) {
        let Some(last) = self.unanswered.back_mut() else {
            return;
        };
        while open.has_room()
            && let Some(publication) = last.turn.publications.get(last.next.0)
        {
            let Some(channel) = publication.part().get(last.next.1) else {
                last.next = (last.next.0 + 1, 0);
                continue;
            };
            let stamp = publication.era.map(wire::stamp);
            let stamp = stamp.as_ref().map_or(&[][..], |stamp| stamp);
            open.put(channel, (stamp, &publication.envelope));
            last.next.1 += 1;
        }
    }

    /// Tells those who have waited long enough.
    fn expire(&mut self, now: Instant) -> Result<(), Unusable> {
        for one in &mut self.unanswered {
            if now < one.deadline {
                continue;
            }
            one.deadline = one.turn.waiters.expire(now).unwrap_or(one.until);
            if one.deadline <= now {
                return Err(UNANSWERED.into());
            }
        }
        Ok(())
    }

    fn answer(&mut self, backlog: &mut Backlog, stride: &mut Stride) -> Result<(), Unusable> {
        while let Some(first) = self.unanswered.front()
            && first.owed <= self.replies.len()
        {
            if first.next.0 < first.turn.publications.len() {
                return Err(BROKEN.into());
            }
            stride.answered(Instant::now());
            let Some(mut first) = self.unanswered.pop_front() else {
                break;
            };
            first.turn.answer(self.replies.drain(..first.owed), backlog);
            if self.spare.len() < SPARE {
                self.spare.push(first.turn);
            }
        }
        match self.unanswered.is_empty() && !self.replies.is_empty() {
            true => Err(BROKEN.into()),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::{Bytes, BytesMut};
    use smallvec::SmallVec;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::sync::{mpsc, oneshot};

    use super::*;
    use crate::bus::redis::publication::{PART, Publication, PublicationAnswer};
    use crate::bus::redis::queue::{Queue, Queued, Waiter};
    use crate::bus::scope::Size;

    const LENGTH: Duration = Duration::from_millis(20);
    const PATIENCE: Duration = Duration::from_secs(1);

    /// So many channels of this name, for whoever waits so long.
    fn queued(
        name: &str,
        channels: usize,
        patience: Duration,
    ) -> ((Publication, Waiter), oneshot::Receiver<PublicationAnswer>) {
        let (reply, answer) = oneshot::channel();
        let size = match channels {
            0..=64 => Size::Small,
            _ => Size::Large,
        };
        let channels: SmallVec<_> = (0..channels).map(|_| name.to_owned()).collect();
        let publication = Publication::new(channels, Bytes::from_static(b"x"), size, None);
        let queued = Queued::new(publication, Instant::now() + patience, reply);
        let queue = Arc::new(Queue::default());
        (queued.admitted(&queue, Waiter::new), answer)
    }

    /// A link of this length, on which one answer has come.
    fn long() -> Stride {
        let (mut stride, now) = (Stride::default(), Instant::now());
        stride.left(1, 1, now);
        stride.answered(now + LENGTH);
        stride
    }

    /// Redis at the other end of a link: by their channels what came, and how many were not answered at most.
    async fn serve(stream: DuplexStream, answers_after: Duration) -> (Vec<String>, usize) {
        let (mut from, mut to) = tokio::io::split(stream);
        let (sender, mut due) = mpsc::unbounded_channel();
        let answering = async {
            let mut answered = 0;
            while let Some((at, count)) = due.recv().await {
                sleep_until(at).await;
                answered += count;
                let answers = ":1\r\n".repeat(count);
                if to.write_all(answers.as_bytes()).await.is_err() {
                    break;
                }
            }
            answered
        };
        let reading = async move {
            let (mut buffer, mut came, mut times) = (BytesMut::new(), Vec::new(), Vec::new());
            while from
                .read_buf(&mut buffer)
                .await
                .is_ok_and(|count| count > 0)
            {
                let text = String::from_utf8(buffer.to_vec()).unwrap();
                let whole = text.rfind("$1\r\nx\r\n").map_or(0, |end| end + 7);
                let names = text[..whole].split("PUBLISH\r\n").skip(1);
                let names: Vec<_> = names
                    .map(|rest| rest.split("\r\n").nth(1).unwrap().to_owned())
                    .collect();
                let _ = buffer.split_to(whole);
                let now = Instant::now();
                times.push((now, names.len()));
                sender.send((now + answers_after, names.len())).unwrap();
                came.extend(names);
            }
            let under_way = |(now, _): &(Instant, usize)| {
                let recent = times
                    .iter()
                    .filter(|(at, _)| at <= now && *now < *at + answers_after);
                recent.map(|(_, count)| count).sum::<usize>()
            };
            let most = times.iter().map(under_way).max().unwrap_or_default();
            (came, most)
        };
        tokio::join!(reading, answering).0
    }

    /// All of it, until nothing is left to be done, and what Redis saw.
    async fn published(
        backlog: &mut Backlog,
        answers_after: Duration,
    ) -> (Result<(), Unusable>, PublishTurns, Vec<String>, usize) {
        let (stream, server) = tokio::io::duplex(1024);
        let serving = tokio::spawn(serve(server, answers_after));
        let (mut open, mut turns, mut stride) =
            (Pipeline::over(stream), PublishTurns::default(), long());
        let filled = Notify::new();
        let of = (&mut open, &mut stride);
        let done = turns.run(of, backlog, |_| {}, &filled, PATIENCE).await;
        drop(open);
        let (came, most) = serving.await.unwrap();
        (done, turns, came, most)
    }

    #[tokio::test(start_paused = true)]
    async fn large_unions_follow_one_another_and_small_ones_follow_all() {
        let mut backlog = Backlog::default();
        let mut answers = Vec::new();
        for (name, channels) in [("a", PART + 44), ("b", PART + 44)] {
            let (union, answer) = queued(name, channels, PATIENCE);
            backlog.admit(union);
            answers.push(answer);
        }
        for _ in 0..300 {
            let (small, answer) = queued("c", 1, PATIENCE);
            backlog.admit(small);
            answers.push(answer);
        }
        let (done, _, came, most) = published(&mut backlog, LENGTH).await;
        done.unwrap();
        assert!(
            most > 256 + PART,
            "control: {most} at once are several turns"
        );
        let unions: Vec<&String> = came.iter().filter(|name| *name != "c").collect();
        assert_eq!(unions.len(), 2 * (PART + 44));
        assert!(
            unions.is_sorted(),
            "nothing of the second before all of the first"
        );
        for answer in &mut answers {
            assert!(answer.try_recv().unwrap().unwrap().receivers > 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_reads_no_more_before_its_answers_are_read_takes_all() {
        let mut backlog = Backlog::default();
        let answers: Vec<_> = (0..200)
            .map(|_| {
                let (small, answer) = queued("c", 1, PATIENCE);
                backlog.admit(small);
                answer
            })
            .collect();
        let (stream, mut server) = tokio::io::duplex(64);
        tokio::spawn(async move {
            let mut buffer = BytesMut::new();
            while server
                .read_buf(&mut buffer)
                .await
                .is_ok_and(|count| count > 0)
            {
                while let Some(end) = buffer.windows(7).position(|end| end == b"$1\r\nx\r\n") {
                    let _ = buffer.split_to(end + 7);
                    server.write_all(b":1\r\n").await.unwrap();
                }
            }
        });
        let (mut open, mut turns, mut stride) =
            (Pipeline::over(stream), PublishTurns::default(), long());
        let (of, filled) = ((&mut open, &mut stride), Notify::new());
        let run = turns.run(of, &mut backlog, |_| {}, &filled, PATIENCE);
        run.await.unwrap();
        for answer in answers {
            assert_eq!(answer.await.unwrap().unwrap().receivers, 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_impatient_is_told_and_costs_the_others_nothing() {
        let mut backlog = Backlog::default();
        let (hasty, early) = queued("a", 1, PATIENCE / 10);
        let (patient, late) = queued("b", 1, PATIENCE);
        backlog.admit(hasty);
        backlog.admit(patient);
        let (done, _, came, _) = published(&mut backlog, PATIENCE / 2).await;
        done.unwrap();
        assert!(early.await.unwrap().unwrap_err().maybe_sent, "it was");
        assert_eq!(late.await.unwrap().unwrap().receivers, 1);
        assert_eq!(came, ["a", "b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_answered_fails_when_nobody_waits_for_it_any_more() {
        let mut backlog = Backlog::default();
        let (small, answer) = queued("a", 1, PATIENCE);
        backlog.admit(small);
        let (unions, more) = queued("b", PART + 1, PATIENCE);
        backlog.admit(unions);
        let (done, mut turns, ..) = published(&mut backlog, 10 * PATIENCE).await;
        let error = PublishError::maybe_sent(done.unwrap_err().reason);
        turns.fail(&error, &mut backlog);
        assert!(turns.unanswered.is_empty() && turns.replies.is_empty());
        for answer in [answer, more] {
            assert!(answer.await.unwrap().unwrap_err().maybe_sent);
        }
    }
}
