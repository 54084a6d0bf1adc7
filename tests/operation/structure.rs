//! How the sources depend on each other: what the schedule may import, and which files import one another in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A file of a crate, by the names of its module.
type Module = Vec<String>;

/// What `schedule/` may import beside itself, `std` and `ipc`: containers, and values that import nothing else of the worker.
const OF_THE_SCHEDULE: [&str; 6] =
    ["crate::classify::outcome", "crate::connect::protection", "hashbrown", "proptest", "slab", "smallvec"];

/// What `engine/` may import besides: the configuration and the reply rules in force, which are read and nothing else, and the form in which
/// a spool passes what it found.
const OF_THE_ENGINE: [&str; 8] = [
    "crate::classify::outcome",
    "crate::classify::reply_patterns",
    "crate::config::Config",
    "crate::connect::protection",
    "crate::engine",
    "crate::prepare::vmta_name",
    "crate::schedule",
    "spool::Recovered",
];

/// What of `std` and `tokio` neither of them touches: files, sockets, processes, threads, and clocks.
const DOES_SOMETHING: [&str; 8] = [
    "std::fs",
    "std::io",
    "std::net::TcpStream",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "tokio",
];

/// Files of the largest circle of each crate today, imports of a module's own children among them; the numbers may only fall.
const CIRCLES: [(&str, usize); 4] = [("worker", 2), ("supervisor", 2), ("spool", 0), ("ipc", 6)];

#[test]
fn the_schedule_imports_values_and_nothing_that_does_something() {
    import_only("worker/src/schedule", &OF_THE_SCHEDULE);
}

#[test]
fn the_engine_imports_what_it_decides_by_and_nothing_that_does_something() {
    import_only("worker/src/engine", &OF_THE_ENGINE);
}

fn import_only(folder: &str, allowed: &[&str]) {
    let files = modules(&root().join(folder));
    let is_child =
        |import: &str| files.keys().any(|m| m.first().is_some_and(|m| import.starts_with(&format!("{m}::"))));
    for (module, file) in &files {
        for import in imports(&code(file)).into_iter().filter(|i| !is_child(i)) {
            let is_of = |of: &&str| import == **of || import.starts_with(&format!("{of}::"));
            let own = ["std", "ipc", "super", "self", "crate::schedule", "Self"].iter().any(is_of);
            assert!(own || allowed.iter().any(is_of), "{folder}: {module:?} imports {import}");
            assert!(!DOES_SOMETHING.iter().any(is_of), "{folder}: {module:?} imports {import}");
        }
    }
}

#[test]
fn circles_of_files_that_import_one_another_do_not_grow() {
    for (of, allowed) in CIRCLES {
        let largest = circles(&root().join(of).join("src")).into_iter().max_by_key(Vec::len).unwrap_or_default();
        let names: Vec<String> = largest.iter().map(|m| m.join("/")).collect();
        assert!(largest.len() <= allowed, "{of}: expected at most {allowed} files, found {}: {names:?}", names.len());
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("..")).to_path_buf()
}

/// All files below a folder, by module.
fn modules(source: &Path) -> BTreeMap<Module, PathBuf> {
    let mut all = BTreeMap::new();
    let mut folders = vec![source.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|e| e == "rs") {
                let inside = entry.strip_prefix(source).unwrap().with_extension("");
                let mut module: Module = inside.iter().map(|p| p.to_string_lossy().into_owned()).collect();
                module.retain(|m| !matches!(m.as_str(), "mod" | "lib" | "main"));
                all.insert(module, entry);
            }
        }
    }
    all
}

