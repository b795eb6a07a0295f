//! How a Redis is reached: its URL, and what no URL can say.

use std::fmt;
use std::sync::Arc;

use futures::FutureExt;
use redis::{ConnectionAddr, IntoConnectionInfo};
use url::Url;

use super::address::{self, Address, Login, Seeds, SentinelUrl, ServerAddress};
use super::endpoint::{Access, Addr, Endpoint, Passwords};
use super::tls::Tls;
use crate::model::error::ConnectError;

/// A Redis by its URL, with what no URL can say: certificates, passwords that change, addresses that differ from here.
/// It becomes a [`Backend`](crate::Backend).
///
/// ```no_run
/// # async fn token() -> Result<String, std::io::Error> { Ok(String::new()) }
/// # async fn start() -> Result<(), Box<dyn std::error::Error>> {
/// use axum_cluster::{Cluster, Redis};
///
/// let redis = Redis::at("rediss://app@redis.internal:6380")?
///     .root_certificates(std::fs::read("ca.pem")?)
///     .client_certificate(std::fs::read("app.pem")?, std::fs::read("app.key")?)
///     .password_from(|| async { token().await }); // asked before each login
/// let cluster = Cluster::builder().backend(redis).try_start()?;
/// # Ok(())
/// # }
/// ```
///
/// What an option makes of nonsense is told where the cluster starts: a [`ConnectError`] of kind `Setting`.
#[derive(Clone)]
#[must_use = "a `Redis` does nothing until it is a backend"]
pub struct Redis {
    to: UrlTarget,
    login: Login,
    /// The URL without its secrets.
    shown: String,
    /// Whether the servers speak TLS, or the sentinels alone.
    tls: Option<Tls>,
    access: Access,
    /// That of the sentinels, asked before each login to one.
    sentinel_password_from: Option<Passwords>,
    /// The first option that makes no sense.
    problem: Option<ConnectError>,
}

#[derive(Clone)]
enum UrlTarget {
    Server { addr: Addr, tls: bool },
    Sentinel(SentinelUrl),
    Cluster(Seeds),
}

/// What a node connects to.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Single(Arc<Endpoint>),
    Sentinel(Arc<SentinelTarget>),
    Cluster(Arc<ClusterTarget>),
}

/// Sentinels, and how they and the primary that they name are reached.
#[derive(Debug)]
pub(crate) struct SentinelTarget {
    /// As the URL names them.
    pub(super) seeds: Vec<ServerAddress>,
    pub(super) service: String,
    pub(super) sentinels: Arc<Access>,
    pub(super) primary: Arc<Access>,
}

impl TryFrom<&str> for Redis {
    type Error = ConnectError;

    fn try_from(url: &str) -> Result<Self, ConnectError> {
        Self::at(url)
    }
}

impl TryFrom<String> for Redis {
    type Error = ConnectError;

    fn try_from(url: String) -> Result<Self, ConnectError> {
        Self::at(url)
    }
}

impl TryFrom<&String> for Redis {
    type Error = ConnectError;

    fn try_from(url: &String) -> Result<Self, ConnectError> {
        Self::at(url)
    }
}

/// A Redis Cluster, and how its servers are reached.
#[derive(Debug)]
pub(crate) struct ClusterTarget {
    /// As the URL names them. Never none.
    pub(super) seeds: Vec<ServerAddress>,
    access: Arc<Access>,
}

impl ClusterTarget {
    pub(super) fn endpoint(&self, host: &ServerAddress) -> Endpoint {
        Endpoint::new(Addr::Tcp(host.clone()), self.access.clone())
    }

    /// The user that logs in, if not the default one.
    pub(super) fn user(&self) -> Option<&str> {
        self.access.login.user.as_deref()
    }

    /// Whether servers have to show certificates for their names.
    pub(super) fn is_secured(&self) -> bool {
        self.access.tls.is_some()
    }
}

impl Redis {
    /// At a URL in any of the forms that [`Backend::redis`](crate::Backend::redis) knows.
    ///
    /// # Errors
    /// A [`ConnectError`] of kind `Url` names the part that is wrong. A password is never shown.
    pub fn at(url: impl AsRef<str>) -> Result<Self, ConnectError> {
        Self::parse(url.as_ref()).map_err(ConnectError::url)
    }

