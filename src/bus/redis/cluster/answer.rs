//! What a node of a cluster says, and what to do where it refuses.

use std::sync::Arc;

use redis::Value;

use super::view::{AskedHost, View};
use crate::bus::redis::address::ServerAddress;
use crate::bus::redis::advice::without_arguments;
use crate::bus::redis::fields::{Fields, text};

/// One node's word on how the cluster is divided.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ClusterAnswer {
    /// Whose word it is.
    pub(super) by: ServerAddress,
    pub(super) view: View,
    /// The highest that it knows of, if it tells it.
    pub(super) epoch: Option<u64>,
    /// Whether it sees most of the others, as far as it tells.
    pub(super) is_well: bool,
    /// If it is not: whether that is for primaries alone which most of the others gave up, while it misses none of these.
    pub(super) is_bereft: bool,
}

/// Reads the answers to [`command::cluster`](crate::bus::redis::command::cluster), each as it came.
pub(super) fn read(
    answers: Vec<Result<Value, String>>,
    asked: AskedHost<'_>,
) -> Result<ClusterAnswer, String> {
    let mut answers = answers.into_iter();
    let mut next = || {
        answers
            .next()
            .unwrap_or_else(|| Err("it answers too little".into()))
    };
    let (hello, slots, info) = (next(), next(), next());
    if let Some(unfit) = hello.as_ref().ok().and_then(unfit) {
        return Err(unfit);
    }
    let view = View::read(&slots?, asked).ok_or("it answers what is no view of a cluster")?;
    let info = info.as_ref().ok().and_then(text).unwrap_or_default();
    let state = line(info, "cluster_state");
    let slots = |how| line(info, how).and_then(|count| count.parse::<u32>().ok());
    let is_well = state.is_none_or(|state| state == "ok");
    Ok(ClusterAnswer {
        by: asked.host.clone(),
        view,
        epoch: line(info, "cluster_current_epoch").and_then(|epoch| epoch.parse().ok()),
        is_well,
        is_bereft: !is_well
            && slots("cluster_slots_fail") > Some(0)
            && slots("cluster_slots_pfail") == Some(0),
    })
}

fn line<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = info.lines().filter_map(|line| line.split_once(':'));
    let found = lines.find(|(key, _)| *key == name)?;
    Some(found.1.trim())
}

/// Why a server that greets so is of no use.
fn unfit(hello: &Value) -> Option<String> {
    let hello = Fields::of(hello)?;
    match hello.get("mode") {
        Some("standalone") => return Some(ALONE.into()),
        Some("sentinel") => return Some(SENTINEL.into()),
        _ => {}
    }
    let version = hello.get("version")?;
    let major: u32 = version.split('.').next()?.parse().ok()?;
    (major < SHARDED).then(|| {
        format!(
            "this is Redis {version}, and in a cluster messages take sharded pub/sub, which Redis has since {SHARDED}.0: \
             upgrade it, or use a single Redis or one with sentinels"
        )
    })
}

/// A node's own words, and the fix where one is known.
pub(super) fn advise(words: &str, user: Option<&str>) -> Arc<str> {
    let words = without_arguments(words);
    let user = user.unwrap_or("default");
    let known = |(said, _): &&(&str, &str)| words.starts_with(said);
    let fix = match FIXES.iter().find(known) {
        Some((_, fix)) => (*fix).to_owned(),
        None if words.starts_with("NOPERM") => {
            format!("grant it at every node: ACL SETUSER {user} +cluster|slots +cluster|info")
        }
        None => return words.into(),
    };
    format!("{words} ({fix})").into()
}

/// The first version with sharded pub/sub.
const SHARDED: u32 = 7;

const ALONE: &str = "this is no node of a Redis Cluster but a Redis alone: name it as redis://host:port, rediss:// with TLS";
const SENTINEL: &str = "this is a sentinel and no node of a Redis Cluster: \
     name it as redis-sentinel://host:26379/mymaster, with the name under which it knows the primary";

