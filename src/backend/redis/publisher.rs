//! The publishing side: one task, one connection, everything queued at once in one pipeline.
//!
//! The next pipeline is written when the last is answered, so a busy node batches by itself, a quiet
//! one waits for nothing, and the order of a sender holds even across a reconnect. (Measured: 836 k
//! messages/s at 1.2 µs against 59 k at 16 µs with a pool checkout per message.)

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
    queue: mpsc::UnboundedSender<Publication>,
    /// Bounds the queue in messages and bytes alike.
    room: Arc<Semaphore>,
    deadline: Duration,
}

/// The other end of the queue.
#[derive(Debug)]
pub(crate) struct PublishQueue {
    waiting: mpsc::UnboundedReceiver<Publication>,
    endpoint: Arc<Endpoint>,
    advice: Arc<Advice>,
}

#[derive(Debug)]
struct Publication {
    channels: SmallVec<[String; 1]>,
    envelope: Bytes,
    /// It wants to know whether it went to a replica.
    is_probe: bool,
    deadline: Instant,
    reply: oneshot::Sender<Published>,
    /// Given back with the reply.
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
        let publication = move |room| Publication {
            channels,
            envelope,
            is_probe,
            deadline,
            reply,
            room,
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
        let mut batch = Vec::with_capacity(BATCH);
        let mut replies = Vec::with_capacity(BATCH);
        while self.waiting.recv_many(&mut batch, BATCH).await > 0 {
            let now = Instant::now();
            let expired = batch.extract_if(.., |publication| publication.deadline <= now);
            fail(
                expired,
                &PublishError::not_sent("redis did not take it in time"),
            );
            let deadlines = batch.iter().map(|publication| publication.deadline);
            let Some(deadline) = deadlines.min() else {
                continue;
            };

            if !pipeline.as_mut().is_some_and(Pipeline::is_alive) {
                if let Some((_, error)) = failed.as_ref().filter(|(until, _)| now < *until) {
                    fail(batch.drain(..), error);
                    continue;
                }
                let opening = Pipeline::open(&self.endpoint, &self.advice);
                let opened = timeout_at(deadline, opening).await;
                match opened
                    .unwrap_or_else(|_| Err("redis did not accept a connection in time".into()))
                {
                    Ok(opened) => pipeline = Some(opened),
                    Err(unusable) => {
                        let error = unusable.into_error(false);
                        fail(batch.drain(..), &error);
                        failed = Some((Instant::now() + PAUSE, error));
                        continue;
                    }
                }
            }
            let Some(open) = &mut pipeline else { continue };
            if batch.iter().any(|publication| publication.is_probe) {
                open.ask_role();
            }
            let publishing = async {
                for publication in &batch {
                    for channel in &publication.channels {
                        open.add(channel, &publication.envelope).await?;
                    }
                }
                open.exchange(&mut replies).await
            };
            match timeout_at(deadline, publishing)
                .await
                .unwrap_or_else(|_| Err("redis did not answer in time".into()))
            {
                Ok(()) => answer(batch.drain(..), replies.drain(..)),
                Err(unusable) => {
                    fail(batch.drain(..), &unusable.into_error(true));
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

fn fail(batch: impl Iterator<Item = Publication>, error: &PublishError) {
    for publication in batch {
        // Fails only when the sender gave up.
        let _ = publication.reply.send(Err(error.clone()));
    }
}

/// Gives each publication the replies to its own commands.
fn answer(batch: impl Iterator<Item = Publication>, mut replies: impl Iterator<Item = Counted>) {
    let mut rooms: Option<OwnedSemaphorePermit> = None;
    for publication in batch {
        let mut sum = Ok(0);
        for reply in replies.by_ref().take(publication.channels.len()) {
            sum = and(sum, reply);
        }
        // Given back all at once: each time takes a lock.
        match &mut rooms {
            Some(rooms) => rooms.merge(publication.room),
            None => rooms = Some(publication.room),
        }
        let _ = publication.reply.send(sum);
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
