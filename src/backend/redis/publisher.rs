//! The publishing side: one task, one connection, everything queued at once in one pipeline.
//!
//! The next pipeline is written when the last is answered, so a busy node batches by itself, a quiet
//! one waits for nothing, and the order of a sender holds even across a reconnect. (Measured: 836 k
//! messages/s at 1.2 µs against 59 k at 16 µs with a pool checkout per message.)

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bb8_redis::bb8::ManageConnection;
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Pipeline, RedisError, Value};
use smallvec::SmallVec;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::endpoint::Endpoint;
use super::explain;
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
    links: Links,
}

#[derive(Debug)]
struct Publication {
    channels: SmallVec<[String; 1]>,
    envelope: Bytes,
    deadline: Instant,
    reply: oneshot::Sender<Result<usize, PublishError>>,
    /// Gives its room back with the reply.
    _room: OwnedSemaphorePermit,
}

impl Publisher {
    pub(crate) fn new(links: Links, deadline: Duration) -> (Self, PublishQueue) {
        let (queue, waiting) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(QUEUE));
        (
            Self {
                queue,
                room,
                deadline,
            },
            PublishQueue { waiting, links },
        )
    }

    /// Publishes on every channel; resolves to the receivers Redis counted, in sum. Queued by the call
    /// itself, not by the first poll, so that the order of calls is the order on the wire.
    pub(crate) fn publish(
        &self,
        channels: SmallVec<[String; 1]>,
        envelope: Bytes,
    ) -> impl Future<Output = Result<usize, PublishError>> + Send + use<> {
        let deadline = Instant::now() + self.deadline;
        let units = (channels.len() * (1 + envelope.len() / UNIT)).min(QUEUE) as u32;
        let (reply, answer) = oneshot::channel();
        let queue = self.queue.clone();
        let enqueue = move |room| {
            let publication = Publication {
                channels,
                envelope,
                deadline,
                reply,
                _room: room,
            };
            queue.send(publication).map_err(|_| stopped())
        };
        let enqueued = match self.room.clone().try_acquire_many_owned(units) {
            Ok(room) => Ok(enqueue(room)),
            // Whoever waits already comes first: released room goes to them.
            Err(_) => Err((self.room.clone().acquire_many_owned(units), enqueue)),
        };
        async move {
            match enqueued {
                Ok(enqueued) => enqueued?,
                Err((waiting, enqueue)) => match timeout_at(deadline, waiting).await {
                    Ok(Ok(room)) => enqueue(room)?,
                    Ok(Err(_)) => return Err(stopped()),
                    Err(_) => {
                        let crowded = "too many publications are waiting for redis";
                        return Err(PublishError::not_sent(crowded));
                    }
                },
            }
            answer
                .await
                .unwrap_or_else(|_| Err(PublishError::maybe_sent("the cluster was shut down")))
        }
    }
}

fn stopped() -> PublishError {
    PublishError::not_sent("the cluster was shut down")
}

