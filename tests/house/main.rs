//! The house as CONTRIBUTING draws it: rooms import downwards, files in no circle, and rules act on nothing. Prints
//! every line that does otherwise.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod imports;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use imports::{Import, Module, read};

/// What no rule has: it neither waits, nor looks at a clock, nor locks, nor logs.
const ACTS: [&str; 10] = [
    "async ",
    "::now()",
    ".elapsed()",
    "tracing::",
    "spawn(",
    "Mutex",
    "RwLock",
    "tokio::sync",
    "Atomic",
    "std::env",
];

/// Who is to be answered: a rule hands it back with the answer.
const ALLOWED: &str = "tokio::sync::oneshot;";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The rows of the table under this heading, each as the names in its first column.
fn table(heading: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    let section = text.split(heading).nth(1).unwrap();
    let rows = section
        .lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1);
    let rows = rows.take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let names = row.split('|').nth(1).unwrap();
        names
            .split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect()
    })
    .collect()
}

/// How high a module's room is, the first row being the highest.
fn storey(rooms: &[Vec<String>], module: &str) -> usize {
    let room = module.split("::").next().unwrap_or_default();
    let below = rooms.iter().rev();
    let found = below
        .clone()
        .position(|row| row.iter().any(|name| name == room));
    match room {
        "" => rooms.len(),
        _ => found.unwrap_or_else(|| panic!("`{room}` is in no row of CONTRIBUTING's map")),
    }
}

fn house() -> Vec<Module> {
    let modules = read(&root().join("src"));
    assert!(modules.len() > 50, "control: the source is found");
    modules
}

fn tell(offences: &[String]) {
    assert!(offences.is_empty(), "\n{}\n", offences.join("\n"));
}

#[test]
fn imports_go_down() {
    let (house, rooms) = (house(), table("## The map"));
    let imports = house.iter().flat_map(|module| &module.imports);
    let up = imports.filter(|import| storey(&rooms, &import.to) > storey(&rooms, &import.from));
    tell(&up.map(Import::to_string).collect::<Vec<_>>());
}

/// What is a link to a file in the repository leads to a module in the documentation. Of two definitions the first holds.
#[test]
fn what_the_documents_link_to_is_there_in_rustdoc() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let (mut defined, mut offences, mut links) = (BTreeSet::new(), Vec::new(), 0);
    for line in lib.lines().map(str::trim) {
        if let Some(definition) = line.strip_prefix("#[doc = \"[") {
            defined.insert(definition.split("]: ").next().unwrap().to_owned());
        } else if let Some(path) = line.strip_prefix("#[doc = include_str!(\"../") {
            let path = path.split('"').next().unwrap();
            let text = fs::read_to_string(root().join(path)).unwrap();
            let is_markdown = path.ends_with(".md") && path != "README.md";
            for line in text.lines().filter(|_| is_markdown) {
                let definition = line.strip_prefix('[').and_then(|it| it.split_once("]: "));
                if let Some((name, place)) = definition
                    && !place.starts_with("http")
                {
                    links += 1;
                    if !defined.contains(name) {
                        offences.push(format!("{path}: [{name}] leads nowhere"));
                    }
                }
                let inline = line.split("](").skip(1);
                let relative = inline.filter(|it| !it.starts_with("http") && !it.starts_with('#'));
                offences.extend(relative.map(|it| format!("{path}: a link in the text, to {it}")));
            }
            defined.clear();
        }
    }
    assert!(links > 20, "control: {links}");
    tell(&offences);
}

#[test]
fn the_map_names_what_is_there() {
    for name in table("## The map").concat() {
        let exists = |suffix: &str| root().join(format!("src/{name}{suffix}")).exists();
        assert!(exists(".rs") || exists("/mod.rs"), "there is no `{name}`");
    }
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
        .filter(|import| reaches(&arrows, &import.to, &import.from));
    tell(&in_circle.map(ToString::to_string).collect::<Vec<_>>());
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

#[test]
fn rules_act_on_nothing() {
    let house = house();
    let mut offences = Vec::new();
    let rules = table("**Rules**").concat();
    assert!(rules.len() > 30, "control: the list is found");
    for rule in rules {
        let name = rule.replace('/', "::");
        let module = house.iter().find(|module| module.name == name);
        let module = module.unwrap_or_else(|| panic!("there is no `{rule}`"));
        for (number, line) in &module.code {
            let line = line.replace(ALLOWED, "");
            let act = ACTS.iter().find(|act| line.contains(**act));
            offences.extend(act.map(|act| format!("{rule}, line {number}: `{act}`")));
        }
    }
    tell(&offences);
}

/// Every row of the histories is there, and every test that is named.
#[test]
fn the_table_of_faults_names_what_is_there() {
    let faults = fs::read_to_string(root().join("docs/faults.md")).unwrap();
    let labels = faults.lines().filter_map(|line| line.split('|').nth(1));
    let labels: BTreeSet<&str> = labels.flat_map(|label| label.split([',', ' '])).collect();
    let rows = (1..=30).map(|row| format!("H{row}"));
    let mut offences: Vec<String> = rows.filter(|row| !labels.contains(&**row)).collect();
    let mut code = String::new();
    for folder in ["src", "tests", "examples"] {
        gather(&root().join(folder), &mut code);
    }
    let names = faults.split('`').skip(1).step_by(2);
    let tests = names.filter_map(|name| name.rsplit("::").next());
    let is_test = |name: &&str| {
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        name.matches('_').count() > 2 && name.chars().all(is_name)
    };
    let tests: Vec<&str> = tests.filter(is_test).collect();
    assert!(tests.len() > 200, "control: they are found");
    let missing = tests
        .into_iter()
        .filter(|test| !code.contains(&format!("fn {test}(")));
    offences.extend(missing.map(|test| format!("there is no test `{test}`")));
    tell(&offences);
}

/// The text of every source file of a folder.
fn gather(folder: &std::path::Path, code: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.extension().and_then(|it| it.to_str()) {
            _ if path.is_dir() => gather(&path, code),
            Some("rs") => *code += &fs::read_to_string(&path).unwrap(),
            _ => {}
        }
    }
}

