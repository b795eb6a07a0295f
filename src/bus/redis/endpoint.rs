//! A server: where it is, who we are to it, and how to get a connection to it.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
#[cfg(unix)]
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures::FutureExt;
use futures::future::BoxFuture;
use redis::{ProtocolVersion, RedisConnectionInfo};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::address::{Login, ServerAddress};
use super::command;
use super::dial::dial;
use super::explained::{Ending, Explained};
use super::tls::Tls;

/// The longest that opening a connection may take, from the name to the login and the role: five round trips of
/// 2 s, or fewer and two SYNs that were lost. Longer than a publication waits, so that a slow link is no dead one.
pub(super) const OPENING: Duration = Duration::from_secs(10);

/// A silent link is asked for life after this long, this often, …
const KEEPALIVE: Duration = Duration::from_secs(5);
/// … and unacknowledged bytes end it after this long. Without both, a link that was cut without a
/// word is noticed after a quarter of an hour.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(6);

/// A server.
pub(crate) struct Endpoint {
    addr: Addr,
    access: Arc<Access>,
}

#[derive(Clone)]
pub(super) enum Addr {
    Tcp(ServerAddress),
    #[cfg(unix)]
    Unix(PathBuf),
}

/// How servers are reached, wherever they stand, and who we are to them.
#[derive(Clone, Default)]
pub(super) struct Access {
    pub(super) login: Login,
    /// Asked before each login, instead of the login's own.
    pub(super) password_from: Option<Passwords>,
    pub(super) tls: Option<Tls>,
    pub(super) addresses: Option<Arc<AddressFn>>,
}

/// Where the password comes from, and which option said so.
#[derive(Clone)]
pub(super) struct Passwords {
    pub(super) option: &'static str,
    pub(super) ask: Arc<PasswordFn>,
}

/// The password of now, or why there is none.
pub(super) type PasswordFn = dyn Fn() -> BoxFuture<'static, Result<String, String>> + Send + Sync;
/// Where a host is reached from here.
pub(super) type AddressFn = dyn Fn(&str, u16) -> (String, u16) + Send + Sync;

/// A connection of any kind.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

/// A connection on which nothing has been said yet.
pub(super) struct Dialed {
    pub(super) stream: Pin<Box<dyn Stream>>,
    /// User name and password, as the redis crate takes them.
    pub(super) login: RedisConnectionInfo,
    pub(super) ending: Ending,
}

impl Dialed {
    /// The command that logs in, if there is a password.
    pub(super) fn auth(&self) -> Option<BytesMut> {
        let mut auth = BytesMut::new();
        command::auth(&mut auth, self.login.username(), self.login.password()?);
        Some(auth)
    }
}

impl Endpoint {
    pub(super) fn new(addr: Addr, access: Arc<Access>) -> Self {
        Self { addr, access }
    }

    /// Another server, to which we are who we are to this one. Without a name, another port of this one's host.
    pub(super) fn beside(&self, host: &ServerAddress) -> Option<Self> {
        let name = match (&self.addr, host.name.as_str()) {
            (Addr::Tcp(own), "") => &own.name,
            #[cfg(unix)]
            (Addr::Unix(_), "") => return None,
            _ => &host.name,
        };
        let addr = Addr::Tcp(ServerAddress::new(name, host.port));
        Some(Self::new(addr, self.access.clone()))
    }

    /// The user that logs in, if not the default one.
    pub(super) fn user(&self) -> Option<&str> {
        self.access.login.user.as_deref()
    }

    /// Opens a connection. The name is resolved, and the password asked for, at every call.
    pub(super) async fn connect(&self) -> io::Result<Dialed> {
        let opening = async {
            let (stream, ending) = self.reach().await?;
            let login = self.access.log_in().await?;
            Ok(Dialed {
                stream,
                login,
                ending,
            })
        };
        match timeout(OPENING, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "redis did not accept a connection in time",
            )),
        }
    }

    async fn reach(&self) -> io::Result<(Pin<Box<dyn Stream>>, Ending)> {
        match &self.addr {
            #[cfg(unix)]
            Addr::Unix(path) => Ok((
                Box::pin(UnixStream::connect(path).await?),
                Ending::default(),
            )),
            Addr::Tcp(host) => {
                let (name, port) = self.access.reachable(host)?;
                let stream = dial(&name, port).await?;
                guard_against_silence(&stream)?;
                match &self.access.tls {
                    Some(tls) => Ok(told(tls.secure(&host.name, stream).await?)),
                    None => Ok(told(Explained::plain(stream))),
                }
            }
        }
    }
}

