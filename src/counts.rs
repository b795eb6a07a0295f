//! What a node counts: one table, from which everything else is made.
//!
//! A new number is one row, and one in `docs/operating.md`, which a test compares.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

use crate::measures::Measures;
use crate::model::close::{Close, reason};

/// Makes [`Stats`] of the rows.
macro_rules! counts {
    ($($(#[doc = $doc:literal])+ $name:ident: $kind:ident $(($($part:ident)+))?,)+) => {
        /// Plain numbers of one node. Counters grow from its start; `sockets`, `users`, `rooms`, `nodes`,
        /// `bus_probe_age_millis`, `bus_shards`, `bus_shards_up`, `spool_waiting` and `bus_publish_queue` are now. As JSON each is a field of this name.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Stats {
            /// Every number with the name of its field and its kind, in the order of the fields: whatever
            /// exports all of them needs no change when there are more.
            ///
            /// ```
            /// # #[tokio::main(flavor = "current_thread")]
            /// # async fn main() {
            /// # let cluster = axum_cluster::Cluster::builder().start();
            /// for (name, kind, value) in cluster.stats().iter() {
            ///     println!("{name} {value} ({kind:?})");
            /// }
            /// # }
            /// ```
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, StatKind, u64)> + use<> {
                [$((stringify!($name), kind!($kind), self.$name),)+].into_iter()
            }

            /// What each is called where it is exported, and what it means, in the order of the fields.
            #[cfg(feature = "metrics")]
            pub(crate) const DESCRIBED: &[Described] = &[$(Described {
                exported: concat!("axum_cluster_", stringify!($name)),
                kind: kind!($kind),
                doc: concat!($($doc),+),
            },)+];
        }

        by_kind! { [] [] [] $($name: $kind $(($($part)+))?,)+ }
    };
}

macro_rules! kind {
    (gauge) => {
        StatKind::Gauge
    };
    ($counted:ident) => {
        StatKind::Counter
    };
}

/// Makes [`Counters`] and [`Gauges`] of the same rows.
macro_rules! by_kind {
    ($counters:tt $gauges:tt [$($sums:tt)*] $name:ident: sum($($part:ident)+), $($rest:tt)*) => {
        by_kind! { $counters $gauges [$($sums)* $name($($part)+)] $($rest)* }
    };
    ([$($counters:ident)*] $gauges:tt $sums:tt $name:ident: counter, $($rest:tt)*) => {
        by_kind! { [$($counters)* $name] $gauges $sums $($rest)* }
    };
    ($counters:tt [$($gauges:ident)*] $sums:tt $name:ident: gauge, $($rest:tt)*) => {
        by_kind! { $counters [$($gauges)* $name] $sums $($rest)* }
    };
    ([$($counter:ident)+] [$($gauge:ident)+] [$($sum:ident($($part:ident)+))+]) => {
        /// What is counted where it happens.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $counter: AtomicU64,)+
            pub(crate) measures: Measures,
        }

        /// What others know.
        #[derive(Debug)]
        pub(crate) struct Gauges {
            $(pub(crate) $gauge: u64,)+
        }

        impl Counters {
            pub(crate) fn stats(&self, now: Gauges) -> Stats {
                $(let $counter = self.$counter.load(Relaxed);)+
                Stats {
                    $($gauge: now.$gauge,)+
                    $($sum: 0 $(+ $part)+,)+
                    $($counter,)+
                }
            }
        }
    };
}

