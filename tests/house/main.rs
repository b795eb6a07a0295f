//! The house as CONTRIBUTING draws it: rooms import downwards, and files in no circle. Prints every `use`
//! that does otherwise.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod imports;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use imports::{Import, Module, read};

/// The rooms, each of which may use those before it. What is not named here stands at the root and is the face.
const ROOMS: [&[&str]; 11] = [
    &["waker", "tasks"],
    &["model"],
    &["counts"],
    &["ws"],
    &["quota"],
    &["bus"],
    &["home"],
    &["presence"],
    &["local"],
    &["peers"],
    &["config", "node"],
];

fn storey(module: &str) -> usize {
    let room = module.split("::").next().unwrap_or_default();
    let found = ROOMS.iter().position(|rooms| rooms.contains(&room));
    found.unwrap_or(ROOMS.len())
}

fn house() -> Vec<Module> {
    let modules = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(modules.len() > 50, "control: the source is found");
    modules
}

fn tell(offences: &[&Import]) {
    let lines: Vec<String> = offences.iter().map(|import| import.to_string()).collect();
    assert!(lines.is_empty(), "\n{}\n", lines.join("\n"));
}

#[test]
fn imports_go_down() {
    let house = house();
    let imports = house.iter().flat_map(|module| &module.imports);
    let up: Vec<&Import> = imports
        .filter(|import| storey(&import.to) > storey(&import.from))
        .collect();
    tell(&up);
}

/// A module and its own children may use one another.
#[test]
fn no_files_import_one_another_in_a_circle() {
    let house = house();
    let imports = house.iter().flat_map(|module| &module.imports);
    let strangers: Vec<&Import> = imports.filter(|import| !import.is_family()).collect();
    let mut arrows: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for import in &strangers {
        arrows.entry(&import.from).or_default().insert(&import.to);
    }
    let in_circle = strangers
        .iter()
        .copied()
        .filter(|import| reaches(&arrows, &import.to, &import.from));
    tell(&in_circle.collect::<Vec<_>>());
}

fn reaches(arrows: &BTreeMap<&str, BTreeSet<&str>>, from: &str, to: &str) -> bool {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(module) = next.pop() {
        if module == to {
            return true;
        }
        if seen.insert(module) {
            next.extend(arrows.get(module).into_iter().flatten());
        }
    }
    false
}
