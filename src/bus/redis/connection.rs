//! Connections for questions, pooled by bb8, and for seats. Every exchange asks for the role first, and all of
//! them follow the bus: none outlives a change of the primary.
//!
//! ```text
//!          a question                 answered
//!  idle ----------------> owing ------------------> idle
//!    |                      |
//!    |                      |  an error, an answer that comes too late, a replica, or what shows a wrong server
//!    +----------------------+--> dead
//!     its end; another connection of its generation met the wrong server, or the bus listens on a new one
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bb8_redis::bb8::ManageConnection;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, Pipeline, RedisError, RedisResult, Value};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use super::advice::{is_unfit, is_wrong_server, tells_no_role};
use super::command::{self, Dialect};
use super::endpoint::OPENING;
use super::past::keeper::{Keeper, NO_RUN, field};
use super::past::read::{Readings, Unread};
use super::past::{KEY, READ};
use super::topology::Topology;
use super::words;
use crate::model::history::token::Key;

/// Channels in one command: Redis serves nobody else meanwhile.
const NO_KEY: &str =
    "redis keeps a key of positions that is none of ours: delete the field `key` of the hash";
const BATCH: usize = 1000;

/// How many hear each channel, and whether the partition of each mark is there.
pub(super) type ChannelCounts = (Vec<usize>, Vec<bool>);

/// How connections are made.
#[derive(Debug, Clone)]
pub(crate) struct Connector {
    topology: Arc<Topology>,
    /// The longest wait for an answer; a connection that is opened has longer.
    deadline: Duration,
    /// Why the last attempt to open one failed.
    failure: Arc<Mutex<Option<Arc<str>>>>,
}

/// A connection that knows when it is dead; bb8-redis' own manager never does.
#[derive(Debug)]
pub(crate) struct Connection {
    multiplexed: MultiplexedConnection,
    topology: Arc<Topology>,
    /// That of the topology when this was opened.
    generation: u64,
    dead: Arc<AtomicBool>,
    /// Since when it owes an answer, though perhaps nobody waits for it any longer, and how long it may.
    owes_since: Option<Instant>,
    deadline: Duration,
    driver: AbortHandle,
    /// Who keeps here, once it was asked.
    keeper: Option<Keeper>,
    /// Keys were evicted.
    evicts: bool,
}

/// Commands for one round trip, behind the question for the role.
#[derive(Debug)]
pub(crate) struct CommandPipeline(Pipeline);

impl CommandPipeline {
    pub(crate) fn new() -> Self {
        let mut pipeline = redis::pipe();
        pipeline.ignore_errors().add_command(command::hello());
        Self(pipeline)
    }

    pub(crate) fn add_command(&mut self, command: Cmd) {
        self.0.add_command(command);
    }
}

impl Connector {
    pub(crate) fn new(topology: Arc<Topology>, deadline: Duration) -> Self {
        Self {
            topology,
            deadline,
            failure: Arc::default(),
        }
    }

    /// Whether both lead to the same primary, wherever that is.
    pub(super) fn leads_as(&self, other: &Self) -> bool {
        self.leads_by(&other.topology)
    }

    pub(super) fn leads_by(&self, topology: &Arc<Topology>) -> bool {
        Arc::ptr_eq(&self.topology, topology)
    }

    /// Why there is no connection, in the words of whoever refused it.
    pub(super) fn failure(&self) -> Option<Arc<str>> {
        self.failure.lock().clone()
    }

    async fn open(&self) -> Result<Connection, RedisError> {
        let generation = self.topology.generation();
        let opened = self.topology.connect().await?.dialed;
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(self.deadline));
        let (multiplexed, driver) =
            MultiplexedConnection::new_with_config(&opened.login, opened.stream, config).await?;
        let dead = Arc::new(AtomicBool::new(false));
        let ended = EndGuard(dead.clone());
        let driver = tokio::spawn(async move {
            let _ended = ended;
            driver.await;
        });
        Ok(Connection {
            multiplexed,
            topology: self.topology.clone(),
            generation,
            dead,
            owes_since: None,
            deadline: self.deadline,
            driver: driver.abort_handle(),
            keeper: None,
            evicts: false,
        })
    }
}

