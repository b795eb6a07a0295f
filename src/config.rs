//! Every setting and its default, in one place.

use std::any::TypeId;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Extensions;

use crate::bus::BusSettings;
use crate::local::LocalSettings;
use crate::local::heartbeat::HeartbeatTimes;
use crate::local::origin::OriginPolicy;
use crate::local::registry::Limits;
use crate::model::close::Close;
use crate::model::history::Histories;
use crate::model::id::UserId;
use crate::model::limits::{LONGEST, OutboxLimits, SlowConsumer, SpoolLimits};
use crate::model::topic::Namespace;
use crate::peers::PeerSettings;
use crate::quota::{InboundLimit, SeatLimit};
use crate::ws::Deflating;

/// Nodes say hello three times as often, and a hello takes its time.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);

/// What happens to an upgrade without a user.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Unauthenticated {
    /// Upgrade, then close with 4403 "authentication required": the default, since a browser cannot
    /// read the status of a refused handshake.
    #[default]
    Close,
    /// Upgrade, then close with a code and reason of your own.
    CloseWith(Close),
    /// Refuse the handshake with 401.
    Reject,
}

/// Finds the user in a request's extensions.
#[derive(Clone)]
pub(crate) struct Identify {
    looked_for: &'static str,
    find: Arc<FindFn>,
}

/// None without the type, `Some(None)` when the app sees nobody in it.
type FindFn = dyn Fn(&Extensions) -> Option<Option<UserId>> + Send + Sync;

impl Identify {
    pub(crate) fn by<T: Send + Sync + 'static>(
        identify: impl Fn(&T) -> Option<UserId> + Send + Sync + 'static,
    ) -> Self {
        Self {
            looked_for: match TypeId::of::<T>() == TypeId::of::<UserId>() {
                // The path that an app can write.
                true => "axum_cluster::UserId",
                false => std::any::type_name::<T>(),
            },
            find: Arc::new(move |extensions| extensions.get::<T>().map(&identify)),
        }
    }

    pub(crate) fn user(&self, extensions: &Extensions) -> Result<UserId, NoUser> {
        match (self.find)(extensions) {
            Some(Some(user)) => Ok(user),
            Some(None) => Err(NoUser::Nobody(self.looked_for)),
            None => Err(NoUser::Absent(self.looked_for)),
        }
    }
}

impl fmt::Debug for Identify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identify").field(&self.looked_for).finish()
    }
}

/// Why a request has no user, with the type that was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoUser {
    Absent(&'static str),
    Nobody(&'static str),
}

impl NoUser {
    /// Whether the type may be the wrong one.
    pub(crate) fn is_suspicious(self) -> bool {
        matches!(self, Self::Absent(_))
    }
}

impl fmt::Display for NoUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(name) => write!(
                f,
                "no `{name}` in the request's extensions: the auth middleware must wrap the route and insert this \
                 very type (an `Arc` of it is another), or `identify` must name the type that it inserts"
            ),
            Self::Nobody(name) => write!(f, "`identify` saw no user in the request's `{name}`"),
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) namespace: Namespace,
    pub(crate) identify: Identify,
    pub(crate) unauthenticated: Unauthenticated,
    pub(crate) protocols: Vec<String>,
    pub(crate) origins: OriginPolicy,
    pub(crate) limits: Limits,
    pub(crate) seats: Option<SeatLimit>,
    pub(crate) histories: Histories,
    pub(crate) spool: Option<SpoolLimits>,
    pub(crate) max_message_size: usize,
    pub(crate) inbound: Option<InboundLimit>,
    pub(crate) outbox: OutboxLimits,
    pub(crate) deflating: Deflating,
    pub(crate) ping_interval: Duration,
    pub(crate) pong_timeout: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) publish_timeout: Duration,
    pub(crate) probe_interval: Duration,
    pub(crate) linger: Duration,
    pub(crate) lease: Duration,
    pub(crate) presence_grace: Duration,
    pub(crate) name: String,
    /// The node sends and asks, and never holds a socket.
    pub(crate) worker: bool,
}

impl Config {
    /// What the parts of a node need to know.
    pub(crate) fn bus(&self) -> BusSettings {
        BusSettings {
            namespace: self.namespace.clone(),
            publish_timeout: self.publish_timeout,
            probe_interval: self.probe_interval,
            lease: self.lease,
            linger: self.linger,
            seats: self.seats,
            histories: self.histories,
            spool: self.spool,
        }
    }

    pub(crate) fn local(&self) -> LocalSettings {
        LocalSettings {
            limits: self.limits,
            outbox: self.outbox,
            max_message_size: self.max_message_size,
            deflating: self.deflating,
            heartbeat: HeartbeatTimes {
                ping_interval: self.ping_interval,
                pong_timeout: self.pong_timeout,
                write_timeout: self.write_timeout,
            },
            publish_timeout: self.publish_timeout,
        }
    }

