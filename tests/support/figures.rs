//! What a fault cost, as one line for docs/faults.md: `tests/figures` collects them.

use std::time::{Duration, Instant};

/// Clocks and counts of one fault; printed with its end.
#[derive(Debug)]
pub struct Figures {
    row: &'static str,
    begun: Instant,
    noticed: Option<Duration>,
    /// When its cause was removed, if it did not vanish by itself.
    repaired: Option<Instant>,
    healed: Option<Instant>,
    /// Messages whose sender was told "sent" and that nobody heard, inside its gap …
    pub lost_inside: usize,
    /// … and outside, once that is known.
    pub lost_outside: Option<usize>,
}

impl Figures {
    /// The fault of this row happens now.
    pub fn of(row: &'static str) -> Self {
        Self {
            row,
            begun: Instant::now(),
            noticed: None,
            repaired: None,
            healed: None,
            lost_inside: 0,
            lost_outside: None,
        }
    }

    /// It is known.
    pub fn noticed(&mut self) {
        self.noticed = Some(self.begun.elapsed());
    }

    /// It was known to one more of all.
    pub fn noticed_at(&mut self, at: Instant) {
        self.noticed = self.noticed.max(Some(at - self.begun));
    }

    /// Its cause is removed: healing begins.
    pub fn repaired(&mut self) {
        self.repaired = Some(Instant::now());
    }

    /// It is over.
    pub fn healed(&mut self) {
        self.healed = Some(Instant::now());
    }
}

impl Drop for Figures {
    fn drop(&mut self) {
        let milliseconds = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1000.0);
        let cell = |figure: Option<String>| figure.unwrap_or("-".into());
        let healing_since = self.repaired.unwrap_or(self.begun);
        let healing = |healed: Instant| milliseconds(healed - healing_since);
        println!(
            "figures\t{}\t{}\t{}\t{}\t{}",
            self.row,
            cell(self.noticed.map(milliseconds)),
            cell(self.healed.map(healing)),
            cell(self.lost_outside.map(|_| self.lost_inside.to_string())),
            cell(self.lost_outside.map(|lost| lost.to_string())),
        );
    }
}