counts! {
    /// Sockets registered here now, streams of events ([`ClusterEvents`](crate::ClusterEvents)) and subscriptions
    /// ([`Broadcaster::subscribe`](crate::Broadcaster::subscribe)) among them.
    sockets: gauge,
    /// Users with a socket here now.
    users: gauge,
    /// Rooms with a member here now.
    rooms: gauge,
    /// Nodes of the cluster that are known now, this one among them; workers
    /// ([`Broadcaster::builder`](crate::Broadcaster::builder)) are none.
    nodes: gauge,
    /// Sends, closes, joins and leaves of audiences begun on this node.
    sent: counter,
    /// Messages taken by outboxes of this node, whoever sent them.
    delivered: counter,
    /// Messages that were compressed ([`ClusterBuilder::compression`](crate::ClusterBuilder)): each once, however many sockets
    /// here got it so.
    compressed: counter,
    /// Bytes of compressed messages taken by outboxes of this node.
    compressed_bytes: counter,
    /// Bytes that these were fewer than they would have been.
    compressed_saved: counter,
    /// Messages discarded because a client read too slowly: the sum of the next three.
    dropped: sum(dropped_oldest dropped_full dropped_stalled),
    /// Of those, the ones that made room for newer ones
    /// ([`SlowConsumer::DropOldest`](crate::SlowConsumer::DropOldest)).
    dropped_oldest: counter,
    /// Of those, the ones still queued when their outbox was full and the socket was closed.
    dropped_full: counter,
    /// Of those, the ones still queued when the client had accepted nothing for `write_timeout`.
    dropped_stalled: counter,
    /// Messages of [`Audience::volatile`](crate::Audience::volatile) that were left out, since others waited for their client.
    left_out: counter,
    /// Messages of [`Audience::latest`](crate::Audience::latest) that waited for their client and were replaced by a newer one.
    superseded: counter,
    /// Messages to the nodes ([`Cluster::to_nodes`](crate::Cluster::to_nodes)) that a reader here lost, since it lagged more than
    /// 256 behind.
    node_messages_lost: counter,
    /// Sockets closed because their client read too slowly.
    slow_closed: counter,
    /// Sockets closed because their client sent more than
    /// [`inbound_limit`](crate::ClusterBuilder::inbound_limit) allows.
    inbound_closed: counter,
    /// Sockets that ended with 1000: the handler returned, or the client said goodbye. Every socket whose
    /// handshake was completed, and every subscription, is counted by exactly one of these fields.
    closed_normal: counter,
    /// With 1001: the browser left the page.
    closed_going_away: counter,
    /// With 1005: the client gave no code.
    closed_no_status: counter,
    /// With 1006: the client vanished or stayed silent.
    closed_abnormal: counter,
    /// With 1002 or 1007: the client broke the protocol.
    closed_protocol: counter,
    /// With 1008: the client sent more than
    /// [`inbound_limit`](crate::ClusterBuilder::inbound_limit) allows, or what its handler did not understand
    /// ([`BadMessage::close`](crate::BadMessage::close)).
    closed_policy: counter,
    /// With 1009: the client sent more than `max_message_size`, inflated where it was compressed.
    closed_too_big: counter,
    /// With 1011: the handler panicked.
    closed_panicked: counter,
    /// With 1012: the node was shut down.
    closed_restart: counter,
    /// With 1013: the client read too slowly.
    closed_slow: counter,
    /// With 4401: the identity expired.
    closed_expired: counter,
    /// With any other code, such as those of your own.
    closed_other: counter,
    /// Outages of the bus during which messages from other nodes may have been missed. One per outage.
    bus_gaps: counter,
    /// The length of all gaps that are over, in milliseconds.
    bus_gap_millis: counter,
    /// Messages of such gaps that were kept, and delivered when the bus was back.
    history_repaired: counter,
    /// Times that it could not be told what was missed on a topic of which something is kept.
    history_missed: counter,
    /// Messages from the bus that made no sense.
    bus_garbage: counter,
    /// What came from another node behind what it had published later, since a primary that had lost its place passed it on:
    /// dropped, and inside a gap that is told.
    bus_late: counter,
    /// Times that Redis refused to let this node hear a channel, which is asked for again after a pause and counted
    /// again.
    subscriptions_refused: counter,
    /// Times the bus came back after an outage that made a gap.
    bus_reconnects: counter,
    /// Milliseconds since the probe was published that last proved the bus, or since the start. More than
    /// two probe intervals is an outage. Grows for ever on [`Backend::memory`](crate::Backend::memory), which
    /// is proved once.
    bus_probe_age_millis: gauge,
    /// Redis primaries that this node uses now, each with its own part of the topics; 1 on
    /// [`Backend::memory`](crate::Backend::memory).
    bus_shards: gauge,
    /// Those of them that work. Fewer than `bus_shards` is an outage for their users and rooms.
    bus_shards_up: gauge,
    /// Nodes heard that share the topics between other Redises than this node ([`Backend::shards`](crate::Backend::shards)), so
    /// that they miss each other's messages. Each is named in the log.
    nodes_on_other_shards: counter,
    /// Messages of this node that failed, and were delivered here before older ones that did not: those were still to come, and too
    /// much waited for them, or for more than 30 s.
    history_unordered: counter,
    /// Messages of nodes that do not keep what this node says should be kept, or keep it otherwise
    /// ([`ClusterBuilder::user_history`](crate::ClusterBuilder::user_history)); each such node is named in the log once.
    history_unkept: counter,
    /// Messages of this node that were kept and then lost, since Redis went on with an older state: a restart or a failover
    /// without the last moments.
    history_rolled_back: counter,
    /// Messages of this node that were lost so, and kept again by its spool ([`ClusterBuilder::spool`](crate::ClusterBuilder::spool)).
    history_again: counter,
    /// Sends that waited in the spool for Redis to be back ([`Delivery::spooled`](crate::Delivery::spooled)).
    spooled: counter,
    /// Messages in the spool now.
    spool_waiting: gauge,
    /// Messages that the spool did not take, since it was full, or gave up: they had waited too long, the node ended, or Redis
    /// refused them.
    spool_dropped: counter,
    /// Times that topics moved from one primary of a Redis Cluster to another.
    bus_moves: counter,
    /// Publishes that failed, certainly or possibly: the sum of the next two.
    bus_publish_failures: sum(bus_publish_unsent bus_publish_uncertain),
    /// Of those, the ones that certainly were not sent.
    bus_publish_unsent: counter,
    /// Of those, the ones that other nodes may have got all the same.
    bus_publish_uncertain: counter,
    /// Publishes that wait for Redis now; one of more than 1 KiB counts once for each. At most 65,536, then
    /// further ones wait outside, and fail after `publish_timeout`.
    bus_publish_queue: gauge,
    /// Upgrades and streams of events refused because of their `Origin`: 403.
    origins_refused: counter,
    /// Requests refused since they were no WebSocket handshake, or no GET where a stream of events is: 400, 405 or 426.
    handshakes_refused: counter,
    /// Upgrades and streams of events without a user: closed with 4403, 204, or as
    /// [`ClusterBuilder::unauthenticated`](crate::ClusterBuilder::unauthenticated) says.
    unauthenticated: counter,
    /// Upgrades, streams of events and subscriptions refused because the user's id was unusable: 400.
    ids_refused: counter,
    /// Upgrades, streams of events and subscriptions refused while the node was shutting down, or because its runtime had ended: 503.
    drain_refused: counter,
    /// Upgrades that failed because of the app or its server: 500 where another extractor had taken the
    /// upgrade, where the server does none or where the description was unusable; and those that the server
    /// answered and did not do.
    upgrades_failed: counter,
    /// Clients of streams of events ([`ClusterEvents`](crate::ClusterEvents)) that came back after an end for good, as an
    /// `EventSource` does by itself, and were told so: 204.
    events_over: counter,
    /// Upgrades, streams of events and subscriptions refused because of a limit on sockets: 429 or 503.
    limits_refused: counter,
    /// Closes asked for at a dashboard of this node (`Cluster::dashboard`) and refused: 403, since no actions are allowed there,
    /// or since a page of another origin asked.
    actions_refused: counter,
    /// Sockets whose clients came with a position and have everything since: what was kept for them was sent again.
    resumed: counter,
    /// Those that came with one and cannot: what they missed is gone, was too much, or the position is none of theirs.
    resumed_missed: counter,
    /// Questions of other nodes (rosters, commands) that were not answered because 1,024 were being
    /// answered.
    questions_refused: counter,
    /// Upgrades and subscriptions for which the limit of a user's sockets in the cluster was not checked against all of them:
    /// against this node's alone, since Redis did not answer, or without those of a node that Redis has lost and
    /// that did not write them again. Refused where Redis answered and kept losing them.
    limits_unchecked: counter,
    /// Panics of the cluster's own tasks, each of which began again by itself. A bug of this crate: the log names
    /// the task.
    task_panics: counter,
}

