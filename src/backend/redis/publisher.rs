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
use tokio::runtime::Handle;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::advice::Advice;
use super::backlog::{BATCH, Backlog, Publication, Published, Turn, Waiter};
use super::backoff::Backoff;
use super::endpoint::{Endpoint, OPENING};
use super::pipeline::{Pipeline, Unusable};
use crate::error::PublishError;
use crate::scope::Size;

/// What may be queued, in units of [`UNIT`] bytes of payload; every publication takes at least one.
const QUEUE: usize = 64 * 1024;
/// What of it large unions may take: whoever sends to one user finds room beside them.
const LARGE: usize = QUEUE / 4;
const UNIT: usize = 1024;
/// The longest pause before a reconnect. After a failed connect, publications fail at once meanwhile; after a
/// lost link they wait, so it is well below the default `publish_timeout`.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Where publications go.
#[derive(Debug)]
pub(crate) struct Publisher {
    queue: mpsc::UnboundedSender<(Publication, Waiter)>,
    /// Bounds the queue in messages and bytes alike.
    room: Arc<Semaphore>,
    /// Bounds what of that large unions take.
    large: Arc<Semaphore>,
    deadline: Duration,
    runtime: Handle,
}

/// The other end of the queue.
#[derive(Debug)]
pub(crate) struct PublishQueue {
    waiting: mpsc::UnboundedReceiver<(Publication, Waiter)>,
    endpoint: Arc<Endpoint>,
    advice: Arc<Advice>,
    /// How long a pipeline may take.
    deadline: Duration,
}

impl Publisher {
    /// Must be called within the runtime of the [`PublishQueue`].
    pub(crate) fn new(
        endpoint: Arc<Endpoint>,
        advice: Arc<Advice>,
        deadline: Duration,
    ) -> (Self, PublishQueue) {
        let (queue, waiting) = mpsc::unbounded_channel();
        (
            Self {
                queue,
                room: Arc::new(Semaphore::new(QUEUE)),
                large: Arc::new(Semaphore::new(LARGE)),
                deadline,
                runtime: Handle::current(),
            },
            PublishQueue {
                waiting,
                endpoint,
                advice,
                deadline,
            },
        )
    }

    /// Publishes on every channel; resolves to the receivers Redis counted, in sum. Queued by the call
    /// itself, not by the first poll, so that the order of calls is the order on the wire, but that a large
    /// union may come later; once the queue is full, whoever has not polled yet comes later.
    pub(crate) fn publish(
        &self,
        channels: SmallVec<[String; 1]>,
        envelope: Bytes,
        size: Size,
    ) -> impl Future<Output = Published> + Send + use<> {
        self.enqueue(Publication::new(channels, envelope, size))
    }

    /// Publishes on one channel before whatever waits, and fails if that was on a replica.
    pub(crate) fn probe(
        &self,
        channel: String,
        envelope: Bytes,
    ) -> impl Future<Output = Published> + Send + use<> {
        self.enqueue(Publication::probe(smallvec![channel], envelope))
    }

    /// Publications that wait for Redis, in units of [`UNIT`] bytes.
    pub(crate) fn queued(&self) -> usize {
        QUEUE - self.room.available_permits()
    }

