//! Where the primary is, for everything that talks to it, and whether what is open still leads there.
//!
//! Every connection is opened by [`open`](Topology::open): the one that listens, the one that publishes, and those for
//! questions and seats. Of a single server the route is known and never changes, though its name or proxy may lead
//! elsewhere at any time; sentinels tell it and change it ([`lead_to`](Topology::lead_to)), and whatever is on the old
//! route leaves, however well the server there answers. What is said on a link and what a reply means is no concern of
//! it.
//!
//! Of the route:
//!
//! ```text
//!             untold                   lead_to
//!  Sought --------------> Nowhere ----------------> Primary ---+
//!     |                      ^                      |  ^  ^    |  lead_to: by another number, and
//!     |  lead_to             +----------------------+  |  +----+  what is open by the old one leaves
//!     |                              retire            |
//!     +------------------------------------------------+
//! ```
//! A single server is *Primary* from the begin, and stays it. While it is *Sought* whoever opens a connection waits, within a
//! deadline of its own: the first answer may be on its way. *Nowhere*
//! is known to be none, and refuses at once, with the reason. That nobody tells takes no *Primary* away: what is known
//! goes on to hold, since sentinels fail where their primary works.
//!
//! One topology is one primary's. Whoever has several gives each its own, with its own subscriber and publisher, and
//! decides before which of them a topic concerns; how each is found stays behind `lead_to`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::address::ServerAddress;
use super::command::Dialect;
use super::endpoint::{Dialed, Endpoint};

/// What one sentinel has decided the others hear within this time (`SENTINEL_PUBLISH_PERIOD` of Redis): so much longer ago
/// the primary may have been elsewhere already when some of them confirmed it.
const HEARSAY: Duration = Duration::from_secs(2);

/// So long after a primary was missed others may not know yet that it is none any more.
const RUMOUR: Duration = Duration::from_secs(1);

/// Where the primary is elsewhere by now, whatever the server says that was it.
pub(super) const LEFT: &str = "another server is the primary now";

/// One primary of one node. No connection outlives its change, whichever learns of it first.
#[derive(Debug)]
pub(super) struct Topology {
    dialect: Dialect,
    route: watch::Sender<PrimaryRoute>,
    trust: Mutex<Trust>,
    /// Raised whenever everything that is open may be on another server than what is opened next.
    generation: AtomicU64,
    probe_asked: Notify,
    missed: Arc<Notify>,
    missed_at: Mutex<Option<Instant>>,
}

#[derive(Clone, Debug)]
struct PrimaryRoute {
    number: u64,
    to: To,
    /// Why nobody tells where the primary is, for now.
    silence: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
enum To {
    /// Nobody has been asked yet.
    Sought,
    /// All were asked, and none tells.
    Nowhere,
    Primary(Arc<Endpoint>),
}

/// Where somebody tells where the primary is: until when that is known to have been true.
#[derive(Debug, Default)]
struct Trust {
    /// Of the present route.
    confirmed: Option<Instant>,
    /// Of a route that was left, until that is taken.
    astray: Option<Instant>,
}

/// A connection to the primary.
pub(super) struct Opened {
    pub(super) dialed: Dialed,
    /// By which route.
    pub(super) route: u64,
}

impl Topology {
    /// A single server.
    pub(super) fn single(primary: Arc<Endpoint>) -> Self {
        Self::new(Dialect::Plain, To::Primary(primary), Arc::default())
    }

    /// One primary of a Redis Cluster, and whom to tell when it is missed; none, for what nobody carries yet.
    pub(super) fn of_cluster(primary: Option<Arc<Endpoint>>, missed: Arc<Notify>) -> Self {
        let topology = Self::new(Dialect::Sharded, To::Sought, missed);
        if let Some(primary) = primary {
            topology.lead_to(primary, Instant::now());
        }
        topology
    }

    #[cfg(test)]
    pub(super) fn at(url: &str) -> Self {
        let redis = super::options::Redis::at(url).expect("a good url");
        match redis.target() {
            Ok(super::options::Target::Single(primary)) => Self::single(primary),
            other => panic!("{url}: {other:?}"),
        }
    }

    /// A primary that somebody is asked for, who [leads](Self::lead_to) there.
    pub(super) fn sought() -> Self {
        Self::new(Dialect::Plain, To::Sought, Arc::default())
    }

