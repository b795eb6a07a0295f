//! Which web page may open a socket here.
//!
//! A browser sends cookies with any page's WebSocket handshake, and CORS does not apply to it, so
//! the `Origin` header is all that stands between a stranger's page and the user's session
//! (cross-site WebSocket hijacking; RFC 6455, section 10.2).

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use http::header::{HOST, ORIGIN};
use http::uri::{Authority, Uri};
use http::{HeaderMap, HeaderValue};

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

/// As browsers write it: a default port is left out.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        match self.port {
            Some(port) if self.port != default_port(&self.scheme) => write!(f, ":{port}"),
            _ => Ok(()),
        }
    }
}

/// One origin, or those of all names below one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OriginPattern {
    Exact(Origin),
    Below(Origin),
}

impl OriginPattern {
    /// Parses `scheme://host[:port]`, where the host may begin with `*.`. Says what is needed instead.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let below = text.split_once("://*.");
        let plain = below.map(|(scheme, name)| format!("{scheme}://{name}"));
        let plain = plain.as_deref().unwrap_or(text);
        if plain.contains('*') {
            return Err(
                "`*` may only stand for whole labels before a name, as in `https://*.shop.example`; \
                 `allow_origin_if` decides by your own rule",
            );
        }
        let origin = Origin::parse(plain);
        let origin = origin.ok_or("scheme://host or scheme://host:port is needed")?;
        match below {
            None => Ok(Self::Exact(origin)),
            Some(_) if is_name(&origin.host) => Ok(Self::Below(origin)),
            Some(_) => Err("only below a name are there others, not below an address"),
        }
    }

    fn admits(&self, origin: &Origin) -> bool {
        match self {
            Self::Exact(allowed) => allowed == origin,
            Self::Below(name) => {
                (&name.scheme, name.port) == (&origin.scheme, origin.port)
                    && labels_below(&origin.host, &name.host)
            }
        }
    }
}

/// Whether a host is one or more whole labels below a name.
fn labels_below(host: &str, name: &str) -> bool {
    let labels = host
        .strip_suffix(name)
        .and_then(|labels| labels.strip_suffix('.'));
    labels.is_some_and(|labels| labels.split('.').all(is_label))
}

fn is_label(label: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
    !label.is_empty() && label.bytes().all(allowed)
}

/// A host that ends in a number is an IPv4 address to a browser (WHATWG URL, "ends in a number").
fn is_name(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    host.split('.').all(is_label) && !last.bytes().all(|b| b.is_ascii_digit())
}

/// A rule of the app's own.
#[derive(Clone)]
struct Rule(Arc<dyn Fn(&str) -> bool + Send + Sync>);

impl Rule {
    fn admits(&self, origin: &Origin) -> bool {
        let origin = origin.to_string();
        catch_unwind(AssertUnwindSafe(|| (self.0)(&origin))).unwrap_or_else(|_| {
            tracing::error!(
                origin,
                "the rule of `allow_origin_if` panicked: the upgrade is refused"
            );
            false
        })
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rule")
    }
}

/// Who may come in.
#[derive(Debug, Clone, Default)]
pub(crate) struct OriginPolicy {
    any: bool,
    allowed: Vec<OriginPattern>,
    rules: Vec<Rule>,
}

impl OriginPolicy {
    pub(crate) fn allow(&mut self, pattern: OriginPattern) {
        self.allowed.push(pattern);
    }

    pub(crate) fn allow_if(&mut self, rule: impl Fn(&str) -> bool + Send + Sync + 'static) {
        self.rules.push(Rule(Arc::new(rule)));
    }

    pub(crate) fn allow_any(&mut self) {
        self.any = true;
    }

    /// Decides about a handshake. Without an `Origin` header it is no browser, which has nothing to
    /// hijack. Forwarded headers are never trusted: anybody can send them.
    pub(crate) fn check(&self, headers: &HeaderMap, uri: &Uri) -> Result<(), ForeignOrigin> {
        let mut origins = headers.get_all(ORIGIN).iter();
        let origin = match (origins.next(), origins.next()) {
            _ if self.any => return Ok(()),
            (None, _) => return Ok(()),
            (Some(_), Some(_)) => Err("several"),
            (Some(origin), None) => match origin.as_bytes() {
                b"null" => Err("null"),
                _ => parsed(origin).ok_or("not scheme://host[:port]"),
            },
        };
        let host = target(headers, uri);
        match &origin {
            Ok(origin) if host.is_some_and(|host| origin.is_at(host)) => return Ok(()),
            Ok(origin) if self.admits(origin) => return Ok(()),
            _ => {}
        }
        Err(ForeignOrigin {
            origin: origin.map_or_else(str::to_owned, |origin| origin.to_string()),
            host: host.and_then(host_and_port).map(|(host, port)| match port {
                Some(port) => format!("{host}:{port}"),
                None => host,
            }),
        })
    }

