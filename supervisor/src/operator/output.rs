//! What commands print: text, tables and JSON.

use std::io::{IsTerminal, Write};

use clap::Args;

use crate::Failure;

/// How a command prints.
#[derive(Debug, Args)]
pub struct Output {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Writes to standard output; a reader that has gone is no failure.
///
/// # Errors
/// When standard output fails.
pub fn print(bytes: &[u8]) -> Result<(), Failure> {
    match std::io::stdout().write_all(bytes) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::Failed(e.to_string())),
        _ => Ok(()),
    }
}

/// Prints what is serialised, as JSON for readers.
///
/// # Errors
/// When standard output fails.
pub fn json<T: serde::Serialize>(rows: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(rows).map_err(|e| Failure::Failed(e.to_string()))?;
    print(format!("{text}\n").as_bytes())
}

/// Prints rows: aligned columns for a terminal and for pipes alike, no colour.
///
/// # Errors
/// When standard output fails.
pub fn table(head: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for r in &rows {
        for (w, c) in widths.iter_mut().zip(r) {
            *w = (*w).max(c.chars().count());
        }
    }
    let last = widths.len() - 1;
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut out = String::new();
        for (i, c) in cells.enumerate() {
            out.push_str(c);
            if i < last {
                out.push_str(&" ".repeat(widths[i] - c.chars().count() + 2));
            }
        }
        out.push('\n');
        out
    };
    let mut out = line(&mut head.iter().copied());
    if std::io::stdout().is_terminal() {
        out.push_str(&line(&mut widths.iter().map(|w| "-".repeat(*w)).collect::<Vec<_>>().iter().map(String::as_str)));
    }
    for r in &rows {
        out.push_str(&line(&mut r.iter().map(String::as_str)));
    }
    print(out.as_bytes())
}
