//! What this node signs positions with, as all do: kept where all is kept, so that nobody has to configure it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::Archive;
use crate::model::history::Missed;
use crate::model::history::position::Position;
use crate::model::history::token::{self, Key, Parts};

/// The key, and when it was asked for.
#[derive(Debug)]
pub(crate) struct Keyring {
    archive: Arc<dyn Archive>,
    known: Mutex<KnownKey>,
    /// One asks for all.
    asking: tokio::sync::Mutex<()>,
    publish_timeout: Duration,
}

#[derive(Debug, Default)]
struct KnownKey {
    key: Option<(Key, Instant)>,
    /// Where it is kept it was lost meanwhile, and another made.
    before: Option<Key>,
    failed: Option<(Arc<str>, Instant)>,
}

impl Keyring {
    pub(crate) fn new(archive: Arc<dyn Archive>, publish_timeout: Duration) -> Self {
        Self {
            archive,
            known: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
            publish_timeout,
        }
    }

    /// The key with which positions are signed.
    pub(crate) async fn key(&self) -> Result<Key, Arc<str>> {
        let known = self.known.lock().key;
        match known {
            Some((key, at)) if at.elapsed() < FRESH => Ok(key),
            Some((key, _)) => Ok(self.ask().await.unwrap_or(key)),
            None => self.ask().await,
        }
    }

    /// To sign with, for whoever does not wait where it is known, however long ago it was asked for.
    pub(crate) async fn signing(&self) -> Option<Key> {
        let known = self.known.lock().key;
        match known {
            Some((key, _)) => Some(key),
            None => self.ask().await.ok(),
        }
    }

    /// What a position says. Nobody can tell while the bus is down for the first time.
    pub(crate) async fn read(
        &self,
        position: &Position,
    ) -> Result<Result<Parts, Missed>, Arc<str>> {
        let key = self.key().await?;
        let before = self.known.lock().before;
        let read = token::read(position, &key);
        Ok(match before {
            Some(before) => read.or_else(|_| token::read(position, &before)),
            None => read,
        })
    }

    async fn ask(&self) -> Result<Key, Arc<str>> {
        let asking = timeout(self.publish_timeout, self.asking.lock()).await;
        let _asking = asking.map_err(|_| Arc::from("others ask for the key of positions"))?;
        {
            let known = self.known.lock();
            match (&known.key, &known.failed) {
                (Some((key, at)), _) if at.elapsed() < FRESH => return Ok(*key),
                (_, Some((why, at))) if at.elapsed() < PAUSE => return Err(why.clone()),
                _ => {}
            }
        }
        let asked = self.archive.key().await;
        let mut known = self.known.lock();
        let now = Instant::now();
        match &asked {
            Ok(key) => {
                let before = known.key.replace((*key, now)).map(|(key, _)| key);
                known.before = before.filter(|before| before != key).or(known.before);
            }
            Err(why) => known.failed = Some((why.clone(), now)),
        }
        asked
    }
}

/// So long another node may sign with what this one does not know yet, after it was lost.
const FRESH: Duration = Duration::from_secs(10);
/// Between two questions that fail.
const PAUSE: Duration = Duration::from_millis(500);
