//! The faults that the code has for the simulation are in no server.

use std::collections::BTreeSet;
use std::path::Path;

use tests::engine;

/// Names within `planted!("…")` in all Rust files of a folder.
fn planted(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            planted(&path, names);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let found = text.split("planted!(\"").skip(1).filter_map(|behind| behind.split_once('"'));
            names.extend(found.map(|(name, _)| name.to_owned()));
        }
    }
}

#[test]
fn the_server_has_none_of_the_planted_faults() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut names = BTreeSet::new();
    ["ipc/src", "spool/src", "worker/src"].iter().for_each(|f| planted(&root.join(f), &mut names));
    assert!(names.len() >= 15, "{names:?}");
    let server = std::fs::read(engine::binary()).unwrap();
    let there: Vec<&String> = names.iter().filter(|n| memchr::memmem::find(&server, n.as_bytes()).is_some()).collect();
    assert!(there.is_empty(), "{there:?}");
}
