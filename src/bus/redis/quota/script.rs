//! What is said to Redis about seats, and what its answers mean.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value};
use sha1::{Digest, Sha1};

use super::ledger::{Verdict, Writes};
use crate::bus::redis::command;
use crate::model::id::NodeId;
use crate::model::topic::{Namespace, Topic};
use crate::quota::{OverLimit, SeatLimit};

/// One script for every operation: joining and leaving send it whole, the others name it by its digest.
const SCRIPT: &str = include_str!("seats.lua");

/// What the script and the look need beside the permissions of the bus.
const PERMISSIONS: &str = "~<namespace>:seats* +eval +evalsha +time +hget +hmget +hset +hdel +hexists +unlink \
    +pexpire +zadd +zrem +zscore +zrangebyscore +zremrangebyscore; with several primaries ~<namespace>:{*}:seats*";

/// How an answer begins while keys are on their way to another primary of a Redis Cluster.
const MOVES: [&str; 4] = ["MOVED ", "ASK ", "TRYAGAIN", "CROSSSLOT"];
/// … and what it contains where a script met such a key.
const MOVES_IN_SCRIPT: &str = "attempted to access a non local key";

/// The name of a group's sorted set, with which those of its hashes begin: with a tag all of them are in one slot of a Redis
/// Cluster, whichever nodes there are.
pub(super) fn leases(namespace: &Namespace, tag: Option<&str>) -> String {
    let namespace = namespace.as_str();
    match tag {
        None => format!("{namespace}:seats"),
        Some(tag) => format!("{namespace}:{{{tag}}}:seats"),
    }
}

/// What is agreed among the nodes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// How long a node counts that says nothing.
    pub(super) lease: Duration,
    /// How long it takes at most until every node has noticed that something is missing.
    pub(super) grace: Duration,
}

/// Who speaks, and when.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stamp {
    pub(super) epoch: u64,
    /// What Redis' clock should say, in milliseconds; 0 when that is not known.
    pub(super) millis: u64,
    /// The number of what is said, ..
    pub(super) says: u64,
    /// .. and of the last thing that Redis confirmed.
    pub(super) confirmed: u64,
}

/// Writes the commands of one node.
#[derive(Debug, Clone)]
pub(super) struct Script {
    digest: String,
    leases: String,
    own: String,
    node: String,
    terms: Terms,
}

impl Script {
    /// `leases` is what [`leases`] makes.
    pub(super) fn new(leases: String, node: NodeId, terms: Terms) -> Self {
        let digest = Sha1::digest(SCRIPT);
        Self {
            digest: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            own: format!("{leases}:{node}"),
            leases,
            node: node.to_string(),
            terms,
        }
    }

    /// Begins an epoch; `anew` forgets what Redis knew of this node. `nodes` are those that this one
    /// remembers, should Redis have forgotten them.
    pub(super) fn join(&self, stamp: Stamp, anew: bool, nodes: &str) -> Cmd {
        let mut command = self.whole("join", stamp);
        command.arg(if anew { "anew" } else { "" }).arg(nodes);
        command
    }

    /// Leaves nothing behind.
    pub(super) fn leave(&self) -> Cmd {
        self.whole("leave", Stamp::default())
    }

    /// Renews the lease; `known` is what the last renewal told.
    pub(super) fn renew(&self, stamp: Stamp, known: &str) -> Cmd {
        let mut command = self.by_digest("renew", stamp);
        command.arg(known);
        command
    }

    /// Whether this node's keys are there, which is [`seen`] in the answers.
    pub(super) fn look(&self) -> [Cmd; 2] {
        let kept = command::hmget(&self.own, &["epoch", "said"]);
        let lease = command::zscore(&self.leases, &self.node);
        [kept, lease]
    }

    /// Writes seats; `whole` says that with them all are written.
    pub(super) fn write(&self, stamp: Stamp, writes: &Writes, whole: bool) -> Cmd {
        let mut command = self.by_digest("write", stamp);
        for (user, seats) in writes {
            command.arg(user.as_str()).arg(seats);
        }
        if whole {
            command.arg("whole").arg(1);
        }
        command
    }

