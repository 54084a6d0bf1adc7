//! What is wrong with a configuration, and where.

use std::path::{Path, PathBuf};

/// One error or warning.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Diagnostic {
    /// File as the operator named it.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// Stable word for tools.
    pub code: &'static str,
    /// What was expected and what was found.
    pub message: String,
    /// What to do instead; empty for none.
    pub suggestion: String,
    /// An error refuses the configuration.
    #[serde(skip)]
    pub is_error: bool,
    #[serde(skip)]
    excerpt: String,
    #[serde(skip)]
    width: usize,
}

/// A place in a file, with its line for excerpts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// File.
    pub file: std::rc::Rc<Path>,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// Characters.
    pub width: usize,
    /// The whole line.
    pub text: std::rc::Rc<str>,
}

impl Diagnostic {
    /// An error at a place.
    pub fn error(at: &Place, code: &'static str, message: impl Into<String>, suggestion: impl Into<String>) -> Self {
        Diagnostic {
            file: at.file.to_path_buf(),
            line: at.line,
            column: at.column,
            code,
            message: message.into(),
            suggestion: suggestion.into(),
            is_error: true,
            excerpt: at.text.to_string(),
            width: at.width.max(1),
        }
    }

    /// A warning at a place.
    pub fn warning(at: &Place, code: &'static str, message: impl Into<String>, suggestion: impl Into<String>) -> Self {
        Diagnostic { is_error: false, ..Self::error(at, code, message, suggestion) }
    }
}

impl std::fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.is_error { "error" } else { "warning" };
        writeln!(f, "{}:{}:{}: {kind}: {} [{}]", self.file.display(), self.line, self.column, self.message, self.code)?;
        let number = self.line.to_string();
        writeln!(f, " {number} | {}", self.excerpt.trim_end())?;
        let blank: String =
            self.excerpt.chars().take(self.column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        write!(f, " {} | {blank}{}", " ".repeat(number.len()), "^".repeat(self.width))?;
        if !self.suggestion.is_empty() {
            write!(f, "\n {} = {}", " ".repeat(number.len()), self.suggestion)?;
        }
        Ok(())
    }
}

/// The name among `all` that `word` was probably meant to be.
pub fn nearest<'a>(word: &str, all: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = 1 + word.len() / 4;
    all.map(|n| (distance(word, n), n)).filter(|(d, _)| *d <= limit).min_by_key(|(d, _)| *d).map(|(_, n)| n)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
