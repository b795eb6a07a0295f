//! How long lists live: each sender says it once in an eighth of what is kept, so that a list lives as long as is kept after
//! every message.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem::take;
use std::time::Duration;

use tokio::time::Instant;

/// The lists of which it was said lately. Each for between one and two sixteenths of what is kept, since there are two sets, of
/// which the older goes.
#[derive(Debug, Default)]
pub(in crate::bus::redis) struct Refreshes {
    of_lifetimes: Vec<Generations>,
}

#[derive(Debug)]
struct Generations {
    /// In milliseconds.
    lifetime: u64,
    since: Instant,
    /// Of keys, hashed.
    lately: HashSet<u64>,
    before: HashSet<u64>,
}

/// Most lists of a set; beyond it, it is said more often.
const MOST: usize = 1_000_000;

impl Refreshes {
    /// Whether it has to be said of this list, which is then done.
    pub(in crate::bus::redis) fn is_due(&mut self, key: &str, lifetime: u64, now: Instant) -> bool {
        let known = self.of_lifetimes.iter_mut();
        let known = known.into_iter().position(|it| it.lifetime == lifetime);
        let at = known.unwrap_or_else(|| {
            self.of_lifetimes.push(Generations {
                lifetime,
                since: now,
                lately: HashSet::new(),
                before: HashSet::new(),
            });
            self.of_lifetimes.len() - 1
        });
        self.of_lifetimes[at].is_due(key, now)
    }

    /// Redis may not have heard it.
    pub(in crate::bus::redis) fn forget(&mut self) {
        self.of_lifetimes.clear();
    }
}

impl Generations {
    fn is_due(&mut self, key: &str, now: Instant) -> bool {
        // A list lives nine eighths of what is kept.
        let span = Duration::from_millis(self.lifetime / 18);
        let passed = now.saturating_duration_since(self.since);
        if passed >= span || self.lately.len() >= MOST {
            self.before = take(&mut self.lately);
            if passed >= 2 * span {
                self.before.clear();
            }
            // Not from now on, or the second sixteenth would be as much longer.
            let over = match passed >= span {
                true => passed.as_millis() % span.as_millis().max(1),
                false => 0,
            };
            self.since = now - Duration::from_millis(over as u64);
        }
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let key = hasher.finish();
        if self.lately.contains(&key) || self.before.contains(&key) {
            return false;
        }
        self.lately.insert(key);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_list_lives_long_enough_after_every_message(
            gaps in proptest::collection::vec((0u64..3000, 0usize..3), 1..200),
        ) {
            let (keep, begun) = (8000, Instant::now());
            let (mut refreshes, mut now) = (Refreshes::default(), begun);
            let mut ends = [begun; 3];
            let mut said = 0;
            for (millis, list) in gaps {
                now += Duration::from_millis(millis);
                // One that is over begins anew.
                let is_new = ends[list] <= now;
                if refreshes.is_due(&list.to_string(), keep * 9 / 8, now) || is_new {
                    ends[list] = now + Duration::from_millis(keep * 9 / 8);
                    said += 1;
                }
                prop_assert!(ends[list] >= now + Duration::from_millis(keep));
            }
            let most = (now - begun).as_millis() as usize / (keep as usize / 16) + 1;
            prop_assert!(said <= 3 * most, "{said}");
        }
    }
}
