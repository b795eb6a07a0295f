//! The node's numbers and times for whoever records metrics.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use metrics::{
    SharedString, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use tokio::task::yield_now;
use tokio::time::sleep;

use crate::cluster::Cluster;
use crate::counts::{Described, StatKind, Stats};
use crate::measures::{Measured, Measures, Sample};
use crate::model::health::Health;
use crate::node::Node;

/// How old what a recorder knows may be. Half of a common scrape interval at most.
const EVERY: Duration = Duration::from_secs(5);
/// Most samples in one turn: a recorder takes each for itself, about 50 ns with that of Prometheus.
const TURN: u64 = 1_000;
const UP: &str = "axum_cluster_up";
const NAMESPACE: &str = "namespace";

impl Cluster {
    /// Hands the numbers of this node to the recorder of the crate [`metrics`] as they are now. It happens by itself every
    /// 5 s, so this is for an endpoint that is scraped, before it renders. Without a recorder it does nothing; one that is
    /// installed late gets the counters whole, and what is measured from then on.
    ///
    /// Every number of [`Stats`] is `axum_cluster_` and its name; `axum_cluster_up` is 1 while the health is
    /// [`Up`](Health::Up), and there are histograms:
    ///
    /// | name | |
    /// |---|---|
    /// | `axum_cluster_publish_seconds` | from a send until the bus took it: one in 16 sends |
    /// | `axum_cluster_confirm_seconds` | until Redis had confirmed that a user or room is heard, where somebody waited for it |
    /// | `axum_cluster_delivery_seconds` | from a send on another node until the sockets here had the message: one in 16 of its sends |
    /// | `axum_cluster_probe_seconds` | the way of a probe to Redis and back, by one clock |
    /// | `axum_cluster_fan_out_sockets` | sockets of this node that took one message |
    ///
    /// All are described with their units, and have the label `namespace`; several nodes in one process and namespace
    /// would overwrite one another's. Measured values are told to within a sixteenth; those of a delivery to within half of the
    /// shortest round trip between the two nodes besides, since no two clocks are the same: what hellos tell of them is as good.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use axum::{Router, routing::get};
    /// use axum_cluster::Cluster;
    /// use metrics_exporter_prometheus::PrometheusBuilder;
    ///
    /// let prometheus = PrometheusBuilder::new().install_recorder()?;
    /// let cluster = Cluster::builder().start();
    /// let scrape = get(move || async move {
    ///     cluster.record_metrics();
    ///     prometheus.render()
    /// });
    /// # let _app: Router =
    /// Router::new().route("/metrics", scrape) // behind whatever keeps strangers out
    /// # ;
    /// # Ok(())
    /// # }
    /// ```
    pub fn record_metrics(&self) {
        let namespace = self.record_numbers();
        for Sample { name, value, count } in self.node().ground.counters.measures.take() {
            let count = count.try_into().unwrap_or(usize::MAX);
            histogram!(name, NAMESPACE => namespace.clone()).record_many(value, count);
        }
    }

    fn node(&self) -> Arc<Node> {
        self.broadcaster().node().clone()
    }

    /// Records every number of `Stats`; tells of which namespace they are.
    fn record_numbers(&self) -> SharedString {
        describe();
        let namespace = Arc::<str>::from(self.node().config.namespace.as_str());
        let namespace = SharedString::from_shared(namespace);
        let up = f64::from(u8::from(self.health() == Health::Up));
        gauge!(UP, NAMESPACE => namespace.clone()).set(up);
        for (described, (_, kind, value)) in Stats::DESCRIBED.iter().zip(self.stats().iter()) {
            match kind {
                StatKind::Counter => {
                    counter!(described.exported, NAMESPACE => namespace.clone()).absolute(value);
                }
                StatKind::Gauge => {
                    gauge!(described.exported, NAMESPACE => namespace.clone()).set(value as f64);
                }
            }
        }
        namespace
    }

    /// Records all, letting other tasks run in between.
    async fn record_by_turns(&self) {
        let namespace = self.record_numbers();
        let mut turn = 0;
        for Sample { name, value, count } in self.node().ground.counters.measures.take() {
            let histogram = histogram!(name, NAMESPACE => namespace.clone());
            let mut left = count;
            while left > 0 {
                let now = left.min(TURN - turn);
                histogram.record_many(value, now as usize);
                (left, turn) = (left - now, turn + now);
                if turn == TURN {
                    turn = 0;
                    yield_now().await;
                }
            }
        }
    }
}

/// Records as long as the node lives, and once more at its end.
pub(crate) fn keep_recording(node: &Arc<Node>) {
    let weak = Arc::downgrade(node);
    node.ground.home.keep("metrics", weak, |node| {
        let node = node.clone();
        async move {
            while let Some(node) = node.upgrade() {
                let is_last = node.ground.home.is_stopped();
                Cluster::of(node).record_by_turns().await;
                if is_last {
                    return;
                }
                sleep(EVERY).await;
            }
        }
        .boxed()
    });
}

