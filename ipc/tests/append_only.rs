//! Numbers on disk and on the wire are places in lists: of an enum's variants, of directives, of accounting fields. New ones go to the end
//! of their list, for what older builds wrote must go on meaning what it meant. `append_only.txt` holds the lists as they are in use.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The lists in use: a name a line, and its entries indented under it.
const IN_USE: &str = include_str!("append_only.txt");
/// Crates whose sources have such lists.
const CRATES: [&str; 4] = ["ipc", "spool", "worker", "supervisor"];

type Lists = BTreeMap<String, Vec<String>>;

fn depth(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The first words of the lines inside the block that begins at `at`, of those that are as deep as the first: variants, directives or texts.
fn entries(lines: &[&str], at: usize) -> Vec<String> {
    let inside = lines[at + 1..].iter().take_while(|l| l.trim().is_empty() || depth(l) > depth(lines[at]));
    let own = inside.clone().filter(|l| !l.trim().is_empty()).map(|l| depth(l)).min().unwrap_or(0);
    let of_block = inside.filter(|l| !l.trim().is_empty() && depth(l) == own).map(|l| l.trim());
    let words = of_block.filter(|l| !l.starts_with(['/', '#', '}', ')', ']'])).map(|l| l.trim_start_matches('"'));
    words.map(|l| l.split(['"', ',', '(', '{', ' ']).next().unwrap_or_default().to_owned()).collect()
}

/// Lists of one source file, without those of its tests.
fn lists_of(text: &str) -> Lists {
    let text = text.split("#[cfg(test)]\n").next().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let mut lists = Lists::new();
    // Archived, or with numbers of its own: those of records' kinds stand in their headers.
    let mut is_numbered = false;
    for (at, line) in lines.iter().enumerate().map(|(at, line)| (at, line.trim())) {
        let words: Vec<&str> = line.split([' ', ',', ':', '<']).filter(|w| !w.is_empty()).collect();
        let name = match &words[..] {
            ["pub" | "pub(crate)" | "pub(super)", "enum", name, ..] | ["enum", name, ..] if is_numbered => Some(*name),
            [_, name @ ("DomainKey" | "SourceKey"), "{"] => Some(*name),
            ["pub", "const", name @ "STORED", ..] => Some(*name),
            _ => None,
        };
        // What macros make has its entries where they are called.
        let entries = entries(&lines, at);
        if let Some(name) = name
            && !entries.is_empty()
        {
            let other = lists.insert(name.to_owned(), entries);
            assert!(other.is_none(), "two lists are called {name}");
        }
        let is_attribute = line.starts_with("#[");
        is_numbered = is_attribute && (is_numbered || line.contains("Archive") || line.starts_with("#[repr(u"));
    }
    lists
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for path in std::fs::read_dir(dir).expect("a folder of sources").map(|e| e.expect("an entry").path()) {
        match path.is_dir() {
            true => sources(&path, found),
            false if path.extension().is_some_and(|e| e == "rs") => found.push(path),
            false => {}
        }
    }
}

fn lists() -> Lists {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut files = Vec::new();
    CRATES.iter().for_each(|c| sources(&root.join(c).join("src"), &mut files));
    let mut all = Lists::new();
    for file in files {
        for (name, entries) in lists_of(&std::fs::read_to_string(&file).expect("a source file")) {
            let other = all.insert(name.clone(), entries);
            assert!(other.is_none(), "{}: there is another list called {name}", file.display());
        }
    }
    all
}

fn in_use() -> Lists {
    let mut lists = Lists::new();
    let mut name = "";
    for line in IN_USE.lines().filter(|l| !l.is_empty()) {
        match line.strip_prefix("    ") {
            Some(entry) => lists.entry(name.to_owned()).or_default().push(entry.to_owned()),
            None => name = line,
        }
    }
    lists
}

/// What is wrong with the lists as they are now, beside those in use.
fn wrong(now: &Lists, in_use: &Lists) -> Vec<String> {
    let mut all = Vec::new();
    for (name, known) in in_use {
        let Some(entries) = now.get(name) else {
            all.push(format!("{name} is gone: take it out of append_only.txt if nothing reads it any more"));
            continue;
        };
        if !entries.starts_with(known) {
            let at = known.iter().zip(entries).take_while(|(a, b)| a == b).count();
            let (was, is) = (known.get(at), entries.get(at));
            all.push(format!(
                "{name}, place {at}: expected {was:?}, found {is:?}: the list is append only, new entries go to its end"
            ));
        } else if entries.len() > known.len() {
            all.push(format!("{name} has new entries: add {:?} to append_only.txt", &entries[known.len()..]));
        }
    }
    let new = now.iter().filter(|(n, _)| !in_use.contains_key(*n));
    all.extend(new.map(|(n, entries)| format!("{n} is new: add it to append_only.txt with {entries:?}")));
    all
}

#[test]
fn what_has_a_number_on_disk_or_on_the_wire_keeps_it() {
    let wrong = wrong(&lists(), &in_use());
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn new_entries_anywhere_but_at_the_end_are_refused() {
    let source = "#[derive(Debug, Archive)]\n#[rkyv(derive(Debug))]\npub enum E {\n    /// One.\n    A,\n    B(Vec<(u8, u8)>),\n    \
                  C {\n        /// Inside.\n        c: u8,\n    },\n}\n";
    let before = lists_of(source);
    assert_eq!(before["E"], ["A", "B", "C"]);
    assert!(wrong(&before, &before).is_empty());
    let said_of = |changed: String| wrong(&lists_of(&changed), &before).join("\n");
    assert!(said_of(source.replace("    B(", "    X,\n    B(")).contains("append only"));
    assert!(said_of(source.replace("    A,\n", "")).contains("append only"));
    assert!(said_of(source.replace("    },\n}", "    },\n    D,\n}")).contains("add [\"D\"]"));
    let rules = lists_of("rules! {\n    /// Some.\n    R, DomainKey {\n        \"a-b\" AB a_b: u8 = 1;\n    }\n}\n");
    assert_eq!(rules["DomainKey"], ["a-b"]);
}