/// How an answer begins, and the fix.
const FIXES: [(&str, &str); 6] = [
    (
        "ERR This instance has cluster support disabled",
        "this is a Redis alone: name it as redis://host:port",
    ),
    (
        "ERR unknown command",
        "this server knows nothing of clusters: a Redis alone is named as redis://host:port",
    ),
    (
        "NOAUTH",
        "put the password into the URL, redis-cluster://:password@host, or give it by Redis::password_from",
    ),
    (
        "WRONGPASS",
        "check user name and password in the URL, or what Redis::password_from gives: every node has to know them",
    ),
    (
        "ERR AUTH <password> called without any password",
        "this Redis has no password: take it out of the URL, or take out Redis::password_from",
    ),
    ("LOADING", "it starts; the node tries again"),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bus::redis::cluster::view::tests::slots_of;
    use crate::bus::redis::fields::tests::{any_value, bulk};

    const INFO: &str = "cluster_enabled:1\r\ncluster_state:ok\r\ncluster_my_epoch:2\r\ncluster_current_epoch:6\r\n";

    fn hello(mode: &str, version: &str) -> Value {
        let fields = ["server", "redis", "version", version, "proto"].map(bulk);
        let rest = [Value::Int(2), bulk("mode"), bulk(mode)];
        Value::Array(fields.into_iter().chain(rest).collect())
    }

    fn read(answers: Vec<Result<Value, String>>) -> Result<ClusterAnswer, String> {
        let host = &ServerAddress::new("seed", 1);
        super::read(
            answers,
            AskedHost {
                host,
                by_name: false,
            },
        )
    }

    fn greeted(mode: &str, version: &str) -> Result<ClusterAnswer, String> {
        read(vec![
            Ok(hello(mode, version)),
            Ok(slots_of(70)),
            Ok(bulk(INFO)),
        ])
    }

    #[test]
    fn what_a_node_says_is_read() {
        let answer = greeted("cluster", "7.0.15").unwrap();
        assert_eq!((answer.epoch, answer.is_well), (Some(6), true));
        assert_eq!(answer.view.nodes().len(), 1);
        let info = INFO.replace("state:ok", "state:fail");
        let down = read(vec![Ok(Value::Nil), Ok(slots_of(70)), Ok(bulk(&info))]);
        let down = down.unwrap();
        assert!(!down.is_well && !down.is_bereft);
        for (state, suspected, given_up, is_bereft) in [
            ("fail", 0, 5461, true),
            ("fail", 1, 5461, false),
            ("fail", 0, 0, false),
            ("ok", 0, 5461, false),
        ] {
            let slots =
                format!("cluster_slots_pfail:{suspected}\r\ncluster_slots_fail:{given_up}\r\n");
            let info = INFO.replace("state:ok", &format!("state:{state}")) + &slots;
            let said = read(vec![Ok(Value::Nil), Ok(slots_of(70)), Ok(bulk(&info))]);
            assert_eq!(said.unwrap().is_bereft, is_bereft, "{info}");
        }
    }

    #[test]
    fn what_is_not_granted_and_not_needed_is_done_without() {
        let refused = || Err("NOPERM".to_owned());
        let least = read(vec![refused(), Ok(slots_of(70)), refused()]).unwrap();
        assert_eq!((least.epoch, least.is_well), (None, true));
        let needed = read(vec![
            Ok(hello("cluster", "7.0.15")),
            refused(),
            Ok(bulk(INFO)),
        ]);
        assert_eq!(needed, Err("NOPERM".into()));
        assert!(read(vec![refused(), Ok(Value::Nil), refused()]).is_err());
        assert!(read(Vec::new()).is_err());
    }

    /// T23, T24.
    #[test]
    fn another_kind_of_server_and_one_that_is_too_old_are_told_with_the_fix() {
        for (mode, version, fix) in [
            ("standalone", "7.0.15", "redis://host:port"),
            ("sentinel", "7.0.15", "redis-sentinel://"),
            ("cluster", "6.2.14", "upgrade"),
        ] {
            let unfit = greeted(mode, version).unwrap_err();
            assert!(unfit.contains(fix), "{unfit}");
        }
        for version in ["7.0.0", "8.1.8", "10.0.1", "", "unstable"] {
            assert!(greeted("cluster", version).is_ok(), "{version}");
        }
    }

    #[test]
    fn every_refusal_keeps_its_words_and_names_the_fix() {
        for (words, fix) in [
            (
                "ERR This instance has cluster support disabled",
                "redis://host:port",
            ),
            (
                "ERR unknown command 'CLUSTER', with args beginning with: 's3cret'",
                "redis://host:port",
            ),
            (
                "NOAUTH Authentication required.",
                "redis-cluster://:password@host",
            ),
            ("WRONGPASS invalid username-password pair", "every node"),
            (
                "ERR AUTH <password> called without any password configured",
                "take it out",
            ),
            (
                "NOPERM this user has no permissions",
                "ACL SETUSER app +cluster|slots",
            ),
            (
                "LOADING Redis is loading the dataset in memory",
                "tries again",
            ),
        ] {
            let said = advise(words, Some("app"));
            let added = said.strip_prefix(without_arguments(words)).unwrap();
            assert!(added.contains(fix), "{said}");
            assert!(!said.contains("s3cret"), "{said}");
        }
        assert_eq!(&*advise("Connection refused", None), "Connection refused");
    }

    const TEXTS: &str =
        "(mode|version|cluster|7|cluster_state:ok|cluster_current_epoch:[0-9]{0,30}|\\PC{0,4})";

    proptest! {
        #[test]
        fn no_answer_breaks_anything(values in proptest::collection::vec((any::<bool>(), any_value(TEXTS)), 0..5)) {
            let told = values.into_iter().map(|(ok, value)| if ok { Ok(value) } else { Err("ERR".to_owned()) });
            let _ = read(told.collect());
        }
    }
}