/// Said anew each time, since nobody tells when a recorder comes.
fn describe() {
    static TEXTS: OnceLock<Vec<String>> = OnceLock::new();
    let texts = TEXTS.get_or_init(|| {
        let numbers = Stats::DESCRIBED.iter().map(|it| plain(it.doc));
        let measured = Measures::TABLE.iter().map(|(_, _, doc)| plain(doc));
        numbers.chain(measured).collect()
    });
    let mut texts = texts.iter().map(String::as_str);
    describe_gauge!(
        UP,
        Unit::Count,
        "Whether the node hears all others: 1 or 0."
    );
    for (Described { exported, kind, .. }, text) in Stats::DESCRIBED.iter().zip(&mut texts) {
        let unit = match exported {
            name if name.ends_with("_millis") => Unit::Milliseconds,
            name if name.contains("_bytes") || name.ends_with("compressed_saved") => Unit::Bytes,
            _ => Unit::Count,
        };
        match kind {
            StatKind::Counter => describe_counter!(*exported, unit, text),
            StatKind::Gauge => describe_gauge!(*exported, unit, text),
        }
    }
    for ((exported, measured, _), text) in Measures::TABLE.iter().zip(texts) {
        let unit = match measured {
            Measured::Time => Unit::Seconds,
            Measured::Sockets => Unit::Count,
        };
        describe_histogram!(*exported, unit, text);
    }
}