fn words(heading: &str) -> BTreeSet<String> {
    bold(heading).into_iter().collect()
}

/// The words in bold under this heading, in their order.
fn bold(heading: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    let section = text.split(heading).nth(1).unwrap();
    let bold = section.split("**").skip(1).step_by(2);
    bold.flat_map(str::split_whitespace)
        .map(str::to_lowercase)
        .collect()
}

#[test]
fn no_word_is_explained_twice() {
    let mut seen = BTreeSet::new();
    let words = bold("## Words");
    assert!(words.len() > 150, "control: the list is found");
    let twice = words.into_iter().filter(|word| !seen.insert(word.clone()));
    tell(
        &twice
            .map(|word| format!("`{word}` stands twice among the words"))
            .collect::<Vec<_>>(),
    );
}

/// Whether a word of the list is this one, or this one is a form of it.
fn is_listed(words: &BTreeSet<String>, part: &str) -> bool {
    let forms = ["", "s", "d", "r", "ed", "er", "ers", "ing"];
    let stems = forms.iter().filter_map(|form| part.strip_suffix(form));
    stems.into_iter().any(|stem| words.contains(stem))
}

#[test]
fn every_type_is_called_by_listed_words() {
    let house = house();
    let types = ours(&house).flat_map(|module| module.types().map(move |name| (module, name)));
    let types: Vec<(&Module, &str)> = types.collect();
    assert!(types.len() > 200, "control: they are found");
    tell(&unlisted(types));
}

#[test]
fn no_two_types_have_one_name() {
    let house = house();
    let mut wearers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for module in ours(&house) {
        for name in module.types().filter(|name| !name.is_empty()) {
            wearers.entry(name).or_default().push(&module.name);
        }
    }
    wearers.retain(|_, modules| modules.len() > 1);
    let shared: BTreeSet<String> = table("### Shared names").concat().into_iter().collect();
    let unshared = wearers
        .iter()
        .filter(|(name, _)| !shared.contains(**name))
        .map(|(name, modules)| format!("`{name}` is a type of {}", modules.join(" and of ")));
    let idle = shared
        .iter()
        .filter(|name| !wearers.contains_key(name.as_str()))
        .map(|name| format!("`{name}` is among the shared names, and no two types have it"));
    tell(&unshared.chain(idle).collect::<Vec<_>>());
}

#[test]
fn every_module_is_called_by_listed_words() {
    let house = house();
    let modules = ours(&house).map(|module| (module, module.name.rsplit("::").next().unwrap()));
    tell(&unlisted(modules));
}

/// All modules but those of tests.
fn ours(house: &[Module]) -> impl Iterator<Item = &Module> {
    let is_test = |part: &str| ["conformance", "tests", "world"].contains(&part);
    let ours = house.iter();
    ours.filter(move |module| !module.name.split("::").any(is_test))
}

fn unlisted<'a>(names: impl IntoIterator<Item = (&'a Module, &'a str)>) -> Vec<String> {
    let words = words("## Words");
    assert!(words.len() > 150, "control: the list is found");
    let mut offences = Vec::new();
    for (module, name) in names {
        let unlisted = parts(name)
            .into_iter()
            .filter(|part| !is_listed(&words, part));
        offences.extend(unlisted.map(|part| format!("{}: `{part}` of `{name}`", module.name)));
    }
    offences
}

/// What a name is made of.
fn parts(name: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for c in name.chars() {
        match parts.last_mut() {
            _ if c == '_' => parts.push(String::new()),
            Some(part) if !c.is_uppercase() => part.push(c),
            _ => parts.push(c.to_lowercase().collect()),
        }
    }
    parts
}
