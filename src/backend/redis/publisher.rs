//! The publishing side: one task, one connection, everything queued at once in one pipeline.
//!
//! The next pipeline is written when the last is answered, so a busy node batches by itself, a quiet
//! one waits for nothing, and the order of a sender holds even across a reconnect. (Measured: 836 k
//! messages/s at 1.2 µs against 59 k at 16 µs with a pool checkout per message.)

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::Either;
use futures::{FutureExt, TryFutureExt};
use smallvec::{SmallVec, smallvec};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::advice::Advice;
use super::endpoint::Endpoint;
use super::pipeline::{Counted, Pipeline, Unusable};
use crate::error::PublishError;

/// Most publications in one pipeline.
const BATCH: usize = 256;
/// What may be queued, in units of [`UNIT`] bytes of payload; every publication takes at least one.
const QUEUE: usize = 64 * 1024;
const UNIT: usize = 1024;
/// After a failed connect the next one waits this long; publications fail at once meanwhile.
const PAUSE: Duration = Duration::from_millis(50);

/// Where publications go.
#[derive(Debug)]
pub(crate) struct Publisher {
    queue: mpsc::UnboundedSender<(Publication, Waiter)>,
    /// Bounds the queue in messages and bytes alike.
    room: Arc<Semaphore>,
    deadline: Duration,
}

/// The other end of the queue.
#[derive(Debug)]
pub(crate) struct PublishQueue {
    waiting: mpsc::UnboundedReceiver<(Publication, Waiter)>,
    endpoint: Arc<Endpoint>,
    advice: Arc<Advice>,
}

#[derive(Debug)]
struct Publication {
    channels: SmallVec<[String; 1]>,
    envelope: Bytes,
    /// It wants to know whether it went to a replica.
    is_probe: bool,
}

/// Who waits for a publication.
#[derive(Debug)]
struct Waiter {
    deadline: Instant,
    /// Taken by the first answer.
    reply: Option<oneshot::Sender<Published>>,
    /// On how many channels it is published.
    commands: usize,
    /// Given back when Redis has answered or the connection is given up.
    room: OwnedSemaphorePermit,
}

type Published = Result<usize, PublishError>;

impl Publisher {
    pub(crate) fn new(
        endpoint: Arc<Endpoint>,
        advice: Arc<Advice>,
        deadline: Duration,
    ) -> (Self, PublishQueue) {
        let (queue, waiting) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(QUEUE));
        (
            Self {
                queue,
                room,
                deadline,
            },
            PublishQueue {
                waiting,
                endpoint,
                advice,
            },
        )
    }

    /// Publishes on every channel; resolves to the receivers Redis counted, in sum. Queued by the call
    /// itself, not by the first poll, so that the order of calls is the order on the wire; once the queue is
    /// full, whoever has not polled yet comes later.
    pub(crate) fn publish(
        &self,
        channels: SmallVec<[String; 1]>,
        envelope: Bytes,
    ) -> impl Future<Output = Result<usize, PublishError>> + Send + use<> {
        self.enqueue(channels, envelope, false)
    }

    /// Publishes on one channel, and fails if that was on a replica.
    pub(crate) fn probe(
        &self,
        channel: String,
        envelope: Bytes,
    ) -> impl Future<Output = Result<usize, PublishError>> + Send + use<> {
        self.enqueue(smallvec![channel], envelope, true)
    }

    /// Publications that wait for Redis, in units of [`UNIT`] bytes.
    pub(crate) fn queued(&self) -> usize {
        QUEUE - self.room.available_permits()
    }

    fn enqueue(
        &self,
        channels: SmallVec<[String; 1]>,
        envelope: Bytes,
        is_probe: bool,
    ) -> impl Future<Output = Result<usize, PublishError>> + Send + use<> {
        let deadline = Instant::now() + self.deadline;
        let units = (channels.len() * (1 + envelope.len() / UNIT)).min(QUEUE) as u32;
        let (reply, answer) = oneshot::channel();
        let publication = move |room| {
            let waiter = Waiter {
                deadline,
                reply: Some(reply),
                commands: channels.len(),
                room,
            };
            let publication = Publication {
                channels,
                envelope,
                is_probe,
            };
            (publication, waiter)
        };
        let queued = match self.room.clone().try_acquire_many_owned(units) {
            Ok(room) => self.queue.send(publication(room)).map_err(|_| stopped()),
            Err(_) => {
                // Whoever waits already comes first: released room goes to them.
                let (room, queue) = (
                    self.room.clone().acquire_many_owned(units),
                    self.queue.clone(),
                );
                let waiting = async move {
                    let room = timeout_at(deadline, room).await.map_err(|_| crowded())?;
                    let room = room.map_err(|_| stopped())?;
                    queue.send(publication(room)).map_err(|_| stopped())
                };
                // Boxed, since it is rare and would make every publication large.
                return Either::Right(waiting.boxed().and_then(|()| answered(answer)));
            }
        };
        Either::Left(async move {
            queued?;
            answered(answer).await
        })
    }
}