impl Access {
    /// Where a host is reached from here.
    fn reachable(&self, host: &ServerAddress) -> io::Result<(String, u16)> {
        let Some(addresses) = &self.addresses else {
            return Ok((host.name.clone(), host.port));
        };
        // Not ours.
        catch_unwind(AssertUnwindSafe(|| addresses(&host.name, host.port)))
            .map_err(|_| io::Error::other("the function given to `Redis::addresses` panicked"))
    }

    async fn log_in(&self) -> io::Result<RedisConnectionInfo> {
        let mut login = nobody();
        if let Some(user) = &self.login.user {
            login = login.set_username(user);
        }
        if let Some(password) = self.password().await? {
            login = login.set_password(password);
        }
        Ok(login)
    }

    async fn password(&self) -> io::Result<Option<String>> {
        let Some(Passwords { option, ask }) = &self.password_from else {
            return Ok(self.login.password.clone());
        };
        // Not ours, from the call on.
        let asked = AssertUnwindSafe(async { ask().await }).catch_unwind().await;
        let answer = asked.unwrap_or_else(|_| Err("it panicked".into()));
        let answer = answer.map_err(|why| format!("`Redis::{option}` gave no password: {why}"));
        answer.map(Some).map_err(io::Error::other)
    }
}

/// Who does not log in.
pub(super) fn nobody() -> RedisConnectionInfo {
    // Pub/sub ignores database numbers, so none is selected: one permission less to grant.
    RedisConnectionInfo::default()
        .set_db(0)
        .set_skip_set_lib_name()
        .set_protocol(ProtocolVersion::RESP2)
}

fn told(stream: Explained<impl Stream + Unpin + 'static>) -> (Pin<Box<dyn Stream>>, Ending) {
    let ending = stream.ending();
    (Box::pin(stream), ending)
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

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.addr {
            Addr::Tcp(host) => host.fmt(f),
            #[cfg(unix)]
            Addr::Unix(path) => path.display().fmt(f),
        }
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.login.fmt(f)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use tokio::net::TcpListener;

    use super::*;

    fn at(port: u16, access: Access) -> Endpoint {
        let host = ServerAddress::new("redis.example", port);
        Endpoint::new(Addr::Tcp(host), Arc::new(access))
    }

    fn leading_to(
        reachable: impl Fn(&str, u16) -> (String, u16) + Send + Sync + 'static,
    ) -> Access {
        Access {
            addresses: Some(Arc::new(reachable)),
            ..Access::default()
        }
    }

    /// T8: as a name whose address changes.
    #[tokio::test]
    async fn where_a_host_is_reached_is_asked_at_every_connect() {
        let servers = [
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        ];
        let ports = servers
            .each_ref()
            .map(|server| server.local_addr().unwrap().port());
        let calls = AtomicU32::new(0);
        let endpoint = at(
            7,
            leading_to(move |name, port| {
                assert_eq!((name, port), ("redis.example", 7));
                let call = calls.fetch_add(1, SeqCst) as usize;
                ("127.0.0.1".to_owned(), ports[call])
            }),
        );
        for server in servers {
            let _stream = endpoint.connect().await.unwrap();
            server.accept().await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_not_ours_may_fail_and_panic() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let here = |_: &str, port| ("127.0.0.1".to_owned(), port);
        let error =
            |access| async move { at(port, access).connect().await.err().unwrap().to_string() };
        let panics = leading_to(|_, _| panic!("in the map"));
        assert!(error(panics).await.contains("`Redis::addresses` panicked"));
        let passwords: [(Arc<PasswordFn>, &str); 3] = [
            (Arc::new(|| panic!("in the call")), "panicked"),
            (
                Arc::new(|| async { panic!("in the future") }.boxed()),
                "panicked",
            ),
            (
                Arc::new(|| async { Err("no token".to_owned()) }.boxed()),
                "no token",
            ),
        ];
        for (ask, why) in passwords {
            let option = "password_from";
            let password_from = Some(Passwords { option, ask });
            let access = Access {
                password_from,
                ..leading_to(here)
            };
            let error = error(access).await;
            assert!(
                error.contains("password_from") && error.contains(why),
                "{error}"
            );
        }
    }
}
