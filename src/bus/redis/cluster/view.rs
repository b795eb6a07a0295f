//! How a cluster is divided, as one of its nodes sees it.

use std::collections::{BTreeMap, BTreeSet};

use redis::Value;

use crate::bus::redis::address::ServerAddress;
use crate::bus::redis::fields::{Fields, text};
use crate::model::partition::{Partition, PartitionSet};

/// What a node says when it is to tell a host name and knows none.
const UNKNOWN: &str = "?";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::bus::redis) struct View {
    primaries: BTreeMap<ServerAddress, PartitionSet>,
    unserved: PartitionSet,
    nodes: BTreeSet<ServerAddress>,
}

/// Whose words these are, and how nodes are called.
#[derive(Clone, Copy, Debug)]
pub(super) struct AskedHost<'a> {
    pub(super) host: &'a ServerAddress,
    /// Whether a node's certificate has to be for its name: then one that tells it is called by it.
    pub(super) by_name: bool,
}

impl View {
    /// Reads the answer to CLUSTER SLOTS. What of it makes no sense is left out.
    pub(super) fn read(slots: &Value, asked: AskedHost<'_>) -> Option<Self> {
        let Value::Array(ranges) = slots else {
            return None;
        };
        let mut view = Self {
            unserved: PartitionSet::all(),
            ..Self::default()
        };
        for range in ranges {
            view.add(range, asked);
        }
        Some(view)
    }

    /// First and last slot, the primary, its replicas.
    fn add(&mut self, range: &Value, asked: AskedHost<'_>) -> Option<()> {
        let Value::Array(range) = range else {
            return None;
        };
        let [first, last, nodes @ ..] = range.as_slice() else {
            return None;
        };
        let hosts = nodes.iter().map(|node| host(node, asked));
        let hosts: Vec<Option<ServerAddress>> = hosts.collect();
        self.nodes.extend(hosts.iter().flatten().cloned());
        let primary = hosts.into_iter().next()??;
        for partition in Partition::between(number(first)?, number(last)?) {
            if self.unserved.remove(partition) {
                let partitions = self.primaries.entry(primary.clone()).or_default();
                partitions.insert(partition);
            }
        }
        Some(())
    }

    /// With the last owner for what has none in this view: it may be there still, or tell who is the next.
    pub(super) fn after(mut self, last: &Self) -> Self {
        for (host, partitions) in &last.primaries {
            let kept = *partitions & self.unserved;
            if !kept.is_empty() {
                let partitions = self.primaries.entry(host.clone()).or_default();
                *partitions = *partitions | kept;
                self.nodes.insert(host.clone());
            }
        }
        if self.nodes.is_empty() {
            self.nodes.clone_from(&last.nodes);
        }
        self
    }

    /// Where to ask for a partition: its primary, or that which was it last.
    #[cfg(test)]
    pub(in crate::bus::redis) fn owner(&self, partition: Partition) -> Option<&ServerAddress> {
        let mut primaries = self.primaries.iter();
        let found = primaries.find(|(_, partitions)| partitions.contains(partition));
        found.map(|(host, _)| host)
    }

    pub(super) fn has_primary(&self, host: &ServerAddress) -> bool {
        self.primaries.contains_key(host)
    }

    /// All primaries that own something, and which partitions each owns.
    pub(in crate::bus::redis) fn primaries(
        &self,
    ) -> impl ExactSizeIterator<Item = (&ServerAddress, PartitionSet)> {
        self.primaries
            .iter()
            .map(|(host, partitions)| (host, *partitions))
    }

    /// What nobody serves, as this node sees it.
    pub(in crate::bus::redis) fn unserved(&self) -> PartitionSet {
        self.unserved
    }

    /// Whom to ask: primaries and replicas.
    pub(in crate::bus::redis) fn nodes(&self) -> impl ExactSizeIterator<Item = &ServerAddress> {
        self.nodes.iter()
    }
}

/// Where a node is reached. The place that it prefers comes first, then its port; its own, if it does not know it, is
/// where it was asked. Its other names follow in Redis 7.
fn host(node: &Value, asked: AskedHost<'_>) -> Option<ServerAddress> {
    let Value::Array(fields) = node else {
        return None;
    };
    let [preferred, port, rest @ ..] = fields.as_slice() else {
        return None;
    };
    let port = number(port).filter(|port| *port > 0)?;
    let metadata = rest.get(1).and_then(Fields::of);
    let hostname = metadata.and_then(|metadata| metadata.get("hostname"));
    let hostname = hostname.filter(|name| asked.by_name && is_name(name));
    let name = match (hostname, preferred) {
        (Some(hostname), _) => hostname,
        (None, Value::Nil) => &asked.host.name,
        (None, preferred) => match text(preferred)? {
            "" => &asked.host.name,
            name if is_name(name) => name,
            _ => return None,
        },
    };
    Some(ServerAddress::new(name, port))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text != UNKNOWN
}

