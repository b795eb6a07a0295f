//! URLs that name several hosts: sentinels, or nodes of a Redis Cluster. They stand in a list, or as `node=` in the query.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use percent_encoding::percent_decode_str;
use url::Url;

use super::{PORT, check_port, port};

const SENTINEL_PORT: u16 = 26379;
const SENTINEL_FORM: &str =
    "the form is redis-sentinel://[user:password@]host[:port][,host[:port]]/mymaster";

/// A host and its port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::bus::redis) struct ServerAddress {
    pub(in crate::bus::redis) name: String,
    pub(in crate::bus::redis) port: u16,
}

impl ServerAddress {
    pub(in crate::bus::redis) fn new(name: impl Into<String>, port: u16) -> Self {
        let name = name.into();
        Self { name, port }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.parse::<Ipv6Addr>() {
            Ok(ip) => write!(f, "[{ip}]:{}", self.port),
            Err(_) => write!(f, "{}:{}", self.name, self.port),
        }
    }
}

/// Who we are to a server.
#[derive(Clone, Default, PartialEq, Eq)]
pub(in crate::bus::redis) struct Login {
    pub(in crate::bus::redis) user: Option<String>,
    pub(in crate::bus::redis) password: Option<String>,
}

/// Never shows the password.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let password = self.password.as_ref().map(|_| "***");
        let mut login = f.debug_struct("Login");
        login.field("user", &self.user).field("password", &password);
        login.finish()
    }
}

/// Nodes of a Redis Cluster: any of them knows the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::bus::redis) struct Seeds {
    pub(in crate::bus::redis) hosts: Vec<ServerAddress>,
    pub(in crate::bus::redis) login: Login,
    pub(in crate::bus::redis) tls: bool,
}

/// Without its secrets.
impl fmt::Display for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, "cluster", self.tls, &self.login, &self.hosts)
    }
}

/// Sentinels, and which primary they are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::bus::redis) struct SentinelUrl {
    pub(in crate::bus::redis) sentinels: Seeds,
    pub(in crate::bus::redis) service: String,
    /// At the primary.
    pub(in crate::bus::redis) login: Login,
    pub(in crate::bus::redis) tls: bool,
}

/// Without its secrets.
impl fmt::Display for SentinelUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = &self.sentinels.hosts;
        show(f, "sentinel", self.tls, &self.login, hosts)?;
        write!(f, "/{}", self.service)
    }
}

fn show(
    f: &mut fmt::Formatter<'_>,
    kind: &str,
    tls: bool,
    login: &Login,
    hosts: &[ServerAddress],
) -> fmt::Result {
    let tls = if tls { "s" } else { "" };
    write!(f, "redis{tls}-{kind}://")?;
    if let Some(user) = &login.user {
        write!(f, "{user}@")?;
    }
    for (n, host) in hosts.iter().enumerate() {
        let comma = if n > 0 { "," } else { "" };
        write!(f, "{comma}{host}")?;
    }
    Ok(())
}

/// What follows `redis-sentinel://`.
pub(super) fn sentinel(rest: &str, tls: bool) -> Result<SentinelUrl, String> {
    let mut parts = UrlParts::of(rest, SENTINEL_PORT)?;
    let (mut named, mut asked_by, mut secured) = (None, Login::default(), tls);
    for (key, value) in std::mem::take(&mut parts.query) {
        let twice = match key.as_str() {
            "sentinelServiceName" => named.replace(value).is_some(),
            "sentinelUsername" => asked_by.user.replace(value).is_some(),
            "sentinelPassword" => asked_by.password.replace(value).is_some(),
            "sentinelTls" => {
                secured = value
                    .parse()
                    .map_err(|_| "sentinelTls is neither true nor false")?;
                false
            }
            _ => {
                return Err(unknown(
                    "node, sentinelServiceName, sentinelUsername, sentinelPassword and sentinelTls",
                ));
            }
        };
        if twice {
            return Err(format!("`{key}` stands twice in the query: leave one out"));
        }
    }
    Ok(SentinelUrl {
        service: service(&parts.path, named)?,
        sentinels: Seeds {
            hosts: parts.hosts,
            login: asked_by,
            tls: secured,
        },
        login: parts.login,
        tls,
    })
}

