//! Which node's view of the cluster holds: rules without I/O.
//!
//! Views have no number, but their nodes have: each failover, and most moves of slots, raise an epoch that the nodes tell
//! one another. So whoever knows of a lower epoch than that of what is held has missed something, as one that was cut off
//! together with an old primary. At the same epoch the later answer holds: a node that is a moment behind is put right by the next
//! question, which follows every hint. A node that takes the cluster for down cannot see most of the others, and perhaps most of
//! them have gone on without it; besides, its epoch proves nothing, since its replicas raise it by each vote that they lose. What it
//! says holds only as long as none that is well has ever answered: better than nothing, where a cluster starts.
//!
//! But one primary that is gone for good makes all of them take the cluster for down (`cluster-require-full-coverage`), while
//! the rest moves slots and fails over as before. So they are believed where most of the primaries of a view say the
//! same, and each misses only such as most of them gave up: a minority cannot give anybody up, it only suspects.
//!
//! An older epoch is believed again when it was told for a while and nobody confirmed the newer one meanwhile: then the
//! cluster was set up anew. (Sentinels are asked all at once and outvoted by a majority; of a cluster a single node is asked, since most of them
//! have agreed already when one calls itself well.)

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::answer::ClusterAnswer;
use super::view::View;

/// An epoch that nobody confirms for so long while others tell an older one has been forgotten: longer than any question
/// takes, shorter than anybody notices who sets a cluster up anew.
const FORGOTTEN: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Chart {
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    view: Arc<View>,
    /// That of a node that was well; none as long as there was none.
    epoch: Option<u64>,
    /// Since when only older ones are told.
    outdated: Option<Instant>,
}

/// What the answers come to.
#[derive(Debug, PartialEq)]
pub(super) enum ChartFinding {
    /// It is divided as it was.
    Confirmed,
    /// It is divided like this.
    Changed(Arc<View>),
    /// No answer counts; this holds none the less, if nothing else is known.
    Doubted {
        view: Option<Arc<View>>,
        reason: Arc<str>,
    },
}

impl Chart {
    pub(super) fn view(&self) -> Option<&Arc<View>> {
        self.held.as_ref().map(|held| &held.view)
    }

    /// Whether one of these answers counts, so that no other node has to be asked.
    pub(super) fn suffices(&self, answers: &[ClusterAnswer], now: Instant) -> bool {
        let mut doubts = answers
            .iter()
            .map(|answer| self.doubt(answer, answers, now));
        doubts.any(|doubt| doubt.is_none())
    }

    /// Why an answer, which is one of these, does not count.
    fn doubt(
        &self,
        answer: &ClusterAnswer,
        answers: &[ClusterAnswer],
        now: Instant,
    ) -> Option<&'static str> {
        if !answer.is_well && !is_agreed(answer, answers) {
            return Some(DOWN);
        }
        let held = self.held.as_ref()?;
        let is_older = answer.epoch.is_some_and(|epoch| Some(epoch) < held.epoch);
        let since = held.outdated.unwrap_or(now);
        let is_forgotten = now.saturating_duration_since(since) >= FORGOTTEN;
        (is_older && !is_forgotten).then_some(CUT_OFF)
    }

    /// Takes the best of the answers to a question that began at that time, if there is one.
    pub(super) fn hear(
        &mut self,
        answers: Vec<ClusterAnswer>,
        asked: Instant,
    ) -> Option<ChartFinding> {
        let doubts = answers
            .iter()
            .map(|answer| self.doubt(answer, &answers, asked));
        let doubts: Vec<_> = doubts.collect();
        let best = doubts
            .into_iter()
            .zip(answers)
            .max_by_key(|(doubt, answer)| {
                let sound = doubt.is_none().then_some(answer.epoch);
                (sound, answer.is_well, answer.epoch)
            });
        let (doubt, answer) = best?;
        Some(match doubt {
            None => {
                let changed = self.hold(answer.view, answer.epoch);
                changed.map_or(ChartFinding::Confirmed, ChartFinding::Changed)
            }
            Some(reason) => {
                let is_first = !answer.is_well && self.epoch().is_none();
                let view = is_first.then(|| self.hold(answer.view, None));
                if answer.is_well
                    && let Some(held) = &mut self.held
                {
                    held.outdated.get_or_insert(asked);
                }
                ChartFinding::Doubted {
                    view: view.flatten(),
                    reason: reason.into(),
                }
            }
        })
    }

    fn epoch(&self) -> Option<u64> {
        self.held.as_ref()?.epoch
    }

    /// The view, if it differs from what was held.
    fn hold(&mut self, view: View, epoch: Option<u64>) -> Option<Arc<View>> {
        let Some(held) = &mut self.held else {
            let view = Arc::new(view);
            self.held = Some(Held {
                view: view.clone(),
                epoch,
                outdated: None,
            });
            return Some(view);
        };
        (held.epoch, held.outdated) = (epoch.or(held.epoch), None);
        let view = view.after(&held.view);
        if view == *held.view {
            return None;
        }
        held.view = Arc::new(view);
        Some(held.view.clone())
    }
}

