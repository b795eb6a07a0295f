//! Which module uses which, read from the source.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

/// A file of the crate, named as in paths; the root is "".
#[derive(Debug)]
pub struct Module {
    pub name: String,
    pub imports: Vec<Import>,
    /// Without comments and tests, with the numbers of the lines.
    pub code: Vec<(usize, String)>,
}

#[derive(Debug, Clone)]
pub struct Import {
    pub from: String,
    pub to: String,
    line: usize,
    path: String,
}

impl fmt::Display for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            from,
            to,
            line,
            path,
        } = self;
        write!(f, "{from}, line {line}: `{path}` is of {to}")
    }
}

impl Import {
    /// Of a module and one of its own.
    pub fn is_family(&self) -> bool {
        let parent = |inner: &str, outer: &str| inner.starts_with(&format!("{outer}::"));
        parent(&self.from, &self.to) || parent(&self.to, &self.from)
    }
}

/// Every module under this folder, without tests.
pub fn read(src: &Path) -> Vec<Module> {
    let mut modules = Vec::new();
    read_folder(src, "", &mut modules);
    find_imports(&mut modules);
    modules
}

fn find_imports(modules: &mut [Module]) {
    let whole = Whole::of(modules);
    for module in modules {
        module.imports = module.imports(&whole);
    }
}

/// What is known of all modules together.
struct Whole {
    names: Vec<String>,
    /// What a module has from elsewhere, and its own modules or all others from there: by its name and that of the thing.
    handed_on: BTreeMap<(String, String), Vec<String>>,
}

impl Whole {
    fn of(modules: &[Module]) -> Self {
        let mut whole = Self {
            names: modules.iter().map(|module| module.name.clone()).collect(),
            handed_on: BTreeMap::new(),
        };
        for module in modules {
            for Used { path, name, .. } in module.used() {
                let Some((name, path)) = name.zip(module.absolute(&path, &whole)) else {
                    continue;
                };
                if path.split_last() != Some((&name, &module.path()[..])) {
                    whole.handed_on.insert((module.name.clone(), name), path);
                }
            }
        }
        whole
    }

    /// The module that a path names, or in which what it names stands, whoever hands it on.
    fn home(&self, path: Vec<String>) -> String {
        let ends = (0..=path.len()).rev();
        let is_module = |end: &usize| self.names.contains(&path[..*end].join("::"));
        let end = { ends }.find(is_module).unwrap_or_default();
        let module = path[..end].join("::");
        let Some(name) = path.get(end) else {
            return module;
        };
        match self.handed_on.get(&(module.clone(), name.clone())) {
            Some(first) => self.home([&first[..], &path[end + 1..]].concat()),
            None => module,
        }
    }
}

/// A path, as it stands somewhere.
struct Used {
    line: usize,
    path: String,
    /// Under which it is imported.
    name: Option<String>,
}

fn read_folder(folder: &Path, name: &str, modules: &mut Vec<Module>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let inner = match name {
            "" => stem.to_owned(),
            name => format!("{name}::{stem}"),
        };
        if path.is_dir() {
            read_folder(&path, &inner, modules);
        } else if path.extension().is_some_and(|extension| extension == "rs") && stem != "tests" {
            let name = match stem {
                "lib" | "mod" => name.to_owned(),
                _ => inner,
            };
            modules.push(Module {
                name,
                imports: Vec::new(),
                code: code(&fs::read_to_string(&path).unwrap()),
            });
        }
    }
}

/// The lines without comments and without what is for tests only: their module, which stands last, and single items.
fn code(text: &str) -> Vec<(usize, String)> {
    let mut lines = (1..).zip(text.lines());
    let mut code = Vec::new();
    while let Some((number, line)) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            let mut item = lines.by_ref().map(|(_, line)| uncommented(line));
            if is_left_open(&mut item) {
                break;
            }
            continue;
        }
        code.push((number, uncommented(line).to_owned()));
    }
    code
}

