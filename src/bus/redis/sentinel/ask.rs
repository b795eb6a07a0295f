//! The question to sentinels.

use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use tokio::time::timeout;

use super::answer::{SentinelAnswer, advise, read};
use super::council::Said;
use super::round::ASKING;
use crate::bus::redis::command;
use crate::bus::redis::endpoint::{Dialed, Endpoint, nobody};
use crate::bus::redis::{until_answered, words};

pub(super) async fn ask(sentinel: &Endpoint, service: &str) -> Said {
    match timeout(ASKING, exchange(sentinel, service)).await {
        Ok(answer) => answer.map_err(|words| advise(&words, service, sentinel.user())),
        Err(_) => Err("it does not answer in time".into()),
    }
}

async fn exchange(sentinel: &Endpoint, service: &str) -> Result<SentinelAnswer, String> {
    let opened = sentinel.connect().await;
    let Dialed {
        stream,
        login,
        ending,
    } = opened.map_err(|error| error.to_string())?;
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(ASKING));
    let connected = MultiplexedConnection::new_with_config(&nobody(), stream, config).await;
    let (mut connection, driver) = connected.map_err(|error| words(&error))?;
    let (auth, mut question) = (command::log_in(&login), redis::pipe());
    question.ignore_errors();
    let logs_in = auth.is_some();
    for command in auth.into_iter().chain(command::sentinel(service)) {
        question.add_command(command);
    }
    let asking = question.query_async(&mut connection);
    let answers = until_answered(asking, driver, &ending).await?.into_iter();
    let mut answers = answers.map(|answer| answer.map_err(|error| words(&error)));
    if logs_in && let Some(Err(refused)) = answers.next() {
        return Err(refused);
    }
    read(answers.collect())
}