/// Whether most of the primaries, as it names them, say the same as this one that is bereft.
fn is_agreed(answer: &ClusterAnswer, answers: &[ClusterAnswer]) -> bool {
    let agree = |other: &&ClusterAnswer| {
        let says_it = other.is_bereft && other.epoch == answer.epoch && other.view == answer.view;
        says_it && answer.view.has_primary(&other.by)
    };
    let agreed: BTreeSet<_> = answers
        .iter()
        .filter(agree)
        .map(|other| &other.by)
        .collect();
    answer.is_bereft && agreed.len() * 2 > answer.view.primaries().len()
}

const DOWN: &str = "the cluster is down, as its nodes see it: redis-cli --cluster check says why";
const CUT_OFF: &str = "only nodes that were cut off answer: they know less than others did before";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bus::redis::address::ServerAddress;
    use crate::bus::redis::cluster::view::View;
    use crate::bus::redis::cluster::view::tests::{host, owned_by, thirds_at};

    const S: Duration = Duration::from_secs(1);

    fn answer(epoch: u64, port: u16, is_well: bool) -> ClusterAnswer {
        ClusterAnswer {
            by: ServerAddress::new("n", port),
            view: owned_by(port),
            epoch: Some(epoch),
            is_well,
            is_bereft: false,
        }
    }

    /// Of three primaries, of which the first is given up by whoever says so.
    fn bereft(by: u16, epoch: u64, second: u16) -> ClusterAnswer {
        ClusterAnswer {
            by: host(by),
            view: thirds_at([70, second, 72]),
            epoch: Some(epoch),
            is_well: false,
            is_bereft: true,
        }
    }

    fn well(epoch: u64, port: u16) -> ClusterAnswer {
        answer(epoch, port, true)
    }

    fn down(epoch: u64, port: u16) -> ClusterAnswer {
        answer(epoch, port, false)
    }

    const CONFIRMED: Option<ChartFinding> = Some(ChartFinding::Confirmed);

    fn changed(port: u16) -> Option<ChartFinding> {
        Some(ChartFinding::Changed(Arc::new(owned_by(port))))
    }

    fn doubted(port: Option<u16>, reason: &str) -> Option<ChartFinding> {
        let view = port.map(|port| Arc::new(owned_by(port)));
        let reason = reason.into();
        Some(ChartFinding::Doubted { view, reason })
    }

    #[test]
    fn a_node_that_was_cut_off_leads_nobody_back() {
        let (mut chart, now) = (Chart::default(), Instant::now());
        assert_eq!(chart.hear(vec![well(7, 70)], now), changed(70));
        assert_eq!(chart.hear(vec![well(8, 71)], now), changed(71));
        let old = || vec![well(7, 70)];
        assert!(!chart.suffices(&old(), now));
        assert_eq!(chart.hear(old(), now + S), doubted(None, CUT_OFF));
        let both = vec![well(7, 70), well(8, 71), down(9, 70)];
        assert_eq!(chart.hear(both, now + S), CONFIRMED);
        // However long nobody was asked.
        let again = now + 3600 * S;
        assert_eq!(chart.hear(old(), again), doubted(None, CUT_OFF));
        let unconfirmed = again + FORGOTTEN;
        assert_eq!(chart.hear(old(), unconfirmed - S), doubted(None, CUT_OFF));
        assert_eq!(chart.hear(old(), unconfirmed), changed(70), "set up anew");
        assert_eq!(chart.epoch(), Some(7));
    }

    #[test]
    fn at_the_same_epoch_the_later_answer_holds() {
        let (mut chart, now) = (Chart::default(), Instant::now());
        chart.hear(vec![well(7, 70)], now);
        assert_eq!(chart.hear(vec![well(7, 71)], now), changed(71));
        assert_eq!(chart.hear(vec![well(7, 71)], now), CONFIRMED);
        let silent = ClusterAnswer {
            epoch: None,
            ..well(0, 72)
        };
        assert_eq!(chart.hear(vec![silent], now), changed(72), "it tells none");
        assert_eq!(chart.epoch(), Some(7), "what is known stays known");
    }

    #[test]
    fn who_takes_the_cluster_for_down_is_heard_only_where_nobody_else_ever_was() {
        let (mut chart, now) = (Chart::default(), Instant::now());
        assert_eq!(chart.hear(vec![down(90, 70)], now), doubted(Some(70), DOWN));
        assert_eq!(chart.hear(vec![down(91, 71)], now), doubted(Some(71), DOWN));
        assert_eq!(chart.hear(vec![down(91, 71)], now), doubted(None, DOWN));
        assert_eq!(chart.hear(vec![well(7, 72)], now), changed(72), "any epoch");
        let later = now + 2 * FORGOTTEN;
        assert_eq!(chart.hear(vec![down(91, 71)], later), doubted(None, DOWN));
        assert_eq!(chart.view(), Some(&Arc::new(owned_by(72))));
    }

    #[test]
    fn what_most_primaries_say_holds_though_one_of_them_is_gone() {
        let (mut chart, now) = (Chart::default(), Instant::now());
        let at = |second| Some(ChartFinding::Changed(Arc::new(thirds_at([70, second, 72]))));
        let whole = [70, 71, 72].map(|by| ClusterAnswer {
            is_well: true,
            ..bereft(by, 3, 71)
        });
        assert_eq!(chart.hear(whole.to_vec(), now), at(71));
        let rest = vec![bereft(71, 3, 71), bereft(72, 3, 71)];
        assert!(chart.suffices(&rest, now));
        assert_eq!(chart.hear(rest, now), CONFIRMED);
        // Another fails over meanwhile.
        let rest = vec![bereft(73, 4, 73), bereft(72, 4, 73)];
        assert!(chart.suffices(&rest, now));
        assert_eq!(chart.hear(rest, now), at(73));
        assert_eq!(chart.epoch(), Some(4));

        let suspects = ClusterAnswer {
            is_bereft: false,
            ..bereft(72, 5, 74)
        };
        for few in [
            vec![bereft(74, 5, 74)],
            vec![bereft(74, 5, 74), bereft(74, 5, 74)],
            vec![bereft(74, 5, 74), suspects],
            vec![bereft(74, 5, 74), bereft(72, 6, 74)],
            vec![bereft(74, 5, 74), bereft(72, 5, 73)],
            vec![bereft(74, 5, 74), bereft(75, 5, 74), bereft(76, 5, 74)],
            vec![down(5, 74), down(5, 75)],
        ] {
            assert!(!chart.suffices(&few, now), "{few:?}");
            assert_eq!(chart.hear(few, now), doubted(None, DOWN));
        }
        let old = vec![bereft(71, 3, 71), bereft(72, 3, 71)];
        assert_eq!(chart.hear(old, now), doubted(None, CUT_OFF));
        let one_is_behind = ClusterAnswer {
            is_well: true,
            ..bereft(70, 4, 73)
        };
        let newer = vec![one_is_behind, bereft(74, 5, 74), bereft(72, 5, 74)];
        assert_eq!(chart.hear(newer, now), at(74), "the newest");
    }

    proptest! {
        /// T16: whoever suspects anybody, or is no primary of its own view, has no voice.
        #[test]
        fn a_minority_leads_nobody(answers in proptest::collection::vec((70u16..76, 0u64..9, 71u16..75, any::<bool>()), 1..6)) {
            let (mut chart, now) = (Chart::default(), Instant::now());
            let well = ClusterAnswer { is_well: true, ..bereft(70, 4, 71) };
            chart.hear(vec![well], now);
            let answers = answers.into_iter().map(|(by, epoch, second, is_bereft)| ClusterAnswer { is_bereft, ..bereft(by, epoch, second) });
            let answers: Vec<_> = answers.collect();
            let votes = |epoch: u64, view: &View| {
                let agree = answers.iter().filter(|one| one.is_bereft && one.epoch == Some(epoch) && one.view == *view);
                let by = agree.map(|one| &one.by).filter(|by| view.primaries().any(|(primary, _)| primary == *by));
                by.collect::<std::collections::BTreeSet<_>>().len()
            };
            let most = answers.iter().filter(|one| votes(one.epoch.unwrap(), &one.view) >= 2).filter_map(|one| one.epoch);
            let newest = most.filter(|epoch| *epoch >= 4).max();
            prop_assert_eq!(chart.suffices(&answers, now), newest.is_some());
            let before = chart.view().cloned().unwrap();
            chart.hear(answers.clone(), now);
            let after = chart.view().cloned().unwrap();
            match newest {
                Some(newest) => prop_assert!(chart.epoch() == Some(newest) && votes(newest, &after) >= 2),
                None => prop_assert!(chart.epoch() == Some(4) && before == after),
            }
        }

        #[test]
        fn nobody_is_led_back(rounds in proptest::collection::vec(
            (proptest::collection::vec((0u64..5, 70u16..73, any::<bool>()), 1..4), 0u32..6), 1..60,
        )) {
            let (mut chart, mut now) = (Chart::default(), Instant::now());
            let mut outdated: Option<Instant> = None;
            for (answers, seconds) in rounds {
                now += S * seconds;
                let (before, held) = (chart.epoch(), chart.view().cloned());
                let answers: Vec<_> = answers.iter().map(|(epoch, port, is_well)| answer(*epoch, *port, *is_well)).collect();
                let newest = answers.iter().filter(|answer| answer.is_well).filter_map(|answer| answer.epoch).max();
                let is_sound = newest.is_some_and(|newest| before.is_none_or(|before| newest >= before));
                let is_anew = newest.is_some() && outdated.is_some_and(|since| now - since >= FORGOTTEN);
                let finding = chart.hear(answers.clone(), now);
                let is_doubted = matches!(finding, Some(ChartFinding::Doubted { .. }));
                prop_assert_eq!(is_doubted, !(is_sound || is_anew));
                if is_sound || is_anew {
                    prop_assert_eq!(chart.epoch(), newest);
                    outdated = None;
                } else {
                    prop_assert_eq!(chart.epoch(), before);
                    if newest.is_some() {
                        outdated.get_or_insert(now);
                    }
                    if before.is_some() {
                        prop_assert_eq!(chart.view().cloned(), held);
                    }
                }
                prop_assert!(chart.view().is_some() || newest.is_some());
            }
        }
    }
}
