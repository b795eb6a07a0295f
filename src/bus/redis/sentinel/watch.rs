//! The task that listens to one sentinel, so that a failover is known at once. If that one ends, it goes to the next.
//!
//! What it hears is a hint and no more: then all of them are asked. An event may be missed, so they are asked after every
//! connect as well, and at every probe without any hint.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use super::Sentinels;
use super::answer::advise;
use crate::bus::redis::address::ServerAddress;
use crate::bus::redis::backoff::{Backoff, LONGEST_PAUSE};
use crate::bus::redis::command::{self, Dialect};
use crate::bus::redis::resp::{Reply, RespReader};
use crate::bus::redis::topology::Topology;

/// Said by a sentinel when it takes another server for the primary: `<name> <old ip> <port> <new ip> <port>`.
const SWITCHED: &str = "+switch-master";
/// The longest that a sentinel may take to accept a connection, and to say anything when it is asked for life.
const PATIENCE: Duration = Duration::from_secs(5);
/// A silent sentinel is asked for life after this long. Nothing is lost meanwhile but time: all are asked besides.
const SILENCE: Duration = Duration::from_secs(5);
/// Longest event.
const LIMIT: usize = 4 * 1024;

#[derive(Debug)]
pub(in crate::bus::redis) struct Watcher {
    sentinels: Arc<Sentinels>,
    topology: Arc<Topology>,
    /// Which of them.
    turn: usize,
}

impl Watcher {
    pub(in crate::bus::redis) fn new(sentinels: Arc<Sentinels>, topology: Arc<Topology>) -> Self {
        Self {
            sentinels,
            topology,
            turn: fastrand::usize(..),
        }
    }

    /// Listens to one after the other, for ever.
    pub(in crate::bus::redis) async fn run(&mut self) {
        let mut backoff = Backoff::new(LONGEST_PAUSE);
        loop {
            let known = self.sentinels.known();
            // Never empty.
            if let Some(sentinel) = known.get(self.turn % known.len().max(1)) {
                let Err(reason) = self.watch(sentinel, &mut backoff).await;
                tracing::debug!(%sentinel, %reason, "this sentinel tells of no failover: the next one is listened to");
            }
            self.turn = self.turn.wrapping_add(1);
            sleep(backoff.ended(Instant::now(), fastrand::f64())).await;
        }
    }

    async fn watch(
        &self,
        sentinel: &ServerAddress,
        backoff: &mut Backoff,
    ) -> Result<Infallible, Arc<str>> {
        let endpoint = self.sentinels.endpoint(sentinel);
        let opened = timeout(PATIENCE, endpoint.connect()).await;
        let opened = opened.map_err(|_| "it accepts no connection in time")?;
        let mut connection = opened.map_err(|error| error.to_string())?;
        let mut output = connection.auth().unwrap_or_default();
        command::subscribe(
            &mut output,
            Dialect::Plain,
            [SWITCHED.to_owned()].into_iter(),
        );
        let (mut reader, mut asked) = (RespReader::new(LIMIT), true);
        loop {
            let writing = async {
                connection.stream.write_all_buf(&mut output).await?;
                connection.stream.flush().await
            };
            let written = timeout(PATIENCE, writing).await;
            let written = written.map_err(|_| "it reads nothing")?;
            written.map_err(|error| error.to_string())?;
            let patience = if asked { PATIENCE } else { SILENCE };
            match timeout(patience, connection.stream.read_buf(reader.space())).await {
                Err(_) if asked => return Err("it does not answer".into()),
                Err(_) => {
                    command::ping(&mut output);
                    asked = true;
                }
                Ok(Ok(0)) => return Err("it closed the connection".into()),
                Ok(Ok(_)) => {
                    asked = false;
                    self.hear(&mut reader, backoff)?;
                }
                Ok(Err(error)) => return Err(error.to_string().into()),
            }
        }
    }

