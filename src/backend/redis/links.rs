//! Connections for questions, pooled by bb8.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bb8_redis::bb8::ManageConnection;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisError};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::endpoint::Endpoint;

/// Channels in one command: Redis serves nobody else meanwhile.
const BATCH: usize = 1000;

/// How links are made.
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

    /// How many subscribers each of these channels has, in one round trip.
    pub(crate) async fn subscribers(
        &mut self,
        channels: &[String],
    ) -> Result<Vec<usize>, RedisError> {
        let mut pipeline = redis::pipe();
        for chunk in channels.chunks(BATCH) {
            pipeline.cmd("PUBSUB").arg("NUMSUB").arg(chunk);
        }
        let counted = pipeline.query_async(&mut self.connection).await;
        if counted.as_ref().is_err_and(RedisError::is_timeout) {
            self.dead.store(true, Ordering::Release);
        }
        let counted: Vec<Vec<(String, usize)>> = counted?;
        Ok(counted
            .into_iter()
            .flatten()
            .map(|(_, count)| count)
            .collect())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
