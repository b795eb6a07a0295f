//! What Redis says when it refuses, and what to do about it.

use std::sync::Arc;

use super::command::Dialect;
use crate::model::topic::Namespace;

/// Speaks to the operator of one node: knows its user and its namespace.
#[derive(Debug)]
pub(crate) struct Advice {
    /// The line that gives the node's user what it needs.
    acl: String,
}

impl Advice {
    pub(super) fn new(user: Option<&str>, namespace: &Namespace, dialect: Dialect) -> Self {
        let (user, namespace) = (user.unwrap_or("default"), namespace.as_str());
        let commands = match dialect {
            Dialect::Plain => "+subscribe +unsubscribe +publish +pubsub",
            Dialect::Sharded => {
                "+ssubscribe +sunsubscribe +spublish +pubsub|shardnumsub +cluster|slots +cluster|info"
            }
        };
        Self {
            acl: format!("ACL SETUSER {user} resetchannels &{namespace}:* {commands}"),
        }
    }

    /// Of a node that keeps what is sent, which takes more.
    pub(super) fn keeping(mut self, keeps: bool) -> Self {
        if keeps {
            let channels = self.acl.split_once(" &").map_or("", |(_, rest)| rest);
            let namespace = channels.split_once(':').map_or("", |(name, _)| name);
            let (keys, asking) = match self.acl.contains("+spublish") {
                true => (format!("~{namespace}:{{*}}:h*"), " +asking"),
                false => (format!("~{namespace}:h*"), ""),
            };
            self.acl = format!("{} {keys} {KEEPING}{asking}", self.acl);
        }
        self
    }

    /// Redis' own words, and the fix where one is known.
    pub(crate) fn on(&self, words: &str) -> Arc<str> {
        let words = without_arguments(words);
        let known = FIXES.iter().find(|(said, _)| words.starts_with(said));
        match known {
            Some((_, "")) => format!("{words} (grant it: {})", self.acl).into(),
            Some((_, fix)) => format!("{words} ({fix})").into(),
            None if NOPERM_IN_SCRIPT.iter().any(|said| words.contains(said)) => {
                format!("{words} (grant it: {})", self.acl).into()
            }
            None => words.into(),
        }
    }
}

/// A command that Redis does not know is answered with its arguments: the password, or a message.
pub(crate) fn without_arguments(words: &str) -> &str {
    words.split(", with args").next().unwrap_or(words)
}

/// A missing permission that a script met, as Redis 6 and Valkey 9 say it.
const NOPERM_IN_SCRIPT: [&str; 2] = [
    "The user executing the script can't",
    "ACL failure in script",
];

/// What keeping takes beside the rest.
const KEEPING: &str = "+info +script|load +evalsha +time +hget +hmget +hset +hdel +hgetall +rpushx +rpush +pexpire +ltrim \
     +lindex +lrange";

/// How an answer begins, and the fix; none where the ACL line is it.
const FIXES: [(&str, &str); 15] = [
    ("NOPERM", ""),
    (
        "WRONGTYPE",
        "another program uses a key of this namespace: choose another namespace, or delete that key",
    ),
    (
        "NOAUTH",
        "put the password into the URL before the hosts, as in redis://:password@host, redis-sentinel://:password@host/mymaster \
         and redis-cluster://:password@host, or give it by Redis::password_from",
    ),
    (
        "WRONGPASS",
        "check user name and password in the URL, or what Redis::password_from gives",
    ),
    (
        "ERR AUTH <password> called without any password",
        "this Redis has no password: take it out of the URL, or take out Redis::password_from",
    ),
    (
        "DENIED",
        "give this Redis a password, or bind it to a private address",
    ),
    ("READONLY", REPLICATES),
    ("MASTERDOWN", REPLICATES),
    ("LOADING", "it starts; the node tries again"),
    (
        "BUSY",
        "a script blocks this Redis: SCRIPT KILL ends it, FUNCTION KILL a function",
    ),
    (
        "OOM",
        "raise its maxmemory, or keep less: the cluster itself stores what its histories keep, and nothing else",
    ),
    (
        "MISCONF",
        "this Redis cannot save to disk: its own log says why",
    ),
    (
        "ERR max number of clients",
        "raise its maxclients; a node needs at most five connections",
    ),
    (
        "CLUSTERDOWN",
        "this Redis Cluster has lost the primary of some slots, or the majority; the node tries again",
    ),
    (
        "MOVED",
        "this is a node of a Redis Cluster: name it as redis-cluster://host:6379, which takes version 7.0 or later",
    ),
];