    fn enqueue(&self, publication: Publication) -> impl Future<Output = Published> + Send + use<> {
        let deadline = Instant::now() + self.deadline;
        let room = Room::of(self, &publication);
        let (reply, answer) = oneshot::channel();
        let queued = match room.try_take() {
            Ok(room) => {
                let waiter = Waiter::new(deadline, reply, room);
                let sent = self.queue.send((publication, waiter));
                sent.map_err(|_| stopped())
            }
            Err(_) => {
                // Whoever waits already comes first: released room goes to them.
                let (queue, runtime) = (self.queue.clone(), self.runtime.clone());
                let waiting = async move {
                    // By our own timer: who waits may have none.
                    let waiting = {
                        let _home = runtime.enter();
                        timeout_at(deadline, room.take())
                    };
                    let room = waiting.await;
                    let room = room.map_err(|_| crowded())?.map_err(|_| stopped())?;
                    let waiter = Waiter::new(deadline, reply, room);
                    queue.send((publication, waiter)).map_err(|_| stopped())
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

/// What a publication takes of the queue.
struct Room {
    units: u32,
    room: Arc<Semaphore>,
    /// For a large union.
    large: Option<Arc<Semaphore>>,
}

impl Room {
    fn of(publisher: &Publisher, publication: &Publication) -> Self {
        let units = publication.channels.len() * (1 + publication.envelope.len() / UNIT);
        let large = publication.is_large().then(|| publisher.large.clone());
        let units = match () {
            // There is one at a time, and what others send must not make the link look dead.
            () if publication.is_probe => 0,
            () if large.is_some() => units.min(LARGE),
            () => units.min(QUEUE),
        };
        Self {
            units: units as u32,
            room: publisher.room.clone(),
            large,
        }
    }

    fn try_take(&self) -> Result<Taken, TryAcquireError> {
        let take = |room: &Arc<Semaphore>| room.clone().try_acquire_many_owned(self.units);
        let large = self.large.as_ref().map(take).transpose()?;
        Ok((take(&self.room)?, large))
    }

    async fn take(self) -> Result<Taken, AcquireError> {
        let large = match self.large {
            Some(large) => Some(large.acquire_many_owned(self.units).await?),
            None => None,
        };
        Ok((self.room.acquire_many_owned(self.units).await?, large))
    }
}

type Taken = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

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
        let mut backoff = Backoff::new(LONGEST_PAUSE);
        let mut failed: Option<(Instant, PublishError)> = None;
        let mut backlog = Backlog::default();
        let mut turn = Turn::default();
        let mut replies = Vec::with_capacity(BATCH);
        while self.receive(&mut backlog).await {
            backlog.expire("redis did not take it in time");
            if backlog.is_empty() {
                continue;
            }
            if !pipeline.as_mut().is_some_and(Pipeline::is_alive) {
                if pipeline.take().is_some() {
                    self.pause(&mut backlog, &mut backoff).await;
                }
                let now = Instant::now();
                if let Some((_, error)) = failed.as_ref().filter(|(until, _)| now < *until) {
                    backlog.fail(error);
                    continue;
                }
                match self.open(&mut backlog).await {
                    Ok(opened) => {
                        pipeline = Some(opened);
                        backoff.works(Instant::now());
                    }
                    Err(unusable) => {
                        let (now, error) = (Instant::now(), unusable.into_error(false));
                        backlog.fail(&error);
                        failed = Some((now + backoff.ended(now, fastrand::f64()), error));
                    }
                }
                // Whoever was late was told that it is not sent.
                continue;
            }
            let Some(open) = &mut pipeline else { continue };
            backlog.take_turn(&mut turn);
            let publishing = async {
                if turn.publications.iter().any(|one| one.is_probe) {
                    open.ask_role();
                }
                for publication in &turn.publications {
                    for channel in publication.part() {
                        open.add(channel, &publication.envelope).await?;
                    }
                }
                open.exchange(&mut replies).await
            };
            let until = Instant::now() + self.deadline;
            match turn.waiters.wait(publishing, until, &mut backlog).await {
                Ok(()) => turn.answer(replies.drain(..), &mut backlog),
                Err(unusable) => {
                    turn.fail(&unusable.into_error(true));
                    replies.clear();
                    drop(pipeline.take());
                    self.pause(&mut backlog, &mut backoff).await;
                }
            }
        }
    }

    /// Takes over what was queued, waiting for it if there is nothing to do; whether there will be more.
    async fn receive(&mut self, backlog: &mut Backlog) -> bool {
        if backlog.is_empty() && self.waiting.recv_many(&mut backlog.arrived, BATCH).await == 0 {
            return false;
        }
        // All of it, since a probe may be the last.
        loop {
            backlog.admit();
            let more = self.waiting.recv_many(&mut backlog.arrived, BATCH);
            if more.now_or_never().is_none_or(|count| count == 0) {
                return true;
            }
        }
    }

    /// The link was lost: whoever publishes waits until the next may be tried.
    async fn pause(&mut self, backlog: &mut Backlog, backoff: &mut Backoff) {
        let now = Instant::now();
        let until = now + backoff.ended(now, fastrand::f64());
        let late = "the connection to redis was lost";
        self.meanwhile(sleep_until(until), backlog, late).await;
    }

    /// Goes on for those who come, however many lose their patience: on a slow link nobody alone has enough.
    async fn open(&mut self, backlog: &mut Backlog) -> Result<Pipeline, Unusable> {
        let late = "redis did not accept a connection in time";
        let (endpoint, advice) = (self.endpoint.clone(), self.advice.clone());
        let opening = timeout(OPENING, Pipeline::open(&endpoint, &advice));
        let opened = self.meanwhile(opening, backlog, late).await;
        opened.unwrap_or_else(|_| Err(late.into()))
    }

    /// Waits for something, and tells those whose deadline passes before.
    async fn meanwhile<T>(
        &mut self,
        what: impl Future<Output = T>,
        backlog: &mut Backlog,
        late: &str,
    ) -> T {
        let mut what = pin!(what);
        let mut stopped = false;
        loop {
            backlog.expire(late);
            let next = backlog.next_deadline();
            tokio::select! {
                done = &mut what => return done,
                count = self.waiting.recv_many(&mut backlog.arrived, BATCH), if !stopped => {
                    stopped = count == 0;
                    backlog.admit();
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
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

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::topic::Namespace;

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
            large: publisher.large.clone(),
            runtime: publisher.runtime.clone(),
        };
        let [impatient, patient] = [&short, &publisher].map(|publisher| {
            publisher.publish(smallvec!["x".to_owned()], Bytes::new(), Size::Small)
        });
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
            large: publisher.large.clone(),
            runtime: publisher.runtime.clone(),
        };
        let start = Instant::now();
        let [_first, second] = [&publisher, &short].map(|publisher| {
            publisher.publish(smallvec!["x".to_owned()], Bytes::new(), Size::Small)
        });
        tokio::spawn(async move { queue.run().await });
        second.await.unwrap_err();
        assert!(start.elapsed() < long / 2, "{:?}", start.elapsed());
    }
}