fn uncommented(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

/// Takes the lines of one item. A module in braces is not taken: all that follows is its own.
fn is_left_open<'a>(lines: &mut impl Iterator<Item = &'a str>) -> bool {
    let mut depth = 0;
    for line in lines.map(str::trim_end).filter(|line| !line.is_empty()) {
        if depth == 0 && line.starts_with("mod ") && line.ends_with('{') {
            return true;
        }
        let opened = line.matches(['{', '(', '[']).count();
        depth = depth + opened - line.matches(['}', ')', ']']).count();
        if depth == 0 && line.ends_with([';', ',', '}']) {
            return false;
        }
    }
    panic!("an item for tests has no end");
}

impl Module {
    /// What it defines, but for what belongs to a trait: an indented `type`.
    pub fn types(&self) -> impl Iterator<Item = &str> {
        self.code.iter().filter_map(|(_, code)| {
            let indented = code.starts_with(' ');
            let code = code.trim_start();
            let code = match code.strip_prefix("pub(") {
                Some(code) => code.split_once(") ")?.1,
                None => code.strip_prefix("pub ").unwrap_or(code),
            };
            let kinds = ["struct ", "enum ", "trait ", "type "];
            let kinds = &kinds[..kinds.len() - usize::from(indented)];
            let name = kinds.iter().find_map(|kind| code.strip_prefix(kind))?;
            name.split(|c: char| !c.is_alphanumeric()).next()
        })
    }

    fn imports(&self, whole: &Whole) -> Vec<Import> {
        let mut imports = Vec::new();
        for Used { line, path, .. } in self.used() {
            let to = self.absolute(&path, whole).map(|path| whole.home(path));
            if let Some(to) = to.filter(|to| *to != self.name) {
                let from = self.name.clone();
                imports.push(Import {
                    from,
                    to,
                    line,
                    path,
                });
            }
        }
        imports
    }

    /// Every path, braces written out.
    fn used(&self) -> Vec<Used> {
        let mut used = Vec::new();
        let mut statement: Option<(usize, String)> = None;
        for (line, code) in &self.code {
            let trimmed = code.trim_start();
            if let Some((_, text)) = &mut statement {
                text.push_str(trimmed);
            } else if let Some(rest) = begun(trimmed) {
                statement = Some((*line, rest.to_owned()));
            } else {
                used.extend(inline(code).map(|path| Used {
                    line: *line,
                    path,
                    name: None,
                }));
            }
            if let Some((line, text)) = statement.take_if(|(_, text)| text.contains(';')) {
                let tree = text.split(';').next().unwrap_or_default();
                used.extend(expand("", tree).into_iter().map(|path| {
                    let (path, name) = named(&path);
                    let name = Some(name);
                    Used { line, path, name }
                }));
            }
        }
        used
    }

    /// Its own, from the root on.
    fn path(&self) -> Vec<String> {
        let parts = self.name.split("::").filter(|part| !part.is_empty());
        parts.map(str::to_owned).collect()
    }

    /// A path from the root on, if it begins in the crate.
    fn absolute(&self, path: &str, whole: &Whole) -> Option<Vec<String>> {
        let parts: Vec<&str> = path.split("::").collect();
        let mut full = self.path();
        let parts = match *parts.first()? {
            "crate" => {
                full.clear();
                &parts[1..]
            }
            "super" | "self" => &parts[..],
            first => {
                full.push(first.to_owned());
                let is_own = whole.names.contains(&full.join("::"));
                is_own.then_some(&parts[1..])?
            }
        };
        for part in parts {
            match *part {
                "super" => drop(full.pop()),
                "self" => {}
                part => full.push(part.to_owned()),
            }
        }
        Some(full)
    }
}

/// What is imported here, as far as the line goes.
fn begun(line: &str) -> Option<&str> {
    let line = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(") ")?.1,
        Some(rest) => rest.trim_start(),
        None => line,
    };
    line.strip_prefix("use ")
}

/// A path, and the name that it gives what it imports.
fn named(path: &str) -> (String, String) {
    let (path, name) = match path.split_once(" as ") {
        Some((path, name)) => (path, Some(name)),
        None => (path, None),
    };
    let path = path.strip_suffix("::self").unwrap_or(path);
    let last = path.rsplit("::").next().unwrap_or_default();
    (path.to_owned(), name.unwrap_or(last).to_owned())
}

