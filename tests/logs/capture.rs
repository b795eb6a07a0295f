//! Everything the process logs at TRACE, and the search for secrets in it.

use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::subscriber::DefaultGuard;

/// Every secret of the test begins with it.
pub const MARK: &str = "s3cret";

/// Where the process logs to.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

static ALONE: Mutex<()> = Mutex::new(());

/// Dropped in this order.
pub struct Listening {
    _listener: DefaultGuard,
    _alone: Alone,
}

/// No other test listens while this is held.
pub struct Alone(#[expect(dead_code, reason = "it is held")] MutexGuard<'static, ()>);

impl Alone {
    pub fn wait() -> Self {
        Self(ALONE.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Log {
    /// Takes all logs of this process from now on, while no other test listens.
    pub fn capture() -> (Self, Alone) {
        let alone = Alone::wait();
        let log = Self::default();
        let writer = log.clone();
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .init();
        (log, alone)
    }

    /// Takes the logs of this thread, while the guard lives. One test at a time: what `tracing` remembers of who
    /// listens is shared, and may be wrong for a moment when listeners come and go.
    pub fn capture_here() -> (Self, Listening) {
        let alone = Alone::wait();
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let listener = tracing::subscriber::set_default(subscriber);
        let listening = Listening {
            _listener: listener,
            _alone: alone,
        };
        (log, listening)
    }

    /// Whether these words were logged by now.
    pub fn has(&self, words: &str) -> bool {
        String::from_utf8_lossy(&self.0.lock().unwrap()).contains(words)
    }

    pub fn take(&self) -> String {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        String::from_utf8(bytes).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Logs a public value as an app might.
pub fn show(what: &str, value: &impl Debug) {
    tracing::info!(target: "shown", what, "{value:?} {value:#?}");
}

/// Where a secret is given away, with what stands around it: plain, or as the numbers of its bytes.
pub fn leaks(log: &str) -> Vec<&str> {
    let numbers = |form: fn(&u8) -> String, between| {
        let numbers: Vec<String> = MARK.as_bytes().iter().map(form).collect();
        numbers.join(between)
    };
    let forms = [
        MARK.to_owned(),
        numbers(u8::to_string, ", "),
        numbers(|byte| format!("{byte:02x}"), ""),
    ];
    let found = forms.iter().flat_map(|form| log.match_indices(form));
    let around = found.map(|(at, _)| {
        let (from, to) = (at.saturating_sub(120), log.len().min(at + 40));
        let boundary = |near| (0..=near).rev().find(|at| log.is_char_boundary(*at));
        &log[boundary(from).unwrap_or(0)..boundary(to).unwrap_or(0)]
    });
    around.collect()
}
