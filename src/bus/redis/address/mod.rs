//! What a Redis URL says, and what is wrong with it. No text quotes more of it than the scheme: what stands in the
//! place of a host or a port may be a password whose `@host` is missing.

mod several;

use std::net::Ipv6Addr;

use url::Url;

pub(super) use self::several::{Login, Seeds, SentinelUrl, ServerAddress};

const FORM: &str = "the form is redis://[user:password@]host[:port]";
const PORT: u16 = 6379;

/// What answers there, as the URL says.
#[derive(Debug)]
pub(super) enum Address {
    /// One server, with Valkey's schemes as those of Redis.
    Single(Url),
    Sentinel(SentinelUrl),
    Cluster(Seeds),
}

#[derive(Clone, Copy)]
enum Scheme {
    Single(&'static str),
    Sentinel { tls: bool },
    Cluster { tls: bool },
}

pub(super) fn parse(text: &str) -> Result<Address, String> {
    if text.is_empty() {
        return Err(format!("it is empty: {FORM}"));
    }
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(
            "there is white space in it: take it out, or write it %20 in a password".into(),
        );
    }
    let parts = text.split_once("://");
    let Some((scheme, rest)) = parts.filter(|(scheme, _)| is_scheme(scheme)) else {
        return Err(format!(
            "the scheme is missing: put redis:// in front, or rediss:// for TLS; {FORM}"
        ));
    };
    match known(&scheme.to_ascii_lowercase())? {
        Scheme::Single(scheme) => single(scheme, rest).map(Address::Single),
        Scheme::Sentinel { tls } => several::sentinel(rest, tls).map(Address::Sentinel),
        Scheme::Cluster { tls } => several::cluster(rest, tls).map(Address::Cluster),
    }
}

fn single(scheme: &str, rest: &str) -> Result<Url, String> {
    match scheme {
        "redis" | "rediss" => check(rest)?,
        _ if !rest.starts_with('/') => {
            return Err("the path is missing: the form is redis+unix:///path/to/socket".into());
        }
        _ => check_tail(rest)?,
    }
    Url::parse(&format!("{scheme}://{rest}")).map_err(|error| format!("the host: {error}; {FORM}"))
}

fn is_scheme(text: &str) -> bool {
    let in_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(in_scheme)
}

fn known(scheme: &str) -> Result<Scheme, String> {
    let several = scheme.split_once(['-', '+']);
    let tls = match several.map_or(scheme, |(base, _)| base) {
        "redis" | "valkey" => Some(false),
        "rediss" | "valkeys" => Some(true),
        _ => None,
    };
    match (tls, several.map(|(_, kind)| kind)) {
        (Some(false), None) => Ok(Scheme::Single("redis")),
        (Some(true), None) => Ok(Scheme::Single("rediss")),
        (Some(false), Some("unix")) => Ok(Scheme::Single("redis+unix")),
        (Some(tls), Some("sentinel")) => Ok(Scheme::Sentinel { tls }),
        (Some(tls), Some("cluster")) => Ok(Scheme::Cluster { tls }),
        _ if scheme == "unix" => Ok(Scheme::Single("unix")),
        _ => Err(format!(
            "the scheme `{scheme}` is not supported: use redis://, rediss:// (TLS), redis+unix://, redis-sentinel:// or \
             redis-cluster://, or the same with valkey"
        )),
    }
}

/// What follows `redis://`.
fn check(rest: &str) -> Result<(), String> {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    if tail.contains('@') {
        return Err(
            "the user name or password is cut short: in them `/` is written %2F, `?` %3F and `#` %23".into(),
        );
    }
    check_tail(tail)?;
    let hosts = authority
        .split_once('@')
        .map_or(authority, |(_, hosts)| hosts);
    if hosts.contains(',') {
        return Err(
            "a list of hosts: if they are sentinels, say redis-sentinel://a,b/mymaster, if nodes of a Redis Cluster \
             redis-cluster://a,b, else name the primary alone (in a password `@` is written %40 and `,` %2C)"
                .into(),
        );
    }
    let host = hosts.rsplit_once('@').map_or(hosts, |(_, host)| host);
    match port(host)? {
        Some(port) => check_port(port, PORT).map(drop),
        None => Ok(()),
    }
}

fn check_tail(tail: &str) -> Result<(), String> {
    match tail.contains('#') {
        true => Err("a #fragment is not supported: certificates are always verified".into()),
        false => Ok(()),
    }
}

/// What stands after the host, which is checked.
fn port(host: &str) -> Result<Option<&str>, String> {
    if let Some(bracketed) = host.strip_prefix('[') {
        let (_, rest) = bracketed
            .split_once(']')
            .filter(|(ip, _)| ip.parse::<Ipv6Addr>().is_ok())
            .ok_or("the host is no IPv6 address in brackets, as in redis://[::1]:6379")?;
        return match rest.strip_prefix(':') {
            None if !rest.is_empty() => Err("the host: after `]` only a :port may follow".into()),
            port => Ok(port),
        };
    }
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    if port.is_some_and(|port| port.contains(':')) {
        return Err(
            "the host has several colons: an IPv6 address stands in brackets, as in redis://[::1]:6379".into(),
        );
    }
    if name.is_empty() {
        return Err(format!("the host is missing: {FORM}"));
    }
    Ok(port)
}