/// Said of a Redis that takes every PUBLISH but hands it to its own subscribers only.
pub(crate) const REPLICA: &str = "this Redis is a replica, where messages reach only a part of the cluster \
     (with redis:// point the URL to the primary; sentinels and a Redis Cluster will name it; the node asks again by itself)";

const REPLICATES: &str = "this Redis is a replica: with redis:// point the URL to the primary; \
     sentinels and a Redis Cluster will name it";

const SENTINEL: &str = "this is a sentinel, which passes no messages on: \
     name it as redis-sentinel://host:26379/mymaster, with the name under which it knows the primary";
const CLUSTER: &str = "this is a node of a Redis Cluster, where messages of redis:// reach only a part of the nodes: \
     name it as redis-cluster://host:6379, which takes version 7.0 or later (below: upgrade it, or use a single Redis or \
     one with sentinels)";
const STANDALONE: &str =
    "this is a single Redis and no node of a Redis Cluster: name it as redis://host:6379";

/// Why a server that greets so is of no use.
pub(super) fn is_unfit(
    dialect: Dialect,
    role: Option<&[u8]>,
    mode: Option<&[u8]>,
) -> Option<&'static str> {
    match (mode, dialect) {
        (Some(b"sentinel"), _) => Some(SENTINEL),
        (Some(b"cluster"), Dialect::Plain) => Some(CLUSTER),
        (Some(b"standalone"), Dialect::Sharded) => Some(STANDALONE),
        _ => role.is_some_and(is_replica).then_some(REPLICA),
    }
}

/// Whether HELLO is refused as such. What else is refused will be refused again.
pub(crate) fn tells_no_role(words: &str) -> bool {
    [
        "ERR unknown command",
        "ERR wrong number",
        "NOPROTO",
        "NOPERM",
    ]
    .iter()
    .any(|refusal| words.starts_with(refusal))
}

/// Whether a script is refused as a whole for now, and will not be when this server, or the one that takes its place, is ready.
pub(super) fn passes(words: &[u8]) -> bool {
    let words = String::from_utf8_lossy(words);
    [
        "LOADING",
        "MASTERDOWN",
        "CLUSTERDOWN",
        "READONLY",
        "NOREPLICAS",
        "BUSY",
    ]
    .iter()
    // What a script met, as Redis 6 says it.
    .any(|refusal| words.starts_with(refusal) || words.contains(&format!("-{refusal} ")))
}

/// Whether this was said by a server that is not, or not yet, the primary: another one may be by now.
pub(crate) fn is_wrong_server(words: &str) -> bool {
    [
        "READONLY",
        "MASTERDOWN",
        "LOADING",
        "MOVED",
        "ASK ",
        "CLUSTERDOWN",
        "NOAUTH",
    ]
    .iter()
    .any(|refusal| words.starts_with(refusal))
        // What a script met, as Redis 6 says it.
        || words.contains("-READONLY ")
}