/// A file without its comments and unit tests.
fn code(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let text = text.split("#[cfg(test)]\n#[allow(clippy::unwrap_used)]\nmod tests").next().unwrap_or_default();
    text.lines().map(|l| l.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Paths that a file imports by `use`, and those in its code that say where they begin.
fn imports(code: &str) -> Vec<String> {
    let mut all = Vec::new();
    for line in code.split(';') {
        let tree = line.rsplit_once("\nuse ").map(|(_, t)| t).or_else(|| line.strip_prefix("use "));
        // Behind `pub`, or in a function.
        let tree = tree.or_else(|| line.rsplit_once(" use ").map(|(_, t)| t));
        if let Some(tree) = tree {
            expand("", &tree.split_whitespace().collect::<Vec<_>>().join(" "), &mut all);
        }
    }
    for begin in ["crate::", "super::", "std::", "tokio::"] {
        // Behind another `super::` it is no beginning.
        for (at, _) in code.match_indices(begin).filter(|(at, _)| !code[..*at].ends_with("::")) {
            let path = code[at..].split(|c: char| c != ':' && c != '_' && !c.is_ascii_alphanumeric()).next();
            // What stands before braces is a part of a `use`.
            all.extend(path.map(|p| p.trim_end_matches(':')).filter(|p| p.contains("::")).map(str::to_owned));
        }
    }
    all
}

/// All paths in the code, those to a module's own children among them.
fn paths(code: &str) -> impl Iterator<Item = String> + '_ {
    let words = code.split(|c: char| c != ':' && c != '_' && !c.is_ascii_alphanumeric());
    words.map(|w| w.trim_matches(':')).filter(|w| w.contains("::")).map(str::to_owned)
}

/// The paths of one `use`, whose braces may be nested.
fn expand(before: &str, tree: &str, all: &mut Vec<String>) {
    let Some((head, rest)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default().trim();
        all.push(format!("{before}{}", path.trim_end_matches("::*").trim_end_matches("::self")));
        return;
    };
    let inside = rest.rsplit_once('}').map_or(rest, |(i, _)| i);
    let (mut depth, mut from) = (0, 0);
    let before = format!("{before}{}", head.trim());
    for (at, c) in inside.char_indices().chain([(inside.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = inside[from..at].trim();
                if !part.is_empty() {
                    expand(&before, part, all);
                }
                from = at + 1;
            }
            _ => {}
        }
    }
}

/// Groups of several files each of which imports all others, directly or by way of others.
fn circles(source: &Path) -> Vec<Vec<Module>> {
    let files = modules(source);
    let mut reached: BTreeMap<&Module, BTreeSet<&Module>> = BTreeMap::new();
    for (module, file) in &files {
        let own = |path: &str| -> Option<&Module> {
            let mut words: Vec<&str> = path.split("::").map(str::trim).collect();
            let mut base: Module = match words.first() {
                Some(&"crate") => Vec::new(),
                Some(&"super" | &"self") => module.clone(),
                // A child of its own.
                Some(child) if files.contains_key(&[module.as_slice(), &[(*child).to_owned()]].concat()) => {
                    module.clone()
                }
                _ => return None,
            };
            while words.first().is_some_and(|w| matches!(*w, "super" | "crate" | "self")) {
                if words.remove(0) == "super" {
                    base.pop();
                }
            }
            base.extend(words.iter().map(|w| (*w).to_owned()));
            // The longest beginning that is a file.
            (1..=base.len()).rev().find_map(|n| files.get_key_value(&base[..n]).map(|(m, _)| m))
        };
        let code = code(file);
        let direct =
            imports(&code).into_iter().chain(paths(&code)).filter_map(|p| own(&p)).filter(|m| *m != module).collect();
        reached.insert(module, direct);
    }
    // What is imported by what is imported, until nothing is added.
    loop {
        let mut grown = false;
        for module in files.keys() {
            let further: BTreeSet<&Module> = reached[module].iter().flat_map(|m| reached[m].iter().copied()).collect();
            let all = reached.entry(module).or_default();
            let before = all.len();
            all.extend(further);
            grown |= all.len() > before;
        }
        if !grown {
            break;
        }
    }
    let circle_of = |m: &Module| -> Vec<Module> {
        let both = |o: &&Module| *o == m || reached[m].contains(o) && reached[*o].contains(m);
        files.keys().filter(both).cloned().collect()
    };
    files.keys().map(circle_of).filter(|c| c.len() > 1).collect()
}
