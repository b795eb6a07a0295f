//! How messages to clients are compressed.

/// How messages to clients are compressed, by [`ClusterBuilder::compression`](crate::ClusterBuilder::compression).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use axum_cluster::{Cluster, Compression};
///
/// let cluster = Cluster::builder()
///     .compression(Compression::default().level(1).min_size(512))
///     .start();
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use = "it does nothing until `ClusterBuilder::compression` has it"]
pub struct Compression {
    level: u8,
    min_size: usize,
}

impl Compression {
    /// How hard it is tried, 1 (fast) to 9 (small). Default: 6, as with most programs. It is done once for each message,
    /// however many get it.
    pub fn level(mut self, level: u8) -> Self {
        self.level = level;
        self
    }

    /// Messages of fewer bytes go as they are. Default: 256, since less than that hardly gets smaller, and the headers of IP
    /// and TCP are most of what travels.
    pub fn min_size(mut self, bytes: usize) -> Self {
        self.min_size = bytes;
        self
    }

    pub(crate) fn tries(&self) -> u8 {
        self.level
    }

    /// Whether a message of so many bytes is worth it.
    pub(crate) fn is_for(&self, bytes: usize) -> bool {
        (self.min_size..=LARGEST).contains(&bytes)
    }

    /// What makes no sense, if anything.
    pub(crate) fn problem(&self) -> Option<String> {
        let level = self.level;
        (!(1..=9).contains(&level))
            .then(|| format!("compression has the level {level}: it must be 1 to 9"))
    }
}

impl Default for Compression {
    fn default() -> Self {
        Self {
            level: 6,
            min_size: 256,
        }
    }
}

/// Larger ones go as they are: compressing them would keep a thread from all else for tens of milliseconds.
const LARGEST: usize = 1024 * 1024;
