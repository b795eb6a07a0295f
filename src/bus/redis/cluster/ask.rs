//! The question to a server of a cluster.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd};
use tokio::time::timeout;

use super::answer::{ClusterAnswer, advise, read};
use super::view::AskedHost;
use crate::bus::redis::address::ServerAddress;
use crate::bus::redis::command;
use crate::bus::redis::endpoint::{Dialed, nobody};
use crate::bus::redis::explained::Ending;
use crate::bus::redis::options::ClusterTarget;
use crate::bus::redis::{until_answered, words};

/// For the login and the answer: four round trips of 1.2 s, since a slow link is no dead one. Connecting has a deadline
/// of its own.
const ASKING: Duration = Duration::from_secs(5);

/// A server that is asked, by a connection that is kept as long as it answers.
pub(super) struct Witness {
    host: ServerAddress,
    connection: MultiplexedConnection,
    driver: BoxFuture<'static, ()>,
    ending: Ending,
}

/// What became of a question. Whoever does not answer is not asked again by this connection.
pub(super) type WitnessAnswer = Result<(Witness, ClusterAnswer), Arc<str>>;

impl Witness {
    /// Connects, and asks.
    pub(super) async fn find(target: &ClusterTarget, host: &ServerAddress) -> WitnessAnswer {
        let opened = target.endpoint(host).connect().await;
        let Dialed {
            stream,
            login,
            ending,
        } = opened.map_err(|error| Arc::from(error.to_string()))?;
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(ASKING));
        let connecting = async {
            let connected = MultiplexedConnection::new_with_config(&nobody(), stream, config).await;
            let (connection, driver) = connected.map_err(|error| words(&error))?;
            let witness = Self {
                host: host.clone(),
                connection,
                driver: Box::pin(driver),
                ending,
            };
            witness.answer(target, command::log_in(&login)).await
        };
        in_time(target, connecting).await
    }

    /// Asks again.
    pub(super) async fn ask(self, target: &ClusterTarget) -> WitnessAnswer {
        in_time(target, self.answer(target, None)).await
    }

    pub(super) fn host(&self) -> &ServerAddress {
        &self.host
    }

    async fn answer(
        mut self,
        target: &ClusterTarget,
        auth: Option<Cmd>,
    ) -> Result<(Self, ClusterAnswer), String> {
        let mut question = redis::pipe();
        question.ignore_errors();
        let logs_in = auth.is_some();
        for command in auth.into_iter().chain(command::cluster()) {
            question.add_command(command);
        }
        let asking = question.query_async(&mut self.connection);
        let answers = until_answered(asking, &mut self.driver, &self.ending).await?;
        let mut answers = answers
            .into_iter()
            .map(|answer| answer.map_err(|error| words(&error)));
        if logs_in && let Some(Err(refused)) = answers.next() {
            return Err(refused);
        }
        let asked = AskedHost {
            host: &self.host,
            by_name: target.is_secured(),
        };
        let answer = read(answers.collect(), asked)?;
        Ok((self, answer))
    }
}

async fn in_time(
    target: &ClusterTarget,
    asking: impl Future<Output = Result<(Witness, ClusterAnswer), String>>,
) -> WitnessAnswer {
    match timeout(ASKING, asking).await {
        Ok(told) => told.map_err(|words| advise(&words, target.user())),
        Err(_) => Err("it does not answer in time".into()),
    }
}

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.host.fmt(f)
    }
}