/// The documentation of a number without its links.
fn plain(doc: &str) -> String {
    let mut text = String::with_capacity(doc.len());
    let mut rest = doc.trim();
    while let Some((before, link)) = rest.split_once('[') {
        let (name, after) = link.split_once(']').unwrap_or((link, ""));
        text += before;
        text += name;
        let target = after.strip_prefix('(').and_then(|it| it.split_once(')'));
        rest = target.map_or(after, |(_, after)| after);
    }
    text += rest;
    text.replace('`', "")
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use metrics::{set_default_local_recorder, with_local_recorder};
    use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};

    use super::*;
    use crate::bus::Backend;

    /// What it says of this name: its lines.
    fn lines(recorder: &PrometheusRecorder, name: &str) -> Vec<String> {
        let text = recorder.handle().render();
        let named = text.lines().filter(|line| {
            let rest = line
                .strip_prefix("# HELP ")
                .or(line.strip_prefix("# TYPE "));
            let rest = rest.unwrap_or(line);
            rest.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with([' ', '{']))
        });
        named.map(str::to_owned).collect()
    }

    fn record(cluster: &Cluster) -> PrometheusRecorder {
        let recorder = PrometheusBuilder::new().build_recorder();
        with_local_recorder(&recorder, || cluster.record_metrics());
        recorder
    }

    #[tokio::test]
    async fn every_number_is_exported_with_its_kind_and_its_meaning() {
        let cluster = Cluster::builder().namespace("shop").start();
        let _alice = cluster.broadcaster().subscribe("alice").await.unwrap();
        cluster.broadcaster().to_all().send("x").await.unwrap();
        let recorder = record(&cluster);
        for (name, kind, value) in cluster.stats().iter() {
            let exported = format!("axum_cluster_{name}");
            let lines = lines(&recorder, &exported);
            let kind = match kind {
                StatKind::Counter => "counter",
                StatKind::Gauge => "gauge",
            };
            assert!(lines[0].starts_with("# HELP "), "{lines:?}");
            assert!(!lines[0].contains(['[', '`']), "{lines:?}");
            assert_eq!(lines[1], format!("# TYPE {exported} {kind}"));
            if name != "bus_probe_age_millis" {
                assert_eq!(
                    lines[2],
                    format!("{exported}{{namespace=\"shop\"}} {value}")
                );
            }
        }
        let up = lines(&recorder, "axum_cluster_up");
        assert_eq!(up[2], "axum_cluster_up{namespace=\"shop\"} 1");
        // None waits in memory until a topic is confirmed, the probe was told when the node started, and there is no other node.
        let absent = ["confirm", "probe", "delivery"];
        let table = Measures::TABLE.iter().map(|(exported, ..)| *exported);
        for exported in table.filter(|it| !absent.iter().any(|name| it.contains(name))) {
            let lines = lines(&recorder, exported);
            let first = lines.first().map(String::as_str);
            assert!(
                first.is_some_and(|line| line.starts_with("# HELP ")),
                "{exported}: {lines:?}"
            );
        }
        let count = lines(&recorder, "axum_cluster_fan_out_sockets_count");
        let once = "axum_cluster_fan_out_sockets_count{namespace=\"shop\"} 1";
        assert_eq!(count, [once]);
    }

    #[tokio::test]
    async fn a_recorder_that_comes_late_gets_the_counters_whole() {
        let cluster = Cluster::builder().start();
        let sent = |recorder| lines(&recorder, "axum_cluster_sent")[2].clone();
        for n in 1..3 {
            cluster.broadcaster().to_all().send("x").await.unwrap();
            let line = format!("axum_cluster_sent{{namespace=\"cluster\"}} {n}");
            assert_eq!(sent(record(&cluster)), line);
        }
    }

    /// What comes from other nodes, and what is said to them, as well as what is sent and delivered here.
    #[tokio::test]
    async fn both_ends_of_the_bus_are_measured() {
        let hub = Backend::memory();
        let node = || Cluster::builder().backend(hub.clone()).start();
        let (a, b) = (node(), node());
        let _bot = b.broadcaster().subscribe("bot").await.unwrap();
        a.broadcaster().to_user("bot").send("x").await.unwrap();
        a.to_nodes().send("x").await.unwrap();
        let (published, delivered) = (record(&a), record(&b));
        for (recorder, counted) in [
            // One in sixteen, of which the first is one.
            (&published, "axum_cluster_publish_seconds_count 1"),
            (&delivered, "axum_cluster_fan_out_sockets_count 1"),
        ] {
            let (name, count) = counted.split_once(' ').unwrap();
            let line = format!("{name}{{namespace=\"cluster\"}} {count}");
            assert_eq!(lines(recorder, name), [line]);
        }
    }

    /// By the clocks of two nodes that did not begin together.
    #[cfg(feature = "testing")]
    #[tokio::test(start_paused = true)]
    async fn the_time_from_a_send_to_its_delivery_on_another_node_is_told() {
        let hub = crate::testing::MemoryHub::new();
        let node = || Cluster::builder().backend(hub.backend()).start();
        let usual = Duration::from_millis(20);
        hub.delay(usual);
        let a = node();
        sleep(Duration::from_secs(7)).await;
        let b = node();
        let _bot = b.broadcaster().subscribe("bot").await.unwrap();
        // Not as the recorder, which is told every 5 s.
        let told = || {
            let measures = &b.node().ground.counters.measures;
            let delivery = measures.quantiles().remove("delivery");
            delivery.map(|it| (it.p50, it.count))
        };
        let send = async |times| {
            for _ in 0..times {
                let sent = a.broadcaster().to_user("bot").send("x").await;
                assert_eq!(sent.unwrap().nodes(), Some(1));
            }
            sleep(Duration::from_secs(1)).await;
        };
        send(1).await;
        assert_eq!(told(), None, "nothing is known of each other's clock yet");
        sleep(Duration::from_secs(11)).await;
        for delay in [usual, 15 * usual, usual] {
            hub.delay(delay);
            // Of so many one or two are timed.
            send(21).await;
            let Some((seconds, 1..=2)) = told() else {
                panic!("they were delivered")
            };
            let delay = delay.as_secs_f64();
            assert!((seconds - delay).abs() <= delay / 15.0, "{seconds}");
        }
        for _ in 0..21 {
            a.broadcaster().to_user("nobody").send("x").await.unwrap();
            b.broadcaster().to_user("bot").send("x").await.unwrap();
        }
        sleep(Duration::from_secs(1)).await;
        assert_eq!(told(), None, "its own are no other node's");
    }

    #[tokio::test(start_paused = true)]
    async fn by_itself_it_records_again_and_again_and_once_more_at_the_end() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let _recording = set_default_local_recorder(&recorder);
        let cluster = Cluster::builder().start();
        for sent in 1..4 {
            cluster.broadcaster().to_all().send("x").await.unwrap();
            if sent == 3 {
                cluster.shutdown(Duration::ZERO).await;
            }
            sleep(EVERY).await;
            let line = format!("axum_cluster_sent{{namespace=\"cluster\"}} {sent}");
            assert_eq!(lines(&recorder, "axum_cluster_sent").last(), Some(&line));
        }
    }

    #[tokio::test]
    async fn many_samples_are_recorded_in_turns() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let _recording = set_default_local_recorder(&recorder);
        let cluster = Cluster::builder().start();
        let all = 3 * TURN + 1;
        for _ in 0..all {
            cluster.node().ground.counters.measures.fanned_out(7);
        }
        let recorded = || {
            let name = "axum_cluster_fan_out_sockets_count";
            let lines = lines(&recorder, name);
            lines[0].rsplit(' ').next().unwrap().parse::<u64>().unwrap()
        };
        let mut recording = pin!(cluster.record_by_turns());
        assert!(recording.as_mut().now_or_never().is_none());
        assert!((1..=TURN).contains(&recorded()), "{}", recorded());
        recording.await;
        assert_eq!(recorded(), all);
    }

    #[test]
    fn a_description_has_no_links() {
        assert_eq!(
            plain(" Of [`A::b`](crate::A::b) that [c] were, [`d`]."),
            "Of A::b that c were, d."
        );
    }
}
