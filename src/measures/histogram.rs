//! How often which value came, in buckets that are exact for small values and an eighth wide for others: a record costs
//! one addition, whatever becomes of it later.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Below it every value has a bucket of its own.
const EXACT: u64 = 16;
/// Buckets between a value and its double.
const PARTS: usize = 8;
/// From here on all are one: 19 hours in microseconds.
const LARGEST: u64 = 1 << 36;
const BUCKETS: usize = index(LARGEST) + 1;

#[derive(Debug)]
pub(crate) struct Histogram([AtomicU64; BUCKETS]);

impl Default for Histogram {
    fn default() -> Self {
        Self(array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Histogram {
    pub(crate) fn record(&self, value: u64) {
        self.0[index(value)].fetch_add(1, Relaxed);
    }

    /// Empties it: hands over the middle of each bucket, and how many were in it.
    pub(crate) fn take(&self, mut each: impl FnMut(f64, u64)) {
        for (index, bucket) in self.0.iter().enumerate() {
            if bucket.load(Relaxed) > 0 {
                each(middle(index), bucket.swap(0, Relaxed));
            }
        }
    }
}

/// The bucket of a value.
const fn index(value: u64) -> usize {
    if value < EXACT {
        return value as usize;
    }
    let value = if value < LARGEST { value } else { LARGEST };
    let doublings = value.ilog2() - EXACT.ilog2();
    let part = (value >> (doublings + 1)) as usize % PARTS;
    EXACT as usize + doublings as usize * PARTS + part
}

fn middle(index: usize) -> f64 {
    let Some(above) = index.checked_sub(EXACT as usize) else {
        return index as f64;
    };
    let width = 2u64 << (above / PARTS);
    let lowest = (PARTS + above % PARTS) as u64 * width;
    lowest as f64 + (width - 1) as f64 / 2.0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_values_are_exact_and_all_come_out() {
        let histogram = Histogram::default();
        for value in 0..EXACT {
            histogram.record(value);
        }
        for value in [LARGEST, LARGEST + 1, u64::MAX] {
            histogram.record(value);
        }
        let mut taken = Vec::new();
        histogram.take(|value, count| taken.push((value, count)));
        let small = (0..EXACT).map(|value| (value as f64, 1));
        assert!(taken.iter().copied().take(EXACT as usize).eq(small));
        assert_eq!(taken.len(), EXACT as usize + 1);
        assert_eq!(taken[EXACT as usize].1, 3);
        histogram.take(|_, _| panic!("it is empty"));
    }

    proptest! {
        #[test]
        fn a_value_is_told_to_a_sixteenth(value in 0..LARGEST) {
            let told = middle(index(value));
            prop_assert!((told - value as f64).abs() <= value as f64 / 16.0, "{value} as {told}");
        }

        #[test]
        fn a_larger_value_is_in_no_lower_bucket(value: u64, more: u64) {
            prop_assert!(index(value) <= index(value.saturating_add(more)));
            prop_assert!(index(value) < BUCKETS);
        }
    }
}