    /// The authorities to believe instead of the system's, in PEM: one or more certificates. Default: those of the
    /// system, or of `SSL_CERT_FILE`. There is no way to believe anybody.
    pub fn root_certificates(self, pem: impl AsRef<[u8]>) -> Self {
        self.secured("root_certificates", |tls| tls.trust(pem.as_ref()))
    }

    /// What to show to servers that ask for a certificate, in PEM: its chain, its own certificate first, and the
    /// private key. Default: nothing. Sentinels reached by TLS are shown the same.
    pub fn client_certificate(
        self,
        chain_pem: impl AsRef<[u8]>,
        key_pem: impl AsRef<[u8]>,
    ) -> Self {
        self.secured("client_certificate", |tls| {
            tls.identify(chain_pem.as_ref(), key_pem.as_ref())
        })
    }

    /// The name that certificates have to be for, of sentinels too. Default: the host's name or IP address, as the URL
    /// has it, or as the sentinels tell it.
    pub fn server_name(self, name: impl AsRef<str>) -> Self {
        self.secured("server_name", |tls| tls.call(name.as_ref()))
    }

    /// Where the password of Redis comes from, instead of the URL: asked before each login, for tokens that expire and
    /// passwords that rotate. It has 10 s together with the connect; an error, or a panic, is told as the health's
    /// reason, and it is asked again with the next attempt. The user name is the URL's.
    pub fn password_from<F, P, E>(
        mut self,
        password: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<P, E>> + Send + 'static,
        P: Into<String>,
        E: fmt::Display,
    {
        if self.login.password.is_some() {
            return self.wrong("password_from: the URL has a password already, take it out");
        }
        self.access.password_from = Some(asked("password_from", password));
        self
    }

    /// The same for the sentinels, which have users and passwords of their own: where theirs comes from, instead of
    /// `sentinelPassword` in the URL. Default: what the URL says, or no login. The user name is its `sentinelUsername`.
    ///
    /// ```
    /// use axum_cluster::Redis;
    ///
    /// let redis = Redis::at("redis-sentinel://localhost/mymaster?sentinelUsername=watcher")?
    ///     .sentinel_password_from(|| async { std::env::var("SENTINEL_PASSWORD") }); // asked before each login
    /// # Ok::<(), axum_cluster::ConnectError>(())
    /// ```
    pub fn sentinel_password_from<F, P, E>(
        mut self,
        password: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<P, E>> + Send + 'static,
        P: Into<String>,
        E: fmt::Display,
    {
        match &self.to {
            UrlTarget::Sentinel(url) if url.sentinels.login.password.is_some() => self.wrong(
                "sentinel_password_from: the URL has a sentinelPassword already, take it out",
            ),
            UrlTarget::Sentinel(_) => {
                self.sentinel_password_from = Some(asked("sentinel_password_from", password));
                self
            }
            _ => self.wrong(
                "sentinel_password_from: it needs sentinels, as in redis-sentinel://host/mymaster",
            ),
        }
    }

    /// Where a host and port are reached from here, for NAT and forwarded ports: asked before each connect, of the
    /// URL's own hosts and of what sentinels and nodes of a Redis Cluster tell. It must not block. Default: where they say. Certificates are still
    /// verified against the name that was told.
    ///
    /// ```
    /// use axum_cluster::Redis;
    ///
    /// let redis = Redis::at("redis-sentinel://localhost:26379/mymaster")?
    ///     .addresses(|_, port| ("localhost".into(), port)); // every container's port is forwarded
    /// # Ok::<(), axum_cluster::ConnectError>(())
    /// ```
    pub fn addresses(
        mut self,
        reached_at: impl Fn(&str, u16) -> (String, u16) + Send + Sync + 'static,
    ) -> Self {
        self.access.addresses = Some(Arc::new(reached_at));
        self
    }

    fn parse(text: &str) -> Result<Self, String> {
        let (to, login, shown) = match address::parse(text)? {
            Address::Single(url) => single(url)?,
            Address::Sentinel(url) => {
                let (login, shown) = (url.login.clone(), url.to_string());
                (UrlTarget::Sentinel(url), login, shown)
            }
            Address::Cluster(seeds) => {
                let (login, shown) = (seeds.login.clone(), seeds.to_string());
                (UrlTarget::Cluster(seeds), login, shown)
            }
        };
        let secured = match &to {
            UrlTarget::Server { tls, .. } => *tls,
            UrlTarget::Sentinel(url) => url.tls || url.sentinels.tls,
            UrlTarget::Cluster(seeds) => seeds.tls,
        };
        Ok(Self {
            to,
            login,
            shown,
            tls: secured.then(Tls::new).transpose()?,
            access: Access::default(),
            sentinel_password_from: None,
            problem: None,
        })
    }

    fn secured(
        mut self,
        option: &str,
        change: impl FnOnce(&mut Tls) -> Result<(), String>,
    ) -> Self {
        let changed = match &mut self.tls {
            Some(tls) => change(tls),
            None => {
                Err("it needs TLS: use rediss://, rediss-sentinel:// or rediss-cluster://".into())
            }
        };
        match changed {
            Ok(()) => self,
            Err(problem) => self.wrong(format!("{option}: {problem}")),
        }
    }

    fn wrong(mut self, problem: impl Into<Arc<str>>) -> Self {
        self.problem
            .get_or_insert_with(|| ConnectError::setting(problem));
        self
    }

    /// What a node connects to, or the first option that makes no sense.
    pub(crate) fn target(self) -> Result<Target, ConnectError> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        if let UrlTarget::Sentinel(SentinelUrl { sentinels, .. }) = &self.to
            && sentinels.login.user.is_some()
            && sentinels.login.password.is_none()
            && self.sentinel_password_from.is_none()
        {
            return Err(ConnectError::url(NO_PASSWORD));
        }
        let access = |login: Login, tls: bool| Access {
            login,
            tls: self.tls.clone().filter(|_| tls),
            password_from: None,
            addresses: self.access.addresses.clone(),
        };
        let primary = |tls| {
            let password_from = self.access.password_from.clone();
            Arc::new(Access {
                password_from,
                ..access(self.login.clone(), tls)
            })
        };
        Ok(match self.to {
            UrlTarget::Server { addr, tls } => {
                Target::Single(Arc::new(Endpoint::new(addr, primary(tls))))
            }
            UrlTarget::Sentinel(url) => Target::Sentinel(Arc::new(SentinelTarget {
                primary: primary(url.tls),
                sentinels: Arc::new(Access {
                    password_from: self.sentinel_password_from,
                    ..access(url.sentinels.login, url.sentinels.tls)
                }),
                seeds: url.sentinels.hosts,
                service: url.service,
            })),
            UrlTarget::Cluster(seeds) => Target::Cluster(Arc::new(ClusterTarget {
                access: primary(seeds.tls),
                seeds: seeds.hosts,
            })),
        })
    }
}

const NO_PASSWORD: &str = "sentinelUsername stands without sentinelPassword: add it, give it by Redis::sentinel_password_from, or take it out";

fn asked<F, P, E>(
    option: &'static str,
    password: impl Fn() -> F + Send + Sync + 'static,
) -> Passwords
where
    F: Future<Output = Result<P, E>> + Send + 'static,
    P: Into<String>,
    E: fmt::Display,
{
    let ask = Arc::new(move || {
        let asked = password();
        async move { asked.await.map(Into::into).map_err(|why| why.to_string()) }.boxed()
    });
    Passwords { option, ask }
}

/// Never shows a secret.
impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Redis").field(&self.shown).finish()
    }
}