fn check_port(port: &str, default: u16) -> Result<u16, String> {
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse() {
        Ok(number @ 1..=u16::MAX) if digits => Ok(number),
        _ if port.is_empty() => Err(format!(
            "the port is missing after the colon: the default is {default}"
        )),
        _ => Err(format!(
            "the port is no number from 1 to 65535, or the @host after the password is missing: {FORM}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_names_the_part_and_the_fix_and_no_secret() {
        for (url, part, fix) in [
            ("", "empty", "redis://"),
            (" redis://localhost", "white space", "%20"),
            ("redis://localhost:6379\n", "white space", "take it out"),
            ("redis://:s3cret word@localhost", "white space", "%20"),
            ("localhost:6379", "scheme", "put redis:// in front"),
            ("127.0.0.1:6379", "scheme", "put redis:// in front"),
            ("redis", "scheme", "put redis:// in front"),
            ("redis:localhost", "scheme", "put redis:// in front"),
            (":s3cret@localhost:6379", "scheme", "put redis:// in front"),
            (
                "s3cret:x@redis://localhost",
                "scheme",
                "put redis:// in front",
            ),
            ("http://:s3cret@localhost", "scheme `http`", "redis://"),
            ("http://localhost", "scheme `http`", "redis-cluster://"),
            ("http://localhost", "scheme `http`", "valkey"),
            ("redis://a,b", "list of hosts", "redis-cluster://a,b"),
            ("HTTPS://localhost", "scheme `https`", "rediss://"),
            (
                "redis-sentinal://localhost",
                "scheme `redis-sentinal`",
                "redis-sentinel://",
            ),
            (
                "http+sentinel://localhost",
                "scheme `http+sentinel`",
                "redis-sentinel://",
            ),
            ("redis://", "host is missing", "[:port]"),
            ("redis://:6379", "host is missing", "[:port]"),
            ("redis:///0", "host is missing", "[:port]"),
            ("redis://:s3cret@/0", "host is missing", "[:port]"),
            ("redis://:s3cret@:6379", "host is missing", "[:port]"),
            (
                "redis://a:6379,b:6379",
                "list of hosts",
                "redis-sentinel://a,b/mymaster",
            ),
            (
                "redis://:s3cret@a,b/0",
                "list of hosts",
                "name the primary alone",
            ),
            ("redis://:s3cret@a:1,:s3cret@b:2", "list of hosts", "%2C"),
            ("redis://localhost:", "port is missing", "6379"),
            ("redis://localhost:0", "port", "1 to 65535"),
            ("redis://:s3cret@localhost:99999", "port", "1 to 65535"),
            ("redis://localhost:+6379", "port", "1 to 65535"),
            ("redis://localhost:tls", "port", "1 to 65535"),
            (
                "redis://user:s3cret",
                "port",
                "@host after the password is missing",
            ),
            ("redis://::1:6379", "several colons", "redis://[::1]:6379"),
            ("redis://[::1:6379", "no IPv6 address", "redis://[::1]:6379"),
            (
                "redis://[localhost]",
                "no IPv6 address",
                "redis://[::1]:6379",
            ),
            ("redis://[::1]6379", "after `]`", ":port"),
            ("redis://lo<cal>host", "host", "redis://"),
            ("redis://:s3/cret@localhost", "password", "%2F"),
            ("redis://:s3#cret@localhost", "password", "%23"),
            ("redis://user:s3?cret@localhost", "password", "%3F"),
            ("redis://:s3@s3/cret@localhost", "password", "%2F"),
            (
                "rediss://:s3cret@host#insecure",
                "#fragment",
                "always verified",
            ),
            ("redis+unix://", "path is missing", "redis+unix:///path"),
            (
                "redis+unix://run/redis.sock?pass=s3cret",
                "path is missing",
                "redis+unix:///path",
            ),
            (
                "redis+unix:///run/redis.sock#s3cret",
                "#fragment",
                "always verified",
            ),
        ] {
            let error = parse(url).unwrap_err();
            assert!(
                error.contains(part) && error.contains(fix),
                "{url}: {error}"
            );
            assert!(
                !error.contains("s3") && !error.contains("cret"),
                "{url}: {error}"
            );
            assert!(
                error.starts_with(char::is_lowercase) && !error.ends_with('.'),
                "{error}"
            );
        }
    }

    #[test]
    fn what_can_be_understood_is_taken() {
        for (url, host, port, password) in [
            ("redis://localhost", "localhost", None, None),
            ("REDIS://my_redis:7000/3", "my_redis", Some(7000), None),
            ("valkey://u:p@valkey:7000", "valkey", Some(7000), Some("p")),
            ("valkeys://u:p@valkey", "valkey", None, Some("p")),
            ("rediss://u:p@[::1]:7000", "[::1]", Some(7000), Some("p")),
            ("redis://:p@ss@host", "host", None, Some("p%40ss")),
            ("redis://:p@:s@host:7", "host", Some(7), Some("p%40%3As")),
            ("redis://:p,q%2F@host", "host", None, Some("p,q%2F")),
        ] {
            let Ok(Address::Single(parsed)) = parse(url) else {
                panic!("{url}")
            };
            assert!(matches!(parsed.scheme(), "redis" | "rediss"), "{url}");
            assert_eq!(parsed.host_str(), Some(host), "{url}");
            assert_eq!(
                (parsed.port(), parsed.password()),
                (port, password),
                "{url}"
            );
        }
    }
}
