//! What is said to Redis. No other place composes commands, but for the login of a connection for questions, which is
//! redis-rs' own.
//!
//! What the bus itself says is written as bytes, straight into the buffer that leaves; what goes through the pool
//! is a [`Cmd`], since redis-rs serves that.

use bytes::{BufMut, BytesMut};
use redis::{Cmd, RedisConnectionInfo};

use super::address::ServerAddress;
use crate::model::history::mark::Number;

/// How a server takes messages: to all of it, or in a Redis Cluster to the primary of a channel's slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Plain,
    /// Sharded pub/sub, of Redis 7.
    Sharded,
}

impl Dialect {
    /// Whether a refusal means that another primary takes it, or this one later.
    pub(super) fn is_elsewhere(self, words: &str) -> bool {
        let said = |refusal| words.starts_with(refusal);
        self == Self::Sharded && ["MOVED ", "ASK ", "TRYAGAIN"].into_iter().any(said)
    }

    fn publish(self) -> &'static [u8] {
        match self {
            Self::Plain => b"PUBLISH",
            Self::Sharded => b"SPUBLISH",
        }
    }
}

/// Whether a refusal of what is elsewhere says that its slot is still here, and on its way: there is nothing to be found
/// out until it has left, which another refusal tells.
pub(super) fn is_on_its_way(words: &str) -> bool {
    ["ASK ", "TRYAGAIN"]
        .into_iter()
        .any(|refusal| words.starts_with(refusal))
}

/// Where a refusal says that the next command is to be [asked](ASKING) for: its keys have left already. Without a name it is another
/// port of who refuses.
pub(super) fn asked(words: &str) -> Option<ServerAddress> {
    let place = words.strip_prefix("ASK ")?.split(' ').nth(1)?;
    let (name, port) = place.rsplit_once(':')?;
    let name = if name == "?" { "" } else { name };
    Some(ServerAddress::new(name, port.parse().ok()?))
}

/// Has a primary take the next command for a slot that is on its way to it.
pub(super) const ASKING: &[u8] = b"*1\r\n$6\r\nASKING\r\n";

/// Asks Redis who it is, its role among others: a question that needs no permission.
pub(super) const HELLO: &[u8] = b"*1\r\n$5\r\nHELLO\r\n";

/// [`HELLO`], for what goes through redis-rs.
pub(super) fn hello() -> Cmd {
    redis::cmd("HELLO")
}

/// Logs in.
pub(super) fn auth(out: &mut BytesMut, user: Option<&str>, password: &str) {
    put_head(out, 2 + usize::from(user.is_some()));
    put_bulk(out, b"AUTH");
    if let Some(user) = user {
        put_bulk(out, user.as_bytes());
    }
    put_bulk(out, password.as_bytes());
}

pub(super) fn subscribe(
    out: &mut BytesMut,
    dialect: Dialect,
    channels: impl ExactSizeIterator<Item = String>,
) {
    let name: &[u8] = match dialect {
        Dialect::Plain => b"SUBSCRIBE",
        Dialect::Sharded => b"SSUBSCRIBE",
    };
    put_channels(out, name, channels);
}

pub(super) fn unsubscribe(
    out: &mut BytesMut,
    dialect: Dialect,
    channels: impl ExactSizeIterator<Item = String>,
) {
    let name: &[u8] = match dialect {
        Dialect::Plain => b"UNSUBSCRIBE",
        Dialect::Sharded => b"SUNSUBSCRIBE",
    };
    put_channels(out, name, channels);
}

/// Whatever is given is published in one piece.
pub(super) fn publish(
    out: &mut BytesMut,
    dialect: Dialect,
    channel: &str,
    (stamp, envelope): (&[u8], &[u8]),
) {
    out.put_slice(match dialect {
        Dialect::Plain => b"*3\r\n$7\r\nPUBLISH\r\n",
        Dialect::Sharded => b"*3\r\n$8\r\nSPUBLISH\r\n",
    });
    put_bulk(out, channel.as_bytes());
    put_length(out, b'$', stamp.len() + envelope.len());
    out.put_slice(stamp);
    out.put_slice(envelope);
    out.put_slice(b"\r\n");
}

