//! What a sentinel says, and what to do where it refuses.

use std::sync::Arc;

use redis::Value;

use crate::bus::redis::address::ServerAddress;
use crate::bus::redis::advice::without_arguments;
use crate::bus::redis::fields::{Fields, text};

/// One sentinel's word on one primary.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SentinelAnswer {
    /// Who says so, by whichever address it was asked.
    pub(super) id: Option<String>,
    /// Raised by every failover.
    pub(super) epoch: u64,
    pub(super) primary: ServerAddress,
    pub(super) standing: Condition,
    /// The other sentinels that it knows, by their ids.
    pub(super) others: Vec<(String, ServerAddress)>,
}

/// How the primary is, as the sentinel sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Well,
    /// It has no connection there: something is wrong, or it has only just taken it for the primary.
    Unreached,
    Down,
}

/// Reads the answers to [`command::sentinel`](crate::bus::redis::command::sentinel), each as it came.
pub(super) fn read(answers: Vec<Result<Value, String>>) -> Result<SentinelAnswer, String> {
    let mut answers = answers.into_iter();
    let mut next = || {
        answers
            .next()
            .unwrap_or_else(|| Err("it answers too little".into()))
    };
    // Who does not tell what it is tells the rest all the same.
    let hello = next();
    if let Some(unfit) = hello.as_ref().ok().and_then(unfit) {
        return Err(unfit.into());
    }
    let (master, address, others, id) = (next()?, next()?, next(), next());
    let garbled = || "it answers what is no sentinel's answer".to_owned();
    let master = Fields::of(&master).ok_or_else(garbled)?;
    let Some((name, port)) = pair(&address) else {
        return Err(garbled());
    };
    let primary = host(name, port).ok_or_else(garbled)?;
    let epoch = master
        .get("config-epoch")
        .and_then(|epoch| epoch.parse().ok());
    let flags = master.get("flags").ok_or_else(garbled)?;
    let has = |names: &[&str]| flags.split(',').any(|flag| names.contains(&flag));
    let standing = match () {
        // While it leads a failover it tells the promoted one's address, and the flags are still the old one's.
        () if host_of(&master).as_ref() != Some(&primary) => Condition::Well,
        () if has(&["s_down", "o_down"]) => Condition::Down,
        () if has(&["disconnected"]) => Condition::Unreached,
        () => Condition::Well,
    };
    Ok(SentinelAnswer {
        id: id.ok().as_ref().and_then(text).map(ToOwned::to_owned),
        epoch: epoch.ok_or_else(garbled)?,
        primary,
        standing,
        others: others.map(|others| sentinels(&others)).unwrap_or_default(),
    })
}

/// Why a server that greets so is of no use.
fn unfit(hello: &Value) -> Option<&'static str> {
    match Fields::of(hello)?.get("mode")? {
        "standalone" => Some(ALONE),
        "cluster" => Some(CLUSTER),
        _ => None,
    }
}

fn sentinels(value: &Value) -> Vec<(String, ServerAddress)> {
    let Value::Array(sentinels) = value else {
        return Vec::new();
    };
    let known = sentinels.iter().filter_map(|sentinel| {
        let fields = Fields::of(sentinel)?;
        let id = fields.get("runid").filter(|id| !id.is_empty())?;
        Some((id.to_owned(), host_of(&fields)?))
    });
    known.collect()
}

fn host_of(fields: &Fields<'_>) -> Option<ServerAddress> {
    host(fields.get("ip")?, fields.get("port")?)
}

fn pair(value: &Value) -> Option<(&str, &str)> {
    match value {
        Value::Array(pair) => match pair.as_slice() {
            [one, other] => Some((text(one)?, text(other)?)),
            _ => None,
        },
        _ => None,
    }
}

fn host(name: &str, port: &str) -> Option<ServerAddress> {
    let port = port.parse().ok().filter(|port| *port > 0)?;
    (!name.is_empty()).then(|| ServerAddress::new(name, port))
}

const ALONE: &str =
    "this is no sentinel but a Redis alone: name it as redis://host:port, rediss:// with TLS";
const CLUSTER: &str = "this is no sentinel but a node of a Redis Cluster: \
     name it as redis-cluster://host:port, rediss-cluster:// with TLS";