/// By what all nodes know it, the secrets apart.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Single(endpoint) => endpoint.fmt(f),
            Self::Sentinel(target) => {
                let mut seeds: Vec<String> =
                    target.seeds.iter().map(ServerAddress::to_string).collect();
                seeds.sort();
                write!(f, "{}/{}", seeds.join(","), target.service)
            }
            Self::Cluster(target) => {
                let seeds: Vec<String> =
                    target.seeds.iter().map(ServerAddress::to_string).collect();
                f.write_str(&seeds.join(","))
            }
        }
    }
}

impl Target {
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    /// The user that logs in, if not the default one.
    pub(super) fn user(&self) -> Option<&str> {
        match self {
            Self::Single(endpoint) => endpoint.user(),
            Self::Sentinel(target) => target.primary.login.user.as_deref(),
            Self::Cluster(target) => target.user(),
        }
    }
}

fn single(url: Url) -> Result<(UrlTarget, Login, String), String> {
    let shown = shown(&url);
    let tls = url.scheme() == "rediss";
    // The library's texts name the part and never quote a secret.
    let info = plain(url).into_connection_info();
    let info = info.map_err(|error| error.to_string())?;
    let addr = match info.addr() {
        ConnectionAddr::Tcp(host, port) => Addr::Tcp(ServerAddress::new(host, *port)),
        #[cfg(unix)]
        ConnectionAddr::Unix(path) => Addr::Unix(path.clone()),
        #[cfg(not(unix))]
        ConnectionAddr::Unix(_) => {
            return Err("there are no unix sockets on this system: use redis://host:port".into());
        }
        _ => return Err("this kind of address is not supported".into()),
    };
    let settings = info.redis_settings();
    let login = Login {
        user: settings.username().map(ToOwned::to_owned),
        password: settings.password().map(ToOwned::to_owned),
    };
    Ok((UrlTarget::Server { addr, tls }, login, shown))
}

