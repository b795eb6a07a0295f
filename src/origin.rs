//! Which web page may open a socket here.
//!
//! A browser sends cookies with any page's WebSocket handshake, and CORS does not apply to it, so
//! the `Origin` header is all that stands between a stranger's page and the user's session
//! (cross-site WebSocket hijacking; RFC 6455, section 10.2).

use http::HeaderMap;
use http::header::{HOST, ORIGIN};
use http::uri::{Authority, Uri};

/// Scheme, host and port of a page; host in lower case, default ports filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origin {
    /// Parses the serialization of RFC 6454, section 6.2: `scheme://host[:port]`, nothing more.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let scheme_ok = scheme
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
        if scheme.is_empty() || !scheme_ok || rest.contains(['/', '?', '#', '@', '\\']) {
            return None;
        }
        let scheme = scheme.to_ascii_lowercase();
        let (host, port) = host_and_port(rest)?;
        let port = port.or(default_port(&scheme));
        Some(Self { scheme, host, port })
    }

    /// Whether the request went to this origin's host and port. The request's own scheme cannot be
    /// known behind TLS termination, so a port that is not named is the origin's default.
    fn is_at(&self, authority: &str) -> bool {
        let Some((host, port)) = host_and_port(authority) else {
            return false;
        };
        let default = default_port(&self.scheme);
        default.is_some() && self.host == host && self.port == port.or(default)
    }
}

/// Who may come in.
#[derive(Debug, Clone, Default)]
pub(crate) struct OriginPolicy {
    any: bool,
    allowed: Vec<Origin>,
}

impl OriginPolicy {
    pub(crate) fn allow(&mut self, origin: Origin) {
        self.allowed.push(origin);
    }

    pub(crate) fn allow_any(&mut self) {
        self.any = true;
    }

    /// Decides about a handshake. Without an `Origin` header it is no browser, which has nothing to
    /// hijack. Forwarded headers are never trusted: anybody can send them.
    pub(crate) fn admits(&self, headers: &HeaderMap, uri: &Uri) -> bool {
        let mut origins = headers.get_all(ORIGIN).iter();
        let (first, second) = (origins.next(), origins.next());
        match (first, second) {
            _ if self.any => true,
            (None, _) => true,
            (Some(_), Some(_)) => false,
            (Some(origin), None) => {
                let origin = origin.to_str().ok().and_then(Origin::parse);
                origin.is_some_and(|origin| {
                    self.allowed.contains(&origin)
                        || target(headers, uri).is_some_and(|host| origin.is_at(host))
                })
            }
        }
    }
}

/// Where the request says it goes: `:authority` (HTTP/2) or exactly one `Host`.
fn target<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
    if let Some(authority) = uri.authority() {
        return Some(authority.as_str());
    }
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next()?.to_str().ok()?;
    hosts.next().is_none().then_some(host)
}

fn host_and_port(text: &str) -> Option<(String, Option<u16>)> {
    let authority: Authority = text.parse().ok()?;
    let host = authority.host();
    if host.is_empty() || text.contains('@') {
        return None;
    }
    // `Authority` takes any text for a port; what follows the host must be nothing or a number.
    let port = match text.get(host.len()..)? {
        "" => None,
        rest => {
            let digits = rest.strip_prefix(':')?;
            let plain = digits.bytes().all(|b| b.is_ascii_digit());
            Some(digits.parse().ok().filter(|_| plain)?)
        }
    };
    Some((host.to_ascii_lowercase(), port))
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn admits(policy: &OriginPolicy, host: &str, origins: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_str(host).unwrap());
        for origin in origins {
            headers.append(ORIGIN, HeaderValue::from_str(origin).unwrap());
        }
        headers.insert("x-forwarded-host", HeaderValue::from_static("evil.com"));
        policy.admits(&headers, &Uri::from_static("/ws"))
    }

    #[test]
    fn the_same_host_and_port_may_enter() {
        let policy = OriginPolicy::default();
        for (host, origin) in [
            ("app.example.com", "https://app.example.com"),
            ("app.example.com", "http://app.example.com"),
            ("App.Example.com", "https://app.example.COM"),
            ("app.example.com:443", "https://app.example.com"),
            ("app.example.com", "https://app.example.com:443"),
            ("localhost:3001", "http://localhost:3001"),
            ("[::1]:3001", "http://[::1]:3001"),
        ] {
            assert!(admits(&policy, host, &[origin]), "{origin} at {host}");
        }
        assert!(
            admits(&policy, "app.example.com", &[]),
            "native clients send no Origin"
        );
    }

    #[test]
    fn everybody_else_stays_outside() {
        let policy = OriginPolicy::default();
        for origin in [
            "https://evil.com",
            "https://app.example.com.evil.com",
            "https://evilapp.example.com",
            "https://example.com",
            "https://app.example.com:8443",
            "https://app.example.com:80",
            "https://app.example.com@evil.com",
            "https://evil.com/app.example.com",
            "https://evil.com#app.example.com",
            "https://app.example.com\\.evil.com",
            "https://app.example.com:",
            "https://app.example.com:+443",
            "app.example.com",
            "//app.example.com",
            "file://app.example.com",
            "capacitor://app.example.com",
            "null",
            "",
        ] {
            assert!(!admits(&policy, "app.example.com", &[origin]), "{origin:?}");
        }
        let same = "https://app.example.com";
        assert!(
            !admits(&policy, "app.example.com", &[same, same]),
            "two headers"
        );
        assert!(
            !admits(&policy, "app.example.com:80", &[same]),
            "another port"
        );
    }

    #[test]
    fn an_allowed_origin_is_exact() {
        let mut policy = OriginPolicy::default();
        policy.allow(Origin::parse("https://shop.example").unwrap());
        assert!(admits(
            &policy,
            "api.example",
            &["https://shop.example:443"]
        ));
        assert!(
            admits(&policy, "api.example", &["https://api.example"]),
            "the own host stays"
        );
        assert!(
            !admits(&policy, "api.example", &["http://shop.example"]),
            "another scheme"
        );
        assert!(!admits(
            &policy,
            "api.example",
            &["https://shop.example:444"]
        ));
        assert!(!admits(
            &policy,
            "api.example",
            &["https://www.shop.example"]
        ));
        policy.allow_any();
        assert!(admits(&policy, "api.example", &["null"]));
    }

    #[test]
    fn http2_names_its_target_in_the_authority() {
        let policy = OriginPolicy::default();
        let mut headers = HeaderMap::new();
        headers.insert(ORIGIN, HeaderValue::from_static("https://a.example"));
        assert!(policy.admits(&headers, &Uri::from_static("https://a.example/ws")));
        assert!(!policy.admits(&headers, &Uri::from_static("https://b.example/ws")));
        assert!(
            !policy.admits(&headers, &Uri::from_static("/ws")),
            "no target at all"
        );
    }
}
