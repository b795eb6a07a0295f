//! How a node does, for those who look at a dashboard.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::roster::NodeInfo;

/// What it says of itself when it is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Vitals {
    pub(crate) node: NodeInfo,
    /// How long it has run, by the clock that rates are of: nobody sets it.
    pub(crate) up_millis: u64,
    /// Its health as JSON: a later version may know states that this one does not.
    pub(crate) health: Value,
    /// Its numbers, but for those that are 0.
    pub(crate) numbers: BTreeMap<String, u64>,
    /// What it has measured since it said so before, where it measures.
    #[serde(default)]
    pub(crate) times: BTreeMap<String, Quantiles>,
}

/// Of a histogram: how many values, which half of them do not exceed, and which all but a hundredth.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Quantiles {
    pub(crate) count: u64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

#[cfg(any(feature = "metrics", test))]
impl Quantiles {
    /// Of so many values each, in rising order; `None` of nothing.
    pub(crate) fn of(values: &[(f64, u64)]) -> Option<Self> {
        let count = values.iter().map(|(_, count)| count).sum();
        let at = |rank: u64| {
            let mut passed = 0;
            let found = values.iter().find(|(_, count)| {
                passed += count;
                rank <= passed
            });
            found.map(|(value, _)| *value)
        };
        Some(Self {
            count,
            p50: at(count.div_ceil(2))?,
            p99: at(count - count / 100)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_came() {
        let of = |values: &[(f64, u64)]| Quantiles::of(values).map(|q| (q.count, q.p50, q.p99));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[(7.0, 1)]), Some((1, 7.0, 7.0)));
        assert_eq!(of(&[(1.0, 1), (2.0, 1)]), Some((2, 1.0, 2.0)));
        assert_eq!(of(&[(1.0, 50), (2.0, 49), (9.0, 1)]), Some((100, 1.0, 2.0)));
        assert_eq!(of(&[(1.0, 49), (2.0, 49), (9.0, 2)]), Some((100, 2.0, 9.0)));
    }
}