/// What follows `redis-cluster://`.
pub(super) fn cluster(rest: &str, tls: bool) -> Result<Seeds, String> {
    let parts = UrlParts::of(rest, PORT)?;
    if !parts.query.is_empty() {
        return Err(unknown("node"));
    }
    match parts.path.as_slice() {
        [] => {}
        [database] if database == "0" => {}
        _ => return Err("the path: a Redis Cluster has no database but 0, take it out".into()),
    }
    Ok(Seeds {
        hosts: parts.hosts,
        login: parts.login,
        tls,
    })
}

/// The primary's name, which stands in the path or the query; a database number may stand there too, and means nothing.
fn service(path: &[String], named: Option<String>) -> Result<String, String> {
    let is_number = |text: &String| text.bytes().all(|byte| byte.is_ascii_digit());
    let name = match (path, named) {
        ([], Some(name)) => name,
        ([number], Some(name)) if is_number(number) => name,
        ([name], None) if !is_number(name) => name.clone(),
        ([name, number], None) if is_number(number) => name.clone(),
        ([], None) | ([_], None) => String::new(),
        (_, Some(_)) => {
            return Err(
                "the primary is named twice: in the path, and as sentinelServiceName".into(),
            );
        }
        (_, None) => return Err(format!("the path has too many parts: {SENTINEL_FORM}")),
    };
    match name.is_empty() {
        true => Err(format!(
            "the name of the primary is missing, as the sentinels know it: append /mymaster or \
             ?sentinelServiceName=mymaster; {SENTINEL_FORM}"
        )),
        false => Ok(name),
    }
}

fn unknown(known: &str) -> String {
    format!("the query knows only {known} (in a password `?` is written %3F)")
}

/// What all such URLs have in common, decoded.
struct UrlParts {
    login: Login,
    hosts: Vec<ServerAddress>,
    path: Vec<String>,
    /// But for the nodes.
    query: Vec<(String, String)>,
}

impl UrlParts {
    fn of(rest: &str, default: u16) -> Result<Self, String> {
        if rest.contains('#') {
            return Err(
                "a #fragment is not supported: in a password `#` is written %23, and certificates are always verified"
                    .into(),
            );
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let mut keys = query.split('&').map(|pair| pair.split('=').next());
        if path.contains('@') || keys.any(|key| key.is_some_and(|key| key.contains('@'))) {
            return Err(
                "the user name or password is cut short: in them `/` is written %2F and `?` %3F"
                    .into(),
            );
        }
        let (login, list) = match authority.rsplit_once('@') {
            Some((login, list)) => (self::login(login)?, list),
            None => (Login::default(), authority),
        };
        let mut parts = Self {
            login,
            hosts: Vec::new(),
            path: segments(path)?,
            query: Vec::new(),
        };
        for text in list.split(',') {
            parts.add(host(text, default)?);
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match key {
                "node" => parts.add(host(value, default)?),
                _ => parts.query.push((decoded(key)?, decoded(value)?)),
            }
        }
        Ok(parts)
    }

    fn add(&mut self, host: ServerAddress) {
        if !self.hosts.contains(&host) {
            self.hosts.push(host);
        }
    }
}

fn login(text: &str) -> Result<Login, String> {
    if text.contains(',') {
        return Err(
            "the user name or password: they stand once, before the first host (in them `@` is written %40 and `,` %2C)"
                .into(),
        );
    }
    let (user, password) = match text.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (text, None),
    };
    let some = |text: &str| match text.is_empty() {
        true => Ok(None),
        false => decoded(text).map(Some),
    };
    Ok(Login {
        user: some(user)?,
        password: password.map_or(Ok(None), some)?,
    })
}

fn host(text: &str, default: u16) -> Result<ServerAddress, String> {
    let number = match port(text)? {
        Some(number) => check_port(number, default)?,
        None => default,
    };
    let url = Url::parse(&format!("redis://{text}"));
    let url = url.map_err(|error| format!("the host: {error}"))?;
    let name = match url.host() {
        Some(url::Host::Ipv6(ip)) => ip.to_string(),
        Some(host) => host.to_string(),
        None => return Err("the host is missing".into()),
    };
    match name.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => {
            Err("the host is a wildcard address: name one that can be reached".into())
        }
        _ => Ok(ServerAddress::new(name, number)),
    }
}

fn segments(path: &str) -> Result<Vec<String>, String> {
    let segments = path.split('/').filter(|segment| !segment.is_empty());
    segments.map(decoded).collect()
}