    /// Claims a seat, without the seats of the missing nodes that are `given_up`.
    pub(super) fn claim(
        &self,
        stamp: Stamp,
        user: &Topic,
        number: u64,
        limit: SeatLimit,
        given_up: &str,
    ) -> Cmd {
        let mut command = self.by_digest("claim", stamp);
        command
            .arg(user.as_str())
            .arg(format!("{number:x}"))
            .arg(limit.sockets)
            .arg(match limit.over {
                OverLimit::Refuse => "refuse",
                OverLimit::CloseOldest => "replace",
            })
            .arg(given_up);
        command
    }

    fn whole(&self, operation: &str, stamp: Stamp) -> Cmd {
        let mut command = command::eval(SCRIPT);
        self.operation(&mut command, operation, stamp);
        command
    }

    fn by_digest(&self, operation: &str, stamp: Stamp) -> Cmd {
        let mut command = command::evalsha(&self.digest);
        self.operation(&mut command, operation, stamp);
        command
    }

    fn operation(&self, command: &mut Cmd, operation: &str, stamp: Stamp) {
        command.arg(2).arg(&self.leases).arg(&self.own);
        command.arg(operation).arg(&self.node).arg(stamp.epoch);
        command.arg(self.terms.lease.as_millis() as u64);
        command.arg(self.terms.grace.as_millis() as u64);
        command.arg(stamp.millis);
        command.arg(stamp.says).arg(stamp.confirmed);
    }
}

/// The answer to [`Script::join`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct JoinAnswer {
    /// Redis has none of this node's seats.
    pub(super) created: bool,
    /// Until then there may be others whom Redis has forgotten.
    pub(super) others: Duration,
    /// The nodes that hold a lease, as [`Script::join`] takes them.
    pub(super) nodes: String,
    pub(super) millis: u64,
}

pub(super) fn joined(answer: &Value) -> Option<JoinAnswer> {
    let Value::Array(parts) = answer else {
        return None;
    };
    let [Value::Int(created), Value::Int(others), nodes, millis] = parts.as_slice() else {
        return None;
    };
    Some(JoinAnswer {
        created: *created == 1,
        others: Duration::from_millis((*others).try_into().ok()?),
        nodes: text(nodes)?.to_owned(),
        millis: text(millis)?.parse().ok()?,
    })
}

/// The answer to [`Script::renew`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Renewed {
    /// [`replaced`].
    pub(super) replaced: String,
    pub(super) nodes: String,
    pub(super) millis: u64,
}

pub(super) fn renewed(answer: &Value) -> Option<Renewed> {
    let Value::Array(parts) = answer else {
        return None;
    };
    let [replaced, nodes, millis] = parts.as_slice() else {
        return None;
    };
    Some(Renewed {
        replaced: text(replaced)?.to_owned(),
        nodes: text(nodes)?.to_owned(),
        millis: text(millis)?.parse().ok()?,
    })
}

/// Whether the answers to [`Script::look`] show this epoch's keys, with all that Redis confirmed.
pub(super) fn seen(answers: &[Value], stamp: Stamp) -> bool {
    let [Value::Array(kept), leased] = answers else {
        return false;
    };
    let mut kept = kept.iter().map(|kept| text(kept)?.parse::<u64>().ok());
    let (epoch, said) = (kept.next().flatten(), kept.next().flatten());
    epoch == Some(stamp.epoch) && said >= Some(stamp.confirmed) && *leased != Value::Nil
}

/// The answer to a claim.
pub(super) fn verdict(answer: &Value) -> Option<Verdict> {
    let parts = match answer {
        Value::Int(0) => return Some(Verdict::Refused { whole: true }),
        Value::Int(-1) => return Some(Verdict::Refused { whole: false }),
        Value::Array(parts) => parts,
        _ => return None,
    };
    let mut parts = parts.iter().map(text);
    let word = parts.next()??;
    let clock = parts.next()??.parse().ok()?;
    if word == "missing" {
        let nodes = parts.map(|node| Some(node?.to_owned()));
        let nodes = nodes.collect::<Option<_>>()?;
        let millis = clock;
        return Some(Verdict::Missing { nodes, millis });
    }
    let replaced = parts.map(|socket| socket?.parse().ok());
    Some(Verdict::Granted {
        since: clock,
        replaced: replaced.collect::<Option<_>>()?,
        whole: match word {
            "granted" => true,
            "unchecked" => false,
            _ => return None,
        },
    })
}

/// What a renewal tells: users and numbers of sockets that lost their seat.
pub(super) fn replaced(told: &str) -> Vec<(&str, u64)> {
    told.split_terminator(',')
        .filter_map(|pair| {
            let (user, number) = pair.split_once('=')?;
            Some((user, u64::from_str_radix(number, 16).ok()?))
        })
        .collect()
}