/// Says that a connection is dead however its driver ends, with its runtime too.
struct EndGuard(Arc<AtomicBool>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl ManageConnection for Connector {
    type Connection = Connection;
    type Error = RedisError;

    /// Has a deadline of its own, and goes on when whoever asked for a connection gives up: the next one finds it.
    async fn connect(&self) -> Result<Connection, RedisError> {
        let late = || {
            io::Error::new(
                io::ErrorKind::TimedOut,
                "redis did not answer the login in time",
            )
        };
        let opened = timeout(OPENING, self.open()).await;
        let opened = opened.unwrap_or_else(|_| Err(late().into()));
        *self.failure.lock() = opened.as_ref().err().map(|error| words(error).into());
        opened
    }

    async fn is_valid(&self, connection: &mut Connection) -> Result<(), RedisError> {
        if connection.is_dead() {
            return Err(io::Error::from(io::ErrorKind::NotConnected).into());
        }
        Ok(())
    }

    fn has_broken(&self, connection: &mut Connection) -> bool {
        connection.is_dead()
    }
}

impl Connection {
    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
            || self.generation != self.topology.generation()
            || self
                .owes_since
                .is_some_and(|since| since.elapsed() >= self.deadline)
    }

    /// How many subscribers each of these channels has, in one round trip. A primary of a Redis Cluster counts none of
    /// what is another's: so to each of `marks` nothing is published behind that, which is refused then.
    pub(super) async fn subscribers(
        &mut self,
        channels: &[String],
        marks: &[String],
    ) -> Result<ChannelCounts, RedisError> {
        let dialect = self.topology.dialect();
        let mut commands = CommandPipeline::new();
        let chunks = channels.chunks(BATCH);
        let asked = chunks.len();
        for chunk in chunks {
            commands.add_command(command::numsub(dialect, chunk));
        }
        for mark in marks {
            commands.add_command(command::mark(mark));
        }
        let mut answers = self.run(&commands).await?.into_iter();
        let mut counts = Vec::with_capacity(channels.len());
        for answer in answers.by_ref().take(asked) {
            let counted: Vec<(String, usize)> = redis::from_redis_value(answer?)?;
            counts.extend(counted.into_iter().map(|(_, count)| count));
        }
        let is_here = |answer: RedisResult<Value>| match answer {
            Ok(_) => Ok(true),
            Err(error) if dialect.is_elsewhere(&words(&error)) => Ok(false),
            Err(error) => Err(error),
        };
        let here: RedisResult<_> = answers.map(is_here).collect();
        Ok((counts, here?))
    }

    /// Reads a part of what is asked for. Whether there is more.
    pub(super) async fn read(&mut self, readings: &mut Readings) -> RedisResult<bool> {
        let keeper = match self.keeper {
            Some(keeper) => keeper,
            None => self.prepare().await?,
        };
        let calls = readings.next();
        if calls.is_empty() {
            return Ok(false);
        }
        let mut commands = CommandPipeline::new();
        for call in &calls {
            commands.add_command(readings.command(call, keeper.run, self.evicts));
        }
        if keeper.may_evict && !self.evicts {
            commands.add_command(command::info_stats());
        }
        let mut answers = self.run(&commands).await?;
        if answers.len() > calls.len()
            && let Some(Ok(Value::BulkString(stats))) = answers.pop()
        {
            let stats = String::from_utf8_lossy(&stats);
            if field(&stats, "evicted_keys").is_some_and(|keys| keys != "0") {
                self.evicts = true;
                readings.again(calls);
                return Ok(true);
            }
        }
        let mut unread = Vec::new();
        for (call, answer) in calls.into_iter().zip(answers) {
            match answer {
                Ok(value) => readings
                    .answer(call, keeper.run, &value)
                    .map_err(|Unread| {
                        io::Error::other("redis answered a script as none of ours does")
                    })?,
                Err(error) if error.code() == Some("NOSCRIPT") => unread.push(call),
                Err(error) => return Err(error),
            }
        }
        if !unread.is_empty() {
            self.keeper = None;
        }
        readings.again(unread);
        Ok(true)
    }

    /// What positions are signed with; the first to ask makes it.
    pub(super) async fn key(&mut self, clock: &str) -> RedisResult<Key> {
        let mut commands = CommandPipeline::new();
        let [load, ask] = command::key((KEY.text, &KEY.digest), clock, &Key::random().to_string());
        commands.add_command(load);
        commands.add_command(ask);
        let answers: RedisResult<Vec<Value>> = self.run(&commands).await?.into_iter().collect();
        let key = match answers?.pop() {
            Some(Value::BulkString(text)) => std::str::from_utf8(&text).ok().and_then(Key::read),
            _ => None,
        };
        key.ok_or_else(|| io::Error::other(NO_KEY).into())
    }

    async fn prepare(&mut self) -> RedisResult<Keeper> {
        let mut commands = CommandPipeline::new();
        for command in command::prepare_read(READ.text) {
            commands.add_command(command);
        }
        let answers: RedisResult<Vec<Value>> = self.run(&commands).await?.into_iter().collect();
        let said = answers?;
        let mut said = said.iter().map(|value| match value {
            Value::BulkString(text) => String::from_utf8_lossy(text),
            _ => "".into(),
        });
        let (server, memory) = (said.next(), said.next());
        let keeper = Keeper::read(&server.unwrap_or_default(), &memory.unwrap_or_default());
        self.keeper = keeper;
        keeper.ok_or_else(|| io::Error::other(NO_RUN).into())
    }

    /// Runs commands; each has an answer of its own. Fails whole if this is a replica. Whatever shows that the
    /// primary is elsewhere makes this connection and all of its generation dead.
    pub(crate) async fn run(
        &mut self,
        commands: &CommandPipeline,
    ) -> RedisResult<Vec<RedisResult<Value>>> {
        self.owes_since.get_or_insert_with(Instant::now);
        let answers = commands.0.query_async(&mut self.multiplexed).await;
        self.owes_since = None;
        let dialect = self.topology.dialect();
        let answers = answers.and_then(|answers| of_primary(dialect, answers));
        match &answers {
            Ok(answers)
                if answers
                    .iter()
                    .flat_map(|answer| answer.as_ref().err())
                    .any(is_foreign) =>
            {
                self.topology.leave(self.generation);
            }
            Ok(_) => {}
            Err(error) => {
                self.dead.store(true, Ordering::Release);
                // Redis may only be slow.
                if !error.is_timeout() {
                    self.topology.leave(self.generation);
                }
            }
        }
        answers
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The answers behind the one to HELLO, if that is not a replica's.
fn of_primary(
    dialect: Dialect,
    answers: Vec<RedisResult<Value>>,
) -> RedisResult<Vec<RedisResult<Value>>> {
    let mut answers = answers.into_iter();
    match answers.next() {
        Some(Ok(hello)) => {
            let (role, mode) = (field_of(&hello, b"role"), field_of(&hello, b"mode"));
            if let Some(unfit) = is_unfit(dialect, role, mode) {
                return Err(io::Error::other(unfit).into());
            }
        }
        Some(Err(error)) if !tells_no_role(&words(&error)) => return Err(error),
        _ => {}
    }
    Ok(answers.collect())
}

fn field_of<'a>(hello: &'a Value, name: &[u8]) -> Option<&'a [u8]> {
    let Value::Array(fields) = hello else {
        return None;
    };
    let mut fields = fields.chunks_exact(2);
    let found = fields.find(|field| text(&field[0]) == Some(name))?;
    text(&found[1])
}

