//! Accounting files: columns, formats, filters, programs that read them, and what outlives kills
//! and full disks.
#![allow(clippy::unwrap_used, missing_docs)]

mod fields;
mod files;
mod programs;
mod readers;
mod tools;

use std::path::Path;
use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::{accounting, eventually};

/// Sends one message with these header lines and no sender to report to; it is accepted.
fn send(engine: &Engine, to: &[&str], headers: &str) {
    let mut c = Client::connect(engine.smtp).unwrap();
    let (code, text) = c.send("", to, &format!("{headers}Subject: x\r\n\r\nx")).unwrap();
    assert_eq!(code, 250, "{text}");
}

/// Text of all files in a folder, in the order of their names.
fn texts(folder: &Path) -> Vec<String> {
    let mut files: Vec<_> = std::fs::read_dir(folder).map_or(Vec::new(), |d| d.flatten().map(|e| e.path()).collect());
    files.retain(|f| f.is_file());
    files.sort();
    files.iter().map(|f| std::fs::read_to_string(f).unwrap()).collect()
}

/// The rows of a folder of CSV files as name and cell, once there are `n` of them.
fn table(folder: &Path, n: usize) -> Vec<Vec<(String, String)>> {
    let mut all = Vec::new();
    eventually(&format!("{n} rows in {}", folder.display()), Duration::from_secs(20), || {
        all.clear();
        for text in texts(folder) {
            let mut lines = text.lines();
            let names = accounting::cells(lines.next().unwrap_or_default());
            for line in lines {
                let cells = accounting::cells(line);
                assert_eq!(cells.len(), names.len(), "{line}");
                all.push(names.iter().cloned().zip(cells).collect());
            }
        }
        all.len() >= n
    });
    assert_eq!(all.len(), n);
    all
}

/// A cell of a row.
fn cell<'a>(row: &'a [(String, String)], name: &str) -> &'a str {
    row.iter().find(|(n, _)| n == name).map_or("(none)", |(_, c)| c)
}