    pub(crate) fn peers(&self) -> PeerSettings {
        PeerSettings {
            name: self.name.clone(),
            worker: self.worker,
            lease: self.lease,
            publish_timeout: self.publish_timeout,
            presence_grace: self.presence_grace,
            histories: self.histories,
        }
    }

    /// The defaults; each is explained where [`ClusterBuilder`](crate::ClusterBuilder) sets it.
    pub(crate) fn new(namespace: Namespace) -> Self {
        Self {
            namespace,
            identify: Identify::by(|user: &UserId| Some(user.clone())),
            unauthenticated: Unauthenticated::default(),
            protocols: Vec::new(),
            origins: OriginPolicy::default(),
            limits: Limits::default(),
            seats: None,
            histories: Histories::default(),
            spool: None,
            max_message_size: 64 * 1024,
            inbound: None,
            outbox: OutboxLimits {
                messages: 256,
                bytes: 1024 * 1024,
                policy: SlowConsumer::Close,
            },
            deflating: Deflating::OFF,
            ping_interval: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(20),
            write_timeout: Duration::from_secs(10),
            publish_timeout: Duration::from_secs(2),
            probe_interval: Duration::from_secs(5),
            linger: Duration::from_secs(2),
            lease: Duration::from_secs(15),
            presence_grace: Duration::from_secs(5),
            name: std::env::var("HOSTNAME").unwrap_or_default(),
            worker: false,
        }
    }

    /// What makes no sense, if anything.
    pub(crate) fn problem(&self) -> Option<String> {
        let problem = self.problem_of_times();
        let problem = problem.or_else(|| self.problem_of_counts());
        let problem = problem.or_else(|| self.histories.problem());
        let problem = problem.or_else(|| self.deflating.problem());
        problem.or_else(|| self.problem_of_spool())
    }

    fn problem_of_spool(&self) -> Option<String> {
        let SpoolLimits { wait, .. } = self.spool?;
        if self.histories.is_off() {
            return Some(
                "spool is for what is kept, and nothing is: set `user_history`, `room_history` or `all_history` too".into(),
            );
        }
        match wait {
            wait if wait.is_zero() => {
                Some("spool in wait is zero: it must be longer than nothing".into())
            }
            wait if wait > LONGEST => Some(format!(
                "spool in wait is longer than a day: it must be at most {LONGEST:?}"
            )),
            _ => None,
        }
    }

    fn problem_of_times(&self) -> Option<String> {
        let durations = [
            ("ping_interval", self.ping_interval),
            ("pong_timeout", self.pong_timeout),
            ("write_timeout", self.write_timeout),
            ("publish_timeout", self.publish_timeout),
            ("probe_interval", self.probe_interval),
            ("lease", self.lease),
        ];
        let zero = durations.iter().find(|(_, duration)| duration.is_zero());
        if let Some((name, _)) = zero {
            return Some(format!("{name} is zero: it must be longer than nothing"));
        }
        if self.lease < SHORTEST_LEASE {
            return Some(format!(
                "lease is {:?}: it must be at least {SHORTEST_LEASE:?}, or a hello that is a little late costs \
                 a node its users",
                self.lease
            ));
        }
        let long = durations
            .into_iter()
            .chain([
                ("linger", self.linger),
                ("presence_grace", self.presence_grace),
            ])
            .find(|(_, d)| *d > LONGEST);
        long.map(|(name, _)| format!("{name} is longer than a day: it must be at most {LONGEST:?}"))
    }

    fn problem_of_counts(&self) -> Option<String> {
        let counts = [
            ("max_message_size", Some(self.max_message_size)),
            (
                "inbound_limit in messages",
                self.inbound.map(|limit| limit.messages),
            ),
            (
                "inbound_limit in bytes",
                self.inbound.map(|limit| limit.bytes),
            ),
            ("outbox_messages", Some(self.outbox.messages)),
            ("outbox_bytes", Some(self.outbox.bytes)),
            ("spool in messages", self.spool.map(|spool| spool.messages)),
            ("spool in bytes", self.spool.map(|spool| spool.bytes)),
            ("max_sockets", self.limits.sockets),
            ("max_sockets_per_user", self.limits.sockets_per_user),
            (
                "max_sockets_per_user_in_cluster",
                self.seats.map(|limit| limit.sockets),
            ),
        ];
        let zero = counts.iter().find(|(_, count)| *count == Some(0));
        zero.map(|(name, _)| {
            format!("{name} is zero: nothing could ever pass, at least 1 is needed")
        })
    }
}