fn text(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(text) => Some(text),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

fn is_foreign(error: &RedisError) -> bool {
    is_wrong_server(&words(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::conformance::redis_server::RedisServer;
    use crate::bus::redis::advice::REPLICA;

    fn topology(server: &RedisServer) -> Arc<Topology> {
        Arc::new(Topology::at(&server.url()))
    }

    async fn hello(connection: &mut Connection) -> RedisResult<Vec<RedisResult<Value>>> {
        connection.run(&CommandPipeline::new()).await
    }

    #[tokio::test]
    async fn connections_follow_the_bus_and_one_another() {
        let server = RedisServer::start();
        let topology = topology(&server);
        let connector = Connector::new(topology.clone(), Duration::from_secs(20));
        let mut old = connector.connect().await.unwrap();
        hello(&mut old).await.unwrap();
        assert!(!old.is_dead(), "control");
        topology.moved();
        assert!(old.is_dead(), "the bus has a newer connection");

        let mut pair = [
            connector.connect().await.unwrap(),
            connector.connect().await.unwrap(),
        ];
        assert!(
            pair.iter().all(|connection| !connection.is_dead()),
            "control"
        );
        assert_eq!(server.cli(&["REPLICAOF", "127.0.0.1", "1"]), "OK");
        let error = hello(&mut pair[0]).await.unwrap_err();
        assert_eq!(words(&error), REPLICA);
        assert!(
            pair.iter().all(Connection::is_dead),
            "what one met, the other would meet"
        );
        // The others are told once, not by every connection that was left.
        let fresh = connector.connect().await.unwrap();
        hello(&mut pair[1]).await.unwrap_err();
        assert!(!fresh.is_dead());
    }

    /// With the runtime of whoever asked first, its driver is gone.
    #[test]
    fn a_connection_whose_runtime_ended_is_dead() {
        let server = RedisServer::start();
        let connector = Connector::new(topology(&server), Duration::from_secs(20));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let connection = runtime.block_on(connector.connect()).unwrap();
        assert!(!connection.is_dead(), "control");
        drop(runtime);
        assert!(connection.is_dead());
    }
}