    fn new(dialect: Dialect, to: To, missed: Arc<Notify>) -> Self {
        Self {
            dialect,
            route: watch::Sender::new(PrimaryRoute {
                number: 0,
                to,
                silence: None,
            }),
            trust: Mutex::default(),
            generation: AtomicU64::new(0),
            probe_asked: Notify::new(),
            missed,
            missed_at: Mutex::default(),
        }
    }

    /// Another primary of the same cluster, for what this one says is there.
    pub(super) fn beside(&self, host: &ServerAddress) -> Option<Self> {
        let to = self.route.borrow().to.clone();
        let To::Primary(primary) = to else {
            return None;
        };
        let other = Arc::new(primary.beside(host)?);
        Some(Self::of_cluster(Some(other), Arc::default()))
    }

    pub(super) fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Opens a connection to the primary, waiting until its place is known: the caller has the deadline.
    pub(super) async fn open(&self) -> io::Result<Opened> {
        let mut routes = self.route.subscribe();
        let known = |route: &PrimaryRoute| !matches!(route.to, To::Sought);
        // The sender lives as long as this.
        let route = routes.wait_for(known).await.map(|route| route.clone());
        let PrimaryRoute {
            number,
            to,
            silence,
        } = route.map_err(io::Error::other)?;
        let To::Primary(primary) = to else {
            self.missed.notify_one();
            let reason = silence.unwrap_or_else(|| "it is not known where the primary is".into());
            return Err(io::Error::other(&*reason));
        };
        let dialed = primary.connect().await;
        let dialed = dialed.map_err(|error| match (number, silence) {
            (0, _) => error,
            (_, None) => io::Error::new(error.kind(), format!("{primary}: {error}")),
            (_, Some(silence)) => {
                io::Error::new(error.kind(), format!("{primary}: {error}; {silence}"))
            }
        })?;
        Ok(Opened {
            dialed,
            route: number,
        })
    }

    /// Opens a connection beside the one that listens. What was open before may be on another server, and is looked
    /// after.
    pub(super) async fn connect(&self) -> io::Result<Opened> {
        let opened = self.open().await?;
        self.probe_now();
        Ok(opened)
    }

    /// Something failed, or may lead elsewhere: whether the bus works at all is to be found out soon.
    pub(super) fn probe_now(&self) {
        self.probe_asked.notify_one();
    }

    /// Resolves after a [`probe_now`](Self::probe_now).
    pub(super) fn probe_asked(&self) -> Notified<'_> {
        self.probe_asked.notified()
    }

    /// The primary is not where the route leads, or does not answer there: whoever tells is to be asked.
    pub(super) fn missed(&self) {
        *self.missed_at.lock() = Some(Instant::now());
        self.missed.notify_one();
    }

    /// Whether it was [`missed`](Self::missed) so lately that who calls it the primary may be behind.
    pub(super) fn is_doubtful(&self) -> bool {
        let missed_at = *self.missed_at.lock();
        missed_at.is_some_and(|at| at.elapsed() < RUMOUR)
    }

