//! The question to sentinels.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use tokio::time::{sleep, timeout};

use super::answer::{Answer, advise, read};
use crate::bus::redis::command;
use crate::bus::redis::endpoint::{Dialed, Endpoint, nobody};
use crate::bus::redis::{until_answered, words};

/// From the connect to the answer: four round trips of 1.2 s, since a slow link is no dead one.
const ASKING: Duration = Duration::from_secs(5);
/// So long all are waited for; then more than half are enough.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);

/// The answers as they come: of all, or of more than half once `patience` is over. Each question has its own deadline.
pub(super) async fn gather<T>(
    asking: impl IntoIterator<Item = impl Future<Output = T>>,
    patience: Duration,
) -> Vec<T> {
    let mut asking: FuturesUnordered<_> = asking.into_iter().collect();
    let (count, mut answers) = (asking.len(), Vec::new());
    let (mut patience, mut is_late) = (pin!(sleep(patience)), false);
    while answers.len() < count && !(is_late && answers.len() * 2 > count) {
        tokio::select! {
            answer = asking.next() => answers.extend(answer),
            () = &mut patience, if !is_late => is_late = true,
        }
    }
    answers
}

pub(super) async fn ask(sentinel: &Endpoint, service: &str) -> Result<Answer, Arc<str>> {
    match timeout(ASKING, exchange(sentinel, service)).await {
        Ok(answer) => answer.map_err(|words| advise(&words, service, sentinel.user())),
        Err(_) => Err("it does not answer in time".into()),
    }
}

async fn exchange(sentinel: &Endpoint, service: &str) -> Result<Answer, String> {
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

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::{BoxFuture, pending, ready};

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const NEVER: Duration = Duration::from_secs(3600);

    fn at_once(n: u8) -> BoxFuture<'static, u8> {
        ready(n).boxed()
    }

    fn late(n: u8) -> BoxFuture<'static, u8> {
        sleep(50 * MS).map(move |()| n).boxed()
    }

    #[tokio::test]
    async fn a_few_that_are_silent_keep_nobody_waiting() {
        let never = || pending().boxed();
        for (asking, patience, heard) in [
            (vec![at_once(1), at_once(2), never()], MS, vec![1, 2]),
            (vec![at_once(1), never(), late(3)], MS, vec![1, 3]),
            (vec![late(1)], MS, vec![1]),
            (vec![at_once(1), at_once(2), late(3)], NEVER, vec![1, 2, 3]),
            (vec![], NEVER, vec![]),
        ] {
            let answers = timeout(ASKING, gather(asking, patience)).await;
            let mut answers = answers.expect("it ends");
            answers.sort_unstable();
            assert_eq!(answers, heard);
        }
        let one = gather([at_once(1), never(), never()], MS);
        assert!(timeout(50 * MS, one).await.is_err(), "control: no half");
    }
}