/// Paths within a line of code.
fn inline(code: &str) -> impl Iterator<Item = String> {
    let starts = ["crate::", "super::"];
    let words = code.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    words
        .filter(move |word| starts.iter().any(|start| word.starts_with(start)))
        .map(|word| word.trim_end_matches(':').to_owned())
}

fn expand(prefix: &str, tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        return vec![format!("{prefix}{tree}")];
    };
    let prefix = format!("{prefix}{}", &tree[..open]);
    let inner = &tree[open + 1..tree.rfind('}').unwrap_or(tree.len())];
    let branches = split(inner)
        .into_iter()
        .filter(|branch| !branch.trim().is_empty());
    branches
        .flat_map(|branch| expand(&prefix, branch))
        .collect()
}

/// At the commas that stand in no inner braces.
fn split(list: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (index, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&list[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&list[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(codes: &[(&str, &str)]) -> Vec<Module> {
        let modules = codes.iter().map(|(name, code)| Module {
            name: (*name).to_owned(),
            imports: Vec::new(),
            code: super::code(code),
        });
        let mut modules: Vec<Module> = modules.collect();
        find_imports(&mut modules);
        modules
    }

    fn module(name: &str, code: &str) -> Module {
        let others = ["", "a", "a::b", "c"].into_iter();
        let others = others.filter(|other| *other != name);
        let codes: Vec<_> = [(name, code)]
            .into_iter()
            .chain(others.map(|other| (other, "")))
            .collect();
        all(&codes).swap_remove(0)
    }

    #[test]
    fn every_way_to_import_is_seen() {
        for (code, to) in [
            ("use crate::a::b::Thing;", "a::b"),
            ("use crate::a::Thing;", "a"),
            ("pub(crate) use crate::{\n    c::{self, X},\n};", "c"),
            ("use super::a::Thing as Other;", "a"),
            ("    let x = crate::a::b::new();", "a::b"),
        ] {
            let module = module("c2", code);
            let found: Vec<&str> = module.imports.iter().map(|import| &*import.to).collect();
            assert!(
                found.iter().all(|name| *name == to) && !found.is_empty(),
                "{code}: {found:?}"
            );
        }
        assert!(
            module("c", "use std::a;\n// crate::a\nuse crate::c::X;")
                .imports
                .is_empty()
        );
        assert!(
            module("c", "#[cfg(test)]\nmod tests { use crate::a::X; }")
                .imports
                .is_empty()
        );
    }

    #[test]
    fn what_is_handed_on_is_imported_from_where_it_stands() {
        let codes = [
            ("", "pub use a::Thing;"),
            (
                "a",
                "mod b;\npub(crate) use self::b::{Thing, Other as Name};",
            ),
            ("a::b", "struct Thing;"),
            (
                "c",
                "use crate::Thing;\nuse crate::a::Name;\nuse crate::a::Own;",
            ),
        ];
        let imports = &all(&codes)[3].imports;
        let found: Vec<&str> = imports.iter().map(|import| &*import.to).collect();
        assert_eq!(found, ["a::b", "a::b", "a"]);
    }

    #[test]
    fn only_items_for_tests_are_passed_over() {
        for item in [
            "fn f(&self) {\n    if true {\n    }\n}",
            "fn f(\n    a: A,\n) -> B {\n}",
            "    count: u64,",
            "let a =\n    f(1);",
            "use b::{\n    C,\n};",
            "mod world;",
            "impl A {\n    fn f() {}\n}",
            "#[derive(Debug)]\n// {\nstruct A;",
        ] {
            let text = format!("a\n#[cfg(test)]\n{item}\nb\n#[cfg(test)]\nmod tests {{\n    c\n}}");
            let read: Vec<String> = super::code(&text)
                .into_iter()
                .map(|(_, line)| line)
                .collect();
            assert_eq!(read, ["a", "b"], "{item}");
        }
    }

    #[test]
    fn a_module_and_its_own_are_family() {
        assert!(module("a::b", "use super::Thing;").imports[0].is_family());
        assert!(!module("c", "use crate::a::Thing;").imports[0].is_family());
    }
}
