//! Rows of the accounting files.

use std::collections::HashMap;
use std::path::Path;

/// Times that `(type, rcpt)` stands in the files below a data folder.
pub fn rows(data: &Path) -> HashMap<(String, String), u32> {
    let mut all = HashMap::new();
    let mut files: Vec<_> = std::fs::read_dir(data.join("acct")).unwrap().flatten().map(|e| e.path()).collect();
    files.sort();
    for f in files {
        let text = std::fs::read_to_string(&f).unwrap();
        assert!(text.is_empty() || text.ends_with("\r\n"), "{} ends in a torn row", f.display());
        for line in text.lines().skip(1) {
            let cells: Vec<&str> = line.split(',').collect();
            assert!(cells.len() >= 23, "torn row {line:?}");
            *all.entry((cells[0].to_owned(), cells[4].to_owned())).or_default() += 1;
        }
    }
    all
}