impl PublishQueue {
    /// Publishes until every [`Publisher`] is gone. Nothing waits longer than its own deadline.
    pub(crate) async fn run(&mut self) {
        let mut link: Option<Link> = None;
        let mut failed: Option<(Instant, Arc<str>)> = None;
        let mut batch = Vec::with_capacity(BATCH);
        while self.waiting.recv_many(&mut batch, BATCH).await > 0 {
            let now = Instant::now();
            let expired = batch.extract_if(.., |publication| publication.deadline <= now);
            fail(
                expired,
                &PublishError::not_sent("redis did not take it in time"),
            );
            let Some(first) = batch.first() else { continue };
            let deadline = first.deadline;

            if link.as_ref().is_none_or(Link::is_dead) {
                if let Some((_, reason)) = failed.as_ref().filter(|(until, _)| now < *until) {
                    fail(batch.drain(..), &PublishError::not_sent(reason.clone()));
                    continue;
                }
                match self.links.open(deadline).await {
                    Ok(opened) => link = Some(opened),
                    Err(reason) => {
                        fail(batch.drain(..), &PublishError::not_sent(reason.clone()));
                        failed = Some((Instant::now() + PAUSE, reason));
                        continue;
                    }
                }
            }
            let Some(open) = &mut link else { continue };
            match timeout_at(deadline, open.publish(&batch)).await {
                Ok(Ok(replies)) => answer(batch.drain(..), &replies),
                Ok(Err(error)) => {
                    fail(batch.drain(..), &PublishError::maybe_sent(explain(&error)));
                    link = None;
                }
                Err(_) => {
                    fail(
                        batch.drain(..),
                        &PublishError::maybe_sent("redis did not answer in time"),
                    );
                    link = None;
                }
            }
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
fn answer(batch: impl Iterator<Item = Publication>, mut replies: &[Value]) {
    for publication in batch {
        let (own, rest) = replies.split_at(publication.channels.len().min(replies.len()));
        replies = rest;
        let _ = publication
            .reply
            .send(own.iter().try_fold(0, |nodes, reply| match reply {
                Value::Int(count) => Ok(nodes + usize::try_from(*count).unwrap_or(0)),
                Value::ServerError(error) => {
                    let error = RedisError::from(error.clone());
                    // Redis refuses a command whole, but an earlier one of a union may have gone out.
                    let refused = PublishError::not_sent(explain(&error));
                    Err(PublishError {
                        maybe_sent: nodes > 0,
                        ..refused
                    })
                }
                _ => Err(PublishError::maybe_sent("redis gave no count")),
            }));
    }
}

/// How links are made, for bb8 and for the publisher.
#[derive(Debug, Clone)]
pub(crate) struct Links {
    endpoint: Arc<Endpoint>,
    /// The longest wait for a connection or an answer.
    deadline: Duration,
}

/// A connection that knows when it is dead; bb8-redis' own manager never does.
#[derive(Debug)]
pub(crate) struct Link {
    connection: MultiplexedConnection,
    dead: Arc<AtomicBool>,
    driver: AbortHandle,
}

impl Links {
    pub(crate) fn new(endpoint: Arc<Endpoint>, deadline: Duration) -> Self {
        Self { endpoint, deadline }
    }

    async fn open(&self, deadline: Instant) -> Result<Link, Arc<str>> {
        match timeout_at(deadline, self.connect()).await {
            Ok(link) => link.map_err(|error| explain(&error)),
            Err(_) => Err("redis did not accept a connection in time".into()),
        }
    }
}

impl ManageConnection for Links {
    type Connection = Link;
    type Error = RedisError;

    async fn connect(&self) -> Result<Link, RedisError> {
        let connecting = async {
            let stream = self.endpoint.connect().await?;
            let config = AsyncConnectionConfig::new().set_response_timeout(Some(self.deadline));
            MultiplexedConnection::new_with_config(self.endpoint.login(), stream, config).await
        };
        let timed_out = |_| RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        let (connection, driver) = timeout(self.deadline, connecting)
            .await
            .map_err(timed_out)??;
        let dead = Arc::new(AtomicBool::new(false));
        let ended = dead.clone();
        let driver = tokio::spawn(async move {
            driver.await;
            ended.store(true, Ordering::Release);
        });
        Ok(Link {
            connection,
            dead,
            driver: driver.abort_handle(),
        })
    }

    async fn is_valid(&self, link: &mut Link) -> Result<(), RedisError> {
        if link.is_dead() {
            return Err(std::io::Error::from(std::io::ErrorKind::NotConnected).into());
        }
        Ok(())
    }

    fn has_broken(&self, link: &mut Link) -> bool {
        link.is_dead()
    }
}

impl Link {
    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    async fn publish(&mut self, batch: &[Publication]) -> Result<Vec<Value>, RedisError> {
        let count = batch
            .iter()
            .map(|publication| publication.channels.len())
            .sum();
        let mut pipeline = Pipeline::with_capacity(count);
        for publication in batch {
            for channel in &publication.channels {
                pipeline
                    .cmd("PUBLISH")
                    .arg(channel)
                    .arg(&publication.envelope[..]);
            }
        }
        self.connection
            .send_packed_commands(&pipeline, 0, count)
            .await
    }

    /// How many subscribers a channel has.
    pub(crate) async fn subscribers(&mut self, channel: &str) -> Result<usize, RedisError> {
        let mut command = redis::cmd("PUBSUB");
        command.arg("NUMSUB").arg(channel);
        let counted: Result<(String, usize), _> = command.query_async(&mut self.connection).await;
        if counted.as_ref().is_err_and(RedisError::is_timeout) {
            self.dead.store(true, Ordering::Release);
        }
        counted.map(|(_, count)| count)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
