//! Rows of the accounting files.

use std::collections::HashMap;
use std::path::Path;

/// Every row of the files below a data folder, in order.
pub fn lines(data: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let entries = std::fs::read_dir(data.join("acct")).map_or_else(|_| Vec::new(), |d| d.flatten().collect());
    let mut files: Vec<_> = entries.iter().map(|e| e.path()).filter(|p| p.is_file()).collect();
    files.sort();
    for f in files {
        let text = std::fs::read_to_string(&f).unwrap();
        assert!(text.is_empty() || text.ends_with("\r\n"), "{} ends in a torn row", f.display());
        all.extend(text.lines().skip(1).map(str::to_owned));
    }
    all
}

/// Times that `(type, rcpt)` stands in the files below a data folder.
pub fn rows(data: &Path) -> HashMap<(String, String), u32> {
    let mut all = HashMap::new();
    for line in lines(data) {
        let cells: Vec<&str> = line.split(',').collect();
        assert!(cells.len() >= 23, "torn row {line:?}");
        *all.entry((cells[0].to_owned(), cells[4].to_owned())).or_default() += 1;
    }
    all
}

/// Cells of a row (RFC 4180).
pub fn cells(line: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    let (mut quoted, mut chars) = (false, line.chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                all.last_mut().unwrap().push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => all.push(String::new()),
            c => all.last_mut().unwrap().push(c),
        }
    }
    all
}
