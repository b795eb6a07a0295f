//! What is said to Redis about slots, and what its answers mean.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value};
use sha1::{Digest, Sha1};

use super::book::{Verdict, Writes};
use crate::id::NodeId;
use crate::slot::{OverLimit, SlotLimit};
use crate::topic::{Namespace, Topic};

/// One script for every operation: joining and leaving send it whole, the others name it by its digest.
const SCRIPT: &str = include_str!("slots.lua");

/// What the script needs beside the permissions of the bus.
const PERMISSIONS: &str = "~<namespace>:slots* +eval +evalsha +time +hget +hset +hdel +hexists +unlink \
    +pexpire +zadd +zrem +zrangebyscore +zremrangebyscore";

/// Writes the commands of one node.
#[derive(Debug, Clone)]
pub(super) struct Script {
    digest: String,
    leases: String,
    own: String,
    node: String,
    lease: Duration,
}

impl Script {
    pub(super) fn new(namespace: &Namespace, node: NodeId, lease: Duration) -> Self {
        let digest = Sha1::digest(SCRIPT);
        let leases = format!("{}:slots", namespace.as_str());
        Self {
            digest: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            own: format!("{leases}:{node}"),
            leases,
            node: node.to_string(),
            lease,
        }
    }

    /// Begins an epoch; `anew` forgets what Redis knew of this node.
    pub(super) fn join(&self, epoch: u64, anew: bool) -> Cmd {
        let mut command = self.whole("join", epoch);
        command.arg(if anew { "anew" } else { "" });
        command
    }

    /// Leaves nothing behind.
    pub(super) fn leave(&self) -> Cmd {
        self.whole("leave", 0)
    }

    /// Renews the lease; `known` is what the last renewal told.
    pub(super) fn renew(&self, epoch: u64, known: &str) -> Cmd {
        let mut command = self.by_digest("renew", epoch);
        command.arg(known);
        command
    }

    pub(super) fn write(&self, epoch: u64, writes: &Writes) -> Cmd {
        let mut command = self.by_digest("write", epoch);
        for (user, slots) in writes {
            command.arg(user.as_str()).arg(slots);
        }
        command
    }

    pub(super) fn claim(&self, epoch: u64, user: &Topic, number: u64, limit: SlotLimit) -> Cmd {
        let mut command = self.by_digest("claim", epoch);
        command
            .arg(user.as_str())
            .arg(format!("{number:x}"))
            .arg(limit.sockets)
            .arg(match limit.over {
                OverLimit::Refuse => "refuse",
                OverLimit::CloseOldest => "replace",
            });
        command
    }

    fn whole(&self, operation: &str, epoch: u64) -> Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(SCRIPT);
        self.operation(&mut command, operation, epoch);
        command
    }

    fn by_digest(&self, operation: &str, epoch: u64) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.digest);
        self.operation(&mut command, operation, epoch);
        command
    }

    fn operation(&self, command: &mut Cmd, operation: &str, epoch: u64) {
        command.arg(2).arg(&self.leases).arg(&self.own);
        command.arg(operation).arg(&self.node).arg(epoch);
        command.arg(self.lease.as_millis() as u64);
    }
}

/// The answer to a claim.
pub(super) fn verdict(answer: &Value) -> Option<Verdict> {
    let Value::Array(parts) = answer else {
        return matches!(answer, Value::Int(0)).then_some(Verdict::Refused);
    };
    let mut parts = parts.iter().map(text);
    let since = parts.next()??.parse().ok()?;
    let replaced = parts.map(|socket| socket?.parse().ok());
    Some(Verdict::Granted {
        since,
        replaced: replaced.collect::<Option<_>>()?,
    })
}

/// What a renewal tells: users and numbers of sockets that lost their slot.
pub(super) fn replaced(told: &str) -> Vec<(&str, u64)> {
    told.split_terminator(',')
        .filter_map(|pair| {
            let (user, number) = pair.split_once('=')?;
            Some((user, u64::from_str_radix(number, 16).ok()?))
        })
        .collect()
}

/// A refusal of Redis, and what to grant where a permission is missing.
pub(super) fn advise(reason: Arc<str>) -> Arc<str> {
    let missing = ["NOPERM", "The user executing the script", "ACL failure"];
    if !missing.iter().any(|words| reason.contains(words)) {
        return reason;
    }
    format!("{reason} (slots need: {PERMISSIONS})").into()
}

pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::conformance::redis_server::RedisServer;
    use crate::id::SocketId;
    use crate::id::UserId;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn answers_are_read_and_nonsense_is_none() {
        let socket = SocketId {
            node: NodeId(7),
            number: 0x2a,
        };
        let granted = Value::Array(vec![bulk("1700000000000000"), bulk(&socket.to_string())]);
        let since = 1_700_000_000_000_000;
        let expected = Verdict::Granted {
            since,
            replaced: vec![socket],
        };
        assert_eq!(verdict(&granted), Some(expected));
        assert_eq!(verdict(&Value::Int(0)), Some(Verdict::Refused));
        for nonsense in [
            Value::Nil,
            Value::Int(1),
            bulk("0"),
            Value::Array(vec![]),
            Value::Array(vec![bulk("soon")]),
            Value::Array(vec![bulk("1"), bulk("7-2a")]),
            Value::Array(vec![Value::Int(1)]),
        ] {
            assert_eq!(verdict(&nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn a_renewal_tells_who_was_replaced() {
        assert_eq!(replaced(""), []);
        let told = "u:a%2C=1,u:b=ff,nonsense,u:c=x,";
        assert_eq!(replaced(told), [("u:a%2C", 1), ("u:b", 0xff)]);
    }

    #[test]
    fn a_missing_permission_names_the_line_that_grants_it() {
        for refusal in [
            "NOPERM this user has no permissions to run the 'eval' command",
            "ERR The user executing the script can't run this command or subcommand script: 104a",
            "ERR ACL failure in script: User half has no permissions to run the 'time' command",
        ] {
            let advice = advise(refusal.into());
            assert!(
                advice.starts_with(refusal) && advice.contains("+evalsha"),
                "{advice}"
            );
        }
        assert_eq!(
            &*advise("OOM command not allowed".into()),
            "OOM command not allowed"
        );
    }

    fn script(node: u64) -> Script {
        leasing(node, Duration::from_secs(60))
    }

    fn leasing(node: u64, lease: Duration) -> Script {
        let namespace = Namespace::new("x").unwrap();
        Script::new(&namespace, NodeId(node), lease)
    }

    #[test]
    fn a_short_lease_does_not_end_a_long_one() {
        let server = RedisServer::start();
        let mut redis = redis::Client::open(server.url()).unwrap();
        let (long, short) = (script(1), leasing(2, Duration::from_secs(2)));
        let mut left = |script: &Script| {
            assert_eq!(script.join(1, true).query(&mut redis), Ok(1));
            server.cli(&["PTTL", "x:slots"]).parse::<i64>().unwrap()
        };
        assert!((1..=2000).contains(&left(&short)), "control");
        assert!(left(&long) > 2000);
        assert!(left(&short) > 2000);
    }

    #[test]
    fn what_an_older_epoch_says_is_stale() {
        let server = RedisServer::start();
        let mut redis = redis::Client::open(server.url()).unwrap();
        let (script, user) = (script(1), Topic::user(&UserId::from("alice")).unwrap());
        let (sockets, over) = (9, OverLimit::Refuse);
        let limit = SlotLimit { sockets, over };
        assert_eq!(script.join(1, true).query(&mut redis), Ok(1), "created");
        let granted: Value = script.claim(1, &user, 7, limit).query(&mut redis).unwrap();
        assert!(matches!(verdict(&granted), Some(Verdict::Granted { .. })));
        assert_eq!(script.join(2, false).query(&mut redis), Ok(0), "kept");
        for late in [
            script.claim(1, &user, 8, limit),
            script.write(1, &vec![(user.clone(), String::new())]),
            script.renew(1, ""),
        ] {
            let refused = late.query::<Value>(&mut redis).unwrap_err();
            assert_eq!(refused.code(), Some("STALE"));
        }
        let slots = server.cli(&["HGET", "x:slots:0000000000000001", "u:alice"]);
        assert!(slots.ends_with(":7,"), "{slots}");
        assert_eq!(script.leave().query(&mut redis), Ok(1));
        assert_eq!(server.cli(&["DBSIZE"]), "0");
        let late = script.claim(2, &user, 9, limit).query::<Value>(&mut redis);
        assert_eq!(late.unwrap_err().code(), Some("STALE"));
        assert_eq!(server.cli(&["DBSIZE"]), "0");
    }

    #[test]
    fn who_was_replaced_is_told_until_the_answer_is_known() {
        let server = RedisServer::start();
        let mut redis = redis::Client::open(server.url()).unwrap();
        let (a, b) = (script(1), script(2));
        let user = Topic::user(&UserId::from("alice")).unwrap();
        let (sockets, over) = (1, OverLimit::CloseOldest);
        let limit = SlotLimit { sockets, over };
        for node in [&a, &b] {
            assert_eq!(node.join(1, true).query(&mut redis), Ok(1));
        }
        let mut claim = |script: &Script, number| {
            let granted = script.claim(1, &user, number, limit);
            granted.query::<Value>(&mut redis).unwrap()
        };
        claim(&a, 1);
        claim(&b, 1);
        claim(&a, 2);
        claim(&b, 2);
        let mut renew = |known| a.renew(1, known).query::<String>(&mut redis).unwrap();
        for _ in 0..2 {
            assert_eq!(renew(""), "u:alice=1,u:alice=2,");
        }
        assert_eq!(renew("u:alice=1,"), "u:alice=2,");
        assert_eq!(renew("u:alice=2,"), "");
        assert_eq!(renew("u:alice=2,"), "");
    }
}