async fn answered(answer: oneshot::Receiver<Published>) -> Published {
    answer
        .await
        .unwrap_or_else(|_| Err(PublishError::maybe_sent("the cluster was shut down")))
}

fn crowded() -> PublishError {
    PublishError::not_sent("too many publications are waiting for redis")
}

fn stopped() -> PublishError {
    PublishError::not_sent("the cluster was shut down")
}

impl PublishQueue {
    /// Publishes until every [`Publisher`] is gone. Nothing waits longer than its own deadline.
    pub(crate) async fn run(&mut self) {
        let mut pipeline: Option<Pipeline> = None;
        let mut failed: Option<(Instant, PublishError)> = None;
        let mut arrived = Vec::with_capacity(BATCH);
        let mut publications = Vec::with_capacity(BATCH);
        let mut waiters = Waiters(Vec::with_capacity(BATCH));
        let mut replies = Vec::with_capacity(BATCH);
        while self.waiting.recv_many(&mut arrived, BATCH).await > 0 {
            publications.clear();
            for (publication, waiter) in arrived.drain(..) {
                publications.push(publication);
                waiters.0.push(waiter);
            }
            waiters.expire(|| PublishError::not_sent("redis did not take it in time"));
            waiters.keep_unanswered(&mut publications);
            if publications.is_empty() {
                continue;
            }

            if !pipeline.as_mut().is_some_and(Pipeline::is_alive) {
                pipeline = None;
                let now = Instant::now();
                if let Some((_, error)) = failed.as_ref().filter(|(until, _)| now < *until) {
                    waiters.fail(error);
                    continue;
                }
                let late = "redis did not accept a connection in time";
                let opening = Pipeline::open(&self.endpoint, &self.advice);
                let opened = waiters.wait(opening, || PublishError::not_sent(late));
                match opened.await.unwrap_or_else(|| Err(late.into())) {
                    Ok(opened) => pipeline = Some(opened),
                    Err(unusable) => {
                        let error = unusable.into_error(false);
                        waiters.fail(&error);
                        failed = Some((Instant::now() + PAUSE, error));
                        continue;
                    }
                }
                // Whoever was late was told that it is not sent.
                waiters.keep_unanswered(&mut publications);
            }
            let Some(open) = &mut pipeline else { continue };
            let publishing = async {
                if publications.iter().any(|publication| publication.is_probe) {
                    open.ask_role();
                }
                for publication in &publications {
                    for channel in &publication.channels {
                        open.add(channel, &publication.envelope).await?;
                    }
                }
                open.exchange(&mut replies).await
            };
            let late = "redis did not answer in time";
            let published = waiters.wait(publishing, || PublishError::maybe_sent(late));
            match published.await.unwrap_or_else(|| Err(late.into())) {
                Ok(()) => waiters.answer(replies.drain(..)),
                Err(unusable) => {
                    waiters.fail(&unusable.into_error(true));
                    replies.clear();
                    pipeline = None;
                }
            }
        }
    }
}

impl Unusable {
    fn into_error(self, maybe_sent: bool) -> PublishError {
        let Self { on_replica, reason } = self;
        PublishError {
            maybe_sent,
            on_replica,
            reason,
        }
    }
}

/// Those who wait for one pipeline, in its order.
#[derive(Debug)]
struct Waiters(Vec<Waiter>);

impl Waiters {
    /// Waits as long as one of them does. Whoever has waited long enough is told so, and costs the others
    /// nothing.
    async fn wait<T>(
        &mut self,
        what: impl Future<Output = T>,
        late: impl Fn() -> PublishError,
    ) -> Option<T> {
        let mut what = pin!(what);
        loop {
            let patient = self.0.iter().filter(|waiter| waiter.reply.is_some());
            let next = patient.map(|waiter| waiter.deadline).min()?;
            match timeout_at(next, what.as_mut()).await {
                Ok(done) => return Some(done),
                Err(_) => self.expire(&late),
            }
        }
    }

    fn expire(&mut self, late: impl Fn() -> PublishError) {
        let now = Instant::now();
        for waiter in self.0.iter_mut().filter(|waiter| waiter.deadline <= now) {
            waiter.answer(Err(late()));
        }
    }