    /// Resolves after the primary was [`missed`](Self::missed).
    pub(super) fn is_missed(&self) -> Notified<'_> {
        self.missed.notified()
    }

    /// The route still led to the primary at that time.
    pub(super) fn confirm(&self, at: Instant) {
        let mut trust = self.trust.lock();
        trust.confirmed = trust.confirmed.max(Some(at));
        drop(trust);
        self.route.send_if_modified(|route| {
            route.silence = None;
            false
        });
    }

    /// The primary is there, and was at that time: everything that is open by another route leaves.
    pub(super) fn lead_to(&self, primary: impl Into<Arc<Endpoint>>, at: Instant) {
        let mut trust = self.trust.lock();
        let confirmed = trust.confirmed.replace(at);
        let astray = confirmed.map(|at| at.checked_sub(HEARSAY).unwrap_or(at));
        trust.astray = trust.astray.or(astray);
        drop(trust);
        self.route.send_modify(|route| {
            route.number += 1;
            route.to = To::Primary(primary.into());
            route.silence = None;
        });
        self.moved();
        self.probe_now();
    }

    /// It is no primary any more: everything that is open leaves, and nothing is opened.
    pub(super) fn retire(&self) {
        self.route.send_modify(|route| {
            route.number += 1;
            route.to = To::Nowhere;
            route.silence = Some(LEFT.into());
        });
        self.moved();
    }

    /// Since when this may not have been the primary, if it is not.
    pub(super) fn astray_since(&self) -> Option<Instant> {
        let confirmed = self.trust.lock().confirmed?;
        Some(confirmed.checked_sub(HEARSAY).unwrap_or(confirmed))
    }

    /// Nobody tells where the primary is, for this reason. What is known goes on to hold.
    pub(super) fn untold(&self, reason: Arc<str>) {
        self.route.send_modify(|route| {
            route.silence = Some(reason);
            if let To::Sought = route.to {
                route.to = To::Nowhere;
            }
        });
    }

    /// The route by which connections are opened now.
    pub(super) fn route(&self) -> u64 {
        self.route.borrow().number
    }

    /// Resolves when there is another route than this.
    pub(super) async fn left(&self, route: u64) {
        let mut routes = self.route.subscribe();
        // Fails without the sender, which lives as long as this.
        let _ = routes.wait_for(|now| now.number != route).await;
    }

    /// Since when a route that was left may have led to a server that was no primary any more, if that is not taken yet.
    pub(super) fn take_astray(&self) -> Option<Instant> {
        self.trust.lock().astray.take()
    }

    /// What is opened now is of this generation.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The bus listens on a new connection, to a server that is no replica, or will: what was opened before follows.
    /// (Not when it connects: a server that refuses every greeting would end all links again and again.)
    pub(super) fn moved(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// A connection of this generation met the wrong server, or its end: whatever else is of it is left too.
    pub(super) fn leave(&self, generation: u64) {
        // Fails where it was left already.
        let _ = self.generation.compare_exchange(
            generation,
            generation + 1,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::bus::redis::endpoint::{Access, Addr};

    fn endpoint(port: u16) -> Endpoint {
        let host = ServerAddress::new("127.0.0.1", port);
        Endpoint::new(Addr::Tcp(host), Arc::new(Access::default()))
    }

    #[test]
    fn a_generation_is_left_once_however_many_meet_the_wrong_server() {
        let topology = Topology::single(Arc::new(endpoint(1)));
        let opened = topology.generation();
        topology.leave(opened);
        let after = topology.generation();
        assert_ne!(opened, after);
        topology.leave(opened);
        assert_eq!(topology.generation(), after, "others are on it by now");
        topology.moved();
        assert_ne!(topology.generation(), after);
    }

    #[tokio::test]
    async fn whatever_is_open_leaves_when_the_route_changes() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let (topology, now) = (Topology::sought(), Instant::now());
        let mut opening = Box::pin(topology.open());
        assert!(opening.as_mut().now_or_never().is_none(), "it is sought");
        topology.lead_to(endpoint(port), now);
        let opened = opening.await.unwrap();
        let (generation, route) = (topology.generation(), opened.route);
        topology.confirm(now + HEARSAY);
        assert!(topology.left(route).now_or_never().is_none(), "control");
        assert_eq!(topology.take_astray(), None, "none was left");

        topology.lead_to(endpoint(port), now + 3 * HEARSAY);
        assert!(topology.left(route).now_or_never().is_some());
        assert_ne!(topology.generation(), generation);
        topology.lead_to(endpoint(port), now + 9 * HEARSAY);
        assert_eq!(topology.take_astray(), Some(now), "by the first of both");
        assert_eq!(topology.take_astray(), None);
    }

    #[tokio::test]
    async fn why_the_primary_is_not_known_is_told_and_what_is_known_holds() {
        let topology = Topology::sought();
        topology.untold("no sentinel answers".into());
        let error = topology.open().await.err().unwrap().to_string();
        assert_eq!(error, "no sentinel answers");
        assert!(topology.is_missed().now_or_never().is_some());
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        topology.lead_to(endpoint(port), Instant::now());
        topology.untold("no sentinel answers".into());
        assert!(topology.open().await.is_ok(), "it holds");
        drop(server);
        let error = topology.open().await.err().unwrap().to_string();
        assert!(error.starts_with(&format!("127.0.0.1:{port}: ")), "{error}");
        assert!(error.ends_with("; no sentinel answers"), "{error}");
    }
}