/// A sentinel's own words, and the fix where one is known.
pub(super) fn advise(words: &str, service: &str, user: Option<&str>) -> Arc<str> {
    let words = without_arguments(words);
    let user = user.unwrap_or("default");
    let fix = match words {
        _ if words.starts_with("ERR No such master") => {
            format!("it knows no `{service}`: SENTINEL MASTERS lists the names that it knows")
        }
        _ if words.starts_with("ERR unknown command") => {
            "this is no sentinel: a Redis alone is named as redis://host:port, a Redis Cluster as redis-cluster://host:port"
                .into()
        }
        _ if words.starts_with("NOAUTH") => {
            "sentinels have passwords of their own: add sentinelPassword to the URL's query".into()
        }
        _ if words.starts_with("WRONGPASS") => {
            "check sentinelUsername and sentinelPassword in the URL".into()
        }
        _ if words.starts_with("ERR AUTH <password> called without any password") => {
            "this sentinel has no password: take sentinelPassword out of the URL".into()
        }
        _ if words.starts_with("NOPERM") => format!(
            "grant it at the sentinels: ACL SETUSER {user} resetchannels &+switch-master +subscribe +ping \
             +sentinel|master +sentinel|get-master-addr-by-name +sentinel|sentinels +sentinel|myid"
        ),
        _ => return words.into(),
    };
    format!("{words} ({fix})").into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bus::redis::fields::tests::{any_value, bulk};

    fn list(texts: &[&str]) -> Value {
        Value::Array(texts.iter().map(|text| bulk(text)).collect())
    }

    fn master(port: &str, flags: &str) -> Value {
        let fields = ["name", "m", "ip", "10.0.0.1", "port", port, "flags", flags];
        list(&[&fields[..], &["config-epoch", "7", "quorum", "2"]].concat())
    }

    fn answers(master: Value, port: &str) -> Vec<Result<Value, String>> {
        let other = list(&["name", "x", "ip", "10.0.0.9", "port", "26379", "runid", "b"]);
        let garbled = list(&["name", "x", "ip", "10.0.0.9"]);
        vec![
            Ok(list(&["mode", "sentinel"])),
            Ok(master),
            Ok(list(&["10.0.0.1", port])),
            Ok(Value::Array(vec![other, garbled])),
            Ok(bulk("a")),
        ]
    }

    #[test]
    fn what_a_sentinel_says_is_read() {
        let sound = read(answers(master("1", "master"), "1")).unwrap();
        let expected = SentinelAnswer {
            id: Some("a".into()),
            epoch: 7,
            primary: ServerAddress::new("10.0.0.1", 1),
            standing: Condition::Well,
            others: vec![("b".into(), ServerAddress::new("10.0.0.9", 26379))],
        };
        assert_eq!(sound, expected);
        for (flags, standing) in [
            ("s_down,master,disconnected", Condition::Down),
            ("master,o_down", Condition::Down),
            ("master,disconnected", Condition::Unreached),
        ] {
            let answer = read(answers(master("1", flags), "1")).unwrap();
            assert_eq!(answer.standing, standing, "{flags}");
        }
        let leads = "s_down,o_down,master,failover_in_progress";
        let promoted = read(answers(master("1", leads), "2")).unwrap();
        assert_eq!(promoted.primary, ServerAddress::new("10.0.0.1", 2));
        assert_eq!(promoted.standing, Condition::Well, "another is down");
    }

    #[test]
    fn what_is_not_granted_and_not_needed_is_done_without() {
        let refused = || Err("NOPERM".to_owned());
        let mut least = answers(master("1", "master"), "1");
        (least[0], least[3], least[4]) = (refused(), refused(), refused());
        let read_so = read(least.clone()).unwrap();
        assert_eq!((read_so.id, read_so.others), (None, vec![]));
        for needed in 1..3 {
            let mut answers = least.clone();
            answers[needed] = refused();
            assert_eq!(read(answers), Err("NOPERM".into()));
        }
        let mut unknown = least.clone();
        unknown[2] = Ok(Value::Nil);
        assert!(read(unknown).is_err());
        assert!(read(Vec::new()).is_err());
        for (mode, url) in [("standalone", "redis://"), ("cluster", "redis-cluster://")] {
            let mut another = answers(master("1", "master"), "1");
            another[0] = Ok(list(&["mode", mode]));
            let why = read(another).unwrap_err();
            assert!(why.contains(url), "{why}");
        }
    }

    #[test]
    fn every_refusal_keeps_its_words_and_names_the_fix() {
        for (words, fix) in [
            ("ERR No such master with that name", "`shop`"),
            (
                "ERR unknown command 'SENTINEL', with args beginning with: 's3cret'",
                "redis://host:port",
            ),
            ("NOAUTH Authentication required.", "sentinelPassword"),
            (
                "WRONGPASS invalid username-password pair",
                "sentinelUsername",
            ),
            (
                "ERR AUTH <password> called without any password configured",
                "take sentinelPassword out",
            ),
            ("NOPERM this user has no permissions", "ACL SETUSER app"),
        ] {
            let said = advise(words, "shop", Some("app"));
            let added = said.strip_prefix(without_arguments(words)).unwrap();
            assert!(added.contains(fix), "{said}");
            assert!(!said.contains("s3cret"), "{said}");
        }
        assert_eq!(
            &*advise("Connection refused", "shop", None),
            "Connection refused"
        );
    }

    const TEXTS: &str = "(ip|port|flags|runid|config-epoch|[0-9]{0,6}|\\PC{0,4})";

    proptest! {
        #[test]
        fn no_answer_breaks_anything(answers: Vec<bool>, values in proptest::collection::vec(any_value(TEXTS), 0..6)) {
            let told = values.into_iter().zip(answers.into_iter().chain(std::iter::repeat(true)));
            let told = told.map(|(value, ok)| if ok { Ok(value) } else { Err("ERR".to_owned()) });
            let _ = read(told.collect());
        }
    }
}
