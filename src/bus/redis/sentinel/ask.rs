//! One question to one sentinel.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisResult, Value};
use tokio::time::timeout;

use super::answer::{Answer, advise, read};
use crate::bus::redis::command;
use crate::bus::redis::endpoint::{Connection, Endpoint, nobody};
use crate::bus::redis::words;

/// From the connect to the answer: those who have theirs wait for nobody longer.
const ASKING: Duration = Duration::from_millis(500);

pub(super) async fn ask(sentinel: &Endpoint, service: &str) -> Result<Answer, Arc<str>> {
    match timeout(ASKING, exchange(sentinel, service)).await {
        Ok(answer) => answer.map_err(|words| advise(&words, service, sentinel.user())),
        Err(_) => Err("it does not answer in time".into()),
    }
}

async fn exchange(sentinel: &Endpoint, service: &str) -> Result<Answer, String> {
    let opened = sentinel.connect().await;
    let Connection { stream, login } = opened.map_err(|error| error.to_string())?;
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(ASKING));
    let connected = MultiplexedConnection::new_with_config(&nobody(), stream, config).await;
    let (mut connection, driver) = connected.map_err(|error| words(&error))?;
    let (auth, mut question) = (command::log_in(&login), redis::pipe());
    question.ignore_errors();
    let logs_in = auth.is_some();
    for command in auth.into_iter().chain(command::sentinel(service)) {
        question.add_command(command);
    }
    let answers: RedisResult<Vec<RedisResult<Value>>> = tokio::select! {
        answers = question.query_async(&mut connection) => answers,
        () = driver => return Err("it closed the connection".into()),
    };
    let answers = answers.map_err(|error| words(&error))?.into_iter();
    let mut answers = answers.map(|answer| answer.map_err(|error| words(&error)));
    if logs_in && let Some(Err(refused)) = answers.next() {
        return Err(refused);
    }
    read(answers.collect())
}