    fn hear(&self, reader: &mut RespReader, backoff: &mut Backoff) -> Result<(), Arc<str>> {
        let service = &self.sentinels.target.service;
        let user = self.sentinels.target.sentinels.login.user.as_deref();
        let (mut refused, mut hints) = (None, false);
        let read = reader.read(usize::MAX, |reply| match reply {
            Reply::Subscribed { .. } => {
                backoff.works(Instant::now());
                hints = true;
            }
            Reply::Message { payload, .. } => hints |= concerns(payload, service),
            Reply::Error(words) => {
                refused = Some(advise(&String::from_utf8_lossy(words), service, user));
            }
            _ => {}
        });
        if hints {
            self.topology.missed();
        }
        match (refused, read) {
            (Some(refused), _) => Err(refused),
            (None, Ok(_)) => Ok(()),
            (None, Err(_)) => Err("it broke the protocol".into()),
        }
    }
}

/// Whether an event is about this primary.
fn concerns(event: &[u8], service: &str) -> bool {
    let rest = event.strip_prefix(service.as_bytes());
    rest.is_some_and(|rest| rest.starts_with(b" "))
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::bus::redis::options::SentinelTarget;

    const LONG: Duration = Duration::from_secs(20);
    const SUBSCRIBED: &[u8] = b"*3\r\n$9\r\nsubscribe\r\n$14\r\n+switch-master\r\n:1\r\n";
    const EVENT: &[u8] =
        b"*3\r\n$7\r\nmessage\r\n$14\r\n+switch-master\r\n$20\r\nshop 10.0.0.1 1 h 22\r\n";

    async fn asked(server: &TcpListener) -> TcpStream {
        let accepted = timeout(LONG, server.accept()).await;
        let (mut stream, _) = accepted.expect("it is gone to").unwrap();
        let mut said = [0; 256];
        let count = stream.read(&mut said).await.unwrap();
        let said = String::from_utf8_lossy(&said[..count]);
        assert!(
            said.contains("SUBSCRIBE\r\n$14\r\n+switch-master"),
            "{said}"
        );
        stream
    }

    #[tokio::test]
    async fn every_connect_and_event_is_a_hint_and_whoever_ends_or_is_silent_is_left_for_the_next()
    {
        let (mut servers, mut seeds) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
            seeds.push(ServerAddress::new(
                "127.0.0.1",
                server.local_addr().unwrap().port(),
            ));
            servers.push(server);
        }
        let target = SentinelTarget {
            seeds,
            service: "shop".into(),
            sentinels: Arc::default(),
            primary: Arc::default(),
        };
        let topology = Arc::new(Topology::sought());
        let sentinels = Arc::new(Sentinels::new(Arc::new(target), SILENCE));
        let mut watcher = Watcher::new(sentinels, topology.clone());
        watcher.turn = 0;
        let watching = tokio::spawn(async move { watcher.run().await });
        let hinted = async || timeout(LONG, topology.is_missed()).await.expect("a hint");

        let mut ends = asked(&servers[0]).await;
        ends.write_all(SUBSCRIBED).await.unwrap();
        hinted().await;
        ends.write_all(EVENT).await.unwrap();
        hinted().await;
        drop(ends);
        let mut is_silent = asked(&servers[1]).await;
        let mut last = asked(&servers[2]).await;
        let end = is_silent.read(&mut [0]).await;
        assert!(matches!(end, Ok(0) | Err(_)), "it was left: {end:?}");
        last.write_all(SUBSCRIBED).await.unwrap();
        hinted().await;
        watching.abort();
    }

    #[test]
    fn only_events_of_this_primary_are_hints() {
        assert!(concerns(b"shop 10.0.0.1 1 10.0.0.2 2", "shop"));
        assert!(!concerns(b"shop-2 10.0.0.1 1 10.0.0.2 2", "shop"));
        assert!(!concerns(b"sh", "shop"));
    }
}
