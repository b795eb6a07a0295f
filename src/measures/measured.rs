//! One table of everything that is measured; each row a histogram.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::histogram::{Histogram, Told};
use crate::model::vitals::Quantiles;

/// When something began.
#[derive(Debug, Clone, Copy)]
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
            $($(#[doc = $doc])+ $name: Histogram,)+
        }

        impl Measures {
            /// Every histogram: what it is called where it is exported, what it counts, and what that means.
            pub(crate) const TABLE: &[(&'static str, Measured, &'static str)] =
                &[$(($exported, Measured::$measured, concat!($($doc),+)),)+];

            /// What was measured since this was asked before.
            pub(crate) fn take(&self) -> Vec<Sample> {
                let mut samples = Vec::new();
                $(self.$name.tell(Told::Recorder, |value, count| samples.push(Sample {
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
                    self.$name.tell(Told::Onlooker, |value, count| {
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
    /// From a send until the bus took it: through the queue of this node to Redis and its answer back. Those that failed are
    /// not among them.
    publish: Time as "axum_cluster_publish_seconds",
    /// How long an upgrade, a subscription or a join waited until Redis had confirmed that this node hears the user or the room.
    /// Those that had not to wait are not among them; those that gave up are, with the time until they did.
    confirm: Time as "axum_cluster_confirm_seconds",
    /// The way of a probe through the bus: from this node through its queue to Redis, and back through all that it is hearing,
    /// with Redis' answer to it. About what a message takes to another node, by one clock.
    probe: Time as "axum_cluster_probe_seconds",
    /// Sockets of this node that took a message, for each message that was for any of them.
    fan_out: Sockets as "axum_cluster_fan_out_sockets",
}

impl Measures {
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
}
