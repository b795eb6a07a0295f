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

type Counts = [AtomicU64; BUCKETS];

/// Grows for ever; each who is told keeps what it was told of.
#[derive(Debug)]
pub(crate) struct Histogram {
    counts: Counts,
    told: [Counts; 2],
}

/// Who is told of what came since it was told before.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SampleReader {
    /// Of the feature `metrics`.
    Recorder,
    /// Who looks at a dashboard.
    Onlooker,
}

impl Default for Histogram {
    fn default() -> Self {
        let counts = || array::from_fn(|_| AtomicU64::new(0));
        Self {
            counts: counts(),
            told: [counts(), counts()],
        }
    }
}

impl Histogram {
    pub(crate) fn record(&self, value: u64) {
        self.counts[index(value)].fetch_add(1, Relaxed);
    }

    /// Hands over the middle of each bucket in rising order, and how many more are in it than this one was told of. Every
    /// value is told once, however many ask at the same time.
    pub(crate) fn tell(&self, whom: SampleReader, mut each: impl FnMut(f64, u64)) {
        let told = &self.told[whom as usize];
        for (index, (count, told)) in self.counts.iter().zip(told).enumerate() {
            let count = count.load(Relaxed);
            let before = match count {
                0 => continue,
                count => told.fetch_max(count, Relaxed),
            };
            if before < count {
                each(middle(index), count - before);
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
        histogram.tell(SampleReader::Recorder, |value, count| {
            taken.push((value, count))
        });
        let small = (0..EXACT).map(|value| (value as f64, 1));
        assert!(taken.iter().copied().take(EXACT as usize).eq(small));
        assert_eq!(taken.len(), EXACT as usize + 1);
        assert_eq!(taken[EXACT as usize].1, 3);
        histogram.tell(SampleReader::Recorder, |_, _| panic!("it was told of all"));
    }

    #[test]
    fn each_is_told_what_came_since_it_was_told_before() {
        let histogram = Histogram::default();
        let told = |whom| {
            let mut told = Vec::new();
            histogram.tell(whom, |value, count| told.push((value, count)));
            told
        };
        histogram.record(3);
        assert_eq!(told(SampleReader::Recorder), [(3.0, 1)]);
        histogram.record(3);
        assert_eq!(told(SampleReader::Onlooker), [(3.0, 2)]);
        assert_eq!(told(SampleReader::Onlooker), []);
        assert_eq!(told(SampleReader::Recorder), [(3.0, 1)]);
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