/// One message that is kept, or published beside others that are.
#[derive(Debug)]
pub(super) struct Appended<'a> {
    /// The key of its list, how many that keeps, and how long it lives in milliseconds.
    pub(super) list: Option<(&'a str, usize, u64)>,
    /// Its list is to live so long from now on.
    pub(super) refresh: bool,
    /// It has the number of the one before.
    pub(super) same_number: bool,
    /// Empty where it is not published.
    pub(super) channel: &'a str,
    /// Empty where it is the one before.
    pub(super) envelope: &'a [u8],
}

/// Keeps messages and publishes them, by the script of this digest.
pub(super) fn append(
    out: &mut BytesMut,
    dialect: Dialect,
    digest: &str,
    (clock, run): (&str, &str),
    messages: &[Appended<'_>],
) {
    put_head(out, 6 + 6 * messages.len());
    put_bulk(out, b"EVALSHA");
    put_bulk(out, digest.as_bytes());
    put_number(out, messages.len() + 1);
    put_bulk(out, clock.as_bytes());
    for message in messages {
        put_bulk(out, message.list.map_or(clock, |(key, ..)| key).as_bytes());
    }
    put_bulk(out, run.as_bytes());
    put_bulk(out, dialect.publish());
    for message in messages {
        let (_, kept, lifetime) = message.list.unwrap_or_default();
        put_number(out, kept);
        put_number(out, lifetime as usize);
        put_bulk(
            out,
            match (message.refresh, message.same_number) {
                (false, false) => b"",
                (true, false) => b"r",
                (false, true) => b"s",
                (true, true) => b"rs",
            },
        );
        put_bulk(out, message.channel.as_bytes());
        put_bulk(out, message.envelope);
    }
}

/// The same of messages that may be there already, each with the marks under which it was kept.
pub(super) fn append_again(
    out: &mut BytesMut,
    dialect: Dialect,
    digest: &str,
    (clock, run, since): (&str, &str, Number),
    messages: &[(Appended<'_>, String)],
) {
    put_head(out, 7 + 7 * messages.len());
    put_bulk(out, b"EVALSHA");
    put_bulk(out, digest.as_bytes());
    put_number(out, messages.len() + 1);
    put_bulk(out, clock.as_bytes());
    for (message, _) in messages {
        put_bulk(out, message.list.map_or(clock, |(key, ..)| key).as_bytes());
    }
    put_bulk(out, run.as_bytes());
    put_bulk(out, dialect.publish());
    put_bulk(out, since.to_string().as_bytes());
    for (message, formerly) in messages {
        let (_, kept, lifetime) = message.list.unwrap_or_default();
        put_number(out, kept);
        put_number(out, lifetime as usize);
        put_bulk(out, if message.same_number { b"s" } else { b"" });
        put_bulk(out, formerly.as_bytes());
        put_bulk(out, message.channel.as_bytes());
        put_bulk(out, message.envelope);
    }
}

/// Asks who numbers, whether it evicts, and has it learn a script.
pub(super) fn prepare(out: &mut BytesMut, script: &str) {
    for section in ["server", "memory"] {
        put_head(out, 2);
        put_bulk(out, b"INFO");
        put_bulk(out, section.as_bytes());
    }
    learn(out, script);
}

/// Has it learn a script.
pub(super) fn learn(out: &mut BytesMut, script: &str) {
    put_head(out, 3);
    put_bulk(out, b"SCRIPT");
    put_bulk(out, b"LOAD");
    put_bulk(out, script.as_bytes());
}

/// Reads all fields of a hash.
pub(super) fn hgetall(out: &mut BytesMut, key: &str) {
    put_head(out, 2);
    put_bulk(out, b"HGETALL");
    put_bulk(out, key.as_bytes());
}

/// What [`prepare`] says, for what goes through redis-rs; and a question for what was evicted so far.
pub(super) fn prepare_read(script: &str) -> [Cmd; 3] {
    let info = |section| {
        let mut command = redis::cmd("INFO");
        command.arg(section);
        command
    };
    let mut load = redis::cmd("SCRIPT");
    load.arg("LOAD").arg(script);
    [info("server"), info("memory"), load]
}

/// Asks how many keys were evicted.
pub(super) fn info_stats() -> Cmd {
    let mut command = redis::cmd("INFO");
    command.arg("stats");
    command
}

/// Asks for life, where nothing else is to be said.
pub(super) fn ping(out: &mut BytesMut) {
    out.put_slice(b"*1\r\n$4\r\nPING\r\n");
}

/// Logs in, where the answer in the server's own words matters: redis-rs has its own.
pub(super) fn log_in(login: &RedisConnectionInfo) -> Option<Cmd> {
    let mut command = redis::cmd("AUTH");
    command.arg(login.username());
    command.arg(login.password()?);
    Some(command)
}

/// Asks a sentinel whether it is one, what it knows of a primary, where it is, who else is asked for it, and its own id.
pub(super) fn sentinel(service: &str) -> [Cmd; 5] {
    let about = |question| {
        let mut command = redis::cmd("SENTINEL");
        command.arg(question);
        if question != "MYID" {
            command.arg(service);
        }
        command
    };
    let [master, address, others, id] =
        ["MASTER", "GET-MASTER-ADDR-BY-NAME", "SENTINELS", "MYID"].map(about);
    [hello(), master, address, others, id]
}

/// Asks a server who it is, how its cluster is divided, and how that fares.
pub(super) fn cluster() -> [Cmd; 3] {
    let about = |what| {
        let mut command = redis::cmd("CLUSTER");
        command.arg(what);
        command
    };
    [hello(), about("SLOTS"), about("INFO")]
}

/// Asks how many subscribers each channel has.
pub(super) fn numsub(dialect: Dialect, channels: &[String]) -> Cmd {
    let mut command = redis::cmd("PUBSUB");
    let count = match dialect {
        Dialect::Plain => "NUMSUB",
        Dialect::Sharded => "SHARDNUMSUB",
    };
    command.arg(count).arg(channels);
    command
}

/// Publishes nothing where nobody hears it.
pub(super) fn mark(channel: &str) -> Cmd {
    let mut command = redis::cmd("SPUBLISH");
    command.arg(channel).arg("");
    command
}

/// Runs a script that is sent whole; its keys and arguments are to be added.
pub(super) fn eval(script: &str) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(script);
    command
}

/// Runs a script that Redis knows by its digest; its keys and arguments are to be added.
/// Asks for what positions are signed with, or keeps what was made.
pub(super) fn key((script, digest): (&str, &str), clock: &str, made: &str) -> [Cmd; 2] {
    let mut load = redis::cmd("SCRIPT");
    load.arg("LOAD").arg(script);
    let mut ask = evalsha(digest);
    ask.arg(1).arg(clock).arg(made);
    [load, ask]
}

pub(super) fn evalsha(digest: &str) -> Cmd {
    let mut command = redis::cmd("EVALSHA");
    command.arg(digest);
    command
}

/// Reads fields of a hash.
pub(super) fn hmget(key: &str, fields: &[&str]) -> Cmd {
    let mut command = redis::cmd("HMGET");
    command.arg(key).arg(fields);
    command
}

/// Reads the score of a member of a sorted set.
pub(super) fn zscore(key: &str, member: &str) -> Cmd {
    let mut command = redis::cmd("ZSCORE");
    command.arg(key).arg(member);
    command
}

fn put_channels(out: &mut BytesMut, name: &[u8], channels: impl ExactSizeIterator<Item = String>) {
    put_head(out, 1 + channels.len());
    put_bulk(out, name);
    for channel in channels {
        put_bulk(out, channel.as_bytes());
    }
}

fn put_head(out: &mut BytesMut, elements: usize) {
    put_length(out, b'*', elements);
}

fn put_bulk(out: &mut BytesMut, bytes: &[u8]) {
    put_length(out, b'$', bytes.len());
    out.put_slice(bytes);
    out.put_slice(b"\r\n");
}

fn put_number(out: &mut BytesMut, number: usize) {
    let mut digits = itoa::Buffer::new();
    put_bulk(out, digits.format(number).as_bytes());
}

fn put_length(out: &mut BytesMut, kind: u8, length: usize) {
    let mut digits = itoa::Buffer::new();
    out.put_u8(kind);
    out.put_slice(digits.format(length).as_bytes());
    out.put_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut BytesMut)) -> String {
        let mut out = BytesMut::new();
        write(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn commands_are_what_redis_reads() {
        let channels = || ["x:all", "x:u:a"].map(str::to_owned).into_iter();
        for (said, expected) in [
            (
                written(|out| auth(out, None, "s3 cret")),
                "*2\r\n$4\r\nAUTH\r\n$7\r\ns3 cret\r\n",
            ),
            (
                written(|out| auth(out, Some("app"), "")),
                "*3\r\n$4\r\nAUTH\r\n$3\r\napp\r\n$0\r\n\r\n",
            ),
            (
                written(|out| subscribe(out, Dialect::Plain, channels())),
                "*3\r\n$9\r\nSUBSCRIBE\r\n$5\r\nx:all\r\n$5\r\nx:u:a\r\n",
            ),
            (
                written(|out| subscribe(out, Dialect::Sharded, channels())),
                "*3\r\n$10\r\nSSUBSCRIBE\r\n$5\r\nx:all\r\n$5\r\nx:u:a\r\n",
            ),
            (
                written(|out| unsubscribe(out, Dialect::Sharded, channels())),
                "*3\r\n$12\r\nSUNSUBSCRIBE\r\n$5\r\nx:all\r\n$5\r\nx:u:a\r\n",
            ),
            (
                written(|out| publish(out, Dialect::Sharded, "x:all", (b"", b"y"))),
                "*3\r\n$8\r\nSPUBLISH\r\n$5\r\nx:all\r\n$1\r\ny\r\n",
            ),
            (
                written(|out| unsubscribe(out, Dialect::Plain, channels())),
                "*3\r\n$11\r\nUNSUBSCRIBE\r\n$5\r\nx:all\r\n$5\r\nx:u:a\r\n",
            ),
            (
                written(|out| publish(out, Dialect::Plain, "x:all", (b"yyyyy", b"yyyyy"))),
                "*3\r\n$7\r\nPUBLISH\r\n$5\r\nx:all\r\n$10\r\nyyyyyyyyyy\r\n",
            ),
        ] {
            assert_eq!(said, expected);
        }
    }

    #[test]
    fn a_refusal_says_where_to_ask() {
        for (words, place) in [
            ("ASK 866 127.0.0.1:7001", Some(("127.0.0.1", 7001))),
            ("ASK 866 ::1:7001", Some(("::1", 7001))),
            ("ASK 866 :7001", Some(("", 7001))),
            ("ASK 866 ?:7001", Some(("", 7001))),
            ("ASK 866", None),
            ("ASK 866 x:y", None),
            ("MOVED 866 127.0.0.1:7001", None),
            (
                "TRYAGAIN Multiple keys request during rehashing of slot",
                None,
            ),
        ] {
            let place = place.map(|(name, port)| ServerAddress::new(name, port));
            assert_eq!(asked(words), place, "{words}");
        }
    }

    #[test]
    fn both_dialects_say_the_same() {
        let mut packed = redis::cmd("SUBSCRIBE");
        packed.arg("x:all").arg("x:u:a");
        let channels = ["x:all", "x:u:a"].map(str::to_owned).into_iter();
        let said = written(|out| subscribe(out, Dialect::Plain, channels));
        assert_eq!(said.as_bytes(), packed.get_packed_command());
        assert_eq!(HELLO, hello().get_packed_command());
    }
}
