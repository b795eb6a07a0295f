//! The bus over Redis pub/sub: one connection that listens, one that publishes, and a small pool for
//! questions.

mod address;
mod advice;
mod backlog;
mod backoff;
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "a Redis Cluster is refused as yet")
)]
mod cluster;
mod command;
mod connection;
mod dial;
mod endpoint;
mod fields;
mod link;
mod options;
mod outstanding;
mod pipeline;
mod probe;
mod proof;
mod publication;
mod publisher;
mod queue;
mod quota;
mod refusals;
mod resp;
mod sentinel;
mod shared;
mod subscriber;
mod subscriptions;
#[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
#[path = "no_tls.rs"]
mod tls;
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
mod tls;
mod topology;

use std::error::Error as _;
use std::sync::{Arc, Once, Weak};

use bb8_redis::bb8::{Pool, RunError};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use redis::{ErrorKind, RedisError};
use smallvec::SmallVec;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::advice::Advice;
#[cfg(any(fuzzing, axum_cluster_internals))]
pub(crate) use self::cluster::read_view;
use self::connection::Connector;
use self::endpoint::OPENING;
use self::link::LinkContext;
pub use self::options::Redis;
pub(crate) use self::options::Target;
use self::publisher::{PublishQueue, Publisher};
use self::quota::{SeatWriter, SharedLedger};
#[cfg(any(fuzzing, axum_cluster_internals))]
pub(crate) use self::resp::RespReader;
use self::sentinel::{Seeker, Sentinels, Watcher};
use self::shared::SharedSubscriptions;
use self::subscriber::Subscriber;
use self::subscriptions::Subscriptions;
use self::topology::Topology;
use super::{Bus, BusSettings, Confirmation, Listener, Published};
use crate::bus::scope::Size;
use crate::model::error::PublishError;
use crate::model::id::NodeId;
use crate::model::topic::Topic;
use crate::quota::Seats;
use crate::tasks;

/// Connections for questions, beside the two of the bus itself.
const POOL: u32 = 2;

/// One node's end of the bus.
#[derive(Debug)]
pub(crate) struct RedisBus {
    node: NodeId,
    topology: Arc<Topology>,
    /// Who tells where the primary is, if somebody has to.
    sentinels: Option<Arc<Sentinels>>,
    advice: Arc<Advice>,
    settings: BusSettings,
    subscriptions: Arc<SharedSubscriptions>,
    publisher: Arc<Publisher>,
    /// Taken by [`Bus::start`].
    queue: Mutex<Option<PublishQueue>>,
    connector: Connector,
    questions: Pool<Connector>,
    /// Where sockets per user are limited.
    seats: Option<Arc<SharedLedger>>,
    tasks: TaskTracker,
    ended: CancellationToken,
}

impl RedisBus {
    pub(crate) fn new(target: &Target, node: NodeId, settings: BusSettings) -> Self {
        let (topology, sentinels) = match target {
            Target::Single(endpoint) => (Topology::single(endpoint.clone()), None),
            Target::Sentinel(target) => {
                let sentinels = Sentinels::new(target.clone(), settings.probe_interval);
                (Topology::sought(), Some(Arc::new(sentinels)))
            }
            Target::Cluster(_) => unreachable!("refused where the URL is read"),
        };
        let topology = Arc::new(topology);
        let connector = Connector::new(topology.clone(), settings.publish_timeout);
        let questions = Pool::builder()
            .max_size(POOL)
            .connection_timeout(settings.publish_timeout.min(OPENING))
            .build_unchecked(connector.clone());
        let advice = Arc::new(Advice::new(target.user(), &settings.namespace));
        let (publisher, queue) =
            Publisher::new(topology.clone(), advice.clone(), settings.publish_timeout);
        let seats = settings
            .seats
            .map(|limit| Arc::new(SharedLedger::new(node, limit, settings.publish_timeout)));
        let subscriptions = SharedSubscriptions::new(settings.linger, Topic::node(node));
        Self {
            node,
            topology,
            sentinels,
            advice,
            subscriptions: Arc::new(subscriptions),
            settings,
            publisher: Arc::new(publisher),
            queue: Mutex::new(Some(queue)),
            connector,
            questions,
            seats,
            tasks: TaskTracker::new(),
            ended: CancellationToken::new(),
        }
    }

