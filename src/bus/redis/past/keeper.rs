//! Who keeps on a connection: the process that numbers, and what it says of the runs before it.

use std::collections::BTreeMap;

use super::super::resp::{Item, Items};
use crate::model::history::mark::{Number, Run};

/// What a server says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::bus::redis) struct Keeper {
    pub(in crate::bus::redis) run: Run,
    /// It may drop keys that nobody deleted.
    pub(in crate::bus::redis) may_evict: bool,
}

/// What is said of a server that tells no run.
pub(in crate::bus::redis) const NO_RUN: &str = "this Redis tells no run_id in INFO server, without which a failover cannot be told from \
     what was kept: switch the histories off, or use a server that tells it";
/// … and of one that may evict.
pub(in crate::bus::redis) const EVICTS: &str = "this Redis may evict what is kept (maxmemory is set, and maxmemory-policy is not noeviction): \
     those who come back are told that it is forgotten";

impl Keeper {
    /// From INFO server and INFO memory.
    pub(in crate::bus::redis) fn read(server: &str, memory: &str) -> Option<Self> {
        let run = Run::of(field(server, "run_id")?)?;
        let limit = field(memory, "maxmemory").is_some_and(|bytes| bytes != "0");
        let policy = field(memory, "maxmemory_policy");
        let may_evict = limit && policy.is_some_and(|policy| policy != "noeviction");
        Some(Self { run, may_evict })
    }
}

/// A line of INFO.
pub(in crate::bus::redis) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = info.lines().filter_map(|line| line.split_once(':'));
    lines
        .find(|(field, _)| *field == name)
        .map(|(_, value)| value.trim())
}

/// Where a run ended, by all fields of a clock: the last time that it numbered and that is over.
pub(in crate::bus::redis) fn end_of(run: Run, fields: Items<'_>) -> Option<Number> {
    let mut ends = BTreeMap::new();
    let (mut names, mut values) = (fields.clone().step_by(2), fields.skip(1).step_by(2));
    while let (Some(Item::Bulk(name)), Some(Item::Bulk(value))) = (names.next(), values.next()) {
        let began = std::str::from_utf8(name).ok();
        let began = began.and_then(|name| name.strip_prefix("end:")?.strip_prefix(run.as_str()));
        let began = began.and_then(|began| Number::read(began.strip_prefix(':')?.as_bytes()));
        if let (Some(began), Some(end)) = (began, Number::read(value)) {
            ends.insert(began, end);
        }
    }
    ends.pop_last().map(|(_, end)| end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_who_it_is_and_whether_it_evicts() {
        let server = "# Server\r\nredis_version:7.0.15\r\nrun_id:0123456789abcdef\r\n";
        let memory = |limit, policy| format!("maxmemory:{limit}\r\nmaxmemory_policy:{policy}\r\n");
        for (limit, policy, may_evict) in [
            (0, "noeviction", false),
            (0, "allkeys-lru", false),
            (100, "noeviction", false),
            (100, "volatile-lru", true),
        ] {
            let keeper = Keeper::read(server, &memory(limit, policy)).unwrap();
            assert_eq!(
                (keeper.run.as_str(), keeper.may_evict),
                ("0123456789ab", may_evict)
            );
        }
        assert_eq!(Keeper::read("# Server\r\n", ""), None);
    }
}