    /// Forgets who was answered, and what they wanted to publish.
    fn keep_unanswered(&mut self, publications: &mut Vec<Publication>) {
        let mut waiters = self.0.iter();
        publications.retain(|_| waiters.next().is_some_and(|waiter| waiter.reply.is_some()));
        self.0.retain(|waiter| waiter.reply.is_some());
    }

    fn fail(&mut self, error: &PublishError) {
        for mut waiter in self.0.drain(..) {
            waiter.answer(Err(error.clone()));
        }
    }

    /// Gives each the replies to its own commands.
    fn answer(&mut self, mut replies: impl Iterator<Item = Counted>) {
        let mut rooms: Option<OwnedSemaphorePermit> = None;
        for mut waiter in self.0.drain(..) {
            let mut sum = Ok(0);
            for reply in replies.by_ref().take(waiter.commands) {
                sum = and(sum, reply);
            }
            waiter.answer(sum);
            // Given back all at once: each time takes a lock.
            match &mut rooms {
                Some(rooms) => rooms.merge(waiter.room),
                None => rooms = Some(waiter.room),
            }
        }
    }
}

impl Waiter {
    fn answer(&mut self, published: Published) {
        if let Some(reply) = self.reply.take() {
            // Fails only when the sender gave up.
            let _ = reply.send(published);
        }
    }
}

/// Redis refuses a command whole, but another one of a union may have gone out.
fn and(sum: Published, reply: Counted) -> Published {
    match (sum, reply) {
        (Ok(nodes), Ok(count)) => Ok(nodes + count),
        (Ok(nodes), Err(reason)) => Err(PublishError {
            maybe_sent: nodes > 0,
            on_replica: false,
            reason,
        }),
        (Err(error), Ok(count)) => Err(PublishError {
            maybe_sent: error.maybe_sent || count > 0,
            ..error
        }),
        (refused, Err(_)) => refused,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::topic::Namespace;

    #[test]
    fn a_union_that_is_refused_in_part_may_have_been_sent() {
        let (taken, ignored, refused) = (Ok(1), Ok(0), Err(Arc::from("NOPERM")));
        for (replies, maybe_sent) in [
            ([&refused, &refused], false),
            ([&refused, &ignored], false),
            ([&ignored, &refused], false),
            ([&taken, &refused], true),
            ([&refused, &taken], true),
        ] {
            let sum = replies.into_iter().cloned().fold(Ok(0), and);
            assert_eq!(sum.unwrap_err().maybe_sent, maybe_sent, "{replies:?}");
        }
    }

    /// An answer that is late for one is not for the other.
    #[tokio::test]
    async fn impatience_of_one_costs_the_others_nothing() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", server.local_addr().unwrap());
        let endpoint = Arc::new(Endpoint::parse(&url).unwrap());
        let advice = Arc::new(Advice::new(None, &Namespace::new("x").unwrap()));
        let long = Duration::from_secs(20);
        let (publisher, mut queue) = Publisher::new(endpoint, advice, long);
        let short = Publisher {
            deadline: long / 4,
            queue: publisher.queue.clone(),
            room: publisher.room.clone(),
        };
        let [impatient, patient] = [&short, &publisher]
            .map(|publisher| publisher.publish(smallvec!["x".to_owned()], Bytes::new()));
        tokio::spawn(async move { queue.run().await });
        let (mut redis, _) = server.accept().await.unwrap();
        redis.write_all(b"-ERR unknown command\r\n").await.unwrap();
        let late = impatient.await.unwrap_err();
        assert!(late.maybe_sent, "it was: {}", late.reason);
        redis.write_all(b":7\r\n:1\r\n").await.unwrap();
        assert_eq!(patient.await.unwrap(), 1);
    }

    /// Who waited for room comes after those who did not, with less time left.
    #[tokio::test]
    async fn nobody_waits_longer_than_for_its_own_deadline() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", silent.local_addr().unwrap());
        let endpoint = Arc::new(Endpoint::parse(&url).unwrap());
        let advice = Arc::new(Advice::new(None, &Namespace::new("x").unwrap()));
        let long = Duration::from_secs(20);
        let (publisher, mut queue) = Publisher::new(endpoint, advice, long);
        let short = Publisher {
            deadline: long / 100,
            queue: publisher.queue.clone(),
            room: publisher.room.clone(),
        };
        let start = Instant::now();
        let [_first, second] = [&publisher, &short]
            .map(|publisher| publisher.publish(smallvec!["x".to_owned()], Bytes::new()));
        tokio::spawn(async move { queue.run().await });
        second.await.unwrap_err();
        assert!(start.elapsed() < long / 2, "{:?}", start.elapsed());
    }
}