/// A `+` stays one: it is no space, as in forms.
fn decoded(text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| "what is written with %XX is not UTF-8")?;
    Ok(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    use proptest::prelude::*;

    use super::super::{Address, parse};
    use super::*;

    fn sentinel(url: &str) -> SentinelUrl {
        match parse(url) {
            Ok(Address::Sentinel(sentinel)) => sentinel,
            other => panic!("{url}: {other:?}"),
        }
    }

    fn login(user: &str, password: &str) -> Login {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Login {
            user: some(user),
            password: some(password),
        }
    }

    #[test]
    fn sentinels_are_named_in_a_list_or_in_the_query() {
        let hosts = |names: &[&str]| -> Vec<ServerAddress> {
            let hosts = names.iter().map(|name| host(name, SENTINEL_PORT).unwrap());
            hosts.collect()
        };
        for (url, expected) in [
            ("redis-sentinel://a/mymaster", &["a"][..]),
            ("redis+sentinel://a,b/mymaster", &["a", "b"]),
            (
                "redis+sentinel://a:1,b:2,[::1]:3/mymaster/4",
                &["a:1", "b:2", "[::1]:3"],
            ),
            (
                "redis-sentinel://a:1?node=b:2&node=c&sentinelServiceName=mymaster",
                &["a:1", "b:2", "c"],
            ),
            (
                "valkey-sentinel://a/0?node=a:26379&sentinelServiceName=mymaster",
                &["a"],
            ),
            (
                "REDIS-SENTINEL://a,[fe80::1]/my%6Daster/",
                &["a", "[fe80::1]"],
            ),
        ] {
            let parsed = sentinel(url);
            assert_eq!(parsed.sentinels.hosts, hosts(expected), "{url}");
            assert_eq!(parsed.service, "mymaster", "{url}");
            assert_eq!((parsed.tls, parsed.sentinels.tls), (false, false), "{url}");
        }
    }

    #[test]
    fn sentinels_and_redis_have_users_passwords_and_tls_of_their_own() {
        for (url, redis, sentinels) in [
            ("a/m", ("", ""), ("", "")),
            (":pw@a/m", ("", "pw"), ("", "")),
            ("app@a/m", ("app", ""), ("", "")),
            (
                "app:p@s%2Cs@a/m?sentinelPassword=s+3%26",
                ("app", "p@s,s"),
                ("", "s+3&"),
            ),
            (
                "a/m?sentinelUsername=watcher&sentinelPassword=p@w",
                ("", ""),
                ("watcher", "p@w"),
            ),
        ] {
            let parsed = sentinel(&format!("redis-sentinel://{url}"));
            assert_eq!(parsed.login, login(redis.0, redis.1), "{url}");
            assert_eq!(
                parsed.sentinels.login,
                login(sentinels.0, sentinels.1),
                "{url}"
            );
        }
        for (url, redis, sentinels) in [
            ("rediss-sentinel://a/m", true, true),
            ("valkeys+sentinel://a/m?sentinelTls=false", true, false),
            ("redis-sentinel://a/m?sentinelTls=true", false, true),
        ] {
            let parsed = sentinel(url);
            assert_eq!(
                (parsed.tls, parsed.sentinels.tls),
                (redis, sentinels),
                "{url}"
            );
        }
    }

    #[test]
    fn a_cluster_is_named_by_any_of_its_nodes() {
        for (url, tls) in [
            ("redis-cluster://u:p@a:7000?node=b", false),
            ("rediss+cluster://u:p@a:7000,b/0", true),
            ("valkeys-cluster://u:p@a:7000,b:6379,b/", true),
        ] {
            let Ok(Address::Cluster(seeds)) = parse(url) else {
                panic!("{url}")
            };
            assert_eq!(
                seeds.hosts,
                [ServerAddress::new("a", 7000), ServerAddress::new("b", 6379)]
            );
            assert_eq!((seeds.login, seeds.tls), (login("u", "p"), tls));
        }
    }

    #[test]
    fn every_error_names_the_part_and_the_fix_and_no_secret() {
        for (rest, part, fix) in [
            ("", "host is missing", "redis://"),
            ("a,,b/m", "host is missing", "redis://"),
            ("a,/m", "host is missing", "redis://"),
            (":s3cret@/m", "host is missing", "redis://"),
            ("a", "name of the primary is missing", "/mymaster"),
            (
                "a/",
                "name of the primary is missing",
                "sentinelServiceName=mymaster",
            ),
            ("a/0", "name of the primary is missing", "/mymaster"),
            (
                "a?sentinelServiceName=",
                "name of the primary is missing",
                "/mymaster",
            ),
            ("a/m?sentinelServiceName=m", "named twice", "path"),
            ("a/m/n", "path", "/mymaster"),
            ("a:0/m", "port", "1 to 65535"),
            ("a:/m", "port is missing", "26379"),
            ("a?node=b:tls&sentinelServiceName=m", "port", "1 to 65535"),
            (
                "user:s3cret/m",
                "port",
                "@host after the password is missing",
            ),
            ("::1/m", "several colons", "brackets"),
            ("lo<cal>host/m", "host", "invalid"),
            ("0.0.0.0/m", "wildcard", "can be reached"),
            ("[::]/m", "wildcard", "can be reached"),
            (":s3/cret@a/m", "password is cut short", "%2F"),
            (":s3?cret@a/m", "password is cut short", "%3F"),
            (":s3#cret@a/m", "#fragment", "%23"),
            ("a#mymaster", "#fragment", "always verified"),
            (
                ":s3cret@a,:s3cret@b/m",
                "once, before the first host",
                "%2C",
            ),
            (":s3,cret@a/m", "password", "%2C"),
            (":s3%FFcret@a/m", "%XX", "UTF-8"),
            ("a/m?sentinelPass=s3cret", "query", "sentinelPassword"),
            (
                "a/m?sentinelPassword=s3&sentinelPassword=cret",
                "sentinelPassword",
                "twice",
            ),
            ("a/m?sentinelTls=yes", "sentinelTls", "true"),
        ] {
            let error = parse(&format!("redis-sentinel://{rest}")).unwrap_err();
            assert!(
                error.contains(part) && error.contains(fix),
                "{rest}: {error}"
            );
            assert!(
                !error.contains("s3") && !error.contains("cret"),
                "{rest}: {error}"
            );
            assert!(error.starts_with(|c: char| !c.is_uppercase()) && !error.ends_with('.'));
        }
        for (rest, part) in [("a/1", "database"), ("a/x", "path"), ("a?db=1", "query")] {
            let error = parse(&format!("redis-cluster://{rest}")).unwrap_err();
            assert!(error.contains(part), "{rest}: {error}");
        }
    }

    #[test]
    fn secrets_are_never_shown() {
        let parsed = sentinel("redis-sentinel://app:s3cret@a/m?sentinelPassword=s3cret");
        let shown = format!("{parsed:?} {parsed}");
        assert!(
            !shown.contains("s3cret") && shown.contains("app"),
            "{shown}"
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_was_meant(
            user in "\\PC{0,8}", password in "\\PC{0,8}", asked in "\\PC{1,8}", service in "\\PC{0,7}x",
            hosts in proptest::collection::vec(("[a-z][a-z0-9-]{0,9}", 1u16..), 1..5), in_list: usize,
        ) {
            let written = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
            let hosts: Vec<ServerAddress> = hosts.into_iter().map(|(name, port)| ServerAddress::new(name, port)).collect();
            let (list, nodes) = hosts.split_at(1 + in_list % hosts.len());
            let list: Vec<String> = list.iter().map(ToString::to_string).collect();
            let nodes: String = nodes.iter().map(|node| format!("&node={node}")).collect();
            let url = format!(
                "redis-sentinel://{}:{}@{}?sentinelServiceName={}&sentinelPassword={}{nodes}",
                written(&user), written(&password), list.join(","), written(&service), written(&asked),
            );
            let parsed = sentinel(&url);
            prop_assert_eq!(parsed.login, login(&user, &password));
            prop_assert_eq!(parsed.sentinels.login, login("", &asked));
            prop_assert_eq!(parsed.service, service);
            let mut expected: Vec<ServerAddress> = Vec::new();
            hosts.into_iter().for_each(|host| if !expected.contains(&host) { expected.push(host) });
            prop_assert_eq!(parsed.sentinels.hosts, expected);
        }

        #[test]
        fn nonsense_is_refused_and_never_quoted(
            kind in "(redis|rediss|valkey)[+-](sentinel|cluster)", before in "[a-z@:,/?#&=%0-9\\[\\]]{0,12}",
            after in "[a-z@:,/?#&=%0-9\\[\\]]{0,12}",
        ) {
            if let Err(error) = parse(&format!("{kind}://{before}S3CRET{after}")) {
                prop_assert!(!error.contains("S3CRET"), "{}", error);
            }
        }
    }
}
