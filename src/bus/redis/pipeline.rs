//! The connection that publishes: commands written as bytes, counts read in place, all by the task that
//! owns it. (Measured against a multiplexed connection with a task of its own: see benches/README.md.)

use std::pin::Pin;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::advice::{Advice, REPLICA, is_unfit, tells_no_role};
use super::command::{self, Dialect, HELLO};
use super::endpoint::Stream;
use super::resp::{Reply, RespReader};
use super::topology::{Opened, Topology};

/// What Redis says to one PUBLISH: how many received it, or why it was refused.
pub(crate) type PublishReply = Result<usize, Refused>;

/// Why one PUBLISH was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Another primary of the cluster takes it, or this one later.
    Elsewhere(Arc<str>),
    For(Arc<str>),
}

impl Refused {
    pub(super) fn reason(self) -> Arc<str> {
        let (Self::Elsewhere(reason) | Self::For(reason)) = self;
        reason
    }
}

/// Why a connection is of no use, or no longer.
#[derive(Debug)]
pub(crate) struct Unusable {
    pub(crate) on_replica: bool,
    pub(crate) reason: Arc<str>,
}

impl<T: Into<Arc<str>>> From<T> for Unusable {
    fn from(reason: T) -> Self {
        Self {
            on_replica: false,
            reason: reason.into(),
        }
    }
}

/// Memory that is kept between batches; so much is written at once.
const KEPT: usize = 256 * 1024;

pub(crate) struct Pipeline {
    stream: Pin<Box<dyn Stream>>,
    /// The topology's when it was opened.
    pub(super) route: u64,
    reader: RespReader,
    output: BytesMut,
    advice: Arc<Advice>,
    dialect: Dialect,
    /// Replies that are still to come.
    owed: usize,
    /// What the first of them answers, where that is no PUBLISH.
    first: Option<First>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Login,
    /// Whether the server is a replica.
    Role,
}

impl Pipeline {
    /// Logs in, and makes sure that this is no replica.
    pub(crate) async fn open(topology: &Topology, advice: &Arc<Advice>) -> Result<Self, Unusable> {
        let opened = topology.connect().await;
        let Opened { dialed, route } = opened.map_err(|error| error.to_string())?;
        let auth = dialed.auth();
        let mut pipeline = Self {
            stream: dialed.stream,
            route,
            reader: RespReader::new(KEPT),
            output: BytesMut::new(),
            advice: advice.clone(),
            dialect: topology.dialect(),
            owed: 0,
            first: None,
        };
        if let Some(auth) = auth {
            pipeline.output.extend_from_slice(&auth);
            pipeline.owed = 1;
            pipeline.first = Some(First::Login);
            let mut replies = Vec::new();
            pipeline.exchange(&mut replies).await?;
            let refused = replies.into_iter().find_map(Result::err);
            if let Some(refused) = refused {
                return Err(refused.reason().into());
            }
        }
        pipeline.ask_role();
        pipeline.exchange(&mut Vec::new()).await?;
        Ok(pipeline)
    }

    /// The connection, if it still stands, as far as the kernel knows.
    pub(crate) fn alive(&mut self) -> Option<&mut Self> {
        // Redis says nothing unasked but its farewell.
        let said = self.stream.read_buf(self.reader.space()).now_or_never();
        said.is_none().then_some(self)
    }

    /// Makes the next [`exchange`](Self::exchange) fail if this is a replica by now. To be called before
    /// anything is added to it.
    pub(crate) fn ask_role(&mut self) {
        self.output.put_slice(HELLO);
        self.owed += 1;
        self.first = Some(First::Role);
    }

    /// Adds a PUBLISH to what [`exchange`](Self::exchange) writes. Whatever is much is written already, so
    /// that a message to thousands of users is not there thousands of times. After an error, or cancelled,
    /// the connection is useless.
    pub(crate) async fn add(
        &mut self,
        channel: &str,
        publication: (&[u8], &[u8]),
    ) -> Result<(), Unusable> {
        command::publish(&mut self.output, self.dialect, channel, publication);
        self.owed += 1;
        if self.output.len() >= KEPT {
            self.write().await?;
        }
        Ok(())
    }

    async fn write(&mut self) -> Result<(), Unusable> {
        let written = self.stream.write_all(&self.output).await;
        self.output.clear();
        if self.output.capacity() > KEPT {
            self.output = BytesMut::new();
        }
        Ok(written.map_err(|error| error.to_string())?)
    }