fn number(value: &Value) -> Option<u16> {
    match value {
        Value::Int(number) => (*number).try_into().ok(),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bus::redis::fields::tests::{any_value, bulk};

    fn array(values: impl IntoIterator<Item = Value>) -> Value {
        Value::Array(values.into_iter().collect())
    }

    fn node(name: Value, port: i64, metadata: &[&str]) -> Value {
        let metadata = array(metadata.iter().map(|text| bulk(text)));
        array([name, Value::Int(port), bulk("07c3"), metadata])
    }

    fn at(port: i64) -> Value {
        node(bulk("10.0.0.1"), port, &[])
    }

    fn range(first: i64, last: i64, nodes: impl IntoIterator<Item = Value>) -> Value {
        let slots = [Value::Int(first), Value::Int(last)];
        array(slots.into_iter().chain(nodes))
    }

    fn read_by(by_name: bool, ranges: impl IntoIterator<Item = Value>) -> View {
        let host = &ServerAddress::new("seed", 1);
        View::read(&array(ranges), AskedHost { host, by_name }).unwrap()
    }

    fn read(ranges: impl IntoIterator<Item = Value>) -> View {
        read_by(false, ranges)
    }

    pub(in crate::bus::redis::cluster) fn host(port: u16) -> ServerAddress {
        ServerAddress::new("10.0.0.1", port)
    }

    /// Three primaries, each with a third of everything.
    pub(in crate::bus::redis::cluster) fn thirds_at(ports: [u16; 3]) -> View {
        let firsts = [0, 5461, 10_923, 16_384];
        let nth = |n: usize| range(firsts[n], firsts[n + 1] - 1, [at(ports[n].into())]);
        read([0, 1, 2].map(nth))
    }

    /// What a node says whose cluster has one primary, on this port.
    pub(in crate::bus::redis::cluster) fn slots_of(port: u16) -> Value {
        array([range(0, 16_383, [at(port.into())])])
    }

    pub(in crate::bus::redis::cluster) fn owned_by(port: u16) -> View {
        read([range(0, 16_383, [at(port.into())])])
    }

    fn thirds() -> View {
        read([
            range(0, 5460, [at(70), at(73)]),
            range(5461, 10_922, [at(71)]),
            range(10_923, 16_383, [at(72)]),
        ])
    }

    #[test]
    fn every_partition_is_where_its_slot_is() {
        let view = thirds();
        for partition in Partition::all() {
            let port = 70 + partition.slot() / 5461;
            assert_eq!(view.owner(partition), Some(&host(port)));
        }
        let shares = view.primaries().map(|(_, partitions)| partitions);
        let all = shares.reduce(|one, other| one | other);
        assert_eq!(all, Some(PartitionSet::all()));
        assert!(view.unserved().is_empty());
        assert!(view.nodes().eq(&[70, 71, 72, 73].map(host)), "replicas too");
    }

    #[test]
    fn single_slots_are_told_apart() {
        let alice = Partition::of("u:alice");
        let slot = i64::from(alice.slot());
        let view = read([
            range(0, slot - 1, [at(70)]),
            range(slot, slot, [at(71)]),
            range(slot + 1, 16_383, [at(70)]),
        ]);
        let shares: Vec<_> = view.primaries().map(|(_, share)| share.len()).collect();
        assert_eq!(shares, [255, 1]);
        assert_eq!(view.owner(alice), Some(&host(71)));
    }

    /// T19.
    #[test]
    fn a_node_is_called_as_it_prefers_or_as_its_certificate_does() {
        let names = &["ip", "10.0.0.1", "hostname", "n1.example"][..];
        let nameless = &["ip", "10.0.0.1", "hostname", ""][..];
        for (preferred, metadata, plain, by_name) in [
            (
                bulk("10.0.0.1"),
                &[][..],
                Some("10.0.0.1"),
                Some("10.0.0.1"),
            ),
            (
                bulk("10.0.0.1"),
                names,
                Some("10.0.0.1"),
                Some("n1.example"),
            ),
            (
                bulk("10.0.0.1"),
                nameless,
                Some("10.0.0.1"),
                Some("10.0.0.1"),
            ),
            (
                bulk("n1.example"),
                &["ip", "10.0.0.1"],
                Some("n1.example"),
                Some("n1.example"),
            ),
            (bulk("fe80::1"), &[], Some("fe80::1"), Some("fe80::1")),
            (bulk(""), &[], Some("seed"), Some("seed")),
            (Value::Nil, &[], Some("seed"), Some("seed")),
            (Value::Nil, names, Some("seed"), Some("n1.example")),
            (bulk("?"), &["ip", "10.0.0.1"], None, None),
            (bulk("?"), &["hostname", "?"], None, None),
        ] {
            for (is_by_name, expected) in [(false, plain), (true, by_name)] {
                let view = read_by(
                    is_by_name,
                    [range(0, 16_383, [node(preferred.clone(), 7, metadata)])],
                );
                let owner = view.owner(Partition::of("all"));
                let expected = expected.map(|name| ServerAddress::new(name, 7));
                assert_eq!(owner, expected.as_ref(), "{preferred:?} {metadata:?}");
                assert_eq!(view.unserved().is_empty(), expected.is_some());
            }
        }
        // Redis 6 and what emulates it.
        let bare = array([bulk("10.0.0.1"), Value::Int(7)]);
        assert_eq!(read([range(0, 16_383, [bare])]).nodes().len(), 1);
    }

    #[test]
    fn what_makes_no_sense_is_left_out() {
        let sound = || range(0, 16_383, [at(70)]);
        for garbled in [
            Value::Nil,
            array([]),
            range(0, 16_383, []),
            range(9, 3, [at(71)]),
            range(-5, 70_000, [at(71)]),
            range(0, 16_383, [at(0)]),
            range(0, 16_383, [at(65_536)]),
            range(0, 16_383, [array([bulk("x")])]),
            range(0, 16_383, [node(Value::Int(1), 71, &[])]),
        ] {
            let view = read([garbled.clone(), sound()]);
            assert_eq!(view.primaries().len(), 1, "{garbled:?}");
            assert_eq!(view.owner(Partition::of("all")), Some(&host(70)));
        }
        let host = &ServerAddress::new("seed", 1);
        let by_name = false;
        assert_eq!(View::read(&Value::Nil, AskedHost { host, by_name }), None);
    }

    #[test]
    fn a_view_that_lost_slots_is_never_taken_as_empty() {
        let last = thirds();
        let lost = read([range(0, 5460, [at(70)]), range(5461, 9999, [at(70)])]);
        assert!(!lost.unserved().is_empty(), "control");
        let view = lost.clone().after(&last);
        assert_eq!(view.unserved(), lost.unserved(), "it is known");
        for partition in Partition::all() {
            let kept = match lost.owner(partition) {
                Some(owner) => Some(owner),
                None => last.owner(partition),
            };
            assert_eq!(view.owner(partition), kept);
            assert!(view.nodes().any(|node| Some(node) == kept));
        }
        let nothing = read([]).after(&last);
        assert!(Partition::all().all(|p| nothing.owner(p) == last.owner(p)));
        assert_eq!(read([]).after(&read([])).nodes().len(), 0);
    }

    #[test]
    fn what_is_served_is_never_kept() {
        let moved = read([range(0, 16_383, [at(80)])]);
        assert_eq!(moved.clone().after(&thirds()), moved);
    }

    const TEXTS: &str = "(ip|hostname|\\?|10.0.0.1|\\PC{0,4})";

    proptest! {
        #[test]
        fn no_answer_breaks_anything(one in any_value(TEXTS), other in any_value(TEXTS), by_name: bool) {
            let host = &ServerAddress::new("seed", 1);
            let read = |value| View::read(value, AskedHost { host, by_name });
            let (Some(one), Some(other)) = (read(&one), read(&other)) else { return Ok(()) };
            let view = other.clone().after(&one);
            for partition in Partition::all() {
                let before = one.owner(partition);
                prop_assert_eq!(view.owner(partition), other.owner(partition).or(before));
            }
            let owned = view.primaries().map(|(_, share)| share.len()).sum::<usize>();
            let placed = Partition::all().filter(|p| view.owner(*p).is_some()).count();
            prop_assert_eq!(owned, placed);
        }

        #[test]
        fn ranges_are_read_whole(cuts in proptest::collection::btree_set(1i64..16_384, 0..40), port in 1i64..60_000) {
            let firsts = std::iter::once(0).chain(cuts.iter().copied());
            let lasts = cuts.iter().map(|cut| cut - 1).chain([16_383]);
            let ranges: Vec<_> = firsts.zip(lasts).enumerate().map(|(n, (first, last))| (port + n as i64, first, last)).collect();
            let view = read(ranges.iter().map(|(port, first, last)| range(*first, *last, [at(*port)])));
            for partition in Partition::all() {
                let slot = i64::from(partition.slot());
                let owner = ranges.iter().find(|(_, first, last)| (*first..=*last).contains(&slot)).unwrap();
                prop_assert_eq!(view.owner(partition), Some(&host(owner.0 as u16)));
            }
        }
    }
}