/// A refusal of Redis, and what to grant where a permission is missing, or to wait for where keys are on their way.
pub(super) fn advise(reason: Arc<str>) -> Arc<str> {
    let missing = ["NOPERM", "The user executing the script", "ACL failure"];
    if missing.iter().any(|words| reason.contains(words)) {
        return format!("{reason} (seats need: {PERMISSIONS})").into();
    }
    let moves = MOVES.iter().any(|words| reason.starts_with(words));
    if moves || reason.contains(MOVES_IN_SCRIPT) {
        return format!("{reason} (its slot moves to another primary: over when it is there)")
            .into();
    }
    reason
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
    use crate::bus::conformance::redis_server::RedisServer;
    use crate::model::id::SocketId;
    use crate::model::id::UserId;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn answers_are_read_and_nonsense_is_none() {
        let socket = SocketId {
            node: NodeId(7),
            number: 0x2a,
        };
        let since = 1_700_000_000_000_000;
        for (word, whole) in [("granted", true), ("unchecked", false)] {
            let parts = [word, "1700000000000000", &socket.to_string()];
            let expected = Verdict::Granted {
                since,
                replaced: vec![socket],
                whole,
            };
            assert_eq!(
                verdict(&Value::Array(parts.map(bulk).into())),
                Some(expected)
            );
        }
        for (answer, whole) in [(0, true), (-1, false)] {
            let refused = Some(Verdict::Refused { whole });
            assert_eq!(verdict(&Value::Int(answer)), refused);
        }
        let (nodes, millis) = (vec!["7=9".to_owned()], 5);
        let parts = ["missing", "5", "7=9"].map(bulk);
        let missing = Some(Verdict::Missing { nodes, millis });
        assert_eq!(verdict(&Value::Array(parts.into())), missing);
        for nonsense in [
            Value::Nil,
            Value::Int(1),
            bulk("0"),
            Value::Array(vec![]),
            Value::Array(vec![bulk("granted"), bulk("soon")]),
            Value::Array(vec![bulk("granted"), bulk("1"), bulk("7-2a")]),
            Value::Array(vec![bulk("perhaps"), bulk("1")]),
            Value::Array(vec![bulk("missing")]),
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

    #[test]
    fn keys_have_one_tag_or_the_names_that_they_always_had() {
        let namespace = Namespace::new("x").unwrap();
        let names = |tag| {
            let (lease, grace) = (LEASE, Duration::ZERO);
            let terms = Terms { lease, grace };
            let script = Script::new(leases(&namespace, tag), NodeId(7), terms);
            [script.leases, script.own]
        };
        let own = |leases: &str| format!("{leases}:{}", NodeId(7));
        assert_eq!(names(None), ["x:seats".to_owned(), own("x:seats")]);
        let tagged = "x:{460}:seats";
        assert_eq!(names(Some("460")), [tagged.to_owned(), own(tagged)]);
    }

    #[test]
    fn a_slot_that_moves_is_called_that() {
        for words in [
            "MOVED 5 127.0.0.1:1",
            "ASK 5 127.0.0.1:1",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "ERR Script attempted to access a non local key in a cluster node script: 1",
        ] {
            assert!(advise(words.into()).contains("its slot moves"), "{words}");
        }
    }

    const LEASE: Duration = Duration::from_secs(60);

    /// Everyone notices at once.
    fn script(node: u64) -> Script {
        leasing(node, LEASE)
    }

    fn leasing(node: u64, lease: Duration) -> Script {
        let leases = leases(&Namespace::new("x").unwrap(), None);
        let grace = Duration::ZERO;
        Script::new(leases, NodeId(node), Terms { lease, grace })
    }

    fn epoch(epoch: u64) -> Stamp {
        Stamp {
            epoch,
            ..Stamp::default()
        }
    }

    fn alice() -> Topic {
        Topic::user(&UserId::from("alice")).unwrap()
    }

    fn refuse(sockets: usize) -> SeatLimit {
        let over = OverLimit::Refuse;
        SeatLimit { sockets, over }
    }

    /// Three nodes that speak through one connection.
    struct Nodes {
        server: RedisServer,
        redis: redis::Client,
        scripts: [Script; 3],
    }

    impl Nodes {
        fn joined(grace: Duration) -> Self {
            let server = RedisServer::start();
            let redis = redis::Client::open(server.url()).unwrap();
            let scripts = [0, 1, 2].map(|node| {
                let mut script = script(node);
                script.terms.grace = grace;
                script
            });
            let mut nodes = Self {
                server,
                redis,
                scripts,
            };
            (0..3).for_each(|node| nodes.join(node, "", &[]));
            nodes
        }

        /// Joins, and writes that these are its sockets of alice.
        fn join(&mut self, node: usize, remembered: &str, sockets: &[u64]) {
            let join = self.scripts[node].join(epoch(1), false, remembered);
            let answer = joined(&join.query(&mut self.redis).unwrap()).unwrap();
            assert!(answer.created);
            self.write(node, sockets);
        }

        fn write(&mut self, node: usize, sockets: &[u64]) {
            let seats: String = sockets
                .iter()
                .map(|number| format!("5:{number:x},"))
                .collect();
            let write = self.scripts[node].write(epoch(1), &vec![(alice(), seats)], true);
            write.exec(&mut self.redis).unwrap();
        }

        fn claim_at(&mut self, node: usize, number: u64, stamp: Stamp, given_up: &str) -> Verdict {
            let claim = self.scripts[node].claim(stamp, &alice(), number, refuse(3), given_up);
            verdict(&claim.query(&mut self.redis).unwrap()).unwrap()
        }

        /// Claims one of three seats.
        fn claim(&mut self, node: usize, number: u64) -> Verdict {
            self.claim_at(node, number, epoch(1), "")
        }

        fn renew(&mut self, node: usize) -> Result<Renewed, Option<String>> {
            let answer = self.scripts[node]
                .renew(epoch(1), "")
                .query(&mut self.redis);
            let refused = |error: redis::RedisError| error.code().map(str::to_owned);
            Ok(renewed(&answer.map_err(refused)?).unwrap())
        }

        fn delete(&mut self, key: &str) {
            assert_eq!(
                self.server.cli(&["DEL", key]),
                "1",
                "control: {key} was there"
            );
        }

        fn own(&self, node: usize) -> String {
            self.scripts[node].own.clone()
        }

        /// What the script calls a node.
        fn node(&self, node: usize) -> String {
            self.scripts[node].node.clone()
        }
    }

    fn is_granted(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Granted { whole: true, .. })
    }

    /// The names of the missing.
    fn missing(verdict: &Verdict) -> Vec<&str> {
        match verdict {
            Verdict::Missing { nodes, .. } => {
                let names = nodes.iter().map(|node| node.split_once('=').unwrap().0);
                names.collect()
            }
            _ => panic!("{verdict:?}"),
        }
    }

    #[test]
    fn a_short_lease_does_not_end_a_long_one() {
        let server = RedisServer::start();
        let mut redis = redis::Client::open(server.url()).unwrap();
        let (long, short) = (script(1), leasing(2, Duration::from_secs(2)));
        let mut left = |script: &Script| {
            script.join(epoch(1), true, "").exec(&mut redis).unwrap();
            server.cli(&["PTTL", "x:seats"]).parse::<i64>().unwrap()
        };
        assert!((1..=2000).contains(&left(&short)), "control");
        assert!(left(&long) > 2000);
        assert!(left(&short) > 2000);
    }

    #[test]
    fn what_an_older_epoch_says_is_stale() {
        let mut nodes = Nodes::joined(Duration::ZERO);
        assert!(is_granted(&nodes.claim(0, 7)));
        let Nodes { redis, scripts, .. } = &mut nodes;
        let script = &scripts[0];
        let rejoined = script.join(epoch(2), false, "").query(redis).unwrap();
        assert!(!joined(&rejoined).unwrap().created, "it is kept");
        for late in [
            script.claim(epoch(1), &alice(), 8, refuse(9), ""),
            script.write(epoch(1), &vec![(alice(), String::new())], false),
            script.renew(epoch(1), ""),
        ] {
            let refused = late.query::<Value>(redis).unwrap_err();
            assert_eq!(refused.code(), Some("STALE"));
        }
        for (epoch, right) in [(1, false), (2, true)] {
            let answers = script.look().map(|command| command.query(redis).unwrap());
            assert_eq!(seen(&answers, self::epoch(epoch)), right);
        }
        let seats = nodes.server.cli(&["HGET", &nodes.own(0), "u:alice"]);
        assert!(seats.ends_with(":7,"), "{seats}");
    }

    #[test]
    fn who_leaves_leaves_nothing() {
        for grace in [Duration::ZERO, LEASE] {
            let mut nodes = Nodes::joined(grace);
            for node in 0..3 {
                let left = nodes.scripts[node].leave().query(&mut nodes.redis);
                assert_eq!(left, Ok(1));
                assert_eq!(nodes.renew(node), Err(Some("STALE".into())));
            }
            assert_eq!(nodes.server.cli(&["DBSIZE"]), "0");
        }
    }

    #[test]
    fn a_lost_set_is_restored_from_any_nodes_hash() {
        for node in 0..3 {
            let mut nodes = Nodes::joined(Duration::ZERO);
            nodes.write(1, &[1, 2, 3]);
            nodes.delete("x:seats");
            assert_eq!(nodes.claim(node, 9), Verdict::Refused { whole: true });
            nodes.write(1, &[1, 2]);
            assert!(is_granted(&nodes.claim(node, 9)), "a renewal is not needed");
        }
    }

    /// Whoever comes first makes a new set. It is not to be believed before the others were heard.
    #[test]
    fn a_set_that_a_newcomer_began_is_not_the_whole() {
        let mut nodes = Nodes::joined(LEASE);
        nodes.server.cli(&["FLUSHALL"]);
        nodes.join(2, "", &[]);
        assert_eq!(missing(&nodes.claim(2, 9)), ["others"]);
        nodes.delete("x:seats");
        assert_eq!(
            missing(&nodes.claim(2, 9)),
            ["others"],
            "as little does its hash"
        );
        nodes.join(0, "", &[1, 2, 3]);
        assert_eq!(nodes.claim(2, 9), Verdict::Refused { whole: false });
    }

    #[test]
    fn who_joins_a_lost_set_is_not_forgotten_when_it_is_restored() {
        let mut nodes = Nodes::joined(Duration::ZERO);
        nodes
            .scripts
            .iter_mut()
            .for_each(|script| script.terms.grace = LEASE);
        nodes.write(1, &[1, 2]);
        nodes.delete("x:seats");
        nodes.delete(&nodes.own(2));
        nodes.join(2, "", &[3]);
        assert_eq!(
            missing(&nodes.claim(2, 9)),
            ["others"],
            "control: it does not know"
        );
        assert_eq!(nodes.claim(0, 9), Verdict::Refused { whole: true });
        assert_eq!(nodes.claim(2, 9), Verdict::Refused { whole: true });
        nodes.delete("x:seats");
        assert_eq!(
            nodes.claim(2, 9),
            Verdict::Refused { whole: true },
            "its hash tells"
        );
    }

    #[test]
    fn who_is_remembered_is_waited_for() {
        let mut nodes = Nodes::joined(Duration::ZERO);
        let remembered = nodes.renew(0).unwrap().nodes;
        nodes.server.cli(&["FLUSHALL"]);
        nodes.join(0, "", &[]);
        assert!(is_granted(&nodes.claim(0, 9)), "control: nobody is known");
        nodes.server.cli(&["FLUSHALL"]);
        nodes.scripts[0].terms.grace = Duration::from_secs(5);
        nodes.join(0, &remembered, &[]);
        nodes.server.cli(&["ZREM", "x:seats", "others"]);
        let (one, two) = (nodes.node(1), nodes.node(2));
        assert_eq!(missing(&nodes.claim(0, 9)), [&*one, &*two]);
        nodes.join(1, "", &[1, 2]);
        assert_eq!(missing(&nodes.claim(0, 9)), [&*two]);
        nodes.join(2, "", &[3]);
        assert_eq!(nodes.claim(0, 9), Verdict::Refused { whole: true });
    }

    #[test]
    fn a_node_whose_hash_is_lost_is_missing_until_all_of_it_is_written() {
        let mut nodes = Nodes::joined(Duration::ZERO);
        nodes.write(1, &[1, 2, 3]);
        nodes.delete(&nodes.own(1));
        let missed = nodes.node(1);
        assert_eq!(missing(&nodes.claim(0, 9)), [&*missed]);
        assert_eq!(nodes.renew(1), Err(Some("STALE".into())), "it notices");
        let join = nodes.scripts[1].join(epoch(1), false, "");
        assert!(
            joined(&join.query(&mut nodes.redis).unwrap())
                .unwrap()
                .created
        );
        let first = vec![(alice(), "5:1,".to_owned())];
        let write = nodes.scripts[1].write(epoch(1), &first, false);
        write.exec(&mut nodes.redis).unwrap();
        assert_eq!(
            missing(&nodes.claim(0, 9)),
            [&*missed],
            "there is more to come"
        );
        let Nodes { redis, scripts, .. } = &mut nodes;
        let answer = scripts[1].join(epoch(1), false, "").query(redis).unwrap();
        assert!(
            joined(&answer).unwrap().created,
            "what is half written is not kept"
        );
        nodes.write(1, &[1, 2]);
        assert!(is_granted(&nodes.claim(0, 9)));
    }

    /// As after a failover, or a restart with what was saved a second ago.
    #[test]
    fn a_hash_that_is_older_than_what_was_confirmed_is_written_anew() {
        let mut nodes = Nodes::joined(Duration::ZERO);
        nodes.scripts[0].terms.grace = LEASE;
        let at = |says, confirmed| Stamp {
            says,
            confirmed,
            ..epoch(1)
        };
        assert!(is_granted(&nodes.claim_at(0, 1, at(1, 0), "")));
        let (own, saved) = (nodes.own(0), "saved");
        nodes.server.cli(&["COPY", &own, saved]);
        assert!(is_granted(&nodes.claim_at(0, 2, at(2, 1), "")));
        let mut is_seen = |confirmed| {
            let look = nodes.scripts[0].look();
            let answers = look.map(|command| command.query(&mut nodes.redis).unwrap());
            seen(&answers, at(3, confirmed))
        };
        assert!(is_seen(2), "control");
        nodes.server.cli(&["COPY", saved, &own, "REPLACE"]);
        assert!(is_seen(1) && !is_seen(2));
        let claim = nodes.scripts[0].claim(at(3, 2), &alice(), 3, refuse(3), "");
        let refused = claim.query::<Value>(&mut nodes.redis).unwrap_err();
        assert_eq!(refused.code(), Some("STALE"));
        let join = nodes.scripts[0].join(at(3, 2), false, "");
        let answer = joined(&join.query(&mut nodes.redis).unwrap()).unwrap();
        assert!(
            answer.created && answer.others > Duration::ZERO,
            "{answer:?}"
        );
    }

    #[test]
    fn a_missing_node_is_given_up_as_it_was_told() {
        let mut nodes = Nodes::joined(Duration::ZERO);
        nodes.write(1, &[1, 2]);
        nodes.delete(&nodes.own(2));
        let Verdict::Missing { nodes: told, .. } = nodes.claim(0, 9) else {
            panic!("control: it is missing");
        };
        let (since_told, moved) = (format!("{},", told[0]), format!("{}=1,", nodes.node(2)));
        let kept = nodes.claim_at(0, 9, epoch(1), &moved);
        assert_eq!(missing(&kept), [nodes.node(2)], "it has moved since");
        let granted = nodes.claim_at(0, 9, epoch(1), &since_told);
        assert!(
            matches!(granted, Verdict::Granted { whole: false, .. }),
            "{granted:?}"
        );
        let refused = nodes.claim_at(0, 10, epoch(1), &since_told);
        assert_eq!(
            refused,
            Verdict::Refused { whole: false },
            "the others are counted"
        );
    }

    #[test]
    fn a_clock_that_jumps_ends_no_count_in_silence() {
        let mut nodes = Nodes::joined(Duration::ZERO);
        nodes
            .scripts
            .iter_mut()
            .for_each(|script| script.terms.grace = LEASE);
        let millis = nodes.renew(0).unwrap().millis;
        let lease = LEASE.as_millis() as u64;
        let at = |millis| Stamp { millis, ..epoch(1) };
        assert!(is_granted(&nodes.claim_at(0, 1, at(millis), "")));
        for slight in [millis - lease / 4, millis + lease / 4] {
            assert!(is_granted(&nodes.claim_at(0, 2, at(slight), "")), "control");
            nodes.write(0, &[]);
        }
        // Forward: the lease of who is there may have ended, and it renews it as soon as it notices.
        let forward = nodes.claim_at(0, 3, at(millis - lease), "");
        assert_eq!(missing(&forward), ["others"]);
        // Back: nobody's lease lasts longer than it may.
        let far = (millis + 5 * lease).to_string();
        let dead = nodes.node(2);
        nodes.server.cli(&["ZADD", "x:seats", &far, &dead]);
        nodes
            .server
            .cli(&["PEXPIRE", &nodes.own(2), &(5 * lease).to_string()]);
        nodes.claim_at(0, 4, at(millis + lease), "");
        let score: u64 = nodes
            .server
            .cli(&["ZSCORE", "x:seats", &dead])
            .parse()
            .unwrap();
        assert!(score < millis + 2 * lease, "{score}");
        let left: u64 = nodes.server.cli(&["PTTL", &nodes.own(2)]).parse().unwrap();
        assert!(left <= lease, "{left}");
    }

    /// Nodes that know their sockets and notice what is lost only when they speak.
    #[test]
    fn whatever_keys_are_lost_the_limit_holds() {
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..20 {
            let mut nodes = Nodes::joined(Duration::ZERO);
            // It ends below, when everyone has noticed.
            nodes
                .scripts
                .iter_mut()
                .for_each(|script| script.terms.grace = LEASE);
            let mut held: [Vec<u64>; 3] = Default::default();
            let mut granted = 0;
            for number in 0..100 {
                let node = random.usize(..3);
                match random.u8(..8) {
                    0 => drop(nodes.server.cli(&["DEL", "x:seats"])),
                    1 => drop(nodes.server.cli(&["DEL", &nodes.own(node)])),
                    2 => {
                        held[node].pop();
                        rejoin(&mut nodes, node, &held[node]);
                    }
                    3 if held.iter().flatten().count() == 3 => {
                        held[node].clear();
                        rejoin(&mut nodes, node, &[]);
                    }
                    4 if random.bool() => drop(nodes.server.cli(&["FLUSHALL"])),
                    5 => {
                        for (node, held) in held.iter().enumerate() {
                            if nodes.renew(node).is_err() {
                                rejoin(&mut nodes, node, held);
                            }
                        }
                        nodes.server.cli(&["ZREM", "x:seats", "others"]);
                    }
                    _ => {}
                }
                let claim = nodes.scripts[node].claim(epoch(1), &alice(), number, refuse(3), "");
                match claim.query::<Value>(&mut nodes.redis) {
                    Ok(answer) => {
                        if let Verdict::Granted { .. } = verdict(&answer).unwrap() {
                            held[node].push(number);
                            granted += 1;
                        }
                    }
                    Err(_) => rejoin(&mut nodes, node, &held[node]),
                }
                let live: usize = held.iter().map(Vec::len).sum();
                assert!(live <= 3, "{held:?}, seed {seed}");
            }
            assert!(granted > 3, "control: some enter, {granted}");
        }
    }

    /// What a node does that finds its keys gone, or has something to write.
    fn rejoin(nodes: &mut Nodes, node: usize, sockets: &[u64]) {
        let join = nodes.scripts[node].join(epoch(1), false, "");
        join.exec(&mut nodes.redis).unwrap();
        nodes.write(node, sockets);
    }

    #[test]
    fn who_was_replaced_is_told_until_the_answer_is_known() {
        let server = RedisServer::start();
        let mut redis = redis::Client::open(server.url()).unwrap();
        let (a, b) = (script(1), script(2));
        let (sockets, over) = (1, OverLimit::CloseOldest);
        let limit = SeatLimit { sockets, over };
        for node in [&a, &b] {
            node.join(epoch(1), true, "").exec(&mut redis).unwrap();
            let write = node.write(epoch(1), &vec![], true);
            write.exec(&mut redis).unwrap();
        }
        let mut claim = |script: &Script, number| {
            let granted = script.claim(epoch(1), &alice(), number, limit, "");
            let granted = verdict(&granted.query(&mut redis).unwrap()).unwrap();
            assert!(is_granted(&granted), "{granted:?}");
        };
        claim(&a, 1);
        claim(&b, 1);
        claim(&a, 2);
        claim(&b, 2);
        let mut renew = |known| {
            let answer = a.renew(epoch(1), known).query(&mut redis).unwrap();
            renewed(&answer).unwrap().replaced
        };
        for _ in 0..2 {
            assert_eq!(renew(""), "u:alice=1,u:alice=2,");
        }
        assert_eq!(renew("u:alice=1,"), "u:alice=2,");
        assert_eq!(renew("u:alice=2,"), "");
        assert_eq!(renew("u:alice=2,"), "");
    }
}
