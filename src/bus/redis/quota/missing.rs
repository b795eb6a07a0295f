//! Nodes whose seats Redis has lost, and how long they are waited for.
//!
//! A claim cannot be decided without them, and a node that lives writes its seats anew as soon as it notices. One that
//! has not in its time is dead, or sees another Redis: then claims are decided without it, and that is said.
//!
//! ```text
//!             Redis names it            not again in its time
//!  nobody's --------------> waited for ----------------------> given up
//!      ^                        |                                  |
//!      +------------------------+----------------------------------+  Redis names it no more
//! ```

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// A node is told with the end of its lease: one that lives moves it, and is waited for anew.
#[derive(Debug)]
pub(super) struct Missing {
    since: HashMap<String, Instant>,
    patience: Duration,
}

impl Missing {
    pub(super) fn new(patience: Duration) -> Self {
        let since = HashMap::new();
        Self { since, patience }
    }

    /// Redis tells who is missing.
    pub(super) fn told(&mut self, nodes: Vec<String>, now: Instant) {
        let mut before = std::mem::take(&mut self.since);
        let since = |node| {
            let since = before.remove(&node).unwrap_or(now);
            (node, since)
        };
        self.since = nodes.into_iter().map(since).collect();
    }

    /// The nodes that had their time: dead, or cut off from Redis.
    pub(super) fn given_up(&self, now: Instant) -> String {
        let waited = |since: Instant| now.saturating_duration_since(since);
        let given_up = self
            .since
            .iter()
            .filter(|(_, since)| waited(**since) >= self.patience);
        given_up.map(|(node, _)| format!("{node},")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_neither_comes_nor_moves_is_given_up() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut missing = Missing::new(second);
        let told = |nodes: &[&str]| nodes.iter().map(ToString::to_string).collect();
        missing.told(told(&["a=1", "b=1"]), start);
        assert_eq!(missing.given_up(start + second / 2), "");
        missing.told(told(&["a=1", "b=2"]), start + second / 2);
        assert_eq!(missing.given_up(start + second), "a=1,");
        missing.told(told(&["a=1", "b=2"]), start + second);
        let both = missing.given_up(start + second * 2);
        assert!(both == "a=1,b=2," || both == "b=2,a=1,", "{both}");
        missing.told(told(&["b=2"]), start + second * 2);
        missing.told(told(&["a=1", "b=2"]), start + second * 2);
        assert_eq!(missing.given_up(start + second * 2), "b=2,", "it was back");
        missing.told(Vec::new(), start + second * 3);
        assert_eq!(missing.given_up(start + second * 9), "");
    }
}
