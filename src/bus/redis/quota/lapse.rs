//! Why Redis has to be told anew who speaks, and how soon.
//!
//! In a Redis Cluster the slot of a group's keys may move. Whatever is said meanwhile (`MOVED`, `ASK`, `TRYAGAIN`, or that a
//! script met a key that is not there) is a failure as any other: the script may have stopped in its midst, which leaves
//! nothing that a lost key would not leave, and who joins again writes whatever is missing. `ASK` is not followed: what is
//! written at the new place before all has arrived there would be counted without the rest.

use std::sync::Arc;
use std::time::Duration;

use redis::RedisError;

use super::script::advise;
use crate::bus::redis::advice::Advice;
use crate::bus::redis::backoff::pause;
use crate::bus::redis::explain;

/// Until what is missing is asked for again.
pub(super) const RETRY: Duration = Duration::from_millis(10);
/// So often that is doubled while nothing came of it: 2.56 s.
const MOST_RETRIES: u32 = 8;

#[derive(Debug)]
pub(super) enum Lapse {
    /// Redis answers, and has lost this node's keys, or the script.
    Forgotten,
    /// It does not answer, or not whole, or what makes no sense.
    Failed(Arc<str>),
}

impl Lapse {
    pub(super) fn of(error: &RedisError, advice: &Advice) -> Self {
        match error.code() {
            Some("STALE" | "NOSCRIPT") => Self::Forgotten,
            _ => Self::Failed(advise(explain(advice, error))),
        }
    }

    pub(super) fn nonsense() -> Self {
        Self::Failed("redis gave an answer that makes no sense".into())
    }
}

/// How often in a row.
#[derive(Debug, Default)]
pub(super) struct Lapses {
    failed: u32,
    forgotten: u32,
}

impl Lapses {
    /// Redis works.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    /// Redis did not answer; how long to wait before the next attempt, `random` in 0.0..1.0. Nothing after the first
    /// failure, which tells of a lost connection, not of a lost Redis.
    pub(super) fn failed(&mut self, random: f64) -> Option<Duration> {
        self.failed = self.failed.saturating_add(1);
        (self.failed > 1).then(|| pause(self.failed, random))
    }

    /// Redis does not know this node: the wait before it is told, short the first time, then doubled; and whether that
    /// became so long just now that it has to be said.
    pub(super) fn forgotten(&mut self) -> (Duration, bool) {
        let times = self.forgotten;
        self.forgotten = times.saturating_add(1);
        let wait = RETRY * 2_u32.pow(times.min(MOST_RETRIES));
        (wait, times == MOST_RETRIES)
    }
}

#[cfg(test)]
mod tests {
    use redis::{ErrorKind, ServerErrorKind, Value};

    use super::*;
    use crate::bus::redis::command::Dialect;
    use crate::model::topic::Namespace;

    /// What redis-rs makes of these words of a server.
    fn error(words: &str) -> RedisError {
        let answer = redis::parse_redis_value(format!("-{words}\r\n").as_bytes());
        let refused = answer.and_then(Value::extract_error);
        refused.expect_err("it is one")
    }

    fn lapse(words: &str) -> Lapse {
        let advice = Advice::new(None, &Namespace::new("x").unwrap(), Dialect::Plain);
        Lapse::of(&error(words), &advice)
    }

    #[test]
    fn only_what_redis_has_lost_is_forgotten() {
        for words in ["STALE another epoch", "NOSCRIPT No matching script."] {
            assert!(matches!(lapse(words), Lapse::Forgotten), "{words}");
        }
        let moved = error("MOVED 5 127.0.0.1:1").kind();
        assert_eq!(moved, ErrorKind::Server(ServerErrorKind::Moved), "control");
        for words in [
            "MOVED 5 127.0.0.1:1",
            "ASK 5 127.0.0.1:1",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "CROSSSLOT Keys in request don't hash to the same slot",
            "CLUSTERDOWN The cluster is down",
            "ERR Script attempted to access a non local key in a cluster node script: 1, on @user_script:1.",
            "LOADING Redis is loading the dataset in memory",
            "OOM command not allowed",
        ] {
            match lapse(words) {
                Lapse::Failed(reason) => assert!(reason.starts_with(words), "{reason}"),
                Lapse::Forgotten => panic!("{words}"),
            }
        }
    }

    #[test]
    fn the_first_failure_costs_nothing_and_the_next_ever_more() {
        let mut lapses = Lapses::default();
        let mut pauses = || [(); 4].map(|()| lapses.failed(1.0).map(|pause| pause.as_millis()));
        assert_eq!(pauses(), [None, Some(200), Some(400), Some(800)]);
        lapses.end();
        assert_eq!(lapses.failed(1.0), None);
    }

    #[test]
    fn what_is_forgotten_again_and_again_is_said_more_and_more_slowly_and_once_aloud() {
        let mut lapses = Lapses::default();
        let waits: Vec<_> = (0..11).map(|_| lapses.forgotten()).collect();
        let millis: Vec<_> = waits.iter().map(|(wait, _)| wait.as_millis()).collect();
        let doubled = [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 2560, 2560];
        assert_eq!(millis, doubled);
        let aloud: Vec<_> = waits.iter().map(|(_, aloud)| *aloud).collect();
        assert_eq!(aloud.iter().position(|aloud| *aloud), Some(8));
        assert_eq!(aloud.iter().filter(|aloud| **aloud).count(), 1);
    }
}