    /// Asks how many hear each channel: once more on a new connection, if that which there was is of no use.
    async fn ask(&self, channels: &[String]) -> Result<Vec<usize>, Arc<str>> {
        let deadline = Instant::now() + self.settings.publish_timeout;
        let mut may_repeat = true;
        loop {
            let mut connection = match timeout_at(deadline, self.questions.get()).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(RunError::User(error))) => return Err(explain(&self.advice, &error)),
                Ok(Err(RunError::TimedOut)) | Err(_) => return Err(self.unopened()),
            };
            match timeout_at(deadline, connection.subscribers(channels)).await {
                Ok(Ok(counts)) => return Ok(counts),
                Ok(Err(error)) if may_repeat && connection.is_dead() => {
                    tracing::debug!(reason = %words(&error), "a question is asked again on a new connection");
                    self.topology.probe_now();
                    may_repeat = false;
                }
                Ok(Err(error)) => return Err(explain(&self.advice, &error)),
                // The connection may have had too little time: it knows itself for how long it owes an answer.
                Err(_) => return Err("redis did not answer in time".into()),
            }
        }
    }

    /// Keeps to the primary that the sentinels name.
    fn follow(&self, sentinels: &Arc<Sentinels>, listener: &Weak<dyn Listener>) {
        let (ended, told) = (self.ended.clone(), listener.clone());
        let seeker = Seeker::new(sentinels.clone(), self.topology.clone());
        self.tasks
            .spawn(supervise("sentinels", ended, told, seeker, |seeker| {
                seeker.run().boxed()
            }));
        let (ended, told) = (self.ended.clone(), listener.clone());
        let watcher = Watcher::new(sentinels.clone(), self.topology.clone());
        self.tasks.spawn(supervise(
            "sentinel watch",
            ended,
            told,
            watcher,
            |watcher| watcher.run().boxed(),
        ));
    }

    fn unopened(&self) -> Arc<str> {
        match self.connector.failure() {
            Some(words) => self.advice.on(&words),
            None => "redis accepted no connection in time".into(),
        }
    }
}

impl Bus for RedisBus {
    fn start(&self, listener: Weak<dyn Listener>) {
        let Some(queue) = self.queue.lock().take() else {
            return;
        };
        let (ended, told) = (self.ended.clone(), listener.clone());
        self.tasks
            .spawn(supervise("publisher", ended, told, queue, |queue| {
                queue.run().boxed()
            }));
        if let Some(sentinels) = &self.sentinels {
            self.follow(sentinels, &listener);
        }
        if let Some(seats) = &self.seats {
            seats.start(listener.clone());
            let writer = || {
                let connector =
                    Connector::new(self.topology.clone(), self.settings.publish_timeout);
                SeatWriter::new(
                    seats.clone(),
                    connector,
                    self.advice.clone(),
                    self.node,
                    &self.settings,
                )
            };
            let (writer, mut leaving) = (writer(), writer());
            let (ended, told) = (self.ended.clone(), listener.clone());
            self.tasks.spawn(async move {
                supervise("seats", ended, told, writer, |writer| writer.run().boxed()).await;
                leaving.leave().await;
            });
        }
        let (ended, told) = (self.ended.clone(), listener.clone());
        let subscriber = Subscriber {
            topology: self.topology.clone(),
            context: Arc::new(LinkContext {
                node: self.node,
                namespace: self.settings.namespace.clone(),
                advice: self.advice.clone(),
                probe_interval: self.settings.probe_interval,
                subscriptions: self.subscriptions.clone(),
            }),
            publisher: self.publisher.clone(),
            seats: self.seats.clone(),
            listener,
            told_no_role: Once::new(),
            began: false,
        };
        self.tasks
            .spawn(supervise("subscriber", ended, told, subscriber, |task| {
                task.run().boxed()
            }));
        self.tasks.close();
    }

    fn want(&self, topic: &Topic) -> Confirmation {
        self.subscriptions.change(|table| table.want(topic))
    }

    fn release(&self, topic: &Topic) {
        self.subscriptions
            .change(|table| table.release(topic, Instant::now()));
    }

    fn prove_anew(&self) {
        self.subscriptions.change(Subscriptions::confirm_anew);
    }

    fn publish(
        &self,
        mut topics: SmallVec<[Topic; 1]>,
        envelope: Bytes,
        size: Size,
    ) -> BoxFuture<'static, Result<Published, PublishError>> {
        let channels = topics
            .iter()
            .map(|topic| self.settings.namespace.channel(topic))
            .collect();
        let (subscriptions, topology) = (self.subscriptions.clone(), self.topology.clone());
        topics.retain(|topic| subscriptions.is_confirmed(topic));
        let publishing = self.publisher.publish(channels, envelope, size);
        async move {
            let published = publishing.await;
            if published.is_err() {
                topology.probe_now();
            }
            let receivers = published?;
            // Those that heard it surely: who subscribed meanwhile perhaps did not.
            topics.retain(|topic| subscriptions.is_confirmed(topic));
            Ok(Published {
                nodes: receivers.saturating_sub(topics.len()),
                comes_back: !topics.is_empty(),
            })
        }
        .boxed()
    }

    fn listening<'a>(&'a self, topics: &'a [Topic]) -> BoxFuture<'a, Result<Vec<usize>, Arc<str>>> {
        let channel = |topic| self.settings.namespace.channel(topic);
        let channels: Vec<String> = topics.iter().map(channel).collect();
        async move { self.ask(&channels).await }.boxed()
    }

    fn queued(&self) -> usize {
        self.publisher.queued()
    }

    fn seats(&self) -> Option<&dyn Seats> {
        self.seats.as_deref().map(|seats| seats as &dyn Seats)
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        self.ended.cancel();
        self.tasks.wait().boxed()
    }
}

