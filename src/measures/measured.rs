//! One table of everything that is measured; each row a histogram.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::clocks::Clocks;
use super::histogram::{Histogram, SampleReader};
use crate::model::id::NodeId;
use crate::model::vitals::Quantiles;

/// One of so many sends is timed: to read the clocks for each would cost a fiftieth of a delivery.
const ONE_OF: u64 = 16;
/// The golden ratio, of a turn of 2^64. Whatever an app does in turns, in these steps the timed ones are of each.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The least that is known of another node's clock is from this long at least: longer than a hello is apart from the next, or as
/// long, where these are rarer.
const TURN: Duration = Duration::from_secs(4);

/// When something began.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Since(Instant);

impl Since {
    pub(crate) fn now() -> Self {
        Self(Instant::now())
    }
}

/// What a histogram counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measured {
    /// Kept in microseconds, told in seconds.
    Time,
    Sockets,
}

impl Measured {
    fn in_its_unit(self, value: f64) -> f64 {
        match self {
            Self::Time => value / 1e6,
            Self::Sockets => value,
        }
    }
}

/// So many values that were about this much.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    pub(crate) count: u64,
}

/// Makes [`Measures`] of the rows.
macro_rules! measures {
    ($($(#[doc = $doc:literal])+ $name:ident: $measured:ident as $exported:literal,)+) => {
        #[derive(Debug, Default)]
        pub(crate) struct Measures {
            sends: AtomicU64,
            own: OwnClock,
            others: Mutex<Clocks>,
            $($(#[doc = $doc])+ $name: Histogram,)+
        }

        impl Measures {
            /// Every histogram: what it is called where it is exported, what it counts, and what that means.
            pub(crate) const TABLE: &[(&'static str, Measured, &'static str)] =
                &[$(($exported, Measured::$measured, concat!($($doc),+)),)+];

            /// What was measured since this was asked before.
            pub(crate) fn take(&self) -> Vec<Sample> {
                let mut samples = Vec::new();
                $(self.$name.tell(SampleReader::Recorder, |value, count| samples.push(Sample {
                    name: $exported,
                    value: Measured::$measured.in_its_unit(value),
                    count,
                }));)+
                samples
            }

            /// The same for who looks at a dashboard: what came at all, by the names of the rows.
            pub(crate) fn quantiles(&self) -> BTreeMap<String, Quantiles> {
                let mut quantiles = BTreeMap::new();
                $({
                    let mut values = Vec::new();
                    self.$name.tell(SampleReader::Onlooker, |value, count| {
                        values.push((Measured::$measured.in_its_unit(value), count));
                    });
                    let name = || stringify!($name).to_owned();
                    quantiles.extend(Quantiles::of(&values).map(|it| (name(), it)));
                })+
                quantiles
            }
        }
    };
}

measures! {
    /// From a send until the bus took it: through the queue of this node to Redis and its answer back. Of one in 16 sends; those
    /// that failed are not among them.
    publish: Time as "axum_cluster_publish_seconds",
    /// How long an upgrade, a subscription or a join waited until Redis had confirmed that this node hears the user or the room.
    /// Those that had not to wait are not among them; those that gave up are, with the time until they did.
    confirm: Time as "axum_cluster_confirm_seconds",
    /// The way of a probe through the bus: from this node through its queue to Redis, and back through all that it is hearing,
    /// with Redis' answer to it. About what a message takes to another node, by one clock.
    probe: Time as "axum_cluster_probe_seconds",
    /// From a send on another node until the sockets here had the message, by what hellos tell of the clocks of both: right to within
    /// half of the shortest round trip between the two. Of one in 16 sends of each node; of nodes that do not measure, and of programs
    /// in other languages, there is none.
    delivery: Time as "axum_cluster_delivery_seconds",
    /// Sockets of this node that took a message, for each message that was for any of them.
    fan_out: Sockets as "axum_cluster_fan_out_sockets",
}

impl Measures {
    /// A send begins: when, if it is one of those that are timed.
    pub(crate) fn sending(&self) -> Option<Since> {
        is_timed(self.sends.fetch_add(1, Relaxed)).then(Since::now)
    }

    pub(crate) fn published(&self, since: Since) {
        self.publish.record(micros(since.0));
    }

    pub(crate) fn confirmed(&self, since: Since) {
        self.confirm.record(micros(since.0));
    }

    /// The probe that was published then came back.
    pub(crate) fn probed(&self, published: Instant) {
        self.probe.record(micros(published));
    }

    pub(crate) fn fanned_out(&self, sockets: u64) {
        self.fan_out.record(sockets);
    }

    /// When this is said, by this node's own clock.
    pub(crate) fn said_at(&self, since: Since) -> Option<u64> {
        Some(self.own.at(since.0))
    }

    /// Something came that another node sent then, by its clock: when that was, if it can be told.
    pub(crate) fn heard(&self, from: NodeId, sent: u64) -> Option<Since> {
        let now = Instant::now();
        let took = self.others.lock().came(from, sent, self.own.at(now))?;
        Some(Since(now.checked_sub(Duration::from_micros(took))?))
    }

    /// What was sent then has been handed to the sockets here.
    pub(crate) fn delivered(&self, sent: Since) {
        self.delivery.record(micros(sent.0));
    }

    /// What this node says of others' clocks in its hello.
    pub(crate) fn heard_of_others(&self) -> Vec<(NodeId, i64)> {
        let mut others = self.others.lock();
        match self.own.takes_turn() {
            true => others.turn(),
            false => others.told(),
        }
    }

    /// What another node says so of this one's.
    pub(crate) fn told_by(&self, node: NodeId, of_us: Option<i64>) {
        self.others.lock().told_by(node, of_us);
    }

    pub(crate) fn forget(&self, node: NodeId) {
        self.others.lock().forget(node);
    }
}

/// The clock of this node, which nobody sets.
#[derive(Debug)]
struct OwnClock {
    started: Instant,
    /// When the last turn began.
    turned: Mutex<Instant>,
}

impl OwnClock {
    fn at(&self, moment: Instant) -> u64 {
        let since = moment.saturating_duration_since(self.started);
        since.as_micros().try_into().unwrap_or(u64::MAX)
    }

    /// Hellos are said in between as well, to whoever is new.
    fn takes_turn(&self) -> bool {
        let mut turned = self.turned.lock();
        let takes = turned.elapsed() >= TURN;
        if takes {
            *turned = Instant::now();
        }
        takes
    }
}

impl Default for OwnClock {
    fn default() -> Self {
        let started = Instant::now();
        Self {
            started,
            turned: started.into(),
        }
    }
}

/// Of so many, which: by its number, from 0.
fn is_timed(send: u64) -> bool {
    send.wrapping_mul(STEP) < u64::MAX / ONE_OF
}

fn micros(since: Instant) -> u64 {
    since.elapsed().as_micros().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_measured_is_told_once_in_its_unit() {
        let (measures, since) = (Measures::default(), Since::now());
        assert_eq!(measures.take(), []);
        tokio::time::sleep(Duration::from_micros(12_000)).await;
        measures.published(since);
        measures.probed(Instant::now());
        for sockets in [1, 1, 7] {
            measures.fanned_out(sockets);
        }
        let samples = measures.take();
        let of = |name: &str| -> Vec<(f64, u64)> {
            let named = samples.iter().filter(|sample| sample.name.ends_with(name));
            named.map(|sample| (sample.value, sample.count)).collect()
        };
        let [(seconds, 1)] = of("_publish_seconds")[..] else {
            panic!("{samples:?}")
        };
        assert!((0.011..0.014).contains(&seconds), "{seconds}");
        assert_eq!(of("_probe_seconds"), [(0.0, 1)]);
        assert_eq!(of("_fan_out_sockets"), [(1.0, 2), (7.0, 1)]);
        assert_eq!(measures.take(), []);
        let quantiles = measures.quantiles();
        let names: Vec<&str> = quantiles.keys().map(String::as_str).collect();
        assert_eq!(names, ["fan_out", "probe", "publish"]);
        let fan_out = quantiles["fan_out"];
        assert_eq!((fan_out.count, fan_out.p50, fan_out.p99), (3, 1.0, 7.0));
        assert_eq!(
            (quantiles["publish"].p50, quantiles["publish"].count),
            (seconds, 1)
        );
        assert!(measures.quantiles().is_empty(), "told once");
    }

    /// Also of those that an app does in turns, whatever of so many it is.
    #[test]
    fn the_first_send_is_timed_and_then_one_of_sixteen() {
        let measures = Measures::default();
        let timed: Vec<u64> = (0..)
            .filter(|_| measures.sending().is_some())
            .take(1_000)
            .collect();
        assert_eq!(timed[0], 0);
        let apart = timed.windows(2).map(|two| two[1] - two[0]);
        assert!(apart.clone().all(|apart| matches!(apart, 8 | 13 | 21)));
        let share = timed[999] as f64 / 999.0;
        assert!((15.9..16.1).contains(&share), "one of {share}");
        for turns in 2..40 {
            let mut of = vec![0; turns as usize];
            timed
                .iter()
                .for_each(|send| of[(send % turns) as usize] += 1);
            let fair = timed.len() as u64 / turns;
            assert!(
                of.iter().all(|of| (fair / 2..2 * fair).contains(of)),
                "{turns}: {of:?}"
            );
        }
    }
}
