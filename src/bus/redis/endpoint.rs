//! Where Redis is, and how to get a connection to it.

use std::fmt;
use std::io;
#[cfg(unix)]
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use bytes::BytesMut;
use redis::{ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::time::timeout;
use url::Url;

use super::address;
use super::command;
use super::dial::dial;
use super::tls::Tls;
use crate::model::error::ConnectError;

/// The longest that opening a connection may take, from the name to the login and the role: five round trips of
/// 2 s, or fewer and two SYNs that were lost. Longer than a publication waits, so that a slow link is no dead one.
pub(super) const OPENING: Duration = Duration::from_secs(10);

/// A silent link is asked for life after this long, this often, …
const KEEPALIVE: Duration = Duration::from_secs(5);
/// … and unacknowledged bytes end it after this long. Without both, a link that was cut without a
/// word is noticed after a quarter of an hour.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(6);

/// A Redis server and who we are to it.
pub(crate) struct Endpoint {
    addr: Addr,
    login: RedisConnectionInfo,
    /// The URL without its secrets.
    shown: String,
}

enum Addr {
    Tcp {
        host: String,
        port: u16,
        tls: Option<Tls>,
    },
    #[cfg(unix)]
    Unix(PathBuf),
}

/// A connection of any kind.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

impl Endpoint {
    pub(crate) fn parse(text: &str) -> Result<Self, ConnectError> {
        let wrong = |problem: String| ConnectError::url(problem);
        let url = address::parse(text).map_err(wrong)?;
        let shown = shown(&url);
        let (url, tls) = match url.scheme() {
            "rediss" => (plain(url), Some(Tls::new().map_err(wrong)?)),
            _ => (url, None),
        };
        // The library's texts name the part and never quote a secret.
        let info = url
            .into_connection_info()
            .map_err(|error| wrong(error.to_string()))?;
        let addr = match info.addr() {
            ConnectionAddr::Tcp(host, port) => Addr::Tcp {
                host: host.clone(),
                port: *port,
                tls,
            },
            #[cfg(unix)]
            ConnectionAddr::Unix(path) => Addr::Unix(path.clone()),
            #[cfg(not(unix))]
            ConnectionAddr::Unix(_) => {
                return Err(wrong(
                    "there are no unix sockets on this system: use redis://host:port".into(),
                ));
            }
            _ => return Err(wrong("this kind of address is not supported".into())),
        };
        // Pub/sub ignores database numbers, so none is selected: one permission less to grant.
        let login = info
            .redis_settings()
            .clone()
            .set_db(0)
            .set_skip_set_lib_name();
        let login = login.set_protocol(redis::ProtocolVersion::RESP2);
        Ok(Self { addr, login, shown })
    }

    /// User name and password, as the redis crate takes them.
    pub(crate) fn login(&self) -> &RedisConnectionInfo {
        &self.login
    }

    /// The command that logs in, if there is a password.
    pub(crate) fn auth(&self) -> Option<BytesMut> {
        let mut auth = BytesMut::new();
        command::auth(&mut auth, self.login.username(), self.login.password()?);
        Some(auth)
    }

    /// Opens a connection; nothing has been said on it yet.
    pub(crate) async fn connect(&self) -> io::Result<Pin<Box<dyn Stream>>> {
        match timeout(OPENING, self.reach()).await {
            Ok(reached) => reached,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "redis did not accept a connection in time",
            )),
        }
    }

    async fn reach(&self) -> io::Result<Pin<Box<dyn Stream>>> {
        match &self.addr {
            #[cfg(unix)]
            Addr::Unix(path) => Ok(Box::pin(UnixStream::connect(path).await?)),
            Addr::Tcp { host, port, tls } => {
                let stream = dial(host, *port).await?;
                guard_against_silence(&stream)?;
                match tls {
                    Some(tls) => Ok(Box::pin(tls.secure(host, stream).await?)),
                    None => Ok(Box::pin(stream)),
                }
            }
        }
    }
}

fn guard_against_silence(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    // Closing forgets what is unsent: retransmitted later, it would overtake what follows on the next
    // connection.
    socket.set_linger(Some(Duration::ZERO))?;
    Ok(())
}

/// As the redis crate reads it, which knows no TLS here: that is ours.
fn plain(mut url: Url) -> Url {
    // Fails only between schemes of the web and others.
    let _ = url.set_scheme("redis");
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

/// Never shows a secret.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_never_shown() {
        for url in [
            "redis://user:s3cret@host:1/2",
            #[cfg(unix)]
            "redis+unix:///run/redis.sock?pass=s3cret&user=x",
            #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
            "rediss://:s3cret@host",
        ] {
            let endpoint = Endpoint::parse(url).unwrap();
            assert!(
                !format!("{endpoint:?} {endpoint}").contains("s3cret"),
                "{endpoint}"
            );
        }
    }

    #[test]
    fn a_wrong_url_names_the_part() {
        for (url, part) in [
            ("localhost:6379", "scheme"),
            ("redis://host/ten", "database"),
            ("redis://0.0.0.0", "wildcard"),
        ] {
            let error = Endpoint::parse(url).unwrap_err().to_string();
            assert!(error.starts_with("redis url: "), "{error}");
            assert!(error.contains(part), "{url}: {error}");
        }
    }

    #[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
    #[test]
    fn without_tls_its_features_are_named() {
        for url in ["rediss://:s3cret@host", "valkeys://:s3cret@host"] {
            let error = Endpoint::parse(url).unwrap_err().to_string();
            for said in ["`rediss`", "`tls-ring`", "`tls-aws-lc`"] {
                assert!(error.contains(said), "{error}");
            }
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_password_is_what_was_meant() {
        for url in ["redis://:p@s%2Cs@host", "redis://:p%40s%2Cs@host"] {
            let endpoint = Endpoint::parse(url).unwrap();
            assert_eq!(endpoint.login().password(), Some("p@s,s"), "{url}");
        }
    }

    #[test]
    fn every_supported_form_is_taken() {
        for url in [
            "redis://localhost",
            "redis://u:p@[::1]:7000/3",
            "valkey://h",
            #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
            "rediss://h",
            #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
            "valkeys://h",
            #[cfg(unix)]
            "redis+unix:///run/r.sock",
            #[cfg(unix)]
            "unix:///run/r.sock",
        ] {
            assert!(Endpoint::parse(url).is_ok(), "{url}");
        }
    }
}
