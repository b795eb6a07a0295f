//! What a shard is asked, over the connections of its pool: who hears a topic, what came to it, what positions are signed with.

use std::collections::BTreeMap;
use std::sync::Arc;

use bb8_redis::bb8::{PooledConnection, RunError};
use tokio::time::{Instant, timeout_at};

use super::Shard;
use crate::bus::past::{ReadLimits, TopicPast};
use crate::bus::redis::command::is_on_its_way;
use crate::bus::redis::connection::{ChannelCounts, Connector};
use crate::bus::redis::past::read::{ReadCall, Readings, Unions, WantedList};
use crate::bus::redis::pipeline::RefusedPublish;
use crate::bus::redis::{explain, words};
use crate::model::history::mark::Marks;
use crate::model::history::token::Key;
use crate::model::partition::PartitionSet;
use crate::model::topic::Topic;

const SILENT: &str = "redis did not answer in time";

impl Shard {
    /// Asks how many hear each topic; also which partitions are not here, so that nobody is found.
    pub(in crate::bus::redis) async fn listening<'a>(
        &self,
        topics: impl IntoIterator<Item = &'a Topic>,
    ) -> Result<(Vec<usize>, PartitionSet), Arc<str>> {
        let (mut channels, mut partitions) = (Vec::new(), PartitionSet::new());
        for topic in topics {
            channels.push(self.channels.of(topic));
            partitions = partitions | self.channels.partition(topic).into_iter().collect();
        }
        let marks = partitions.iter().map(|one| self.channels.mark(one));
        let (counts, here) = self.ask(&channels, &marks.collect::<Vec<_>>()).await?;
        let gone = partitions.iter().zip(here).filter(|(_, here)| !here);
        let gone: PartitionSet = gone.map(|(partition, _)| partition).collect();
        if !gone.is_empty() {
            self.topology.missed();
        }
        Ok((counts, gone))
    }

    /// What came to these of one partition, each at its place, since the mark of their clock; without marks, whatever is kept.
    pub(in crate::bus::redis) async fn read(
        &self,
        topics: &[(usize, &Topic)],
        since: Option<&Marks>,
        limits: ReadLimits,
    ) -> Result<Vec<(usize, TopicPast)>, RefusedPublish> {
        let mut calls = BTreeMap::new();
        for (place, topic) in topics {
            let Some(history) = self.common.settings.histories.of(topic.kind()) else {
                continue;
            };
            let clock = self.clock(topic);
            let call = calls.entry(clock).or_insert_with(|| ReadCall {
                clock,
                clock_key: self.channels.clock(topic).to_string(),
                since: since.and_then(|marks| marks.of(clock)),
                is_lost: since.is_some_and(|marks| marks.of(clock).is_none()),
                unions: (limits.entries > 1).then(|| self.unions(topic)),
                wanted: Vec::new(),
            });
            call.wanted.push(WantedList {
                place: *place,
                topic: (*topic).clone(),
                key: self.channels.list(topic),
                keep: history.keep_millis(),
            });
        }
        let mut readings = Readings::new(calls.into_values(), limits);
        loop {
            let deadline = Instant::now() + self.publish_timeout();
            let mut connection = self.opened(deadline).await.map_err(RefusedPublish::For)?;
            match timeout_at(deadline, connection.read(&mut readings)).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return Ok(readings.answers),
                Ok(Err(error)) => return Err(self.refused(&words(&error))),
                Err(_) => return Err(RefusedPublish::For(SILENT.into())),
            }
        }
    }

    fn refused(&self, words: &str) -> RefusedPublish {
        let reason = self.advice.on(words);
        if !self.topology.dialect().is_elsewhere(words) {
            return RefusedPublish::For(reason);
        }
        if !is_on_its_way(words) {
            self.topology.missed();
        }
        RefusedPublish::Elsewhere(reason)
    }

    /// Where large unions are kept that are of the same clock as this topic: as long as the topics that keep longest.
    pub(super) fn unions(&self, topic: &Topic) -> Unions {
        let histories = self.common.settings.histories;
        let all = || histories.all_kinds();
        Unions {
            key: self.channels.unions(topic),
            messages: all().map(|it| it.messages).max().unwrap_or_default(),
            keep: all().map(|it| it.keep_millis()).max().unwrap_or_default(),
            lifetime: all()
                .map(|it| it.lifetime_millis())
                .max()
                .unwrap_or_default(),
            most: all().map(|it| it.most()).max().unwrap_or_default(),
        }
    }

    /// What positions are signed with, kept beside the clock of this topic.
    pub(in crate::bus::redis) async fn key(&self, topic: &Topic) -> Result<Key, RefusedPublish> {
        let clock = self.channels.clock(topic);
        let deadline = Instant::now() + self.publish_timeout();
        let mut connection = self.opened(deadline).await.map_err(RefusedPublish::For)?;
        match timeout_at(deadline, connection.key(&clock)).await {
            Ok(Ok(key)) => Ok(key),
            Ok(Err(error)) => Err(self.refused(&words(&error))),
            Err(_) => Err(RefusedPublish::For(SILENT.into())),
        }
    }

    /// Once more on a new connection, if that which there was is of no use.
    async fn ask(&self, channels: &[String], marks: &[String]) -> Result<ChannelCounts, Arc<str>> {
        let deadline = Instant::now() + self.publish_timeout();
        let mut may_repeat = true;
        loop {
            let mut connection = self.opened(deadline).await?;
            match timeout_at(deadline, connection.subscribers(channels, marks)).await {
                Ok(Ok(counts)) => return Ok(counts),
                Ok(Err(error)) if may_repeat && connection.is_dead() => {
                    tracing::debug!(reason = %words(&error), "a question is asked again on a new connection");
                    self.topology.probe_now();
                    may_repeat = false;
                }
                Ok(Err(error)) => return Err(explain(&self.advice, &error)),
                // The connection may have had too little time: it knows itself for how long it owes an answer.
                Err(_) => return Err(SILENT.into()),
            }
        }
    }

    async fn opened(&self, deadline: Instant) -> Result<PooledConnection<'_, Connector>, Arc<str>> {
        match timeout_at(deadline, self.questions.get()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(RunError::User(error))) => Err(explain(&self.advice, &error)),
            Ok(Err(RunError::TimedOut)) | Err(_) => Err(self.unopened()),
        }
    }

    fn unopened(&self) -> Arc<str> {
        match self.connector.failure() {
            Some(words) => self.advice.on(&words),
            None => "redis accepted no connection in time".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::bus::BusSettings;
    use crate::bus::outage::LinkId;
    use crate::bus::redis::options::Redis;
    use crate::bus::redis::shard::Common;
    use crate::bus::redis::{advice, command};
    use crate::model::id::NodeId;

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
        let settings = BusSettings::plain(Duration::from_secs(20));
        let common = Common::new(NodeId::random(), settings);
        let target = Redis::at(url).unwrap().target().unwrap();
        let shard = Shard::new(LinkId::ONLY, None, &target, Arc::new(common));
        let channels = ["x".to_owned()];
        tokio::select! {
            counted = shard.ask(&channels, &[]) => counted.map(|(counts, _)| counts),
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