/// Whether the role that HELLO tells is one where a PUBLISH goes astray.
fn is_replica(role: &[u8]) -> bool {
    role == b"replica" || role == b"slave"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advice(user: Option<&str>) -> Advice {
        Advice::new(
            user,
            &Namespace::new("shop").expect("a good name"),
            Dialect::Plain,
        )
    }

    #[test]
    fn a_missing_permission_is_answered_with_the_exact_line() {
        let words = "NOPERM this user has no permissions to run the 'publish' command";
        for (user, named) in [(Some("app"), "app"), (None, "default")] {
            let fix = format!(
                "{words} (grant it: ACL SETUSER {named} resetchannels &shop:* +subscribe +unsubscribe +publish +pubsub)"
            );
            assert_eq!(*advice(user).on(words), *fix);
        }
    }

    #[test]
    fn who_keeps_needs_more_and_is_told_so_however_a_script_says_it() {
        let more = "~shop:h* +info +script|load +evalsha +time +hget +hmget +hset +hdel +hgetall +rpushx +rpush +pexpire +ltrim \
             +lindex +lrange";
        for words in [
            "NOPERM User app has no permissions to run the 'rpush' command script: 0",
            "@user_script: 60: The user executing the script can't run this command or subcommand",
            "ERR ACL failure in script: User app has no permissions to run the 'time' command",
        ] {
            let told = advice(Some("app")).keeping(true).on(words);
            assert!(
                told.starts_with(words) && told.ends_with(&format!("{more})")),
                "{told}"
            );
            assert!(!advice(Some("app")).on(words).contains("+evalsha"));
        }
        let namespace = Namespace::new("shop").expect("a good name");
        let sharded = Advice::new(None, &namespace, Dialect::Sharded).keeping(true);
        let told = sharded.on("NOPERM");
        assert!(
            told.contains("~shop:{*}:h*") && told.ends_with(" +asking)"),
            "{told}"
        );
    }

    #[test]
    fn every_refusal_keeps_its_words_and_names_the_fix() {
        for (words, fix) in [
            (
                "NOAUTH Authentication required.",
                "redis-cluster://:password@host",
            ),
            ("NOAUTH Authentication required.", "password_from"),
            ("WRONGPASS invalid username-password pair", "password_from"),
            (
                "ERR AUTH <password> called without any password configured for the default user.",
                "take it out of the URL",
            ),
            ("DENIED Redis is running in protected mode", "password"),
            (
                "READONLY You can't write against a read only replica.",
                "Redis Cluster will name it",
            ),
            ("MASTERDOWN Link with MASTER is down", "primary"),
            (
                "LOADING Redis is loading the dataset in memory",
                "tries again",
            ),
            ("BUSY Redis is busy running a script.", "SCRIPT KILL"),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                "maxmemory",
            ),
            ("MISCONF Redis is configured to save RDB snapshots", "log"),
            ("ERR max number of clients reached", "maxclients"),
            ("CLUSTERDOWN The cluster is down", "majority"),
            ("MOVED 3999 127.0.0.1:6381", "7.0"),
        ] {
            let said = advice(None).on(words);
            let added = said.strip_prefix(words).expect("Redis' own words");
            assert!(added.contains(fix), "{said}");
        }
        assert_eq!(
            &*advice(None).on("ERR something else"),
            "ERR something else"
        );
    }

    #[test]
    fn a_wrong_server_is_told_from_a_refusal() {
        for words in [
            "READONLY You can't write against a read only replica. script: 5a, on @user_script:1.",
            "ERR Error running script (call to f_5a): @user_script: 1: -READONLY You can't write",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "LOADING Redis is loading the dataset in memory",
            "MOVED 3999 127.0.0.1:6381",
            "CLUSTERDOWN The cluster is down",
            "NOAUTH Authentication required.",
        ] {
            assert!(is_wrong_server(words), "{words}");
        }
        for words in [
            "NOPERM this user has no permissions to run the 'eval' command",
            "OOM command not allowed when used memory > 'maxmemory'.",
            "MISCONF Redis is configured to save RDB snapshots",
            "BUSY Redis is busy running a script.",
            "NOSCRIPT No matching script.",
            "ERR wrong number of arguments",
        ] {
            assert!(!is_wrong_server(words), "{words}");
        }
    }

    #[test]
    fn a_greeting_of_another_kind_of_server_is_answered_with_the_right_url() {
        let master = Some(b"master".as_slice());
        let replica = Some(b"slave".as_slice());
        for (dialect, role, mode, fix) in [
            (Dialect::Plain, None, Some("sentinel"), "redis-sentinel://"),
            (
                Dialect::Sharded,
                None,
                Some("sentinel"),
                "redis-sentinel://",
            ),
            (Dialect::Plain, master, Some("cluster"), "redis-cluster://"),
            (Dialect::Plain, master, Some("cluster"), "7.0 or later"),
            (Dialect::Sharded, master, Some("standalone"), "redis://"),
            (Dialect::Plain, replica, Some("standalone"), "the primary"),
            (Dialect::Sharded, replica, Some("cluster"), "the primary"),
        ] {
            let unfit = is_unfit(dialect, role, mode.map(str::as_bytes)).unwrap();
            assert!(unfit.contains(fix), "{unfit}");
        }
        for (role, mode) in [(master, Some("standalone")), (master, None), (None, None)] {
            assert_eq!(
                is_unfit(Dialect::Plain, role, mode.map(str::as_bytes)),
                None
            );
        }
    }

    #[test]
    fn a_node_of_a_cluster_is_what_a_cluster_is_made_of() {
        let (master, cluster) = (Some(b"master".as_slice()), Some(b"cluster".as_slice()));
        assert_eq!(is_unfit(Dialect::Sharded, master, cluster), None);
    }

    #[test]
    fn only_a_redis_that_does_not_know_the_question_is_trusted_without_an_answer() {
        for words in [
            "ERR unknown command 'HELLO'",
            "ERR wrong number of arguments for 'hello' command",
            "NOPROTO unsupported protocol version",
            "NOPERM this user has no permissions to run the 'hello' command",
        ] {
            assert!(tells_no_role(words), "{words}");
        }
        for words in [
            "NOAUTH HELLO must be called",
            "ERR max number of clients reached",
            "LOADING",
        ] {
            assert!(!tells_no_role(words), "{words}");
        }
    }
}