impl Drop for RedisBus {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

/// Runs a task until it returns or the bus ends.
async fn supervise<T>(
    name: &'static str,
    ended: CancellationToken,
    listener: Weak<dyn Listener>,
    mut state: T,
    run: impl for<'a> Fn(&'a mut T) -> BoxFuture<'a, ()>,
) {
    let panicked = || {
        if let Some(listener) = listener.upgrade() {
            listener.panicked();
        }
    };
    tasks::supervise(name, &ended, panicked, &mut state, run).await;
}

/// A failure in Redis' own words, and what to do about it where that is known.
fn explain(advice: &Advice, error: &RedisError) -> Arc<str> {
    advice.on(&words(error))
}

fn words(error: &RedisError) -> String {
    match (error.kind(), error.code(), error.detail()) {
        (_, Some(code), Some(detail)) => format!("{code} {detail}"),
        (ErrorKind::Io, ..) => io_words(error),
        _ => error.to_string(),
    }
}

fn io_words(error: &RedisError) -> String {
    let source = error.source().map(ToString::to_string);
    source.unwrap_or_else(|| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::model::topic::Namespace;

    const PRIMARY: &str = "*2\r\n$4\r\nrole\r\n$6\r\nmaster\r\n";
    const REPLICA: &str = "*2\r\n$4\r\nrole\r\n$5\r\nslave\r\n";
    const NOBODY: &str = "*2\r\n$1\r\nx\r\n:0\r\n";
    const SOMEBODY: &str = "*2\r\n$1\r\nx\r\n:1\r\n";

    /// Asks a server that answers the first question on its nth connection by the nth of these.
    async fn ask(answers: Vec<String>) -> Result<Vec<usize>, Arc<str>> {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", server.local_addr().unwrap());
        let serving = async move {
            let mut connections = Vec::new();
            for answer in answers {
                let (mut connection, _) = server.accept().await.unwrap();
                let mut question = [0; 1024];
                let read = connection.read(&mut question).await.unwrap();
                assert!(
                    question[..read].starts_with(command::HELLO),
                    "the role is asked first"
                );
                connection.write_all(answer.as_bytes()).await.unwrap();
                if !answer.is_empty() {
                    connections.push(connection);
                }
            }
            std::future::pending::<()>().await;
        };
        let bus = RedisBus::new(
            &Redis::at(url).unwrap().target().unwrap(),
            NodeId::random(),
            BusSettings {
                namespace: Namespace::new("x").unwrap(),
                publish_timeout: Duration::from_secs(20),
                probe_interval: Duration::from_secs(5),
                lease: Duration::from_secs(15),
                linger: Duration::ZERO,
                seats: None,
            },
        );
        let channels = ["x".to_owned()];
        tokio::select! {
            counts = bus.ask(&channels) => counts,
            () = serving => unreachable!("it serves for ever"),
        }
    }

    #[tokio::test]
    async fn a_question_to_the_wrong_server_is_asked_once_more() {
        let good = || format!("{PRIMARY}{SOMEBODY}");
        for wrong in [
            format!("{REPLICA}{NOBODY}"),
            format!("-LOADING Redis is loading\r\n{NOBODY}"),
            format!("{PRIMARY}-MASTERDOWN Link with MASTER is down\r\n"),
            format!("{PRIMARY}-NOAUTH Authentication required.\r\n"),
            "nonsense\r\n".to_owned(),
            String::new(),
        ] {
            assert_eq!(
                ask(vec![wrong.clone(), good()]).await,
                Ok(vec![1]),
                "{wrong}"
            );
            let refused = ask(vec![wrong.clone(), format!("{REPLICA}{NOBODY}")]).await;
            assert_eq!(refused, Err(advice::REPLICA.into()), "{wrong}");
        }
    }

    #[tokio::test]
    async fn what_any_server_would_say_is_asked_once() {
        for (answer, expected) in [
            (format!("{PRIMARY}{NOBODY}"), Ok(vec![0])),
            (format!("-NOPERM no hello\r\n{NOBODY}"), Ok(vec![0])),
            (
                format!("-ERR unknown command 'HELLO'\r\n{NOBODY}"),
                Ok(vec![0]),
            ),
            (
                format!("{PRIMARY}-NOPERM no pubsub\r\n"),
                Err("NOPERM no pubsub"),
            ),
        ] {
            let counts = ask(vec![answer]).await;
            match expected {
                Ok(expected) => assert_eq!(counts, Ok(expected)),
                Err(words) => assert!(counts.unwrap_err().starts_with(words)),
            }
        }
    }
}