/// As the redis crate reads it, which knows no TLS here: that is ours.
fn plain(mut url: Url) -> Url {
    if url.scheme() == "rediss" {
        // Fails only between schemes of the web and others.
        let _ = url.set_scheme("redis");
    }
    url
}

fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    if url.password().is_some() {
        // Fails only for URLs that cannot have a password.
        let _ = url.set_password(Some("***"));
    }
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(redis: Redis) -> String {
        redis.target().unwrap_err().to_string()
    }

    #[test]
    fn secrets_are_never_shown() {
        for url in [
            "redis://user:s3cret@host:1/2",
            "redis-sentinel://user:s3cret@host:1/mymaster?sentinelPassword=s3cret",
            #[cfg(unix)]
            "redis+unix:///run/redis.sock?pass=s3cret&user=x",
            #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
            "rediss://:s3cret@host",
        ] {
            let redis = Redis::at(url).unwrap();
            let shown = format!("{redis:?} {:?}", redis.clone().target().unwrap());
            assert!(!shown.contains("s3cret"), "{shown}");
        }
    }

    #[test]
    fn a_cluster_is_named_by_its_seeds_without_its_secrets() {
        let redis = Redis::at("redis-cluster://app:s3cret@a:7000,[::1]?node=b").unwrap();
        let shown = format!("{redis:?}");
        assert!(
            shown.contains("redis-cluster://app@a:7000,[::1]:6379,b:6379"),
            "{shown}"
        );
        let target = redis.clone().target().unwrap();
        assert!(!format!("{shown} {target:?}").contains("s3cret"));
        assert_eq!(target.user(), Some("app"));
        let Target::Cluster(target) = target else {
            panic!("{target:?}")
        };
        assert_eq!(target.seeds.len(), 3);
        assert!(!target.is_secured());
        assert_eq!(redis.login.password.as_deref(), Some("s3cret"));
        let unsafe_option = problem(redis.root_certificates("x"));
        assert!(
            unsafe_option.contains("rediss-cluster://"),
            "{unsafe_option}"
        );
    }

    #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
    #[test]
    fn every_server_of_a_secured_cluster_is_verified() {
        let redis = Redis::at("rediss-cluster://a,b")
            .unwrap()
            .server_name("c.example");
        let Ok(Target::Cluster(target)) = redis.target() else {
            panic!("it is a cluster")
        };
        assert!(target.is_secured());
    }

    #[test]
    fn a_password_of_sentinels_takes_sentinels_without_one() {
        let asked = |url| {
            let redis = Redis::at(url).unwrap();
            redis.sentinel_password_from(|| async { Ok::<_, String>("x") })
        };
        for (url, fix) in [
            ("redis://host", "redis-sentinel://"),
            ("redis-cluster://host", "redis-sentinel://"),
            ("redis-sentinel://host/x?sentinelPassword=y", "take it out"),
        ] {
            let told = problem(asked(url));
            assert!(
                told.contains("sentinel_password_from") && told.contains(fix),
                "{told}"
            );
        }
        let nobody = Redis::at("redis-sentinel://host/x?sentinelUsername=s3cret");
        let told = problem(nobody.unwrap());
        assert!(
            told.contains("sentinelUsername") && !told.contains("s3cret"),
            "{told}"
        );
        let url = "redis-sentinel://host/x?sentinelUsername=y";
        let Ok(Target::Sentinel(target)) = asked(url).target() else {
            panic!("it makes sense")
        };
        let given = [&target.sentinels, &target.primary].map(|it| it.password_from.is_some());
        assert_eq!(given, [true, false], "to the sentinels alone");
    }

    #[test]
    fn a_wrong_url_names_the_part() {
        for (url, part) in [
            ("localhost:6379", "scheme"),
            ("redis://host/ten", "database"),
            ("redis://0.0.0.0", "wildcard"),
            ("redis-sentinel://host", "name of the primary"),
        ] {
            let error = Redis::at(url).unwrap_err().to_string();
            assert!(error.starts_with("redis url: "), "{error}");
            assert!(error.contains(part), "{url}: {error}");
        }
    }

    #[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
    #[test]
    fn without_tls_its_features_are_named() {
        for url in [
            "rediss://:s3cret@host",
            "valkeys://:s3cret@host",
            "rediss-sentinel://:s3cret@host/m",
            "redis-sentinel://:s3cret@host/m?sentinelTls=true",
        ] {
            let error = Redis::at(url).unwrap_err().to_string();
            for said in ["`rediss`", "`tls-ring`", "`tls-aws-lc`"] {
                assert!(error.contains(said), "{error}");
            }
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_password_is_what_was_meant() {
        for url in ["redis://:p@s%2Cs@host", "redis://:p%40s%2Cs@host"] {
            let redis = Redis::at(url).unwrap();
            assert_eq!(redis.login.password.as_deref(), Some("p@s,s"), "{url}");
        }
    }

    #[test]
    fn every_supported_form_is_taken() {
        for url in [
            "redis://localhost",
            "redis://u:p@[::1]:7000/3",
            "valkey://h",
            "redis-sentinel://h/m",
            #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
            "rediss://h",
            #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
            "valkeys://h",
            #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
            "rediss-sentinel://h/m",
            #[cfg(unix)]
            "redis+unix:///run/r.sock",
            #[cfg(unix)]
            "unix:///run/r.sock",
        ] {
            assert!(Redis::at(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn certificates_are_for_tls_alone() {
        for url in ["redis://localhost", "redis-sentinel://localhost/m"] {
            let redis = || Redis::at(url).unwrap();
            for (option, redis) in [
                ("root_certificates", redis().root_certificates("x")),
                ("client_certificate", redis().client_certificate("x", "y")),
                ("server_name", redis().server_name("x")),
            ] {
                let problem = problem(redis);
                assert!(
                    problem.contains(option) && problem.contains("rediss://"),
                    "{problem}"
                );
            }
        }
    }

    #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
    #[test]
    fn what_is_no_certificate_no_key_or_no_name_is_told_by_its_option() {
        let one = || rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let (ours, other) = (one(), one());
        let (chain, key) = (ours.cert.pem(), other.signing_key.serialize_pem());
        let redis = || Redis::at("rediss://localhost").unwrap();
        for (wrong, option, why) in [
            (
                redis().root_certificates(""),
                "root_certificates",
                "BEGIN CERTIFICATE",
            ),
            (
                redis().root_certificates(&key),
                "root_certificates",
                "BEGIN CERTIFICATE",
            ),
            (
                redis().client_certificate(&key, &key),
                "client_certificate",
                "BEGIN CERTIFICATE",
            ),
            (
                redis().client_certificate(&chain, "x"),
                "client_certificate",
                "BEGIN PRIVATE KEY",
            ),
            (
                redis().client_certificate(&chain, &key),
                "client_certificate",
                "do not fit",
            ),
            (redis().server_name("a b"), "server_name", "host name"),
        ] {
            let problem = problem(wrong);
            assert!(
                problem.contains(option) && problem.contains(why),
                "{problem}"
            );
        }
        let good = redis()
            .root_certificates(&chain)
            .client_certificate(&chain, ours.signing_key.serialize_pem())
            .server_name("redis.internal");
        assert!(good.target().is_ok());
    }

    #[test]
    fn there_is_one_password() {
        let redis = Redis::at("redis://:s3cret@localhost").unwrap();
        let problem = problem(redis.password_from(|| async { Ok::<_, String>("other") }));
        assert!(problem.contains("password_from") && problem.contains("take it out"));
        assert!(!problem.contains("s3cret"));
    }
}
