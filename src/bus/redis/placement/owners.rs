//! Of several independent Redises a partition belongs to the one that is highest in an order of its own (rendezvous hashing, Thaler and
//! Ravishankar 1998): it depends on their names only, not on the order in which they are listed, and with one more of them only
//! what moves there moves.

use sha1::{Digest, Sha1};

use crate::model::partition::Partition;

/// To which of these names each partition belongs.
pub(super) fn owners(names: &[&str]) -> [usize; Partition::COUNT] {
    let weight =
        |partition: Partition, name: &str| Sha1::digest(format!("{} {name}", partition.index()));
    let owner = |partition| {
        let named = names.iter().enumerate();
        let highest = named.max_by_key(|(_, name)| weight(partition, name));
        highest.map_or(0, |(at, _)| at)
    };
    let mut owners = [0; Partition::COUNT];
    for partition in Partition::all() {
        owners[partition.index()] = owner(partition);
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = ["a:6379", "b:6379", "c:6379", "d:6379"];

    fn named(names: &[&str]) -> Vec<String> {
        owners(names).map(|owner| names[owner].to_owned()).to_vec()
    }

    #[test]
    fn the_order_of_the_list_means_nothing() {
        let mut reversed = NAMES;
        reversed.reverse();
        assert_eq!(named(&NAMES), named(&reversed));
    }

    #[test]
    fn with_one_more_only_what_moves_there_moves() {
        let (before, after) = (named(&NAMES[..3]), named(&NAMES));
        let moved: Vec<_> = before.iter().zip(&after).filter(|(b, a)| b != a).collect();
        assert!(moved.iter().all(|(_, after)| *after == NAMES[3]));
        assert!((32..=96).contains(&moved.len()), "{}", moved.len());
        for name in &NAMES[..3] {
            let share = before.iter().filter(|owner| owner == name).count();
            assert!((57..=114).contains(&share), "{name}: {share} of 256");
        }
    }

    /// What other languages compute: `python3 -c 'import hashlib; print(max(names, key=lambda n:
    /// hashlib.sha1(f"{p} {n}".encode()).digest()))'`.
    #[test]
    fn others_can_compute_it() {
        let owners = named(&NAMES);
        assert_eq!([&owners[0], &owners[1], &owners[255]], EXPECTED);
    }

    const EXPECTED: [&str; 3] = ["c:6379", "c:6379", "d:6379"];
}