/// What a number of [`Stats`] is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum StatKind {
    /// Grows from the start of the node.
    Counter,
    /// As it is now.
    Gauge,
}

/// A number of [`Stats`], for exporters.
#[cfg(feature = "metrics")]
#[derive(Debug)]
pub(crate) struct Described {
    pub(crate) exported: &'static str,
    pub(crate) kind: StatKind,
    pub(crate) doc: &'static str,
}

/// What a refusal counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    Origin,
    Handshake,
    Unauthenticated,
    Id,
    Draining,
    Upgrade,
    Over,
}

impl Counters {
    pub(crate) fn record_failed_publish(&self, maybe_sent: bool) {
        let counter = match maybe_sent {
            true => &self.bus_publish_uncertain,
            false => &self.bus_publish_unsent,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn record_other_shards(&self) {
        self.nodes_on_other_shards.fetch_add(1, Relaxed);
    }

    pub(crate) fn record_close(&self, close: &Close) {
        let counter = match close.code {
            Close::NORMAL => &self.closed_normal,
            Close::GOING_AWAY => &self.closed_going_away,
            Close::NO_STATUS => &self.closed_no_status,
            Close::ABNORMAL => &self.closed_abnormal,
            Close::PROTOCOL_ERROR | Close::INVALID_DATA => &self.closed_protocol,
            Close::POLICY_VIOLATION => &self.closed_policy,
            Close::TOO_BIG => &self.closed_too_big,
            Close::INTERNAL_ERROR => &self.closed_panicked,
            Close::RESTART => &self.closed_restart,
            Close::TRY_AGAIN_LATER => &self.closed_slow,
            Close::EXPIRED => &self.closed_expired,
            _ => &self.closed_other,
        };
        counter.fetch_add(1, Relaxed);
        if *close == reason::TOO_MUCH {
            self.inbound_closed.fetch_add(1, Relaxed);
        }
    }

    /// Counts a refused request. Whether it is the first of its kind.
    pub(crate) fn record_refusal(&self, what: Counted) -> bool {
        let counter = match what {
            Counted::Origin => &self.origins_refused,
            Counted::Handshake => &self.handshakes_refused,
            Counted::Unauthenticated => &self.unauthenticated,
            Counted::Id => &self.ids_refused,
            Counted::Draining => &self.drain_refused,
            Counted::Upgrade => &self.upgrades_failed,
            Counted::Over => &self.events_over,
        };
        counter.fetch_add(1, Relaxed) == 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn stats() -> Stats {
        let counters = Counters::default();
        counters.dropped_full.store(1, Relaxed);
        counters.dropped_stalled.store(2, Relaxed);
        counters.record_failed_publish(true);
        counters.record_close(&Close::new(4001, ""));
        counters.stats(Gauges {
            sockets: 3,
            users: 0,
            rooms: 0,
            nodes: 1,
            bus_probe_age_millis: 7,
            bus_shards: 1,
            bus_shards_up: 1,
            bus_publish_queue: 0,
            spool_waiting: 0,
        })
    }

    #[test]
    fn every_number_has_its_name_its_kind_and_its_value() {
        let stats = stats();
        let of = |name| stats.iter().find(|(it, ..)| *it == name).unwrap();
        assert_eq!(of("sockets"), ("sockets", StatKind::Gauge, 3));
        assert_eq!(of("dropped"), ("dropped", StatKind::Counter, 3));
        assert_eq!(of("bus_publish_failures").2, 1);
        assert_eq!(of("closed_other").2, 1);
        let gauges = stats.iter().filter(|(_, kind, _)| *kind == StatKind::Gauge);
        assert_eq!(gauges.count(), 9);
    }

    #[test]
    fn what_is_exported_as_json_is_the_same() {
        let json = serde_json::to_value(stats()).unwrap();
        let json = json.as_object().unwrap();
        assert_eq!(json.len(), stats().iter().count());
        for (name, _, value) in stats().iter() {
            assert_eq!(json[name], value, "{name}");
        }
    }

    /// What the table of numbers tells of, where `x_*` is every field that begins so.
    fn documented() -> Vec<&'static str> {
        let operating = include_str!("../docs/operating.md");
        let (_, numbers) = operating.split_once("\n## Numbers\n").unwrap();
        let (numbers, _) = numbers.split_once("\n## ").unwrap();
        let rows = numbers.lines().filter(|line| line.starts_with("| `"));
        let fields = rows.filter_map(|row| row.split('|').nth(1));
        fields
            .flat_map(|cell| cell.split('`').skip(1).step_by(2))
            .collect()
    }

    #[test]
    fn the_documented_numbers_are_those_that_there_are() {
        let names: HashSet<&str> = stats().iter().map(|(name, ..)| name).collect();
        let meant = |documented: &'static str| -> HashSet<&str> {
            let prefix = documented.strip_suffix('*');
            let is_meant = |name: &&str| match prefix {
                Some(prefix) => name.starts_with(prefix),
                None => *name == documented,
            };
            names.iter().copied().filter(is_meant).collect()
        };
        let documented: Vec<_> = documented().into_iter().map(|it| (it, meant(it))).collect();
        for (name, meant) in &documented {
            assert!(!meant.is_empty(), "{name} is documented, and no number");
        }
        let all: HashSet<&str> = documented
            .into_iter()
            .flat_map(|(_, meant)| meant)
            .collect();
        for name in names {
            assert!(all.contains(name), "{name} is not documented");
        }
    }
}