    fn admits(&self, origin: &Origin) -> bool {
        self.allowed.iter().any(|pattern| pattern.admits(origin))
            || self.rules.iter().any(|rule| rule.admits(origin))
    }
}

/// Whether a page at the very host and port of the request sent it; nobody else is let in, whatever the policy. A browser
/// says so itself (Fetch Metadata, where no page can forge it), or by an `Origin` that is compared.
#[cfg(feature = "dashboard")]
pub(crate) fn is_of_same_origin(headers: &HeaderMap, uri: &Uri) -> bool {
    let mut sites = headers.get_all("sec-fetch-site").iter();
    let mut origins = headers.get_all(ORIGIN).iter();
    match (sites.next(), origins.next()) {
        (Some(site), _) => site == "same-origin" && sites.next().is_none(),
        (None, Some(origin)) => {
            let host = target(headers, uri);
            let is_alone = origins.next().is_none();
            is_alone
                && host
                    .zip(parsed(origin))
                    .is_some_and(|(host, origin)| origin.is_at(host))
        }
        (None, None) => false,
    }
}

/// What was compared and did not fit: parsed, so that nothing else a header may hold is ever shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForeignOrigin {
    pub(crate) origin: String,
    pub(crate) host: Option<String>,
}

fn parsed(origin: &HeaderValue) -> Option<Origin> {
    origin.to_str().ok().and_then(Origin::parse)
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
    use proptest::prelude::*;

    use super::*;

    fn allowing(patterns: &[&str]) -> OriginPolicy {
        let mut policy = OriginPolicy::default();
        for pattern in patterns {
            policy.allow(OriginPattern::parse(pattern).unwrap());
        }
        policy
    }

    fn admits(policy: &OriginPolicy, host: &str, origins: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_str(host).unwrap());
        for origin in origins {
            headers.append(ORIGIN, HeaderValue::from_str(origin).unwrap());
        }
        headers.insert("x-forwarded-host", HeaderValue::from_static("evil.com"));
        policy.check(&headers, &Uri::from_static("/ws")).is_ok()
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
        let mut policy = allowing(&["https://shop.example"]);
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

    #[cfg(feature = "dashboard")]
    #[test]
    fn of_the_same_origin_is_what_a_browser_says_or_what_is_compared() {
        let is_same = |lines: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, HeaderValue::from_static(value));
            }
            is_of_same_origin(&headers, &Uri::from_static("/close"))
        };
        let host = ("host", "ops.example:8443");
        let (site, origin) = ("sec-fetch-site", "origin");
        for same in [
            &[host, (origin, "https://ops.example:8443")][..],
            // A proxy that names another host cannot be seen through, but the browser can.
            &[
                ("host", "10.0.0.7"),
                (origin, "https://ops.example"),
                (site, "same-origin"),
            ],
        ] {
            assert!(is_same(same), "{same:?}");
        }
        for other in [
            &[host][..],
            &[host, (origin, "https://ops.example")],
            &[host, (origin, "null")],
            &[
                host,
                (origin, "https://ops.example:8443"),
                (origin, "https://ops.example:8443"),
            ],
            &[(origin, "https://ops.example:8443")],
            &[
                host,
                (origin, "https://ops.example:8443"),
                (site, "cross-site"),
            ],
            &[
                host,
                (origin, "https://ops.example:8443"),
                (site, "same-site"),
            ],
            &[host, (site, "none")],
            &[host, (site, "same-origin"), (site, "cross-site")],
        ] {
            assert!(!is_same(other), "{other:?}");
        }
    }

    #[test]
    fn http2_names_its_target_in_the_authority() {
        let policy = OriginPolicy::default();
        let mut headers = HeaderMap::new();
        headers.insert(ORIGIN, HeaderValue::from_static("https://a.example"));
        let admits = |uri| policy.check(&headers, &Uri::from_static(uri)).is_ok();
        assert!(admits("https://a.example/ws"));
        assert!(!admits("https://b.example/ws"));
        assert!(!admits("/ws"), "no target at all");
    }

    #[test]
    fn a_star_stands_for_whole_labels_below_a_name() {
        let policy = allowing(&["https://*.shop.example", "http://*.Dev.example:8080"]);
        let admits = |origin| admits(&policy, "api.example", &[origin]);
        for origin in [
            "https://a.shop.example",
            "https://a.b.shop.example",
            "https://A.Shop.Example:443",
            "https://xn--mnchen-3ya.shop.example",
            "http://a.dev.example:8080",
        ] {
            assert!(admits(origin), "{origin}");
        }
        for origin in [
            "https://shop.example",
            "https://evilshop.example",
            "https://evil-shop.example",
            "https://.shop.example",
            "https://a..shop.example",
            "https://a.shop.example.",
            "https://a.shop.example.evil.com",
            "https://a.shop.example:444",
            "http://a.shop.example",
            "https://evil.com*.shop.example",
            "https://evil.com%2f.shop.example",
            "https://a.dev.example:8080",
            "http://a.dev.example",
        ] {
            assert!(!admits(origin), "{origin}");
        }
    }

    #[test]
    fn any_other_star_is_refused_with_the_fix() {
        for pattern in [
            "*",
            "https://*",
            "*.shop.example",
            "*://shop.example",
            "https://*shop.example",
            "https://a*.shop.example",
            "https://a.*.shop.example",
            "https://*.*.shop.example",
            "https://shop.*",
            "https://shop.example:*",
        ] {
            let error = OriginPattern::parse(pattern).unwrap_err();
            assert!(error.contains("whole labels"), "{pattern}: {error}");
        }
        for pattern in ["https://*.127.0.0.1", "https://*.[::1]"] {
            let error = OriginPattern::parse(pattern).unwrap_err();
            assert!(error.contains("address"), "{pattern}: {error}");
        }
    }

    #[test]
    fn a_rule_sees_what_is_not_admitted_otherwise_as_browsers_write_it() {
        let mut policy = allowing(&["https://shop.example"]);
        policy.allow_if(|origin| match origin {
            "https://partner.example" | "app://desk" => true,
            "https://bug.example" => panic!("a bug in the rule"),
            "https://shop.example" | "http://api.example" => panic!("never asked"),
            _ => false,
        });
        let admits = |origins: &[&str]| admits(&policy, "api.example", origins);
        for origin in ["https://Partner.Example:443", "app://desk"] {
            assert!(admits(&[origin]), "{origin}");
        }
        assert!(admits(&["https://shop.example"]) && admits(&["http://api.example"]));
        let partner = "https://partner.example";
        for origins in [
            &["https://bug.example"][..],
            &["https://evil.example"],
            &["null"],
            &[""],
            &[partner, partner],
            &["https://partner.example/"],
        ] {
            assert!(!admits(origins), "{origins:?}");
        }
    }

    #[test]
    fn what_is_said_of_a_foreign_origin_is_what_was_compared() {
        let said = |origin: &'static str, host: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ORIGIN, HeaderValue::from_static(origin));
            headers.insert(HOST, HeaderValue::from_static(host));
            let checked = OriginPolicy::default().check(&headers, &Uri::from_static("/ws"));
            let foreign = checked.unwrap_err();
            (foreign.origin, foreign.host.unwrap_or_default())
        };
        let pair = |origin: &str, host: &str| (origin.to_owned(), host.to_owned());
        assert_eq!(
            said("https://Evil.example:443", "app.example:80"),
            pair("https://evil.example", "app.example:80")
        );
        assert_eq!(said("null", ""), pair("null", ""));
        assert_eq!(
            said("https://evil.example/?token=s3cret", "s3cret@app.example"),
            pair("not scheme://host[:port]", "")
        );
    }

    proptest! {
        /// A page is below a name exactly if a browser would look it up there.
        #[test]
        fn nothing_but_whole_labels_gets_below_a_name(prefix in "[a-z0-9.*@:/%_-]{0,12}", suffix in "[a-z.:0-9]{0,6}") {
            let policy = allowing(&["https://*.shop.example"]);
            let origin = format!("https://{prefix}shop.example{suffix}");
            let labels = prefix.strip_suffix('.').map(|labels| labels.split('.'));
            let whole = labels.is_some_and(|mut labels| {
                labels.all(|label| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)))
            });
            // The port may be named, and with leading zeros.
            let port = suffix.is_empty() || suffix.strip_prefix(':').is_some_and(|port| port.parse() == Ok(443_u16));
            prop_assert_eq!(admits(&policy, "api.example", &[&origin]), whole && port, "{}", origin);
        }

        /// What is allowed exactly says nothing of other hosts.
        #[test]
        fn an_exact_origin_admits_itself_alone(host in "[a-z0-9.-]{1,16}") {
            let policy = allowing(&["https://shop.example"]);
            let origin = format!("https://{host}");
            prop_assert_eq!(admits(&policy, "api.example", &[&origin]), host == "shop.example");
        }
    }
}
