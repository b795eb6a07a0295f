//! What Redis keeps: a list for each topic, and a clock that numbers. Scripts do it, each in one step.

pub(super) mod acknowledged;
pub(super) mod append;
pub(super) mod batch;
pub(super) mod keeper;
pub(super) mod lately;
pub(super) mod read;
pub(super) mod refresh;
pub(super) mod room;
pub(super) mod spool;
#[cfg(test)]
mod world;

use std::sync::{Arc, LazyLock};

use sha1::{Digest, Sha1};
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::bus::wire::{FORMER, Formerly, MOST_FORMER};
use crate::model::history::mark::{Mark, Number};

/// Keeps and publishes.
pub(super) static APPEND: LazyLock<NamedScript> =
    LazyLock::new(|| NamedScript::new(include_str!("append.lua")));
/// Keeps again what may be there already.
pub(super) static AGAIN: LazyLock<NamedScript> =
    LazyLock::new(|| NamedScript::new(include_str!("again.lua")));
/// Tells what came since a position.
pub(super) static READ: LazyLock<NamedScript> =
    LazyLock::new(|| NamedScript::new(include_str!("read.lua")));
/// Tells what positions are signed with.
pub(super) static KEY: LazyLock<NamedScript> =
    LazyLock::new(|| NamedScript::new(include_str!("key.lua")));

/// A script, and the digest by which Redis knows it.
#[derive(Debug)]
pub(super) struct NamedScript {
    pub(super) text: &'static str,
    pub(super) digest: String,
}

impl NamedScript {
    fn new(text: &'static str) -> Self {
        let digest = Sha1::digest(text);
        let digest = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { text, digest }
    }
}

/// How a publication is kept.
#[derive(Debug, Clone)]
pub(super) struct Keeping {
    /// The key of the clock.
    pub(super) clock: Arc<str>,
    /// Of each channel.
    pub(super) lists: SmallVec<[Option<KeptList>; 1]>,
    /// Under one number.
    pub(super) is_union: bool,
    /// It waits for Redis, if that is away.
    pub(super) spools: bool,
    pub(super) doubt: Option<Box<Doubt>>,
}

/// Whether something that is to be kept may be there already.
#[derive(Debug, Clone, Default)]
pub(in crate::bus::redis) struct Doubt {
    /// It would have a higher number than this.
    pub(in crate::bus::redis) since: Option<Mark>,
    /// Where it was, and was lost.
    pub(in crate::bus::redis) formerly: Formerly,
    /// It is there, or was: it comes from another publisher, which had it lately.
    pub(in crate::bus::redis) taken: Option<(Mark, Instant)>,
}

/// Where something is kept, and how much.
#[derive(Debug, Clone)]
pub(super) struct KeptList {
    pub(super) key: String,
    pub(super) messages: usize,
    /// How long the list lives, in milliseconds.
    pub(super) lifetime: u64,
}

/// What was published, without the number that it has if it is kept. Where it was kept before still stands there.
pub(super) fn unnumbered(payload: &[u8]) -> (Option<Number>, &[u8]) {
    let rest = match payload {
        [2..=5, rest @ ..] => rest,
        _ => return (None, payload),
    };
    let numbered = rest.split_at_checked(Number::DIGITS);
    let read = numbered.and_then(|(digits, rest)| Some((Number::read(digits)?, rest)));
    match read {
        Some((number, envelope)) => (Some(number), envelope),
        None => (None, payload),
    }
}

/// How much longer than its envelope what is kept may be.
pub(super) const PREFIX: usize = 1 + Number::DIGITS + MOST_FORMER * FORMER;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::wire;

    #[test]
    fn what_is_kept_begins_with_its_number() {
        let numbered = |payload| unnumbered(payload);
        assert_eq!(
            numbered(b"\x020000000000000007hi"),
            (Some(Number(7)), &b"hi"[..])
        );
        assert_eq!(
            numbered(b"\x030000000000000007"),
            (Some(Number(7)), &b""[..])
        );
        let again = b"\x040000000000000008abcdefabcdef0000000000000007{}";
        let (number, rest) = numbered(again);
        assert_eq!(number, Some(Number(8)));
        assert_eq!(wire::formerly(rest).unwrap().1, b"{}");
        for plain in [&b""[..], b"\x01hi", b"{}", b"\x02000000000000007", b"\x02x"] {
            assert_eq!(numbered(plain), (None, plain));
        }
    }
}