    /// Writes what was added and reads the replies in its order, into what is empty. A reply of another kind than was
    /// asked for belongs to another command. After an error, or cancelled, the connection is useless.
    pub(crate) async fn exchange(
        &mut self,
        replies: &mut Vec<PublishReply>,
    ) -> Result<(), Unusable> {
        self.write().await?;
        self.stream
            .flush()
            .await
            .map_err(|error| error.to_string())?;
        let (owed, first) = (std::mem::take(&mut self.owed), self.first.take());
        let (mut unfit, mut out_of_step) = (None, false);
        while replies.len() < owed {
            match self.stream.read_buf(self.reader.space()).await {
                Ok(0) => return Err("redis closed the connection".into()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string().into()),
            }
            let read = self.reader.read(usize::MAX, |reply| {
                let asked = first.filter(|_| replies.is_empty());
                replies.push(match (asked, reply) {
                    (_, Reply::Error(words)) => {
                        let words = String::from_utf8_lossy(words);
                        let reason = self.advice.on(&words);
                        Err(match self.dialect.is_elsewhere(&words) {
                            true => Refused::Elsewhere(reason),
                            false => Refused::For(reason),
                        })
                    }
                    (None, Reply::Integer(received)) => Ok(received),
                    (Some(First::Login), Reply::Other) => Ok(0),
                    (Some(First::Role), Reply::Hello { role, mode }) => {
                        unfit = is_unfit(self.dialect, role, mode);
                        Ok(0)
                    }
                    _ => {
                        out_of_step = true;
                        Ok(0)
                    }
                });
            });
            if read.is_err() || out_of_step || replies.len() > owed {
                return Err("redis broke its own protocol".into());
            }
        }
        if first == Some(First::Role)
            && let Err(refused) = replies.remove(0)
        {
            let words = refused.reason();
            if !tells_no_role(&words) {
                return Err(words.into());
            }
        }
        match unfit {
            Some(reason) => Err(Unusable {
                on_replica: reason == REPLICA,
                reason: reason.into(),
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;
    use crate::model::topic::Namespace;

    fn over(stream: DuplexStream) -> Pipeline {
        Pipeline {
            stream: Box::pin(stream),
            route: 0,
            reader: RespReader::new(KEPT),
            output: BytesMut::new(),
            advice: Arc::new(Advice::new(
                None,
                &Namespace::new("x").unwrap(),
                Dialect::Plain,
            )),
            dialect: Dialect::Plain,
            owed: 0,
            first: None,
        }
    }

    /// A PUBLISH, with the question for the role before it or not, and what Redis says.
    async fn publish(asks: bool, answers: &[u8]) -> Result<Vec<PublishReply>, Arc<str>> {
        let (stream, mut server) = tokio::io::duplex(1024);
        let mut pipeline = over(stream);
        if asks {
            pipeline.ask_role();
        }
        pipeline.add("x", (b"", b"hello")).await.unwrap();
        server.write_all(answers).await.unwrap();
        let mut replies = Vec::new();
        let exchanged = pipeline.exchange(&mut replies).await;
        exchanged.map(|()| replies).map_err(|error| error.reason)
    }

    #[tokio::test]
    async fn what_answers_another_command_is_not_taken_for_a_count() {
        const ROLE: &str = "*4\r\n$6\r\nserver\r\n$5\r\nredis\r\n$4\r\nrole\r\n$6\r\nmaster\r\n";
        let good = [
            (false, ":2\r\n".to_owned()),
            (true, format!("{ROLE}:2\r\n")),
        ];
        for (asks, answers) in good {
            assert_eq!(publish(asks, answers.as_bytes()).await, Ok(vec![Ok(2)]));
        }
        for (asks, answers) in [
            (false, "+OK\r\n".to_owned()),
            (false, ROLE.to_owned()),
            (true, ":2\r\n:2\r\n".to_owned()),
            (true, format!(":2\r\n{ROLE}")),
            (true, format!("{ROLE}+OK\r\n")),
        ] {
            let error = publish(asks, answers.as_bytes()).await.unwrap_err();
            assert!(error.contains("protocol"), "{answers}: {error}");
        }
    }

    #[tokio::test]
    async fn a_message_to_thousands_is_written_in_pieces() {
        const USERS: usize = 200;
        let (stream, mut server) = tokio::io::duplex(1024);
        let mut pipeline = over(stream);
        let envelope = vec![b'x'; 64 * 1024];
        let mut expected = BytesMut::new();
        for user in 0..USERS {
            command::publish(
                &mut expected,
                Dialect::Plain,
                &user.to_string(),
                (b"", &envelope),
            );
        }
        let mut most = 0;
        let publishing = async {
            for user in 0..USERS {
                pipeline
                    .add(&user.to_string(), (b"", &envelope))
                    .await
                    .unwrap();
                most = most.max(pipeline.output.capacity());
            }
            let mut replies = Vec::new();
            pipeline.exchange(&mut replies).await.unwrap();
            replies
        };
        let serving = async {
            let mut read = vec![0; expected.len()];
            server.read_exact(&mut read).await.unwrap();
            let answers = ":1\r\n".repeat(USERS);
            server.write_all(answers.as_bytes()).await.unwrap();
            read
        };
        let (replies, read) = tokio::join!(publishing, serving);
        assert_eq!(replies, vec![Ok(1); USERS]);
        assert!(read == expected, "all of it, in order");
        assert!(most <= 4 * KEPT, "{most} bytes at once");
    }
}
